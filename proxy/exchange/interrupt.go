package exchange

import (
	"errors"
	"time"
)

// ErrInterrupted is what Read returns after Interrupt.
var ErrInterrupted = errors.New("exchange: reading was interrupted")

// Interrupt makes a Read under way and all later ones fail soon, and leaves the
// reply alone: it has begun before the request ended, and nobody waits for the
// rest. Any goroutine may call it.
func (e *Exchange) Interrupt() {
	e.alive()
	e.mu.Lock() // the engine must not be called after the end
	defer e.mu.Unlock()
	if e.state.Load() != live {
		return
	}
	e.interrupted.Store(true)
	_ = e.engine.SetReadDeadline(time.Unix(1, 0))
}
