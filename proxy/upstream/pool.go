package upstream

import (
	"context"
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
	connect   time.Duration // never 0
	share     *share        // of the Registry

	mu     sync.Mutex
	picker picker
}

// Name returns the pool's name in the configuration.
func (p *Pool) Name() string { return p.name }

// Do picks an endpoint, sends req and returns as soon as the head of the reply
// arrived, while the body may still be on its way. It tries other endpoints by
// the rule in the package comment. The end of ctx, or of req.Canceler, aborts the
// exchange at any time, also while the reply is read. After an error nothing uses
// req any more.
func (p *Pool) Do(ctx context.Context, req *Request) (*Response, error) {
	r := newResponse(ctx, req, p.retry.Replay, p.share)
	if err := p.send(r, req); err != nil {
		r.detach()
		r.body.close()
		return nil, err
	}
	return r, nil
}

// send tries one endpoint after the other until a reply has begun.
func (p *Pool) send(r *Response, req *Request) error {
	var tried []*endpoint
	err := ErrNoEndpoint
	for range max(p.retry.Attempts, 1) {
		ep := p.pick(tried)
		if ep == nil {
			break
		}
		var next verdict
		next, err = p.sendTo(ep, r, req)
		if err == nil || next == final {
			break
		}
		tried = append(tried, ep)
	}
	return err
}

// sendTo tries one endpoint, also afresh. It frees the slot when that fails.
func (p *Pool) sendTo(ep *endpoint, r *Response, req *Request) (verdict, error) {
	engine := ep.backend.client
	for {
		cause := r.try(ep, engine, p.connect, req)
		if cause == nil {
			return final, nil
		}
		err := r.explain(ep, cause)
		next := final
		if r.canceler.Cause() == nil {
			next = p.setback(r, req, cause).judge()
			if guilty(cause) {
				ep.failed(err)
			}
		}
		if next != afresh {
			ep.release()
			return next, err
		}
		engine = ep.backend.fresh
		r.fresh++
		ep.requests.Add(1)
	}
}

func (p *Pool) setback(r *Response, req *Request, err error) setback {
	r.body.retire()
	replayable, read := r.body.replayable()
	return setback{
		err: err, method: req.Method, replayable: replayable, short: read <= p.retry.Replay,
		only: len(p.endpoints) == 1, fresh: r.fresh,
	}
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
