package acmelab

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Silence is the response code of a Fault that sends no answer at all.
const Silence = -1

// maxQueries bounds the list of DNS.Queries; the oldest go first.
const maxQueries = 10_000

// TSIGKey is a key in the form in which libdns/rfc2136 takes it.
type TSIGKey struct {
	Name   string // canonical: lower case with a final dot
	Alg    string // with a final dot, as "hmac-sha256."
	Secret string // base64
}

// Query is one question, or one update of a zone.
type Query struct {
	Server  string // IP address that was asked
	Network string // "udp" or "tcp"
	Name    string // canonical: lower case with a final dot; of the zone for an update
	Type    uint16 // dns.TypeTXT, …; 0 for an update
	Update  bool   // an UPDATE (RFC 2136)
}

// Fault breaks answers: it returns the response code to send, or Silence, and
// true; or false to answer normally. A broken update changes nothing.
type Fault func(Query) (rcode int, broken bool)

// Lag tells whether an answer to q may hold a record that was added age ago.
// A name server that has not got the record yet answers as if there were none.
// It is called under the server's lock and must not call the server.
type Lag func(q Query, age time.Duration) (visible bool)

// DNSOptions are the settings of a DNS server.
type DNSOptions struct {
	Zones []string // apex names, with or without a final dot; one may lie below another

	// Addr is the UDP and TCP address; "" is a free port of 127.0.0.1. Replicas
	// are further IP addresses that are served on the same port, from the same
	// data: 127.0.0.2 and so on are on the loopback interface too (not on macOS).
	Addr     string
	Replicas []string

	// NS adds name servers to every zone, with their addresses. Each zone has
	// ns1.<zone> for Addr and ns2.<zone> … for the Replicas to begin with.
	NS map[string][]string

	Fault Fault
	Lag   Lag
}

// DNS is an authoritative DNS server for a few zones. It answers with CNAMEs
// chased, wildcards expanded, the right SOA in negative answers and referrals
// to zones that it does not serve, and takes TSIG-signed dynamic updates
// (RFC 2136) and zone transfers. Methods may be called concurrently.
//
// Three things that a reader would otherwise lose an hour to:
//
//   - miekg/dns answers NOTIMP to every UPDATE unless MsgAcceptFunc says
//     otherwise; see acceptUpdates.
//   - A TSIG key name must be given in canonical form in dns.Server.TsigSecret,
//     and a failed signature is not refused by the library: the handler has to
//     look at ResponseWriter.TsigStatus.
//   - Pebble asks over TCP only and follows no CNAME itself: it reads any TXT
//     record of the answer section. So the server chases CNAMEs, as a recursive
//     resolver would.
type DNS struct {
	Addr string // of the first server: "127.0.0.1:port"
	Port string // of all servers
	Key  TSIGKey

	servers []*dns.Server
	done    sync.WaitGroup

	mu       sync.Mutex
	zones    map[string]*dns.SOA // by canonical apex
	records  map[string][]entry  // by canonical owner name; a SOA is in zones only
	fault    Fault
	lag      Lag
	updates  int
	asked    int
	queries  []Query
	serveErr error
}

// entry is a record and when it came.
type entry struct {
	rr    dns.RR
	added time.Time
}

// StartDNS runs a DNS server. The caller must Close it.
func StartDNS(o DNSOptions) (*DNS, error) {
	d := &DNS{
		Key: TSIGKey{
			Name:   "lab-key.",
			Alg:    dns.HmacSHA256,
			Secret: base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef")),
		},
		zones:   map[string]*dns.SOA{},
		records: map[string][]entry{},
		fault:   o.Fault,
		lag:     o.Lag,
	}
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	host, port, err := net.SplitHostPort(o.Addr)
	if err != nil {
		return nil, fmt.Errorf("acmelab: DNS address: %w", err)
	}
	ips := append([]string{host}, o.Replicas...)
	if err := d.addZones(o, ips); err != nil {
		return nil, err
	}
	if err := d.listen(ips, port); err != nil {
		return nil, err
	}
	for _, srv := range d.servers {
		d.run(srv, d.serve)
	}
	return d, nil
}

