// Package dns proves control of names by ACME DNS-01: it writes the TXT records
// of an order, waits until the world can see them, and takes them away again.
//
//	solver, err := dns.New(dns.Options{Providers: providers, Resolvers: issuer.Resolvers})
//	presented, err := solver.Present(ctx, records)
//	defer presented.CleanUp(context.WithoutCancel(ctx))
//	err = presented.Wait(ctx)
//	// now tell the CA to look
//
// An order is presented as a whole: CNAMEs are followed (but see follow for
// those of wildcards), the zone of each name is found, and every zone gets one
// append with all its values, so that a certificate of a hundred names costs one
// update (where the provider's API has one for several names) and one wait. Wait
// asks every address of every name server of the zone, because a CA validates
// from several networks and may meet any of them (Baseline Requirements 3.2.2.9).
//
// Resolvers are used to find zones and their name servers. They are a poor
// witness of a change: following a CNAME teaches them that the challenge name
// does not exist yet, which they may remember for the zone's negative TTL
// (RFC 2308). Options.Authoritative.Off, which asks the resolvers, is for networks
// that cannot reach the name servers and needs patience accordingly.
//
// The package does no ACME and keeps nothing on disk. Values of others at a name
// are never lost to ours, nor ours to those of another replica: an API adds and
// removes single values (RFC 2136, Cloudflare), or it replaces all values of a
// name only if they are what was read (Google Cloud DNS, Azure DNS), or a lease
// that all replicas see keeps them apart (Route 53, programs; see Options.Lease).
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"edge/config"

	"github.com/libdns/libdns"
	"golang.org/x/sync/errgroup"
)

// Bounds of one Solver.
const (
	maxRecords      = 256              // of one Present; a certificate has at most 100 names
	maxParallel     = 32               // queries, and provider calls, under way at once
	recordTTL       = 60 * time.Second // the least that the providers accept
	providerTimeout = 90 * time.Second // of one append or delete, retries and waiting included; longer where each name costs
	writeGrace      = 5 * time.Second  // that an append under way gets when its order is cancelled
	defaultPoll     = time.Second
	defaultTimeout  = 2 * time.Minute
)

// Record is one TXT record that a CA asks for.
type Record struct {
	Name  string // fully qualified, with or without the final dot: _acme-challenge.example.com
	Value string // the digest of the key authorization (RFC 8555, section 8.4)
}

// HTTPClient sends requests to a provider's API. *http.Client is one.
type HTTPClient interface {
	Do(req *http.Request) (*http.Response, error)
}

// Options configure a Solver. The zero value of every field but Providers is
// what production wants.
type Options struct {
	Logger        *slog.Logger         // nil means slog.Default()
	Providers     []*config.Provider   // the sets of credentials that may be used
	Resolvers     []string             // host:port; empty means those of /etc/resolv.conf, read at each use
	Authoritative config.Authoritative // which servers Wait asks
	Port          string               // of discovered name servers; "" means 53
	HTTPClient    HTTPClient           // for Cloudflare, Google and Azure; nil means one with timeouts
	Poll          time.Duration        // between two looks at a server; 0 means 1 s
	Timeout       time.Duration        // of Wait; 0 means 2 min

	// Lease takes a lease that one replica at a time has; release gives it up. It
	// is held while records are changed whose API has no compare-and-swap, those
	// of Route 53 and of a program, under the name "dns/ZONE/NAME". nil means that
	// there are no other replicas.
	Lease func(ctx context.Context, name string) (release func(), err error)

	// Lost tells from the cause of a context's end that the order has gone to
	// another replica, which presents the same records: then a Present that fails
	// deletes nothing. nil means never.
	Lost func(cause error) bool
}

// Solver presents challenge records. It may be used concurrently, and by several
// orders at once.
type Solver struct {
	log           *slog.Logger
	providers     []*provider
	resolvers     []string
	authoritative config.Authoritative
	port          string
	poll          time.Duration
	timeout       time.Duration
	client        *client
	zones         *zoneCache
	lost          func(cause error) bool
}

