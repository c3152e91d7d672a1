package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// namesAtOnce bounds the questions to one address under way at once.
const namesAtOnce = 8

// Wait returns when all authoritative servers of all zones show every value. It
// looks at once, then every Options.Poll, at all of them in parallel, and gives
// up after Options.Timeout. The error names each server that was not satisfied
// and what it last answered; it is a *RecordsError with the names of the zones
// that it is about.
//
// A name server with several addresses is judged by those that answer: a host
// without IPv6 is no reason to wait. One that answers at none of them has failed;
// one that has none is left out (see nameServers).
func (p *Presented) Wait(ctx context.Context) error {
	begin, outer := time.Now(), ctx
	ctx, cancel := context.WithTimeout(ctx, p.solver.timeout)
	defer cancel()
	zones, advice, asked := map[string]want{}, map[string]string{}, map[string][]string{}
	for _, g := range p.groups {
		if zones[g.zone] == nil {
			zones[g.zone] = want{}
		}
		advice[g.zone] = g.provider.unseen
		asked[g.zone] = append(asked[g.zone], g.asked...)
		for _, r := range g.records {
			zones[g.zone][r.Name] = append(zones[g.zone][r.Name], r.Value)
		}
	}
	names := sortedKeys(zones)
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, zone := range names {
		wg.Go(func() { errs[i] = p.solver.waitZone(ctx, zone, zones[zone], advice[zone]) })
	}
	wg.Wait()
	var blamed []string
	for i, zone := range names {
		if errs[i] != nil {
			blamed = append(blamed, asked[zone]...)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return blame(outer, blamed, fmt.Errorf("challenge records not visible after %s: %w", time.Since(begin).Round(time.Millisecond), err))
	}
	return nil
}

// want is the values that have to be seen, by name.
type want map[string][]string

// waitZone waits for the servers of one zone. The error ends with the advice.
func (s *Solver) waitZone(ctx context.Context, zone string, wanted want, advice string) error {
	servers, err := s.witnesses(ctx, zone)
	if err != nil {
		return fmt.Errorf("zone %s: name servers: %w (set resolvers or authoritative in the issuer)", bare(zone), err)
	}
	watches := make([]*watch, len(servers))
	var wg sync.WaitGroup
	for i, ns := range servers {
		w := newWatch(ns, s.authoritative.Off)
		watches[i] = w
		wg.Go(func() { w.run(ctx, s, wanted) })
	}
	wg.Wait()
	var open []string
	for _, w := range watches {
		if !w.settled() {
			open = append(open, w.complaints()...)
		}
	}
	if len(open) == 0 {
		return nil
	}
	hint := "is propagation slow, or a server out of reach from here? See resolvers and authoritative in the issuer"
	if s.authoritative.Off {
		hint = "resolvers remember for a while that a name did not exist; authoritative servers do not"
	}
	if advice != "" {
		hint += "; " + advice
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("zone %s: %w: %s", bare(zone), context.Cause(ctx), strings.Join(open, "; "))
	}
	return fmt.Errorf("zone %s: %s (%s)", bare(zone), strings.Join(open, "; "), hint)
}

// witnesses are the servers that have to show the records of zone. The
// resolvers count as one server with several addresses. Discovery is repeated
// until the deadline: it may fail because a resolver is restarting.
func (s *Solver) witnesses(ctx context.Context, zone string) ([]nameServer, error) {
	var last error
	for {
		servers, err := s.discover(ctx, zone)
		if err == nil {
			return servers, nil
		}
		if last == nil || !over(ctx) { // a look that was cut short says less
			last = err
		}
		if !pause(ctx, s.poll) {
			return nil, last
		}
	}
}

// discover finds the witnesses of zone, once.
func (s *Solver) discover(ctx context.Context, zone string) ([]nameServer, error) {
	switch {
	case len(s.authoritative.Servers) > 0:
		var out []nameServer
		for _, a := range s.authoritative.Servers {
			out = append(out, nameServer{addresses: []string{a}})
		}
		return out, nil
	case s.authoritative.Off:
		resolvers, err := s.recursive()
		return []nameServer{{addresses: resolvers}}, err
	}
	return s.nameServers(ctx, zone)
}

// over reports whether ctx has ended. A read that times out with the context's
// deadline may return before the context knows.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// pause waits for d and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// watch follows one name server until its addresses are settled.
type watch struct {
	server  nameServer
	recurse bool

	mu    sync.Mutex
	views []view // one for each address
}

// view is the last that is known of one address. The zero value has not
// answered yet.
type view struct {
	answered bool
	silence  error             // why there was no answer
	missing  map[string]string // by name: what it showed instead; empty and answered means satisfied
}

func newWatch(server nameServer, recurse bool) *watch {
	return &watch{server: server, recurse: recurse, views: make([]view, len(server.addresses))}
}

// run looks at every address until the server is settled or ctx ends.
func (w *watch) run(ctx context.Context, s *Solver, wanted want) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for i, address := range w.server.addresses {
		wg.Go(func() {
			left := maps.Clone(wanted)
			for {
				v := s.look(ctx, address, w.recurse, left)
				if w.update(i, v, over(ctx)) {
					cancel()
				}
				if v.answered && len(v.missing) == 0 || !pause(ctx, s.poll) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// look asks one address for the names in left and deletes those from it whose
// values are all there. The first question tells whether there is anyone: an
// address that does not answer costs its timeouts once, not for every name.
func (s *Solver) look(ctx context.Context, address string, recurse bool, left want) view {
	names := sortedKeys(left)
	shown := make([]string, len(names))
	errs := make([]error, len(names))
	one := func(i int) error {
		answer, err := s.client.queryTXT(ctx, address, names[i], recurse)
		if err == nil {
			shown[i] = lacks(answer, left[names[i]], recurse)
		}
		errs[i] = err
		return err
	}
	if err := one(0); err != nil {
		return view{silence: err}
	}
	eg, _ := errgroup.WithContext(ctx)
	eg.SetLimit(namesAtOnce)
	for i := 1; i < len(names); i++ {
		eg.Go(func() error { return one(i) })
	}
	_ = eg.Wait() // each name has its own error
	v := view{answered: true, missing: map[string]string{}}
	for i, name := range names {
		switch {
		case errs[i] != nil:
			v.missing[name] = reason(errs[i])
		case shown[i] != "":
			v.missing[name] = shown[i]
		default:
			delete(left, name)
		}
	}
	return v
}

// lacks says what is wrong with an answer, or "" when it has all values.
func lacks(answer *miekg.Msg, values []string, recurse bool) string {
	have := map[string]bool{}
	for _, rr := range answer.Answer {
		if t, ok := rr.(*miekg.TXT); ok {
			have[strings.Join(t.Txt, "")] = true
		}
	}
	n := 0
	for _, v := range values {
		if have[v] {
			n++
		}
	}
	if answer.Rcode == miekg.RcodeSuccess && n == len(values) {
		return ""
	}
	text := rcode(answer.Rcode)
	if answer.Rcode == miekg.RcodeSuccess {
		text = fmt.Sprintf("has %d of %d values", n, len(values))
	}
	switch {
	case !recurse && !answer.Authoritative && answer.Rcode != miekg.RcodeRefused:
		text += " (not authoritative)"
	case recurse && n < len(values):
		for _, rr := range answer.Ns {
			if soa, ok := rr.(*miekg.SOA); ok {
				text += fmt.Sprintf(" (remembered for %d s)", min(soa.Hdr.Ttl, soa.Minttl))
			}
		}
	}
	return text
}

// update stores what an address showed and reports whether the server is
// settled. A look that was cut short says less than an earlier one.
func (w *watch) update(i int, v view, cut bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.views[i]
	if fresh := !old.answered && old.silence == nil; fresh || !cut {
		w.views[i] = v
	}
	return w.settledLocked()
}

func (w *watch) settled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.settledLocked()
}

// settledLocked: at least one address shows everything, and the others too or
// they are silent.
func (w *watch) settledLocked() bool {
	satisfied := false
	for _, v := range w.views {
		switch {
		case v.answered && len(v.missing) == 0:
			satisfied = true
		case v.silence == nil:
			return false
		}
	}
	return satisfied
}

// complaints says for each address that is not satisfied what it answered.
func (w *watch) complaints() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for i, v := range w.views {
		who := w.server.addresses[i]
		if w.server.name != "" {
			who = fmt.Sprintf("%s (%s)", bare(w.server.name), who)
		}
		switch {
		case v.answered && len(v.missing) == 0:
		case v.answered:
			name := sortedKeys(v.missing)[0]
			line := fmt.Sprintf("%s: %s at %s", who, v.missing[name], bare(name))
			if more := len(v.missing) - 1; more > 0 {
				line += fmt.Sprintf(" and %d more", more)
			}
			out = append(out, line)
		case v.silence != nil:
			out = append(out, who+": "+reason(v.silence))
		default:
			out = append(out, who+": no answer yet")
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
