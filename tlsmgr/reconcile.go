package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"edge/tlsmgr/store"

	"golang.org/x/sync/errgroup"
)

// renewAt is when certificate c is due: when a third of its life is left, or
// half of it where the whole is less than ten days, since then a third is
// little time for repairs. Never a number of days: CAs shorten lifetimes. Up to
// a twentieth of the life earlier, by certificate, so that what was ordered
// together is not renewed together; replicas agree on it.
func renewAt(c *certificate) time.Time {
	life := c.leaf().NotAfter.Sub(c.leaf().NotBefore)
	left := life / 3
	if life < 10*24*time.Hour {
		left = life / 2
	}
	h := fnv.New32a()
	_, _ = h.Write(c.leaf().Raw)
	early := time.Duration(float64(life) / 20 * float64(h.Sum32()) / (1 << 32))
	return c.leaf().NotAfter.Add(-left - early)
}

// Load reads what the storage has, once, so that a process that is ready serves
// everything that existed before it. An error leaves what was loaded in place;
// Run goes on trying.
func (m *Manager) Load(ctx context.Context) error {
	if s := m.storage(); s != nil {
		return m.sync(ctx, s)
	}
	return nil
}

// storage is the open store, nil when the configuration obtains nothing.
func (m *Manager) storage() *store.Store {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store
}

// Run keeps certificates in order until ctx ends: it looks at the storage every
// ten seconds and whenever something is due, loads what other replicas
// obtained, orders what is missing or due, and reloads file certificates. It
// ends the orders in flight, removes their challenge records, and closes the
// storage; call it once. The error is always nil.
func (m *Manager) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer m.close()
	defer work.Wait()
	work.Go(func() { m.watchFiles(ctx) })
	var weather weather
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		timer.Reset(m.reconcile(ctx, &weather, &work))
	}
}

func (m *Manager) close() {
	if s := m.storage(); s != nil {
		if err := s.Close(); err != nil {
			m.log.LogAttrs(context.Background(), slog.LevelWarn, "close the storage", slog.Any("error", err))
		}
	}
}

// reconcile looks once and starts the work that it finds. It returns when to
// look next.
func (m *Manager) reconcile(ctx context.Context, w *weather, work *sync.WaitGroup) time.Duration {
	now := time.Now()
	m.expire(now)
	s, st := m.storage(), m.state.Load()
	if s == nil || len(st.bundles) == 0 {
		return m.soon(st, now)
	}
	err := m.sync(ctx, s)
	if err == nil {
		err = m.probe(ctx, s, st, w)
	}
	if err != nil {
		if ctx.Err() == nil {
			w.down(ctx, m.log, s, err)
		}
		return w.pause(m.options.Interval)
	}
	w.up(ctx, m.log, s)
	for _, b := range m.turns(st) {
		m.consider(ctx, s, st, b, now, work)
	}
	return m.soon(st, now)
}

// turns are the bundles of st in the order in which they get the slots for
// orders. Those that failed come last: each costs minutes of waiting for DNS,
// and many of them would keep the others from being renewed.
func (m *Manager) turns(st *state) []*Bundle {
	m.mu.Lock()
	defer m.mu.Unlock()
	var first, failed []*Bundle
	for n := range st.plan.Bundles {
		b := &st.plan.Bundles[n]
		if j := m.jobs[b.ID]; j != nil && j.failures > 0 {
			failed = append(failed, b)
		} else {
			first = append(first, b)
		}
	}
	return append(first, failed...)
}

// probe makes sure, once and before the first write, that the storage keeps
// its promises. A process that finds everything in order never writes.
func (m *Manager) probe(ctx context.Context, s *store.Store, st *state, w *weather) error {
	if w.probed || !m.anyNeed(st) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	err := s.Probe(ctx)
	w.probed = err == nil
	return err
}

func (m *Manager) anyNeed(st *state) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, b := range st.bundles {
		if b.needs(m.loaded[id], st.issuers[b.Issuer].config.Directory, time.Now()) != needNothing {
			return true
		}
	}
	return false
}

// expire rebuilds the index when a certificate in it has expired, so that
// another one that covers its names takes over.
func (m *Manager) expire(now time.Time) {
	if next := m.index.Load().next; next.IsZero() || now.Before(next) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rebuildLocked(now)
}

// soon is when to look next: after the interval, ±20 %, or earlier when a
// renewal, another attempt or an expiry comes before. What was due at now has
// been considered.
func (m *Manager) soon(st *state, now time.Time) time.Duration {
	interval := m.options.Interval
	wait := interval + time.Duration((rand.Float64()-0.5)*0.4*float64(interval)) //nolint:gosec // jitter is no secret
	earlier := func(at time.Time) {
		if at.After(now) {
			wait = min(wait, max(time.Until(at), 10*time.Millisecond))
		}
	}
	earlier(m.index.Load().next)
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range st.bundles {
		if j := m.jobs[id]; j != nil {
			earlier(j.next)
		}
		if l := m.loaded[id]; l != nil && l.cert != nil {
			earlier(renewAt(l.cert))
		}
	}
	return wait
}

// weather is whether the storage answers, for one warning at each change.
type weather struct {
	failures int  // in a row
	probed   bool // the storage can be trusted
}

func (w *weather) down(ctx context.Context, log *slog.Logger, s *store.Store, err error) {
	w.failures++
	if w.failures == 1 {
		log.LogAttrs(ctx, slog.LevelWarn, "storage is unavailable, serving what is loaded",
			slog.String("storage", s.URL()), slog.Any("error", oneError(err)))
	}
}

