package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"edge/proxy/exchange"
)

// Response is a reply whose head has arrived. It is an exchange.Source: one
// goroutine reads it; Close may come from any goroutine, also while a Read is
// blocked, and must come: the endpoint's slot is held until then.
type Response struct {
	Status   int
	Header   exchange.Fields // as it came, connection's own fields included; values of one name in order
	Length   int64           // as declared; -1 unknown. A reply to HEAD declares what GET would send
	Endpoint string          // URL of the endpoint that answered
	Attempts int             // endpoints tried, this one included; ≥ 1

	attempt *attempt
	context context.Context //nolint:containedctx // of Do: tells an aborted Read from a lost upstream
	resp    *http.Response
	tunnel  io.ReadWriteCloser
	unwatch func() bool // stops closing the tunnel when ctx ends
	closed  atomic.Bool
	done    chan struct{} // closed when Close is complete
}

// newResponse takes over a after its head arrived.
func newResponse(ctx context.Context, a *attempt, resp *http.Response, attempts int) (*Response, error) {
	a.body.forget()
	r := &Response{
		Status: resp.StatusCode, Length: resp.ContentLength,
		Header:   fields(resp.Header),
		Endpoint: a.ep.url, Attempts: attempts,
		attempt: a, context: ctx, resp: resp, done: make(chan struct{}),
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return r, nil
	}
	raw, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !a.req.Upgrade || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") {
		_ = resp.Body.Close() // the reply is refused as a whole
		a.over()
		return nil, &LostError{Endpoint: a.ep.url, Err: fmt.Errorf("%w: unexpected 101", ErrInvalidResponse), answered: true}
	}
	r.tunnel = raw
	// The connection is ours now; net/http does not close it when ctx ends.
	r.unwatch = context.AfterFunc(ctx, func() { _ = raw.Close() })
	return r, nil
}

// Read returns what the endpoint sent as soon as it arrives. A reply that ends
// before it is complete is a *LostError, or wraps the cause of the end of Do's
// ctx, or is a *BodyError when the client's body broke it. After Close it is
// net.ErrClosed.
func (r *Response) Read(p []byte) (int, error) {
	if r.closed.Load() {
		return 0, net.ErrClosed
	}
	if r.tunnel != nil {
		return 0, io.EOF
	}
	n, err := r.resp.Body.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		r.attempt.over()
	case r.closed.Load():
		err = net.ErrClosed
	default:
		err = r.attempt.explain(r.context, r.context, err)
	}
	return n, err
}

// Trailer returns the fields behind the body; it is valid after Read returned io.EOF.
func (r *Response) Trailer() exchange.Fields { return fields(r.resp.Trailer) }

// Tunnel returns the raw connection after a 101, with what the endpoint sent
// right behind its handshake still to be read; nil for any other status. Its
// Read and Write may run concurrently, and Close may come at any time. It has
// CloseWrite() error: that tells the endpoint io.EOF and leaves the other
// direction open. Response.Close closes it, and so does the end of Do's ctx.
func (r *Response) Tunnel() io.ReadWriteCloser { return r.tunnel }

// Close ends the exchange with the endpoint and frees its slot. When the body was
// not read to io.EOF the connection is closed, which tells the endpoint to stop.
// After Close nothing uses the Request's Body any more. It returns nil, always;
// calls after the first wait for it.
func (r *Response) Close() error {
	if r.closed.Swap(true) {
		<-r.done
		return nil
	}
	defer close(r.done)
	if r.unwatch != nil {
		r.unwatch()
	}
	_ = r.resp.Body.Close() // closing is all we want of it
	r.attempt.over()
	r.attempt.body.close()
	r.attempt.ep.release()
	return nil
}
