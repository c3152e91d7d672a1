package http2

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	h2 "golang.org/x/net/http2"

	"edge/proxy/exchange"
)

// conn is one connection. Its locks are never held together, nor during a system
// call or a call of foreign code.
type conn struct {
	client  *Client
	nc      net.Conn
	born    time.Time
	private bool          // for one request only
	age     time.Duration // after which it takes no new streams
	tick    time.Duration // between looks at the clock

	// Owned by Client.mu.
	open  int           // streams, given away or held back
	limit int           // of them
	takes bool          // new ones
	idle  time.Duration // since when there are none

	// Owned by the reader.
	br       *bufio.Reader
	framer   *h2.Framer
	decoder  *decoder
	blockOf  *stream // of the field block under way; nil when it is gone
	blockID  uint32
	blockEnd bool // the block ends the stream
	prefaced bool // the server's first frame came
	known    bool // so did its first SETTINGS

	// What the server may still send, and who noticed what. The watch looks at the
	// flags once in a while, so that nobody else needs to look at the clock.
	granted   grant
	credit    atomic.Int64  // frames that may bring nothing, see spend
	came      atomic.Uint64 // frames
	inBlock   atomic.Bool   // a field block is incomplete
	acked     atomic.Bool   // our SETTINGS are acknowledged
	freePings atomic.Uint32 // those that will not be taken for one too many, see pingLocked
	pongs     atomic.Uint32
	wakes     atomic.Int64  // when the watch looks next, since born
	written   atomic.Uint64 // writes that returned

	watch watch

	mu        sync.Mutex
	streams   map[uint32]*stream
	next      uint32 // id of the next stream
	sendable  allowance
	busy      time.Duration    // since when there have been streams
	initial   int64            // window of a new stream
	maxFrame  int              // that the server takes
	maxList   int64            // of a field section; the server's advice
	blocked   int              // streams that wait to send
	late      map[uint32]int64 // streams reset, and what may still be on the way for them
	forgotten uint32           // up to here such streams are no longer told from others
	held      int              // streams that count as open until the PING is answered
	pings     uint32           // sent
	pingAt    time.Duration    // when the last was sent
	closing   error            // why it takes no streams and has none; nil while it lives
	goAway    string           // what the server said of its leaving

	// The writer's, under mu too.
	pending   []byte // frames
	spare     []byte // its other buffer
	queued    int64  // bytes ever appended to pending
	submitted int64  // bytes ever given to nc.Write, less those that it refused
	seen      uint64 // what came was when it was looked at last
	blind     int64  // what submitted was then
	control   int    // bytes of answers in pending
	flushing  bool   // somebody writes
	writeErr  error
	closeNC   bool // close nc when everything is written
	closed    bool // nc is
	timer     *time.Timer
}

// protocolError is what ends a connection by our decision (RFC 9113 5.4.1).
type protocolError struct {
	code   h2.ErrCode
	reason string
}

// Error names the rule and the code that the server is told.
func (e *protocolError) Error() string { return e.reason + " (" + e.code.String() + ")" }

func refuse(code h2.ErrCode, reason string) error { return &protocolError{code, reason} }

// errGone says that the connection took no stream.
var errGone = errors.New("connection takes no streams")

// newConn takes over nc and starts its reader. The preface leaves with the first
// request. It takes no streams yet but one that is given away.
func newConn(client *Client, nc net.Conn, private bool) *conn {
	c := &conn{
		client: client, nc: nc, born: time.Now(), private: private,
		age: client.o.age(), tick: client.o.tick(), open: 1, limit: 1,
		br: bufio.NewReaderSize(nc, readSize), decoder: newDecoder(),
		streams: map[uint32]*stream{}, next: 1, late: map[uint32]int64{},
		sendable: defaultWindow, initial: defaultWindow, maxFrame: defaultMaxFrame, maxList: lastStream,
	}
	c.framer = h2.NewFramer(nil, c.br)
	c.framer.SetMaxReadFrameSize(frameSize)
	c.granted.init(connWindow)
	c.credit.Store(floodBurst)
	c.freePings.Store(resetPing | silencePing)
	c.pending = append(c.pending, h2.ClientPreface...)
	c.pending = appendSettings(
		c.pending,
		h2.Setting{ID: h2.SettingEnablePush, Val: 0},
		h2.Setting{ID: h2.SettingInitialWindowSize, Val: streamWindow},
		h2.Setting{ID: h2.SettingMaxHeaderListSize, Val: maxList},
	)
	c.pending = appendWindowUpdate(c.pending, 0, connWindow-defaultWindow)
	c.queued = int64(len(c.pending))
	c.wakes.Store(int64(c.tick))
	c.mu.Lock() // look needs the timer
	c.timer = time.AfterFunc(c.tick, c.look)
	c.mu.Unlock()
	go c.read()
	return c
}

