package http1

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"edge/proxy/exchange"
)

const maxInterim = 8 // replies before the reply

const (
	errInterims malformed = "too many interim replies"
	errVersion  malformed = "not HTTP/1"
)

// readReply reads heads until that of the reply, and starts an announced body
// when its time has come.
func (c *conn) readReply() (replyHead, error) {
	waiting := c.up != nil && !c.up.started
	for interims := 0; ; {
		h, err := c.readHead()
		if waiting && err != nil && isTimeout(err) {
			waiting = false
			c.startUpload()
			continue
		}
		if err != nil {
			return h, err
		}
		if h.status >= statusOK || h.status == statusSwitching {
			c.begun(h, waiting)
			return h, nil
		}
		if interims++; interims > maxInterim {
			return h, invalid(errInterims)
		}
		if h.status != statusContinue {
			if c.call.Interim != nil {
				c.call.Interim(h.status, h.fields)
			}
			if !waiting {
				c.restart()
			}
			continue
		}
		if waiting { // a 100 at another time answers nothing
			waiting = false
			c.startUpload()
		}
	}
}

// restart begins the silence of the server anew: an interim reply has broken it.
func (c *conn) restart() {
	limit := c.call.FirstByte
	switch {
	case limit <= 0 || c.sent != nil:
	case c.up != nil:
		c.up.restart(limit)
	default:
		_ = c.nc.SetReadDeadline(time.Now().Add(limit))
	}
}

// begun takes the deadlines away: the head of the reply is there.
func (c *conn) begun(h replyHead, waiting bool) {
	c.keep, c.told = h.keep, h.life
	c.refused = waiting
	switch {
	case c.up != nil && !waiting:
		c.up.head()
	case c.timed:
		_ = c.nc.SetDeadline(time.Time{})
	}
	c.timed = false
}

func invalid(err error) error { return fmt.Errorf("%w: %w", exchange.ErrInvalidReply, err) }

// readHead reads one head. After a timeout it can be called again.
func (c *conn) readHead() (replyHead, error) {
	var scan headScan
	for {
		head := c.buf[c.r:c.w]
		n, err := scan.find(head)
		switch {
		case err != nil:
			return replyHead{}, invalid(err)
		case n == 0 && len(head) >= maxHead:
			return replyHead{}, invalid(errHeadSize)
		case n > 0:
			c.r += n
			h, err := parseReply(string(head[:n]), scan.lines, c.call)
			if err != nil {
				return h, invalid(err)
			}
			if c.r == c.w {
				c.release()
			}
			return h, nil
		case !bytes.HasPrefix(head, []byte("HTTP/1.")[:min(len(head), len("HTTP/1."))]):
			return replyHead{}, invalid(errVersion) // maybe without a line for ever
		}
		if err := c.fill(); err != nil {
			return replyHead{}, fmt.Errorf("read reply: %w", err)
		}
	}
}

// deliver makes the reply of a head.
func (c *conn) deliver(h replyHead) exchange.Reply {
	reply := exchange.Reply{Status: h.status, Header: h.fields, Length: h.length, Body: empty{}}
	switch {
	case h.status == statusSwitching:
		reply.Tunnel = newTunnel(c)
	case h.framing == noBody:
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

// body is the body of one reply. It lets go of the connection at its end, so that
// a late Close meets no other call's.
type body struct {
	framing framing

	// Owned by the reader.
	c      *conn
	left   int64
	chunks chunkReader
	err    error // sticky

	mu     sync.Mutex
	over   bool // the connection is no longer ours
	closed bool
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
	n, err := b.read(p)
	if err != nil {
		b.err = b.end(err)
	}
	return n, b.err
}

func (b *body) read(p []byte) (int, error) {
	c := b.c
	if b.framing == byChunks {
		return b.readChunks(p)
	}
	if b.framing == byLength {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := 0, error(nil)
	if c.r < c.w {
		n = copy(p, c.buf[c.r:c.w])
		c.consume(n)
	} else {
		n, err = c.nc.Read(p)
	}
	if b.framing == byClose {
		if err == io.EOF { //nolint:errorlint // as connections return it
			err = c.endOfStream()
		}
		return n, readError(err)
	}
	if b.left -= int64(n); b.left == 0 {
		return n, io.EOF
	}
	if err == io.EOF { //nolint:errorlint // as connections return it
		err = io.ErrUnexpectedEOF
	}
	return n, readError(err)
}

// readChunks reads into p with the framing and takes that out in place.
func (b *body) readChunks(p []byte) (int, error) {
	c := b.c
	for {
		if c.r == c.w && len(p) >= smallRead {
			k, err := c.nc.Read(p)
			n, used, derr := b.chunks.decode(p, p[:k])
			if derr == io.EOF { //nolint:errorlint // as decode returns it
				c.keep = c.keep && used == k
				return n, io.EOF
			}
			if derr != nil {
				return n, invalid(derr)
			}
			if err == io.EOF { //nolint:errorlint // as connections return it
				err = io.ErrUnexpectedEOF
			}
			if n > 0 || err != nil {
				return n, readError(err)
			}
			continue
		}
		if c.r == c.w {
			if err := c.fill(); err != nil {
				if err == io.EOF { //nolint:errorlint // as connections return it
					err = io.ErrUnexpectedEOF
				}
				return 0, readError(err)
			}
		}
		n, used, err := b.chunks.decode(p, c.buf[c.r:c.w])
		c.consume(used)
		if err != nil && err != io.EOF { //nolint:errorlint // as decode returns it
			err = invalid(err)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func readError(err error) error {
	if err == nil || err == io.EOF { //nolint:errorlint // what it means was decided
		return err
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
	closed := b.closed
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
	b.closed = true
	if !b.over { // so c is still there
		b.c.Abort()
		if b.c.up != nil {
			b.c.up.stop()
		}
	}
	return nil
}
