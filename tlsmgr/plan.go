package tlsmgr

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"edge/config"
	"edge/hostname"
)

// Bundle is one certificate that edge obtains itself.
type Bundle struct {
	ID       string         `json:"id"`       // stable and readable; the object's name in the storage
	Names    []string       `json:"names"`    // canonical, sorted, never empty, no name that another one covers
	Inferred bool           `json:"inferred"` // from route hosts, not written under certificates
	Issuer   string         `json:"issuer"`   // key in Config.Issuers
	KeyType  config.KeyType `json:"key_type"`
	MaxNames int            `json:"max_names"` // how many names fit; what Plan packed by
}

// equal reports whether a and b want the same certificate.
func (b *Bundle) equal(a *Bundle) bool {
	return a != nil && a.ID == b.ID && a.Issuer == b.Issuer && a.KeyType == b.KeyType && slices.Equal(a.Names, b.Names)
}

// Cover says which certificate a host is served with.
type Cover struct {
	Host        string   `json:"host"`        // as written in a route; "" is a route for any host
	Routes      []string `json:"routes"`      // names of the routes, in file order
	Certificate string   `json:"certificate"` // Bundle.ID or the name of a file certificate; "" when none covers it
	Name        string   `json:"name"`        // the name in that certificate: Host itself or the wildcard
	File        bool     `json:"file"`        // Certificate is a file certificate
}

// Planned is a plan with its explanation.
type Planned struct {
	Bundles  []Bundle         `json:"bundles"`  // sorted by ID
	Covers   []Cover          `json:"covers"`   // sorted by Host
	Problems []config.Problem `json:"problems"` // hosts that will have no certificate, bundles that the CA will refuse
}

// Plan says which certificates edge obtains for cfg. It is offline and
// deterministic: replicas with one configuration plan alike. Names come from
// the hosts of routes and from certificates:
//
//   - A wildcard is used where it is written, in a route or a certificate, and
//     never invented. It covers one label and never the apex.
//   - What a written wildcard, a written certificate or a file covers gets no
//     certificate of its own.
//   - The apex and the wildcard of a domain share a certificate, since they
//     share the challenge record's name. Everything else is packed by
//     registrable domain up to Bundles.MaxNames, or gets one each (per_name).
//
// The names inside file certificates are unknown offline; see Explain.
func Plan(cfg *config.Config) ([]Bundle, []config.Problem) {
	p := Explain(cfg, nil)
	return p.Bundles, p.Problems
}

// Explain is Plan with reasons. Files are the names in each file certificate by
// its name in cfg.Certificates (FileNames reads them); nil plans as if file
// certificates covered nothing.
func Explain(cfg *config.Config, files map[string][]string) *Planned {
	p := &planner{cfg: cfg, files: files, by: map[string]source{}, ids: map[string]bool{}}
	p.written()
	hosts := p.hosts()
	p.infer(hosts)
	for _, h := range hosts {
		p.out.Covers = append(p.out.Covers, p.cover(h))
	}
	slices.SortFunc(p.out.Bundles, func(a, b Bundle) int { return strings.Compare(a.ID, b.ID) })
	return &p.out
}

// A source is the certificate that has a name.
type source struct {
	id   string
	file bool
}

type planner struct {
	cfg   *config.Config
	files map[string][]string
	by    map[string]source // name in a certificate -> the certificate
	ids   map[string]bool
	out   Planned
}

// a host is one host of routes on TLS listeners.
type host struct {
	name   string
	routes []*config.Route
}