func (w *weather) up(ctx context.Context, log *slog.Logger, s *store.Store) {
	if w.failures > 0 {
		log.LogAttrs(ctx, slog.LevelInfo, "storage is available again", slog.String("storage", s.URL()))
	}
	w.failures = 0
}

// pause is the time to the next look while the storage is down.
func (w *weather) pause(interval time.Duration) time.Duration {
	d := interval << min(max(w.failures-1, 0), 3)                 // up to eight intervals
	return d + time.Duration((rand.Float64()-0.5)*0.4*float64(d)) //nolint:gosec // jitter is no secret
}

// sync brings what is loaded up to what the storage has: one listing, one read
// for each object that changed, and one new index. An object that cannot be
// read is complained about and tried again at the next look; the others are
// loaded. When many cannot be read it is the storage that fails.
func (m *Manager) sync(ctx context.Context, s *store.Store) error {
	select {
	case m.syncing <- struct{}{}: // Load and Run need not both read everything
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.syncing }()
	m.mu.Lock()
	before := maps.Clone(m.loaded)
	m.mu.Unlock()
	listCtx, cancel := context.WithTimeout(ctx, storageTimeout)
	objects, err := s.ListVersions(listCtx, certificateDir)
	cancel()
	if err != nil {
		return err
	}
	var changed []string
	for _, o := range objects {
		id, ok := certificateID(o.Key)
		if !ok {
			continue
		}
		if was := before[id]; was == nil || was.version != o.Version {
			changed = append(changed, id)
		}
		delete(before, id)
	}
	m.forget(before)
	return m.readAll(ctx, s, changed)
}

// readAll reads objects and serves what is new among them.
func (m *Manager) readAll(ctx context.Context, s *store.Store, ids []string) error {
	fresh := make([]bool, len(ids))
	var unread atomic.Int32
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxLoads)
	for n, id := range ids {
		group.Go(func() (err error) {
			if groupCtx.Err() != nil {
				return groupCtx.Err()
			}
			var l *stored
			l, err = m.fetch(groupCtx, s, id)
			if err != nil && (groupCtx.Err() != nil || unread.Add(1) > maxUnread) {
				return err
			}
			if err != nil {
				l = &stored{err: err}
			}
			_, fresh[n] = m.remember(ctx, id, l)
			return nil
		})
	}
	err := group.Wait()
	var news []string
	for n, id := range ids {
		if fresh[n] {
			news = append(news, id)
		}
	}
	m.serve(ctx, news...)
	return err
}

// read loads one object and serves it. A missing object is no error.
func (m *Manager) read(ctx context.Context, s *store.Store, id string) (*stored, error) {
	l, err := m.fetch(ctx, s, id)
	if err != nil {
		return nil, err
	}
	return m.keep(ctx, id, l), nil
}

// fetch gets one object from the storage.
func (m *Manager) fetch(ctx context.Context, s *store.Store, id string) (*stored, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	data, version, err := s.LoadVersion(ctx, certificateKey(id))
	if errors.Is(err, fs.ErrNotExist) {
		return &stored{}, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := decodeCertificate(id, data)
	if err != nil {
		err = fmt.Errorf("stored certificate %s: %w", certificateKey(id), err)
	}
	return &stored{version: version, cert: c, err: err}, nil
}

// keep remembers what was read, and serves it when it is something new.
func (m *Manager) keep(ctx context.Context, id string, l *stored) *stored {
	l, fresh := m.remember(ctx, id, l)
	if fresh {
		m.serve(ctx, id)
	}
	return l
}

// remember notes what was read and reports whether that is another certificate
// to serve. What cannot be used is remembered with its version, so that it is
// read and complained about once, and what it replaced goes on serving.
func (m *Manager) remember(ctx context.Context, id string, l *stored) (_ *stored, fresh bool) {
	m.mu.Lock()
	old := m.loaded[id]
	if old != nil && old.version == l.version && (old.err != nil) == (l.err != nil) {
		m.mu.Unlock()
		return old, false
	}
	fresh = l.cert != nil
	if !fresh && old != nil {
		l.cert = old.cert
	}
	m.loaded[id] = l
	m.mu.Unlock()
	if l.err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "stored certificate is not usable", slog.String("certificate", id), slog.Any("error", oneError(l.err)))
	}
	return l, fresh
}

// serve puts certificates that were just remembered into the index. It makes
// one for all of them: an index is built from everything that is loaded.
func (m *Manager) serve(ctx context.Context, ids ...string) {
	if len(ids) == 0 {
		return
	}
	now := time.Now()
	m.mu.Lock()
	m.rebuildLocked(now)
	st := m.state.Load()
	told := map[string]*certificate{}
	for _, id := range ids {
		l, b := m.loaded[id], st.bundles[id]
		if l == nil || b == nil {
			continue
		}
		told[id] = l.cert
		if j := m.jobs[id]; j != nil {
			j.loaded(b.needs(l, st.issuers[b.Issuer].config.Directory, now) == needNothing)
		}
	}
	m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(told)) {
		c := told[id]
		m.emit(ctx, id, StepLoaded, fmt.Sprintf("serial %s, valid until %s", c.serial(), c.leaf().NotAfter.UTC().Format(time.RFC3339)))
	}
}

// forget marks objects that a listing did not have any more. Their certificates
// go on serving while somebody may want them. One that changed since before the
// listing is left alone.
func (m *Manager) forget(gone map[string]*stored) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.state.Load()
	for id, was := range gone {
		switch {
		case m.loaded[id] != was:
		case st.bundles[id] == nil && (was.cert == nil || was.cert.expired(now)):
			delete(m.loaded, id)
		case was.version != "" || was.err != nil:
			m.loaded[id] = &stored{cert: was.cert}
		}
	}
}
