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
	heard   time.Duration // when it last saw that a frame had come
	written uint64        // writes when it looked last
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
	if c.active.Swap(false) {
		w.heard = now
	}
	c.mu.Lock()
	if c.closing != nil {
		c.mu.Unlock()
		return
	}
	writing := c.flushing && c.written.Load() == w.written
	w.written = c.written.Load()
	unanswered := c.pings != c.pongs.Load()
	asked := c.pingAt
	waiting := len(c.streams) > 0
	if !waiting && len(c.pending) == 0 {
		c.pending, c.spare = nil, nil // an idle connection needs no buffers
	}
	c.mu.Unlock()
	w.stuck = since(w.stuck, writing, now)
	w.block = since(w.block, c.inBlock.Load(), now)
	switch {
	case longer(w.stuck, now, writeTime):
		c.end(failed(errStuck), h2.ErrCodeNo, false)
		return
	case longer(w.block, now, blockTime):
		c.fail(refuse(h2.ErrCodeEnhanceYourCalm, "field block takes too long"))
		return
	case !c.acked.Load() && now >= settingsTime && c.begun():
		c.fail(refuse(h2.ErrCodeSettingsTimeout, "no answer to SETTINGS"))
		return
	case unanswered && now-asked >= pingTime && now-w.heard >= pingTime:
		c.end(failed(errSilent), h2.ErrCodeNo, false)
		return
	case waiting && !unanswered && now-w.heard >= pingSilence && (c.freePings.Load()&silencePing != 0 || now-asked >= pingRepeat):
		c.mu.Lock()
		c.pingLocked(silencePing)
		c.kickLocked()
		c.mu.Unlock()
	}
	if c.client.tend(c, now) {
		return
	}
	c.lower(c.dueStreams(now))
	c.sleep()
}

// fail ends the connection for a breach of the protocol.
func (c *conn) fail(err error) {
	code := h2.ErrCodeInternal
	var wrong *protocolError
	if errors.As(err, &wrong) {
		code = wrong.code
	}
	c.end(failed(err), code, true)
}

// begun reports whether the server has anything to answer.
func (c *conn) begun() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.submitted > 0
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
