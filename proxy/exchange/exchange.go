// Package exchange is the seam between the engines that speak HTTP on a
// connection and the layers that decide what happens to a request.
//
// An [Exchange] is one request and its reply. A [Handler] answers it, a [Layer]
// wraps a handler, and an [Engine] moves the bytes:
//
//	func hello(e *exchange.Exchange) {
//		e.Status = 200
//		e.Reply.Set("content-type", "text/plain")
//		e.Write([]byte("hello " + e.Path))
//	}
//	http.ListenAndServe(addr, exchange.ToHTTP(hello, nil))
//
// A handler that returns has not ended its exchange: the reply may have been
// handed on ([Exchange.Detach]). What must happen at the end is registered with
// [Exchange.OnEnd]; a layer does no work after its next handler returned.
//
// Exchanges and their slices may be used again for another request after the
// last OnEnd function returned; strings never are. Build with the tag
// edgepoison to have every later call panic.
package exchange

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Exchange is one request and its reply. Its fields and methods belong to the
// goroutine that runs the handler, except Abort, Interrupt, Done and Context,
// which any goroutine may call, and Read, which one other goroutine may call
// while the handler writes. Nobody may touch it after its end (see OnEnd).
type Exchange struct {
	// The request. Target is the request-target exactly as received, Path the
	// still escaped path of it ("*" for OPTIONS *, "" for CONNECT), Query what
	// follows the first '?'. Host is the authority: of the target when that is
	// in absolute-form (RFC 9112 3.2.2), else of the Host field, which Header
	// does not repeat. Header keeps the order as far as the engine knows it.
	Method, Target, Path, Query, Host string
	Header                            Fields
	Length                            int64 // of the body; -1 when unknown
	Conn                              *Conn // never nil
	Start                             time.Time

	// The reply. The first Write or Flush commits Status (0 means 200) and
	// Reply; later changes are ignored. A content-length in Reply is kept to: a
	// shorter body breaks the reply. Connection and Transfer-Encoding belong to
	// the engine, which heeds only "Connection: close". ReplyTrailer is sent at
	// the end. Sent counts the bytes of the body.
	Status       int
	Reply        Fields
	ReplyTrailer Fields
	Sent         int64

	// What the layers learned, for the record of the request.
	RequestID string
	Route     string
	Pool      string
	Endpoint  string
	Attempts  int
	Reason    string    // stable word of a fault; "" when all went well
	Received  int64     // bytes of the request's body; set when OnEnd functions run
	FirstByte time.Time // when the first byte of the backend's reply came
	Err       error     // internal cause, for the log only

	engine    Engine
	committed bool
	bodiless  bool  // the reply has no body, whatever is written
	declared  int64 // content-length of the reply; -1 when it has none
	src       Source
	ends      []func(*Exchange)
	few       [2]func(*Exchange) // of ends, when there are no more
	poison    poison

	// Owned by the reader.
	readLeft int64 // what SetReadLimit leaves; below 0: no limit
	readErr  error // sticky: what ended the body

	received    atomic.Int64
	bodyDone    atomic.Bool
	interrupted atomic.Bool
	dog         watchdog
	state       atomic.Int32 // changes under mu

	mu     sync.Mutex
	over   bool // the last OnEnd function returned
	left   bool // the client has; known only when somebody asked
	tunnel io.Closer
	ctx    context.Context //nolint:containedctx // built on demand: most exchanges need none, and it costs eight allocations
	cancel context.CancelCauseFunc
	bound  *Canceler   // by Bind
	unlink func() bool // ends the engine's OnLeave; nil when nobody asked
}

// past is a deadline that makes calls under way fail.
var past = time.Unix(1, 0)

const (
	live = iota
	aborted
	ended
)

// Handler answers an exchange. It returns when it has written the reply, or
// after Detach.
type Handler func(*Exchange)

// Layer wraps a handler. It does no work after next returned and defers
// nothing around it; that is what OnEnd is for.
type Layer func(next Handler) Handler

