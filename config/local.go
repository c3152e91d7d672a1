package config

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"edge/hostname"
)

// IsLocal reports whether no public CA may issue for name, which is canonical:
// a single label, one below the special-use domains of RFC 6761, RFC 6762, RFC
// 8375 and ICANN's .internal, one below the top-level domains that networks
// took for themselves, or an IP address that is not routed on the Internet
// (IANA's special-purpose registries).
func IsLocal(name string) bool {
	if hostname.IsIP(name) {
		addr, err := netip.ParseAddr(name)
		return err == nil && unrouted(addr)
	}
	labels := strings.Split(name, ".")
	switch labels[len(labels)-1] {
	case "localhost", "test", "local", "internal", "invalid", "example", "onion", "lan", "corp", "home":
		return true
	}
	return len(labels) == 1 || name == "home.arpa" || strings.HasSuffix(name, ".home.arpa")
}

func unrouted(addr netip.Addr) bool {
	if addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() {
		return true
	}
	return slices.ContainsFunc([]string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"100::/64", "2001:2::/48", "2001:db8::/32", "3fff::/20",
	}, func(block string) bool { return netip.MustParsePrefix(block).Contains(addr) })
}

// IssuersFor returns who issues a certificate for a name when none is written
// for it, the first one first: the issuers of certificate_defaults, but for a
// local name those of them that may, or else a CA of edge's own. It is empty
// when nobody does.
func (c *Config) IssuersFor(name string) []string {
	if !IsLocal(name) {
		return c.Bundles.Issuers
	}
	own := slices.DeleteFunc(slices.Clone(c.Bundles.Issuers), func(issuer string) bool { return c.Issuers[issuer].Public() })
	if len(own) > 0 {
		return own
	}
	if ca := c.ownCA(); ca != nil {
		return []string{ca.Name}
	}
	return nil
}

// ownCA is the issuer of local names: the first internal one in the file, or
// the one that nobody wrote. Nil when there is none.
func (c *Config) ownCA() *Issuer {
	var first *Issuer
	for _, i := range c.Issuers {
		if i.Internal != nil && (first == nil || i.Pos.before(first.Pos)) {
			first = i
		}
	}
	return first
}

func (p Pos) before(q Pos) bool {
	return p.Line < q.Line || p.Line == q.Line && p.Column < q.Column
}

// issueLocally adds the CA of edge's own that nobody wrote when there are local
// names that no other issuer takes.
func (b *builder) issueLocally() {
	orphan := func(name string) bool { return IsLocal(name) && len(b.cfg.IssuersFor(name)) == 0 }
	certified := map[string]bool{}
	needed := false
	for _, c := range b.cfg.Certificates {
		for _, name := range c.Names {
			certified[name] = true
		}
		needed = needed || c.allLocal() && len(c.Issuers) == 0 && orphan(c.Names[0])
	}
	for _, r := range b.cfg.Routes {
		needed = needed || slices.ContainsFunc(r.Hosts, func(host string) bool {
			return orphan(host) && !certified[host] && !certified[hostname.Wildcard(host)]
		})
	}
	if _, taken := b.cfg.Issuers[InternalIssuer]; needed && !taken {
		b.cfg.Issuers[InternalIssuer] = &Issuer{Name: InternalIssuer, Internal: &Internal{Lifetime: defaultLifetime}, Pos: Pos{1, 1}}
	}
}

// allLocal reports whether the certificate has names, and only local ones.
func (c *Certificate) allLocal() bool {
	return len(c.Names) > 0 && !slices.ContainsFunc(c.Names, func(name string) bool { return !IsLocal(name) })
}

// defaultIssuers settles who issues what no certificate names an issuer for:
// the only ACME issuer, or the only issuer there is.
func (b *builder) defaultIssuers() {
	if len(b.cfg.Bundles.Issuers) > 0 {
		return
	}
	choice := b.acmeIssuers()
	if len(choice) == 0 {
		choice = slices.Sorted(maps.Keys(b.cfg.Issuers))
	}
	if len(choice) == 1 {
		b.cfg.Bundles.Issuers = choice
	}
}

// acmeIssuers are the names of the issuers that speak ACME, sorted.
func (b *builder) acmeIssuers() []string {
	names := slices.Sorted(maps.Keys(b.cfg.Issuers))
	return slices.DeleteFunc(names, func(name string) bool { return b.cfg.Issuers[name].Internal != nil })
}
