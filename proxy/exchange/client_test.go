package exchange

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

type abortable struct{ times int }

func (a *abortable) Abort() { a.times++ }

func TestCancelerAbortsWhatIsArmedOnceAndNothingAfterDisarm(t *testing.T) {
	cause := errors.New("enough")
	var first, second abortable
	var c Canceler
	if err := errors.Join(c.Arm(&first), c.Arm(&second)); err != nil {
		t.Fatal(err)
	}
	c.Cancel(cause)
	c.Cancel(errors.New("again"))
	if first.times != 0 || second.times != 1 {
		t.Errorf("aborted %d and %d times, want 0 and 1", first.times, second.times)
	}
	if got := c.Disarm(); !errors.Is(got, cause) || !errors.Is(c.Cause(), cause) {
		t.Errorf("Disarm %v, Cause %v; want %v", got, c.Cause(), cause)
	}
	if err := c.Arm(&first); !errors.Is(err, cause) || first.times != 0 {
		t.Errorf("Arm after Cancel: %v, aborted %d times; want %v and 0", err, first.times, cause)
	}

	var quiet Canceler
	_ = quiet.Arm(&first)
	if err := quiet.Disarm(); err != nil {
		t.Errorf("Disarm: %v", err)
	}
	quiet.Cancel(cause)
	if first.times != 0 {
		t.Error("aborted what was disarmed")
	}
}

// A connection that Disarm has released may carry another call at once: an Abort
// that comes later would hit a stranger.
func TestCancelerNeverAbortsAfterDisarmReturned(t *testing.T) {
	for range 2000 {
		var c Canceler
		var target abortable
		_ = c.Arm(&target)
		var canceling sync.WaitGroup
		canceling.Go(func() { c.Cancel(ErrAborted) })
		cause := c.Disarm()
		seen := target.times // races with an Abort that comes too late
		canceling.Wait()
		if (cause != nil) != (seen == 1) || target.times != seen {
			t.Fatalf("cause %v, aborted %d times, %d at the end", cause, seen, target.times)
		}
	}
}

func TestBindCancelsWhenTheClientLeavesAndWhenTheExchangeEnds(t *testing.T) {
	for name, c := range map[string]struct {
		act  func(*Exchange)
		want error
	}{
		"aborted":          {(*Exchange).Abort, ErrAborted},
		"ended":            {func(*Exchange) {}, ErrEnded},
		"unbound":          {func(e *Exchange) { e.Bind(nil) }, nil},
		"replaced":         {func(e *Exchange) { e.Bind(new(Canceler)) }, nil},
		"asked in between": {func(e *Exchange) { <-e.Context().Done() }, ErrClientGone},
	} {
		t.Run(name, func(t *testing.T) {
			var bound Canceler
			ctx, leave := context.WithCancel(t.Context())
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
			h := ToHTTP(func(e *Exchange) {
				e.Bind(&bound)
				if errors.Is(c.want, ErrClientGone) {
					leave()
				}
				c.act(e)
			}, nil)
			func() {
				defer func() { _ = recover() }() // of an abort
				h.ServeHTTP(httptest.NewRecorder(), r)
			}()
			leave()
			if got := bound.Cause(); !errors.Is(got, c.want) {
				t.Errorf("cause %v, want %v", got, c.want)
			}
		})
	}
}

func TestBindAfterTheClientLeftCancelsAtOnce(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	ToHTTP(func(e *Exchange) {
		leave()
		<-e.Done()
		var bound Canceler
		e.Bind(&bound)
		if !errors.Is(bound.Cause(), ErrClientGone) {
			t.Errorf("cause %v, want %v", bound.Cause(), ErrClientGone)
		}
	}, nil).ServeHTTP(httptest.NewRecorder(), r)
}
