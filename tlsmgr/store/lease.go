package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Lease times. All replicas poll and beat by the clock they have; no two
// clocks are ever compared.
const (
	// DefaultLeaseTTL is how long a lease outlives its last heartbeat.
	DefaultLeaseTTL = 30 * time.Second

	minLeaseTTL    = 50 * time.Millisecond
	maxLeaseTTL    = 10 * time.Minute // also the most that a found record may ask us to wait
	minPoll        = 10 * time.Millisecond
	releaseTimeout = 10 * time.Second
	writeAttempts  = 3 // of one heartbeat that meets late writes of its own
)

var (
	errReleased = errors.New("lease was released")
	errTaken    = errors.New("it has another holder now")
)

// Lease is a name that one holder at a time has among all processes that share
// the storage. While it is held a goroutine writes a heartbeat three times per
// TTL, and tries more often while they fail; Release ends it. A Lease may be
// used concurrently.
type Lease struct {
	store    *Store
	name     string
	key      string
	ttl      time.Duration
	stop     context.CancelFunc // of the keeper
	done     chan struct{}      // the keeper has ended
	renewals chan chan<- error  // heartbeats asked for by Renew
	release  sync.Once

	// Owned by the keeper, and by Release once the keeper has ended.
	record  record
	version Version
	taken   bool // somebody else's record was seen
	failing bool // the last heartbeat failed, and the log says so

	mu       sync.Mutex
	renewed  time.Time // when the last heartbeat that arrived was sent
	err      error     // why it is no longer held
	watchers map[int]context.CancelCauseFunc
	next     int
}

// Acquire waits until the lease called name is free or its holder has been
// silent for 1.25 TTL, and takes it. It returns early when ctx ends or the
// storage fails. Waiters within one Store queue, and only the first of them
// polls the storage, twice a second at the default TTL.
//
// When ctx ends at the very moment of taking, the lease may stay taken without
// a holder until this Store takes it again or it lapses.
func (s *Store) Acquire(ctx context.Context, name string) (*Lease, error) {
	l, _, err := s.acquire(ctx, name, true)
	return l, err
}

// TryAcquire takes the lease called name if that is possible right now. The
// lease of a holder that died is taken once calls of Acquire or TryAcquire in
// this process have seen it unchanged for 1.25 TTL.
func (s *Store) TryAcquire(ctx context.Context, name string) (*Lease, bool, error) {
	return s.acquire(ctx, name, false)
}

func (s *Store) acquire(ctx context.Context, name string, wait bool) (*Lease, bool, error) {
	if name == "" {
		return nil, false, fmt.Errorf("acquire lease: %w: empty name", ErrInvalidKey)
	}
	if s.isClosed() {
		return nil, false, fmt.Errorf("acquire lease %q: %w", name, ErrClosed)
	}
	key := leaseKey(name)
	first, err := s.enqueue(ctx, key, wait)
	if err != nil {
		return nil, false, fmt.Errorf("acquire lease %q: %w", name, err)
	}
	if !first {
		return nil, false, nil
	}
	l, err := s.contend(ctx, name, key, wait)
	if l == nil {
		s.dequeue(key)
	}
	if err != nil {
		return nil, false, fmt.Errorf("acquire lease %q: %w", name, err)
	}
	return l, l != nil, nil
}

// contend competes with other processes. nil, nil is "not now".
func (s *Store) contend(ctx context.Context, name, key string, wait bool) (*Lease, error) {
	for {
		found, version, err := s.readLease(ctx, key)
		if err != nil {
			return nil, err
		}
		idle := s.idle(key, version)
		free := found.State == stateFree || s.isOrphan(key, found)
		if limit := found.ttl(s.ttl); free || idle > limit+limit/4 {
			l, err := s.claim(ctx, name, key, found, version)
			if err != nil {
				return nil, err
			}
			if l != nil {
				if !free {
					s.log.LogAttrs(ctx, slog.LevelWarn, "took over a lease without heartbeat",
						slog.String("lease", name), slog.String("previous_owner", found.Owner), slog.Duration("silent", idle))
				}
				return l, nil
			}
		}
		if !wait {
			return nil, nil
		}
		if err := s.pause(ctx); err != nil {
			return nil, err
		}
	}
}

