package http1

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"edge/proxy/exchange"
)

const (
	readSize  = 8 << 10  // what waits for a head
	writeSize = 64 << 10 // of a head with the first piece of a body, and of each further one
)

var (
	readBuffers  = sync.Pool{New: func() any { return new([readSize]byte) }}
	writeBuffers = sync.Pool{New: func() any { return new([writeSize]byte) }}
)

// conn is one connection. It belongs to the goroutine of the call under way, or
// to the idle pool, except Abort.
type conn struct {
	client  *Client
	nc, raw net.Conn // raw is nc, or what is below its TLS
	tls     bool
	note    *noteEOF              // nil without
	sys     syscall.RawConn       // nil when there is no socket to look at
	peekFD  func(fd uintptr) bool // peeks into quiet; made once, not per look
	quiet   bool
	used    bool // has carried a request before this one
	expires time.Time
	told    time.Duration // life of an idle connection as the server told; -1 when not

	// Of the call under way.
	call     *exchange.Call
	up       *upload // nil when no goroutine sends the body
	timed    bool    // a deadline is set
	sent     error   // what the first write failed with
	refused  bool    // the body was announced and never sent
	wrote    time.Time
	answered bool // a byte of a reply arrived
	keep     bool

	small *[readSize]byte // pooled; nil when nothing is buffered
	big   *[writeSize]byte
	buf   []byte // one of them, with the bytes from r to w to be read
	r, w  int
}

func newConn(client *Client, nc net.Conn) *conn {
	c := &conn{client: client, nc: nc, raw: nc, told: -1}
	if t, ok := nc.(*tls.Conn); ok {
		c.tls, c.raw = true, t.NetConn()
		c.note, _ = c.raw.(*noteEOF)
	}
	socket := c.raw
	for {
		if s, ok := socket.(syscall.Conn); ok {
			if sys, err := s.SyscallConn(); err == nil {
				c.sys = sys
				c.peekFD = func(fd uintptr) bool { c.quiet = peek(fd); return true }
			}
			return c
		}
		w, ok := socket.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		socket = w.NetConn()
	}
}

// Abort ends what is under way at once. Not politely: TLS would wait up to 5 s
// for room to say goodbye in.
func (c *conn) Abort() { _ = c.raw.Close() }

// abandon closes a connection in the middle of something.
func (c *conn) abandon() { _ = c.raw.Close() }

// close closes a connection on which all is said, with a goodbye under TLS.
func (c *conn) close() { _ = c.nc.Close() }

