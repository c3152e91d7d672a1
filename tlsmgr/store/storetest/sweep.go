package storetest

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/tlsmgr/store"
)

// anyAge sweeps what was released just now, even if the storage's clock is
// ahead.
const anyAge = -time.Minute

// testSweep is the contract of Leases and SweepLeases.
func testSweep(t *testing.T, open opener) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, *place)
	}{
		{"LeasesAreListedByName", listedLeases},
		{"OnlyOldTombstonesAreSwept", sweepsTombstones},
		{"SweepingDisturbsNobody", sweepsAmongContenders},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func listedLeases(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	a, b := p.handle(t, "a"), p.handle(t, "b")
	if got, err := a.Leases(ctx); err != nil || len(got) > 0 {
		t.Errorf("in the beginning: got %v, %v; want none", got, err)
	}
	held, err := a.Acquire(ctx, "order *.example.com")
	must(t, err)
	for range 2 {
		free, err := b.Acquire(ctx, "account")
		must(t, err)
		must(t, free.Release(ctx))
	}
	must(t, a.Store(ctx, "locks/damaged.json", []byte("not json")))
	must(t, a.Store(ctx, "locks/deeper/a.json", nil))
	must(t, a.Store(ctx, "locks/note.txt", nil))
	got, err := b.Leases(ctx)
	must(t, err)
	if len(got) != 3 {
		t.Fatalf("got %+v, want three leases", got)
	}
	for i := range got {
		if got[i].Name != "damaged" && time.Since(got[i].At).Abs() > time.Minute {
			t.Errorf("%s: at %s, want about now", got[i].Name, got[i].At)
		}
		got[i].At = time.Time{}
	}
	for i, want := range []store.LeaseInfo{
		{Name: "account", Owner: "b", Fence: 2, TTL: TTL},
		{Name: "damaged", Owner: "unreadable record", Held: true},
		{Name: "order *.example.com", Owner: "a", Held: true, Fence: 1, TTL: TTL},
	} {
		if got[i] != want {
			t.Errorf("got %+v, want %+v", got[i], want)
		}
	}
	must(t, held.Release(ctx))
}

func sweepsTombstones(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	a, b := p.handle(t, "a"), p.handle(t, "b")
	for _, name := range []string{"one", "two", strings.Repeat("long", 200)} {
		l, err := a.Acquire(ctx, name)
		must(t, err)
		must(t, l.Release(ctx))
	}
	held, err := a.Acquire(ctx, "held")
	must(t, err)
	must(t, a.Store(ctx, "locks/damaged.json", []byte("not json")))
	if n, err := b.SweepLeases(ctx, time.Hour); err != nil || n != 0 {
		t.Errorf("older than an hour: swept %d, %v; want 0", n, err)
	}
	n, err := b.SweepLeases(ctx, anyAge)
	if err != nil || n != 3 {
		t.Errorf("swept %d, %v; want 3", n, err)
	}
	got, err := a.List(ctx, "locks", true)
	must(t, err)
	wantKeys(t, "left", got, "locks/damaged.json", "locks/held.json")
	must(t, held.Renew(ctx))
	must(t, held.Release(ctx))
	l, ok, err := a.TryAcquire(ctx, "one")
	if err != nil || !ok {
		t.Fatalf("a swept lease: got %v, %v; want it free", ok, err)
	}
	must(t, l.Release(ctx))
}

func sweepsAmongContenders(t *testing.T, p *place) {
	t.Helper()
	ctx := bounded(t)
	sweeping, stop := context.WithCancel(ctx)
	var holders, swept atomic.Int32
	var contenders, sweepers sync.WaitGroup
	for range 2 {
		s := p.handle(t, "sweeper")
		sweepers.Go(func() {
			for sweeping.Err() == nil {
				n, err := s.SweepLeases(ctx, anyAge)
				if err != nil {
					t.Errorf("sweep: %v", err)
				}
				swept.Add(int32(n)) //nolint:gosec // a handful
			}
		})
	}
	for range 3 {
		s := p.handle(t, "contender")
		contenders.Go(func() {
			for range 10 {
				l, err := s.Acquire(ctx, "x")
				if err != nil {
					t.Errorf("acquire: %v", err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders at once", n)
				}
				if err := l.Renew(ctx); err != nil {
					t.Errorf("renew: %v", err)
				}
				holders.Add(-1)
				if err := l.Release(ctx); err != nil {
					t.Errorf("release: %v", err)
				}
				pass(ctx, 10*time.Millisecond) // an unwanted lease is what sweepers look for
			}
		})
	}
	contenders.Wait()
	stop()
	sweepers.Wait()
	t.Logf("swept %d times", swept.Load())
}
