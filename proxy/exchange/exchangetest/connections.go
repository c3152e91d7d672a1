package exchangetest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"edge/proxy/exchange"
)

// testEarlyReply answers while the client is still sending.
func testEarlyReply(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.Status = http.StatusUnauthorized
		e.Reply.Set("content-length", "2")
		_, _ = io.WriteString(e, "no")
	})
	body, client := io.Pipe()
	defer func() { _ = client.Close() }()
	go func() { // endless
		for part := make([]byte, 32<<10); ; {
			if _, err := client.Write(part); err != nil {
				return
			}
		}
	}()
	begin := time.Now()
	res, text := s.do(t, s.request(t, http.MethodPost, "/", body))
	expect(t, "status", res.StatusCode, http.StatusUnauthorized)
	expect(t, "body", text, "no")
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the reply took %v", d)
	}
}

func testUnreadSmall(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) { write(t, e, "hello") })
	for i := range 3 {
		r := s.request(t, http.MethodPost, "/", bytes.NewReader(make([]byte, 64<<10)))
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			GotConn: func(c httptrace.GotConnInfo) {
				if i > 0 && !c.Reused {
					t.Errorf("request %d: new connection, want the old one", i)
				}
			},
		}))
		s.do(t, r)
		s.end(t)
	}
}

// testUnsentBody has a client that announces a body, sends a little and waits.
func testUnsentBody(t *testing.T, start Start) {
	t.Helper()
	targets := make(chan string, 4)
	s := serve(t, start, func(e *exchange.Exchange) {
		targets <- e.Target
		if e.Path == "/flushed" {
			write(t, e, "hello")
		}
	})
	for _, path := range []string{"/flushed", "/not"} {
		w := s.dial(t, "POST "+path+" HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n0123456789")
		head := w.head(t)
		expect(t, "status", head[:12], "HTTP/1.1 200")
		begin := time.Now()
		_, _ = io.WriteString(w, "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n") // is body, if anything
		w.rest(t)
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("%s: the connection was open for %v", path, d)
		}
		expect(t, "request", receive(t, targets, "a request"), path)
		s.end(t)
	}
	select {
	case target := <-targets:
		t.Errorf("%s was taken for a request, want it to be body", target)
	default:
	}
}

func testMalformedBody(t *testing.T, start Start) {
	t.Helper()
	targets := make(chan string, 4)
	s := serve(t, start, func(e *exchange.Exchange) {
		targets <- e.Target
		if e.Path == "/flushed" {
			write(t, e, "hello")
		}
		if b, err := io.ReadAll(e); err == nil {
			t.Errorf("read %q, want an error", b)
		}
	})
	for _, path := range []string{"/flushed", "/not"} {
		w := s.dial(t, "POST "+path+" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"+
			"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
		expect(t, "status", w.head(t)[:12], "HTTP/1.1 200")
		rest := w.rest(t)
		expect(t, "replies behind it", strings.Count(rest, "HTTP/1.1"), 0)
		expect(t, "request", receive(t, targets, "a request"), path)
		s.end(t)
	}
	expect(t, "requests behind it", len(targets), 0)
}

const upgrade = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

func testTunnel(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.SetReadTimeout(50 * time.Millisecond) // ends with the tunnel
		e.SetWriteTimeout(50 * time.Millisecond)
		e.Reply = exchange.Fields{{Name: "Upgrade", Value: "websocket"}, {Name: "Sec-WebSocket-Accept", Value: "x\r\ny: z"}}
		c, err := e.Tunnel()
		if err != nil {
			t.Errorf("tunnel: %v", err)
			return
		}
		if _, err := e.Tunnel(); !errors.Is(err, exchange.ErrNoTunnel) {
			t.Errorf("second tunnel: %v, want ErrNoTunnel", err)
		}
		if _, err := io.WriteString(e, "http"); err == nil {
			t.Error("Write beside the tunnel worked")
		}
		if _, err := io.Copy(c, c); err != nil {
			t.Errorf("echo: %v", err)
		}
	})
	w := s.dial(t, upgrade+"early")
	head := w.head(t)
	expect(t, "status line", strings.HasPrefix(head, "HTTP/1.1 101 Switching Protocols\r\n"), true)
	expect(t, "upgrade", strings.Contains(head, "\r\nUpgrade: websocket\r\n"), true)
	expect(t, "name kept as given", strings.Contains(head, "\r\nSec-WebSocket-Accept: x"), true)
	expect(t, "split field", strings.Contains(head, "\r\ny: z"), false)
	buf := make([]byte, 5)
	for _, text := range []string{"early", "later"} {
		if text == "later" {
			time.Sleep(150 * time.Millisecond) //nolint:forbidigo // the deadlines that must not be there
			w.send(t, text)
		}
		if _, err := io.ReadFull(w.r, buf); err != nil {
			t.Fatal(err)
		}
		expect(t, "echo", string(buf), text)
	}
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
		expect(t, "after the end", w.rest(t), "")
	} else {
		_ = w.Close()
	}
	end := s.end(t)
	expect(t, "sent", end.sent, 10)
	expect(t, "received", end.received, 10)
	expect(t, "status", end.status, http.StatusSwitchingProtocols)
}

