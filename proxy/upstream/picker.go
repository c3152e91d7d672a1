package upstream

import (
	"slices"

	"edge/config"
)

// picker chooses among the usable endpoints that were not tried yet; nil when
// there is none. It is called under the lock of its pool and must not allocate.
type picker interface {
	pick(endpoints, tried []*endpoint) *endpoint
}

func newPicker(b config.Balance, n int) picker {
	if b == config.LeastRequests {
		return &leastRequests{}
	}
	return &roundRobin{credit: make([]int64, n)}
}

// roundRobin is the smooth weighted round robin of nginx: weights 5, 1, 1 give
// a a b a c a a. Each turn every candidate earns its weight, the richest is
// chosen and pays for all. Endpoints that are down earn nothing, so their share is
// divided by weight and they do not come back with a burst.
type roundRobin struct{ credit []int64 }

func (p *roundRobin) pick(endpoints, tried []*endpoint) *endpoint {
	best, total := -1, int64(0)
	for i, e := range endpoints {
		if !e.usable() || slices.Contains(tried, e) {
			continue
		}
		p.credit[i] += e.weight
		total += e.weight
		if best < 0 || p.credit[i] > p.credit[best] {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	p.credit[best] -= total
	return endpoints[best]
}

// leastRequests chooses the endpoint with the fewest requests in flight for its
// weight. It begins to look one further each time, so ties rotate.
type leastRequests struct{ start int }

func (p *leastRequests) pick(endpoints, tried []*endpoint) *endpoint {
	var best *endpoint
	var bestLoad int64
	for i := range endpoints {
		e := endpoints[(p.start+i)%len(endpoints)]
		if !e.usable() || slices.Contains(tried, e) {
			continue
		}
		// load/weight < bestLoad/bestWeight without a division.
		if load := e.inflight.Load(); best == nil || load*best.weight < bestLoad*e.weight {
			best, bestLoad = e, load
		}
	}
	if len(endpoints) > 0 {
		p.start = (p.start + 1) % len(endpoints)
	}
	return best
}
