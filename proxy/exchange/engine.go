package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Engine is the connection's side of one exchange. [Exchange] keeps the rules
// that all engines share (commit once, no body for HEAD, the declared length,
// the order at the end); an engine only moves bytes. Read runs beside the other
// methods; Abort, Context and OnLeave come from any goroutine and must not block.
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
	// Finish ends the reply with its trailers and sees to what is unread of the
	// request.
	Finish(trailer Fields) error
	// Abort makes calls under way fail. The connection may be closed, or the
	// stream reset, as late as after Serve returned.
	Abort()
	// Tunnel sends the head of a 101 and returns the naked connection, or
	// ErrNoTunnel with nothing sent.
	Tunnel(reply Fields) (io.ReadWriteCloser, error)
	// The deadlines are those of net.Conn, for Read, and for Write, Flush and
	// Finish. One that has passed already makes calls under way fail.
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	// Context has the values of the connection; when it is done matters not.
	Context() context.Context
	// OnLeave has f called, by another goroutine, when the client has left,
	// unless stop came first. It is called once, and only when a layer asks for
	// Done or Context, or binds a Canceler.
	OnLeave(f func()) (stop func() bool)
}

// PanicError is the Err of an exchange whose handler, Source or OnEnd function
// panicked.
type PanicError struct {
	Value any
	Stack []byte
}

func (p *PanicError) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

// New returns an exchange for the engine, which fills in the request and calls
// Serve.
func New(g Engine) *Exchange {
	e := &Exchange{engine: g, readLeft: -1, declared: -1}
	e.dog.base, e.dog.fire = time.Now(), e.overdue
	return e
}

// Serve runs the exchange to its end: the handler, the pump when it detached,
// the end of the reply, the OnEnd functions. It reports whether the reply ended
// cleanly; if not, the engine must now close the connection or reset the
// stream. It does not panic: what was thrown is in Err as a *PanicError.
func (e *Exchange) Serve(h Handler) (clean bool) {
	returned := false
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler { //nolint:errorlint // a recovered value
			e.fail(&PanicError{Value: v, Stack: debug.Stack()})
		}
		clean = e.end(returned) // also after runtime.Goexit
	}()
	h(e)
	if src := e.src; src != nil {
		e.src = nil
		if err := Pump(e, src); err != nil {
			e.fail(err)
		}
	}
	returned = true
	return clean
}

// end finishes or aborts the reply and runs the OnEnd functions.
func (e *Exchange) end(clean bool) bool {
	if clean {
		e.finish()
	} else {
		e.Abort()
	}
	e.mu.Lock()
	clean = e.state.Swap(ended) == live
	e.cancelLocked(ErrEnded)
	if e.unlink != nil {
		e.unlink()
	}
	t := e.tunnel
	e.mu.Unlock()
	e.dog.stop()
	if t != nil {
		_ = t.Close()
	}
	if e.src != nil { // detached, then panicked
		_ = e.src.Close()
	}
	e.Received = e.received.Load()
	for len(e.ends) > 0 {
		last := len(e.ends) - 1
		f := e.ends[last]
		e.ends = e.ends[:last]
		clean = e.runEnd(f) && clean
	}
	e.mu.Lock()
	e.over = true
	e.mu.Unlock()
	e.poison.spread(e)
	return clean
}

// runEnd keeps a panic of one OnEnd function from the others.
func (e *Exchange) runEnd(f func(*Exchange)) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			e.Err = errors.Join(e.Err, &PanicError{Value: v, Stack: debug.Stack()})
		}
	}()
	f(e)
	return true
}

// finish sends the end of the reply.
func (e *Exchange) finish() {
	if e.tunnelled() || e.commit() != nil {
		return
	}
	if !e.bodiless && e.declared >= 0 && e.Sent != e.declared {
		e.fail(fmt.Errorf("%w: %d bytes of %d", ErrLength, e.Sent, e.declared))
		return
	}
	if d := e.dog.limit(writeWait); d > 0 {
		// It stays set: net/http sends the last bytes after the handler returned.
		_ = e.engine.SetWriteDeadline(time.Now().Add(d))
	}
	if e.stopped() != nil { // after the deadline was set, which would undo that of Abort
		return
	}
	trailer := e.ReplyTrailer
	if e.bodiless {
		trailer = nil
	}
	if err := e.engine.Finish(trailer); err != nil {
		e.fail(err)
	}
}

// fail aborts and keeps the first cause.
func (e *Exchange) fail(err error) {
	if e.Err == nil {
		e.Err = err
	}
	e.Abort()
}