// Conn is what is known of a client's connection. The exchanges of one
// connection share it; nobody changes it.
type Conn struct {
	Peer, Local netip.AddrPort
	Protocol    string // "HTTP/1.0", "HTTP/1.1" or "HTTP/2.0"
	Listener    string // name of the listener in the configuration
	TLS         bool
	ServerName  string               // SNI; "" without TLS
	Policy      string               // mark of the TLS policy that the connection was accepted under
	TLSState    *tls.ConnectionState // nil without TLS

	// ClientCertificate is who the client has proven to be; nil when it has not:
	// a certificate that was not verified is not here.
	ClientCertificate *x509.Certificate
}

// VerifiedLeaf is the client's certificate, nil when it has shown none or none
// that was verified. s may be nil.
func VerifiedLeaf(s *tls.ConnectionState) *x509.Certificate {
	if s == nil || len(s.VerifiedChains) == 0 {
		return nil
	}
	return s.PeerCertificates[0]
}

// Source is the body of a reply that somebody else produces. Trailer is valid
// after Read returned io.EOF. Read must fail soon after the Context of the
// exchange is done, as nothing else interrupts it.
type Source interface {
	Read(p []byte) (int, error)
	Trailer() Fields
	Close() error
}

// Why an exchange went wrong. ErrClientGone, ErrAborted and ErrEnded are also
// the causes of a cancelled Context.
var (
	ErrClientGone  = errors.New("exchange: the client left")
	ErrAborted     = errors.New("exchange: aborted")
	ErrEnded       = errors.New("exchange: ended")
	ErrNoTunnel    = errors.New("exchange: no tunnel")
	ErrTooLarge    = errors.New("exchange: request body too large")
	ErrInterrupted = errors.New("exchange: reading was interrupted")
	ErrSilent      = errors.New("exchange: the source was silent for too long")
	ErrLength      = errors.New("exchange: body differs from the declared content-length")
)

// Read reads the request's body. It returns io.EOF at its end, after which
// Trailer is valid. After any other error the connection is not used again.
func (e *Exchange) Read(p []byte) (int, error) {
	e.alive()
	if e.readErr != nil {
		return 0, e.readErr
	}
	if e.readLeft >= 0 && int64(len(p)) > e.readLeft+1 {
		p = p[:e.readLeft+1] // one more tells a body that is too large from one that fits
	}
	if err := e.stopped(); err != nil {
		return 0, err
	}
	if e.interrupted.Load() {
		return 0, ErrInterrupted
	}
	e.dog.begin(readWait)
	n, err := e.engine.Read(p)
	e.dog.end(readWait)
	if e.readLeft >= 0 {
		if int64(n) > e.readLeft {
			n, err = int(e.readLeft), ErrTooLarge
		}
		e.readLeft -= int64(n)
	}
	e.received.Add(int64(n))
	if err != nil {
		e.bodyDone.Store(true)
		if err != io.EOF && e.interrupted.Load() { //nolint:errorlint // io.EOF is never wrapped
			err = ErrInterrupted
		}
	}
	e.readErr = err
	return n, err
}

// Trailer returns the trailer fields of the request, once Read returned io.EOF.
func (e *Exchange) Trailer() Fields {
	e.alive()
	return e.engine.Trailer()
}

// SetReadTimeout bounds the silence of the client within one Read, which then
// fails with an error that is os.ErrDeadlineExceeded; 0 takes the bound away.
func (e *Exchange) SetReadTimeout(d time.Duration) {
	e.alive()
	e.dog.setLimit(readWait, d)
}

// overdue is called when a wait has lasted too long. The deadlines of the
// connection themselves are too dear to be set and cleared for every event.
func (e *Exchange) overdue(kind int) {
	e.mu.Lock() // the engine must not be called after the end
	defer e.mu.Unlock()
	if e.over {
		return
	}
	switch kind {
	case readWait:
		_ = e.engine.SetReadDeadline(past)
	case writeWait:
		_ = e.engine.SetWriteDeadline(past)
	case sourceWait:
		e.cancelLocked(ErrSilent)
	case leaveWait:
		if e.causeLocked() == nil { // at the end nobody takes back what is asked now
			e.linkLocked()
		}
	}
}