func (c *conn) now() time.Duration { return time.Since(c.born) }

// start sends the head of a request and as much of data as may go. end says that
// data is all of the body. It returns what is left of data, and errGone when the
// connection took nothing. Without flush the caller must call flush soon.
func (c *conn) start(s *stream, e *encoder, data []byte, end, flush bool) ([]byte, error) {
	now := c.now()
	c.mu.Lock()
	if err := c.refusalLocked(s, e.size); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	if len(c.streams) == 0 {
		c.busy = now
	}
	s.id = c.next
	c.next += 2
	c.streams[s.id] = s
	s.sendable = allowance(c.initial)
	s.from = c.queued
	block := e.block
	if s.id > 1 {
		block = block[1:] // without noTable
	}
	before := len(c.pending)
	c.pending = appendBlock(c.pending, s.id, block, end && len(data) == 0, c.maxFrame)
	c.queued += int64(len(c.pending) - before)
	if len(data) > 0 {
		data = c.sendLocked(s, data, end)
	} else if end {
		s.sentEnd = true
	}
	if s.sentEnd || len(data) > 0 {
		s.startClock(now)
	}
	s.flushes = !flush
	if !flush {
		c.mu.Unlock()
		return data, nil
	}
	c.flushAndUnlock(len(c.streams) > 1, false)
	return data, nil
}

// refusalLocked says why a stream with a header list of size bytes cannot start.
func (c *conn) refusalLocked(s *stream, size int) error {
	switch {
	case s.dropped:
		return errStopped
	case c.closing != nil:
		return fmt.Errorf("%w: %w", errGone, c.closing)
	case c.writeErr != nil || c.goAway != "" || c.next > lastStream || len(c.pending) > maxBacklog:
		return errGone
	case int64(size) > c.maxList:
		return fmt.Errorf("%w: the server takes no header list of %d bytes", exchange.ErrUnsendable, size)
	}
	return nil
}

// flush is the second half of a start without.
func (c *conn) flush(s *stream) {
	c.mu.Lock()
	s.flushes = false
	c.flushAndUnlock(false, false)
}

// sendLocked appends DATA as far as the windows and maxPending go, and returns
// the rest.
func (c *conn) sendLocked(s *stream, data []byte, end bool) []byte {
	before := len(c.pending)
	for len(data) > 0 && len(c.pending) < maxPending {
		n := fit(len(data), s.sendable, c.sendable, min(c.maxFrame, maxData))
		if n == 0 {
			break
		}
		s.sendable -= allowance(n)
		c.sendable -= allowance(n)
		s.sentEnd = end && n == len(data)
		c.pending = appendData(c.pending, s.id, data[:n], s.sentEnd)
		data = data[n:]
		c.earn(2 + int64(n)/updateBytes)
	}
	c.queued += int64(len(c.pending) - before)
	return data
}

// drop takes the stream from the connection, once. With a code other than
// notReset the server is told, unless it knows or has never heard of the stream.
func (c *conn) drop(s *stream, code h2.ErrCode) {
	c.mu.Lock()
	if s.dropped {
		c.mu.Unlock()
		return
	}
	s.dropped = true
	s.wakeLocked()
	hold := false
	if s.id != 0 {
		delete(c.streams, s.id)
		if code != notReset && c.closing == nil {
			hold = c.resetLocked(s, code)
		}
	}
	c.mu.Unlock()
	if !hold {
		c.client.release(c, 1)
	}
}

// notReset is for streams that both sides have ended, or the server alone.
const notReset h2.ErrCode = 1<<32 - 1

