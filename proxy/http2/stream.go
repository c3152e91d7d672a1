package http2

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	h2 "golang.org/x/net/http2"

	"edge/proxy/exchange"
)

// stream is one request and its reply. It is the Source of the reply and what
// the Canceler of the call aborts.
type stream struct {
	c        *conn
	canceler *exchange.Canceler
	isHead   bool          // the method is HEAD
	patience time.Duration // Call.FirstByte
	id       uint32        // set by conn.start

	body    io.Reader // owned by who uploads
	left    int64     // of a declared body; -1 when it is not
	trailer func() fields

	granted   grant
	answered  atomic.Bool  // a byte of a reply came
	headed    atomic.Bool  // the head is there
	deadline  atomic.Int64 // for the head, since conn.born; 0 is none
	proceedBy atomic.Int64 // when to send the body unasked; 0 is never

	// Guarded by conn.mu.
	room     sync.Cond // signalled when there may be something to send
	blocked  bool      // somebody waits for it
	sendable allowance
	sentEnd  bool
	flushes  bool // somebody is about to flush, see conn.start
	dropped  bool // the connection knows it no more
	from     int64

	mu       sync.Mutex
	changed  sync.Cond
	interims []head // 1xx replies that Do has not passed on
	interim  int    // 1xx replies so far
	head     head
	bodiless bool
	proceed  bool // the server wants the body, or did not answer
	buf      buffer
	got      int64 // bytes of the body
	whole    bool  // END_STREAM came
	trailers fields
	err      error // why the reply ends early
	over     bool  // nobody wants the reply any more
}

var (
	errStopped = errors.New("the stream has ended")
	errAborted = errors.New("the call was cancelled")
	errClosed  = errors.New("the reply is closed")
)

func newStream(c *conn, call *exchange.Call) *stream {
	s := &stream{
		c: c, canceler: call.Canceler, isHead: call.Method == methodHead, patience: call.FirstByte,
		body: call.Body, left: bodyLength(call), trailer: call.Trailer,
	}
	s.room.L, s.changed.L = &c.mu, &s.mu
	s.granted.init(streamWindow)
	return s
}

// invalid is the cause of a LostError whose reply breaks the protocol.
func invalid(reason string) error { return fmt.Errorf("%w: %s", exchange.ErrInvalidReply, reason) }

// lost says what is known of the request when the stream ends for err.
func (s *stream) lost(err error) *exchange.LostError {
	return &exchange.LostError{Err: err, Reused: s.id > 1, Answered: s.answered.Load()}
}

// await returns when the head of the reply is there.
func (s *stream) await(call *exchange.Call) (exchange.Reply, error) {
	s.mu.Lock()
	for {
		switch {
		case len(s.interims) > 0 && !s.over:
			h := s.interims[0]
			s.interims = s.interims[1:]
			s.mu.Unlock()
			if call.Interim != nil {
				call.Interim(h.status, h.fields)
			}
			s.mu.Lock()
		case s.headed.Load() && !s.over:
			h := s.head
			s.mu.Unlock()
			return exchange.Reply{Status: h.status, Header: h.fields, Length: h.length, Body: s}, nil
		case s.err != nil:
			err := s.err
			s.mu.Unlock()
			return exchange.Reply{}, s.leave(err)
		default:
			s.changed.Wait()
		}
	}
}

// cause is why the reply ended early.
func (s *stream) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// leave ends the reading of a reply: the Canceler no longer matters. It returns
// the error as the caller knows it.
func (s *stream) leave(err error) error {
	cause := s.canceler.Disarm()
	if cause != nil && errors.Is(err, errAborted) {
		return cause
	}
	return err
}

// Read implements exchange.Source.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	for s.buf.size == 0 && s.err == nil && !s.whole {
		s.changed.Wait()
	}
	n := s.buf.read(p)
	err := s.err
	if err == nil && s.whole {
		err = io.EOF
	}
	if s.buf.size > 0 {
		err = nil // not yet
	}
	s.mu.Unlock()
	if n > 0 {
		s.consumed(n)
		if err != nil && err != io.EOF { //nolint:errorlint // our own
			return n, nil // and the error next time
		}
	}
	if err != nil {
		err = s.leave(err)
	}
	return n, err
}

// Trailer implements exchange.Source.
func (s *stream) Trailer() exchange.Fields {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trailers
}

// Close implements exchange.Source. The server is told to stop unless its reply
// is complete.
func (s *stream) Close() error {
	s.stop(errClosed)
	_ = s.canceler.Disarm() // whether it was cancelled too does not matter now
	return nil
}

// Abort is called by the Canceler.
func (s *stream) Abort() { s.stop(errAborted) }

