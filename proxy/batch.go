package proxy

import (
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"edge/proxy/exchange"
)

const (
	// batchSize bounds what waits to be written.
	batchSize = 64 << 10
	// batchPiece is what is written at a time, and has writeTimeout for it: a
	// client that is slow but reads is not taken for one that does not.
	batchPiece = 16 << 10
	// batchIdle is how long the goroutine of a batch waits for more.
	batchIdle = time.Second
	// farewellTime is what the last bytes have when the connection is closed.
	farewellTime = time.Second
)

// batch is the writing side of an HTTP/2 connection. The server of x/net flushes
// whenever it has nothing more to write, each time by a new goroutine whose stack
// grows on its way through TLS. Here one goroutine writes, which stays while there
// is traffic: what has gathered meanwhile, frames of many streams, leaves as one
// record and by one system call. Any goroutine may use it.
type batch struct {
	conn net.Conn
	cut  func() // ends the connection without waiting for it
	wake chan struct{}

	mu      sync.Mutex
	room    sync.Cond // for more in pending, or err
	pending []byte
	spare   []byte        // the other buffer; nil while it is being written
	gone    chan struct{} // of the goroutine; nil when there is none
	retired bool          // the goroutine has waited long enough
	err     error         // sticky
}

func newBatch(conn net.Conn, cut func()) *batch {
	b := &batch{conn: conn, cut: cut, wake: make(chan struct{}, 1)}
	b.room.L = &b.mu
	return b
}

// Write takes p, which is written soon. It waits only when there is too much
// already. An error is that of an earlier write.
func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil && len(b.pending) > 0 && len(b.pending)+len(p) > batchSize {
		b.room.Wait()
	}
	if b.err != nil {
		return 0, b.err
	}
	b.pending = append(b.pending, p...)
	if b.gone == nil {
		b.gone = make(chan struct{})
		go b.run(b.gone)
		return len(p), nil
	}
	b.nudge()
	return len(p), nil
}

// nudge has the goroutine look again, if it waits.
func (b *batch) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// run is the goroutine.
func (b *batch) run(gone chan struct{}) {
	defer close(gone)
	stuck := exchange.NewWatch(writeTimeout, b.cut)
	defer stuck.Stop()
	idle := exchange.NewWatch(batchIdle, b.retire)
	defer idle.Stop()
	for {
		runtime.Gosched() // for those who are about to write, too
		p := b.take()
		if p == nil {
			if b.over() {
				return
			}
			idle.Begin()
			<-b.wake
			idle.End()
			continue
		}
		err := b.write(p, stuck)
		b.give(p, err)
		if err != nil {
			return
		}
	}
}

// take returns what is to be written; nil when there is nothing.
func (b *batch) take() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pending) == 0 {
		return nil
	}
	p := b.pending
	b.pending, b.spare = b.spare[:0], nil
	return p
}

func (b *batch) write(p []byte, stuck *exchange.Watch) error {
	for len(p) > 0 {
		n := min(len(p), batchPiece)
		stuck.Begin()
		_, err := b.conn.Write(p[:n])
		stuck.End()
		if err != nil {
			return fmt.Errorf("write batch: %w", err)
		}
		p = p[n:]
	}
	return nil
}

// give returns the buffer of take.
func (b *batch) give(p []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spare = p
	if err != nil && b.err == nil {
		b.err = err
	}
	b.room.Broadcast()
}

// retire has the goroutine end, unless there is something to write by then.
func (b *batch) retire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retired = true
	b.nudge()
}

// over reports whether the goroutine is to end, which it must then: it is
// forgotten, and the buffers with it.
func (b *batch) over() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pending) > 0 || !b.retired && b.err == nil {
		return false
	}
	b.gone, b.retired = nil, false
	b.pending, b.spare = nil, nil
	return true
}

// close lets what was written leave, within farewellTime, and takes no more. The
// connection is the caller's to close.
func (b *batch) close() {
	b.mu.Lock()
	if b.err == nil {
		b.err = net.ErrClosed
	}
	gone := b.gone
	b.room.Broadcast()
	b.nudge()
	b.mu.Unlock()
	if gone == nil {
		return
	}
	timer := time.NewTimer(farewellTime)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
		b.cut()
		<-gone
	}
}