// New builds a Solver. It loads the secrets of all providers and reports every
// problem with them; it opens no connection.
func New(o Options) (*Solver, error) {
	s := &Solver{
		log:           o.Logger,
		authoritative: config.Authoritative{Off: o.Authoritative.Off, Servers: withPorts(o.Authoritative.Servers)},
		resolvers:     withPorts(o.Resolvers),
		port:          o.Port,
		poll:          o.Poll,
		timeout:       o.Timeout,
		client:        newClient(),
		zones:         newZoneCache(),
		lost:          o.Lost,
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	o.Logger = s.log
	if s.port == "" {
		s.port = dnsPort
	}
	if s.poll <= 0 {
		s.poll = defaultPoll
	}
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}
	var errs []error
	for _, c := range o.Providers {
		p, err := newProvider(c, o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.providers = append(s.providers, p)
	}
	return s, errors.Join(errs...)
}

// Presented is a set of records that Present has added. Wait and CleanUp may be
// called more than once.
type Presented struct {
	solver *Solver
	groups []*group

	mu      sync.Mutex
	pending []*group // groups whose records have not been deleted
}

// group is what one provider is told about one zone.
type group struct {
	provider *provider
	zone     string   // canonical, with final dot
	records  []Record // names are targets of CNAMEs, canonical, with final dot
	asked    []string // the names that lead to them, likewise
}

// Present adds the records: one append for each zone, all zones at once. Either
// all of them are added, or an error says for each zone why not and those that
// were added are deleted again. It is a *RecordsError where only some of the
// records are at fault.
func (s *Solver) Present(ctx context.Context, records []Record) (*Presented, error) {
	groups, err := s.plan(ctx, records)
	if err != nil {
		return nil, err
	}
	errs := s.each(groups, func(g *group) error {
		if err := g.add(ctx); err != nil {
			return err
		}
		s.log.LogAttrs(ctx, slog.LevelDebug, "challenge records added",
			slog.String("provider", g.provider.name), slog.String("zone", g.zone), slog.Int("records", len(g.records)))
		return nil
	})
	p := &Presented{solver: s, groups: groups, pending: groups}
	var asked []string
	for i, g := range groups {
		if errs[i] != nil {
			asked = append(asked, g.asked...)
		}
	}
	if err = errors.Join(errs...); err != nil {
		err = blame(ctx, asked, err)
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("present challenge records: %w", context.Cause(ctx))
	}
	switch {
	case err == nil:
		return p, nil
	case ctx.Err() != nil && s.lost != nil && s.lost(context.Cause(ctx)):
		// The heir presents the same values, and may have done so already.
	default:
		p.undo(ctx, errs)
	}
	return nil, err
}

// Sweep deletes records that an order has left, wherever they belong now. What
// is not there is success. It goes on when the place of one cannot be found or a
// provider fails, and reports each.
func (s *Solver) Sweep(ctx context.Context, records []Record) error {
	var errs []error
	for chunk := range slices.Chunk(records, maxRecords) {
		groups, lost, err := s.group(ctx, chunk)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, some(slices.Collect(maps.Values(lost))))
		errs = append(errs, s.each(groups, func(g *group) error { return g.remove(ctx) })...)
	}
	return errors.Join(errs...)
}

// undo deletes what a failed Present may have added: also in zones that
// reported an error, because a provider may have written half of them.
func (p *Presented) undo(ctx context.Context, added []error) {
	ctx = context.WithoutCancel(ctx)
	undone := p.solver.each(p.groups, func(g *group) error { return g.remove(ctx) })
	for i, err := range undone {
		if err != nil && added[i] == nil {
			p.solver.log.LogAttrs(ctx, slog.LevelWarn, "challenge records left behind", slog.Any("error", err))
		}
	}
}

// CleanUp deletes the records that Present added and no others. It goes on where
// an earlier call failed, and does nothing when there is nothing left. Call it
// with a context that outlives the order's: context.WithoutCancel and a timeout.
func (p *Presented) CleanUp(ctx context.Context) error {
	p.mu.Lock()
	groups := p.pending
	p.pending = nil
	p.mu.Unlock()

	errs := p.solver.each(groups, func(g *group) error { return g.remove(ctx) })

	p.mu.Lock()
	defer p.mu.Unlock()
	for i, err := range errs {
		if err != nil {
			p.pending = append(p.pending, groups[i])
		}
	}
	return errors.Join(errs...)
}

// each runs f for all groups at once and returns their errors in order.
func (s *Solver) each(groups []*group, f func(*group) error) []error {
	errs := make([]error, len(groups))
	var eg errgroup.Group
	eg.SetLimit(maxParallel)
	for i, g := range groups {
		eg.Go(func() error {
			errs[i] = f(g)
			return nil
		})
	}
	_ = eg.Wait() // each group has its own error
	return errs
}

func (g *group) add(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("add challenge records to zone %s: %w", bare(g.zone), context.Cause(ctx))
	}
	ctx, cancel := unhurried(ctx, g.patience())
	defer cancel()
	if _, err := g.provider.backend.AppendRecords(ctx, g.zone, g.libdns()); err != nil {
		return g.provider.fail("add challenge records to", g.zone, err)
	}
	return nil
}

// unhurried returns a context that outlives ctx by writeGrace. A request to
// write that is abandoned may still be carried out, after undo has looked.
func unhurried(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	stop := context.AfterFunc(ctx, func() {
		if pause(out, writeGrace) {
			cancel()
		}
	})
	return out, func() {
		stop()
		cancel()
	}
}

func (g *group) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.patience())
	defer cancel()
	if _, err := g.provider.backend.DeleteRecords(ctx, g.zone, g.libdns()); err != nil {
		return g.provider.fail("delete challenge records from", g.zone, err)
	}
	return nil
}

// patience bounds an append or delete of all records.
func (g *group) patience() time.Duration {
	return providerTimeout + time.Duration(len(g.records))*g.provider.perRecord
}

func (g *group) libdns() []libdns.Record {
	out := make([]libdns.Record, 0, len(g.records))
	for _, r := range g.records {
		out = append(out, libdns.TXT{Name: libdns.RelativeName(r.Name, g.zone), TTL: recordTTL, Text: r.Value})
	}
	return out
}

// check refuses what no CA sends and what would not survive the providers'
// different ways of quoting.
func (r Record) check() error {
	if r.Name == "" || len(r.Name) > 254 {
		return fmt.Errorf("challenge record %q: bad name", r.Name)
	}
	if r.Value == "" || len(r.Value) > 255 {
		return fmt.Errorf("challenge record %s: value of %d bytes (1 to 255 are allowed)", r.Name, len(r.Value))
	}
	for _, c := range []byte(r.Value) {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return fmt.Errorf("challenge record %s: value contains byte 0x%02x", r.Name, c)
		}
	}
	return nil
}
