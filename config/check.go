package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"edge/hostname"
)

// How many names one certificate may hold: CAs of the CA/Browser Forum in
// general, and Let's Encrypt's profiles tlsserver and shortlived
// (https://letsencrypt.org/docs/profiles/).
const (
	classicNames = 100
	shortNames   = 25
)

// check looks for what is wrong between the sections.
func (b *builder) check() {
	b.checkListeners()
	b.checkZones()
	b.defaultIssuers()
	b.issueLocally()
	b.checkCertificates()
	b.checkRoutes()
	b.checkCover()
	b.checkProofs()
	b.checkPorts()
}

// inFileOrder sorts names by where section.name stands.
func (b *builder) inFileOrder(section string, names []string) []string {
	slices.SortFunc(names, func(x, y string) int {
		a, c := b.at[section+"."+x], b.at[section+"."+y]
		return cmp.Or(cmp.Compare(a.Line, c.Line), cmp.Compare(a.Column, c.Column), cmp.Compare(x, y))
	})
	return names
}

// checkZones demands that the zone of a name says which provider of an issuer
// serves it.
func (b *builder) checkZones() {
	for name, issuer := range b.cfg.Issuers {
		taken := map[string]string{}
		for i, provider := range issuer.Providers {
			p := b.cfg.Providers[provider]
			if p == nil {
				continue
			}
			zones := p.Zones
			if len(zones) == 0 {
				zones = []string{""} // any
			}
			for _, zone := range zones {
				if other, ok := taken[zone]; ok && other != provider {
					b.refuse(fmt.Sprintf("issuers.%s.challenge.providers[%d]", name, i), ambiguousZone(zone, other, provider))
				}
				taken[zone] = provider
			}
		}
	}
}

// checkCertificates settles who issues each certificate, and refuses what the
// issuer would refuse.
func (b *builder) checkCertificates() {
	defaults := &b.cfg.Bundles
	if _, set := b.at["certificate_defaults.max_names"]; set {
		b.checkLimit("certificate_defaults.max_names", defaults.MaxNames, defaults.Issuers)
	}
	owner := map[string]string{}
	for _, name := range b.inFileOrder("certificates", slices.Collect(maps.Keys(b.cfg.Certificates))) {
		c := b.cfg.Certificates[name]
		path := "certificates." + name
		if c.File != nil {
			continue
		}
		if len(c.Issuers) == 0 {
			c.Issuers = defaults.Issuers
			if c.allLocal() {
				c.Issuers = b.cfg.IssuersFor(c.Names[0])
			}
		}
		if len(c.Issuers) == 0 && len(c.Names) > 0 {
			b.refuse(path, b.whoIssues(c.Names[0]))
		}
		b.checkLimit(path+".names", len(c.Names), c.Issuers)
		if len(c.Names) <= classicNames { // more are refused
			b.checkNames(c, path, owner)
		}
	}
}

// whoIssues says why it is unknown who issues a certificate for host.
func (b *builder) whoIssues(host string) *refusal {
	if len(b.acmeIssuers()) == 0 {
		return noIssuer(host)
	}
	return chooseIssuer(slices.Sorted(maps.Keys(b.cfg.Issuers)))
}

func (b *builder) checkLimit(path string, names int, issuers []string) {
	for _, name := range issuers {
		issuer := b.cfg.Issuers[name]
		if issuer == nil {
			continue
		}
		if limit := issuer.maxNames(); names > limit {
			b.refuse(path, bundleTooLarge(names, limit, name))
			return
		}
	}
}

// maxNames is how many names the issuer signs in one certificate.
func (i *Issuer) maxNames() int {
	switch i.Profile {
	case "tlsserver", "shortlived":
		return shortNames
	case "": // at Let's Encrypt, edge then asks for tlsserver
		if i.Directory == letsEncrypt || i.Directory == letsEncryptStaging {
			return shortNames
		}
	}
	return classicNames
}

// checkNames demands that a name is in one certificate only, and in that once.
func (b *builder) checkNames(c *Certificate, path string, owner map[string]string) {
	for i, name := range c.Names {
		at := fmt.Sprintf("%s.names[%d]", path, i)
		other, taken := owner[name]
		switch wildcard := hostname.Wildcard(name); {
		case name == "": // refused
		case taken && other != c.Name:
			b.refuse(at, nameInTwoCertificates(name, other))
		case wildcard != name && slices.Contains(c.Names, wildcard):
			b.refuse(at, coveredByWildcard(name, wildcard))
		case IsLocal(name):
			for _, issuer := range c.Issuers {
				if b.cfg.Issuers[issuer].Public() {
					b.refuse(at, localName(name, issuer))
					break
				}
			}
		}
		owner[name] = c.Name
	}
}

// checkCover demands a source of certificates for every route host. A file may
// hold any name; what it really holds is seen when it is loaded.
func (b *builder) checkCover() {
	if b.filesMayCover() && len(b.acmeIssuers()) == 0 {
		return
	}
	for _, h := range b.uncertified() {
		if len(b.cfg.IssuersFor(h.name)) == 0 {
			b.refuse(h.path, b.whoIssues(h.name))
			return // one remedy serves all
		}
	}
}

// filesMayCover reports whether there are certificates whose names are in files.
func (b *builder) filesMayCover() bool {
	for _, c := range b.cfg.Certificates {
		if c.File != nil {
			return true
		}
	}
	return false
}

// routeHost is a host of a route and its place.
type routeHost struct{ name, path string }

// uncertified are the hosts of routes that no written certificate names, in
// file order.
func (b *builder) uncertified() []routeHost {
	names := map[string]bool{}
	for _, c := range b.cfg.Certificates {
		for _, name := range c.Names {
			names[name] = true
		}
	}
	var open []routeHost
	for i, r := range b.cfg.Routes {
		for j, host := range r.Hosts {
			if host != "" && !names[host] && !names[hostname.Wildcard(host)] {
				open = append(open, routeHost{host, b.hostPath(i, j)})
			}
		}
	}
	return open
}

// Hosts returns the hosts of all routes, sorted, each once.
func (c *Config) Hosts() []string {
	var hosts []string
	for _, r := range c.Routes {
		hosts = append(hosts, r.Hosts...)
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}