// claim tries to replace the record found. nil, nil is "somebody was faster".
func (s *Store) claim(ctx context.Context, name, key string, found record, version Version) (*Lease, error) {
	mine := newRecord(name, s.owner, s.ttl, found.Fence+1)
	sent := time.Now()
	v, err := swap(ctx, s.leases, key, mine.encode(), version)
	if err != nil {
		// A reply that got lost leaves our own record there.
		now, nowVersion, readErr := s.readLease(ctx, key)
		switch {
		case readErr == nil && now.Nonce == mine.Nonce:
			v = nowVersion
		case errors.Is(err, ErrConflict):
			return nil, nil
		default:
			s.orphan(key, mine) // it may have arrived, or still arrive
			return nil, err
		}
	}
	return s.hold(ctx, name, key, mine, v, sent)
}

// hold starts the keeper. It outlives ctx; Release and Close end it.
func (s *Store) hold(ctx context.Context, name, key string, r record, v Version, sent time.Time) (*Lease, error) {
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &Lease{
		store: s, name: name, key: key, ttl: s.ttl,
		stop: stop, done: make(chan struct{}), renewals: make(chan chan<- error),
		record: r, version: v, renewed: sent,
		watchers: map[int]context.CancelCauseFunc{},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		stop()
		return nil, ErrClosed
	}
	s.held[l] = struct{}{}
	delete(s.watches, key)
	delete(s.orphans, key)
	s.keepers.Go(func() { l.keep(keeping) })
	return l, nil
}

// pause waits before the next look at a lease.
func (s *Store) pause(ctx context.Context) error {
	timer := time.NewTimer(pollInterval(s.ttl))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.closing:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Context returns a child of parent for the work that the lease protects. It
// ends with a cause that is ErrLeaseLost when the lease is lost, and it ends
// when the lease is released. Call cancel when the work is done.
func (l *Lease) Context(parent context.Context) (_ context.Context, cancel context.CancelFunc) {
	ctx, end := context.WithCancelCause(parent)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		end(l.err)
		return ctx, func() {}
	}
	l.next++
	id := l.next
	l.watchers[id] = end
	return ctx, func() {
		l.mu.Lock()
		delete(l.watchers, id)
		l.mu.Unlock()
		end(context.Canceled)
	}
}

// Err is nil while the lease is held, then an error that is ErrLeaseLost
// unless it was released. A lease is lost when another holder's record is
// found, and when no heartbeat arrived for a TTL, whatever the reason.
func (l *Lease) Err() error {
	l.mu.Lock()
	err, lapsed := l.err, time.Since(l.renewed) >= l.ttl
	l.mu.Unlock()
	if err == nil && lapsed {
		return l.lose(fmt.Errorf("no heartbeat arrived for %s", l.ttl))
	}
	return err
}

// Renew writes a heartbeat now. An error that is not ErrLeaseLost leaves the
// lease held until its TTL has passed.
func (l *Lease) Renew(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case l.renewals <- reply:
	case <-l.done:
		return l.Err()
	case <-ctx.Done():
		return fmt.Errorf("renew lease %q: %w", l.name, context.Cause(ctx))
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return fmt.Errorf("renew lease %q: %w", l.name, context.Cause(ctx))
	}
}

// Release gives the lease up so that the next waiter gets it at once. It takes
// up to 10 s and does so even when ctx has ended, because a lease that is not
// released costs the others more than a TTL. A lost lease is left alone. An
// error says that the lease will only lapse by itself, unless this Store takes
// it again before. Later calls do nothing.
func (l *Lease) Release(ctx context.Context) (err error) {
	l.release.Do(func() { err = l.giveUp(ctx) })
	return err
}

