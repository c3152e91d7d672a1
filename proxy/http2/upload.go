package http2

import (
	"errors"
	"io"
	"runtime"
	"sync"

	"edge/proxy/exchange"
)

// Bodies are read into buffers of two sizes: messages and small bodies need the
// small one, and what fills it gets the large one.
const (
	smallUpload = 4 << 10
	largeUpload = 64 << 10
)

var (
	smallUploads = sync.Pool{New: func() any { b := make([]byte, smallUpload); return &b }}
	largeUploads = sync.Pool{New: func() any { b := make([]byte, largeUpload); return &b }}
)

func newUploadBuffer(large bool) *[]byte {
	pool := &smallUploads
	if large {
		pool = &largeUploads
	}
	return pool.Get().(*[]byte) //nolint:forcetypeassert // the pools hold nothing else
}

func freeUploadBuffer(b *[]byte) {
	if len(*b) == smallUpload {
		smallUploads.Put(b)
	} else {
		largeUploads.Put(b)
	}
}

var errTooLong = errors.New("body longer than declared")

// send sends the request, or begins to. A declared body is read once right here,
// so that a small one leaves in one piece with the head and needs no goroutine. A
// body of unknown length may be one half of a conversation whose other half
// begins with the reply: somebody else reads it from the beginning, and the head
// waits no longer than it takes to see that there is nothing to go with it.
func (s *stream) send(call *exchange.Call, e *encoder, first *firstPart) error {
	switch {
	case s.left == 0 && first.buf == nil: // else it was read for a connection that went away
		_, err := s.c.start(s, e, nil, true, true)
		return err
	case call.Continue:
		if _, err := s.c.start(s, e, nil, false, true); err != nil {
			return err
		}
		by := s.c.now() + continueTime
		s.proceedBy.Store(int64(by))
		s.c.wakeBy(by)
		go s.upload(newUploadBuffer(false), nil, false, true)
		return nil
	case s.left < 0:
		if _, err := s.c.start(s, e, nil, false, false); err != nil {
			return err
		}
		go s.upload(newUploadBuffer(false), nil, false, false)
		runtime.Gosched() // it goes first
		s.c.flush(s)
		return nil
	}
	if first.buf == nil {
		var err error
		first.buf = newUploadBuffer(s.left > smallUpload)
		if first.n, first.last, err = s.readBody(*first.buf); err != nil {
			return err
		}
	}
	whole := first.last && s.trailer == nil
	rest, err := s.c.start(s, e, (*first.buf)[:first.n], whole, true)
	if err != nil {
		return err
	}
	if whole && len(rest) == 0 {
		first.free()
		return nil
	}
	go s.upload(first.buf, rest, first.last, false)
	return nil
}

// firstPart is what was read of a body before it had a stream.
type firstPart struct {
	buf  *[]byte
	n    int
	last bool
}

func (f *firstPart) free() {
	if f.buf != nil {
		freeUploadBuffer(f.buf)
		f.buf = nil
	}
}

// readBody reads the next part of the body. last says that it was the last, and
// that the trailer is valid if there is one.
func (s *stream) readBody(b []byte) (n int, last bool, err error) {
	if s.left >= 0 && int64(len(b)) > s.left {
		b = b[:max(s.left, 1)] // when nothing is left, we read on for the trailer
	}
	for range maxEmptyReads {
		n, err = s.body.Read(b)
		if n > 0 || err != nil {
			break
		}
	}
	if s.left >= 0 {
		s.left -= int64(n)
		if s.left < 0 {
			return 0, false, &exchange.BodyError{Err: errTooLong}
		}
	}
	switch {
	case errors.Is(err, io.EOF) && s.left > 0:
		return 0, false, &exchange.BodyError{Err: io.ErrUnexpectedEOF}
	case errors.Is(err, io.EOF):
		return n, true, nil
	case err != nil:
		return 0, false, &exchange.BodyError{Err: err}
	case n == 0:
		return 0, false, &exchange.BodyError{Err: io.ErrNoProgress}
	}
	return n, s.left == 0 && s.trailer == nil, nil
}

