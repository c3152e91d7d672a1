package upstream

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"edge/proxy/exchange"
)

// Response is a reply whose head has arrived. It is an exchange.Source: one
// goroutine reads it; Close may come from any goroutine, also while a Read is
// blocked, and must come: the endpoint's slot is held until then.
type Response struct {
	Status   int
	Header   exchange.Fields // as it came, connection's own fields included
	Length   int64           // as declared; -1 unknown. A reply to HEAD declares what GET would send
	Endpoint string          // URL of the endpoint that answered
	Attempts int             // tries, this one included; ≥ 1

	// Fixed when Do returned. Everything that a small request needs is part of
	// the Response, from before the first try, and one allocation.
	ep       *endpoint // whose slot is held
	source   exchange.Source
	tunnel   io.ReadWriteCloser // nil but after a 101
	body     *body              // nil without
	canceler *exchange.Canceler
	unlink   func() // ends the effect of ctx; nil when it has none
	own      exchange.Canceler
	first    attempt
	fresh    int // tries that a kept-alive connection failed

	closed    atomic.Bool
	closeOnce sync.Once

	// Owned by the reader.
	ended   bool
	trailer exchange.Fields
}

// newResponse returns what Do works on.
func newResponse(ctx context.Context, req *Request, replay int64, s *share) *Response {
	r := &Response{body: newBody(req, replay), canceler: req.Canceler}
	if r.body != nil {
		r.body.share = s
	}
	if r.canceler == nil {
		r.canceler = &r.own
	}
	r.attach(ctx)
	return r
}

// Read returns what the endpoint sent as soon as it arrives. A reply that ends
// before it is complete is a *LostError, or wraps the cause given to the Canceler
// or that of the end of Do's ctx, or is a *BodyError when the client's body broke
// it. After Close it is net.ErrClosed.
func (r *Response) Read(p []byte) (int, error) {
	switch {
	case r.closed.Load():
		return 0, net.ErrClosed
	case r.ended || r.tunnel != nil:
		return 0, io.EOF
	}
	n, err := r.source.Read(p)
	switch {
	case err == nil:
	case err == io.EOF: //nolint:errorlint // io.EOF is never wrapped by a Source
		r.ended, r.trailer = true, r.source.Trailer()
	case r.closed.Load():
		err = net.ErrClosed
	default:
		err = r.explain(r.ep, err)
	}
	return n, err
}

// Trailer returns the fields behind the body; it is valid after Read returned io.EOF.
func (r *Response) Trailer() exchange.Fields { return r.trailer }

// Tunnel returns the raw connection after a 101, with what the endpoint sent
// right behind its handshake still to be read; nil for any other status. Its
// Read and Write may run concurrently, and Close may come at any time. It has
// CloseWrite() error: that tells the endpoint io.EOF and leaves the other
// direction open. Response.Close closes it, and so does whatever cancels the
// request.
func (r *Response) Tunnel() io.ReadWriteCloser { return r.tunnel }

// Close ends the exchange with the endpoint and frees its slot. When the reply was
// not read to io.EOF the endpoint is told to stop, on HTTP/1 by the end of the
// connection. After Close nothing uses the Request any more. It returns nil,
// always; calls after the first wait for it.
func (r *Response) Close() error {
	r.closeOnce.Do(r.close)
	return nil
}

func (r *Response) close() {
	r.closed.Store(true)
	if r.tunnel != nil {
		_ = r.tunnel.Close() // closing is all we want of it
	}
	if r.source != nil {
		_ = r.source.Close()
	}
	r.body.close()
	r.detach()
	r.ep.release()
}
