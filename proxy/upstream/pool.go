package upstream

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"edge/config"
)

// Pool sends requests to one of its endpoints. It belongs to a Set and goes on
// working after that is closed, for requests that began before a reload. Its
// methods may be called concurrently.
type Pool struct {
	name      string
	endpoints []*endpoint
	retry     config.Retry
	connect   time.Duration // 0 means the default

	mu     sync.Mutex
	picker picker
}

// Name returns the pool's name in the configuration.
func (p *Pool) Name() string { return p.name }

// Do picks an endpoint, sends req and returns as soon as the head of the reply
// arrived, while the body may still be on its way. It tries other endpoints by
// the rule in the package comment. The end of ctx aborts the exchange at any
// time, also while the reply is read. After an error nothing uses req any more.
func (p *Pool) Do(ctx context.Context, req *Request) (*Response, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	b := newBody(req, p.keep(req))
	var tried []*endpoint
	var last error
	for attempts := 1; attempts <= max(p.retry.Attempts, 1); attempts++ {
		ep := p.pick(tried)
		if ep == nil {
			break
		}
		resp, err := p.try(ctx, ep, req, b, attempts)
		if err == nil {
			return resp, nil
		}
		last = err
		if !again(req, b, err) {
			break
		}
		tried = append(tried, ep)
	}
	b.close()
	if last == nil {
		return nil, ErrNoEndpoint
	}
	return nil, last
}

// pick chooses an endpoint and occupies a slot of it.
func (p *Pool) pick(tried []*endpoint) *endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	ep := p.picker.pick(p.endpoints, tried)
	if ep != nil {
		ep.acquire()
	}
	return ep
}

// try makes one attempt at ep, whose slot it frees when that fails.
func (p *Pool) try(ctx context.Context, ep *endpoint, req *Request, b *body, attempts int) (*Response, error) {
	a := &attempt{pool: p, ep: ep, req: req, body: b, done: make(chan struct{})}
	resp, err := a.send(ctx)
	var r *Response
	if err == nil {
		r, err = newResponse(ctx, a, resp, attempts)
	}
	if err == nil {
		return r, nil
	}
	ep.release()
	if dial, ok := errors.AsType[*DialError](err); ok {
		dial.Attempts = attempts
	}
	if ctx.Err() == nil {
		ep.failed(err)
	}
	return nil, err
}

// keep returns how many bytes of the body are worth keeping. With net/http only
// a safe method is ever repeated after a byte of it left: the head is flushed
// before the body is read, so a connection that took nothing has cost no
// byte of the body.
func (p *Pool) keep(req *Request) int {
	if safe(req.Method) {
		return int(p.retry.Replay)
	}
	return 0
}

// again reports whether the request may go to another endpoint after err.
func again(req *Request, b *body, err error) bool {
	if !b.replayable() {
		return false
	}
	if _, ok := errors.AsType[*DialError](err); ok {
		return true
	}
	lost, ok := errors.AsType[*LostError](err)
	return ok && safe(req.Method) && !lost.answered
}

// safe methods (RFC 9110 section 9.2.1) may be repeated.
func safe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}