func (l *Lease) giveUp(ctx context.Context) error {
	lost := errors.Is(l.Err(), ErrLeaseLost)
	l.end(errReleased)
	<-l.done
	defer l.store.forget(l)
	if l.store.isClosed() {
		return fmt.Errorf("release lease %q: %w", l.name, ErrClosed)
	}
	if l.taken {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	// A tombstone, not a deletion: not every S3 knows conditional deletes.
	free := l.record
	free.State = stateFree
	err := l.write(ctx, free)
	if err == nil || errors.Is(err, errTaken) {
		return nil
	}
	l.store.orphan(l.key, l.record)
	if lost {
		return nil
	}
	return fmt.Errorf("release lease %q, it lapses in %s: %w", l.name, l.ttl+l.ttl/4, err)
}

// keep writes heartbeats until ctx ends or the lease is lost. It looks at the
// very end of the lease too, so that the work learns of it before an heir can.
func (l *Lease) keep(ctx context.Context) {
	defer close(l.done)
	next := l.expiry().Add(l.ttl/3 - l.ttl)
	for {
		timer := time.NewTimer(time.Until(earlier(next, l.expiry())))
		var reply chan<- error
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case reply = <-l.renewals:
			timer.Stop()
		}
		begin := time.Now()
		err := l.beat(ctx) // logged there
		if reply != nil {
			reply <- err
		}
		next = begin.Add(l.ttl / 3)
		if err != nil {
			next = begin.Add(l.ttl / 12)
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// beat writes one heartbeat, within a third of the TTL and never past the end
// of the lease.
func (l *Lease) beat(ctx context.Context) error {
	if err := l.Err(); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, min(l.ttl/3, time.Until(l.expiry())))
	defer cancel()
	next := l.record
	next.Beat++
	err := l.write(within, next)
	switch {
	case err == nil:
		l.failing = false
		return nil
	case ctx.Err() != nil:
		return err
	case l.taken || !time.Now().Before(l.expiry()):
		return l.lose(err)
	}
	if !l.failing {
		l.failing = true
		l.store.log.LogAttrs(ctx, slog.LevelWarn, "lease heartbeat failed",
			slog.String("lease", l.name), slog.Duration("lapses_in", time.Until(l.expiry())), slog.Any("err", err))
	}
	return fmt.Errorf("renew lease %q: %w", l.name, err)
}

// write replaces our record with next. A write of ours that arrived although
// its reply did not shows as a conflict with our own nonce: then its version
// is adopted and the write repeated. It does not count as a heartbeat itself,
// because nobody knows when it arrived, and others count from there.
func (l *Lease) write(ctx context.Context, next record) error {
	var err error
	for range writeAttempts {
		next.At = time.Now().UTC()
		sent := time.Now()
		var v Version
		v, err = swap(ctx, l.store.leases, l.key, next.encode(), l.version)
		if err == nil {
			l.wrote(next, v, sent)
			return nil
		}
		found, version, readErr := l.store.readLease(ctx, l.key)
		switch {
		case readErr != nil:
			return err
		case found.Nonce != l.record.Nonce:
			l.taken = true
			return fmt.Errorf("%w: %s", errTaken, found.holder())
		case !errors.Is(err, ErrConflict):
			return err
		}
		l.version = version
		next.Beat = max(next.Beat, found.Beat+1)
	}
	return err
}

func (l *Lease) wrote(r record, v Version, sent time.Time) {
	l.record, l.version = r, v
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewed = sent
}

func (l *Lease) expiry() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed.Add(l.ttl)
}

// lose ends the lease because of cause and returns its error.
func (l *Lease) lose(cause error) error {
	lost := fmt.Errorf("%w: %q: %w", ErrLeaseLost, l.name, cause)
	if !l.end(lost) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.err
	}
	l.store.lost.Add(1)
	l.store.log.LogAttrs(context.Background(), slog.LevelWarn, "lease lost",
		slog.String("lease", l.name), slog.Any("err", cause))
	return lost
}

// LeasesLost is how many leases this Store lost while it held them: to another
// holder, or to a storage that did not answer for too long.
func (s *Store) LeasesLost() int64 { return s.lost.Load() }

// end records why the lease is over, the first time, and ends its contexts and
// its keeper.
func (l *Lease) end(err error) bool {
	l.mu.Lock()
	first := l.err == nil
	var watchers map[int]context.CancelCauseFunc
	if first {
		l.err = err
		watchers, l.watchers = l.watchers, nil
	}
	l.mu.Unlock()
	for _, end := range watchers {
		end(err)
	}
	l.stop()
	return first
}

// forget lets the next waiter of this process contend.
func (s *Store) forget(l *Lease) {
	s.mu.Lock()
	delete(s.held, l)
	s.mu.Unlock()
	s.dequeue(l.key)
}
