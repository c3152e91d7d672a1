package http2

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"

	"edge/proxy/exchange"
)

// Options are how a Client keeps its connections. The zero value is production.
type Options struct {
	// Idle is how long a connection without streams is kept; 0 is a minute.
	Idle time.Duration
	// MaxAge is how long a connection takes new streams; 0 is half an hour. It
	// varies by a fifth, and the connection closes with its last stream, so that
	// servers that were added behind a name or a balancer are found.
	MaxAge time.Duration
	// MaxConns bounds the connections that take streams; 0 is 32. More are opened
	// when all have as many streams as the server takes.
	MaxConns int
	// OneShot gives each call a connection of its own, closed after the reply, for
	// checks of health.
	OneShot bool
}

func (o Options) idle() time.Duration {
	if o.Idle > 0 {
		return o.Idle
	}
	return idleTime
}

func (o Options) age() time.Duration {
	age := maxAge
	if o.MaxAge > 0 {
		age = o.MaxAge
	}
	return time.Duration(float64(age) * (firstAge + (1-firstAge)*rand.Float64())) //nolint:gosec // spreads load, guards nothing
}

func (o Options) conns() int {
	if o.MaxConns > 0 {
		return o.MaxConns
	}
	return connsToOne
}

// tick is fine enough for a short Idle.
func (o Options) tick() time.Duration {
	return max(time.Millisecond, min(tick, o.idle()/4))
}

// Client sends calls to one server and keeps the connections to it. Its methods
// may be called concurrently.
type Client struct {
	dial func(ctx context.Context) (net.Conn, error)
	o    Options

	mu      sync.Mutex
	conns   []*conn                      // that take streams, full or not
	dialing map[*context.CancelFunc]bool // dials for whoever waits
	waiting []*waiter                    // in order
	assumed int                          // streams that a new connection takes
	closed  bool
}

// waiter is a call that waits for a connection.
type waiter struct {
	granted chan grantOrError // of capacity 1
	aborted chan struct{}     // of capacity 1
	connect time.Duration
}

type grantOrError struct {
	c   *conn
	err error
}

// Abort is called by the Canceler, once.
func (w *waiter) Abort() { w.aborted <- struct{}{} }

// NewClient returns a Client that has not dialled yet. dial returns a connection
// on which HTTP/2 can be spoken at once: for TLS after the handshake, in which the
// server has agreed to "h2".
func NewClient(dial func(ctx context.Context) (net.Conn, error), o Options) *Client {
	return &Client{dial: dial, o: o, dialing: map[*context.CancelFunc]bool{}, assumed: assumedStreams}
}

// Do sends the call and returns when the head of its reply is there. Its errors,
// and those of the reply's Body, are a *exchange.DialError, *exchange.LostError or
// *exchange.BodyError, exchange.ErrFirstByte, one that wraps
// exchange.ErrUnsendable, or the cause given to the Canceler.
func (cl *Client) Do(call *exchange.Call) (exchange.Reply, error) {
	e := newEncoder()
	defer e.free()
	if err := e.request(call); err != nil {
		return exchange.Reply{}, err
	}
	if err := call.Canceler.Cause(); err != nil { // nobody dials for it
		return exchange.Reply{}, err
	}
	var first firstPart
	left := bodyLength(call)
	var gone error
	for range maxTries {
		c, err := cl.acquire(call)
		if err != nil {
			first.free()
			return exchange.Reply{}, err
		}
		s := newStream(c, call)
		s.left = left
		if err := call.Canceler.Arm(s); err != nil {
			c.drop(s, notReset)
			first.free()
			return exchange.Reply{}, err
		}
		err = s.send(call, e, &first)
		if err == nil {
			return s.await(call)
		}
		if errors.Is(err, errGone) { // the connection went away meanwhile
			left, gone = s.left, err
			c.drop(s, notReset)
			cl.retire(c)
			continue
		}
		s.stop(err)
		first.free()
		return exchange.Reply{}, s.leave(s.cause())
	}
	first.free()
	_ = call.Canceler.Disarm()
	return exchange.Reply{}, &exchange.LostError{Err: gone, Unsent: true}
}

