package http1

import (
	"net"
	"sync"
)

// tunnel is a connection after a 101. The Canceler of its call closes it too.
type tunnel struct {
	net.Conn

	c     *conn
	early []byte // what came behind the head; owned by the reader
	once  sync.Once
}

func newTunnel(c *conn) *tunnel {
	t := &tunnel{Conn: c.nc, c: c}
	if c.r < c.w {
		t.early = append(t.early, c.buf[c.r:c.w]...)
	}
	c.release()
	return t
}

// Read returns first what the server sent right behind its head.
func (t *tunnel) Read(p []byte) (int, error) {
	if len(t.early) == 0 {
		return t.Conn.Read(p)
	}
	n := copy(p, t.early)
	t.early = t.early[n:]
	return n, nil
}

// CloseWrite tells the server the end of what it is sent, and leaves the other
// direction open.
func (t *tunnel) CloseWrite() error { return closeWrite(t.Conn) }

// Close closes the connection without waiting for anything.
func (t *tunnel) Close() error {
	t.once.Do(func() {
		_ = t.c.call.Canceler.Disarm()
		t.c.abandon()
	})
	return nil
}
