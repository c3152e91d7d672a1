// Package http1 speaks HTTP/1.1 (RFC 9112) to a server, in the goroutine of
// whoever asks:
//
//	client := http1.NewClient(func(ctx context.Context) (net.Conn, error) {
//		return new(net.Dialer).DialContext(ctx, "tcp", "10.0.0.7:8000")
//	}, http1.Options{})
//	defer client.Close()
//	reply, err := client.Do(&exchange.Call{
//		Method: "GET", Target: "/v1/models", Host: "models", Canceler: new(exchange.Canceler),
//	})
//	if err != nil {
//		return err
//	}
//	defer reply.Body.Close()
//	_, err = io.Copy(os.Stdout, reply.Body)
//
// One write sends a small request, one read fetches a small reply, and a piece of
// a stream costs a read and no allocation. Only a large body, or one that comes
// in pieces, has a goroutine that sends it, so that a reply can begin before the
// request has ended.
//
// It takes fewer replies than net/http does, and no reply that net/http would
// understand otherwise: two readers that disagree on where a message ends are
// how requests are smuggled (RFC 9112 11.2). A reply that was cut off never looks
// complete. It does not follow redirects, decode content or ask again.
package http1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"edge/proxy/exchange"
)

// Options of a Client. The zero value is production.
type Options struct {
	Idle    time.Duration // life of a connection that nobody uses; 0 is 4 s
	MaxIdle int           // connections kept; 0 is 256
	OneShot bool          // a connection per request, for health checks
}

const (
	defaultIdle    = 4 * time.Second // uvicorn closes after 5
	defaultMaxIdle = 256
	maxConnect     = 10 * time.Second // dial and handshake of a Call that sets no bound
)

// Client sends requests to one server and keeps the connections to it. Its
// methods may be called from any goroutine.
type Client struct {
	dial func(ctx context.Context) (net.Conn, error)
	opts Options

	mu     sync.Mutex
	idle   []*conn // in the order in which they fell idle
	timer  *time.Timer
	wakes  time.Time // when timer fires; zero when it does not
	closed bool
}

// NewClient returns a Client for the server that dial connects to, which gives up
// when its ctx is done. A connection with TLS comes from dial after its handshake;
// below it there should be a [NoteEOF]. What else wraps a connection has a method
// NetConn() net.Conn, as *tls.Conn has, so that the socket is found.
func NewClient(dial func(ctx context.Context) (net.Conn, error), o Options) *Client {
	if o.Idle <= 0 {
		o.Idle = defaultIdle
	}
	if o.MaxIdle <= 0 {
		o.MaxIdle = defaultMaxIdle
	}
	return &Client{dial: dial, opts: o}
}

// Do sends the call and returns when the head of the reply has arrived. What it
// fails with, and what then reading the reply fails with, is a *exchange.DialError,
// *exchange.LostError or *exchange.BodyError, is exchange.ErrFirstByte or
// exchange.ErrUnsendable, or wraps the cause given to the call's Canceler.
//
// A body that is small by its declared length is first read by Do itself, before
// it takes a connection: what ends the call must also end that Read.
func (c *Client) Do(call *exchange.Call) (exchange.Reply, error) {
	s := sender{call: call, left: call.Length}
	if call.Body == nil || call.Upgrade {
		s.left = 0
	}
	err := s.begin(c.opts.OneShot)
	if cause := call.Canceler.Cause(); cause != nil {
		err = cancelled(cause)
	}
	var cn *conn
	if err == nil {
		cn, err = c.take(call)
	}
	if err != nil {
		s.release()
		return exchange.Reply{}, err
	}
	if err := cn.send(&s); err != nil {
		return exchange.Reply{}, cn.fail(err)
	}
	h, err := cn.readReply()
	if err != nil {
		return exchange.Reply{}, cn.fail(err)
	}
	return cn.deliver(h), nil
}

func cancelled(cause error) error { return fmt.Errorf("request cancelled: %w", cause) }

// take returns a connection on which nothing was sent yet for call, and which
// the call's Canceler aborts.
func (c *Client) take(call *exchange.Call) (*conn, error) {
	for {
		cn := c.pop()
		if cn == nil {
			break
		}
		if !cn.alive() {
			cn.abandon()
			continue
		}
		cn.call = call
		if err := call.Canceler.Arm(cn); err != nil {
			cn.close()
			return nil, cancelled(err)
		}
		return cn, nil
	}
	return c.connect(call)
}

// dialing is what the Canceler aborts before there is a connection.
type dialing struct{ cancel context.CancelFunc }

func (d *dialing) Abort() { d.cancel() }

func (c *Client) connect(call *exchange.Call) (*conn, error) {
	limit := call.Connect
	if limit <= 0 {
		limit = maxConnect
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := call.Canceler.Arm(&dialing{cancel}); err != nil {
		return nil, cancelled(err)
	}
	nc, err := c.dial(ctx)
	if err != nil {
		if cause := call.Canceler.Disarm(); cause != nil {
			return nil, cancelled(cause)
		}
		return nil, &exchange.DialError{Err: err}
	}
	cn := newConn(c, nc)
	cn.call = call
	if err := call.Canceler.Arm(cn); err != nil {
		cn.abandon()
		return nil, cancelled(err)
	}
	return cn, nil
}

// errClosed is what a Read returns after Close.
var errClosed = fmt.Errorf("reply closed: %w", net.ErrClosed)

// isTimeout reports whether a deadline of ours has passed.
func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) // ETIMEDOUT, of the kernel, is none
}
