package config

import (
	"fmt"
	"maps"
	"net"
	"slices"

	"edge/hostname"
)

// checkProofs looks for names that an issuer's challenge can never prove.
func (b *builder) checkProofs() {
	for _, name := range b.inFileOrder("certificates", slices.Collect(maps.Keys(b.cfg.Certificates))) {
		c := b.cfg.Certificates[name]
		for i, n := range c.Names {
			if r := b.cannotProve(n, c.Issuers); r != nil {
				b.refuse(fmt.Sprintf("certificates.%s.names[%d]", name, i), r)
			}
		}
	}
	told := map[string]bool{}
	for _, h := range b.uncertified() {
		r := b.cannotProve(h.name, b.cfg.IssuersFor(h.name))
		switch {
		case r == nil, told[h.name]:
			continue
		case b.filesMayCover():
			b.warn(h.path, r)
		default:
			b.refuse(h.path, r)
		}
		told[h.name] = true
	}
}

// cannotProve says which of the issuers has a challenge that is not for names
// like this one: a wildcard is proven by DNS only (RFC 8555 section 7.1.3 and
// the Baseline Requirements), an IP address never (RFC 8738 section 7).
func (b *builder) cannotProve(name string, issuers []string) *refusal {
	for _, issuer := range issuers {
		i := b.cfg.Issuers[issuer]
		switch {
		case name == "", i == nil, i.Public() && IsLocal(name): // refused elsewhere
		case hostname.IsIP(name) && (i.Challenge == DNS01 || i.Challenge == DNSPersist01):
			return addressByDNS(name, issuer, string(i.Challenge))
		case hostname.IsWildcard(name) && (i.Challenge == HTTP01 || i.Challenge == TLSALPN01):
			return wildcardByHost(name, issuer, string(i.Challenge))
		}
	}
	return nil
}

// checkPorts warns when nothing answers a challenge on the port that CAs use
// (RFC 8555 section 8.3, RFC 8737 section 3). Something in front of edge may
// map it.
func (b *builder) checkPorts() {
	plain, encrypted := false, false
	for _, l := range b.cfg.Listeners {
		_, port, _ := net.SplitHostPort(l.Address)
		plain = plain || l.Redirect && port == "80"
		encrypted = encrypted || !l.Redirect && port == "443"
	}
	for name, i := range b.cfg.Issuers {
		path := "issuers." + name + ".challenge.type"
		if _, long := b.at[path]; !long {
			path = "acme.challenge"
		}
		switch {
		case i.Challenge == HTTP01 && !plain:
			b.warn(path, needsPort(string(HTTP01), 80, `http: {address: ":80", redirect: https}`))
		case i.Challenge == TLSALPN01 && !encrypted:
			b.warn(path, needsPort(string(TLSALPN01), 443, `https: {address: ":443"}`))
		}
	}
}
