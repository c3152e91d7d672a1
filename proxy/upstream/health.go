package upstream

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"edge/config"
	"edge/proxy/exchange"
)

// maxCheckBody bounds what is read of the body of a check's reply.
const maxCheckBody = 64 << 10

// checker watches one address by one check: GET Health.Path on a connection of
// its own every Interval ± 10 %. An endpoint is believed up until Fall checks in a
// row have failed, and again after Rise passes in a row.
type checker struct {
	// Immutable.
	url     string
	backend *backend
	health  config.Health
	log     *slog.Logger

	up atomic.Bool

	refs   int                // Sets that hold it; guarded by Registry.mu
	users  int                // of which committed; guarded by Registry.mu
	cancel context.CancelFunc // of the running check; guarded by Registry.mu

	mu     sync.Mutex
	run    context.Context //nolint:containedctx // identifies the run whose results count; nil when stopped
	streak int             // results in a row that speak against up
	since  time.Time       // of the last change of up
	reason string          // why the last check failed; "" when it passed
}

func newChecker(endpointURL string, b *backend, h config.Health, log *slog.Logger) *checker {
	c := &checker{url: endpointURL, backend: b, health: h, log: log, since: time.Now()}
	c.up.Store(true)
	return c
}

// startLocked counts a committed Set and starts the check with the first.
func (c *checker) startLocked(running *sync.WaitGroup) {
	c.users++
	if c.users > 1 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.mu.Lock()
	c.run = ctx
	c.mu.Unlock()
	running.Go(func() { c.loop(ctx) })
}

// stopLocked is the reverse. It does not wait; a check under way is aborted.
func (c *checker) stopLocked() {
	if c.users--; c.users == 0 {
		c.haltLocked()
	}
}

// haltLocked ends the check, whoever uses it.
func (c *checker) haltLocked() {
	if c.cancel == nil {
		return
	}
	c.mu.Lock()
	c.run = nil
	c.mu.Unlock()
	c.cancel()
	c.cancel = nil
}

func (c *checker) verdict() (since time.Time, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.since, c.reason
}

// loop checks at once and then every interval, start to start.
func (c *checker) loop(ctx context.Context) {
	for {
		next := time.NewTimer(jitter(c.health.Interval))
		c.record(ctx, c.probe(ctx))
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return
		}
	}
}

// jitter is d ± 10 %.
func jitter(d time.Duration) time.Duration {
	tenth := d / 10
	return d - tenth + rand.N(2*tenth+1) //nolint:gosec // spreads load, guards nothing
}

// probe makes one check; nil is a pass. It has a connection of its own: on one
// kept alive it would not notice a server that accepts no new ones.
func (c *checker) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.health.Timeout)
	defer cancel()
	var canceler exchange.Canceler
	stop := context.AfterFunc(ctx, func() { canceler.Cancel(context.Cause(ctx)) })
	defer stop()
	reply, err := c.backend.probe.Do(&exchange.Call{
		Method: http.MethodGet, Target: c.health.Path, Scheme: c.backend.key.scheme, Host: c.backend.key.address,
		Header: exchange.Fields{{Name: "User-Agent", Value: "edge-health-check"}},
		// The context ends it before.
		Connect: c.health.Timeout, Canceler: &canceler,
	})
	if err != nil {
		return err
	}
	defer func() { _ = reply.Body.Close() }()                                                  // nothing more is wanted of it
	if _, err := io.CopyN(io.Discard, reply.Body, maxCheckBody); err != nil && err != io.EOF { //nolint:errorlint // an end is never wrapped
		return fmt.Errorf("read body: %w", err)
	}
	if reply.Status < 200 || reply.Status > 299 { // no redirect is followed
		return fmt.Errorf("status %d", reply.Status)
	}
	return nil
}

// record counts one result and says so when it changes the verdict.
func (c *checker) record(run context.Context, err error) {
	c.mu.Lock()
	if c.run != run {
		c.mu.Unlock()
		return // stopped while the check was under way: no news
	}
	up := c.up.Load()
	c.reason = ""
	if err != nil {
		c.reason = err.Error()
	}
	need := c.health.Rise
	if up {
		need = c.health.Fall
	}
	changed := false
	if pass := err == nil; pass == up {
		c.streak = 0
	} else if c.streak++; c.streak >= need {
		changed = true
		c.streak, c.since = 0, time.Now()
		c.up.Store(pass)
	}
	c.mu.Unlock()
	switch {
	case !changed:
	case up:
		c.log.LogAttrs(run, slog.LevelWarn, "endpoint is down",
			slog.String("endpoint", c.url), slog.String("path", c.health.Path),
			slog.Int("failures", need), slog.String("reason", err.Error()))
	default:
		c.log.LogAttrs(run, slog.LevelInfo, "endpoint is up",
			slog.String("endpoint", c.url), slog.String("path", c.health.Path),
			slog.Int("passes", need))
	}
}