// upload is the goroutine that sends the rest of a body: first rest, a part of
// buf, and when that is not the last what the body has to give. With ask it waits
// until the server wants it.
func (s *stream) upload(buf *[]byte, rest []byte, last, ask bool) {
	err := errStopped
	if !ask || s.wanted() {
		buf, err = s.transfer(buf, rest, last)
	}
	freeUploadBuffer(buf)
	if err == nil || errors.Is(err, errStopped) {
		return
	}
	s.mu.Lock()
	whole := s.whole
	s.mu.Unlock()
	if !whole { // else the reply stands, and nobody needs the request
		s.stop(err)
	}
}

// wanted waits for the server's answer to "Expect: 100-continue", or for the time
// after which the body is sent without. A final reply means that it is not wanted
// (RFC 9110 10.1.1), unless it is one of success that goes on: such a server has
// begun to answer before it reads, and waits for us.
func (s *stream) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.proceed && !s.headed.Load() && s.err == nil {
		s.changed.Wait()
	}
	s.proceedBy.Store(0)
	success := s.headed.Load() && s.head.status < 300
	return s.err == nil && !s.whole && (s.proceed || success)
}

// transfer does the work of upload. It returns the buffer, which may be another.
func (s *stream) transfer(buf *[]byte, rest []byte, last bool) (*[]byte, error) {
	for {
		end := last && s.trailer == nil
		if err := s.sendBody(rest, end); err != nil || end {
			return buf, err
		}
		if last {
			return buf, s.sendTrailer()
		}
		if len(rest) == smallUpload {
			freeUploadBuffer(buf)
			buf = newUploadBuffer(true)
		}
		s.stopClock()
		var n int
		var err error
		n, last, err = s.readBody(*buf)
		if err != nil {
			return buf, err
		}
		rest = (*buf)[:n]
	}
}

// sendBody sends p as the windows allow, and returns errStopped when nobody wants
// it any more.
func (s *stream) sendBody(p []byte, end bool) error {
	c := s.c
	c.mu.Lock()
	for !s.dropped {
		if c.writeErr != nil { // the reader of the connection ends the stream soon
			s.waitLocked()
			continue
		}
		p = s.sendPartLocked(p, end)
		switch {
		case len(p) == 0 && s.flushes && !s.sentEnd:
			c.mu.Unlock() // what comes next may leave with it
			return nil
		case len(p) == 0:
			c.flushAndUnlock(len(c.streams) > 1, true)
			return nil
		case !c.flushing && len(c.pending) > 0:
			c.flushAndUnlock(false, true)
			c.mu.Lock()
		default:
			s.waitLocked()
		}
	}
	c.mu.Unlock()
	return errStopped
}

// sendPartLocked sends what may be sent of p now, and returns the rest. The
// server's silence begins anew with each part.
func (s *stream) sendPartLocked(p []byte, end bool) []byte {
	c := s.c
	before := len(p)
	if before > 0 {
		p = c.sendLocked(s, p, end)
	} else if end {
		c.pending = appendData(c.pending, s.id, nil, true)
		c.queued += frameHeader
		s.sentEnd = true
	}
	if len(p) < before || s.sentEnd {
		s.startClock(c.now())
	}
	return p
}

// waitLocked waits until there may be something to send.
func (s *stream) waitLocked() {
	if s.deadline.Load() == 0 { // the server keeps us waiting
		s.startClock(s.c.now())
	}
	s.blocked = true
	s.c.blocked++
	s.room.Wait()
	s.c.blocked--
	s.blocked = false
}

// sendTrailer ends the request with its trailer.
func (s *stream) sendTrailer() error {
	e := newEncoder()
	defer e.free()
	if err := e.trailer(s.trailer()); err != nil {
		return err
	}
	block := e.block[1:] // without noTable
	if len(block) == 0 {
		return s.sendBody(nil, true)
	}
	c := s.c
	now := c.now()
	c.mu.Lock()
	if s.dropped {
		c.mu.Unlock()
		return errStopped
	}
	before := len(c.pending)
	c.pending = appendBlock(c.pending, s.id, block, true, c.maxFrame)
	c.queued += int64(len(c.pending) - before)
	s.sentEnd = true
	s.startClock(now)
	c.flushAndUnlock(len(c.streams) > 1, true)
	return nil
}
