// Package upstream sends requests to pools of model servers and streams their
// replies back.
//
//	registry := upstream.NewRegistry(upstream.Options{})
//	set, err := registry.Prepare(cfg.Pools) // changes nothing that is in force
//	…
//	set.Commit() // health checks start
//	resp, err := set.Pool("gpu").Do(ctx, &upstream.Request{Method: "GET", Target: "/v1/models", Host: "api.example.com"})
//
// A Registry outlives configurations. A reload prepares a new Set from the same
// Registry, commits it and closes the old one; what both name is shared:
// connections by (scheme, address, TLS identity), health by (address, check),
// counters by (pool, endpoint). So a reload costs no warm connection, forgets no
// verdict about an endpoint and touches no running reply.
//
// # When a request is sent again
//
// Pool.Do tries up to Retry.Attempts distinct endpoints:
//
//   - An endpoint that cannot be dialled (refused, unreachable, handshake failed,
//     pool's connect timeout) has accepted no byte, so any request moves on to
//     another endpoint. So it does when the server cannot have acted on it: the
//     connection took no byte, or HTTP/2 said so (RFC 9113 section 8.7).
//   - GET, HEAD, OPTIONS and TRACE, which are safe (RFC 9110 section 9.2.1), also
//     move on when the connection was lost before the first byte of a reply.
//
// A kept-alive connection may end while a request is on its way to it. That is
// nobody's fault and costs no attempt; any request goes to the same endpoint once
// more, on a connection of its own, at most twice:
//
//   - when the connection took no byte of it, and
//   - when the server ended the connection within 250 ms of our last byte, before
//     a byte of a reply ("idle race"). Over HTTP/1.1 the first write counts, which
//     has the head: who takes it and goes later did not go for being idle. Servers
//     that work on a request before they break off take longer, or so we assume:
//     the request of one that does not is the only one that can be carried out
//     twice.
//
// For all this the beginning of a body is kept until the reply begins, and
// replayed: Retry.Replay bytes, or 64 KiB if that is more. A longer one, once that
// much of it was read, is not sent again, and one longer than Retry.Replay not if
// a byte of it may have been accepted. Beyond 64 KiB of each, all requests of a
// Registry together keep 128 MiB: what comes while these are full is sent once. Nor is anything after a byte of a reply or a
// first-byte timeout, nor a POST otherwise, also not with an Idempotency-Key.
//
// # Engines
//
// The bytes are moved by proxy/http1 and proxy/http2, by the protocol of the
// pool; connections of different protocols are not shared. The fields of a
// request are sent in order and in the case they have (HTTP/2 has lower case
// only), those of a reply come as they were sent. HTTP/2 has no websockets here:
// an Upgrade to such a pool is an ErrBadRequest. Idle connections of HTTP/1.1 live
// 4 s, shorter than the servers keep them: uvicorn closes after 5. Those of HTTP/2
// live as long as its engine says, as a server announces their end.
//
// A body of known length up to 64 KiB is read, as far as it is there, before the
// request takes a connection. A larger one, or one of unknown length, is read while
// the reply may come already.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"edge/proxy/exchange"
)

