package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxHead      = 64 << 10         // bytes of a reply's head, and of each 1xx
	maxInterim   = 8                // 1xx replies to one request
	maxIdleConns = 256              // kept-alive connections of a Backend
	idleConn     = 4 * time.Second  // uvicorn closes after 5
	bufferSize   = 16 << 10         // of a connection, each way
	keepAlive    = 30 * time.Second // TCP probes
	lostGrace    = 5 * time.Second  // for the reply of a server that stopped reading
	drainGrace   = time.Second      // for net/http to look at a connection that it lends
	handshake    = 10 * time.Second // dial and TLS when a pool sets no connect timeout
)

// dialFunc is net.Dialer.DialContext.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func defaultDial() dialFunc {
	return (&net.Dialer{KeepAlive: keepAlive}).DialContext
}

// connectKey is the context key of a pool's connect timeout. A Transport dials
// with a context that has the values but not the deadline of the request that
// asked for the connection.
type connectKey struct{}

// unconnected marks an error of connecting: no request was under way on it.
type unconnected struct{ error }

func (u unconnected) Unwrap() error { return u.error }

// newTransport returns the engine of a Backend. tlsConfig nil is plain HTTP.
func newTransport(dial dialFunc, tlsConfig *tls.Config) *http.Transport {
	connect := func(ctx context.Context, network, address string) (net.Conn, error) {
		timeout, _ := ctx.Value(connectKey{}).(*time.Duration)
		limit := handshake
		if timeout != nil && *timeout > 0 {
			limit = *timeout
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return connectTo(ctx, dial, tlsConfig, network, address)
	}
	return &http.Transport{
		DialContext:            connect,
		DialTLSContext:         connect,
		Protocols:              http1Only(),
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleConn,
		MaxResponseHeaderBytes: maxHead,
		WriteBufferSize:        bufferSize,
		ReadBufferSize:         bufferSize,
	}
}

func http1Only() *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	return &p
}

// connectTo opens a connection and, for https, completes the handshake, all
// before the deadline of ctx.
func connectTo(ctx context.Context, dial dialFunc, tlsConfig *tls.Config, network, address string) (net.Conn, error) {
	raw, err := dial(ctx, network, address)
	if err != nil {
		return nil, unconnected{err}
	}
	if tlsConfig == nil {
		return newConn(raw), nil
	}
	secure := tls.Client(raw, tlsConfig)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error says more
		return nil, unconnected{err}
	}
	return newConn(secure), nil
}

// conn tells the attempt that uses it when net/http closes it, and defers the
// news of a failed write until the reply that may explain it was read.
type conn struct {
	net.Conn
	user atomic.Pointer[attempt] // nil while idle

	reading atomic.Bool   // a Read is under way
	begun   chan struct{} // of capacity 1: a Read has begun

	closed    chan struct{}
	closeOnce sync.Once
}

func newConn(c net.Conn) *conn {
	return &conn{Conn: c, begun: make(chan struct{}, 1), closed: make(chan struct{})}
}

// Read says that it is under way, for drained.
func (c *conn) Read(p []byte) (int, error) {
	c.reading.Store(true)
	select {
	case c.begun <- struct{}{}:
	default:
	}
	n, err := c.Conn.Read(p)
	c.reading.Store(false)
	return n, err
}

// drained waits until net/http, which owns an idle connection, has either used up
// what it had read of it and reads on, or closed it because something was left. A
// Transport lends an idle connection before it has looked, and what an endpoint
// sent too much would be the reply to somebody else's request.
func (c *conn) drained() {
	if c.reading.Load() {
		return
	}
	timer := time.NewTimer(drainGrace)
	defer timer.Stop()
	for !c.reading.Load() {
		select {
		case <-c.begun:
		case <-c.closed:
			return
		case <-timer.C:
			_ = c.Close() // nothing was written: the request takes another
			return
		}
	}
}

// Write returns an error late when a reply may still be read. A server that
// refuses an upload (413, 401) answers, stops reading and closes; net/http
// drops the reply as soon as a write fails, so it learns of that when the
// reply is complete or broken off, or after lostGrace.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	a := c.user.Load()
	if err == nil || a == nil {
		return n, err
	}
	timer := time.NewTimer(lostGrace)
	defer timer.Stop()
	select {
	case <-a.done:
	case <-c.closed:
	case <-timer.C:
	}
	return n, err
}

// Close also wakes the write loop when that waits for the client: Transport
// waits for it before it reports that the connection was lost.
func (c *conn) Close() error {
	c.closeOnce.Do(func() { close(c.closed) })
	if a := c.user.Load(); a != nil {
		a.body.abort()
	}
	return c.Conn.Close()
}

// CloseWrite is for tunnels.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// clock ends an attempt whose endpoint neither accepts the request nor
// answers it for a while.
type clock struct {
	limit  time.Duration // 0 is off
	expire func()

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

// restart begins the time anew.
func (c *clock) restart() {
	if c.limit <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stopped:
	case c.timer == nil:
		c.timer = time.AfterFunc(c.limit, c.expire)
	default:
		c.timer.Reset(c.limit)
	}
}

// pause stands still until restart.
func (c *clock) pause() {
	if c.limit <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
}

// stop ends the clock for good.
func (c *clock) stop() {
	if c.limit <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
}
