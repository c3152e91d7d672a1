// Package exchangetest is the suite that every engine of package exchange
// passes. An engine's test is:
//
//	func TestEngine(t *testing.T) {
//		exchangetest.Run(t, func(tb testing.TB, h exchange.Handler) *exchangetest.Server {
//			…start a server, stop it with tb.Cleanup…
//		})
//	}
package exchangetest

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/proxy/exchange"
)

// Server is a running engine as its clients see it.
type Server struct {
	URL    string       // http://… or https://…, without a path
	Client *http.Client // speaks the protocol of the engine
	// Dial opens a connection (past the TLS handshake) for tests that write
	// HTTP/1.1 by hand; nil skips them, for an engine of another protocol.
	Dial func() (net.Conn, error)
	// Sorted says that the engine keeps the order of fields of one name only.
	Sorted bool
}

// Start starts an engine that serves h, and has tb.Cleanup stop it.
type Start func(tb testing.TB, h exchange.Handler) *Server

// Run runs the suite, one server a test.
func Run(t *testing.T, start Start) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Start){
		"RequestsArriveAsSent":            testRequest,
		"TargetIsKeptRaw":                 testTarget,
		"AbsoluteFormNamesTheHost":        testAbsoluteForm,
		"FieldsKeepOrderAndDuplicates":    testFields,
		"BodyOfUnknownLengthIsMinusOne":   testChunked,
		"MegabyteEchoesInFullDuplex":      testFullDuplex,
		"ReadLimitStopsLargeBodies":       testReadLimit,
		"RequestTrailersFollowTheBody":    testRequestTrailers,
		"ReplyTrailersFollowTheBody":      testReplyTrailers,
		"RepliesWithoutBodyHaveNone":      testBodiless,
		"ShortBodyBreaksTheReply":         testShortBody,
		"LongBodyIsRefused":               testLongBody,
		"HeadIsFixedByFirstWrite":         testCommit,
		"ConnectionCloseEndsIt":           testConnectionClose,
		"InterimRepliesArriveFirst":       testInterim,
		"InterimIsCutOffToo":              testInterimTimeout,
		"ContinueIsSentOnRead":            testContinue,
		"OnEndRunsOnceLastFirst":          testOnEnd,
		"PanicBreaksTheReply":             testPanic,
		"AbortIsNeverACleanEnd":           testAbort,
		"AbortResetsHTTP10":               testAbortHTTP10,
		"AbortFreesStuckCalls":            testAbortFrees,
		"InterruptEndsOnlyTheReading":     testInterrupt,
		"ClientLeavingClosesDone":         testClientLeaves,
		"DoneClosesAtTheEnd":              testDoneAtEnd,
		"SilentBodyTimesOut":              testReadTimeout,
		"StuckReaderIsCutOff":             testWriteTimeout,
		"SlowReaderIsNotCutOff":           testSlowReader,
		"EarlyReplyReachesSendingClient":  testEarlyReply,
		"UnreadSmallBodyKeepsConnection":  testUnreadSmall,
		"UnsentBodyDoesNotPinConnection":  testUnsentBody,
		"MalformedBodyEndsTheConnection":  testMalformedBody,
		"TunnelDeliversEarlyBytes":        testTunnel,
		"TunnelIsRefusedWhereImpossible":  testNoTunnel,
		"AbortClosesTunnels":              testAbortTunnel,
		"DetachedSourceFlushesEveryRead":  testDetach,
		"DetachedSourceErrorBreaksReply":  testDetachError,
		"DetachedSourcePanicEndsExchange": testDetachPanic,
		"ClientLeavesDetachedSource":      testDetachClientLeaves,
	} {
		t.Run(name, func(t *testing.T) { test(t, start) })
	}
}

// wait bounds everything a test waits for.
const wait = 10 * time.Second

// running is a server whose exchanges are watched.
type running struct {
	*Server
	begun, ended atomic.Int32
	ends         chan ending
}

// ending is what an exchange looked like at its end.
type ending struct {
	status         int
	sent, received int64
	err            error
}

