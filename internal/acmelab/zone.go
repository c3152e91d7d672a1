package acmelab

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// maxChain is the longest chain of CNAMEs that is followed.
const maxChain = 8

// answer fills m with what the zones say about q: RFC 1034, section 4.3.2.
func (d *DNS) answer(m *dns.Msg, q Query) {
	d.mu.Lock()
	defer d.mu.Unlock()
	soa := d.zoneLocked(q.Name)
	if soa == nil {
		m.Rcode = dns.RcodeRefused
		return
	}
	name := q.Name
	if ns := d.cutLocked(soa, name); ns != nil { // a zone of somebody else
		m.Ns = ns
		m.Extra = d.glueLocked(ns)
		return
	}
	m.Authoritative = true
	for range maxChain {
		if q.Type == dns.TypeSOA && d.zones[name] != nil {
			m.Answer = append(m.Answer, dns.Copy(d.zones[name]))
			return
		}
		matched, target := d.matchLocked(q, name)
		m.Answer = append(m.Answer, matched...)
		if target == "" && len(matched) > 0 {
			return
		}
		if target == "" {
			break
		}
		name = target
		if soa = d.zoneLocked(name); soa == nil || d.cutLocked(soa, name) != nil {
			return // the rest is for the resolver to ask
		}
	}
	m.Ns = []dns.RR{dns.Copy(soa)} // RFC 2308: the zone of the last name
	if !d.existsLocked(name) && d.wildcardLocked(name) == "" {
		m.Rcode = dns.RcodeNameError
	}
}

// matchLocked returns the records of name that answer q. If that is a CNAME to
// follow, target is its canonical target.
func (d *DNS) matchLocked(q Query, name string) (matched []dns.RR, target string) {
	owner := name
	if !d.existsLocked(name) {
		owner = d.wildcardLocked(name)
	}
	for _, e := range d.records[owner] {
		if d.lag != nil && !d.lag(q, time.Since(e.added)) {
			continue
		}
		t := e.rr.Header().Rrtype
		if t != q.Type && t != dns.TypeCNAME && q.Type != dns.TypeANY {
			continue
		}
		rr := dns.Copy(e.rr)
		if owner != name {
			rr.Header().Name = name
		}
		matched = append(matched, rr)
		if c, ok := rr.(*dns.CNAME); ok && q.Type != dns.TypeCNAME && q.Type != dns.TypeANY {
			target = dns.CanonicalName(c.Target)
		}
	}
	return matched, target
}

// wildcardLocked returns the owner name of the wildcard that covers name: the
// one below the closest ancestor that exists (RFC 4592, section 3.3.1).
func (d *DNS) wildcardLocked(name string) string {
	for off, end := dns.NextLabel(name, 0); !end; off, end = dns.NextLabel(name, off) {
		if !d.existsLocked(name[off:]) {
			continue
		}
		if star := "*." + name[off:]; len(d.records[star]) > 0 {
			return star
		}
		return ""
	}
	return ""
}

// cutLocked returns the NS records of the zone below that of soa which name
// belongs to and which this server does not have; nil if there is none.
func (d *DNS) cutLocked(soa *dns.SOA, name string) []dns.RR {
	apex := dns.CanonicalName(soa.Hdr.Name)
	for off, end := 0, false; !end && name[off:] != apex; off, end = dns.NextLabel(name, off) {
		var ns []dns.RR
		for _, e := range d.records[name[off:]] {
			if e.rr.Header().Rrtype == dns.TypeNS {
				ns = append(ns, dns.Copy(e.rr))
			}
		}
		if ns != nil {
			return ns
		}
	}
	return nil
}

// glueLocked returns the addresses of the name servers that it has.
func (d *DNS) glueLocked(servers []dns.RR) []dns.RR {
	var glue []dns.RR
	for _, rr := range servers {
		ns, ok := rr.(*dns.NS)
		if !ok {
			continue
		}
		for _, e := range d.records[dns.CanonicalName(ns.Ns)] {
			if t := e.rr.Header().Rrtype; t == dns.TypeA || t == dns.TypeAAAA {
				glue = append(glue, dns.Copy(e.rr))
			}
		}
	}
	return glue
}

