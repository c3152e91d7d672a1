package exchange

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatchFiresWhenOneWaitLastsForItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fired atomic.Int64
		start := time.Now()
		w := NewWatch(10*time.Second, func() { fired.Store(int64(time.Since(start))) })
		for range 100 { // waits that end: 50 s in all
			w.Begin()
			time.Sleep(400 * time.Millisecond)
			w.End()
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Minute) // nobody waits
		if fired.Load() != 0 {
			t.Fatalf("fired after %s though no wait was long", time.Duration(fired.Load()))
		}
		begin := time.Since(start)
		w.Begin()
		time.Sleep(time.Minute)
		if got := time.Duration(fired.Load()) - begin; got != 10*time.Second {
			t.Errorf("fired after %s of waiting, want 10s", got)
		}
	})
}

func TestWatchBeginsAnewWithEveryBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fired atomic.Bool
		w := NewWatch(time.Second, func() { fired.Store(true) })
		for range 50 {
			w.Begin()
			time.Sleep(900 * time.Millisecond)
		}
		if fired.Load() {
			t.Error("fired although each wait was shorter than its limit")
		}
		time.Sleep(time.Second)
		if !fired.Load() {
			t.Error("did not fire")
		}
	})
}

func TestWatchTakesAShorterLimitAtOnceAndALongerOneToo(t *testing.T) {
	for name, waiting := range map[string]bool{"during a wait": true, "between waits": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var fired atomic.Int64
				start := time.Now()
				w := NewWatch(time.Hour, func() { fired.Store(int64(time.Since(start))) })
				w.Begin()
				if !waiting {
					w.End()
				}
				w.SetLimit(time.Second)
				if !waiting {
					w.Begin()
				}
				time.Sleep(2 * time.Second)
				if got := time.Duration(fired.Load()); got != time.Second {
					t.Errorf("fired after %s, want 1s", got)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		var fired atomic.Bool
		w := NewWatch(time.Second, func() { fired.Store(true) })
		w.Begin()
		w.SetLimit(0)
		time.Sleep(time.Hour)
		if fired.Load() {
			t.Error("fired without a limit")
		}
		w.Stop()
	})
}

func TestStoppedWatchNeverFires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatch(time.Second, func() { t.Error("fired") })
		w.Begin()
		w.Stop()
		w.Begin()
		time.Sleep(time.Hour)
	})
	var none *Watch // of a limit that is not set
	none.Begin()
	none.SetLimit(time.Second)
	none.End()
	none.Stop()
	if NewWatch(0, nil) != nil {
		t.Error("a limit of 0 makes a Watch")
	}
}

// A steady stream must not set a timer for every event.
func BenchmarkWatch(b *testing.B) {
	w := NewWatch(time.Minute, func() {})
	defer w.Stop()
	b.ReportAllocs()
	for b.Loop() {
		w.Begin()
		w.End()
	}
}

// asked is an engine that counts how often it was asked to tell of the client.
type asked struct {
	sink

	times *int
}

func (a asked) OnLeave(func()) (stop func() bool) {
	*a.times++
	return func() bool { return true }
}

// What is registered then, nobody takes back.
func TestTheEngineIsNotAskedForTheClientAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, lasts := range []time.Duration{0, 2 * leaveAfter} {
			times := 0
			e := New(asked{times: &times})
			e.Conn = new(Conn)
			e.OnEnd(func(e *Exchange) { e.overdue(leaveWait) }) // a timer that had fired
			e.Serve(func(e *Exchange) {
				e.Bind(new(Canceler))
				time.Sleep(lasts)
			})
			time.Sleep(time.Hour)
			if want := min(int(lasts), 1); times != want {
				t.Errorf("asked %d times in an exchange of %v, want %d", times, lasts, want)
			}
		}
	})
}
