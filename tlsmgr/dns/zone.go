package dns

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// Bounds of discovery.
const (
	maxCNAMEs     = 8               // of one chain
	maxZones      = 1024            // in the cache
	zoneTTL       = 5 * time.Minute // of an entry
	maxServers    = 16              // name servers of a zone that are used
	maxAddresses  = 32              // of all of them
	soaWalkLabels = 32              // labels that are stripped before giving up
)

// place is where a challenge record belongs.
type place struct {
	target   string // the end of the CNAME chain
	zone     string
	provider *provider
}

// plan puts the records into groups. Nothing is written yet, so that one name
// without a provider does not leave the others half done; all such names, within
// reason, are reported at once.
func (s *Solver) plan(ctx context.Context, records []Record) ([]*group, error) {
	groups, lost, err := s.group(ctx, records)
	if err != nil {
		return nil, err
	}
	if len(lost) > 0 {
		names := sortedKeys(lost)
		errs := make([]error, len(names))
		for i, name := range names {
			errs[i] = lost[name]
		}
		err := blame(ctx, names, some(errs))
		if e, ok := errors.AsType[*RecordsError](err); ok {
			e.Untouched = true
		}
		return nil, err
	}
	return groups, nil
}

// group puts those records into groups whose places are found, and says of the
// other names why not.
func (s *Solver) group(ctx context.Context, records []Record) (groups []*group, lost map[string]error, err error) {
	if len(records) > maxRecords {
		return nil, nil, fmt.Errorf("%d challenge records at once (at most %d are allowed)", len(records), maxRecords)
	}
	values := map[string][]string{}
	for _, r := range records {
		if err := r.check(); err != nil {
			return nil, nil, err
		}
		name := miekg.CanonicalName(r.Name)
		values[name] = append(values[name], r.Value)
	}
	names := sortedKeys(values)
	places := make([]place, len(names))
	errs := make([]error, len(names))
	var eg errgroup.Group
	eg.SetLimit(maxParallel)
	for i, name := range names {
		eg.Go(func() error {
			places[i], errs[i] = s.locate(ctx, name)
			return nil
		})
	}
	_ = eg.Wait() // each name has its own error
	lost = map[string]error{}
	for i, name := range names {
		at := places[i]
		if errs[i] != nil {
			lost[name] = errs[i]
			continue
		}
		n := slices.IndexFunc(groups, func(g *group) bool { return g.provider == at.provider && g.zone == at.zone })
		if n < 0 {
			n = len(groups)
			groups = append(groups, &group{provider: at.provider, zone: at.zone})
		}
		groups[n].asked = append(groups[n].asked, name)
		for _, v := range values[name] {
			r := Record{Name: at.target, Value: v}
			if !slices.Contains(groups[n].records, r) {
				groups[n].records = append(groups[n].records, r)
			}
		}
	}
	return groups, lost, nil
}

// locate finds where the record at name belongs. When the resolvers cannot be
// reached, the zones written in a provider are believed instead.
func (s *Solver) locate(ctx context.Context, name string) (place, error) {
	target, err := s.follow(ctx, name)
	if err != nil {
		target = name
	}
	zone := ""
	if err == nil {
		zone, err = s.zoneOf(ctx, target)
	}
	p, configured := s.pick(target)
	switch {
	case err != nil && configured != "" && errors.Is(err, errNoResolver) && ctx.Err() == nil:
		s.log.LogAttrs(ctx, slog.LevelWarn, "zone not looked up, using the configured one",
			slog.String("name", bare(target)), slog.String("zone", bare(configured)), slog.Any("error", err))
		zone = configured
	case err != nil && !errors.Is(err, errNoResolver):
		return place{}, fmt.Errorf("find the zone of %s: %w", bare(name), err)
	case err != nil:
		return place{}, fmt.Errorf("find the zone of %s: %w (are the issuer's resolvers right? zones in the provider are used when they are silent)", bare(name), err)
	case p == nil:
		return place{}, s.noProvider(name, target, zone)
	}
	return place{target: target, zone: zone, provider: p}, nil
}