// alive reports whether an idle connection is still open and quiet. What a server
// sends unasked would be taken for the reply to the next request.
func (c *conn) alive() bool {
	if !time.Now().Before(c.expires) {
		return false
	}
	if c.sys == nil {
		return true
	}
	c.quiet = false
	return c.sys.Read(c.peekFD) == nil && c.quiet
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// drained reports whether TLS holds nothing that it has read ahead, which peek
// cannot see.
func (c *conn) drained() bool {
	if !c.tls {
		return true
	}
	var b [1]byte
	c.timed = true
	if c.nc.SetReadDeadline(past) != nil {
		return false
	}
	n, err := c.nc.Read(b[:])
	return n == 0 && isTimeout(err)
}

// fill reads more behind what is buffered.
func (c *conn) fill() error {
	if c.buf == nil {
		c.small = readBuffers.Get().(*[readSize]byte) //nolint:forcetypeassert // the pool holds nothing else
		c.buf = c.small[:]
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w == len(c.buf) {
		c.makeRoom()
	}
	n, err := c.nc.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		c.answered = true
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// makeRoom moves what is buffered to the front or into a larger buffer. The
// caller never asks when it has maxHead bytes.
func (c *conn) makeRoom() {
	if c.r == 0 && c.big == nil {
		c.big = writeBuffers.Get().(*[writeSize]byte) //nolint:forcetypeassert // the pool holds nothing else
		copy(c.big[:], c.buf)
		readBuffers.Put(c.small)
		c.small, c.buf = nil, c.big[:]
		return
	}
	c.w = copy(c.buf, c.buf[c.r:c.w])
	c.r = 0
}

// release gives the buffer back, and what is in it up.
func (c *conn) release() {
	if c.small != nil {
		readBuffers.Put(c.small)
	}
	if c.big != nil {
		writeBuffers.Put(c.big)
	}
	c.small, c.big, c.buf, c.r, c.w = nil, nil, nil, 0, 0
}

// send sends the head with what s has read of the body, and sees to the rest.
func (c *conn) send(s *sender) error {
	c.keep, c.answered, c.sent, c.refused = false, false, nil, false
	start := time.Now()
	limit := c.call.FirstByte
	if limit > 0 {
		c.timed = true
		_ = c.nc.SetDeadline(start.Add(limit)) // fails when closed, as the write does
	}
	n, err := c.nc.Write(s.pending)
	c.wrote = time.Now()
	if err != nil {
		s.release()
		return c.sendFailed(n, err)
	}
	if s.left == 0 {
		s.release()
		if limit > 0 && c.wrote.Sub(start) > limit/64 {
			_ = c.nc.SetReadDeadline(c.wrote.Add(limit))
		}
		return nil
	}
	c.up = &upload{c: c, sender: *s, wrote: c.wrote, done: make(chan struct{})}
	if s.expect {
		c.timed = true
		_ = c.nc.SetReadDeadline(c.wrote.Add(continueWait))
		return nil
	}
	c.startUpload()
	return nil
}

// startUpload starts to send the body, or what is left of it. The silence of the
// server counts when that is done.
func (c *conn) startUpload() {
	if c.timed {
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	c.up.started = true
	go c.up.run()
}

// sendFailed decides on a first write that failed after n bytes. A server may
// refuse a request before it has read it, and close: then its reply tells more.
func (c *conn) sendFailed(n int, err error) error {
	if n == 0 || isTimeout(err) || errors.Is(err, net.ErrClosed) {
		c.sent = err
		return &writeError{err: err, unsent: n == 0}
	}
	c.sent = err
	c.timed = true
	_ = c.nc.SetReadDeadline(c.wrote.Add(grace(c.call)))
	return nil
}

// lostGrace is how long the reply of a server may take that stopped reading.
const lostGrace = 5 * time.Second

func grace(call *exchange.Call) time.Duration {
	if limit := call.FirstByte; limit > 0 {
		return min(limit, lostGrace)
	}
	return lostGrace
}

type writeError struct {
	err    error
	unsent bool
}

func (w *writeError) Error() string { return "write request: " + w.err.Error() }
func (w *writeError) Unwrap() error { return w.err }

// fail ends the call with err, what a read or write on the connection failed
// with or what is wrong with the reply, and returns what that means.
func (c *conn) fail(err error) error {
	cause := c.call.Canceler.Disarm()
	c.abandon()
	wrote, upErr := c.wrote, error(nil)
	if c.up != nil {
		wrote, upErr = c.up.stop()
	}
	answered := c.answered
	c.release()
	if cause != nil {
		return cancelled(cause)
	}
	if b, ok := errors.AsType[*exchange.BodyError](upErr); ok {
		return b
	}
	if errors.Is(upErr, exchange.ErrUnsendable) {
		return upErr
	}
	unsent := false
	if w, ok := errors.AsType[*writeError](err); ok {
		unsent = w.unsent
	}
	if isTimeout(err) {
		if upErr == nil {
			upErr = c.sent
		}
		if upErr == nil || isTimeout(upErr) {
			return exchange.ErrFirstByte
		}
		err = upErr // the grace for its reply is over
	}
	lost := &exchange.LostError{Err: err, Unsent: unsent, Reused: c.used, Answered: answered, Closed: isClosed(err)}
	if lost.Closed {
		lost.After = time.Since(wrote)
	}
	if errors.Is(err, io.EOF) { // which would look like a good end
		lost.Err = errCut
	}
	return lost
}

// errCut is the end of a connection before the end of the reply.
var errCut = fmt.Errorf("connection closed by the server: %w", io.ErrUnexpectedEOF)

// isClosed reports whether the server has ended the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// finish ends a call whose reply is complete. The connection is kept when the
// request is, too.
func (c *conn) finish() {
	cause := c.call.Canceler.Disarm()
	complete := c.sent == nil && !c.refused
	if c.up != nil {
		complete = c.up.finish() && complete
		c.up = nil
	}
	surplus := c.r != c.w
	c.release()
	switch {
	case cause != nil || !complete:
		c.abandon()
	case !c.keep || surplus || !c.drained():
		c.close()
	default:
		if c.timed {
			c.timed = false
			_ = c.nc.SetDeadline(time.Time{})
		}
		c.used = true
		c.client.put(c)
	}
}

// explain is the meaning of an err of a Read when the body ended with the
// connection: good only if the server said so.
func (c *conn) endOfStream() error {
	if c.tls && (c.note == nil || c.note.eof.Load()) {
		return fmt.Errorf("no close_notify: %w", io.ErrUnexpectedEOF)
	}
	return io.EOF
}
