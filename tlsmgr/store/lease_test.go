package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errDown = errors.New("storage is down")

func mustAcquire(t *testing.T, s *Store, name string) *Lease {
	t.Helper()
	l, err := s.Acquire(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLeaseIsKeptForHoursByTenSecondHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		l := mustAcquire(t, newMem(t, d, "a"), "x")
		time.Sleep(time.Hour + time.Second)
		if err := l.Err(); err != nil {
			t.Error(err)
		}
		if want := 1 + 360; d.puts != want {
			t.Errorf("got %d writes in an hour, want %d", d.puts, want)
		}
	})
}

func TestLeaseIsLostOneTTLAfterTheLastHeartbeatThatArrived(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"refused": func(context.Context) error { return errDown },
		"hanging": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var down atomic.Bool
				d := &memDriver{fault: func(ctx context.Context, _, _ string) (error, error) {
					if down.Load() {
						return fail(ctx), nil
					}
					return nil, nil
				}}
				l := mustAcquire(t, newMem(t, d, "a"), "x")
				ctx, cancel := l.Context(t.Context())
				defer cancel()
				start := time.Now()
				time.Sleep(15 * time.Second) // the heartbeat at 10 s arrives
				down.Store(true)
				<-ctx.Done()
				if got, want := time.Since(start), 40*time.Second; got != want {
					t.Errorf("lost after %s, want %s", got, want)
				}
				if err := context.Cause(ctx); !errors.Is(err, ErrLeaseLost) || !errors.Is(err, l.Err()) {
					t.Errorf("cause %v, lease %v; want the same loss", err, l.Err())
				}
				if err := l.Release(t.Context()); err != nil {
					t.Errorf("release of a lost lease while the storage is down: %v", err)
				}
				if n := l.store.LeasesLost(); n != 1 {
					t.Errorf("%d leases lost, want 1", n)
				}
			})
		})
	}
}

// A heartbeat out of turn moves the end of the lease between two others: the
// work must not go on until the next one, when an heir may be at work already.
func TestWorkEndsWithTheLeaseWhenHeartbeatsFailAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		d := &memDriver{fault: func(context.Context, string, string) (error, error) {
			if down.Load() {
				return errDown, nil
			}
			return nil, nil
		}}
		l := mustAcquire(t, newMem(t, d, "a"), "x")
		ctx, cancel := l.Context(t.Context())
		defer cancel()
		time.Sleep(11 * time.Second)
		if err := l.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		down.Store(true)
		<-ctx.Done()
		if got, want := time.Since(start), 30*time.Second; got != want {
			t.Errorf("ended %s after the last heartbeat that arrived, want %s", got, want)
		}
		_ = l.Release(t.Context())
	})
}

