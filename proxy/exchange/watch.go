package exchange

import (
	"sync"
	"sync/atomic"
	"time"
)

// Kinds of waits of an exchange.
const (
	readWait   = iota // for the client, in Read
	writeWait         // for the client, in Write, Flush and Interim
	sourceWait        // for the source of a detached reply, in Pump
	leaveWait         // how long an exchange lives before it is asked whether its client left
	waitKinds
)

// watchdog bounds waits, most of which end at once: to begin one costs a look at
// the clock, to end one a store, and the one timer behind all of them is set when
// it has run out, not for every wait. A deadline of a connection, set and cleared
// at every event, costs several times as much.
type watchdog struct {
	base  time.Time
	owner interface{ overdue(kind int) } // called by a goroutine of its own
	waits [waitKinds]wait
	next  atomic.Int64 // when the timer looks, in ns from base; 0 when it does not

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

type wait struct {
	limit atomic.Int64 // 0 is none
	since atomic.Int64 // of begin, in ns from base and one more; 0 while nobody waits
}

// begin starts a wait, or starts the one under way anew.
func (w *watchdog) begin(kind int) {
	limit := w.waits[kind].limit.Load()
	if limit <= 0 {
		return
	}
	now := int64(time.Since(w.base)) + 1
	w.waits[kind].since.Store(now)
	if next := w.next.Load(); next == 0 || now+limit < next {
		w.arm(now, now+limit)
	}
}

func (w *watchdog) end(kind int) { w.waits[kind].since.Store(0) }

// setLimit changes a bound, also that of a wait under way.
func (w *watchdog) setLimit(kind int, limit time.Duration) {
	w.waits[kind].limit.Store(int64(max(limit, 0)))
	if since := w.waits[kind].since.Load(); limit > 0 && since != 0 {
		w.arm(int64(time.Since(w.base))+1, since+int64(limit))
	}
}

func (w *watchdog) limit(kind int) time.Duration {
	return time.Duration(w.waits[kind].limit.Load())
}

// stop ends the watch for good. It does not wait for fire.
func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

// arm has the timer look at due, when it would look later.
func (w *watchdog) arm(now, due int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armLocked(now, due)
}

func (w *watchdog) armLocked(now, due int64) {
	if next := w.next.Load(); w.stopped || next != 0 && next <= due {
		return
	}
	d := time.Duration(due - now)
	if w.timer == nil {
		w.timer = time.AfterFunc(d, w.look)
	} else {
		w.timer.Reset(d)
	}
	w.next.Store(due)
}

// look is what the timer does.
func (w *watchdog) look() {
	for over, kind := w.collect(), 0; over != 0; over, kind = over>>1, kind+1 {
		if over&1 != 0 {
			w.owner.overdue(kind)
		}
	}
}

// collect ends the waits that lasted too long, returns them with a bit for each
// kind, and sets the timer for the others.
func (w *watchdog) collect() (kinds uint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return 0
	}
	w.next.Store(0) // before the waits are read: a begin after that arms again
	now, soonest := int64(time.Since(w.base))+1, int64(0)
	for kind := range w.waits {
		since, limit := w.waits[kind].since.Load(), w.waits[kind].limit.Load()
		switch due := since + limit; {
		case since == 0 || limit == 0:
		case due <= now:
			if w.waits[kind].since.CompareAndSwap(since, 0) { // else it has just ended
				kinds |= 1 << kind
			}
		case soonest == 0 || due < soonest:
			soonest = due
		}
	}
	if soonest > 0 {
		w.armLocked(now, soonest)
	}
	return kinds
}

// Watch bounds waits of one kind, most of which end at once. Any goroutine may
// use it; one at a time waits. A nil Watch watches nothing.
type Watch struct {
	dog  watchdog
	fire func()
}

// NewWatch returns a Watch that calls fire, by a goroutine of its own and at most
// once, when a wait has lasted for limit. It is nil when limit is not positive.
func NewWatch(limit time.Duration, fire func()) *Watch {
	if limit <= 0 {
		return nil
	}
	w := &Watch{fire: fire}
	w.dog.base, w.dog.owner = time.Now(), w
	w.dog.waits[0].limit.Store(int64(limit))
	return w
}

func (w *Watch) overdue(int) {
	w.Stop()
	w.fire()
}

// Begin starts a wait, or starts the one under way anew.
func (w *Watch) Begin() {
	if w != nil {
		w.dog.begin(0)
	}
}

// End ends the wait.
func (w *Watch) End() {
	if w != nil {
		w.dog.end(0)
	}
}

// SetLimit changes the bound, also of a wait under way; what is not positive is
// taken for no bound at all.
func (w *Watch) SetLimit(limit time.Duration) {
	if w != nil {
		w.dog.setLimit(0, limit)
	}
}

// Stop ends the Watch for good.
func (w *Watch) Stop() {
	if w != nil {
		w.dog.stop()
	}
}
