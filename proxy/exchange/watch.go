package exchange

import (
	"sync"
	"sync/atomic"
	"time"
)

// Watch bounds waits of one kind, most of which end at once: Begin and End cost
// a look at the clock, and the timer behind them is set only when it has run out.
// Any goroutine may use it; one at a time waits. A nil Watch watches nothing.
type Watch struct {
	base  time.Time
	fire  func()
	limit atomic.Int64
	since atomic.Int64 // of Begin, in ns from base and one more; 0 while nobody waits
	armed atomic.Bool

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

// NewWatch returns a Watch that calls fire, by a goroutine of its own and at most
// once, when a wait has lasted for limit. It is nil when limit is not positive.
func NewWatch(limit time.Duration, fire func()) *Watch {
	if limit <= 0 {
		return nil
	}
	w := &Watch{base: time.Now(), fire: fire}
	w.limit.Store(int64(limit))
	return w
}

// Begin starts a wait, or starts the one under way anew.
func (w *Watch) Begin() {
	if w == nil {
		return
	}
	w.since.Store(int64(time.Since(w.base)) + 1)
	if !w.armed.Load() {
		w.arm(time.Duration(w.limit.Load()))
	}
}

// End ends the wait.
func (w *Watch) End() {
	if w != nil {
		w.since.Store(0)
	}
}

// SetLimit changes the bound, also of a wait under way; what is not positive is
// taken for no bound at all.
func (w *Watch) SetLimit(limit time.Duration) {
	if w == nil {
		return
	}
	if limit <= 0 {
		limit = unbounded
	}
	if old := w.limit.Swap(int64(limit)); int64(limit) < old && w.since.Load() != 0 {
		w.arm(limit)
	} else if int64(limit) < old {
		w.armed.Store(false) // the next Begin sets the timer
	}
}

// Limit returns the bound; 0 is none.
func (w *Watch) Limit() time.Duration {
	if w == nil {
		return 0
	}
	if d := time.Duration(w.limit.Load()); d < unbounded {
		return d
	}
	return 0
}

const unbounded = 365 * 24 * time.Hour

// Stop ends the Watch for good.
func (w *Watch) Stop() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

// arm has the timer look at the wait after d.
func (w *Watch) arm(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armLocked(d)
}

func (w *Watch) armLocked(d time.Duration) {
	switch {
	case w.stopped:
		return
	case w.timer == nil:
		w.timer = time.AfterFunc(d, w.look)
	default:
		w.timer.Reset(d)
	}
	w.armed.Store(true)
}

// look is what the timer does.
func (w *Watch) look() {
	w.mu.Lock()
	w.armed.Store(false) // before since is read: a Begin after that arms again
	since := w.since.Load()
	if since == 0 || w.stopped {
		w.mu.Unlock()
		return
	}
	left := time.Duration(w.limit.Load()+since-1) - time.Since(w.base)
	if left > 0 {
		w.armLocked(left)
		w.mu.Unlock()
		return
	}
	w.stopped = true
	w.mu.Unlock()
	w.fire()
}