// also serves h at another address, until the caller shuts the servers down.
func (d *DNS) also(h dns.HandlerFunc) (servers []*dns.Server, addr string, err error) {
	other := &DNS{}
	if err := other.listen([]string{"127.0.0.1"}, "0"); err != nil {
		return nil, "", err
	}
	for _, srv := range other.servers {
		d.run(srv, h)
	}
	return other.servers, other.Addr, nil
}

// run starts one server and waits until it answers: Shutdown fails on one that
// has not started yet.
func (d *DNS) run(srv *dns.Server, h dns.HandlerFunc) {
	started := make(chan struct{})
	srv.Handler = h
	srv.TsigSecret = map[string]string{d.Key.Name: d.Key.Secret}
	srv.MsgAcceptFunc = acceptUpdates
	srv.NotifyStartedFunc = sync.OnceFunc(func() { close(started) })
	failed := make(chan struct{})
	d.done.Go(func() {
		defer close(failed)
		if err := srv.ActivateAndServe(); err != nil {
			d.mu.Lock()
			d.serveErr = errors.Join(d.serveErr, err)
			d.mu.Unlock()
		}
	})
	select {
	case <-started:
	case <-failed:
	}
}

// Close ends the server; after it no handler runs any more.
func (d *DNS) Close() error {
	var errs []error
	for _, srv := range d.servers {
		errs = append(errs, srv.Shutdown())
	}
	d.done.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(append(errs, d.serveErr)...); err != nil {
		return fmt.Errorf("acmelab: DNS: %w", err)
	}
	return nil
}

// Add puts records in zone-file form into the server, for example
// "www.example.test. 60 IN A 127.0.0.9".
func (d *DNS) Add(records ...string) error { return d.edit(records, d.insertLocked) }

// Remove takes records out that are equal but for their TTL.
func (d *DNS) Remove(records ...string) error { return d.edit(records, d.removeLocked) }

// TXT returns the values of the TXT records at name, sorted, whatever Lag says.
// A quote or backslash in a value has a backslash before it, as in a zone file.
func (d *DNS) TXT(name string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var values []string
	for _, e := range d.records[dns.CanonicalName(name)] {
		if t, ok := e.rr.(*dns.TXT); ok {
			values = append(values, strings.Join(t.Txt, ""))
		}
	}
	slices.Sort(values)
	return values
}

// TXTNames lists the names that have a TXT record, sorted.
func (d *DNS) TXTNames() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := map[string]bool{}
	for name, entries := range d.records {
		for _, e := range entries {
			if _, ok := e.rr.(*dns.TXT); ok {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Zones lists the zones in canonical form, sorted.
func (d *DNS) Zones() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.zones))
}

// SetFault installs f, which is asked first; nil removes it.
func (d *DNS) SetFault(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// SetLag installs f; nil shows every record at once.
func (d *DNS) SetLag(f Lag) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lag = f
}

// Counts tells how many questions there have been and how many updates were
// carried out. What the cloud fakes write is no update.
func (d *DNS) Counts() (queries, updates int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked, d.updates
}

// Queries lists the questions and updates so far, the oldest first. Of a very
// long list the oldest are missing.
func (d *DNS) Queries() []Query {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.queries)
}

// acceptUpdates lets UPDATE messages through, which the default of miekg/dns
// refuses, and leaves every other decision to that default.
func acceptUpdates(dh dns.Header) dns.MsgAcceptAction {
	const response = 1 << 15
	if opcode := int(dh.Bits>>11) & 0xF; opcode == dns.OpcodeUpdate && dh.Bits&response == 0 {
		return dns.MsgAccept
	}
	return dns.DefaultMsgAcceptFunc(dh)
}

func (d *DNS) serve(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg).SetReply(r)
	signed := r.IsTsig()
	trusted := signed != nil && w.TsigStatus() == nil
	switch {
	case signed != nil && !trusted:
		m.Rcode = dns.RcodeNotAuth
	case len(r.Question) != 1:
		m.Rcode = dns.RcodeFormatError
	case !d.handle(w, r, m, trusted):
		return
	}
	if trusted { // sign the answer with the key of the question
		m.SetTsig(signed.Hdr.Name, signed.Algorithm, 300, time.Now().Unix())
	}
	_ = w.WriteMsg(m) // the client may be gone
}