// commit fixes the head of the reply, once.
func (e *Exchange) commit() error {
	if err := e.stopped(); err != nil {
		return err
	}
	if e.committed {
		return nil
	}
	e.committed = true
	switch {
	case e.Status == 0:
		e.Status = http.StatusOK
	case e.Status < http.StatusOK || e.Status > 999: // not a final status
		e.Status = http.StatusInternalServerError
	}
	e.bodiless = bodiless(e.Method, e.Status)
	e.declared = declaredLength(e.Reply)
	if e.declared < 0 || e.Status == http.StatusNoContent || e.Status == http.StatusNotModified {
		// RFC 9110 8.6 forbids it with 204 and makes it optional with 304,
		// where a client of net/http waits for the body.
		e.declared = -1
		e.Reply.Del("content-length")
	}
	if err := e.engine.Commit(e.Status, e.Reply, e.declared); err != nil {
		e.fail(err)
		return err
	}
	return nil
}

// bodiless reports whether a reply ends with its head (RFC 9112 6.3).
func bodiless(method string, status int) bool {
	return method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
}

// declaredLength returns the content-length, or -1 when there is none or none
// that can be trusted (RFC 9112 6.3).
func declaredLength(f Fields) int64 {
	length := int64(-1)
	for v := range f.Values("content-length") {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil || length >= 0 && length != int64(n) {
			return -1
		}
		length = int64(n)
	}
	return length
}

// maxPiece is how much one timeout covers of a longer write, so that a client
// which is slow but reads is not taken for one that does not.
const maxPiece = 32 << 10

// send writes p, and flushes, under the write timeout.
func (e *Exchange) send(p []byte, flush bool) (sent int, err error) {
	if err := e.commit(); err != nil {
		return 0, err
	}
	if e.tunnelled() {
		return 0, fmt.Errorf("write: %w", http.ErrHijacked)
	}
	if e.bodiless {
		sent, p = len(p), nil
	}
	if e.declared >= 0 && int64(len(p)) > e.declared-e.Sent {
		return 0, ErrLength
	}
	for len(p) > 0 || flush {
		piece := p[:min(len(p), maxPiece)]
		if err := e.stopped(); err != nil {
			return sent, err
		}
		last := len(piece) == len(p)
		e.dog.begin(writeWait)
		n, err := e.sendPiece(piece, flush && last)
		e.dog.end(writeWait)
		sent += n
		if err != nil {
			e.fail(fmt.Errorf("write to client: %w", err))
			return sent, err
		}
		if last {
			break
		}
		p = p[n:]
	}
	return sent, nil
}

func (e *Exchange) sendPiece(p []byte, flush bool) (n int, err error) {
	if len(p) > 0 {
		n, err = e.engine.Write(p)
		e.Sent += int64(n)
	}
	if err == nil && flush {
		err = e.engine.Flush()
	}
	return n, err
}

// tunnelled reports whether Tunnel took the connection.
func (e *Exchange) tunnelled() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tunnel != nil
}

// tunnel counts what passes through it.
type tunnel struct {
	e    *Exchange
	conn io.ReadWriteCloser
}

func (t *tunnel) Read(p []byte) (int, error) {
	n, err := t.conn.Read(p)
	t.e.received.Add(int64(n))
	return n, err
}

func (t *tunnel) Write(p []byte) (int, error) {
	n, err := t.conn.Write(p)
	t.e.Sent += int64(n)
	return n, err
}

func (t *tunnel) Close() error { return t.conn.Close() }

// CloseWrite tells the client that nothing more comes, where the connection can.
func (t *tunnel) CloseWrite() error {
	if c, ok := t.conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SplitTarget returns the path and the query of a request-target (RFC 9112 3.2)
// as they stand in it. The path is "*" for the server as a whole, "" for
// CONNECT, and "/" where absolute-form has none.
func SplitTarget(method, target string) (path, query string) {
	if method == http.MethodConnect {
		return "", ""
	}
	if !strings.HasPrefix(target, "/") {
		_, rest, absolute := strings.Cut(target, "://")
		switch i := strings.IndexAny(rest, "/?"); {
		case !absolute:
		case i >= 0:
			target = rest[i:]
		case method == http.MethodOptions: // RFC 9112 3.2.4
			return "*", ""
		default:
			return "/", ""
		}
	}
	path, query, _ = strings.Cut(target, "?")
	if path == "" {
		path = "/"
	}
	return path, query
}
