package http1

import (
	"crypto/tls"
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
	look    func(fd uintptr) bool // sets quiet; made once, not for each look
	quiet   bool
	probe   [1]byte
	used    bool // has carried a request before this one
	expires time.Time
	told    time.Duration // life of an idle connection as the server told; -1 when not

	// Of the call under way.
	call     *exchange.Call
	up       *upload   // nil when no goroutine sends the body
	timed    bool      // a deadline is set
	sent     error     // what the first write failed with
	refused  bool      // the body was announced and never sent
	wrote    time.Time // the first bytes of the request
	answered bool      // a byte of a reply arrived
	keep     bool

	small *[readSize]byte // pooled; nil when nothing is buffered
	big   *[writeSize]byte
	buf   []byte // one of them, with the bytes from r to w to be read
	r, w  int
}

// newConn looks below what dial returned: for TLS, which must not be waited for
// when it is closed in a hurry, and for the socket.
func newConn(client *Client, nc net.Conn) *conn {
	c := &conn{client: client, nc: nc, raw: nc, told: -1}
	for layer := nc; ; {
		switch l := layer.(type) {
		case *tls.Conn:
			c.tls, c.raw = true, l.NetConn()
		case *noteEOF:
			c.note = l
		}
		if s, ok := layer.(syscall.Conn); ok {
			if sys, err := s.SyscallConn(); err == nil {
				c.sys = sys
				c.look = func(fd uintptr) bool { c.quiet = peek(fd); return true }
			}
			return c
		}
		w, ok := layer.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		layer = w.NetConn()
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
		return c.silent(c.raw, time.Now().Add(glance))
	}
	c.quiet = false
	return c.sys.Read(c.look) == nil && c.quiet
}

// glance is how long is waited for a byte on what is no socket, and so is part of
// a test. Its read fails with a deadline that is over, whatever there is to read.
const glance = time.Microsecond

// silent reports whether a read has nothing to return before the deadline.
func (c *conn) silent(nc net.Conn, deadline time.Time) bool {
	c.timed = true
	if nc.SetReadDeadline(deadline) != nil {
		return false
	}
	n, err := nc.Read(c.probe[:])
	return n == 0 && isTimeout(err)
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// drained reports whether TLS holds nothing that it has read ahead, which peek
// cannot see.
func (c *conn) drained() bool { return !c.tls || c.silent(c.nc, past) }

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
	giveBack(c.small, c.big)
	c.small, c.big, c.buf, c.r, c.w = nil, nil, nil, 0, 0
}

func giveBack(small *[readSize]byte, big *[writeSize]byte) {
	if small != nil {
		readBuffers.Put(small)
	}
	if big != nil {
		writeBuffers.Put(big)
	}
}

// send sends the head with what s has read of the body, and sees to the rest.
func (c *conn) send(s *sender) error {
	c.keep, c.answered, c.sent, c.refused = false, false, nil, false
	start := time.Now()
	limit := c.call.FirstByte
	switch {
	case limit > 0:
		c.timed = true
		_ = c.nc.SetDeadline(start.Add(limit)) // fails when closed, as the write does
	case c.timed:
		c.timed = false
		_ = c.nc.SetDeadline(time.Time{})
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
	c.up = &upload{c: c, sender: *s, done: make(chan struct{})}
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
