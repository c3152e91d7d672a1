package http2

import (
	"errors"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"
)

// watch is what the watch of a connection remembers between its looks. One timer
// for all bounds costs nothing per request.
type watch struct {
	mu      sync.Mutex    // taken before any other
	last    time.Duration // when it looked last
	came    uint64        // frames when it looked last
	heard   time.Duration // when it last saw that a frame had come
	written uint64        // writes when it looked last
	begun   time.Duration // since when there is a preface; 0 before
	stuck   time.Duration // since when a write has been under way; 0 when none is
	block   time.Duration // since when a field block has been incomplete; 0 when none is
}

var (
	errStuck   = errors.New("the server does not read")
	errSilent  = errors.New("the server does not answer a PING")
	errRetired = errors.New("connection is no longer used")
)

// wakeBy has the watch look no later than at a time since born.
func (c *conn) wakeBy(by time.Duration) {
	if c.lower(by) {
		c.timer.Reset(max(0, by-c.now()))
	}
}

// lower brings the next look forward.
func (c *conn) lower(by time.Duration) bool {
	for {
		next := c.wakes.Load()
		if int64(by) >= next {
			return false
		}
		if c.wakes.CompareAndSwap(next, int64(by)) {
			return true
		}
	}
}

// sleep sets the timer to what wakes says, also when that changes meanwhile.
func (c *conn) sleep() {
	for {
		next := c.wakes.Load()
		c.timer.Reset(max(0, time.Duration(next)-c.now()))
		if c.wakes.Load() == next {
			return
		}
	}
}

// look is called by the timer: it does what is due and sets the timer again.
func (c *conn) look() {
	w := &c.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	now := c.now()
	c.wakes.Store(int64(now + c.tick))
	c.refill(now - w.last)
	w.last = now
	if came := c.came.Load(); came != w.came {
		w.came, w.heard = came, now
	}
	if c.overdue(now) || c.client.tend(c, now) {
		return
	}
	c.lower(c.dueStreams(now))
	c.sleep()
}

// overdue ends the connection when the server has not done in time what it must.
// It reports whether the connection has ended.
func (c *conn) overdue(now time.Duration) bool {
	w := &c.watch
	c.mu.Lock()
	if c.closing != nil {
		c.mu.Unlock()
		return true
	}
	if len(c.streams) == 0 && len(c.pending) == 0 {
		c.pending, c.spare = nil, nil // an idle connection needs no buffers
	}
	w.stuck = since(w.stuck, c.flushing && c.written.Load() == w.written, now)
	w.written = c.written.Load()
	silent, held := c.askLocked(now)
	w.begun = since(w.begun, c.submitted > 0, now)
	c.mu.Unlock()
	c.client.release(c, held)
	w.block = since(w.block, c.inBlock.Load(), now)
	switch {
	case silent:
		c.end(failed(errSilent), h2.ErrCodeNo, false)
	case longer(w.stuck, now, writeTime):
		c.end(failed(errStuck), h2.ErrCodeNo, false)
	case longer(w.block, now, blockTime):
		c.end(failed(refuse(h2.ErrCodeEnhanceYourCalm, "field block takes too long")), h2.ErrCodeEnhanceYourCalm, true)
	case longer(w.begun, now, settingsTime) && !c.acked.Load():
		c.end(failed(refuse(h2.ErrCodeSettingsTimeout, "no answer to SETTINGS")), h2.ErrCodeSettingsTimeout, true)
	default:
		return false
	}
	return true
}

// askLocked asks a server that has been silent whether it is there, and reports
// whether it has not answered in time. From one that does not answer but says
// other things no answer is expected any more, nor are streams held for it.
func (c *conn) askLocked(now time.Duration) (gone bool, held int) {
	silence := now - c.watch.heard
	if c.pings != c.pongs.Load() {
		switch {
		case now-c.pingAt < pingTime:
		case silence >= pingTime:
			return true, 0
		default:
			return false, c.answeredLocked()
		}
		return false, 0
	}
	mayAsk := c.freePings.Load()&silencePing != 0 || now-c.pingAt >= pingRepeat
	if len(c.streams) > 0 && silence >= pingSilence && mayAsk {
		c.pingLocked(silencePing)
		c.kickLocked()
	}
	return false, 0
}

// since moves the beginning of a state that holds now, or not.
func since(begin time.Duration, holds bool, now time.Duration) time.Duration {
	switch {
	case !holds:
		return 0
	case begin == 0:
		return now
	}
	return begin
}

// longer reports whether a state has lasted for d.
func longer(begin, now, d time.Duration) bool { return begin != 0 && now-begin >= d }

// refill gives credit for the time that has passed, see spend.
func (c *conn) refill(passed time.Duration) {
	more := int64(passed * floodPerSecond / time.Second)
	if left := floodBurst - c.credit.Load(); left > 0 {
		c.credit.Add(min(left, more))
	}
}

// dueStreams does what is due for the streams and returns when the next thing is.
func (c *conn) dueStreams(now time.Duration) time.Duration {
	next := now + c.tick
	var due []*stream
	c.mu.Lock()
	for _, s := range c.streams {
		for _, by := range [...]int64{s.deadline.Load(), s.proceedBy.Load()} {
			switch {
			case by == 0:
			case by <= int64(now):
				due = append(due, s)
			default:
				next = min(next, time.Duration(by))
			}
		}
	}
	c.mu.Unlock()
	for _, s := range due {
		s.due(now)
	}
	return next
}
