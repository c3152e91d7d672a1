package exchange

import (
	"context"
	"io"
	"time"
)

// Engine is the connection's side of one exchange. [Exchange] keeps the rules
// that all engines share (commit once, no body for HEAD, the declared length,
// the order at the end); an engine only moves bytes. Only Abort may be called
// by any goroutine; Read runs beside the other methods.
type Engine interface {
	// Read reads the request's body up to io.EOF, after which Trailer is valid.
	Read(p []byte) (int, error)
	Trailer() Fields
	// Interim sends an informational reply at once.
	Interim(status int, f Fields) error
	// Commit takes the head. length is that of the body, -1 when it is unknown;
	// the engine may keep the head until the first Write, Flush or Finish.
	Commit(status int, reply Fields, length int64) error
	Write(p []byte) (int, error)
	Flush() error
	// Finish ends the reply with its trailers, and cares for what is unread of
	// the request.
	Finish(trailer Fields) error
	// Abort makes calls under way fail. The connection may be closed, or the
	// stream reset, as late as after Serve returned.
	Abort()
	// Tunnel sends the head of a 101 and returns the naked connection.
	Tunnel(reply Fields) (io.ReadWriteCloser, error)
	// The deadlines are those of net.Conn. Exchange sets them before a call and
	// clears them after it, when a timeout is asked for.
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	// Context is done when the client has left. It is asked for only when a
	// layer asks.
	Context() context.Context
}

// New returns an exchange for the engine, which fills in the request.
func New(g Engine) *Exchange { return &Exchange{engine: g} }

// Serve runs the handler to the end of the exchange and reports whether the
// reply ended cleanly. If it did not, the engine must now close the connection
// or reset the stream. A panic of the handler ends there, as Err.
func (e *Exchange) Serve(h Handler) bool { return false }
