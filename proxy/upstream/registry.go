package upstream

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"edge/config"
)

// Registry owns what outlives a configuration: connections, health and
// counters. Its methods may be called concurrently.
type Registry struct {
	log  *slog.Logger
	dial dialFunc

	checks sync.WaitGroup // running checkers
	share  share

	mu       sync.Mutex
	closed   bool
	current  *Set // committed last
	backends map[backendKey]*backend
	checkers map[checkKey]*checker
	counters map[countersKey]*counters
}

// NewRegistry returns an empty Registry. It opens no connection and starts nothing.
func NewRegistry(o Options) *Registry {
	r := &Registry{
		log: o.Logger, dial: o.Dial,
		backends: map[backendKey]*backend{},
		checkers: map[checkKey]*checker{},
		counters: map[countersKey]*counters{},
	}
	r.share.left.Store(maxShared)
	if r.log == nil {
		r.log = slog.Default()
	}
	if r.dial == nil {
		r.dial = defaultDial()
	}
	return r
}

// Set is the pools of one configuration.
type Set struct {
	registry *Registry
	pools    map[string]*Pool

	committed, closed bool // guarded by registry.mu
}

// plan is an endpoint that Prepare has understood.
type plan struct {
	config.Endpoint
	key   backendKey
	roots authority
}

// Prepare builds the pools of a configuration and acquires what they share with
// the one in force, which stays as it is. It reads the CA files and opens no
// connection. The error tells all problems. The Set must be closed.
func (r *Registry) Prepare(pools map[string]*config.Pool) (*Set, error) {
	plans := make(map[string][]plan, len(pools))
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		planned, err := planPool(pools[name])
		if err != nil {
			problems = append(problems, fmt.Errorf("pool %s: %w", name, err))
		}
		plans[name] = planned
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errors.New("prepare pools: registry is closed")
	}
	s := &Set{registry: r, pools: make(map[string]*Pool, len(pools))}
	for name, c := range pools {
		p := &Pool{name: name, retry: c.Retry, connect: cmp.Or(c.Connect, connectTimeout), share: &r.share, picker: newPicker(c.Balance, len(c.Endpoints))}
		for _, e := range plans[name] {
			p.endpoints = append(p.endpoints, r.acquireLocked(name, c.Health, e))
		}
		s.pools[name] = p
	}
	return s, nil
}

func planPool(c *config.Pool) ([]plan, error) {
	roots, err := loadAuthority(c.CA)
	problems := []error{err}
	planned := make([]plan, 0, len(c.Endpoints))
	for _, e := range c.Endpoints {
		key, err := parseEndpoint(e.URL, cmp.Or(c.Protocol, config.PoolH1))
		problems = append(problems, err)
		if key.scheme == "https" {
			key.roots = roots.sum
			key.serverName = cmp.Or(c.ServerName, key.serverName)
		} else {
			key.serverName = ""
		}
		planned = append(planned, plan{e, key, roots})
	}
	return planned, errors.Join(problems...)
}

// acquireLocked finds or makes the three shared parts of an endpoint.
func (r *Registry) acquireLocked(pool string, health *config.Health, e plan) *endpoint {
	b := r.backends[e.key]
	if b == nil {
		b = newBackend(e.key, e.roots.pool, r.dial)
		r.backends[e.key] = b
	}
	b.refs++
	id := countersKey{pool, e.URL}
	c := r.counters[id]
	if c == nil {
		c = &counters{since: time.Now()}
		r.counters[id] = c
	}
	c.refs++
	ep := &endpoint{counters: c, url: e.URL, weight: int64(max(e.Weight, 1)), backend: b}
	if health == nil {
		return ep
	}
	key := checkKey{e.key, *health}
	if ep.checker = r.checkers[key]; ep.checker == nil {
		ep.checker = newChecker(e.URL, b, *health, r.log)
		r.checkers[key] = ep.checker
	}
	ep.checker.refs++
	return ep
}

// Pool returns the pool called name, nil when there is none.
func (s *Set) Pool(name string) *Pool { return s.pools[name] }

// Commit puts the Set in force: its health checks run from now on, where they do not
// already, and Status reports it. Commits after the first, or after Close, do nothing.
func (s *Set) Commit() {
	r := s.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.committed || s.closed || r.closed {
		return
	}
	s.committed, r.current = true, s
	s.each(func(_ string, e *endpoint) {
		if e.checker != nil {
			e.checker.startLocked(&r.checks)
		}
	})
}

// Close releases what the Set holds. What no other Set holds ends: health checks
// are stopped and idle connections closed, while running requests go on and
// close theirs at their end. Calls after the first do nothing.
func (s *Set) Close() {
	for _, b := range s.release() {
		b.close()
	}
}

// release returns the backends that nobody holds any more.
func (s *Set) release() []*backend {
	r := s.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if r.current == s {
		r.current = nil
	}
	var unused []*backend
	s.each(func(pool string, e *endpoint) {
		if e.backend.refs--; e.backend.refs == 0 {
			delete(r.backends, e.backend.key)
			unused = append(unused, e.backend)
		}
		if e.counters.refs--; e.counters.refs == 0 {
			delete(r.counters, countersKey{pool, e.url})
		}
		c := e.checker
		if c == nil {
			return
		}
		if s.committed {
			c.stopLocked()
		}
		if c.refs--; c.refs == 0 {
			delete(r.checkers, checkKey{c.backend.key, c.health})
		}
	})
	return unused
}

func (s *Set) each(f func(pool string, e *endpoint)) {
	for name, p := range s.pools {
		for _, e := range p.endpoints {
			f(name, e)
		}
	}
}

// Status reports the pools of the Set that was committed last, by name; none when
// it is closed.
func (r *Registry) Status() []PoolStatus {
	r.mu.Lock()
	s := r.current
	r.mu.Unlock()
	if s == nil {
		return nil
	}
	out := make([]PoolStatus, 0, len(s.pools))
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		p := PoolStatus{Name: name}
		for _, e := range s.pools[name].endpoints {
			p.Endpoints = append(p.Endpoints, e.status())
		}
		out = append(out, p)
	}
	return out
}

// Close stops all health checks, waits for them and closes idle connections.
// Running requests go on; end their contexts to abort them. The Registry cannot be
// used again.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed, r.current = true, nil
	for _, c := range r.checkers {
		c.haltLocked()
	}
	all := slices.Collect(maps.Values(r.backends))
	r.mu.Unlock()
	r.checks.Wait()
	for _, b := range all {
		b.close()
	}
}
