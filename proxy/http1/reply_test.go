package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"edge/proxy/exchange"
)

// tapeConn is a server whose words are fixed: it takes any request, returns at
// most piece bytes at a time and then the end of the stream.
type tapeConn struct {
	net.Conn

	reply  string
	piece  int
	writes []string
}

func (c *tapeConn) Read(p []byte) (int, error) {
	if c.reply == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.piece)], c.reply)
	c.reply = c.reply[n:]
	return n, nil
}

func (c *tapeConn) Write(p []byte) (int, error) {
	c.writes = append(c.writes, string(p))
	return len(p), nil
}

func (c *tapeConn) Close() error                     { return nil }
func (c *tapeConn) SetDeadline(time.Time) error      { return nil }
func (c *tapeConn) SetReadDeadline(time.Time) error  { return nil }
func (c *tapeConn) SetWriteDeadline(time.Time) error { return nil }

// heard is what a client makes of a tape.
type heard struct {
	reply exchange.Reply
	body  string
	rest  string // of the tape
	kept  bool   // the connection
	err   error
}

// hear has a client read the tape in answer to call, in pieces.
func hear(tb testing.TB, tape string, call *exchange.Call, piece int) heard {
	tb.Helper()
	nc := &tapeConn{reply: tape, piece: piece}
	c := NewClient(func(context.Context) (net.Conn, error) { return nc, nil }, Options{})
	defer c.Close()
	h := heard{}
	h.reply, h.err = c.Do(call)
	if h.err == nil && h.reply.Tunnel == nil {
		var b []byte
		b, h.err = io.ReadAll(h.reply.Body)
		h.body = string(b)
		_ = h.reply.Body.Close()
	}
	h.kept = c.Idle() == 1
	h.rest = nc.reply
	return h
}

// pieces are sizes of reads: all at once, and torn at every byte.
var pieces = []int{1 << 20, 1, 7}