// Close closes the connections: those without streams now, the others after their
// last. A later Do, of a request that began before a reload, still works, on a
// connection of its own.
func (cl *Client) Close() {
	cl.mu.Lock()
	cl.closed = true
	conns := cl.conns
	cl.conns = nil
	var idle []*conn
	for _, c := range conns {
		c.takes = false
		if c.open == 0 {
			idle = append(idle, c)
		}
	}
	cl.dialMoreLocked() // for those who waited for room on one of them
	cl.stopDialsLocked()
	cl.mu.Unlock()
	for _, c := range idle {
		c.end(failure{err: errRetired}, h2.ErrCodeNo, true)
	}
}

// connectBound is the time that a call gives to the connection.
func connectBound(call *exchange.Call) time.Duration {
	if call.Connect > 0 {
		return call.Connect
	}
	return connectTime
}

// acquire returns a connection on which the call may open a stream.
func (cl *Client) acquire(call *exchange.Call) (*conn, error) {
	cl.mu.Lock()
	if cl.o.OneShot || cl.closed {
		cl.mu.Unlock()
		return cl.dialPrivate(call)
	}
	for _, c := range cl.conns {
		if c.open < c.limit {
			c.open++
			cl.mu.Unlock()
			return c, nil
		}
	}
	w := &waiter{granted: make(chan grantOrError, 1), aborted: make(chan struct{}, 1), connect: connectBound(call)}
	cl.waiting = append(cl.waiting, w)
	cl.dialMoreLocked()
	cl.mu.Unlock()
	return cl.wait(w, call)
}

// wait returns what the waiter is given.
func (cl *Client) wait(w *waiter, call *exchange.Call) (*conn, error) {
	if err := call.Canceler.Arm(w); err != nil {
		cl.quit(w)
		return nil, err
	}
	timer := time.NewTimer(w.connect)
	defer timer.Stop()
	var got grantOrError
	select {
	case got = <-w.granted:
	case <-w.aborted:
		cl.quit(w)
	case <-timer.C:
		cl.quit(w)
		got.err = &exchange.DialError{Err: fmt.Errorf("no connection with room for a stream: %w", context.DeadlineExceeded)}
	}
	if cause := call.Canceler.Disarm(); cause != nil {
		if got.c != nil {
			cl.release(got.c, 1)
		}
		return nil, cause
	}
	return got.c, got.err
}

// quit takes back the wish for a connection, or gives back the connection.
func (cl *Client) quit(w *waiter) {
	cl.mu.Lock()
	i := slices.Index(cl.waiting, w)
	if i >= 0 {
		cl.waiting = slices.Delete(cl.waiting, i, i+1)
	}
	cl.stopDialsLocked()
	cl.mu.Unlock()
	if i >= 0 {
		return
	}
	if got := <-w.granted; got.c != nil {
		cl.release(got.c, 1)
	}
}

// dialMoreLocked dials when more calls wait than the connections under way will
// take.
func (cl *Client) dialMoreLocked() {
	for len(cl.waiting) > len(cl.dialing)*max(1, cl.assumed) && len(cl.conns)+len(cl.dialing) < cl.o.conns() {
		bound := cl.waiting[len(cl.waiting)-1].connect
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		cl.dialing[&cancel] = true
		go cl.dialShared(ctx, &cancel)
	}
}

// stopDialsLocked ends the dials of a closed Client when nobody waits for them.
func (cl *Client) stopDialsLocked() {
	if !cl.closed || len(cl.waiting) > 0 {
		return
	}
	for cancel := range cl.dialing {
		(*cancel)()
	}
}