// resetLocked sends RST_STREAM. A cancelled stream goes on to count as open until
// the server has answered a PING sent behind it: many servers are busy with a
// request for a while after its reset, and clients that reset faster than they
// can follow are banned. The PING is left out when it might be taken for one too
// many itself, see pingLocked.
func (c *conn) resetLocked(s *stream, code h2.ErrCode) (hold bool) {
	c.remember(s)
	c.answerLocked(func(b []byte) []byte { return appendReset(b, s.id, code) })
	if code == h2.ErrCodeCancel && !c.private {
		switch {
		case c.held > 0:
			hold = true
		case c.freePings.Load()&resetPing != 0 && c.pings == c.pongs.Load():
			c.pingLocked(resetPing)
			hold = true
		}
		if hold {
			c.held++
		}
	}
	c.kickLocked()
	return hold
}

// remember notes that frames of a stream may come which we no longer want.
func (c *conn) remember(s *stream) {
	if len(c.late) >= maxRemembered {
		for old := range c.late {
			c.forgotten = max(c.forgotten, old)
		}
		clear(c.late)
	}
	c.late[s.id] = s.granted.left.Load()
}

// What a PING is for: each may be sent once after a HEADERS or DATA frame.
const (
	resetPing = 1 << iota
	silencePing
)

// pingLocked sends a PING. gRPC servers close a connection that sends the fourth
// without a HEADERS or DATA frame of theirs in between, unless it comes five
// minutes after the last, so we send two and then keep to pingRepeat.
func (c *conn) pingLocked(purpose uint32) {
	c.freePings.And(^purpose)
	c.pings++
	c.pingAt = c.now()
	data := [8]byte{'e', 'd', 'g', 'e', byte(c.pings >> 24), byte(c.pings >> 16), byte(c.pings >> 8), byte(c.pings)} //nolint:gosec // a byte each
	c.answerLocked(func(b []byte) []byte { return appendPing(b, false, data) })
}

// answeredLocked notes that no PING is under way any more, and returns how many
// streams no longer count as open.
func (c *conn) answeredLocked() (held int) {
	c.pongs.Store(c.pings)
	held, c.held = c.held, 0
	return held
}

// failure is how a connection ended.
type failure struct {
	err    error
	closed bool // by the server
}

// failed makes a failure of an error of reading or writing.
func failed(err error) failure {
	if _, ok := errors.AsType[*protocolError](err); ok {
		return failure{err: fmt.Errorf("%w: %w", exchange.ErrInvalidReply, err)}
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return failure{err: errors.New("connection closed by the server"), closed: true}
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return failure{err: fmt.Errorf("connection closed by the server: %w", err), closed: true}
	}
	return failure{err: fmt.Errorf("connection lost: %w", err)}
}

// end ends the connection and its streams, once: with a GOAWAY when the code says
// so, and then by closing it. After in what the calls learn counts from the first
// request since there was none: no server closes a connection for being idle while
// it works on another, and a later one it may have acted on too.
func (c *conn) end(f failure, code h2.ErrCode, goAway bool) {
	c.client.retire(c)
	now := c.now()
	c.mu.Lock()
	if c.closing != nil {
		c.mu.Unlock()
		return
	}
	c.closing = f.err
	if c.goAway != "" {
		f.err = fmt.Errorf("%w after %s", f.err, c.goAway)
	}
	type loss struct {
		s   *stream
		err *exchange.LostError
	}
	losses := make([]loss, 0, len(c.streams))
	for _, s := range c.streams {
		losses = append(losses, loss{s, &exchange.LostError{
			Err: f.err, Unsent: s.from >= c.submitted, Reused: s.id > 1,
			Closed: f.closed, After: max(0, now-c.busy), Answered: s.answered.Load(),
		}})
	}
	held := c.held
	c.held = 0
	c.timer.Stop()
	c.closeNC = true
	c.pending, c.control = c.pending[:0], 0 // requests among it are unsent, as the losses say
	if goAway && c.writeErr == nil && c.submitted > 0 {
		c.answerLocked(func(b []byte) []byte { return appendGoAway(b, code) })
	}
	c.kickLocked()
	c.mu.Unlock()
	_ = c.nc.SetWriteDeadline(time.Now().Add(closeTime)) // so that what is under way ends too
	c.client.release(c, held)
	for _, l := range losses {
		l.s.lose(l.err)
		c.drop(l.s, notReset)
	}
}
