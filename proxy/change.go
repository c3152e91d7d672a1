package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"edge/config"
	"edge/proxy/upstream"
)

// settleTime bounds how long a stop waits, after the last request has ended, for
// connections to be done with their last bytes.
const settleTime = 2 * time.Second

// Change is a configuration that is ready to be put in force. Exactly one of
// Commit and Abort must be called.
type Change struct {
	server   *Server
	table    *table
	set      *upstream.Set
	settings map[string]settings // by listener name
	sockets  map[string]*socket  // by listener name: kept and new ones
	bound    []*socket           // the new ones
}

// errPending and errStopped are mistakes of the caller.
var (
	errPending = errors.New("another change is pending (commit or abort it first)")
	errStopped = errors.New("the server is shut down")
)

// Prepare makes everything of cfg that can fail: it binds the addresses that
// are new, builds the pools and compiles the routes. When it fails, nothing has
// changed, and the error lists every problem.
func (s *Server) Prepare(ctx context.Context, cfg *config.Config) (*Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return nil, errStopped
	case s.pending:
		return nil, errPending
	}
	c := &Change{server: s, settings: map[string]settings{}}
	for name, l := range cfg.Listeners {
		c.settings[name] = settingsOf(l, cfg)
	}
	set, err := s.registry.Prepare(cfg.Pools)
	if err != nil {
		err = fmt.Errorf("prepare pools: %w", err)
	}
	bindErr := c.bindLocked(ctx, cfg.Listeners)
	if err := errors.Join(err, bindErr); err != nil {
		c.closeBound()
		if set != nil {
			set.Close()
		}
		return nil, err
	}
	c.set = set
	c.table = newTable(cfg, func(r *config.Route) *route { return s.newRoute(r, set.Pool(r.Pool)) })
	c.table.httpsPort = httpsPort(c.sockets, c.settings)
	s.pending = true
	return c, nil
}

// bindLocked finds or binds a socket for each listener. A listener keeps its own
// socket where the address stayed, else it takes over another's of the same
// address, so that a rename is not an outage.
func (c *Change) bindLocked(ctx context.Context, listeners map[string]*config.Listener) error {
	c.sockets = make(map[string]*socket, len(listeners))
	spare := maps.Clone(c.server.sockets)
	for name, l := range listeners {
		if k := spare[name]; k != nil && k.address == l.Address {
			c.sockets[name] = k
			delete(spare, name)
		}
	}
	var errs []error
	for _, name := range sortedKeys(listeners) {
		if c.sockets[name] != nil {
			continue
		}
		address := listeners[name].Address
		for _, old := range sortedKeys(spare) {
			if spare[old].address == address {
				c.sockets[name] = spare[old]
				delete(spare, old)
				break
			}
		}
		if c.sockets[name] != nil {
			continue
		}
		k, err := c.server.bind(ctx, name, address)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.sockets[name] = k
		c.bound = append(c.bound, k)
	}
	return errors.Join(errs...)
}

func (c *Change) closeBound() {
	for _, k := range c.bound {
		_ = k.ln.Close()
	}
}

// Abort gives up what Prepare made.
func (c *Change) Abort() {
	c.closeBound()
	c.set.Close()
	c.server.mu.Lock()
	c.server.pending = false
	c.server.mu.Unlock()
}

// Commit puts the configuration in force. Requests that are under way keep the
// one they started with: the old pools are closed only in the sense that they
// stop checking and keep no idle connection, while their replies run on.
func (c *Change) Commit() {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = false
	if s.stopped {
		c.closeBound()
		c.set.Close()
		return
	}
	old, oldSet := s.sockets, s.set
	s.sockets, s.set = c.sockets, c.set
	c.set.Commit()
	s.table.Store(c.table)
	if oldSet != nil {
		oldSet.Close()
	}
	kept := map[*socket]bool{}
	for name, k := range c.sockets {
		kept[k] = true
		s.useLocked(k, c.settings[name])
	}
	for _, k := range c.bound {
		s.running.Go(func() { s.accept(k) })
	}
	for _, k := range old {
		if !kept[k] {
			_ = k.ln.Close()
			s.retireLocked(k.front.Load())
		}
	}
}

// useLocked gives k a front with the settings, unless it has one.
func (s *Server) useLocked(k *socket, st settings) {
	old := k.front.Load()
	if old != nil && old.settings == st {
		return
	}
	k.front.Store(s.newFront(st, k.ln.Addr()))
	if old != nil {
		s.retireLocked(old)
	}
}

// retireLocked ends a front in the background: its running requests go on.
func (s *Server) retireLocked(f *front) {
	s.running.Go(func() { f.retire(s.drain) })
}

// httpsPort is the port that redirects point to: 443 when a TLS listener has
// it, else that of the first TLS listener by name; 0 when there is none.
func httpsPort(sockets map[string]*socket, st map[string]settings) int {
	first := 0
	for _, name := range sortedKeys(sockets) {
		if st[name].redirect {
			continue
		}
		_, port, err := net.SplitHostPort(sockets[name].ln.Addr().String())
		if err != nil {
			continue
		}
		n, err := strconv.Atoi(port)
		if err == nil && (first == 0 || n == 443) {
			first = n
		}
	}
	return first
}

// Shutdown closes the listeners and lets what is under way end: HTTP/2 clients
// get GOAWAY, HTTP/1.1 responses end their connections. When ctx ends, the rest
// is cut, tunnels too, and Shutdown returns the error of ctx. It is called once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return errStopped
	}
	s.stopped = true
	close(s.stopping)
	for _, k := range s.sockets {
		_ = k.ln.Close()
		s.retireLocked(k.front.Load())
	}
	s.mu.Unlock()

	err := s.awaitIdle(ctx)
	gone := make(chan struct{})
	go func() { s.running.Wait(); close(gone) }()
	for err == nil { // an exchange ends before its last bytes are on the wire
		settled(ctx, gone)
		if s.active.Load() == 0 {
			break
		}
		err = s.awaitIdle(ctx) // of a connection that had not brought a request before
	}
	// Only idle connections are left, or the time is over.
	s.draining()
	s.tunnels.cut()
	<-gone
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set != nil {
		s.set.Close()
	}
	s.registry.Close()
	return err
}

// settled gives the engines a moment to write the ends of the last responses and
// to close their connections by themselves.
func settled(ctx context.Context, gone <-chan struct{}) {
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// awaitIdle waits until no exchange is active. It listens after it looked, so
// the last exchange to end is never missed.
func (s *Server) awaitIdle(ctx context.Context) error {
	for s.active.Load() > 0 {
		select {
		case <-s.idle:
		case <-ctx.Done():
			return fmt.Errorf("%d requests were cut: %w", s.active.Load(), ctx.Err())
		}
	}
	return nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