// serve starts h. When the test ends, every exchange must have ended once.
func serve(t *testing.T, start Start, h exchange.Handler) *running {
	t.Helper()
	s := &running{ends: make(chan ending, 16)}
	t.Cleanup(func() { // runs after the server has stopped
		if b, e := s.begun.Load(), s.ended.Load(); b != e {
			t.Errorf("%d exchanges ran their OnEnd %d times, want as often", b, e)
		}
	})
	s.Server = start(t, func(e *exchange.Exchange) {
		s.begun.Add(1)
		e.OnEnd(func(e *exchange.Exchange) {
			s.ended.Add(1)
			s.ends <- ending{e.Status, e.Sent, e.Received, e.Err}
		})
		h(e)
	})
	return s
}

// end waits for an exchange to end.
func (s *running) end(t *testing.T) ending {
	t.Helper()
	return receive(t, s.ends, "the exchange to end")
}

func receive[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(wait):
		t.Fatalf("waited %v for %s", wait, what)
	}
	return v
}

// request makes a request whose context ends with the test.
func (s *running) request(t *testing.T, method, target string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*wait)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, s.URL+target, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reply is a reply whose body is read, or is being read. Trailer may be asked
// for at the end of the body.
type reply struct {
	StatusCode int
	Header     http.Header
	Body       io.Reader
	Trailer    func(name string) []string
}

// open sends r; the body of the reply is closed when the test ends.
func (s *running) open(t *testing.T, r *http.Request) *reply {
	t.Helper()
	res, err := s.Client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return &reply{res.StatusCode, res.Header, res.Body, func(name string) []string { return res.Trailer.Values(name) }}
}

// do sends r and reads the reply to its end.
func (s *running) do(t *testing.T, r *http.Request) (res *reply, body string) {
	t.Helper()
	res = s.open(t, r)
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("read reply: %v", err)
	}
	return res, string(b)
}

// breaks sends r and fails the test when the reply ends cleanly.
func (s *running) breaks(t *testing.T, r *http.Request) {
	t.Helper()
	res, err := s.Client.Do(r)
	if err != nil {
		return
	}
	defer func() { _ = res.Body.Close() }()
	if body, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("reply %d with %d bytes ended cleanly, want a broken one", res.StatusCode, len(body))
	}
}

// dial opens a connection for HTTP/1.1 by hand and sends text, or skips the test.
func (s *running) dial(t *testing.T, text string) *wire {
	t.Helper()
	if s.Dial == nil {
		t.Skip("not HTTP/1.1")
	}
	c, err := s.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	w := &wire{c, bufio.NewReader(c)}
	w.send(t, text)
	return w
}

// wire is a connection with HTTP/1.1 by hand.
type wire struct {
	net.Conn
	r *bufio.Reader
}

func (w *wire) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(w.Conn, text); err != nil {
		t.Fatal(err)
	}
}

// head reads up to an empty line.
func (w *wire) head(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for !strings.HasSuffix(b.String(), "\r\n\r\n") {
		line, err := w.r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			t.Fatalf("read head: %v after %q", err, b.String())
		}
	}
	return b.String()
}

// rest reads until the connection ends, which must be soon.
func (w *wire) rest(t *testing.T) string {
	t.Helper()
	b, err := io.ReadAll(w.r)
	if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // net.Conn returns it bare
		t.Fatalf("the connection is still open after %q", b)
	}
	return string(b)
}

// readAll reads the body of the request.
func readAll(t *testing.T, e *exchange.Exchange) string {
	t.Helper()
	b, err := io.ReadAll(e)
	if err != nil {
		t.Errorf("read request: %v", err)
	}
	return string(b)
}

// write sends a part of the reply at once.
func write(t *testing.T, e *exchange.Exchange, part string) {
	t.Helper()
	if _, err := io.WriteString(e, part); err != nil {
		t.Errorf("write %q: %v", part, err)
	}
	if err := e.Flush(); err != nil {
		t.Errorf("flush after %q: %v", part, err)
	}
}

// expect compares.
func expect[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}