// written takes over the certificates of the configuration: files first, since
// they cost nothing, then the ones to obtain.
func (p *planner) written() {
	names := slices.Sorted(maps.Keys(p.cfg.Certificates))
	for _, id := range names {
		p.ids[id] = true
		for _, n := range p.files[id] {
			p.claim(n, source{id: id, file: true})
		}
	}
	for _, id := range names {
		c := p.cfg.Certificates[id]
		if c.File != nil || len(c.Names) == 0 {
			continue
		}
		b := Bundle{ID: id, Names: reduce(c.Names), KeyType: c.KeyTypes[0]}
		issuers := c.Issuers
		if len(issuers) == 0 {
			issuers = p.cfg.Bundles.Issuers
		}
		if len(issuers) == 0 {
			p.problem(c.Pos, "certificates."+id, "no issuer", "set certificates."+id+".issuers or acme")
			continue
		}
		b.Issuer = issuers[0]
		b.MaxNames = profileLimit(p.cfg.Issuers[b.Issuer])
		if b.MaxNames > 0 && len(b.Names) > b.MaxNames {
			p.problem(c.Pos, "certificates."+id+".names",
				fmt.Sprintf("%d names; issuer %q allows %d in one certificate", len(b.Names), b.Issuer, b.MaxNames), "split it in two, or use a wildcard")
		}
		public := isPublicCA(p.cfg.Issuers[b.Issuer])
		for _, n := range b.Names {
			p.claim(n, source{id: id})
			if public && isLocal(n) {
				p.problem(c.Pos, "certificates."+id+".names", "no public CA issues a certificate for "+n, localHint)
			}
		}
		p.out.Bundles = append(p.out.Bundles, b)
	}
}

// claim notes who has a name; the first one keeps it.
func (p *planner) claim(name string, s source) {
	if _, taken := p.by[name]; !taken {
		p.by[name] = s
	}
}

// hosts are the named hosts of routes on TLS listeners, sorted.
func (p *planner) hosts() []host {
	byName := map[string]*host{}
	for _, r := range p.cfg.Routes {
		if !p.onTLS(r) {
			continue
		}
		for _, name := range r.Hosts {
			if byName[name] == nil {
				byName[name] = &host{name: name}
			}
			byName[name].routes = append(byName[name].routes, r)
		}
	}
	out := make([]host, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, *byName[name])
	}
	return out
}

func (p *planner) onTLS(r *config.Route) bool {
	return slices.ContainsFunc(r.Listeners, func(name string) bool {
		l := p.cfg.Listeners[name]
		return l != nil && !l.Redirect
	})
}

// infer packs the hosts that no written certificate and no wildcard of another
// route covers.
func (p *planner) infer(hosts []host) {
	issuer := ""
	if len(p.cfg.Bundles.Issuers) > 0 {
		issuer = p.cfg.Bundles.Issuers[0]
	}
	limit := p.cfg.Bundles.MaxNames
	if limit <= 0 {
		limit = defaultMaxNames
	}
	if most := profileLimit(p.cfg.Issuers[issuer]); most > 0 {
		limit = min(limit, most)
	}
	perName := p.cfg.Bundles.Packing == config.PerName
	zones := p.open(hosts, issuer)
	for _, zone := range slices.Sorted(maps.Keys(zones)) {
		for i, names := range pack(zones[zone], limit, perName) {
			id := zone
			if perName {
				id, i = strings.Replace(names[0], "*", "_", 1), 0
			}
			id = p.id(id, i)
			for _, n := range names {
				p.claim(n, source{id: id})
			}
			slices.Sort(names)
			p.out.Bundles = append(p.out.Bundles, Bundle{
				ID: id, Names: names, Inferred: true,
				Issuer: issuer, KeyType: p.cfg.Bundles.KeyTypes[0], MaxNames: limit,
			})
		}
	}
}

// open are the hosts that need a certificate of their own, by zone.
func (p *planner) open(hosts []host, issuer string) map[string][]string {
	wildcards := map[string]bool{}
	for _, h := range hosts {
		wildcards[h.name] = hostname.IsWildcard(h.name)
	}
	public := isPublicCA(p.cfg.Issuers[issuer])
	zones := map[string][]string{}
	for _, h := range hosts {
		r := h.routes[0]
		switch {
		case p.covered(h.name), !hostname.IsWildcard(h.name) && wildcards[hostname.Wildcard(h.name)]:
		case issuer == "":
			p.problem(r.Pos, r.Name, "no certificate covers "+h.name, "add an acme section, or a file certificate for it")
		case public && isLocal(h.name):
			p.problem(r.Pos, r.Name, "no public CA issues a certificate for "+h.name, localHint)
		default:
			zone := hostname.Zone(h.name)
			zones[zone] = append(zones[zone], h.name)
		}
	}
	return zones
}

// covered reports whether a certificate noted so far has name or its wildcard.
func (p *planner) covered(name string) bool {
	_, ok := p.find(name)
	return ok
}

