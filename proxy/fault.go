package proxy

import (
	"net/http"
	"strconv"
	"time"

	"edge/proxy/dialect"
	"edge/proxy/exchange"
)

// Reason is the stable word for why edge, and not a backend, ended a request.
// It is what clients, logs and alerts compare, so a word never changes.
type Reason string

// The reasons. Those marked broken happen when a response is already under way:
// the client sees its connection or stream break off, never a clean end.
const (
	BadRequest          Reason = "bad_request"
	MethodNotAllowed    Reason = "method_not_allowed"
	NoRoute             Reason = "no_route"
	Misdirected         Reason = "misdirected"
	BodyTooLarge        Reason = "body_too_large"
	HeadersTooLarge     Reason = "headers_too_large"
	RequestTimeout      Reason = "request_timeout"
	NoEndpoint          Reason = "no_endpoint"
	UpstreamUnreachable Reason = "upstream_unreachable"
	UpstreamTimeout     Reason = "upstream_timeout"
	UpstreamLost        Reason = "upstream_lost"  // broken, when bytes are out
	StreamIdle          Reason = "stream_idle"    // broken
	TotalTimeout        Reason = "total_timeout"  // broken, when bytes are out
	ClientLeft          Reason = "client_left"    // nobody is told
	ClientStalled       Reason = "client_stalled" // broken
	ShuttingDown        Reason = "shutting_down"  // broken
	Internal            Reason = "internal"
)

// statusClientLeft is recorded, never sent: nginx's 499, which log readers know.
const statusClientLeft = 499

// retryAfter is what a 503 tells clients: long enough for a health check to
// pass, short enough for a person to wait.
const retryAfter = 5

// refusalTime bounds how long a client may take to read an error: it is small,
// so that waiting for longer is waiting for one that does not read.
const refusalTime = 5 * time.Second

// allowed is what a 405 must say (RFC 9110 section 15.5.6): all but CONNECT and
// TRACE is up to the backend.
const allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// explain returns the HTTP status and the sentence that clients are told. It
// names no address, no configuration and no cause.
func (r Reason) explain() (status int, message string) {
	switch r {
	case BadRequest:
		return http.StatusBadRequest, "the request is malformed or ambiguous"
	case MethodNotAllowed:
		return http.StatusMethodNotAllowed, "this method is not served here"
	case NoRoute:
		return http.StatusNotFound, "nothing is served at this host and path"
	case Misdirected:
		return http.StatusMisdirectedRequest, "this connection is not for the requested host; open another one"
	case BodyTooLarge:
		return http.StatusRequestEntityTooLarge, "the request body is larger than allowed"
	case HeadersTooLarge:
		return http.StatusRequestHeaderFieldsTooLarge, "the request head is larger than allowed"
	case RequestTimeout:
		return http.StatusRequestTimeout, "the request body did not arrive in time"
	case NoEndpoint:
		return http.StatusServiceUnavailable, "no model server is available right now"
	case UpstreamUnreachable:
		return http.StatusBadGateway, "the model server could not be reached"
	case UpstreamLost:
		return http.StatusBadGateway, "the connection to the model server was lost"
	case UpstreamTimeout:
		return http.StatusGatewayTimeout, "the model server did not answer in time"
	case TotalTimeout, StreamIdle:
		return http.StatusGatewayTimeout, "the request took longer than allowed"
	case ClientLeft, ClientStalled:
		return statusClientLeft, "the client left"
	case ShuttingDown, Internal: // the first only breaks off what is under way
	}
	return http.StatusInternalServerError, "internal error"
}

// fail ends e with reason: as an error in the dialect of its path when nothing
// was sent yet, else by breaking it off. It is the only place that makes an
// error response. cause is for the log and may be nil.
//
// The first reason wins: what follows from it, a read that fails because the
// body was given up, say, is not news.
func fail(e *exchange.Exchange, reason Reason, cause error) {
	if e.Reason == "" {
		e.Reason = string(reason)
		e.Err = cause
	}
	if e.Committed() {
		e.Abort()
		return
	}
	status, message := reason.explain()
	if status == statusClientLeft {
		e.Status = status
		e.Abort()
		return
	}
	reply := dialect.Of(e.Path, e.Header.Get("content-type")).Error(dialect.Error{
		Status: status, Reason: string(reason), Message: message, RequestID: e.RequestID,
	})
	closing := e.Reply.Has("connection")
	e.Reply = append(e.Reply[:0],
		exchange.Field{Name: "Content-Type", Value: reply.ContentType},
		exchange.Field{Name: "Content-Length", Value: strconv.Itoa(len(reply.Body))},
		exchange.Field{Name: "Cache-Control", Value: "no-store"},
	)
	if e.RequestID != "" {
		e.Reply.Set(fieldRequestID, e.RequestID)
	}
	for _, f := range reply.Fields {
		e.Reply.Set(f[0], f[1])
	}
	if status == http.StatusServiceUnavailable {
		e.Reply.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	if status == http.StatusMethodNotAllowed {
		e.Reply.Set("Allow", allowed)
	}
	switch {
	case closing:
		leave(e)
	case closes(reason):
		closeAfter(e)
	}
	e.Status = reply.Status
	e.SetWriteTimeout(refusalTime)
	if e.Method == http.MethodHead || len(reply.Body) == 0 {
		return // the head is also the end, as in gRPC's Trailers-Only, so the engine sends it
	}
	_, _ = e.Write(reply.Body)
	_ = e.Flush()
}

// closes reports whether what a client goes on sending is not worth reading, or
// cannot be told from the next request. What follows a CONNECT is for a tunnel.
func closes(r Reason) bool {
	switch r { //nolint:exhaustive // all others leave the connection as it is
	case BadRequest, MethodNotAllowed, BodyTooLarge, RequestTimeout, Misdirected:
		return true
	}
	return false
}
