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
	contestPause = 10 * time.Minute // see contested
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
}

// consider starts the work on bundle b if it needs some and may have some.
func (m *Manager) consider(ctx context.Context, s *store.Store, st *state, b *Bundle, now time.Time, work *sync.WaitGroup) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Load() != st {
		return // Commit has asked for another look
	}
	l, j := m.loaded[b.ID], m.jobLocked(b.ID)
	why := b.needs(l, st.issuers[b.Issuer].config.Directory, now)
	m.graceLocked(ctx, b, l, j, now)
	switch {
	case j.busy:
		return
	case why == needNothing:
		*j = job{}
		return
	case now.Before(j.next):
		return
	case l != nil && errors.Is(l.err, errNewer):
		j.err = l.err
		return
	}
	if until, owner := m.contested(why, l, now); now.Before(until) {
		j.err = fmt.Errorf("%s, but %s obtained it only just (do the configurations of the replicas differ?)", why, owner)
		j.next = until
		return
	}
	select {
	case m.slots <- struct{}{}:
	default:
		return // whoever frees a slot looks again
	}
	j.busy = true
	work.Go(func() {
		m.work(ctx, s, st, *b)
		m.look()
	})
}

func (m *Manager) jobLocked(id string) *job {
	j := m.jobs[id]
	if j == nil {
		j = &job{}
		m.jobs[id] = j
	}
	return j
}

// graceLocked warns once about a certificate that is missing for longer than an
// order usually takes.
func (m *Manager) graceLocked(ctx context.Context, b *Bundle, l *stored, j *job, now time.Time) {
	switch {
	case l != nil && l.cert != nil:
		j.since, j.warned = time.Time{}, false
	case j.since.IsZero():
		j.since = now
	case !j.warned && now.Sub(j.since) >= missingGrace:
		j.warned = true
		m.log.LogAttrs(ctx, slog.LevelWarn, "certificate is still missing, its names are refused",
			slog.String("certificate", b.ID), slog.Any("names", b.Names), slog.Duration("since", now.Sub(j.since)))
	}
}

// contested is until when a certificate that is not what this process wants is
// left to the one that obtained it. Replicas whose configurations differ would
// otherwise replace each other's certificates without end, and use up the CA's
// limit on duplicates. Who obtained it may change its mind at any time.
func (m *Manager) contested(why need, l *stored, now time.Time) (until time.Time, owner string) {
	switch why {
	case needNames, needIssuer, needKey:
		o := l.cert.object
		if o.Owner == m.options.Owner {
			return time.Time{}, ""
		}
		age := max(now.Sub(o.ObtainedAt), 0) // clocks differ
		return now.Add(contestPause - age), o.Owner
	case needNothing, needMissing, needRenewal:
	}
	return time.Time{}, ""
}

// work brings one bundle in order, and notes how that went. It holds a slot.
func (m *Manager) work(ctx context.Context, s *store.Store, st *state, b Bundle) {
	var retryAfter atomic.Int64
	ctx, cancel := context.WithTimeoutCause(context.WithValue(ctx, retryAfterKey{}, &retryAfter), attemptTimeout, errTooLong)
	defer cancel()
	slot := &slot{m.slots, true}
	err := m.attempt(ctx, s, st, b, slot)
	slot.free()
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errTooLong) {
		err = nil // edge is stopping
	} else if err != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		err = fmt.Errorf("%w: %s", errTooLong, oneLine(err.Error()))
	}
	m.mu.Lock()
	j := m.jobs[b.ID]
	j.busy, j.ordering, j.waiting = false, false, nil
	if err == nil {
		*j = job{since: j.since, warned: j.warned}
		m.mu.Unlock()
		return
	}
	wait := time.Duration(0)
	if isBusy(err) {
		wait = time.Duration(retryAfter.Load())
	}
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
	ctx, cancel := lease.Context(ctx)
	defer cancel()

	l, err := m.read(ctx, s, b.ID)
	if err != nil {
		return err
	}
	i := st.issuers[b.Issuer]
	why := b.needs(l, i.config.Directory, time.Now())
	if until, _ := m.contested(why, l, time.Now()); why == needNothing || errors.Is(l.err, errNewer) || time.Now().Before(until) {
		return nil // the next look says so
	}
	m.mark(b.ID, func(j *job) { j.ordering = true })
	o, err := m.obtain(ctx, s, i, b)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, store.ErrLeaseLost) {
			return cause
		}
		return err
	}
	return m.commit(ctx, s, o, l.version)
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
		if waitCtx.Err() != nil && ctx.Err() == nil {
			return nil, nil //nolint:nilnil // nothing to do any more
		}
		return nil, err
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
	version, err := s.Swap(ctx, certificateKey(o.ID), data, old)
	if errors.Is(err, store.ErrConflict) {
		m.log.LogAttrs(ctx, slog.LevelWarn, "another replica stored a certificate meanwhile, using theirs", slog.String("certificate", o.ID))
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

// release gives a lease up, also when ctx has ended.
func release(ctx context.Context, lease *store.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	_ = lease.Release(ctx) // it lapses otherwise
}
