package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

const (
	missingGrace = time.Minute      // an order takes seconds; DNS may take a minute
	contestPause = 10 * time.Minute // see contest; doubled each time
	maxContests  = 7                // most doublings: 21 hours
	waitAgain    = 2 * time.Second  // after a wait for another replica that the storage cut short
	maxSwapPause = 16 * time.Second // between two attempts to store a certificate; half a minute in all
	sweepPause   = time.Minute      // between two attempts to remove what an order left; the first is made at once
	maxRounds    = 4                // orders of one attempt: each leaves out the names that the one before was refused
	maxOrphans   = 64               // sets of challenge records that are looked after
)

// job is the work on one bundle, guarded by Manager.mu.
type job struct {
	busy     bool      // a goroutine works on it
	ordering bool      // and has the lease
	waiting  func()    // ends the wait for another's lease; nil when there is none
	failures int       // in a row
	next     time.Time // of the next attempt; zero is now
	patient  bool      // the CA said when
	urgent   bool      // the operator asked: what the journal says about the next attempt does not count
	err      error     // of the last attempt
	since    time.Time // when there was first nothing to serve; zero when there is
	warned   bool      // about that
	settled  bool      // the storage has had what this plan wants
	sweepAt  time.Time // when to try again to remove what an order left
	contests int       // how often another replica undid that
	yields   bool      // to that replica until next
}

// rest ends the work without a failure.
func (j *job) rest() {
	*j = job{settled: j.settled, contests: j.contests, since: j.since, warned: j.warned, sweepAt: j.sweepAt}
}

// loaded takes note of a certificate that serves from now on. Who waits for
// another replica's work has it.
func (j *job) loaded(enough bool) {
	j.ordering = false
	if enough {
		j.err, j.failures = nil, 0
	}
	if j.waiting != nil {
		j.waiting()
	}
}

// A task is what a look finds to do for a bundle.
type task int

const (
	doNothing task = iota
	doOrder        // obtain a certificate; holds a slot
	doSweep        // remove what an order left that nobody works on any more
	doAsk          // ask the CA for renewal information
)

// consider starts the work on bundle b if it needs some and may have some.
func (m *Manager) consider(ctx context.Context, v *vault.Vault, st *state, b *Bundle, now time.Time, work *sync.WaitGroup) {
	what, warning := m.judge(st, b, now)
	if warning != "" {
		m.log.LogAttrs(ctx, slog.LevelWarn, "certificate needs attention", slog.String("certificate", b.ID), slog.String("reason", warning))
	}
	switch what {
	case doOrder:
		work.Go(func() {
			m.work(ctx, v, st, *b)
			m.look()
		})
	case doSweep, doAsk:
		work.Go(func() { m.chore(ctx, v, st, *b, what) })
	case doNothing:
	}
}

// judge decides what to do for b now; then its job is busy, and a slot is taken
// for an order. A warning is given once for each reason.
func (m *Manager) judge(st *state, b *Bundle, now time.Time) (what task, warning string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Load() != st {
		return doNothing, "" // Commit has asked for another look
	}
	l, j, jr := m.loaded[b.ID], m.jobLocked(b.ID), m.journals[b.ID]
	why := m.needLocked(st, b, now)
	warning = j.overdue(l, now)
	switch {
	case j.busy, st.cfg.ServeOnly:
		return doNothing, warning
	case why == needNothing:
		return m.choreLocked(st, b, now), ""
	case j.waits(jr, l, now):
		return doNothing, warning
	}
	if j.settled && why != needMissing && why != needRenewal && why != needReplaced {
		return doNothing, j.contest(why, l, now)
	}
	select {
	case m.slots <- struct{}{}:
		j.busy, j.yields = true, false
		return doOrder, warning
	default:
		return doNothing, warning // whoever frees a slot looks again
	}
}

// choreLocked is what there is to do for a bundle that needs no order.
func (m *Manager) choreLocked(st *state, b *Bundle, now time.Time) task {
	l, j, jr := m.loaded[b.ID], m.jobs[b.ID], m.journals[b.ID]
	j.rest()
	j.settled = st.needs(b, l, nil, now) == needNothing // with the names that are in quarantine
	what := doNothing
	if at := st.askAt(b, l); !at.IsZero() && !now.Before(at) && !now.Before(j.next) {
		what = doAsk
	}
	if jr.untidy() && !now.Before(j.sweepAt) {
		what = doSweep
	}
	if what == doNothing || !m.beginChoreLocked(j) {
		return doNothing
	}
	if what == doSweep {
		j.sweepAt = now.Add(sweepPause)
	}
	return what
}

