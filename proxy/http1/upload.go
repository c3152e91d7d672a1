package http1

import (
	"io"
	"sync"
	"time"

	"edge/proxy/exchange"
)

// continueWait is how long a server may take to say 100 before the body is sent
// all the same.
const continueWait = time.Second

// maxEmptyReads is how often in a row a Body may return nothing.
const maxEmptyReads = 100

// sender makes the bytes of a request: the head and the first piece of a small
// body, and later the rest.
type sender struct {
	call    *exchange.Call
	left    int64            // of the body, not yet in pending; -1 until its end is seen
	expect  bool             // the body waits for a 100
	buf     *[writeSize]byte // pooled
	pending []byte           // to be written, usually in buf
}

// begin makes the head and, when the body is small, reads its first piece: most
// requests are one write.
func (s *sender) begin(last bool) error {
	call := s.call
	if s.left < -1 {
		return unsendable("length")
	}
	s.expect = call.Continue && s.left != 0
	s.buf = writeBuffers.Get().(*[writeSize]byte) //nolint:forcetypeassert // the pool holds nothing else
	head, err := appendHead(s.buf[:0], call, s.left, s.expect, last)
	if err != nil {
		return err
	}
	s.pending = head
	room := cap(head) - len(head)
	if s.left <= 0 || s.left > int64(room) || s.expect {
		return nil // the server sees the head before the client is waited for
	}
	n, err := readSome(call.Body, head[len(head):len(head)+int(s.left)])
	s.left -= int64(n)
	if err == io.EOF && s.left > 0 { //nolint:errorlint // an end is never wrapped
		err = io.ErrUnexpectedEOF
	}
	if s.left > 0 && err != nil {
		return &exchange.BodyError{Err: err}
	}
	s.pending = head[:len(head)+n]
	return nil
}

// readSome is a Read that returns something.
func readSome(r io.Reader, p []byte) (int, error) {
	for range maxEmptyReads {
		if n, err := r.Read(p); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

func (s *sender) release() {
	if s.buf != nil {
		writeBuffers.Put(s.buf)
	}
	s.buf, s.pending = nil, nil
}

// next reads the next piece of the body and returns it as it is to be written,
// and whether it is the last.
func (s *sender) next() (piece []byte, last bool, err error) {
	if s.left > 0 {
		return s.nextOfLength()
	}
	b := s.buf[:]
	n, err := readSome(s.call.Body, b[chunkFront:len(b)-chunkBack])
	last = err == io.EOF //nolint:errorlint // an end is never wrapped
	if err != nil && !last {
		return nil, false, &exchange.BodyError{Err: err}
	}
	from, to := chunkFront, chunkFront
	if n > 0 {
		from, to = frameChunk(b, n)
	}
	piece = b[from:to]
	if last {
		var trailer exchange.Fields
		if s.call.Trailer != nil {
			trailer = s.call.Trailer()
		}
		piece, err = appendLastChunk(piece, trailer)
	}
	return piece, last, err
}

func (s *sender) nextOfLength() (piece []byte, last bool, err error) {
	piece = s.buf[:min(s.left, writeSize)]
	n, err := readSome(s.call.Body, piece)
	s.left -= int64(n)
	if s.left == 0 {
		return piece[:n], true, nil
	}
	if err == io.EOF { //nolint:errorlint // an end is never wrapped
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, false, &exchange.BodyError{Err: err}
	}
	return piece[:n], false, nil
}

// upload sends a body while the reply may be read already.
type upload struct {
	c       *conn
	sender  sender
	started bool // by the goroutine of the call
	done    chan struct{}

	mu      sync.Mutex
	over    bool  // complete or failed; the goroutine is past the connection
	stopped bool  // by the goroutine of the call: the connection is no longer ours
	headed  bool  // the head of the reply came: its deadline is no longer ours
	last    bool  // the last piece is being written
	err     error // why it failed
}

// run is the goroutine. A Read of the body that is under way when the call ends
// is its last.
func (u *upload) run() {
	defer close(u.done)
	defer u.sender.release()
	for {
		if !u.wanted() {
			return
		}
		piece, last, err := u.sender.next()
		if err != nil {
			u.bodyFailed(err)
			return
		}
		if !u.ready(last) {
			return
		}
		_, err = u.c.nc.Write(piece)
		if u.written(err, last) {
			return
		}
	}
}

// wanted reports whether the body is to be read on.
func (u *upload) wanted() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.stopped
}

// restart begins the silence of the server anew, if it is that we wait for.
func (u *upload) restart(limit time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over && u.err == nil {
		_ = u.c.nc.SetReadDeadline(time.Now().Add(limit))
	}
}

// bodyFailed closes the connection, so that the server cannot take what it has
// got for the whole request.
func (u *upload) bodyFailed(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	if !u.stopped {
		u.err = err
		u.c.abandon()
	}
}

// ready reports whether a piece is still to be written, and sets its time.
func (u *upload) ready(last bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stopped {
		u.over = true
		return false
	}
	u.last = last
	if limit := u.sender.call.FirstByte; limit > 0 && !u.headed {
		_ = u.c.nc.SetWriteDeadline(time.Now().Add(limit))
	}
	return true
}

// written takes the result of a write and reports whether it was the last.
func (u *upload) written(err error, last bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil && !last {
		return false
	}
	u.over = true
	if err != nil {
		u.err = &writeError{err: err}
	}
	if u.headed || u.stopped {
		return true
	}
	limit := u.sender.call.FirstByte
	switch {
	case err != nil && isTimeout(err):
		_ = u.c.nc.SetReadDeadline(past)
	case err != nil:
		_ = u.c.nc.SetReadDeadline(time.Now().Add(grace(u.sender.call)))
	case limit > 0:
		_ = u.c.nc.SetReadDeadline(time.Now().Add(limit))
	}
	return true
}

// head takes the deadlines back: the head of the reply is there.
func (u *upload) head() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.headed = true
	_ = u.c.nc.SetDeadline(time.Time{})
}

// stop ends the upload after the connection was closed, and returns why it failed
// before.
func (u *upload) stop() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stopped = true
	if !u.started {
		u.sender.release()
	}
	return u.err
}

// lastPieceWait is how long the last piece may take to be accepted by a server
// that has replied to the request already.
const lastPieceWait = 100 * time.Millisecond

// finish reports whether the body was sent to its end, and stops sending it.
func (u *upload) finish() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over && u.last { // it was accepted, and we were told of the reply first
		u.c.timed = true
		_ = u.c.nc.SetWriteDeadline(time.Now().Add(lastPieceWait))
		u.mu.Unlock()
		<-u.done
		u.mu.Lock()
	}
	u.stopped = true
	if !u.started {
		u.sender.release()
	}
	return u.over && u.err == nil
}