// SetReadLimit bounds the body to n bytes, counted from here; a Read beyond
// them fails with ErrTooLarge.
func (e *Exchange) SetReadLimit(n int64) {
	e.alive()
	e.readLeft = max(n, 0)
}

// Interrupt makes a Read under way, and all later ones, fail with
// ErrInterrupted, and leaves the reply alone: it has begun before the request
// ended, and nobody waits for the rest. It does nothing when the body has ended.
// Any goroutine may call it.
func (e *Exchange) Interrupt() {
	e.alive()
	e.mu.Lock() // the engine must not be called after the end
	defer e.mu.Unlock()
	if e.over || e.bodyDone.Load() {
		return
	}
	e.interrupted.Store(true)
	_ = e.engine.SetReadDeadline(past)
}

// Write sends a part of the reply's body, and before the first part the head.
// What is written in answer to HEAD, or with a status that has no body, is
// dropped. An error means that the client cannot get the rest.
func (e *Exchange) Write(p []byte) (int, error) {
	e.alive()
	return e.send(p, false)
}

// Flush sends what was written so far, and the head when nothing was.
func (e *Exchange) Flush() error {
	e.alive()
	_, err := e.send(nil, true)
	return err
}

// SetWriteTimeout bounds how long a Write, Flush or Interim may go without
// progress; beyond it the exchange is aborted, by Interim with the next Write. 0
// takes the bound away.
func (e *Exchange) SetWriteTimeout(d time.Duration) {
	e.alive()
	e.dog.setLimit(writeWait, d)
}

// SetSourceTimeout bounds the silence of a source within one Read of Pump; beyond
// it what was bound to the exchange is cancelled with ErrSilent. 0 takes the bound
// away. The source may call it.
func (e *Exchange) SetSourceTimeout(d time.Duration) {
	e.alive()
	e.dog.setLimit(sourceWait, d)
}

// Committed reports whether the head of the reply is fixed.
func (e *Exchange) Committed() bool {
	e.alive()
	return e.committed
}

// Interim sends an informational reply, such as 103 Early Hints. It does
// nothing after the commit, for HTTP/1.0 (RFC 9110 15.2) and for 101, which is
// what Tunnel sends.
func (e *Exchange) Interim(status int, f Fields) {
	e.alive()
	informational := status == http.StatusContinue || status > http.StatusSwitchingProtocols && status < http.StatusOK
	if !informational || e.committed || e.Conn.Protocol == "HTTP/1.0" || e.stopped() != nil {
		return
	}
	e.dog.begin(writeWait)
	_ = e.engine.Interim(status, f) // a lost connection shows at the reply
	e.dog.end(writeWait)
}

// OnEnd has f called when the exchange ends: once, after the last byte was
// handed to the connection or the exchange was aborted, also when the handler
// panicked. Functions run last first. The exchange must not be used after the
// last of them returned.
func (e *Exchange) OnEnd(f func(*Exchange)) {
	e.alive()
	e.ends = append(e.ends, f)
}

// Detach hands the rest of the reply to the engine, which copies src to the
// client after the handler returned, with a flush at every read, then sends the
// trailers and closes src, once. If it reports false, the exchange cannot be
// detached and src still belongs to the caller.
func (e *Exchange) Detach(src Source) bool {
	e.alive()
	if e.src != nil || e.stopped() != nil || e.tunnelled() {
		return false
	}
	e.src = src
	return true
}

