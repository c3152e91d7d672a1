package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"edge/proxy/exchange"
)

const smallReply = "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 20\r\n" +
	"content-type: application/json\r\nx-request-id: 0123456789abcdef\r\nopenai-version: 2020-10-01\r\n" +
	"openai-processing-ms: 12\r\nx-ratelimit-limit: 100\r\nx-ratelimit-remaining: 99\r\nstrict-transport-security: max-age=1\r\n\r\n" +
	`{"choices":[{}]}    `

// parrot is a server in the connection: it has the same reply for every write, and
// costs nothing.
type parrot struct {
	net.Conn

	reply string
	left  string
}

func (p *parrot) Write(b []byte) (int, error) { p.left = p.reply; return len(b), nil }

func (p *parrot) Read(b []byte) (int, error) {
	if p.left == "" {
		return 0, os.ErrDeadlineExceeded // and stays silent while idle
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

func (p *parrot) Close() error                     { return nil }
func (p *parrot) SetDeadline(time.Time) error      { return nil }
func (p *parrot) SetReadDeadline(time.Time) error  { return nil }
func (p *parrot) SetWriteDeadline(time.Time) error { return nil }

// smallPost is a request of a client of a model, to be sent again and again.
func smallPost(body *strings.Reader) *exchange.Call {
	call := post("")
	call.FirstByte = time.Minute
	call.Length, call.Body = body.Size(), body
	for _, name := range []string{"Authorization", "Content-Type", "Accept", "User-Agent", "X-Stainless-Lang", "X-Forwarded-For"} {
		call.Header.Add(name, "a value of some length")
	}
	return call
}

// doAll does the call and reads its reply into buf.
func doAll(tb testing.TB, c *Client, call *exchange.Call, buf []byte) {
	tb.Helper()
	reply, err := c.Do(call)
	for err == nil {
		_, err = reply.Body.Read(buf)
	}
	if !errors.Is(err, io.EOF) {
		tb.Fatal(err)
	}
	_ = reply.Body.Close()
}

func parrotClient(reply string) *Client {
	return NewClient(func(context.Context) (net.Conn, error) { return &parrot{reply: reply}, nil }, Options{Idle: time.Hour})
}

var kilobyte = strings.Repeat("a", 1000)

func TestASmallRequestAllocatesLittle(t *testing.T) {
	c := parrotClient(smallReply)
	defer c.Close()
	body := strings.NewReader(kilobyte)
	call, buf := smallPost(body), make([]byte, 4096)
	if n := testing.AllocsPerRun(200, func() {
		body.Reset(kilobyte)
		doAll(t, c, call, buf)
	}); n > 4 {
		t.Errorf("%v allocations a request, want at most 4: head, fields, body and the sender", n)
	}
}

// ticker is a stream without an end, an event at every read.
type ticker struct {
	parrot
	event string
}

func (k *ticker) Read(b []byte) (int, error) {
	if k.left == "" {
		k.left = k.event
	}
	return k.parrot.Read(b)
}

const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

// stream returns a reply that has an event of the given size for every Read.
func stream(tb testing.TB, size int) (exchange.Reply, *Client) {
	tb.Helper()
	chunk := string(appendHexLine(nil, size)) + strings.Repeat("e", size) + "\r\n"
	c := NewClient(func(context.Context) (net.Conn, error) { return &ticker{parrot{reply: streamHead}, chunk}, nil }, Options{})
	reply, err := c.Do(get("/"))
	if err != nil {
		tb.Fatal(err)
	}
	return reply, c
}

func appendHexLine(b []byte, n int) []byte {
	frame := make([]byte, chunkFront+n+chunkBack)
	from, _ := frameChunk(frame, n)
	return append(b, frame[from:chunkFront]...)
}

func TestAnEventOfAStreamAllocatesNothing(t *testing.T) {
	reply, c := stream(t, 200)
	defer c.Close()
	defer reply.Body.Close()
	buf := make([]byte, 32<<10)
	if n := testing.AllocsPerRun(200, func() {
		if n, err := reply.Body.Read(buf); n != 200 || err != nil {
			t.Errorf("%d bytes, %v; want an event of 200", n, err)
		}
	}); n > 0 {
		t.Errorf("%v allocations an event", n)
	}
}

func BenchmarkReplyHead(b *testing.B) {
	end := strings.Index(smallReply, "\r\n\r\n") + 4
	head := []byte(smallReply[:end])
	call := get("/")
	b.ReportAllocs()
	b.SetBytes(int64(end))
	for b.Loop() {
		var scan headScan
		n, err := scan.find(head)
		if err != nil {
			b.Fatal(err)
		}
		h, err := parseReply(string(head[:n]), scan.lines, call)
		if err != nil || h.status != 200 {
			b.Fatal(h.status, err)
		}
	}
}

func BenchmarkChunkedRead(b *testing.B) {
	for name, size := range map[string]int{"event200": 200, "large16K": 16 << 10} {
		b.Run(name, func(b *testing.B) {
			reply, c := stream(b, size)
			defer c.Close()
			defer reply.Body.Close()
			buf := make([]byte, 32<<10)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				if n, err := reply.Body.Read(buf); n != size || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// clockwork answers after every so many bytes, whatever they are: TLS tears small
// requests, too.
func clockwork(request int, reply string) func(*serverConn) {
	return func(s *serverConn) {
		buf := make([]byte, request)
		for {
			if _, err := io.ReadFull(s.Conn, buf); err != nil {
				return
			}
			if _, err := io.WriteString(s.Conn, reply); err != nil {
				return
			}
		}
	}
}

func BenchmarkDo(b *testing.B) {
	body := strings.NewReader(kilobyte)
	call := smallPost(body)
	head, err := appendHead(nil, call, call.Length, false, false)
	if err != nil {
		b.Fatal(err)
	}
	serve := clockwork(len(head)+len(kilobyte), smallReply)
	b.Run("TCP with net/http", func(b *testing.B) { benchmarkTransport(b, rawServer(b, Options{}, serve).dial) })
	for name, start := range map[string]func() *Client{
		"memory": func() *Client { return parrotClient(smallReply) },
		"TCP":    func() *Client { return rawServer(b, Options{}, serve) },
		"TLS":    func() *Client { return tlsServer(b, true, serve) },
	} {
		b.Run(name, func(b *testing.B) {
			c := start()
			defer c.Close()
			buf := make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(kilobyte)
				doAll(b, c, call, buf)
			}
		})
	}
}

// benchmarkTransport is the same with net/http, to compare with.
func benchmarkTransport(b *testing.B, dial func(context.Context) (net.Conn, error)) {
	b.Helper()
	tr := &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		ResponseHeaderTimeout: time.Minute, DisableCompression: true,
	}
	defer tr.CloseIdleConnections()
	call := smallPost(strings.NewReader(kilobyte))
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		r, err := http.NewRequestWithContext(b.Context(), call.Method, "http://"+call.Host+call.Target, strings.NewReader(kilobyte))
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range call.Header {
			r.Header.Add(f.Name, f.Value)
		}
		// The same bytes, so that the server, which only counts, answers in time.
		resp, err := tr.RoundTrip(r)
		for err == nil {
			_, err = resp.Body.Read(buf)
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}

func BenchmarkIdlePool(b *testing.B) {
	c := parrotClient(smallReply)
	defer c.Close()
	cn := newConn(c, &parrot{})
	b.ReportAllocs()
	for b.Loop() {
		c.put(cn)
		if cn = c.pop(); cn == nil {
			b.Fatal("the pool is empty")
		}
	}
}