func (s *Solver) noProvider(name, target, zone string) error {
	have := make([]string, 0, len(s.providers))
	for _, p := range s.providers {
		have = append(have, p.describe())
	}
	via := ""
	if target != name {
		via = " (by CNAME " + bare(target) + ")"
	}
	return fmt.Errorf("%s%s: no DNS provider for zone %s (providers: %s; add the zone to the zones of one of them)",
		bare(name), via, bare(zone), cmp.Or(strings.Join(have, ", "), "none"))
}

// pick returns the provider with the longest zone that name is in, and that
// zone; else the first provider that takes any zone.
func (s *Solver) pick(name string) (p *provider, configured string) {
	for _, c := range s.providers {
		if len(c.zones) == 0 && p == nil {
			p = c
		}
		for _, z := range c.zones {
			if miekg.IsSubDomain(z, name) && len(z) > len(configured) {
				p, configured = c, z
			}
		}
	}
	return p, configured
}

// follow returns the end of the CNAME chain that starts at name, which is name
// itself when there is no such record: usually the name does not exist yet.
//
// A CNAME of a wildcard, as *.example.com that leads to a load balancer, is meant
// for hosts and not for _acme-challenge.example.com, which it covers as well. A
// record at the name itself takes precedence over it (RFC 1034, section 4.3.3),
// so that is where the chain ends, unless no provider could write there.
func (s *Solver) follow(ctx context.Context, name string) (string, error) {
	chain := []string{name}
	for range maxCNAMEs + 1 {
		answer, err := s.ask(ctx, name, miekg.TypeCNAME)
		if err != nil {
			return "", err
		}
		next := alias(answer, name)
		if next == "" {
			return name, nil
		}
		if slices.Contains(chain, next) {
			return "", fmt.Errorf("CNAME loop at %s", bare(next))
		}
		if p, _ := s.pick(name); p != nil {
			if wild, err := s.isWild(ctx, name, next); wild || err != nil {
				return name, err
			}
		}
		name = next
		chain = append(chain, name)
	}
	return "", fmt.Errorf("CNAME chain of more than %d links", maxCNAMEs)
}

// alias returns the target of the CNAME at name, "" when the answer has none.
func alias(answer *miekg.Msg, name string) string {
	for _, rr := range answer.Answer {
		if c, ok := rr.(*miekg.CNAME); ok && sameName(c.Hdr.Name, name) {
			return miekg.CanonicalName(c.Target)
		}
	}
	return ""
}

// isWild reports whether the CNAME from name to target is that of a wildcard:
// then a name beside it, of which nobody has heard, has it too.
func (s *Solver) isWild(ctx context.Context, name, target string) (bool, error) {
	off, end := miekg.NextLabel(name, 0)
	if end {
		return false, nil
	}
	beside := "edge-" + strings.ToLower(rand.Text()) + "." + name[off:]
	if _, ok := miekg.IsDomainName(beside); !ok {
		return false, nil // name is about as long as names can be
	}
	answer, err := s.ask(ctx, beside, miekg.TypeCNAME)
	if err != nil {
		return false, err
	}
	return alias(answer, beside) == target, nil
}

// zoneOf returns the apex of the zone that name is in: the closest ancestor with
// a SOA record. A negative answer names it too (RFC 2308, section 2).
func (s *Solver) zoneOf(ctx context.Context, name string) (string, error) {
	if zone, ok := s.zones.get(name); ok {
		return zone, nil
	}
	at := name
	for range soaWalkLabels {
		answer, err := s.ask(ctx, at, miekg.TypeSOA)
		if err != nil {
			return "", err
		}
		if zone := apex(answer, at); zone != "" {
			s.zones.put(name, zone)
			return zone, nil
		}
		off, end := miekg.NextLabel(at, 0)
		if end {
			break
		}
		at = at[off:]
	}
	return "", errors.New("no SOA record at the name or above it")
}

// apex reads the zone of name from the answer to its SOA query. The owner must
// be name or above it. Behind a CNAME the SOA is that of another zone, which may
// be above it too.
func apex(answer *miekg.Msg, name string) string {
	if alias(answer, name) != "" {
		return ""
	}
	for _, rr := range slices.Concat(answer.Answer, answer.Ns) {
		soa, ok := rr.(*miekg.SOA)
		if !ok {
			continue
		}
		if owner := miekg.CanonicalName(soa.Hdr.Name); owner != "." && miekg.IsSubDomain(owner, name) {
			return owner
		}
	}
	return ""
}

