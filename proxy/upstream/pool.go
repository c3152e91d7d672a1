package upstream

import "context"

// Pool sends requests to one of its endpoints.
type Pool struct{}

// Do sends req.
func (p *Pool) Do(ctx context.Context, req *Request) (*Response, error) { return nil, ErrNoEndpoint }
