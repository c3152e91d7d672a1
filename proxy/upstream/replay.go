package upstream

import (
	"errors"
	"io"
	"net/http"
	"sync"

	"edge/proxy/exchange"
)

// body reads the client's body once and hands it to each attempt through a
// view. It stands between net/http and the front for two reasons:
//
//   - A Transport reads the body again to see its end, also after the reply
//     began (golang/go#40747), and its write loop may outlive RoundTrip. After
//     close returned nothing reads src any more, so the front may reuse it.
//   - What was read for an attempt that came to nothing has to be replayed.
type body struct {
	// Immutable.
	src       io.Reader
	length    int64 // -1 unknown
	limit     int   // bytes kept
	trailer   func() exchange.Fields
	interrupt func()

	interrupting sync.WaitGroup

	mu          sync.Mutex
	idle        sync.Cond // signals reading == false
	reading     bool      // a goroutine is inside src.Read, without mu
	interrupted bool      // interrupt was called
	closed      bool
	kept        []byte // the first bytes of src, while they are all of read
	read        int64  // bytes taken from src
	keeping     bool   // kept may still be replayed
	err         error  // what src ended with, io.EOF too; sticky
}

// newBody returns nil when req has no body to send.
func newBody(req *Request, limit int) *body {
	if req.Body == nil || req.Length == 0 || req.Upgrade {
		return nil
	}
	b := &body{
		src: req.Body, length: req.Length, limit: limit, keeping: true,
		trailer: req.Trailer, interrupt: req.Interrupt,
	}
	b.idle.L = &b.mu
	return b
}

// replayable reports whether a new view can start at the first byte.
func (b *body) replayable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.replayableLocked()
}

func (b *body) replayableLocked() bool {
	return !b.closed && b.keeping && b.read <= int64(b.limit)
}

// forget drops what was kept for a replay: the reply has begun.
func (b *body) forget() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.keeping = false
	b.mu.Unlock()
}

// failure returns the error that src failed with, if it did.
func (b *body) failure() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil || errors.Is(b.err, io.EOF) || b.interrupted {
		return nil
	}
	return b.err
}

// abort makes a Read that waits for the client return soon. It does not wait.
func (b *body) abort() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.abortLocked()
}

func (b *body) abortLocked() {
	if !b.reading || b.interrupted || b.interrupt == nil {
		return
	}
	b.interrupted = true
	// In a goroutine of its own: abort is called where net/http closes a
	// connection, under a lock of its.
	b.interrupting.Go(b.interrupt)
}

// close waits until nothing reads src, or runs interrupt, and never will again.
func (b *body) close() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.closed, b.keeping = true, false
	b.abortLocked() // with closed set: no Read begins that nobody would interrupt
	for b.reading {
		b.idle.Wait()
	}
	b.kept = nil
	b.mu.Unlock()
	b.interrupting.Wait()
}

// take reads at most len(p) bytes from position off on.
func (b *body) take(p []byte, off int64) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case b.closed:
			return 0, http.ErrBodyReadAfterClose
		case off < b.read && off < int64(len(b.kept)):
			return copy(p, b.kept[off:]), nil
		case off < b.read:
			return 0, http.ErrBodyReadAfterClose // not kept: the view is stale
		case b.err != nil:
			return 0, b.err
		case b.length >= 0 && b.read >= b.length:
			// The end is known: src is not asked for it.
			return 0, io.EOF
		case !b.reading:
			return b.pullLocked(p)
		}
		b.idle.Wait() // a view of an earlier attempt is still reading
	}
}

// pullLocked reads src into p. mu is released meanwhile.
func (b *body) pullLocked(p []byte) (int, error) {
	if b.length >= 0 {
		p = p[:min(int64(len(p)), b.length-b.read)]
	}
	b.reading = true
	b.mu.Unlock()
	n, err := b.src.Read(p)
	b.mu.Lock()
	b.reading = false
	b.idle.Broadcast()
	b.read += int64(n)
	switch {
	case !b.replayableLocked():
		b.kept = nil
	case n > 0:
		b.kept = append(b.kept, p[:n]...)
	}
	if err == io.EOF && b.read < b.length {
		err = io.ErrUnexpectedEOF
	}
	b.err = err
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return n, err
}

// view is the body of one http.Request. Only the write loop of one connection
// reads it; Close may come from elsewhere.
type view struct {
	b       *body
	a       *attempt
	off     int64
	trailer http.Header // filled at io.EOF; nil for none

	mu     sync.Mutex
	closed bool
}

func (b *body) view(a *attempt, trailer http.Header) *view {
	return &view{b: b, a: a, trailer: trailer}
}

// Read passes on what the client sent. The first-byte clock stands still while
// it waits for the client.
func (v *view) Read(p []byte) (int, error) {
	v.mu.Lock()
	closed := v.closed
	v.mu.Unlock()
	if closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if len(p) == 0 {
		return 0, nil
	}
	v.a.clock.pause()
	n, err := v.b.take(p, v.off)
	v.off += int64(n)
	if errors.Is(err, io.EOF) && v.trailer != nil {
		addHeader(v.trailer, v.b.trailer())
	}
	v.a.clock.restart()
	return n, err
}

// Close ends this attempt's reading; the body itself stays for the next.
func (v *view) Close() error {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	return nil
}