// nameServer is a name server and its addresses, as host:port.
type nameServer struct {
	name      string // "" for servers that are known by address only
	addresses []string
}

// nameServers finds the authoritative servers of zone. One whose host has no
// address that the resolvers know is left out, with a warning, as long as another
// has one: nobody can ask it, a CA neither, so that waiting would only fail an
// order that may succeed.
func (s *Solver) nameServers(ctx context.Context, zone string) ([]nameServer, error) {
	answer, err := s.ask(ctx, zone, miekg.TypeNS)
	if err != nil {
		return nil, err
	}
	names := hosts(answer.Answer, zone)
	if len(names) == 0 {
		return nil, fmt.Errorf("zone %s has no NS records (%s)", bare(zone), rcode(answer.Rcode))
	}
	servers := make([]nameServer, len(names))
	errs := make([]error, len(names))
	var eg errgroup.Group
	for i, name := range names {
		eg.Go(func() error {
			servers[i].name = name
			servers[i].addresses, errs[i] = s.addresses(ctx, name)
			return nil
		})
	}
	_ = eg.Wait() // each name has its own error
	servers = slices.DeleteFunc(servers, func(ns nameServer) bool { return len(ns.addresses) == 0 })
	if len(servers) == 0 {
		return nil, errors.Join(errs...)
	}
	if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "name servers without an address are not asked for challenge records",
			slog.String("zone", bare(zone)), slog.Int("others", len(servers)), slog.Any("error", err))
	}
	left := maxAddresses
	for i := range servers { // every server keeps one: maxServers < maxAddresses
		share := max(1, left-(len(servers)-i-1))
		servers[i].addresses = servers[i].addresses[:min(share, len(servers[i].addresses))]
		left -= len(servers[i].addresses)
	}
	return servers, nil
}

// hosts lists the name servers that the records give zone, sorted.
func hosts(records []miekg.RR, zone string) []string {
	var names []string
	for _, rr := range records {
		if ns, ok := rr.(*miekg.NS); ok && sameName(ns.Hdr.Name, zone) && len(names) < maxServers {
			names = append(names, miekg.CanonicalName(ns.Ns))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (s *Solver) addresses(ctx context.Context, host string) ([]string, error) {
	var out []string
	var errs []error
	for _, qtype := range []uint16{miekg.TypeA, miekg.TypeAAAA} {
		answer, err := s.ask(ctx, host, qtype)
		if err != nil { // some servers answer SERVFAIL to AAAA
			errs = append(errs, err)
			continue
		}
		for _, rr := range answer.Answer {
			switch a := rr.(type) {
			case *miekg.A:
				out = append(out, net.JoinHostPort(a.A.String(), s.port))
			case *miekg.AAAA:
				out = append(out, net.JoinHostPort(a.AAAA.String(), s.port))
			}
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	}
	return nil, fmt.Errorf("name server %s has no address", bare(host))
}

// zoneCache remembers the zones of names for zoneTTL.
type zoneCache struct {
	mu      sync.Mutex
	entries map[string]zoneEntry
}

type zoneEntry struct {
	zone    string
	expires time.Time
}

func newZoneCache() *zoneCache {
	return &zoneCache{entries: map[string]zoneEntry{}}
}

func (c *zoneCache) get(name string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[name]
	if !ok || time.Now().After(e.expires) {
		return "", false
	}
	return e.zone, true
}

// drop forgets the zone of a name.
func (c *zoneCache) drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, name)
}

func (c *zoneCache) put(name, zone string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if len(c.entries) >= maxZones {
		for k, e := range c.entries {
			if now.After(e.expires) {
				delete(c.entries, k)
			}
		}
	}
	for k := range c.entries { // still full: any one has to go
		if len(c.entries) < maxZones {
			break
		}
		delete(c.entries, k)
	}
	c.entries[name] = zoneEntry{zone: zone, expires: now.Add(zoneTTL)}
}