// update applies the update section of RFC 2136, section 3.4.2. Prerequisites
// are refused: libdns sends none.
func (d *DNS) update(r *dns.Msg) int {
	apex := dns.CanonicalName(r.Question[0].Name)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.zones[apex] == nil {
		return dns.RcodeNotAuth
	}
	if len(r.Answer) > 0 {
		return dns.RcodeNotImplemented
	}
	for _, rr := range r.Ns {
		if soa := d.zoneLocked(rr.Header().Name); soa != d.zones[apex] {
			return dns.RcodeNotZone
		}
	}
	for _, rr := range r.Ns {
		h := rr.Header()
		switch h.Class {
		case dns.ClassANY: // delete one RRset, or every one at the name
			d.deleteLocked(h.Name, func(old dns.RR) bool {
				return h.Rrtype == dns.TypeANY || old.Header().Rrtype == h.Rrtype
			})
		case dns.ClassNONE: // delete one record
			d.removeLocked(rr)
		default:
			d.insertLocked(rr)
		}
	}
	d.zones[apex].Serial++
	d.updates++
	return dns.RcodeSuccess
}

// transfer sends a zone (AXFR).
func (d *DNS) transfer(w dns.ResponseWriter, r *dns.Msg) {
	apex := dns.CanonicalName(r.Question[0].Name)
	d.mu.Lock()
	soa := d.zones[apex]
	var rrs []dns.RR
	if soa != nil {
		rrs = append(rrs, dns.Copy(soa))
		for name, entries := range d.records {
			if d.zoneLocked(name) == soa {
				for _, e := range entries {
					rrs = append(rrs, dns.Copy(e.rr))
				}
			}
		}
		rrs = append(rrs, dns.Copy(soa))
	}
	d.mu.Unlock()
	if rrs == nil {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeNotAuth))
		return
	}
	ch := make(chan *dns.Envelope, 1)
	ch <- &dns.Envelope{RR: rrs}
	close(ch)
	_ = new(dns.Transfer).Out(w, r, ch) // signs by itself when r is signed
}

// zoneLocked returns the SOA of the closest enclosing zone, or nil.
func (d *DNS) zoneLocked(name string) *dns.SOA {
	name = dns.CanonicalName(name)
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if soa := d.zones[name[off:]]; soa != nil {
			return soa
		}
	}
	return nil
}

// existsLocked tells a name with data or with children (an empty non-terminal)
// from one that does not exist.
func (d *DNS) existsLocked(name string) bool {
	if d.zones[name] != nil {
		return true
	}
	for have := range d.records {
		if have == name || strings.HasSuffix(have, "."+name) {
			return true
		}
	}
	return false
}

// insertLocked adds rr; of an equal record only the TTL is taken.
func (d *DNS) insertLocked(rr dns.RR) {
	name := dns.CanonicalName(rr.Header().Name)
	for i, e := range d.records[name] {
		if dns.IsDuplicate(e.rr, rr) {
			d.records[name][i].rr = rr
			return
		}
	}
	d.records[name] = append(d.records[name], entry{rr: rr, added: time.Now()})
}

// removeLocked deletes the record equal to rr but for TTL and class.
func (d *DNS) removeLocked(rr dns.RR) {
	want := dns.Copy(rr)
	want.Header().Class = dns.ClassINET
	d.deleteLocked(want.Header().Name, func(old dns.RR) bool { return dns.IsDuplicate(old, want) })
}

func (d *DNS) deleteLocked(name string, gone func(dns.RR) bool) {
	name = dns.CanonicalName(name)
	left := slices.DeleteFunc(d.records[name], func(e entry) bool { return gone(e.rr) })
	if len(left) == 0 {
		delete(d.records, name)
		return
	}
	d.records[name] = left
}

// edit parses all records before it calls f for each.
func (d *DNS) edit(records []string, f func(dns.RR)) error {
	rrs := make([]dns.RR, 0, len(records))
	for _, s := range records {
		rr, err := parseRR(s)
		if err != nil {
			return err
		}
		rrs = append(rrs, rr)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, rr := range rrs {
		f(rr)
	}
	return nil
}

func parseRR(s string) (dns.RR, error) {
	rr, err := dns.NewRR(s)
	if err == nil && rr == nil {
		err = errors.New("no record")
	}
	if err != nil {
		return nil, fmt.Errorf("acmelab: record %q: %w", s, err)
	}
	return rr, nil
}
