package http1

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"edge/proxy/exchange"
)

// sendFailed decides on a first write that failed after n bytes. A server may
// refuse a request before it has read it, and close: then its reply tells more.
func (c *conn) sendFailed(n int, err error) error {
	c.sent = &writeError{err: err, unsent: n == 0}
	if n == 0 || isTimeout(err) || errors.Is(err, net.ErrClosed) {
		return c.sent
	}
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

// writeError says that the request could not be written.
type writeError struct {
	err    error
	unsent bool // and no byte of it was
}

func (w *writeError) Error() string { return "write request: " + w.err.Error() }
func (w *writeError) Unwrap() error { return w.err }

// fail ends the call with err, what a read or write on the connection failed
// with or what is wrong with the reply, and returns what that means.
func (c *conn) fail(err error) error {
	cause := c.call.Canceler.Disarm()
	c.abandon()
	sent := c.sent
	if c.up != nil {
		sent = c.up.stop()
	}
	answered := c.answered
	c.release()
	switch {
	case cause != nil:
		return cancelled(cause)
	case isOurs(sent): // which closed the connection
		return sent
	case isTimeout(err) && (sent == nil || isTimeout(sent)):
		return exchange.ErrFirstByte
	case isTimeout(err):
		err = sent // and no reply came that tells more
	}
	lost := &exchange.LostError{Err: err, Reused: c.used, Answered: answered, Closed: isClosed(err)}
	if w, ok := errors.AsType[*writeError](err); ok {
		lost.Unsent = w.unsent
	}
	if lost.Closed {
		lost.After = time.Since(c.wrote)
	}
	return lost
}

// isOurs reports whether a body could not be sent for a reason on this side.
func isOurs(err error) bool {
	_, ok := errors.AsType[*exchange.BodyError](err)
	return ok || errors.Is(err, exchange.ErrUnsendable)
}

// errCut is the end of a connection before the end of the reply. It is not
// io.EOF, which would look like a good one.
var errCut = fmt.Errorf("connection closed by the server: %w", io.ErrUnexpectedEOF)

// isClosed reports whether the server has ended the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// endOfStream is the meaning of an io.EOF where the reply ends with the
// connection. Over TLS it is good only if the server said goodbye: anybody can
// send a FIN (RFC 9112 9.8).
func (c *conn) endOfStream() error {
	if c.tls && (c.note == nil || c.note.eof.Load()) {
		return errCut
	}
	return io.EOF
}
