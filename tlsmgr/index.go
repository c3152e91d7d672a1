package tlsmgr

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edge/hostname"
	"edge/tlsmgr/vault"
)

// A certificate is one certificate with its key in memory. It is immutable.
type certificate struct {
	id     string // Bundle.ID or the name of a file certificate
	file   bool
	tls    *tls.Certificate   // Leaf is set
	names  []string           // canonical, sorted
	object *vault.Certificate // what the storage has; nil for a file certificate
	digest [32]byte           // of the files; zero for a stored one
}

// newCertificate takes a parsed pair. Names are the leaf's DNS names and addresses.
func newCertificate(id string, pair tls.Certificate) (*certificate, error) {
	if pair.Leaf == nil {
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			return nil, err
		}
		pair.Leaf = leaf
	}
	c := &certificate{id: id, tls: &pair}
	for _, n := range pair.Leaf.DNSNames {
		if name, err := hostname.Parse(n); err == nil {
			c.names = append(c.names, name)
		}
	}
	for _, ip := range pair.Leaf.IPAddresses {
		if addr, ok := netip.AddrFromSlice(ip); ok {
			c.names = append(c.names, addr.Unmap().String())
		}
	}
	slices.Sort(c.names)
	c.names = slices.Compact(c.names)
	if len(c.names) == 0 {
		return nil, errors.New("certificate has neither DNS names nor addresses")
	}
	return c, nil
}

func (c *certificate) leaf() *x509.Certificate { return c.tls.Leaf }

func (c *certificate) serial() string { return hex.EncodeToString(c.leaf().SerialNumber.Bytes()) }

// expired reports whether clients refuse the certificate at now. One that is
// not valid yet counts as valid: clocks of replicas and clients differ.
func (c *certificate) expired(now time.Time) bool { return !now.Before(c.leaf().NotAfter) }

func (c *certificate) covers(name string) bool {
	return slices.ContainsFunc(c.names, func(n string) bool { return hostname.Covers(n, name) })
}

// An index answers which certificate serves a name. It is immutable, so a
// handshake needs no lock; every change builds a new one.
type index struct {
	exact map[string]*entry // by name
	below map[string]*entry // certificates for *.parent, by parent
	byID  map[string]*entry // certificates of the plan and files, with their siblings of other key types
	next  time.Time         // when the first certificate in it expires, and it is to be rebuilt; zero is never
}

// An entry is what serves one name: the best certificate, and the best ones
// with other kinds of keys for clients that cannot use it.
type entry struct {
	best   *certificate
	others []*certificate
}

// covers reports whether every certificate that the entry may serve has name.
func (e *entry) covers(name string) bool {
	return e.best.covers(name) && !slices.ContainsFunc(e.others, func(c *certificate) bool { return !c.covers(name) })
}

// find returns what serves name, nil when nothing does. The server name of a
// handshake is looked up without an allocation.
func (x *index) find(name string) *entry {
	if e := x.exact[name]; e != nil {
		return e
	}
	return x.below[hostname.Parent(name)]
}

// certificateFor answers a handshake: nil, nil makes crypto/tls send the alert
// unrecognized_name (RFC 6066 section 3), where an error would be
// internal_error. Clients without a server name get that of the address that
// they reached, else the certificate fallback.
func (x *index) certificateFor(hello *tls.ClientHelloInfo, fallback string) (*tls.Certificate, error) {
	var e *entry
	if hello.ServerName == "" {
		e = x.unnamed(hello, fallback)
	} else {
		name, _ := hostname.FromHost(hello.ServerName)
		e = x.find(name)
	}
	if e == nil {
		return nil, nil //nolint:nilnil // crypto/tls wants exactly this to send unrecognized_name
	}
	return e.choose(hello), nil
}

// choose returns the best certificate that the client can use.
func (e *entry) choose(hello *tls.ClientHelloInfo) *tls.Certificate {
	if len(e.others) == 0 || hello.SupportsCertificate(e.best.tls) == nil {
		return e.best.tls
	}
	for _, c := range e.others {
		if hello.SupportsCertificate(c.tls) == nil {
			return c.tls
		}
	}
	return e.best.tls
}

// unnamed returns what serves a client that sends no server name, as clients of
// an address do (RFC 6066 section 3): the certificate for the address that it
// reached, else the one called fallback, else nil.
func (x *index) unnamed(hello *tls.ClientHelloInfo, fallback string) *entry {
	if e := x.find(localName(hello)); e != nil {
		return e
	}
	return x.byID[fallback]
}

