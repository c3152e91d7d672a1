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
	b.checkCertificates()
	b.checkRoutes()
	b.checkCover()
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
	if len(defaults.Issuers) == 0 && len(b.cfg.Issuers) == 1 {
		defaults.Issuers = slices.Collect(maps.Keys(b.cfg.Issuers))
	}
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
	if len(b.cfg.Issuers) == 0 {
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
		}
		owner[name] = c.Name
	}
}

// checkCover demands a source of certificates for every route host. A file may
// hold any name; what it really holds is seen when it is loaded.
func (b *builder) checkCover() {
	if len(b.cfg.Bundles.Issuers) > 0 {
		return
	}
	names := map[string]bool{}
	for _, c := range b.cfg.Certificates {
		if c.File != nil && len(b.cfg.Issuers) == 0 {
			return
		}
		for _, name := range c.Names {
			names[name] = true
		}
	}
	for i, r := range b.cfg.Routes {
		for j, host := range r.Hosts {
			if host != "" && !names[host] && !names[hostname.Wildcard(host)] {
				b.refuse(b.hostPath(i, j), b.whoIssues(host))
				return // one remedy serves all
			}
		}
	}
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
