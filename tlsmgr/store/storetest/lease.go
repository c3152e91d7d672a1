package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/tlsmgr/store"
)

// testLease is the contract of leases and of certmagic.Locker.
func testLease(t *testing.T, open opener) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, *place)
	}{
		{"OneHolderAtATime", oneHolder},
		{"TryAcquireDoesNotWait", tryAcquire},
		{"HeartbeatsKeepItBeyondItsTTL", heartbeats},
		{"DeadHolderHasOneHeir", oneHeir},
		{"LostLeaseEndsItsContexts", lostLease},
		{"ReleaseEndsItsContexts", releaseEnds},
		{"PausedHolderCannotOverwrite", pausedHolder},
		{"DamagedRecordIsTakenOverAfterATTL", damagedRecord},
		{"WaiterGivesUpWithItsContext", waiterGivesUp},
		{"CertmagicLocks", certmagicLocks},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func oneHolder(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	var holders, turns atomic.Int32
	var wg sync.WaitGroup
	for i := range 3 {
		s := p.handle(t, fmt.Sprint(i))
		for range 2 { // two goroutines of one process, which queue
			wg.Go(func() {
				for range 2 {
					l, err := s.Acquire(ctx, "order *.example.com")
					if err != nil {
						t.Errorf("acquire: %v", err)
						return
					}
					if n := holders.Add(1); n != 1 {
						t.Errorf("%d holders at once", n)
					}
					turns.Add(1)
					if err := l.Renew(ctx); err != nil { // some time passes
						t.Errorf("renew: %v", err)
					}
					holders.Add(-1)
					if err := l.Release(ctx); err != nil {
						t.Errorf("release: %v", err)
					}
				}
			})
		}
	}
	wg.Wait()
	if turns.Load() != 12 {
		t.Errorf("got %d turns, want 12", turns.Load())
	}
}

func tryAcquire(t *testing.T, p *place) {
	t.Helper()
	a, b := p.handle(t, "a"), p.handle(t, "b")
	l, ok, err := a.TryAcquire(t.Context(), "x")
	if err != nil || !ok {
		t.Fatalf("free lease: got %v, %v", ok, err)
	}
	for name, s := range map[string]*store.Store{"same process": a, "other process": b} {
		got, ok, err := s.TryAcquire(t.Context(), "x")
		if got != nil || ok || err != nil {
			t.Errorf("%s, held lease: got %v, %v, %v; want nil, false, nil", name, got, ok, err)
		}
	}
	other, ok, err := b.TryAcquire(t.Context(), "y")
	if err != nil || !ok {
		t.Fatalf("another name: got %v, %v", ok, err)
	}
	must(t, other.Release(t.Context()))
	must(t, l.Release(t.Context()))
	must(t, l.Release(t.Context())) // does nothing
	l, ok, err = b.TryAcquire(t.Context(), "x")
	if err != nil || !ok {
		t.Fatalf("released lease: got %v, %v", ok, err)
	}
	must(t, l.Release(t.Context()))
}

func heartbeats(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	a, b := p.handle(t, "a"), p.handle(t, "b")
	l, err := a.Acquire(ctx, "x")
	must(t, err)
	acquired := make(chan *store.Lease, 1)
	go func() {
		heir, err := b.Acquire(ctx, "x")
		if err != nil {
			t.Errorf("waiter: %v", err)
		}
		acquired <- heir
	}()
	select {
	case <-acquired:
		t.Fatal("a lease with heartbeats was taken over")
	case <-time.After(3 * TTL):
	}
	must(t, l.Err())
	must(t, l.Release(ctx))
	if heir := <-acquired; heir != nil {
		must(t, heir.Release(ctx))
	}
}

func oneHeir(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	victim := p.handle(t, "victim")
	l, err := victim.Acquire(ctx, "x")
	must(t, err)
	inLease, cancel := l.Context(ctx)
	defer cancel()
	died := time.Now()
	must(t, victim.Close()) // heartbeats end, nothing is released: a crash to all others
	<-inLease.Done()
	wantErr(t, "context of the victim", context.Cause(inLease), store.ErrLeaseLost)

	heirs := make(chan *store.Lease, 3)
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for i := range cap(heirs) {
		s := p.handle(t, fmt.Sprint("heir ", i))
		wg.Go(func() {
			heir, err := s.Acquire(waiting, "x")
			if err == nil {
				heirs <- heir
			} else if !errors.Is(err, context.Canceled) {
				t.Errorf("heir: %v", err)
			}
		})
	}
	heir := <-heirs
	if waited := time.Since(died); waited < TTL {
		t.Errorf("taken over after %s, before the TTL of %s", waited, TTL)
	}
	select {
	case <-heirs:
		t.Error("a second heir while the first holds it")
	case <-time.After(2 * TTL):
	}
	stop()
	wg.Wait()
	must(t, heir.Release(ctx))
}

// usurp replaces every lease record, as a holder does that took over while we
// were stopped.
func usurp(t *testing.T, s *store.Store) {
	t.Helper()
	objects, err := s.ListVersions(t.Context(), "locks")
	must(t, err)
	for _, o := range objects {
		value, err := s.Load(t.Context(), o.Key)
		must(t, err)
		_, rest, _ := strings.Cut(string(value), `"nonce":"`)
		nonce, _, _ := strings.Cut(rest, `"`)
		must(t, s.Store(t.Context(), o.Key, []byte(strings.ReplaceAll(string(value), nonce, "usurper"))))
	}
}

func lostLease(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	a := p.handle(t, "a")
	l, err := a.Acquire(ctx, "x")
	must(t, err)
	before, cancel := l.Context(ctx)
	defer cancel()
	usurp(t, a)
	<-before.Done() // by the heartbeat
	wantErr(t, "cause", context.Cause(before), store.ErrLeaseLost)
	wantErr(t, "lease", l.Err(), store.ErrLeaseLost)
	wantErr(t, "renew", l.Renew(ctx), store.ErrLeaseLost)
	after, cancel := l.Context(ctx)
	defer cancel()
	wantErr(t, "cause of a later context", context.Cause(after), store.ErrLeaseLost)
	if err := l.Release(ctx); err != nil {
		t.Errorf("release of a lost lease: got %v, want nil", err)
	}
	value, err := a.Load(ctx, "locks/x.json")
	if err != nil || !strings.Contains(string(value), `"state":"held"`) {
		t.Errorf("the usurper's record was touched: %s, %v", value, err)
	}
}

func releaseEnds(t *testing.T, p *place) {
	t.Helper()
	a := p.handle(t, "a")
	l, err := a.Acquire(t.Context(), "x")
	must(t, err)
	inLease, cancel := l.Context(t.Context())
	defer cancel()
	must(t, inLease.Err())
	ended, end := context.WithCancel(t.Context())
	end()
	must(t, l.Release(ended)) // also when the work was cancelled
	<-inLease.Done()
	if errors.Is(context.Cause(inLease), store.ErrLeaseLost) || l.Err() == nil {
		t.Errorf("after release: cause %v, lease %v; want neither lost nor held", context.Cause(inLease), l.Err())
	}
	_, ok, err := p.handle(t, "b").TryAcquire(t.Context(), "x")
	if err != nil || !ok {
		t.Errorf("released lease: got %v, %v; want true", ok, err)
	}
}

func pausedHolder(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	paused, heir := p.handle(t, "paused"), p.handle(t, "heir")
	_, err := paused.Acquire(ctx, "x")
	must(t, err)
	_, read, err := create(ctx, paused, "cert", "old")
	must(t, err)

	// The process stops here; the heir does the work.
	usurp(t, heir)
	_, err = heir.Swap(ctx, "cert", []byte("from the heir"), read)
	must(t, err)

	// It goes on before it could notice.
	_, err = paused.Swap(ctx, "cert", []byte("too late"), read)
	wantErr(t, "write of a paused holder", err, store.ErrConflict)
	got, err := heir.Load(ctx, "cert")
	if err != nil || string(got) != "from the heir" {
		t.Errorf("got %q, %v; want the heir's", got, err)
	}
}

func create(ctx context.Context, s *store.Store, key, value string) ([]byte, store.Version, error) {
	v, err := s.Swap(ctx, key, []byte(value), "")
	return []byte(value), v, err
}

func damagedRecord(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	a := p.handle(t, "a")
	for name, value := range map[string]string{
		"empty": "", "text": "not json", "newer": `{"format":99,"state":"shared","ttl_ms":3600000}`,
	} {
		must(t, a.Store(ctx, "locks/"+name+".json", []byte(value)))
		_, ok, err := a.TryAcquire(ctx, name)
		if ok || err != nil {
			t.Errorf("%s: got %v, %v at once; want false", name, ok, err)
		}
		start := time.Now()
		l, err := a.Acquire(ctx, name)
		must(t, err)
		if waited := time.Since(start); waited < TTL {
			t.Errorf("%s: taken over after %s, before the TTL of %s", name, waited, TTL)
		}
		must(t, l.Release(ctx))
	}
}

func waiterGivesUp(t *testing.T, p *place) {
	t.Helper()
	a, b := p.handle(t, "a"), p.handle(t, "b")
	l, err := a.Acquire(t.Context(), "x")
	must(t, err)
	for name, s := range map[string]*store.Store{"same process": a, "other process": b} {
		ctx, cancel := context.WithTimeout(t.Context(), TTL/4)
		_, err := s.Acquire(ctx, "x")
		cancel()
		wantErr(t, name, err, context.DeadlineExceeded)
	}
	must(t, l.Release(t.Context()))
	for _, s := range []*store.Store{a, b} { // nobody is left in line
		l, err := s.Acquire(bounded(t), "x")
		must(t, err)
		must(t, l.Release(t.Context()))
	}
}

func certmagicLocks(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	a, b := p.handle(t, "a"), p.handle(t, "b")
	const name = "issue_cert_*.example.com"
	must(t, a.Lock(ctx, name))
	ok, err := b.TryLock(ctx, name)
	if ok || err != nil {
		t.Errorf("try of a held lock: got %v, %v; want false", ok, err)
	}
	must(t, a.RenewLockLease(ctx, name, time.Minute))
	if b.RenewLockLease(ctx, name, time.Minute) == nil || b.Unlock(ctx, name) == nil {
		t.Error("renewed or unlocked a lock of another process")
	}
	locked := make(chan error, 1)
	go func() { locked <- b.Lock(ctx, name) }()
	must(t, a.Unlock(ctx, name))
	must(t, <-locked)
	usurp(t, b)
	wantErr(t, "renewal of a lost lock", b.RenewLockLease(ctx, name, time.Minute), store.ErrLeaseLost)
	must(t, b.Unlock(ctx, name))
}