// Options configure a Registry. The zero value is production.
type Options struct {
	Logger *slog.Logger // nil means slog.Default()

	// Dial opens the connections to endpoints, for requests and health checks.
	// It must respect ctx. nil means net.Dialer with TCP keep-alive.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Request is what a Pool sends. It is read until Do returns; Body, Trailer,
// Interrupt and Canceler are used until Response.Close (or the error of Do)
// returns, and never after.
type Request struct {
	Method string
	Target string // as it came: origin form ("/v1/models?x=1") or "*"
	Host   string // the Host field; "" means the endpoint's own

	// Header is sent as given, without the fields that the engine writes itself,
	// which are listed at exchange.Call: those of framing and of the connection.
	Header exchange.Fields

	Length int64     // bytes of Body; 0 is no body at all, -1 is unknown and sent chunked
	Body   io.Reader // nil is no body

	// Trailer, when not nil, is called after Body returned io.EOF; its fields are
	// sent behind a chunked body. It is not called for a body of known Length.
	Trailer func() exchange.Fields

	// Interrupt makes a Read of Body that waits for the client return soon,
	// with any error. It is called at most once, and only while such a Read
	// blocks the end of the exchange: the reply is over, or the upstream is
	// lost, or the request was cancelled. nil means the end waits for the Read.
	Interrupt func()

	// Continue has the endpoint asked before the body is read ("Expect:
	// 100-continue").
	Continue bool

	// Interim is called for each 1xx reply but 101 before Do returns. nil
	// drops them; more than 8 are an invalid response in any case.
	Interim func(status int, f exchange.Fields)

	// Upgrade asks for a websocket: Connection and Upgrade fields are added,
	// Body is not sent. The answer is 101 with a Tunnel, or any other reply.
	Upgrade bool

	// FirstByte bounds the silence between the request sent and the head of the
	// reply; the time spent waiting for the client's body does not count, the
	// time an endpoint takes to accept a piece of it does. 0 is unlimited.
	FirstByte time.Duration

	// Canceler ends the request at any time, also while its reply is read, and
	// costs less than the context of Do, whose end cancels it as well. It
	// belongs to this request alone. nil means Do makes its own.
	Canceler *exchange.Canceler
}

// Errors of Do, within a *TryError when an endpoint was tried. Besides these it
// returns a *DialError, a *LostError or a *BodyError, or a *TryError that wraps the
// cause given to the Canceler or that of the end of ctx.
var (
	// ErrNoEndpoint says that health checks hold every endpoint of the pool down.
	ErrNoEndpoint = errors.New("no healthy endpoint")
	// ErrFirstByteTimeout says that the request was sent and no reply began in time.
	ErrFirstByteTimeout = exchange.ErrFirstByte
	// ErrInvalidResponse is wrapped by a LostError whose endpoint did answer, but not
	// in its protocol as we take it: malformed, a head over 64 KiB, too many 1xx.
	ErrInvalidResponse = exchange.ErrInvalidReply
	// ErrBadRequest says that the request cannot be expressed in the protocol; it was not sent.
	ErrBadRequest = exchange.ErrUnsendable
)

// DialError says that no endpoint could be connected to, so that no byte of the
// request was accepted by any.
type DialError struct {
	Endpoint string // the last one tried
	Attempts int
	Err      error // of the last attempt
}

// Error names the endpoint; it is for the log, not for clients.
func (e *DialError) Error() string {
	return fmt.Sprintf("dial %s (attempt %d): %v", e.Endpoint, e.Attempts, e.Err)
}

// Unwrap returns the cause of the last attempt.
func (e *DialError) Unwrap() error { return e.Err }

// Timeout reports whether the last attempt ran into the pool's connect timeout.
func (e *DialError) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}

// LostError says that an endpoint accepted a connection, maybe the request too,
// and then did not deliver a complete reply. Response.Read returns it as well.
type LostError struct {
	Endpoint string // the last one tried
	Attempts int
	Err      error
}

// Error names the endpoint; it is for the log, not for clients.
func (e *LostError) Error() string { return fmt.Sprintf("lost %s: %v", e.Endpoint, e.Err) }

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }

// TryError says at which endpoint a request ended with Err, which is
// ErrFirstByteTimeout, ErrBadRequest or the cause of having given it up.
type TryError struct {
	Endpoint string
	Attempts int
	Err      error
}

// Error names the endpoint; it is for the log, not for clients.
func (e *TryError) Error() string { return fmt.Sprintf("request to %s: %v", e.Endpoint, e.Err) }

// Unwrap returns the cause.
func (e *TryError) Unwrap() error { return e.Err }

// BodyError says that Request.Body failed, which is no fault of an endpoint. A
// body shorter than Request.Length fails with io.ErrUnexpectedEOF.
type BodyError = exchange.BodyError

// PoolStatus is one pool of the committed configuration.
type PoolStatus struct {
	Name      string           `json:"name"`
	Endpoints []EndpointStatus `json:"endpoints"` // in configured order
}

// EndpointStatus is what is known about one endpoint of a pool.
type EndpointStatus struct {
	URL       string    `json:"url"`
	Healthy   bool      `json:"healthy"`    // false keeps requests away
	Inflight  int       `json:"inflight"`   // requests whose reply has not been closed
	Requests  uint64    `json:"requests"`   // tries since the pool first named the endpoint
	LastError string    `json:"last_error"` // of the last failed check or attempt; "" when there was none
	Since     time.Time `json:"since"`      // of the last change of Healthy, or of the first sight
}