// What a process could not give up because the storage was down must not keep
// the process itself waiting when the storage is back; others wait for the TTL.
func TestALeaseThatCouldNotBeGivenUpIsTakenAgainAtOnceByItsStoreOnly(t *testing.T) {
	const up, down, mute = 0, 1, 2 // mute: one write arrives, no reply does
	for name, strand := range map[string]func(context.Context, *Store, *atomic.Int32) error{
		"release failed": func(ctx context.Context, s *Store, storage *atomic.Int32) error {
			l, err := s.Acquire(ctx, "x")
			storage.Store(down)
			if err != nil || l.Release(ctx) == nil {
				return fmt.Errorf("acquired: %w, and released while the storage was down", err)
			}
			return nil
		},
		"release of a lost lease failed": func(ctx context.Context, s *Store, storage *atomic.Int32) error {
			l, err := s.Acquire(ctx, "x")
			storage.Store(down)
			for err == nil && l.Err() == nil {
				time.Sleep(time.Second)
			}
			return errors.Join(err, l.Release(ctx))
		},
		"claim without a reply": func(ctx context.Context, s *Store, storage *atomic.Int32) error {
			storage.Store(mute)
			if _, err := s.Acquire(ctx, "x"); err == nil {
				return errors.New("acquired without a reply")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var storage atomic.Int32
				d := &memDriver{fault: func(_ context.Context, op, _ string) (before, after error) {
					switch {
					case storage.Load() == down:
						return errDown, nil
					case storage.Load() == mute && op == "put":
						storage.Store(down)
						return nil, errDown
					}
					return nil, nil
				}}
				ours, theirs := newMem(t, d, "a"), newMem(t, d, "b")
				if err := strand(t.Context(), ours, &storage); err != nil {
					t.Fatal(err)
				}
				storage.Store(up)
				if _, ok, err := theirs.TryAcquire(t.Context(), "x"); ok || err != nil {
					t.Fatalf("the other's try: %v, %v; want not yet", ok, err)
				}
				l, ok, err := ours.TryAcquire(t.Context(), "x")
				if !ok || err != nil {
					t.Fatalf("taken again: %v, %v; want at once", ok, err)
				}
				if _, ok, err := theirs.TryAcquire(t.Context(), "x"); ok || err != nil {
					t.Fatalf("the other's try: %v, %v; want held", ok, err)
				}
				if err := l.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestLeaseSurvivesAnOutageOfHalfItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		d := &memDriver{fault: func(context.Context, string, string) (error, error) {
			if down.Load() {
				return errDown, nil
			}
			return nil, nil
		}}
		l := mustAcquire(t, newMem(t, d, "a"), "x")
		time.Sleep(10*time.Second - 1) // the heartbeats at 10 s and after fail
		down.Store(true)
		time.Sleep(15 * time.Second)
		down.Store(false)
		time.Sleep(time.Minute)
		if err := l.Err(); err != nil {
			t.Error(err)
		}
	})
}

func TestHeirWaitsLongerThanTheHolderBelieves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		victim, heir := newMem(t, d, "victim"), newMem(t, d, "heir")
		mustAcquire(t, victim, "x")
		start := time.Now()
		if err := victim.Close(); err != nil {
			t.Fatal(err)
		}
		l := mustAcquire(t, heir, "x")
		if got := time.Since(start); got <= 37500*time.Millisecond || got > 39*time.Second {
			t.Errorf("taken over after %s, want 1.25 TTL (37.5 s) and at most two polls", got)
		}
		if l.record.Fence != 2 {
			t.Errorf("fence %d, want 2", l.record.Fence)
		}
	})
}

func TestLeaseThatIsOnlyTriedIsSeenToLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		victim, other := newMem(t, d, "victim"), newMem(t, d, "other")
		mustAcquire(t, victim, "x")
		_ = victim.Close()
		for _, c := range []struct {
			after time.Duration
			want  bool
		}{{0, false}, {37 * time.Second, false}, {time.Second, true}} {
			time.Sleep(c.after)
			_, ok, err := other.TryAcquire(t.Context(), "x")
			if ok != c.want || err != nil {
				t.Errorf("after another %s: got %v, %v; want %v", c.after, ok, err, c.want)
			}
		}
	})
}

func TestHeartbeatRestartsTheWaitersStopwatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		holder, other := newMem(t, d, "holder"), newMem(t, d, "other")
		mustAcquire(t, holder, "x")
		for range 20 {
			if _, ok, err := other.TryAcquire(t.Context(), "x"); ok || err != nil {
				t.Fatalf("got %v, %v while the holder beats", ok, err)
			}
			time.Sleep(37 * time.Second)
		}
	})
}

func TestLostRepliesDoNotLoseTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		d := &memDriver{fault: func(_ context.Context, op, _ string) (error, error) {
			if op == "put" && n.Add(1)%2 == 1 {
				return nil, errDown // written, but the reply is lost
			}
			return nil, nil
		}}
		a, b := newMem(t, d, "a"), newMem(t, d, "b")
		l := mustAcquire(t, a, "x")
		time.Sleep(time.Hour)
		if err := l.Err(); err != nil {
			t.Error(err)
		}
		n.Store(0) // the release's reply too
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if _, ok, err := b.TryAcquire(t.Context(), "x"); !ok || err != nil {
			t.Errorf("after release: got %v, %v; want true", ok, err)
		}
	})
}

// late puts a heartbeat of l into the storage whose reply never came.
func late(t *testing.T, d *memDriver, l *Lease) {
	t.Helper()
	r := l.record
	r.Beat++
	if _, _, err := d.put(t.Context(), l.key, r.encode(), condition{}); err != nil {
		t.Fatal(err)
	}
}