// handle fills m with the answer to r and tells whether it is to be sent.
func (d *DNS) handle(w dns.ResponseWriter, r, m *dns.Msg, trusted bool) bool {
	q := queryOf(w, r)
	rcode, broken := d.note(q)
	switch {
	case broken && rcode == Silence:
		return false
	case broken:
		m.Rcode = rcode
	case !trusted && (q.Update || q.Type == dns.TypeAXFR):
		m.Rcode = dns.RcodeRefused
	case q.Update:
		m.Rcode = d.update(r)
	case q.Type == dns.TypeAXFR:
		d.transfer(w, r)
		return false
	default:
		d.answer(m, q)
	}
	return true
}

func queryOf(w dns.ResponseWriter, r *dns.Msg) Query {
	local := w.LocalAddr()
	q := Query{Network: local.Network(), Name: dns.CanonicalName(r.Question[0].Name), Type: r.Question[0].Qtype}
	if host, _, err := net.SplitHostPort(local.String()); err == nil {
		q.Server = host
	}
	if r.Opcode == dns.OpcodeUpdate {
		q.Update, q.Type = true, 0
	}
	return q
}

// note writes q down and asks the fault, without holding the lock.
func (d *DNS) note(q Query) (rcode int, broken bool) {
	d.mu.Lock()
	if !q.Update {
		d.asked++
	}
	if len(d.queries) >= maxQueries {
		d.queries = slices.Delete(d.queries, 0, maxQueries/2)
	}
	d.queries = append(d.queries, q)
	fault := d.fault
	d.mu.Unlock()
	if fault == nil {
		return 0, false
	}
	return fault(q)
}

// listen takes one port for UDP and TCP on every address. If any port will do
// it tries a few: another process may hold the TCP port of a free UDP port.
func (d *DNS) listen(ips []string, port string) error {
	tries := 1
	if port == "0" {
		tries = 20
	}
	var last error
	for range tries {
		if last = d.bind(ips, port); last == nil {
			return nil
		}
		for _, srv := range d.servers {
			if srv.Listener != nil {
				_ = srv.Listener.Close()
			}
			if srv.PacketConn != nil {
				_ = srv.PacketConn.Close()
			}
		}
		d.servers = nil
	}
	return fmt.Errorf("acmelab: DNS: %w", last)
}

func (d *DNS) bind(ips []string, port string) error {
	ctx := context.Background()
	var lc net.ListenConfig
	for i, ip := range ips {
		pc, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(ip, port))
		if err != nil {
			return err
		}
		d.servers = append(d.servers, &dns.Server{PacketConn: pc})
		if i == 0 {
			d.Addr = pc.LocalAddr().String()
			if _, port, err = net.SplitHostPort(d.Addr); err != nil {
				return err
			}
			d.Port = port
		}
		ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(ip, port))
		if err != nil {
			return err
		}
		d.servers = append(d.servers, &dns.Server{Listener: ln})
	}
	return nil
}

// addZones makes the zones with what each has from the start.
func (d *DNS) addZones(o DNSOptions, ips []string) error {
	for _, zone := range o.Zones {
		z := dns.CanonicalName(zone)
		rr, err := parseRR(z + " 1 IN SOA ns1." + z + " hostmaster." + z + " 1 60 60 600 1")
		if err != nil {
			return err
		}
		soa, ok := rr.(*dns.SOA)
		if !ok {
			return fmt.Errorf("acmelab: zone %q has no SOA", zone)
		}
		d.zones[z] = soa
		servers := map[string][]string{}
		for i, ip := range ips {
			servers["ns"+strconv.Itoa(i+1)+"."+z] = []string{ip}
		}
		maps.Copy(servers, o.NS)
		for host, addrs := range servers {
			host = dns.CanonicalName(host)
			lines := []string{z + " 1 IN NS " + host}
			for _, addr := range addrs {
				kind := "A"
				if strings.Contains(addr, ":") {
					kind = "AAAA"
				}
				lines = append(lines, host+" 1 IN "+kind+" "+addr)
			}
			if err := d.Add(lines...); err != nil {
				return err
			}
		}
	}
	return nil
}
