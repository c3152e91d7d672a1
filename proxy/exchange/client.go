package exchange

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Call is one request to a server: what the client half of an engine takes. The
// engine reads it until Do returned; Body and Trailer it uses until the body has
// ended or the reply is closed, and a Read under way then may last longer.
type Call struct {
	Method string
	Target string // origin-form or "*", sent as it is
	Scheme string // "http" or "https", which HTTP/2 says in the request
	Host   string // authority

	// Header is sent as given and in order, without the fields that belong to the
	// connection or to framing, which the engine writes itself: Host,
	// Content-Length, Transfer-Encoding, Trailer, Expect, Connection, Upgrade,
	// Keep-Alive, Proxy-Connection, and TE but for "trailers".
	Header Fields

	Length  int64         // bytes of Body; 0 is no body at all, -1 is unknown
	Body    io.Reader     // nil is no body; read by one goroutine at a time
	Trailer func() Fields // called after Body returned io.EOF; nil is none

	// Continue announces the body ("Expect: 100-continue", RFC 9110 10.1.1) and
	// leaves it unread until the server wants it, or said nothing for a second.
	Continue bool

	// Upgrade asks for a websocket instead of sending a body.
	Upgrade bool

	// Interim is called for each 1xx reply but 101, before Do returns and by its
	// goroutine; nil drops them.
	Interim func(status int, f Fields)

	Connect   time.Duration // bound of dial and handshake together
	FirstByte time.Duration // bound of the silence between the request and the head of its reply; 0 is none

	// Canceler ends the call at any time, also while its reply is read. It is
	// never nil and belongs to this call alone.
	Canceler *Canceler
}

// Reply is what came back for a Call: its head, and the rest to be read.
type Reply struct {
	Status int
	Header Fields // as it came, fields of the connection included
	Length int64  // as declared, also in answer to HEAD; -1 unknown

	// Body returns what the server sent as soon as it arrives, and io.EOF when the
	// reply is complete and at no other time. Its errors are those of Do. One
	// goroutine reads it; any goroutine closes it, once, also during a Read. Closed
	// before io.EOF it makes the server stop.
	Body Source

	// Tunnel is the naked connection after a 101, with what the server sent
	// behind its head still to be read; nil for any other status. Read and Write
	// may run concurrently, Close may come at any time; it has CloseWrite.
	Tunnel io.ReadWriteCloser
}

// What ends a Call besides a LostError, a DialError, a BodyError and the cause
// given to its Canceler.
var (
	// ErrFirstByte says that the request was sent and no reply began in time.
	ErrFirstByte = errors.New("no reply in time")
	// ErrInvalidReply is wrapped by a LostError whose server did answer, but not in
	// the protocol as we take it.
	ErrInvalidReply = errors.New("invalid response")
	// ErrUnsendable says that the request cannot be expressed in the protocol.
	ErrUnsendable = errors.New("request cannot be sent")
)

// DialError says that there was no connection to send the request on.
type DialError struct{ Err error }

// Error describes the cause.
func (e *DialError) Error() string { return "dial: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// BodyError says that the body of the request failed, which is no fault of the
// server. A body shorter than its Length fails with io.ErrUnexpectedEOF.
type BodyError struct{ Err error }

// Error describes the cause.
func (e *BodyError) Error() string { return fmt.Sprintf("read request body: %v", e.Err) }

// Unwrap returns what Body.Read returned.
func (e *BodyError) Unwrap() error { return e.Err }

// LostError says that a connection or stream ended before its reply did, and
// what is known of the request's fate.
type LostError struct {
	Err error

	// Unsent says that the server cannot have acted on the request: the
	// connection took no byte of it, or the server said so (HTTP/2 GOAWAY or
	// REFUSED_STREAM, RFC 9113 8.7).
	Unsent bool
	// Reused says that the connection had carried a request before.
	Reused bool
	// Closed says that the server ended the connection, by FIN or RST, and After
	// how long that was after our last byte; over HTTP/1.1 after the first write,
	// of the head and what there was of the body: what ended the connection before
	// these came is noticed then, and what comes later is about the request. Over
	// HTTP/2 it is after the first request since the connection had none open.
	Closed bool
	After  time.Duration
	// Answered says that a byte of a reply had arrived.
	Answered bool
}

// Error describes the cause.
func (e *LostError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }

// Canceler ends what is under way for one call, from any goroutine and without a
// context, whose tree costs more than the rest of a small request's bookkeeping.
// The zero value is ready; it must not be copied.
type Canceler struct {
	mu     sync.Mutex
	cause  error
	target interface{ Abort() }
}

// Cancel ends the call with cause, which is not nil. Only the first call counts.
func (c *Canceler) Cancel(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	c.cause = cause
	if c.target != nil {
		c.target.Abort() // under mu: after Disarm it may serve another call
	}
}

// Cause returns why the call was cancelled; nil when it was not.
func (c *Canceler) Cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// Arm has Cancel abort t from now on, instead of what it aborted before. Abort
// must neither block nor call c. When the call is cancelled already, Arm returns
// the cause and t is not aborted.
func (c *Canceler) Arm(t interface{ Abort() }) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target = nil
	if c.cause == nil {
		c.target = t
	}
	return c.cause
}

// Disarm ends the effect of Arm. After a result other than nil, which is the
// cause, Abort has been called: what it hit must not be used again.
func (c *Canceler) Disarm() error { return c.Arm(nil) }