func TestWriteThatArrivesLateIsAdopted(t *testing.T) {
	for name, renew := range map[string]bool{"by a heartbeat": true, "by the release": false} {
		want := `"beat":2` // after a late 1: no two writes are alike
		if renew {
			want = `"beat":4`
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &memDriver{}
				l := mustAcquire(t, newMem(t, d, "a"), "x")
				late(t, d, l)
				if renew {
					if err := l.Renew(t.Context()); err != nil {
						t.Errorf("renew: %v", err)
					}
					late(t, d, l)
				}
				if err := l.Release(t.Context()); err != nil {
					t.Errorf("release: %v", err)
				}
				if got := string(d.objects[l.key].value); !strings.Contains(got, `"state":"free"`) || !strings.Contains(got, want) {
					t.Errorf("got %s, want a tombstone with %s", got, want)
				}
			})
		})
	}
}

// A holder that counted a late write as sent just now would believe in its
// lease for longer than a waiter, who counts from when the write arrived.
func TestHolderWithLostRepliesStopsBeforeItsHeirStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempt atomic.Int32
		d := &memDriver{}
		holder, heir := newMem(t, d, "holder"), newMem(t, d, "heir")
		l := mustAcquire(t, holder, "x")
		d.fault = func(ctx context.Context, op, _ string) (error, error) {
			switch {
			case ctx.Value(heirKey{}) != nil:
				return nil, nil
			case op == "put" && attempt.Add(1) == 1:
				return nil, errDown // arrives, but its reply and the read after it do not
			case op == "put" && attempt.Load() == 2, op == "get" && attempt.Load() == 2:
				return nil, nil // conflicts, and finds the first
			}
			return errDown, nil
		}
		lost := make(chan time.Time, 1)
		go func() {
			ctx, cancel := l.Context(t.Context())
			defer cancel()
			<-ctx.Done()
			lost <- time.Now()
		}()
		next, err := heir.Acquire(context.WithValue(t.Context(), heirKey{}, true), "x")
		if err != nil {
			t.Fatal(err)
		}
		taken := time.Now()
		synctest.Wait()
		select {
		case at := <-lost:
			t.Logf("lost %s before it was taken", taken.Sub(at))
		default:
			t.Error("two holders")
		}
		d.fault = nil
		if err := next.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

type heirKey struct{}

func TestDeletedRecordIsALostLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		l := mustAcquire(t, newMem(t, d, "a"), "x")
		_ = d.remove(t.Context(), l.key, "")
		if err := l.Renew(t.Context()); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("got %v, want a lost lease", err)
		}
	})
}

func TestStoppedProcessFindsItsLeaseLapsedBeforeItsKeeperRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustAcquire(t, newMem(t, &memDriver{}, "a"), "x")
		l.mu.Lock()
		l.renewed = time.Now().Add(-l.ttl) // as after SIGCONT
		l.mu.Unlock()
		if err := l.Err(); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("got %v, want a lost lease", err)
		}
		if err := l.Release(t.Context()); err != nil { // frees it early, as nobody took it
			t.Error(err)
		}
	})
}

func TestRenewFailsWithoutLosingTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		d := &memDriver{fault: func(context.Context, string, string) (error, error) {
			if down.Load() {
				return errDown, nil
			}
			return nil, nil
		}}
		l := mustAcquire(t, newMem(t, d, "a"), "x")
		down.Store(true)
		if err := l.Renew(t.Context()); !errors.Is(err, errDown) || errors.Is(err, ErrLeaseLost) {
			t.Errorf("got %v, want only that the storage is down", err)
		}
		down.Store(false)
		if err := l.Renew(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestReleaseWhileTheStorageIsDownIsBoundedAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		d := &memDriver{fault: func(ctx context.Context, _, _ string) (error, error) {
			if down.Load() {
				<-ctx.Done()
				return ctx.Err(), nil
			}
			return nil, nil
		}}
		s := newMem(t, d, "a")
		l := mustAcquire(t, s, "x")
		down.Store(true)
		start := time.Now()
		err := l.Release(t.Context())
		if err == nil || !strings.Contains(err.Error(), "it lapses in 37.5s") {
			t.Errorf("got %v, want an error that says when it lapses", err)
		}
		if took := time.Since(start); took > releaseTimeout {
			t.Errorf("took %s, want at most %s", took, releaseTimeout)
		}
		if len(s.queues) > 0 || len(s.held) > 0 {
			t.Errorf("left %d queues, %d leases", len(s.queues), len(s.held))
		}
	})
}