func TestRepliesThatAreUnderstood(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, x := range []struct {
		name, method, tape string
		status             int
		length             int64
		body               string
		kept               bool
	}{
		{"RFC 9112 4: a reason", "GET", "HTTP/1.1 200 all is w\xe9ll\r\nContent-Length: 2\r\n\r\nhi", 200, 2, "hi", true},
		{"RFC 9112 4: an empty reason", "GET", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", 200, 0, "", true},
		{"RFC 9112 4: not even its blank", "GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, 0, "", true},
		{"no field at all", "GET", "HTTP/1.1 404 Not Found\r\n\r\ngone", 404, -1, "gone", false},
		{"RFC 9112 6.3: nothing after HEAD", "HEAD", ok + "Content-Length: 9\r\n\r\n", 200, 9, "", true},
		{"HEAD of a chunked reply", "HEAD", ok + "Transfer-Encoding: chunked\r\n\r\n", 200, -1, "", true},
		{"HEAD of an unknown length", "HEAD", ok + "\r\n", 200, -1, "", true},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, 0, "", true},
		{"204 that says so", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, 0, "", true},
		{"204 that may have a body", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", 204, 0, "", false},
		{"204 with chunks", "GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204, 0, "", false},
		{"304 with the length of a 200", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, 5, "", true},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\n\r\n", 304, 0, "", true},
		{"equal lengths", "GET", ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", 200, 2, "hi", true},
		{"zeros in front", "GET", ok + "Content-Length: 002\r\n\r\nhi", 200, 2, "hi", true},
		{"RFC 9112 7.1: chunks", "GET", ok + "Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n", 200, -1, "abc0123456789", true},
		{"RFC 9112 7.1.1: extensions", "GET", ok + "Transfer-Encoding: chunked\r\n\r\n1;a;b=\"c d\"\r\nx\r\n0;last\r\n\r\n", 200, -1, "x", true},
		{"blanks behind a size", "GET", ok + "Transfer-Encoding: chunked\r\n\r\n1 \t\r\nx\r\n0  \r\n\r\n", 200, -1, "x", true},
		{"RFC 9112 9.6: close", "GET", ok + "Connection: x, Close\r\nContent-Length: 2\r\n\r\nhi", 200, 2, "hi", false},
		{"RFC 9112 9.3: HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, 2, "hi", false},
		{"HTTP/1.0 that keeps alive", "GET", "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi", 200, 2, "hi", true},
		{"HTTP/1.0 keeps nothing alive without a length", "GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhi", 200, -1, "hi", false},
		{"interim replies", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok + "Content-Length: 0\r\n\r\n", 200, 0, "", true},
		{"no life left", "GET", ok + "Keep-Alive: timeout=0\r\nContent-Length: 0\r\n\r\n", 200, 0, "", false},
	} {
		for _, piece := range pieces {
			call := get("/")
			call.Method = x.method
			h := hear(t, x.tape, call, piece)
			if h.err != nil || h.reply.Status != x.status || h.reply.Length != x.length || h.body != x.body || h.kept != x.kept {
				t.Errorf("%s, %d at a time: status %d, length %d, body %q, kept %v, %v; want %d, %d, %q, %v",
					x.name, piece, h.reply.Status, h.reply.Length, h.body, h.kept, h.err, x.status, x.length, x.body, x.kept)
			}
		}
	}
}

// What comes later than in the same packet is found when the connection is used
// again.
func TestBytesBehindAReplySpoilTheConnection(t *testing.T) {
	for _, tape := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nx",
		"HTTP/1.1 204 No Content\r\n\r\nx",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nhi",
	} {
		if h := hear(t, tape, get("/"), 1<<20); h.err != nil || h.kept {
			t.Errorf("%q: kept %v, %v", tape, h.kept, h.err)
		}
	}
}

func TestFieldsComeAsTheyAre(t *testing.T) {
	h := hear(t, "HTTP/1.1 200 OK\r\nx-B: 1\r\nX-a:  two words \t\r\nx-b:\r\nx-B:3\x80\r\nContent-Length: 0\r\n\r\n", get("/"), 7)
	want := exchange.Fields{{Name: "x-B", Value: "1"}, {Name: "X-a", Value: "two words"}, {Name: "x-b"}, {Name: "x-B", Value: "3\x80"}, {Name: "Content-Length", Value: "0"}}
	if h.err != nil || len(h.reply.Header) != len(want) {
		t.Fatalf("%q, %v; want %q", h.reply.Header, h.err, want)
	}
	for i := range want {
		if h.reply.Header[i] != want[i] {
			t.Errorf("field %d is %q, want %q", i, h.reply.Header[i], want[i])
		}
	}
}

func TestTrailersOfAReply(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1\r\na\r\n0\r\n"
	for _, piece := range pieces {
		h := hear(t, head+"X-Sum: 7\r\nContent-Length: 9\r\nx-more: \t y\r\n\r\n", get("/"), piece)
		want := exchange.Fields{{Name: "X-Sum", Value: "7"}, {Name: "x-more", Value: "y"}} // without framing: RFC 9110 6.5.1
		got := h.reply.Body.Trailer()
		if h.err != nil || !h.kept || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("%d at a time: %q, kept %v, %v; want %q", piece, got, h.kept, h.err, want)
		}
	}
	reply := hear(t, head, get("/"), 1).reply
	if got := reply.Body.Trailer(); got != nil {
		t.Errorf("trailer %q of a body without an end", got)
	}
}

func TestRepliesThatAreRefused(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	const chunked = ok + "Transfer-Encoding: chunked\r\n\r\n"
	long := strings.Repeat("a", maxHead)
	for _, x := range []struct {
		name, tape string
		want       error
	}{
		{"RFC 9112 2.2: bare LF", "HTTP/1.1 200 OK\n\n", errBareLF},
		{"bare LF behind a field", ok + "A: b\n\r\n\r\n", errBareLF},
		{"bare LF as the empty line", ok + "\n", errBareLF},
		{"bare CR in a value", ok + "A: b\rc\r\n\r\n", errValue},
		{"NUL in a value", ok + "A: b\x00\r\n\r\n", errValue},
		{"DEL in a value", ok + "A: b\x7f\r\n\r\n", errValue},
		{"RFC 9112 5.1: blank before the colon", ok + "A : b\r\n\r\n", errName},
		{"empty name", ok + ": b\r\n\r\n", errName},
		{"name that is no token", ok + "A(b): c\r\n\r\n", errName},
		{"name beyond ASCII", ok + "\xc3\xa4: c\r\n\r\n", errName},
		{"no colon", ok + "A\r\n\r\n", errColon},
		{"RFC 9112 5.2: folded", ok + "A: b\r\n c\r\n\r\n", errFold},
		{"folded at once", ok + "\tA: b\r\n\r\n", errFold},
		{"RFC 9112 4: HTTP/2", "HTTP/2.0 200 OK\r\n\r\n", errVersion},
		{"HTTP/1.2", "HTTP/1.2 200 OK\r\n\r\n", errStatusLine},
		{"lower case", "http/1.1 200 OK\r\n\r\n", errVersion},
		{"HTTP/0.9", "hello\r\n\r\n", errVersion},
		{"something else, without a line end", "\x00\x00\x12\x04\x00\x00", errVersion},
		{"an empty line first", "\r\nHTTP/1.1 200 OK\r\n\r\n", errVersion},
		{"two blanks", "HTTP/1.1  200 OK\r\n\r\n", errStatusLine},
		{"two digits", "HTTP/1.1 20 OK\r\n\r\n", errStatusLine},
		{"four digits", "HTTP/1.1 2000 OK\r\n\r\n", errStatusLine},
		{"a sign", "HTTP/1.1 +20 OK\r\n\r\n", errStatusLine},
		{"a control in the reason", "HTTP/1.1 200 O\x01K\r\n\r\n", errStatusLine},
		{"short", "HTTP/1.1\r\n\r\n", errStatusLine},
		{"RFC 9110 15: 600", "HTTP/1.1 600 What\r\n\r\n", errStatus},
		{"099", "HTTP/1.1 099 What\r\n\r\n", errStatus},
		{"RFC 9112 6.1: both", ok + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", errBoth},
		{"twice", ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errEncoding},
		{"a list", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", errEncoding},
		{"identity", ok + "Transfer-Encoding: identity\r\n\r\n", errEncoding},
		{"something hidden", ok + "Transfer-Encoding: chunked\x0b\r\n\r\n", errValue},
		{"chunks in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errEncoding10},
		{"chunks before the reply", "HTTP/1.1 103 Hi\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errEncodingEarly},
		{"framing in the trailer", ok + "Transfer-Encoding: chunked\r\nTrailer: x, Content-length\r\n\r\n0\r\n\r\n", errTrailerName},
		{"RFC 9112 6.3: lengths that differ", ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi", errLengths},
		{"lengths written differently", ok + "Content-Length: 2\r\nContent-Length: 02\r\n\r\nhi", errLengths},
		{"a list of lengths", ok + "Content-Length: 2, 2\r\n\r\nhi", errLength},
		{"a negative length", ok + "Content-Length: -2\r\n\r\nhi", errLength},
		{"a signed length", ok + "Content-Length: +2\r\n\r\nhi", errLength},
		{"no length", ok + "Content-Length: \r\n\r\nhi", errLength},
		{"hexadecimal length", ok + "Content-Length: 0x2\r\n\r\nhi", errLength},
		{"too long", ok + "Content-Length: 9223372036854775808\r\n\r\nhi", errLength},
		{"length of a 204", "HTTP/1.1 204 No\r\nContent-Length: x\r\n\r\n", errLength},
		{"RFC 9110 15.2.2: 101 unasked", "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", errSwitch},
		{"a large head", ok + "A: " + long + "\r\n\r\n", errHeadSize},
		{"a large status line", "HTTP/1.1 200 " + long + "\r\n\r\n", errHeadSize},
		{"many fields", ok + strings.Repeat("a:\r\n", maxFields+1) + "\r\n", errFieldCount},
		{"many interim replies", strings.Repeat("HTTP/1.1 102 Wait\r\n\r\n", maxInterim+1) + ok + "\r\n", errInterims},
		{"RFC 9112 7.1: bare LF behind a size", chunked + "1\nx\r\n0\r\n\r\n", errChunkSize},
		{"bare CR behind a size", chunked + "1\rx\r\n0\r\n\r\n", errChunkSize},
		{"LF in an extension (CVE-2025-22871)", chunked + "1;a\nb\r\nx\r\n0\r\n\r\n", errChunkExt},
		{"no size", chunked + "\r\nx\r\n0\r\n\r\n", errChunkSize},
		{"only an extension", chunked + ";a\r\nx\r\n0\r\n\r\n", errChunkSize},
		{"a prefix", chunked + "0x1\r\nx\r\n0\r\n\r\n", errChunkSize},
		{"a sign", chunked + "+1\r\nx\r\n0\r\n\r\n", errChunkSize},
		{"a blank first", chunked + " 1\r\nx\r\n0\r\n\r\n", errChunkSize},
		{"blanks before an extension", chunked + "1 ;a\r\nx\r\n0\r\n\r\n", errChunkSize},
		{"control for a digit", chunked + "\x11\r\nx\r\n0\r\n\r\n", errChunkSize},
		{"17 digits", chunked + "00000000000000001\r\nx\r\n0\r\n\r\n", errChunkSize},
		{"too large", chunked + "8000000000000000\r\nx", errChunkSize},
		{"data beyond the size", chunked + "1\r\nxy\r\n0\r\n\r\n", errChunkEnd},
		{"LF behind the data", chunked + "1\r\nx\n0\r\n\r\n", errChunkEnd},
		{"CR behind the data", chunked + "1\r\nx\r0\r\n\r\n", errChunkEnd},
		{"a long extension", chunked + "1;" + strings.Repeat("a", maxChunkLine) + "\r\nx\r\n0\r\n\r\n", errChunkLine},
		{"much framing (CVE-2023-39326)", chunked + strings.Repeat("1;"+strings.Repeat("a", 1000)+"\r\nx\r\n", 20) + "0\r\n\r\n", errChunkExcess},
		{"LF behind the last chunk", chunked + "0\r\n\n", errTrailerFirst},
		{"CR behind the last chunk", chunked + "0\r\n\rx", errTrailerEnd},
		{"bare LF in the trailer", chunked + "0\r\nA: b\n\r\n", errBareLF},
		{"folded trailer", chunked + "0\r\n A: b\r\n\r\n", errFold},
		{"trailer without colon", chunked + "0\r\nA\r\n\r\n", errColon},
		{"a large trailer", chunked + "0\r\nA: " + strings.Repeat("a", maxTrailer) + "\r\n\r\n", errTrailerSize},
		{"many trailers", chunked + "0\r\n" + strings.Repeat("a:\r\n", maxFields+2) + "\r\n", errFieldCount},
	} {
		for _, piece := range pieces {
			h := hear(t, x.tape, get("/"), piece)
			lost, ok := errors.AsType[*exchange.LostError](h.err)
			if !ok || !errors.Is(h.err, exchange.ErrInvalidReply) || !errors.Is(h.err, x.want) || !lost.Answered || lost.Closed || lost.Unsent || h.kept {
				t.Errorf("%s, %d at a time: %#v, kept %v; want %v", x.name, piece, h.err, h.kept, x.want)
			}
		}
	}
}

func TestTruncatedRepliesNeverLookComplete(t *testing.T) {
	for _, tape := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
	} {
		for cut := range len(tape) {
			for _, piece := range pieces {
				h := hear(t, tape[:cut], get("/"), piece)
				lost, ok := errors.AsType[*exchange.LostError](h.err)
				if !ok || !lost.Closed || lost.Answered != (cut > 0) || lost.Unsent || lost.Reused || errors.Is(h.err, io.EOF) || h.kept {
					t.Errorf("%q, %d at a time: %#v, kept %v; want a lost reply", tape[:cut], piece, h.err, h.kept)
				}
			}
		}
		if h := hear(t, tape, get("/"), 1); h.err != nil {
			t.Errorf("%q: %v", tape, h.err)
		}
	}
}

// Who reads with a small buffer gets the same, if slower.
func TestChunksAreReadWithAnyBuffer(t *testing.T) {
	const tape = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n12;x\r\n012345678901234567\r\n0\r\n\r\n"
	for _, size := range []int{1, 2, 5, smallRead - 1, smallRead, 4096} {
		for _, piece := range pieces {
			nc := &tapeConn{reply: tape, piece: piece}
			c := NewClient(func(context.Context) (net.Conn, error) { return nc, nil }, Options{})
			reply, err := c.Do(get("/"))
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			buf := make([]byte, size)
			for err == nil {
				var n int
				n, err = reply.Body.Read(buf)
				if n == 0 && err == nil {
					t.Error("a Read returned nothing")
				}
				got = append(got, buf[:n]...)
			}
			if string(got) != "abc012345678901234567" || !errors.Is(err, io.EOF) || c.Idle() != 1 {
				t.Errorf("buffer of %d, %d at a time: %q, %v, %d idle", size, piece, got, err, c.Idle())
			}
			c.Close()
		}
	}
}

func TestChunksThatAreThereComeInOneRead(t *testing.T) {
	tape := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("5\r\nhello\r\n", 3) + "5\r\nhe"
	for _, split := range []int{1 << 20, len("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")} {
		nc := &tapeConn{reply: tape, piece: split}
		c := NewClient(func(context.Context) (net.Conn, error) { return nc, nil }, Options{})
		reply, err := c.Do(get("/"))
		if err != nil {
			t.Fatal(err)
		}
		nc.piece = 1 << 20
		buf := make([]byte, 256)
		n, err := reply.Body.Read(buf)
		if got, want := string(buf[:n]), "hellohellohellohe"; got != want || err != nil {
			t.Errorf("first Read returned %q, %v; want %q", got, err, want)
		}
		c.Close()
	}
}

// Heads of all sizes share the buffer with what came before them.
func TestLargeHeadsBehindLargeHeads(t *testing.T) {
	for _, first := range []int{100, 5_000, 8_100, 8_150, 20_000, 65_000} {
		for _, second := range []int{100, 4_000, 8_150, 30_000, 65_000} {
			a, b := strings.Repeat("a", first), strings.Repeat("b", second)
			tape := "HTTP/1.1 103 Early Hints\r\nA: " + a + "\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nB: " + b + "\r\n\r\nok"
			call := get("/")
			hint := ""
			call.Interim = func(_ int, f exchange.Fields) { hint = f.Get("a") }
			for _, piece := range []int{1 << 20, 1000} {
				h := hear(t, tape, call, piece)
				if h.err != nil || h.body != "ok" || h.reply.Header.Get("b") != b || hint != a || !h.kept {
					t.Errorf("%d and %d bytes, %d at a time: %q, %v", first, second, piece, h.body, h.err)
				}
			}
		}
	}
}

func TestABodyThatCameWholeIsReadInPieces(t *testing.T) {
	nc := &tapeConn{reply: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", piece: 1 << 20}
	c := NewClient(func(context.Context) (net.Conn, error) { return nc, nil }, Options{})
	defer c.Close()
	reply, err := c.Do(get("/"))
	if err != nil || c.Idle() != 1 {
		t.Fatalf("%v, %d idle; want the connection free at once", err, c.Idle())
	}
	got, err := io.ReadAll(iotest.OneByteReader(reply.Body))
	if string(got) != "hello" || err != nil || reply.Body.Trailer() != nil {
		t.Errorf("%q, %v", got, err)
	}
	if n, err := reply.Body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
}