func testNoTunnel(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		if e.Path == "/late" {
			write(t, e, "late")
		}
		if _, err := e.Tunnel(); !errors.Is(err, exchange.ErrNoTunnel) {
			t.Errorf("%s: %v, want ErrNoTunnel", e.Path, err)
		}
		if !e.Committed() {
			e.Status = http.StatusNotImplemented
		}
	})
	if s.Dial == nil {
		res, _ := s.do(t, s.request(t, http.MethodGet, "/h2", nil))
		expect(t, "status", res.StatusCode, http.StatusNotImplemented)
		return
	}
	_, body := s.do(t, s.request(t, http.MethodGet, "/late", nil))
	expect(t, "body", body, "late")
	res, _ := s.do(t, s.request(t, http.MethodPost, "/body", strings.NewReader("x")))
	expect(t, "status with an unread body", res.StatusCode, http.StatusNotImplemented)
	expect(t, "status for HTTP/1.0", s.dial(t, "GET /old HTTP/1.0\r\n\r\n").head(t)[9:12], "501")
}

func testAbortTunnel(t *testing.T, start Start) {
	t.Helper()
	open := make(chan *exchange.Exchange)
	s := serve(t, start, func(e *exchange.Exchange) {
		c, err := e.Tunnel()
		if err != nil {
			t.Errorf("tunnel: %v", err)
			return
		}
		open <- e
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("read from an aborted tunnel worked")
		}
	})
	w := s.dial(t, upgrade)
	w.head(t)
	receive(t, open, "the tunnel").Abort()
	expect(t, "rest", w.rest(t), "")
	s.end(t)
}

// testConnectionClose has a reply that gives its connection up: the next request
// comes on another one, and the client is not told how on HTTP/2.
func testConnectionClose(t *testing.T, start Start) {
	t.Helper()
	peers := make(chan string, 4)
	s := serve(t, start, func(e *exchange.Exchange) {
		peers <- e.Conn.Peer.String()
		if e.Path == "/last" {
			e.Reply.Set("connection", "close")
		}
		write(t, e, "hello")
	})
	var on []string
	for _, path := range []string{"/", "/last", "/"} {
		res, body := s.do(t, s.request(t, http.MethodGet, path, nil))
		expect(t, "body", body, "hello")
		if s.Dial == nil { // HTTP/2
			expect(t, "field", res.Header.Get("Connection"), "")
		}
		on = append(on, receive(t, peers, "a request"))
		s.end(t)
	}
	if on[0] != on[1] || on[1] == on[2] {
		t.Errorf("requests came on %q, want two connections", on)
	}
}
