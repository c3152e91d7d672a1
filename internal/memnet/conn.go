package memnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// bufferSize is what one direction of a connection holds before a writer has to
// wait, about the least that a socket does.
const bufferSize = 64 << 10

// Conn is one end of a connection. Like *net.TCPConn it has CloseWrite.
type Conn struct {
	local, remote net.Addr
	in, out       *half
}

// pipe makes both ends of a connection.
func pipe(client, server netip.AddrPort) (*Conn, *Conn) {
	a, b := newHalf(), newHalf()
	ca, sa := net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(server)
	return &Conn{local: ca, remote: sa, in: a, out: b}, &Conn{local: sa, remote: ca, in: b, out: a}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.wrap("read", err)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.wrap("write", err)
}

// Close implements net.Conn: the other end reads what has been written and then
// EOF, and its writes fail. Like TCP, it resets the connection if it has bytes
// that nobody has read.
func (c *Conn) Close() error {
	if c.in.unread() {
		c.Reset()
		return nil
	}
	c.out.finish(nil)
	c.in.refuse()
	return nil
}

// CloseWrite ends one direction: the other end reads EOF and may still write.
func (c *Conn) CloseWrite() error {
	c.out.finish(nil)
	return nil
}

// Reset ends both directions at once, as RST does: what has not been read is
// lost.
func (c *Conn) Reset() {
	c.out.finish(syscall.ECONNRESET)
	c.in.refuse()
}

// LocalAddr implements net.Conn; it is a *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn; it is a *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.readLimit.set(t)
	c.out.writeLimit.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.readLimit.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.writeLimit.set(t)
	return nil
}

func (c *Conn) wrap(op string, err error) error {
	if err == nil || err == io.EOF { //nolint:errorlint // EOF is returned as it is
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// half is one direction of a connection.
type half struct {
	readLimit, writeLimit deadline

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when something below changes
	buf     []byte
	ended   bool  // the writer has finished
	err     error // why, if not in good order
	refused bool  // the reader has closed
}

func newHalf() *half {
	return &half{changed: make(chan struct{}), readLimit: newDeadline(), writeLimit: newDeadline()}
}

func (h *half) read(p []byte) (int, error) {
	for {
		limit, over := h.readLimit.state()
		h.mu.Lock()
		changed := h.changed
		var n int
		var err error
		switch {
		case h.refused:
			err = net.ErrClosed
		case over:
			err = os.ErrDeadlineExceeded
		case h.err != nil:
			err = h.err
		case len(h.buf) > 0:
			n = copy(p, h.buf)
			h.buf = h.buf[n:]
			h.changeLocked()
		case h.ended:
			err = io.EOF
		}
		h.mu.Unlock()
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-changed:
		case <-limit:
		}
	}
}

func (h *half) write(p []byte) (int, error) {
	written := 0
	for {
		limit, over := h.writeLimit.state()
		h.mu.Lock()
		changed := h.changed
		switch {
		case h.ended:
			h.mu.Unlock()
			return written, net.ErrClosed
		case h.refused:
			h.mu.Unlock()
			return written, syscall.EPIPE
		case over:
			h.mu.Unlock()
			return written, os.ErrDeadlineExceeded
		}
		if n := min(len(p), bufferSize-len(h.buf)); n > 0 {
			h.buf = append(h.buf, p[:n]...)
			p = p[n:]
			written += n
			h.changeLocked()
			changed = h.changed
		}
		h.mu.Unlock()
		if len(p) == 0 {
			return written, nil
		}
		select {
		case <-changed:
		case <-limit:
		}
	}
}

// finish ends the writing side; err is what the reader gets instead of the rest.
func (h *half) finish(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended && err == nil {
		return
	}
	h.ended, h.err = true, err
	if err != nil {
		h.buf = nil
	}
	h.changeLocked()
}

// refuse ends the reading side.
func (h *half) refuse() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused = true
	h.buf = nil
	h.changeLocked()
}

func (h *half) unread() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.buf) > 0
}

func (h *half) changeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// deadline is a point in time that can be moved while somebody waits for it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	over  chan struct{} // closed when the time has come, or moved
	past  bool
}

func newDeadline() deadline { return deadline{over: make(chan struct{})} }

// state returns a channel that is closed at the deadline or when it is moved,
// and whether it is over.
func (d *deadline) state() (<-chan struct{}, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over, d.past
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	close(d.over) // who waits looks again
	d.over = make(chan struct{})
	d.past = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.past = true
		return
	}
	over := d.over
	d.timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.over != over { // moved meanwhile
			return
		}
		d.past = true
		close(d.over)
		d.over = make(chan struct{})
	})
}
