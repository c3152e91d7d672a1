package upstream

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"edge/proxy/exchange"
)

// body reads the client's body once and hands it to each attempt through a view.
// It stands between the engines and the front for two reasons:
//
//   - An engine may still be in a Read when the exchange is over. After close
//     returned nothing reads src any more, so the front may reuse it.
//   - What was read for an attempt that came to nothing has to be replayed, also
//     what its Read under way is about to get.
type body struct {
	// Immutable.
	src       io.Reader
	length    int64 // -1 unknown
	limit     int64 // bytes kept, at least earlyBody
	trailer   func() exchange.Fields
	interrupt func()
	share     *share // nil is no bound

	interrupting sync.WaitGroup

	mu       sync.Mutex
	idle     sync.Cond // signals reading == false
	reading  bool      // a goroutine is inside src.Read or trailer, without mu
	closed   bool      // no Read of src begins any more
	told     bool      // interrupt was called
	current  *view     // the only one that may read; nil between attempts
	read     int64     // bytes taken from src
	kept     kept      // the first bytes of src: all of read, unless final or beyond
	granted  int64     // of share
	final    bool      // the reply has begun: nothing is replayed any more
	beyond   bool      // more was asked for than may be kept
	err      error     // what src ended with, io.EOF too; sticky
	trailers exchange.Fields
}

// earlyBody is what is kept in any case: as much as an engine reads before it has
// a connection.
const earlyBody = 64 << 10

// maxShared bounds what all bodies together keep beyond earlyBody of each: clients
// choose how many there are. grant is what one takes of it at a time.
const (
	maxShared = 128 << 20
	grant     = 64 << 10
)

// share is the memory that is left for bodies of more than earlyBody.
type share struct{ left atomic.Int64 }

func (s *share) take() bool {
	if s == nil || s.left.Add(-grant) >= 0 {
		return true
	}
	s.left.Add(grant)
	return false
}

func (s *share) give(n int64) {
	if s != nil {
		s.left.Add(n)
	}
}

// errBodyGone is what late readers get.
var errBodyGone = errors.New("request body is not read any more")

// newBody returns nil when req has no body to send.
func newBody(req *Request, limit int64) *body {
	if req.Body == nil || req.Length == 0 || req.Upgrade {
		return nil
	}
	b := &body{
		src: req.Body, length: req.Length, limit: max(limit, earlyBody),
		trailer: req.Trailer, interrupt: req.Interrupt,
	}
	b.idle.L = &b.mu
	return b
}

// begin makes v, which is zero, read b from its first byte, and no other view
// any more.
func (b *body) begin(v *view) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v.body, b.current = b, v
	b.idle.Broadcast()
}

// retire has the view of an attempt that failed take nothing any more: its engine
// may be about to read on, and what it took beyond the limit would be missing in
// the next attempt.
func (b *body) retire() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = nil
}

// replayable reports whether another view will get all of the body, and how much
// of it was read.
func (b *body) replayable() (ok bool, read int64) {
	if b == nil {
		return true, 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.closed && !b.final && !b.beyond, b.read
}

// forget says that nothing will be replayed: the reply has begun.
func (b *body) forget() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.final = true
	b.dropLocked()
}

// dropLocked frees what was kept when that will not be asked for. A Read under
// way adds to it first: it may be that of an earlier attempt.
func (b *body) dropLocked() {
	if !b.reading && (b.closed || (b.final || b.beyond) && b.current.off >= b.kept.size) {
		b.kept.free()
		b.share.give(b.granted)
		b.granted = 0
	}
}

// stopped reports whether the body was given up, so that its error means nothing.
func (b *body) stopped() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// abort has no Read of src begin any more, and one that waits for the client
// return soon. It does not wait.
func (b *body) abort() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.abortLocked()
}

func (b *body) abortLocked() {
	b.closed = true
	if !b.reading || b.told || b.interrupt == nil {
		return
	}
	b.told = true
	b.interrupting.Go(b.interrupt) // foreign code, which may take a lock
}