func TestOnlyTheFirstWaiterOfAProcessPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		holder, s := newMem(t, d, "holder"), newMem(t, d, "waiters")
		mustAcquire(t, holder, "x")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		d.gets = 0
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := s.Acquire(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want the deadline", err)
				}
			})
		}
		wg.Wait()
		if d.gets < 130 || d.gets > 405 {
			t.Errorf("%d reads in 100 s by 50 waiters, want those of one: 130 to 400", d.gets)
		}
		if len(s.queues) > 0 {
			t.Errorf("%d queues left", len(s.queues))
		}
	})
}

func TestCloseWakesWaitersAndEndsKeepers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		holder, s := newMem(t, d, "holder"), newMem(t, d, "waiter")
		mustAcquire(t, holder, "x")
		own := mustAcquire(t, s, "own")
		var wg sync.WaitGroup
		for _, name := range []string{"x", "x", "own"} { // polling, queued, queued behind ourselves
			wg.Go(func() {
				if _, err := s.Acquire(t.Context(), name); !errors.Is(err, ErrClosed) {
					t.Errorf("got %v, want %v", err, ErrClosed)
				}
			})
		}
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := own.Err(); !errors.Is(err, ErrLeaseLost) || !errors.Is(err, ErrClosed) {
			t.Errorf("held lease: got %v, want lost by close", err)
		}
		if err := own.Release(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("release after close: got %v, want %v", err, ErrClosed)
		}
	}) // and synctest fails when a goroutine is left
}

func TestForeignRecordCannotMakeUsWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		r := newRecord("x", "mad", 1<<62, 1)
		if _, _, err := d.put(t.Context(), leaseKey("x"), r.encode(), condition{}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		mustAcquire(t, newMem(t, d, "a"), "x")
		if got, want := time.Since(start), maxLeaseTTL+maxLeaseTTL/4; got < want || got > want+2*time.Second {
			t.Errorf("waited %s, want %s", got, want)
		}
	})
}

func TestRememberedLeasesAreBounded(t *testing.T) {
	s := newMem(t, &memDriver{}, "a")
	for i := range 2 * maxWatches {
		s.idle(leaseKey(strings.Repeat("x", 1+i%90)+string(rune('0'+i/90))), "v")
	}
	if len(s.watches) != maxWatches {
		t.Errorf("got %d, want %d", len(s.watches), maxWatches)
	}
}

func TestLeaseNamesShareNoObject(t *testing.T) {
	names := []string{
		"a", "A", "a ", "a/b", "ab", "*.a", "wildcard_.a", "..", ".", "ä", " ", "\x00",
		strings.Repeat("n", 100), strings.Repeat("n", 101), strings.Repeat("n", 1000), "a" + strings.Repeat("/", 600),
	}
	seen := map[string]string{}
	for _, name := range names {
		key := leaseKey(name)
		if err := checkKey(key); err != nil {
			t.Errorf("%q: key %q: %v", name, key, err)
		}
		if other, ok := seen[key]; ok {
			t.Errorf("%q and %q share %q", name, other, key)
		}
		seen[key] = name
	}
	if got, want := leaseKey("issue_cert_example.com"), "locks/issue_cert_example.com.json"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	s := newMem(t, &memDriver{}, "a")
	if _, err := s.Acquire(t.Context(), ""); !errors.Is(err, ErrInvalidKey) {
		t.Errorf("empty name: got %v, want %v", err, ErrInvalidKey)
	}
}

func TestPollIntervalIsAQuarterToThreeQuartersOfASecond(t *testing.T) {
	for range 1000 {
		if d := pollInterval(DefaultLeaseTTL); d < 250*time.Millisecond || d >= 750*time.Millisecond {
			t.Fatalf("got %s", d)
		}
		if d := pollInterval(minLeaseTTL); d < minPoll/2 || d > 2*minPoll {
			t.Fatalf("small TTL: got %s", d)
		}
	}
}
