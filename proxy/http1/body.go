package http1

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"edge/proxy/exchange"
)

// deliver makes the reply of a head.
func (c *conn) deliver(h replyHead) exchange.Reply {
	reply := exchange.Reply{Status: h.status, Header: h.fields, Length: h.length, Body: empty{}}
	switch {
	case h.status == statusSwitching:
		reply.Tunnel = newTunnel(c)
	case h.framing == noBody:
		c.finish()
	case h.framing == byLength && int64(c.w-c.r) >= h.length:
		reply.Body = c.detach(int(h.length))
		c.finish()
	default:
		reply.Body = &body{c: c, framing: h.framing, left: h.length}
	}
	return reply
}

// empty is the body of a reply without one.
type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.EOF }
func (empty) Trailer() exchange.Fields { return nil }
func (empty) Close() error             { return nil }

// whole is a body that came with its head, as that of most small replies does. The
// connection serves others already, also when nobody wants this one.
type whole struct {
	rest   []byte // in one of the pooled buffers
	small  *[readSize]byte
	big    *[writeSize]byte
	closed atomic.Bool
}

// detach takes the buffer, of which the body is the next n bytes. What is behind
// it spoils the connection.
func (c *conn) detach(n int) *whole {
	b := &whole{rest: c.buf[c.r : c.r+n], small: c.small, big: c.big}
	c.keep = c.keep && c.r+n == c.w
	c.small, c.big, c.buf, c.r, c.w = nil, nil, nil, 0, 0
	return b
}

// Read returns io.EOF with the last byte.
func (b *whole) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errClosed
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	if len(b.rest) > 0 {
		return n, nil
	}
	giveBack(b.small, b.big)
	b.small, b.big, b.rest = nil, nil, nil
	return n, io.EOF
}

func (*whole) Trailer() exchange.Fields { return nil }

// Close leaves the buffer to the collector: a Read may be looking at it.
func (b *whole) Close() error {
	b.closed.Store(true)
	return nil
}

// body is the body of one reply. It lets go of the connection at its end, so that
// a late Close meets no other call's.
type body struct {
	framing framing

	// Owned by the reader.
	c      *conn
	left   int64
	chunks chunkReader
	err    error // sticky

	closed atomic.Bool

	mu   sync.Mutex
	over bool // the connection is no longer ours
}

// smallRead is what is read through a buffer rather than straight into the
// caller's, whose chunk would be all framing.
const smallRead = 64

// Read returns what is there, of several chunks if so, and waits only for the
// first byte.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	var n int
	err := errClosed
	if !b.closed.Load() {
		n, err = b.read(p)
	}
	if err != nil {
		b.err = b.end(err)
	}
	return n, b.err
}

func (b *body) read(p []byte) (n int, err error) {
	switch b.framing {
	case byChunks:
		return b.readChunks(p)
	case byLength:
		n, err = b.c.read(p[:min(int64(len(p)), b.left)])
		if b.left -= int64(n); b.left == 0 {
			return n, io.EOF
		}
	case byClose, noBody:
		n, err = b.c.read(p)
		if err == io.EOF { //nolint:errorlint // as connections return it
			return n, b.c.endOfStream()
		}
	}
	return n, cut(err)
}

// read reads what is buffered, or else straight from the connection.
func (c *conn) read(p []byte) (int, error) {
	if c.r == c.w {
		return c.nc.Read(p)
	}
	n := copy(p, c.buf[c.r:c.w])
	c.consume(n)
	return n, nil
}

func (b *body) readChunks(p []byte) (int, error) {
	for {
		var n int
		var err error
		if b.c.r == b.c.w && len(p) >= smallRead {
			n, err = b.readInPlace(p)
		} else {
			n, err = b.readBuffered(p)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// readInPlace reads into p what comes, framing and all, and takes that out.
func (b *body) readInPlace(p []byte) (int, error) {
	k, err := b.c.nc.Read(p)
	n, used, derr := b.chunks.decode(p, p[:k])
	if derr == nil {
		return n, cut(err)
	}
	if derr == io.EOF { //nolint:errorlint // as decode returns it
		b.c.keep = b.c.keep && used == k
		return n, io.EOF
	}
	return n, invalid(derr)
}

func (b *body) readBuffered(p []byte) (int, error) {
	c := b.c
	if c.r == c.w {
		if err := c.fill(); err != nil {
			return 0, cut(err)
		}
	}
	n, used, err := b.chunks.decode(p, c.buf[c.r:c.w])
	c.consume(used)
	if err == nil || err == io.EOF { //nolint:errorlint // as decode returns it
		return n, err
	}
	return n, invalid(err)
}

// cut is the meaning of an err of a Read in the middle of a reply.
func cut(err error) error {
	if err == nil {
		return nil
	}
	if err == io.EOF { //nolint:errorlint // as connections return it
		return errCut
	}
	return fmt.Errorf("read reply: %w", err)
}

// consume takes n buffered bytes away; a body that goes on needs no buffer.
func (c *conn) consume(n int) {
	if c.r += n; c.r == c.w {
		c.release()
	}
}

// end lets go of the connection.
func (b *body) end(err error) error {
	b.mu.Lock()
	closed := b.closed.Load()
	b.over = true
	b.mu.Unlock()
	c := b.c
	b.c = nil
	if err == io.EOF && !closed { //nolint:errorlint // the good end, as it is
		c.finish()
		return io.EOF
	}
	err = c.fail(err)
	if closed {
		return errClosed
	}
	return err
}

// Trailer returns the fields behind the body after Read returned io.EOF.
func (b *body) Trailer() exchange.Fields {
	if b.err != io.EOF { //nolint:errorlint // as Read returns it
		return nil
	}
	return b.chunks.trailer
}

// Close gives up what is left of the body, and the connection with it.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed.Store(true)
	if !b.over { // so c is still there
		b.c.Abort()
		if b.c.up != nil {
			_ = b.c.up.stop() // nobody asks any more
		}
	}
	return nil
}
