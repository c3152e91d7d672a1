package http2

import (
	"runtime"
	"time"

	h2 "golang.org/x/net/http2"
)

// answerLocked appends a frame that answers the server, or tells it something,
// and needs no room: a reader or a canceller must not wait. What a server that
// does not read can make us keep is bounded all the same.
func (c *conn) answerLocked(frame func([]byte) []byte) {
	if c.control > maxControl {
		return // kickLocked has seen to the end of the connection
	}
	before := len(c.pending)
	c.pending = frame(c.pending)
	c.control += len(c.pending) - before
	c.queued += int64(len(c.pending) - before)
}

// kickLocked has somebody else write what is pending.
func (c *conn) kickLocked() {
	if c.control > maxControl && c.closing == nil {
		go c.end(failed(refuse(h2.ErrCodeEnhanceYourCalm, "the server does not read our answers")), h2.ErrCodeEnhanceYourCalm, true)
	}
	if c.flushing || c.closed || c.writeErr != nil && !c.closeNC {
		return
	}
	c.flushing = true
	go c.write()
}

// write is a goroutine that writes what is pending. The caller has set flushing.
func (c *conn) write() {
	c.mu.Lock()
	c.writeAndUnlock(0)
}

// mayBlockLocked reports whether a write of what is pending may have to wait for
// the server to read, which a call that can be cancelled must not: connections
// take maxBlind bytes in any case, and a server that sends is taken to read too.
func (c *conn) mayBlockLocked() bool {
	if came := c.came.Load(); came != c.seen {
		c.seen, c.blind = came, c.submitted
	}
	return c.submitted-c.blind+int64(len(c.pending)) > maxBlind
}

// flushAndUnlock writes what is pending unless somebody is at it, who then writes
// it too. With yield it first lets others append theirs: on a busy connection
// that turns many small writes into one (BenchmarkStreamMessage). Who must not
// wait for the server leaves to a goroutine what may not be taken at once.
func (c *conn) flushAndUnlock(yield, wait bool) {
	if c.flushing || c.closed || c.writeErr != nil || len(c.pending) == 0 {
		c.mu.Unlock()
		return
	}
	c.flushing = true
	if yield {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	if !wait && c.mayBlockLocked() {
		c.mu.Unlock()
		go c.write()
		return
	}
	c.writeAndUnlock(flushRounds)
}

// writeAndUnlock writes until nothing is pending, but no more than rounds times
// when that is not 0: the rest it leaves to a goroutine of its own. The caller
// has set flushing.
func (c *conn) writeAndUnlock(rounds int) {
	for round := 1; len(c.pending) > 0 && c.writeErr == nil; round++ {
		b := c.pending
		c.pending, c.spare, c.control = c.spare[:0], nil, 0
		c.submitted += int64(len(b))
		c.wakeBlockedLocked()
		c.mu.Unlock()
		n, err := c.nc.Write(b)
		c.written.Add(1)
		c.mu.Lock()
		if cap(b) <= maxKept {
			c.spare = b[:0]
		}
		if err != nil {
			c.submitted -= int64(len(b) - n)
			c.writeErr = err
		}
		if rounds > 0 && len(c.pending) > 0 && c.writeErr == nil && (round == rounds || c.mayBlockLocked()) {
			c.mu.Unlock()
			go c.write()
			return
		}
	}
	c.flushing = false
	err, last := c.writeErr, c.closeNC && !c.closed
	c.closed = c.closed || last
	if err != nil {
		c.pending, c.control = nil, 0
		c.wakeBlockedLocked()
	}
	c.mu.Unlock()
	switch {
	case last:
		_ = c.nc.Close() // nobody is left to tell
	case err != nil:
		// The server may have answered before it stopped taking requests: the reader
		// finds out, and says what became of the streams.
		c.client.retire(c)
		_ = c.nc.SetReadDeadline(time.Now().Add(lostTime))
	}
}

// wakeBlockedLocked has those who wait to send look again. Those whose windows are
// used up have nothing to look for (BenchmarkMessageBesideStalledUploads).
func (c *conn) wakeBlockedLocked() {
	if c.blocked == 0 || c.sendable <= 0 {
		return
	}
	for _, s := range c.streams {
		if s.sendable > 0 {
			s.wakeLocked()
		}
	}
}