// beginChoreLocked takes one of the few places for chores. Where there is none
// the chore waits for a later look: it is urgent nowhere, and after a restart
// there may be one for each of ten thousand certificates.
func (m *Manager) beginChoreLocked(j *job) bool {
	select {
	case m.chores <- struct{}{}:
		j.busy = true
		return true
	default:
		return false
	}
}

// chore does what takes no slot for orders, and gives its own place back. It is
// tried again at a later look.
func (m *Manager) chore(ctx context.Context, v *vault.Vault, st *state, b Bundle, what task) {
	defer func() { <-m.chores }()
	var err error
	if what == doAsk {
		err = m.ask(ctx, v, st, &b)
	} else {
		err = m.sweep(ctx, v, st, &b)
	}
	if err != nil && ctx.Err() == nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "certificate", slog.String("certificate", b.ID), slog.Any("error", oneError(err)))
	}
	m.mark(b.ID, func(j *job) { j.busy = false })
}

// sweep ends an attempt that stands open in the journal although nothing is
// needed, when its replica has died: its challenge records are removed.
func (m *Manager) sweep(ctx context.Context, v *vault.Vault, st *state, b *Bundle) error {
	lease, ok, err := v.Store().TryAcquire(ctx, leaseOf(b.ID))
	if err != nil || !ok {
		m.mark(b.ID, func(j *job) { j.sweepAt = time.Time{} }) // nothing was tried
		return err                                             // the replica is alive, or its lease has not lapsed
	}
	defer giveUp(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	l, err := m.read(ctx, v, b.ID)
	if err != nil {
		return err
	}
	j, err := readJournal(ctx, v, b.ID)
	if err != nil || !j.untidy() {
		return err
	}
	if planned := st.bundles[b.ID]; planned != nil && j.open() && st.needs(planned, l, j, time.Now()) != needNothing {
		return nil // to be resumed
	}
	if j.open() {
		if !j.done(l) {
			m.refund(ctx, v, j.record.Attempt)
		}
		m.retract(ctx, v, j.record.Attempt.Tokens)
		j.settle(j.record.Attempt.Names, time.Now())
	}
	return m.abandon(ctx, v, st, j)
}

// waits reports whether the next attempt has to wait: for its time here, for the
// time that another replica was told, or for an edge that can read what is stored.
func (j *job) waits(jr *journal, l *stored, now time.Time) bool {
	switch {
	case now.Before(j.next):
		return true
	case jr != nil && !j.urgent && now.Before(jr.record.Next):
		j.next, j.failures, j.err = jr.record.Next, jr.record.Failures, errors.New(jr.record.Error)
		return true
	case l != nil && untouchable(l.err): // said when it was read
		j.err = l.err
		return true
	default:
		return false
	}
}

func (m *Manager) jobLocked(id string) *job {
	j := m.jobs[id]
	if j == nil {
		j = &job{}
		m.jobs[id] = j
	}
	return j
}

// overdue is a warning, once, about a certificate that is missing for longer
// than an order usually takes.
func (j *job) overdue(l *stored, now time.Time) string {
	switch {
	case l != nil && l.cert != nil:
		j.since, j.warned = time.Time{}, false
	case j.since.IsZero():
		j.since = now
	case !j.warned && now.Sub(j.since) >= missingGrace:
		j.warned = true
		return fmt.Sprintf("still missing after %s, its names are refused", now.Sub(j.since).Round(time.Second))
	}
	return ""
}

// contest postpones the next attempt because another replica replaced a
// certificate that was as this one wants it. In a rolling update the other one
// is right and this process about to end; replicas whose configurations differ
// for long would otherwise order in turns without end.
func (j *job) contest(why need, l *stored, now time.Time) (warning string) {
	pause := contestPause << min(j.contests, maxContests)
	j.settled, j.yields, j.contests, j.next = false, true, j.contests+1, now.Add(pause)
	j.err = fmt.Errorf("%s: %s replaced it, leaving it alone for %s (do the configurations of the replicas differ?)", why, l.cert.object.Owner, pause)
	return j.err.Error()
}

// work brings one bundle in order, and notes how that went. It holds a slot.
func (m *Manager) work(ctx context.Context, v *vault.Vault, st *state, b Bundle) {
	slot := &slot{m.slots, true}
	err := m.attempt(ctx, v, st, b, slot, false)
	slot.free()
	if ctx.Err() != nil {
		err = nil // edge is stopping
	}
	m.mu.Lock()
	j := m.jobs[b.ID]
	j.busy, j.ordering, j.waiting, j.urgent = false, false, nil, false
	if err == nil {
		j.rest()
		m.mu.Unlock()
		return
	}
	wait := patienceFor(err)
	j.failures++
	j.err, j.patient = oneError(err), wait > 0
	j.next = time.Now().Add(max(m.backoff(j.failures), wait))
	if m.state.Load() != st && !j.patient {
		j.next = time.Time{} // the cause may be repaired: Commit promises another attempt
	}
	detail := fmt.Sprintf("%s; attempt %d, next at %s", j.err, j.failures, time.Now().Add(max(time.Until(j.next), 0)).UTC().Format(time.RFC3339))
	m.mu.Unlock()
	m.emit(ctx, b.ID, StepFailed, detail)
}

var errTooLong = fmt.Errorf("gave up after %s", attemptTimeout)

// slot is the right to place an order. It is given back while waiting.
type slot struct {
	pool chan struct{}
	held bool
}

func (s *slot) free() {
	if s.held {
		<-s.pool
		s.held = false
	}
}

func (s *slot) take(ctx context.Context) error {
	select {
	case s.pool <- struct{}{}:
		s.held = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enough makes sure that what was obtained ends the need for it. A CA that
// issues certificates which are due at once would be asked without a pause.
func (m *Manager) enough(st *state, b Bundle, j *journal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if why := st.needs(&b, m.loaded[b.ID], j, time.Now()); why != needNothing {
		return fmt.Errorf("the new certificate is served, but %s (is the lifetime that the CA gives too short?)", why)
	}
	return nil
}

// lease takes the lease of a bundle. While another holds it, it waits without a
// slot; it returns nil when meanwhile the certificate was loaded, or another
// configuration is in force.
func (m *Manager) lease(ctx context.Context, s *store.Store, id string, slot *slot) (*store.Lease, error) {
	name := leaseOf(id)
	lease, ok, err := s.TryAcquire(ctx, name)
	if ok || err != nil {
		return lease, err
	}
	slot.free()
	m.look() // a slot is free
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mark(id, func(j *job) { j.waiting = cancel })
	m.emit(ctx, id, StepWaiting, "another replica is at work")
	lease, err = s.Acquire(waitCtx, name)
	m.mark(id, func(j *job) { j.waiting = nil })
	if err != nil {
		if waitCtx.Err() == nil {
			m.log.LogAttrs(ctx, slog.LevelWarn, "waiting for another replica was cut short, looking again",
				slog.String("certificate", id), slog.Any("error", oneError(err)))
			select {
			case <-waitCtx.Done():
			case <-time.After(waitAgain):
			}
		}
		return nil, nil //nolint:nilnil // nothing to do any more, or the next look decides again
	}
	if err := slot.take(ctx); err != nil {
		giveUp(ctx, lease)
		return nil, err
	}
	return lease, nil
}

func (m *Manager) mark(id string, f func(*job)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m.jobs[id])
}

// commit stores o in place of version old and serves it. When somebody else
// stored a certificate meanwhile, theirs is served.
func (m *Manager) commit(ctx context.Context, v *vault.Vault, o *vault.Certificate, old store.Version) error {
	c, err := newStored(o)
	if err != nil {
		return err
	}
	version, err := m.swap(ctx, v, o, old)
	if errors.Is(err, store.ErrConflict) {
		m.log.LogAttrs(ctx, slog.LevelWarn, "another replica stored a certificate meanwhile, using what is there", slog.String("certificate", o.ID))
		_, err = m.read(ctx, v, o.ID)
		return err
	}
	if err != nil {
		return fmt.Errorf("store the certificate: %w", err)
	}
	m.emit(ctx, o.ID, StepStored, fmt.Sprintf("%s in %s", vault.Certificates.Key(o.ID), v.Store().URL()))
	m.keep(ctx, o.ID, &stored{version: version, cert: c})
	return nil
}

// swap is vault.Save with patience: what it stores has cost an order. It writes
// even when ctx has just ended; the version keeps that from doing harm.
func (m *Manager) swap(ctx context.Context, v *vault.Vault, o *vault.Certificate, old store.Version) (store.Version, error) {
	for pause := time.Second; ; pause *= 2 {
		writeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
		version, err := vault.Save(writeCtx, v, o.ID, o, old)
		cancel()
		if err == nil || errors.Is(err, store.ErrConflict) || pause > maxSwapPause {
			return version, err
		}
		m.log.LogAttrs(ctx, slog.LevelWarn, "certificate could not be stored, trying again",
			slog.String("certificate", o.ID), slog.Duration("in", pause), slog.Any("error", oneError(err)))
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(pause):
		}
	}
}

// giveUp releases a lease, also when ctx has ended.
func giveUp(ctx context.Context, lease *store.Lease) {
	_ = lease.Release(ctx) // it lapses otherwise
}

// leaseOf is the lease under which bundle id is worked on.
func leaseOf(id string) string { return vault.Certificates.Lease(id) }
