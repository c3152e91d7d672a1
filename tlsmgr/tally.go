package tlsmgr

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"

	"edge/tlsmgr/acme"
)

// tally is what this process has seen since its start, for monitoring. Its zero
// value counts.
type tally struct {
	reached atomic.Bool // the last look at the storage succeeded

	mu   sync.Mutex
	acme map[acme.Kind]int64
}

// failed counts an order that a CA, or the way to it, failed. Other causes have
// words of their own: the storage is up or down, DNS stands in the status.
func (t *tally) failed(cause error) {
	e, ok := errors.AsType[*acme.Error](cause)
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.acme == nil {
		t.acme = map[acme.Kind]int64{}
	}
	t.acme[e.Kind]++
}

// counts are the failed orders by kind. Those that never happened are 0, since a
// counter that appears with its first event has no rate for it.
func (t *tally) counts() map[acme.Kind]int64 {
	out := map[acme.Kind]int64{
		acme.AccountLost: 0, acme.RateLimited: 0, acme.Rejected: 0, acme.Unproven: 0, acme.CAA: 0,
		acme.Unreachable: 0, acme.ServerError: 0, acme.BadRequest: 0, acme.Other: 0,
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.Copy(out, t.acme)
	return out
}