// stop ends the reply for its reader, and the stream.
func (s *stream) stop(err error) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over = true
	if s.err == nil {
		s.err = err
	}
	whole := s.whole
	s.buf.drop()
	s.changed.Broadcast()
	s.mu.Unlock()
	s.deadline.Store(0)
	if !whole { // else conn.ended is about to drop it, and there is nothing to cancel
		s.c.drop(s, h2.ErrCodeCancel)
	}
}

// lose ends the reply for its reader when what has come is read.
func (s *stream) lose(err error) {
	s.mu.Lock()
	if s.err == nil && !s.whole {
		s.err = err
		s.changed.Broadcast()
	}
	s.mu.Unlock()
	s.deadline.Store(0)
}

// consumed opens the window by n bytes that were read, or need not be.
func (s *stream) consumed(n int) {
	if more := s.granted.giveBack(int64(n)); more > 0 {
		s.c.update(s, more)
	}
}

// What follows is called by the reader of the connection.

// expect books a DATA frame of length bytes, n of them data, and says what is
// wrong with it.
func (s *stream) expect(length, n int, end bool) (code h2.ErrCode, malformed string) {
	if !s.granted.take(int64(length)) {
		return h2.ErrCodeFlowControl, "more than the window of the stream"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got += int64(n)
	switch {
	case !s.headed.Load():
		return h2.ErrCodeProtocol, "body before the head"
	case s.bodiless && n > 0:
		return h2.ErrCodeProtocol, "body of a reply that has none"
	}
	return h2.ErrCodeProtocol, s.measureLocked(end)
}

// measureLocked compares the body with its declared length (RFC 9113 8.1.1).
func (s *stream) measureLocked(end bool) (malformed string) {
	switch {
	case s.head.length < 0 || s.bodiless:
	case s.got > s.head.length:
		return "body longer than declared"
	case end && s.got < s.head.length:
		return "body shorter than declared"
	}
	return ""
}

// push queues a part of the body, unless nobody wants it.
func (s *stream) push(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.err != nil {
		return
	}
	s.buf.write(b)
	s.changed.Broadcast()
}

// complete ends the reply in good order.
func (s *stream) complete(trailer fields) {
	s.mu.Lock()
	if s.err == nil {
		s.whole, s.trailers = true, trailer
		s.changed.Broadcast()
	}
	s.mu.Unlock()
}

// block takes a decoded field block, and says what is wrong with it.
func (s *stream) block(d *decoder, end bool) (trailer fields, malformed string) {
	if s.headed.Load() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !end {
			return nil, "second head"
		}
		if malformed := s.measureLocked(true); malformed != "" {
			return nil, malformed
		}
		return d.trailerFields()
	}
	h, malformed := d.responseHead()
	switch {
	case malformed != "":
		return nil, malformed
	case h.status < 200:
		return nil, s.informed(h, end)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodiless = s.isHead || h.status == 204 || h.status == 304
	if end && h.length < 0 && !s.isHead {
		h.length = 0
	}
	s.head = h
	if end {
		malformed = s.measureLocked(true)
	}
	if malformed == "" {
		s.headed.Store(true)
		s.deadline.Store(0)
		s.changed.Broadcast()
	}
	return nil, malformed
}

// informed takes a 1xx reply (RFC 9113 8.1, 8.6).
func (s *stream) informed(h head, end bool) (malformed string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interim++
	switch {
	case h.status == 101:
		return "status 101"
	case end:
		return "interim reply that ends the stream"
	case s.interim > maxInterim:
		return "too many interim replies"
	}
	s.interims = append(s.interims, h)
	s.proceed = s.proceed || h.status == 100
	if s.deadline.Load() != 0 {
		s.startClock(s.c.now())
	}
	s.changed.Broadcast()
	return ""
}

// The clock for the head of the reply.

// startClock bounds the server's silence from now on.
func (s *stream) startClock(now time.Duration) {
	if s.patience <= 0 || s.headed.Load() {
		return
	}
	by := now + s.patience
	s.deadline.Store(int64(by))
	if s.headed.Load() { // meanwhile
		s.deadline.Store(0)
		return
	}
	s.c.wakeBy(by)
}

// stopClock is called while the server waits for us.
func (s *stream) stopClock() { s.deadline.Store(0) }

// due does what is due at a time: the watch calls it.
func (s *stream) due(now time.Duration) {
	if by := s.deadline.Load(); by != 0 && by <= int64(now) {
		s.stop(exchange.ErrFirstByte)
	}
	if by := s.proceedBy.Load(); by != 0 && by <= int64(now) {
		s.proceedBy.Store(0)
		s.mu.Lock()
		s.proceed = true
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}

// wakeLocked has who waits to send look again; conn.mu is held.
func (s *stream) wakeLocked() {
	if s.blocked {
		s.room.Signal()
	}
}
