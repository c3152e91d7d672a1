// Package http2 is the client half of an HTTP/2 engine (RFC 9113): it takes an
// [exchange.Call], sends it as a stream of a shared connection, and gives back
// the reply.
//
//	client := http2.NewClient(dial, http2.Options{})
//	defer client.Close()
//	reply, err := client.Do(&exchange.Call{
//		Method: "GET", Target: "/", Scheme: "http", Host: "models.test",
//		Canceler: new(exchange.Canceler),
//	})
//
// Frames are parsed by golang.org/x/net/http2's Framer and field blocks by its
// hpack; its Transport and Server are not used. A connection has one goroutine
// that reads. Frames are appended to a buffer under the connection's lock, and
// whoever finds nobody writing writes it out, for the others too: no lock is
// held during a system call, so neither a reader nor a canceller ever waits for
// a server that does not read. Nor does a call, which leaves to a goroutine what
// the connection may not take at once.
//
// It does not speak server push, CONNECT, extended CONNECT (websockets), priorities
// or the upgrade from HTTP/1.1.
package http2

import "time"

// What the server may send before somebody has read it.
const (
	// streamWindow lets a reply flow at 256 MB/s over a round trip of 1 ms, and is
	// what one slow client can make us hold.
	streamWindow = 256 << 10
	// connWindow bounds what is on the way, and is open again as soon as it came:
	// stalled replies, whatever their number, do not hold up the others. What a
	// connection may hold are the windows of its streams, 64 MiB for maxStreams.
	connWindow = 8 << 20
	// frameSize is the largest frame we take, the least that RFC 9113 6.5.2 allows:
	// a larger one would only make other streams wait for it.
	frameSize = 16 << 10
	readSize  = 16 << 10 // of the buffer that frames are read from
)

// What a header or trailer section may be.
const (
	maxList          = 64 << 10  // bytes decoded, each field 32 more than its text (RFC 9113 6.5.2)
	maxBlock         = 128 << 10 // bytes encoded: Huffman codes can be longer than their text
	maxContinuations = 8
	maxInterim       = 8 // 1xx replies to one request
)

// How many streams share a connection.
const (
	assumedStreams = 100 // before the server has said (RFC 9113 6.5.2 advises no less)
	maxStreams     = 256 // when it allows more: one goroutine reads for all of them
	lastStream     = 1<<31 - 1
)

// How long things may take.
const (
	idleTime        = 60 * time.Second
	maxAge          = 30 * time.Minute
	connectTime     = 10 * time.Second // for dial and handshake when the call does not say
	tick            = 2 * time.Second  // between looks at the clock
	settingsTime    = 10 * time.Second // for the server's SETTINGS, and for the ACK of ours
	blockTime       = 10 * time.Second // for a field block in several frames
	writeTime       = 20 * time.Second // without progress of one write
	closeTime       = time.Second      // for the last frames before a connection closes
	lostTime        = 5 * time.Second  // for the replies of a server that no longer takes requests
	continueTime    = time.Second      // for the answer to "Expect: 100-continue"
	pingSilence     = 15 * time.Second // with streams open, after which we ask whether the server is there
	pingTime        = 15 * time.Second // for its answer
	pingRepeat      = 5*time.Minute + 10*time.Second
	firstAge        = 0.8 // of maxAge, so that connections made together do not end together
	connsToOne      = 32
	maxTries        = 4 // connections that went away before they took a request
	maxEmptyReads   = 100
	maxData         = 64 << 10       // bytes of a DATA frame of ours, when the server takes more than 16 KiB
	maxPending      = 128 << 10      // bytes waiting to be written before uploads wait
	maxControl      = 64 << 10       // bytes of answers to the server's frames waiting to be written
	maxKept         = 2 * maxPending // of a buffer for frames, while there are streams
	maxBlind        = 32 << 10       // bytes that a call writes itself since the server was heard of
	maxBacklog      = 1 << 20        // bytes waiting to be written before no request joins them
	keptBlock       = 16 << 10
	flushRounds     = 8    // writes for others before the rest is left to a goroutine
	floodBurst      = 2000 // frames that bring nothing
	floodPerSecond  = 500
	updateBytes     = 256 // of ours that a server may answer with one more WINDOW_UPDATE
	maxRemembered   = 256 // streams we have reset whose last frames may be on the way
	maxWindow       = 1<<31 - 1
	defaultWindow   = 1<<16 - 1
	defaultMaxFrame = 16 << 10
)