// dialShared opens a connection for whoever waits.
func (cl *Client) dialShared(ctx context.Context, cancel *context.CancelFunc) {
	defer (*cancel)()
	nc, err := cl.connect(ctx)
	var c *conn
	if err == nil {
		c = newConn(cl, nc, false)
	}
	cl.mu.Lock()
	delete(cl.dialing, cancel)
	if err != nil {
		if len(cl.dialing) == 0 && len(cl.conns) == 0 {
			for _, w := range cl.waiting { // for nothing that could still come
				w.granted <- grantOrError{err: err}
			}
			cl.waiting = nil
		}
		cl.mu.Unlock()
		return
	}
	c.open, c.limit, c.takes = 0, cl.assumed, true
	cl.conns = append(cl.conns, c)
	cl.grantLocked(c)
	if cl.closed {
		cl.retireLocked(c)
	}
	unused := !c.takes && c.open == 0
	cl.mu.Unlock()
	if unused {
		c.end(failure{err: errRetired}, h2.ErrCodeNo, true)
	}
}

// dialPrivate opens a connection for one call.
func (cl *Client) dialPrivate(call *exchange.Call) (*conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), connectBound(call))
	defer cancel()
	if err := call.Canceler.Arm(abortFunc(cancel)); err != nil {
		return nil, err
	}
	nc, err := cl.connect(ctx)
	if cause := call.Canceler.Disarm(); cause != nil {
		if err == nil {
			_ = nc.Close() // nothing was sent
		}
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	return newConn(cl, nc, true), nil
}

type abortFunc func()

// Abort implements what a Canceler arms.
func (f abortFunc) Abort() { f() }

// connect dials and checks what the server has agreed to.
func (cl *Client) connect(ctx context.Context) (net.Conn, error) {
	nc, err := cl.dial(ctx)
	if err != nil {
		return nil, &exchange.DialError{Err: err}
	}
	secure, ok := nc.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nc, nil
	}
	if got := secure.ConnectionState().NegotiatedProtocol; got != "h2" {
		_ = nc.Close() // nothing was sent
		return nil, &exchange.DialError{Err: fmt.Errorf("the server has not agreed to HTTP/2 (ALPN %q)", got)}
	}
	return nc, nil
}

// grantLocked gives the room of a connection to those who wait.
func (cl *Client) grantLocked(c *conn) {
	n := 0
	for n < len(cl.waiting) && c.takes && c.open < c.limit {
		c.open++
		cl.waiting[n].granted <- grantOrError{c: c}
		n++
	}
	cl.waiting = slices.Delete(cl.waiting, 0, n)
}

// release gives back n streams of a connection, and closes it when it has none
// and takes none.
func (cl *Client) release(c *conn, n int) {
	now := c.now()
	cl.mu.Lock()
	c.open -= n
	if n > 0 && c.open == 0 {
		c.idle = now
	}
	cl.grantLocked(c)
	over := c.open == 0 && !c.takes
	cl.mu.Unlock()
	if over {
		c.end(failure{err: errRetired}, h2.ErrCodeNo, true)
	}
}

// allow notes how many streams the server takes on a connection.
func (cl *Client) allow(c *conn, streams int) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.assumed = max(1, min(streams, assumedStreams)) // with 0 a call would wait for what it can be told at once
	c.limit = streams
	cl.grantLocked(c)
	cl.dialMoreLocked()
}

// retire has a connection take no new streams.
func (cl *Client) retire(c *conn) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.retireLocked(c)
}

func (cl *Client) retireLocked(c *conn) {
	if !c.takes {
		return
	}
	c.takes = false
	if i := slices.Index(cl.conns, c); i >= 0 {
		cl.conns = slices.Delete(cl.conns, i, i+1)
	}
	cl.dialMoreLocked()
}

// tend closes a connection that has been idle for long, and retires an old one.
// It reports whether the connection has ended.
func (cl *Client) tend(c *conn, now time.Duration) bool {
	cl.mu.Lock()
	over := c.open == 0 && (!c.takes || now-c.idle >= cl.o.idle())
	if over || now >= c.age {
		cl.retireLocked(c)
		over = c.open == 0
	}
	cl.mu.Unlock()
	if over {
		c.end(failure{err: errRetired}, h2.ErrCodeNo, true)
	}
	return over
}