// close waits until nothing reads src, or runs interrupt, and never will again.
func (b *body) close() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.abortLocked()
	for b.reading {
		b.idle.Wait()
	}
	b.dropLocked()
	b.idle.Broadcast() // to views that wait
	b.mu.Unlock()
	b.interrupting.Wait()
}

// pullLocked reads src into p. mu is released meanwhile.
func (b *body) pullLocked(p []byte) (int, error) {
	if b.length >= 0 {
		p = p[:min(int64(len(p)), b.length-b.read)]
	}
	keep := !b.final && !b.beyond
	if keep {
		room := b.roomLocked()
		if room > 0 {
			p = p[:min(int64(len(p)), room)]
		} else {
			keep, b.beyond = false, true // from now on, not only when bytes come: another attempt must not begin meanwhile
		}
	}
	b.reading = true
	b.mu.Unlock()
	n, err := b.src.Read(p)
	var trailers exchange.Fields
	if err == io.EOF && b.length < 0 && b.trailer != nil {
		trailers = b.trailer() // here, so that close waits for it
	}
	b.mu.Lock()
	b.reading = false
	b.idle.Broadcast()
	b.read += int64(n)
	b.trailers = trailers
	if keep {
		b.kept.append(p[:n])
	}
	switch {
	case b.length >= 0 && b.read == b.length:
		err = io.EOF // src is not asked for it
	case err == io.EOF && b.length >= 0:
		err = io.ErrUnexpectedEOF
	}
	b.err = err
	return n, err
}

// roomLocked returns how much can be read and kept: nothing at the limit, and
// nothing when others keep too much.
func (b *body) roomLocked() int64 {
	room := b.limit - b.read
	if room > 0 && b.read >= earlyBody+b.granted {
		if !b.share.take() {
			return 0
		}
		b.granted += grant
	}
	return min(room, earlyBody+b.granted-b.read)
}

// view is the body of one attempt. Only its engine reads it.
type view struct {
	body *body // nil without
	off  int64 // guarded by body.mu
}

// Read implements io.Reader: first what was kept, then the source.
func (v *view) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b := v.body
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.reading && !b.closed && b.current == v && v.off >= b.kept.size {
		b.idle.Wait() // a view of an earlier attempt is still reading
	}
	n, err := 0, b.err
	switch {
	case b.closed || b.current != v:
		return 0, errBodyGone
	case v.off < b.kept.size:
		n, err = b.kept.copy(p, v.off), nil
	case err == nil:
		n, err = b.pullLocked(p)
		if b.closed || b.current != v {
			return 0, errBodyGone // what came is the next one's
		}
	}
	v.off += int64(n)
	b.dropLocked()
	return n, err
}

// trailer returns the fields behind the body, after Read returned io.EOF.
func (v *view) trailer() exchange.Fields {
	v.body.mu.Lock()
	defer v.body.mu.Unlock()
	return v.body.trailers
}

const blockSize = 4 << 10

type block [blockSize]byte

var blocks = sync.Pool{New: func() any { return new(block) }}

// kept is the beginning of a body in pooled memory.
type kept struct {
	size  int64
	list  []*block
	first [4]*block // of list: small bodies need no more
}

func (k *kept) append(p []byte) {
	for len(p) > 0 {
		at := int(k.size % blockSize)
		if at == 0 {
			if k.list == nil {
				k.list = k.first[:0]
			}
			k.list = append(k.list, blocks.Get().(*block)) //nolint:forcetypeassert // the pool holds nothing else
		}
		n := copy(k.list[len(k.list)-1][at:], p)
		k.size += int64(n)
		p = p[n:]
	}
}

// copy copies from off on, which is below size.
func (k *kept) copy(p []byte, off int64) (n int) {
	for n < len(p) && off < k.size {
		at := off % blockSize
		m := copy(p[n:], k.list[off/blockSize][at:min(blockSize, at+k.size-off)])
		n += m
		off += int64(m)
	}
	return n
}

// free gives the memory back.
func (k *kept) free() {
	for i, b := range k.list {
		blocks.Put(b)
		k.list[i] = nil
	}
	k.list, k.size = nil, 0
}