// A candidate is a certificate that may serve.
type candidate struct {
	*certificate
	current bool // a file or a bundle of the plan; else left over from an older plan
}

// rank orders certificates for one name: what clients accept before what has
// expired, what the plan wants before leftovers.
func (c candidate) rank(now time.Time) int {
	rank := 0
	if !c.expired(now) {
		rank += 2
	}
	if c.current {
		rank++
	}
	return rank
}

// cost orders certificates by what a signature with their keys costs: of RSA
// thirty times that of ECDSA in Go, so RSA is for clients that know nothing else.
func (c *certificate) cost() int {
	if c.leaf().PublicKeyAlgorithm == x509.RSA {
		return 1
	}
	return 0
}

// buildIndex makes an index of the certificates that have a wanted name. For
// each name the best one wins: valid, then planned, then not RSA, then the
// latest NotAfter, then the smaller id. Leftovers serve until something better
// covers the name.
func buildIndex(all []candidate, wanted []string, now time.Time) *index {
	x := &index{exact: map[string]*entry{}, below: map[string]*entry{}, byID: map[string]*entry{}}
	want := newNameSet(wanted)
	byName := map[string][]candidate{}
	var current []candidate
	for _, c := range all {
		used := false
		for _, name := range c.names {
			if want.touches(name) {
				byName[name] = append(byName[name], c)
				used = true
			}
		}
		if !used {
			continue
		}
		if c.current {
			current = append(current, c)
		}
		if na := c.leaf().NotAfter; !c.expired(now) && (x.next.IsZero() || na.Before(x.next)) {
			x.next = na
		}
	}
	x.name(current, now)
	for name, cs := range byName {
		sortCandidates(cs, now)
		byName[name] = cs
	}
	for name, cs := range byName {
		if parent, ok := strings.CutPrefix(name, "*."); ok {
			x.below[parent] = newEntry(cs)
			continue
		}
		if w := byName[hostname.Wildcard(name)]; len(w) > 0 && w[0].rank(now) > cs[0].rank(now) {
			continue // a leftover must not hide the wildcard that replaced it
		}
		x.exact[name] = newEntry(cs)
	}
	return x
}

// name files the certificates of the plan under their ids; those that differ
// from one only by the type of the key belong to it.
func (x *index) name(current []candidate, now time.Time) {
	families := map[string][]candidate{}
	for _, c := range current {
		families[c.id] = []candidate{c}
	}
	for _, c := range current {
		if c.object == nil {
			continue
		}
		if base, ok := strings.CutSuffix(c.id, "."+string(c.object.KeyType)); ok && families[base] != nil {
			families[base] = append(families[base], c)
		}
	}
	for id, cs := range families {
		sortCandidates(cs, now)
		x.byID[id] = newEntry(cs)
	}
}

func sortCandidates(cs []candidate, now time.Time) {
	slices.SortFunc(cs, func(a, b candidate) int {
		if c := b.rank(now) - a.rank(now); c != 0 {
			return c
		}
		if c := a.cost() - b.cost(); c != 0 {
			return c
		}
		if c := b.leaf().NotAfter.Compare(a.leaf().NotAfter); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
}

// newEntry keeps the best certificate of each kind of key; cs is sorted.
func newEntry(cs []candidate) *entry {
	e := &entry{best: cs[0].certificate}
	seen := map[x509.PublicKeyAlgorithm]bool{cs[0].leaf().PublicKeyAlgorithm: true}
	for _, c := range cs[1:] {
		if alg := c.leaf().PublicKeyAlgorithm; !seen[alg] {
			seen[alg] = true
			e.others = append(e.others, c.certificate)
		}
	}
	return e
}

// A nameSet holds names that somebody asks for.
type nameSet struct {
	exact   map[string]bool
	parents map[string]bool // of exact names and of wildcards
	wild    map[string]bool // parents of wildcards
}

func newNameSet(names []string) *nameSet {
	s := &nameSet{exact: map[string]bool{}, parents: map[string]bool{}, wild: map[string]bool{}}
	for _, n := range names {
		s.exact[n] = true
		s.parents[hostname.Parent(n)] = true
		if hostname.IsWildcard(n) {
			s.wild[hostname.Parent(n)] = true
		}
	}
	return s
}

// touches reports whether a certificate name serves a wanted name, or a part of
// a wanted wildcard.
func (s *nameSet) touches(name string) bool {
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		return s.parents[parent]
	}
	return s.exact[name] || s.wild[hostname.Parent(name)]
}
