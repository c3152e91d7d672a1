package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"

	"golang.org/x/sync/errgroup"
)

// Load reads what the storage has, once, so that a process that is ready serves
// everything that existed before it. An error leaves what was loaded in place;
// Run goes on trying.
func (m *Manager) Load(ctx context.Context) error {
	v := m.vaultInUse()
	if v == nil {
		return nil
	}
	answered := make(chan struct{})
	var impatient sync.WaitGroup
	impatient.Go(func() { // a storage that says nothing is as good as down
		select {
		case <-answered:
		case <-time.After(snapshotPatience):
			m.loadSnapshot(ctx)
		}
	})
	err := m.sync(ctx, v)
	close(answered)
	impatient.Wait()
	m.tally.reached.Store(err == nil)
	if err != nil {
		m.loadSnapshot(ctx)
	}
	return err
}

// vaultInUse is the open storage, nil when the configuration obtains nothing.
func (m *Manager) vaultInUse() *vault.Vault {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vault
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

// Close closes the storage of a Manager that does not Run, as the command line
// has one. It waits for nothing; call it when all other calls have returned.
func (m *Manager) Close() { m.close() }

func (m *Manager) close() {
	v := m.vaultInUse()
	if v == nil {
		return
	}
	m.leave(v)
	if err := v.Store().Close(); err != nil {
		m.log.LogAttrs(context.Background(), slog.LevelWarn, "close the storage", slog.Any("error", err))
	}
}

// reconcile looks once and starts the work that it finds. It returns when to
// look next.
func (m *Manager) reconcile(ctx context.Context, w *weather, work *sync.WaitGroup) time.Duration {
	now := time.Now()
	m.expire(now)
	v := m.vaultInUse()
	defer m.tell(ctx, v, now, work) // after the orders have begun
	if v == nil || len(m.state.Load().bundles) == 0 {
		return m.soon(m.state.Load(), now)
	}
	err := m.sync(ctx, v)
	st := m.state.Load() // what is stored may have changed the plan
	if err == nil {
		err = m.probe(ctx, v.Store(), st, w)
	}
	if ctx.Err() == nil {
		m.tally.reached.Store(err == nil)
	}
	if err != nil {
		if ctx.Err() == nil {
			w.down(ctx, m.log, v.Store(), err)
		}
		return w.pause(m.options.Interval)
	}
	w.up(ctx, m.log, v.Store())
	m.beat(ctx, v)
	if !st.cfg.ServeOnly {
		work.Go(func() { m.adopt(ctx, v) }) // DNS providers take their time
		m.settleForeign(ctx, v, st, work)
		if w.looks++; w.looks%janitorRound == janitorRound/2 {
			work.Go(func() { m.tidy(ctx, v, st) })
		}
	}
	for _, b := range m.turns(st) {
		m.consider(ctx, v, st, b, now, work)
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
	if st.cfg.ServeOnly {
		return false
	}
	for _, b := range st.bundles {
		if m.needLocked(st, b, time.Now()) != needNothing {
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
	for id, b := range st.bundles {
		if j := m.jobs[id]; j != nil {
			earlier(j.next)
		}
		earlier(m.journals[id].next(now))
		if l := m.loaded[id]; l != nil && l.cert != nil {
			earlier(renewAt(l.cert))
			earlier(st.askAt(b, l))
		} else if c := m.lentLocked(st, b, now); c != nil {
			earlier(renewAt(c))
		}
	}
	return wait
}

// weather is whether the storage answers, for one warning at each change.
type weather struct {
	failures int  // in a row
	probed   bool // the storage can be trusted
	looks    int  // so far
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
func (m *Manager) sync(ctx context.Context, v *vault.Vault) error {
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
	objects, err := v.Store().ListVersions(listCtx, path.Dir(vault.Certificates.Dir()))
	cancel()
	if err != nil {
		return err
	}
	versions := map[vault.Kind]map[string]store.Version{vault.Certificates: {}, vault.Orders: {}, vault.Replicas: {}}
	for _, o := range objects {
		if kind, id, ok := vault.Parse(o.Key); ok && versions[kind] != nil {
			versions[kind][id] = o.Version
		}
	}
	var changed []string
	for id, version := range versions[vault.Certificates] {
		if was := before[id]; was == nil || was.version != version {
			changed = append(changed, id)
		}
		delete(before, id)
	}
	slices.Sort(changed)
	m.forget(before)
	err = errors.Join(m.readAll(ctx, v, changed), m.readJournals(ctx, v, versions[vault.Orders]), m.readPeers(ctx, v, versions[vault.Replicas]))
	m.replan()
	m.snap(ctx, err == nil)
	return err
}

// readJournals reads what replicas wrote down about their orders, if it
// changed, and forgets what is gone.
func (m *Manager) readJournals(ctx context.Context, v *vault.Vault, listed map[string]store.Version) error {
	var changed []string
	m.mu.Lock()
	for id, j := range m.journals {
		if _, there := listed[id]; !there && j.version != "" {
			delete(m.journals, id)
		}
	}
	for id, version := range listed {
		if j := m.journals[id]; j == nil || j.version != version {
			changed = append(changed, id)
		}
	}
	m.mu.Unlock()
	var unread atomic.Int32
	return each(ctx, changed, func(ctx context.Context, id string) error {
		j, err := readJournal(ctx, v, id)
		switch {
		case err == nil, untouchable(err):
		case ctx.Err() != nil || unread.Add(1) > maxUnread:
			return err
		default: // one that cannot be read is no reason to stop
			m.log.LogAttrs(ctx, slog.LevelWarn, "journal of an order cannot be read, trying again", slog.String("certificate", id), slog.Any("error", oneError(err)))
			return nil
		}
		if err != nil {
			j = &journal{version: listed[id], err: err}
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.journals[id], m.unsettled = j, true
		return nil
	})
}

// readPeers reads the heartbeats that changed.
func (m *Manager) readPeers(ctx context.Context, v *vault.Vault, listed map[string]store.Version) error {
	var changed []string
	m.mu.Lock()
	for id, p := range m.fleet.peers {
		if _, there := listed[id]; !there {
			delete(m.fleet.peers, id)
		} else if p.version == listed[id] {
			delete(listed, id)
		}
	}
	for id := range listed {
		if id != m.fleet.id && len(changed) < maxPeers {
			changed = append(changed, id)
		}
	}
	m.mu.Unlock()
	return each(ctx, changed, func(ctx context.Context, id string) error {
		ctx, cancel := context.WithTimeout(ctx, storageTimeout)
		defer cancel()
		r, version, err := vault.Load[vault.Replica](ctx, v, id)
		switch {
		case err == nil:
			m.mu.Lock()
			defer m.mu.Unlock()
			m.fleet.heard(id, version, *r)
		case ctx.Err() != nil:
			return ctx.Err()
		}
		return nil // one that cannot be read is no reason to stop
	})
}

// each does f for all ids, some at once.
func each(ctx context.Context, ids []string, f func(context.Context, string) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLoads)
	for _, id := range ids {
		group.Go(func() error { return f(ctx, id) })
	}
	return group.Wait()
}

// readAll reads objects and serves what is new among them.
func (m *Manager) readAll(ctx context.Context, v *vault.Vault, ids []string) error {
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
			l, err = m.fetch(groupCtx, v, id)
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
func (m *Manager) read(ctx context.Context, v *vault.Vault, id string) (*stored, error) {
	l, err := m.fetch(ctx, v, id)
	if err != nil {
		return nil, err
	}
	return m.keep(ctx, id, l), nil
}

// fetch gets one object from the storage.
func (m *Manager) fetch(ctx context.Context, v *vault.Vault, id string) (*stored, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	key := vault.Certificates.Key(id)
	raw, version, err := v.Store().LoadVersion(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return &stored{}, nil
	}
	if err != nil {
		return nil, err
	}
	o, err := vault.Decode[vault.Certificate](v, id, raw)
	if err != nil {
		return &stored{version: version, err: err}, nil
	}
	c, err := newStored(o)
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
	fresh = l.cert != nil && (old == nil || old.cert == nil || old.cert.serial() != l.cert.serial())
	if l.cert == nil && old != nil {
		l.cert = old.cert
	}
	m.loaded[id] = l
	if fresh {
		if old != nil && old.cert != nil {
			m.retainLocked(old.cert, l.cert, time.Now())
		}
		m.unsettled = true
		m.fleet.loaded(id)
	}
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
			j.loaded(m.needLocked(st, b, now) == needNothing)
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

// settleForeign ends attempts of certificates that no plan wants any more.
func (m *Manager) settleForeign(ctx context.Context, v *vault.Vault, st *state, work *sync.WaitGroup) {
	now := time.Now()
	m.mu.Lock()
	var ids []string
	for id, jr := range m.journals {
		if !jr.untidy() || st.bundles[id] != nil {
			continue
		}
		if j := m.jobLocked(id); !j.busy && !now.Before(j.sweepAt) && m.beginChoreLocked(j) {
			j.sweepAt = now.Add(sweepPause)
			ids = append(ids, id)
		}
	}
	m.mu.Unlock()
	for _, id := range ids {
		work.Go(func() { m.chore(ctx, v, st, Bundle{ID: id}, doSweep) })
	}
}