func (p *planner) find(name string) (match string, ok bool) {
	if _, ok := p.by[name]; ok {
		return name, true
	}
	w := hostname.Wildcard(name)
	_, ok = p.by[w]
	return w, ok && !hostname.IsWildcard(name)
}

func (p *planner) cover(h host) Cover {
	c := Cover{Host: h.name}
	for _, r := range h.routes {
		if !slices.Contains(c.Routes, r.Name) {
			c.Routes = append(c.Routes, r.Name)
		}
	}
	if name, ok := p.find(h.name); ok {
		s := p.by[name]
		c.Name, c.Certificate, c.File = name, s.id, s.file
	}
	return c
}

// id is base, or base-2, base-3 … for what comes later or is taken already.
func (p *planner) id(base string, i int) string {
	for n := i + 1; ; n++ {
		id := base
		if n > 1 {
			id = base + "-" + strconv.Itoa(n)
		}
		if !p.ids[id] {
			p.ids[id] = true
			return id
		}
	}
}

func (p *planner) problem(pos config.Pos, path, message, hint string) {
	p.out.Problems = append(p.out.Problems, config.Problem{File: p.cfg.Path, Pos: pos, Path: path, Message: message, Hint: hint})
}

// pack cuts the names of one zone into certificates of at most limit names. The
// wildcard of a domain directly follows its apex and goes where the apex goes.
func pack(names []string, limit int, perName bool) [][]string {
	apex := func(n string) string { return strings.TrimPrefix(n, "*.") }
	names = slices.Clone(names)
	slices.SortFunc(names, func(a, b string) int {
		if c := strings.Compare(apex(a), apex(b)); c != 0 {
			return c
		}
		return strings.Compare(b, a) // the apex before its wildcard: '*' sorts first
	})
	var out [][]string
	for i := 0; i < len(names); {
		unit := names[i : i+1]
		if i+1 < len(names) && apex(names[i]) == apex(names[i+1]) && limit > 1 {
			unit = names[i : i+2]
		}
		last := len(out) - 1
		if last < 0 || perName || len(out[last])+len(unit) > limit {
			out = append(out, nil)
			last++
		}
		out[last] = append(out[last], unit...)
		i += len(unit)
	}
	return out
}

// reduce sorts names and drops the ones that a wildcard among them covers: CAs
// refuse an order that names both (RFC 8555 leaves it to them; Boulder does).
func reduce(names []string) []string {
	out := slices.Clone(names)
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(n string) bool {
		return !hostname.IsWildcard(n) && slices.Contains(names, hostname.Wildcard(n))
	})
}

const (
	defaultMaxNames = 25
	localHint       = "use a file certificate, or an issuer of your own"
)

// profileLimit is how many names issuer i puts in one certificate, 0 when
// unknown. Let's Encrypt: 25, and 100 with its classic profile
// (https://letsencrypt.org/docs/profiles/); edge asks for tlsserver when the
// configuration names no profile.
func profileLimit(i *config.Issuer) int {
	switch {
	case i == nil || !hasHost(i.Directory, "letsencrypt.org"):
		return 0
	case i.Profile == "classic":
		return 100
	default:
		return 25
	}
}

// isPublicCA reports whether issuer i is bound by the CA/Browser Forum's rules,
// which forbid names that exist only inside a network.
func isPublicCA(i *config.Issuer) bool {
	if i == nil {
		return false
	}
	return slices.ContainsFunc([]string{"letsencrypt.org", "pki.goog", "zerossl.com", "buypass.com", "ssl.com", "sectigo.com", "digicert.com"},
		func(d string) bool { return hasHost(i.Directory, d) })
}

// hasHost reports whether the host of rawURL is domain or lies below it.
func hasHost(rawURL, domain string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && (u.Hostname() == domain || strings.HasSuffix(u.Hostname(), "."+domain))
}

// isLocal reports whether no public CA may issue for name: single labels and
// the special-use domains of RFC 6761, RFC 6762 and ICANN's .internal.
func isLocal(name string) bool {
	labels := strings.Split(name, ".")
	last := labels[len(labels)-1]
	return len(labels) == 1 || slices.Contains([]string{"localhost", "test", "local", "internal", "invalid", "example", "onion", "lan", "corp", "home"}, last) ||
		strings.HasSuffix(name, ".home.arpa")
}