// Tunnel commits Reply with status 101 and gives up HTTP for this connection.
// The result reads first what the client had sent behind its request; it has no
// deadlines, it may have a CloseWrite method, and it is closed at the latest
// when the handler returned. The error is ErrNoTunnel, and a reply still
// possible, when the protocol has no upgrade or the request has a body left.
func (e *Exchange) Tunnel() (io.ReadWriteCloser, error) {
	e.alive()
	switch {
	case e.stopped() != nil:
		return nil, e.stopped()
	case e.committed || e.src != nil:
		return nil, fmt.Errorf("%w: the reply has begun", ErrNoTunnel)
	case e.Length != 0 && e.readErr != io.EOF: //nolint:errorlint // io.EOF is never wrapped
		return nil, fmt.Errorf("%w: the request has an unread body", ErrNoTunnel)
	}
	conn, err := e.engine.Tunnel(e.Reply)
	if errors.Is(err, ErrNoTunnel) {
		return nil, err
	}
	e.committed, e.Status = true, http.StatusSwitchingProtocols
	if err != nil {
		e.fail(err)
		return nil, err
	}
	t := &tunnel{e: e, conn: conn}
	e.mu.Lock()
	e.tunnel = t
	e.mu.Unlock()
	if err := e.stopped(); err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

// Abort breaks the exchange: the client sees a reset or closed connection,
// never a clean end. Reads and Writes under way fail. The OnEnd functions run
// when the handler has returned.
func (e *Exchange) Abort() {
	e.alive()
	e.mu.Lock()
	if e.state.Load() != live {
		e.mu.Unlock()
		return
	}
	e.state.Store(aborted)
	e.cancelLocked(ErrAborted)
	e.engine.Abort() // under mu: the engine must not be called after the end
	t := e.tunnel
	e.mu.Unlock()
	if t != nil {
		_ = t.Close()
	}
}

// Done is closed when the client has left, when the exchange is aborted and
// when it has ended.
func (e *Exchange) Done() <-chan struct{} { return e.Context().Done() }

// Context is Done for code that takes a context. Its cause is ErrClientGone,
// ErrAborted or ErrEnded.
func (e *Exchange) Context() context.Context {
	e.alive()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx != nil {
		return e.ctx
	}
	e.ctx, e.cancel = context.WithCancelCause(context.WithoutCancel(e.engine.Context()))
	if cause := e.causeLocked(); cause != nil {
		e.cancel(cause)
	} else {
		e.linkLocked()
	}
	return e.ctx
}

// Bind has c cancelled when the client leaves and when the exchange is aborted or
// ends, with the causes of Context, and with ErrSilent (SetSourceTimeout). It
// replaces what was bound before; nil unbinds. It costs much less than a context,
// also because it asks whether the client left only when the exchange has lived
// for 20 ms: most of those that end sooner have a client that waits.
func (e *Exchange) Bind(c *Canceler) {
	e.alive()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bound = c
	if c == nil {
		return
	}
	if cause := e.causeLocked(); cause != nil {
		c.Cancel(cause)
	} else if e.unlink == nil {
		e.dog.setLimit(leaveWait, leaveAfter)
		e.dog.begin(leaveWait)
	}
}

// leaveAfter is how long an exchange lives before its engine is asked to tell
// when the client leaves.
const leaveAfter = 20 * time.Millisecond

// causeLocked returns why nobody waits for the exchange any more, or nil.
func (e *Exchange) causeLocked() error {
	if err := e.stopped(); err != nil {
		return err
	}
	if e.left {
		return ErrClientGone
	}
	return nil
}

// linkLocked asks the engine, once, to tell when the client leaves.
func (e *Exchange) linkLocked() {
	if e.unlink != nil {
		return
	}
	e.unlink = e.engine.OnLeave(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.left = true
		e.cancelLocked(ErrClientGone)
	})
}

// cancelLocked tells those who wait for the end why it is there.
func (e *Exchange) cancelLocked(cause error) {
	if e.cancel != nil {
		e.cancel(cause)
	}
	if e.bound != nil {
		e.bound.Cancel(cause)
	}
}

// alive panics when the exchange has ended, under the build tag edgepoison.
func (e *Exchange) alive() { e.poison.check() }

// stopped returns why the exchange takes no more calls, or nil.
func (e *Exchange) stopped() error {
	switch e.state.Load() {
	case aborted:
		return ErrAborted
	case ended:
		return ErrEnded
	}
	return nil
}
