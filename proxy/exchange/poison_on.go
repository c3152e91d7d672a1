//go:build edgepoison

package exchange

import "sync/atomic"

// poison is set after the last OnEnd function returned.
type poison struct{ set atomic.Bool }

const poisoned = "exchange: used after its end (copy what you need, or register it with OnEnd)"

func (p *poison) check() {
	if p.set.Load() {
		panic(poisoned)
	}
}

// spread spoils the fields too, so that a reader who comes late sees it, and
// the race detector sees a reader who comes at the same time.
func (p *poison) spread(e *Exchange) {
	p.set.Store(true)
	e.Method, e.Target, e.Path, e.Query, e.Host = poisoned, poisoned, poisoned, poisoned, poisoned
	e.Header, e.Reply, e.ReplyTrailer, e.Conn = nil, nil, nil, nil
}
