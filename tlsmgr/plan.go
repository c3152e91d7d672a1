package tlsmgr

import (
	"cmp"
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
	ID        string         `json:"id"`                  // stable and readable; the object's name in the storage
	Names     []string       `json:"names"`               // canonical, sorted, never empty, no name that another one covers
	Inferred  bool           `json:"inferred"`            // from route hosts, not written under certificates
	Issuer    string         `json:"issuer"`              // key in Config.Issuers, or config.InternalIssuer
	Fallbacks []string       `json:"fallbacks,omitempty"` // the issuers after it, for when it fails for long
	KeyType   config.KeyType `json:"key_type"`
	MaxNames  int            `json:"max_names"` // how many names fit; what Plan packed by
}

// equal reports whether a and b want the same certificate.
func (b *Bundle) equal(a *Bundle) bool {
	return a != nil && a.ID == b.ID && a.Issuer == b.Issuer && a.KeyType == b.KeyType &&
		slices.Equal(a.Names, b.Names) && slices.Equal(a.Fallbacks, b.Fallbacks)
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

// Known is what a plan takes into account besides the configuration. The zero
// value plans for an empty storage and as if file certificates covered nothing.
type Known struct {
	// Files are the names in each file certificate by its name in
	// Config.Certificates. FileNames reads them.
	Files map[string][]string

	// Stored are the names of each certificate in the storage by id, with those
	// that it shall have but that are quarantined.
	Stored map[string][]string
}

// Plan says which certificates edge obtains for cfg when there is none yet. It
// is offline and deterministic: replicas with one configuration plan alike.
// Names come from the hosts of routes and from certificates:
//
//   - A wildcard is used where it is written, in a route or a certificate, and
//     never invented. It covers one label and never the apex.
//   - What a written wildcard, a written certificate or a file covers gets no
//     certificate of its own.
//   - The apex and the wildcard of a domain share a certificate, since they
//     share the challenge record's name. Everything else is packed by
//     registrable domain up to Bundles.MaxNames, or gets one each (per_name). An
//     IP address is a domain of its own.
//   - Names that exist only inside a network have issuers of their own; see
//     Config.IssuersFor.
//   - Several key types make a certificate of each: the first has the id, the
//     others the id with their type.
func Plan(cfg *config.Config) ([]Bundle, []config.Problem) {
	p := Explain(cfg, Known{})
	return p.Bundles, p.Problems
}

// Explain is Plan with reasons, for what is known. Replicas that know the same
// plan alike, and a name stays in the stored certificate that has it: one more
// name changes one certificate, one name less no other one.
func Explain(cfg *config.Config, known Known) *Planned {
	p := &planner{cfg: cfg, known: known, stored: byZone(known.Stored), by: map[string]source{}, ids: map[string]bool{}}
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
	cfg    *config.Config
	known  Known
	stored map[string][]place // of known, by zone
	by     map[string]source  // name in a certificate -> the certificate
	ids    map[string]bool
	out    Planned
}

// a host is one host of routes on TLS listeners.
type host struct {
	name   string
	routes []*config.Route
}

// a group is the names that may share a certificate: of one zone, and from the
// same issuers.
type group struct {
	zone  string
	local bool
}

// written takes over the certificates of the configuration: files first, since
// they cost nothing, then the ones to obtain.
func (p *planner) written() {
	names := slices.Sorted(maps.Keys(p.cfg.Certificates))
	for _, id := range names {
		p.ids[id] = true
		for _, n := range p.known.Files[id] {
			p.claim(n, source{id: id, file: true})
		}
	}
	for _, id := range names {
		if c := p.cfg.Certificates[id]; c.File == nil && len(c.Names) > 0 {
			p.obtain(id, c)
		}
	}
}

// obtain plans the certificate c of the configuration.
func (p *planner) obtain(id string, c *config.Certificate) {
	b := Bundle{ID: id, Names: reduce(c.Names)}
	issuers := c.Issuers
	if len(issuers) == 0 {
		issuers = p.cfg.Bundles.Issuers
	}
	if len(issuers) == 0 {
		p.problem(c.Pos, "certificates."+id, "no issuer", "set certificates."+id+".issuers or acme")
		return
	}
	var tight string
	b.Issuer, b.Fallbacks = issuers[0], issuers[1:]
	b.MaxNames, tight = p.limit(issuers)
	if len(b.Names) > b.MaxNames {
		p.problem(c.Pos, "certificates."+id+".names",
			fmt.Sprintf("%d names; issuer %q allows %d in one certificate", len(b.Names), tight, b.MaxNames), "split it in two, or use a wildcard")
	}
	public := p.cfg.Issuers[b.Issuer].Public()
	for _, n := range b.Names {
		if public && config.IsLocal(n) {
			p.problem(c.Pos, "certificates."+id+".names", "no public CA issues a certificate for "+n, localHint)
		}
	}
	p.add(b, c.KeyTypes)
}

// add plans b, once for each key type; none is P-256.
func (p *planner) add(b Bundle, types []config.KeyType) {
	if len(types) == 0 {
		types = []config.KeyType{config.P256}
	}
	for _, n := range b.Names {
		p.claim(n, source{id: b.ID})
	}
	id := b.ID
	for i, t := range types {
		b.KeyType = t
		if i > 0 {
			b.ID = p.id(id + "." + string(t))
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
	open := p.open(hosts)
	groups := slices.SortedFunc(maps.Keys(open), func(a, b group) int {
		return cmp.Or(strings.Compare(a.zone, b.zone), strings.Compare(strconv.FormatBool(a.local), strconv.FormatBool(b.local)))
	})
	packings := make([]*packing, 0, len(groups))
	for _, g := range groups { // all of them claim what they have before one takes an id that is free
		names := open[g]
		if p.cfg.Bundles.Packing == config.PerName {
			for _, u := range units(names, p.most(names)) {
				p.inferred(p.id(strings.Replace(u.names[0], "*", "_", 1)), slices.Sorted(slices.Values(u.names)))
			}
			continue
		}
		packings = append(packings, p.newPacking(g.zone, names, p.most(names)))
	}
	for _, k := range packings {
		for _, b := range k.fill(p) {
			p.inferred(b.id, b.names)
		}
	}
}

// inferred plans the certificate of names, which are all of one group.
func (p *planner) inferred(id string, names []string) {
	issuers := p.cfg.IssuersFor(names[0])
	p.add(Bundle{
		ID: id, Names: names, Inferred: true, MaxNames: p.most(names),
		Issuer: issuers[0], Fallbacks: issuers[1:],
	}, p.cfg.Bundles.KeyTypes)
}

// most is how many names an inferred certificate for some of names may hold.
func (p *planner) most(names []string) int {
	most, _ := p.limit(p.cfg.IssuersFor(names[0]))
	return min(most, cmp.Or(p.cfg.Bundles.MaxNames, defaultMaxNames))
}

// limit is how many names all of the issuers put in one certificate, so that a
// fallback can take over what was packed for the first, and which of them allows
// the fewest.
func (p *planner) limit(issuers []string) (most int, name string) {
	for _, n := range issuers {
		if l := profileLimit(p.cfg.Issuers[n]); most == 0 || l < most {
			most, name = l, n
		}
	}
	return most, name
}

// open are the hosts that need a certificate of their own.
func (p *planner) open(hosts []host) map[group][]string {
	wildcards := map[string]bool{}
	for _, h := range hosts {
		wildcards[h.name] = hostname.IsWildcard(h.name)
	}
	open := map[group][]string{}
	for _, h := range hosts {
		g := group{zone: hostname.Zone(h.name), local: config.IsLocal(h.name)}
		switch {
		case p.covered(h.name), !hostname.IsWildcard(h.name) && wildcards[hostname.Wildcard(h.name)]:
		case len(p.cfg.IssuersFor(h.name)) == 0:
			r := h.routes[0]
			p.problem(r.Pos, r.Name, "no certificate covers "+h.name, "add an acme section, or a file certificate for it")
		default:
			open[g] = append(open[g], h.name)
		}
	}
	return open
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

// id claims base, or the first of base-2, base-3 … that is free.
func (p *planner) id(base string) string {
	for n := 1; ; n++ {
		if id := numbered(base, n); !p.ids[id] {
			p.ids[id] = true
			return id
		}
	}
}

func (p *planner) problem(pos config.Pos, path, message, hint string) {
	p.out.Problems = append(p.out.Problems, config.Problem{File: p.cfg.Path, Pos: pos, Path: path, Message: message, Hint: hint})
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

// How many names fit into one certificate: with Let's Encrypt's profiles
// tlsserver and shortlived (https://letsencrypt.org/docs/profiles/), and
// elsewhere by custom; the internal issuer keeps to it too, since clients read
// the whole certificate in every handshake.
const (
	shortNames  = 25
	commonNames = 100
)

// profileLimit is how many names issuer i puts in one certificate, as far as the
// configuration tells. edge asks Let's Encrypt for tlsserver when it names no
// profile. The directory may say something else when an order is placed.
func profileLimit(i *config.Issuer) int {
	switch {
	case i == nil || i.Internal != nil:
		return commonNames
	case i.Profile == "tlsserver", i.Profile == "shortlived", i.Profile == "" && hasHost(i.Directory, "letsencrypt.org"):
		return shortNames
	default:
		return commonNames
	}
}

// hasHost reports whether the host of rawURL is domain or lies below it.
func hasHost(rawURL, domain string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && (u.Hostname() == domain || strings.HasSuffix(u.Hostname(), "."+domain))
}
