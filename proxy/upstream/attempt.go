package upstream

import (
	"context"
	"errors"
	"time"

	"edge/proxy/exchange"
)

// attempt is one try to send a request.
type attempt struct {
	call     exchange.Call
	canceler exchange.Canceler // of call: that of the request outlives it
	view     view
}

// errCanceled is why an attempt is cancelled; the Canceler of its request knows
// more.
var errCanceled = errors.New("request was cancelled")

// Abort ends the attempt, and whatever waits for the client's body.
func (a *attempt) Abort() {
	a.canceler.Cancel(errCanceled)
	a.view.body.abort()
}

// attach has the end of ctx cancel the request until detach returned.
func (r *Response) attach(ctx context.Context) {
	if ctx.Done() == nil {
		return
	}
	if ctx.Err() != nil {
		r.canceler.Cancel(context.Cause(ctx))
		return
	}
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		r.canceler.Cancel(context.Cause(ctx))
		close(expired)
	})
	r.unlink = func() {
		if !stop() {
			<-expired // it may be about to cancel
		}
	}
}

// detach ends the effect of ctx and of the Canceler, which from then on may
// serve another request.
func (r *Response) detach() {
	_ = r.canceler.Disarm() // what it hit is not used again anyway
	if r.unlink != nil {
		r.unlink()
	}
}

// try sends req to ep and takes over the head of the reply. The error is the
// engine's.
func (r *Response) try(ep *endpoint, client engine, connect time.Duration, req *Request) error {
	a := &r.first
	if r.Attempts > 0 {
		a = new(attempt) // an engine may still look at the first
	}
	r.Attempts++
	a.prepare(ep.backend.key, r.body, req)
	a.call.Connect = connect
	if err := r.canceler.Arm(a); err != nil {
		return err
	}
	reply, err := client.Do(&a.call)
	if err != nil {
		return err
	}
	r.body.forget()
	r.Status, r.Header, r.Length, r.Endpoint = reply.Status, reply.Header, reply.Length, ep.url
	r.ep, r.source, r.tunnel = ep, reply.Body, reply.Tunnel
	return nil
}

// prepare makes the call.
func (a *attempt) prepare(key backendKey, b *body, req *Request) {
	a.call = exchange.Call{
		Method: req.Method, Target: req.Target, Scheme: key.scheme, Host: req.Host,
		Header: req.Header, Upgrade: req.Upgrade, Interim: req.Interim,
		FirstByte: req.FirstByte, Canceler: &a.canceler,
	}
	if req.Host == "" {
		a.call.Host = key.address
	}
	if b == nil {
		return
	}
	b.begin(&a.view)
	a.call.Length, a.call.Body, a.call.Continue = req.Length, &a.view, req.Continue
	if b.trailer != nil {
		a.call.Trailer = a.view.trailer
	}
}

// explain turns an error of an engine into one of this package.
func (r *Response) explain(ep *endpoint, err error) error {
	failed, isBody := errors.AsType[*BodyError](err)
	if isBody && !r.body.stopped() {
		return failed
	}
	if cause := r.canceler.Cause(); cause != nil {
		return &TryError{Endpoint: ep.url, Attempts: r.Attempts, Err: cause}
	}
	if dial, ok := errors.AsType[*exchange.DialError](err); ok {
		return &DialError{Endpoint: ep.url, Attempts: r.Attempts, Err: dial.Err}
	}
	if lost, ok := errors.AsType[*exchange.LostError](err); ok {
		return &LostError{Endpoint: ep.url, Attempts: r.Attempts, Err: lost}
	}
	return &TryError{Endpoint: ep.url, Attempts: r.Attempts, Err: err}
}
