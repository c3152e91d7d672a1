package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"edge/tlsmgr/store"
)

const (
	missingGrace = time.Minute      // an order takes seconds; DNS may take a minute
	contestPause = 10 * time.Minute // see contest; doubled each time
	maxContests  = 7                // most doublings: 21 hours
	waitAgain    = 2 * time.Second  // after a wait for another replica that the storage cut short
	maxSwapPause = 16 * time.Second // between two attempts to store a certificate; half a minute in all
)

// job is the work on one bundle, guarded by Manager.mu.
type job struct {
	busy     bool      // a goroutine works on it
	ordering bool      // and has the lease
	waiting  func()    // ends the wait for another's lease; nil when there is none
	failures int       // in a row
	next     time.Time // of the next attempt; zero is now
	patient  bool      // the CA said when
	err      error     // of the last attempt
	since    time.Time // when there was first nothing to serve; zero when there is
	warned   bool      // about that
	settled  bool      // the storage has had what this plan wants
	contests int       // how often another replica undid that
	yields   bool      // to that replica until next
}

// rest ends the work without a failure.
func (j *job) rest() {
	*j = job{settled: j.settled, contests: j.contests, since: j.since, warned: j.warned}
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

// consider starts the work on bundle b if it needs some and may have some.
func (m *Manager) consider(ctx context.Context, s *store.Store, st *state, b *Bundle, now time.Time, work *sync.WaitGroup) {
	begin, warning := m.judge(st, b, now)
	if warning != "" {
		m.log.LogAttrs(ctx, slog.LevelWarn, "certificate needs attention", slog.String("certificate", b.ID), slog.String("reason", warning))
	}
	if !begin {
		return
	}
	work.Go(func() {
		m.work(ctx, s, st, *b)
		m.look()
	})
}

// judge decides whether to work on b now; then its job is busy and a slot is
// taken. A warning is given once for each reason.
func (m *Manager) judge(st *state, b *Bundle, now time.Time) (begin bool, warning string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Load() != st {
		return false, "" // Commit has asked for another look
	}
	l, j := m.loaded[b.ID], m.jobLocked(b.ID)
	why := b.needs(l, st.issuers[b.Issuer].config.Directory, now)
	warning = j.overdue(l, now)
	switch {
	case j.busy:
		return false, warning
	case why == needNothing:
		j.rest()
		j.settled = true
		return false, ""
	case now.Before(j.next):
		return false, warning
	case l != nil && errors.Is(l.err, errNewer): // said when it was read
		j.err = l.err
		return false, warning
	}
	if j.settled && why != needMissing && why != needRenewal {
		return false, j.contest(why, l, now)
	}
	select {
	case m.slots <- struct{}{}:
		j.busy, j.yields = true, false
		return true, warning
	default:
		return false, warning // whoever frees a slot looks again
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
func (m *Manager) work(ctx context.Context, s *store.Store, st *state, b Bundle) {
	var retryAfter atomic.Int64 // of the CA's last answer
	ctx = context.WithValue(ctx, retryAfterKey{}, &retryAfter)
	slot := &slot{m.slots, true}
	err := m.attempt(ctx, s, st, b, slot)
	slot.free()
	if ctx.Err() != nil {
		err = nil // edge is stopping
	}
	m.mu.Lock()
	j := m.jobs[b.ID]
	j.busy, j.ordering, j.waiting = false, false, nil
	if err == nil {
		j.rest()
		m.mu.Unlock()
		return
	}
	wait := time.Duration(retryAfter.Load())
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

// attempt takes the lease of b, looks again, and orders if that is still
// needed. The lease makes it one order among all replicas; Swap against the
// version read under the lease makes it safe when a lease was lost.
func (m *Manager) attempt(ctx context.Context, s *store.Store, st *state, b Bundle, slot *slot) error {
	lease, err := m.lease(ctx, s, b.ID, slot)
	if lease == nil || err != nil {
		return err
	}
	defer release(ctx, lease)
	process := ctx
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeoutCause(ctx, attemptTimeout, errTooLong)
	defer cancel()

	l, err := m.read(ctx, s, b.ID)
	if err != nil {
		return err
	}
	i := st.issuers[b.Issuer]
	if errors.Is(l.err, errNewer) || b.needs(l, i.config.Directory, time.Now()) == needNothing {
		return nil
	}
	m.mark(b.ID, func(j *job) { j.ordering = true })
	o, err := m.obtain(ctx, s, i, b)
	if err != nil {
		if ctx.Err() != nil { // say why, and at what
			return fmt.Errorf("%w: %s", context.Cause(ctx), oneLine(err.Error()))
		}
		return err
	}
	// What is issued is worth its patience also when the lease is lost meanwhile,
	// as in an outage of the storage: the version keeps it from doing harm.
	if err := m.commit(process, s, o, l.version); err != nil {
		return err
	}
	return m.enough(b, i.config.Directory)
}

// enough makes sure that what was obtained ends the need for it. A CA that
// issues certificates which are due at once would be asked without a pause.
func (m *Manager) enough(b Bundle, directory string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if why := b.needs(m.loaded[b.ID], directory, time.Now()); why != needNothing {
		return fmt.Errorf("the new certificate is served, but %s (is the lifetime that the CA gives too short?)", why)
	}
	return nil
}

// lease takes the lease of a bundle. While another holds it, it waits without a
// slot; it returns nil when meanwhile the certificate was loaded, or another
// configuration is in force.
func (m *Manager) lease(ctx context.Context, s *store.Store, id string, slot *slot) (*store.Lease, error) {
	name := "certificate/" + id
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
		release(ctx, lease)
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
func (m *Manager) commit(ctx context.Context, s *store.Store, o *object, old store.Version) error {
	c, err := o.certificate()
	if err != nil {
		return err
	}
	data, err := encodeObject(o)
	if err != nil {
		return err
	}
	version, err := m.swap(ctx, s, o.ID, data, old)
	if errors.Is(err, store.ErrConflict) {
		m.log.LogAttrs(ctx, slog.LevelWarn, "another replica stored a certificate meanwhile, using what is there", slog.String("certificate", o.ID))
		_, err = m.read(ctx, s, o.ID)
		return err
	}
	if err != nil {
		return fmt.Errorf("store the certificate: %w", err)
	}
	m.emit(ctx, o.ID, StepStored, fmt.Sprintf("%s in %s", certificateKey(o.ID), s.URL()))
	m.keep(ctx, o.ID, &stored{version: version, cert: c})
	return nil
}

// swap is Store.Swap with patience: what it stores has cost an order. It writes
// even when ctx has just ended; the version keeps that from doing harm.
func (m *Manager) swap(ctx context.Context, s *store.Store, id string, data []byte, old store.Version) (store.Version, error) {
	for pause := time.Second; ; pause *= 2 {
		writeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
		version, err := s.Swap(writeCtx, certificateKey(id), data, old)
		cancel()
		if err == nil || errors.Is(err, store.ErrConflict) || pause > maxSwapPause {
			return version, err
		}
		m.log.LogAttrs(ctx, slog.LevelWarn, "certificate could not be stored, trying again",
			slog.String("certificate", id), slog.Duration("in", pause), slog.Any("error", oneError(err)))
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(pause):
		}
	}
}

// release gives a lease up, also when ctx has ended.
func release(ctx context.Context, lease *store.Lease) {
	_ = lease.Release(ctx) // it lapses otherwise
}
