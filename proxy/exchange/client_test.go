package exchange

import (
	"errors"
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
