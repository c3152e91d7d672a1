package proxy_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/modelserver"
	"edge/proxy"
)

// route changes the one route of a configuration.
func route(f func(*config.Route)) func(*config.Config) {
	return func(cfg *config.Config) { f(cfg.Routes[0]) }
}

func TestBodyAboveTheLimitIs413(t *testing.T) {
	e, m := startModel(t, modelserver.Script{}, route(func(r *config.Route) { r.Limits.Body = 1000 }))
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		c := e.client(t, protocol)
		for _, length := range []int64{1001, -1} {
			req := request(t, "POST", "https://a.example.com/echo", strings.Repeat("x", 1001))
			req.ContentLength = length
			resp, body := do(t, c, req)
			if resp.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(body, "body_too_large") {
				t.Errorf("length %d: got %d %s, want 413", length, resp.StatusCode, body)
			}
			if r := e.record(t); r.Reason != proxy.BodyTooLarge {
				t.Errorf("length %d: got record %+v", length, r)
			}
		}
		for _, length := range []int64{1000, -1} {
			req := request(t, "POST", "https://a.example.com/echo", strings.Repeat("x", 1000))
			req.ContentLength = length
			if seen := echo(t, c, req); len(seen.Body) != 1000 {
				t.Errorf("length %d: got %d bytes, want 1000", length, len(seen.Body))
			}
			if r := e.record(t); r.Received != 1000 || r.Reason != "" {
				t.Errorf("length %d: got record %+v", length, r)
			}
		}
	})
	for _, seen := range m.Requests() {
		if seen.BodySize > 1000 {
			t.Errorf("the backend got %d bytes", seen.BodySize)
		}
	}
}

func TestConnectionEndsBehindABodyThatIsTooLarge(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{}, route(func(r *config.Route) { r.Limits.Body = 10 }))
	c := e.raw(t)
	c.send(t, "POST /echo HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 50\r\n\r\nGET /echo HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
	if resp, body := c.response(t, "POST"); resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close {
		t.Errorf("got %d %s, close %v, want a 413 that closes", resp.StatusCode, body, resp.Close)
	}
	c.closed(t)
}

func TestBackendThatDoesNotAnswerIs504(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{Hang: true}, route(func(r *config.Route) { r.Timeouts.FirstByte = 50 * time.Millisecond }))
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		resp, body := do(t, e.client(t, protocol), request(t, "POST", chat, "{}"))
		if resp.StatusCode != http.StatusGatewayTimeout || !strings.Contains(body, `"code":"upstream_timeout"`) {
			t.Errorf("got %d %s, want 504 upstream_timeout", resp.StatusCode, body)
		}
		if r := e.record(t); r.Reason != proxy.UpstreamTimeout || r.Endpoint == "" || r.Attempts != 1 {
			t.Errorf("got record %+v", r)
		}
	})
}

func TestSilentStreamIsBrokenOff(t *testing.T) {
	e, m := startModel(t, modelserver.Script{Gate: true}, route(func(r *config.Route) {
		r.Timeouts.FirstByte, r.Timeouts.StreamIdle = patience, 100*time.Millisecond
	}))
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		resp := stream(t, e.client(t, protocol))
		if body, err := io.ReadAll(resp.Body); err == nil || len(body) == 0 {
			t.Errorf("got %q, %v, want some and then an error", body, err)
		}
		if r := e.record(t); r.Reason != proxy.StreamIdle || r.Status != 200 {
			t.Errorf("got record %+v, want stream_idle", r)
		}
		select {
		case <-m.Aborted():
		case <-time.After(patience):
			t.Error("the backend was not told")
		}
	})
}

func TestStreamThatKeepsTalkingIsNotCut(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{Tokens: strings.Split("a b c d e f g h", " "), Delay: 60 * time.Millisecond},
		route(func(r *config.Route) {
			r.Timeouts = config.Timeouts{FirstByte: 300 * time.Millisecond, StreamIdle: 300 * time.Millisecond, BodyIdle: 300 * time.Millisecond}
		}))
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		resp := stream(t, e.client(t, protocol))
		if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "[DONE]") {
			t.Errorf("got %q, %v, want all of it", body, err)
		}
		if r := e.record(t); r.Reason != "" || r.Duration < 400*time.Millisecond {
			t.Errorf("got record %+v, want a clean end after longer than any timeout", r)
		}
	})
}

// TestFirstTokenHasTheTimeOfTheFirstByte: model servers send the head of a
// stream long before its first token.
func TestFirstTokenHasTheTimeOfTheFirstByte(t *testing.T) {
	e, m := startModel(t, modelserver.Script{}, route(func(r *config.Route) {
		r.Timeouts.FirstByte, r.Timeouts.StreamIdle = 400*time.Millisecond, 100*time.Millisecond
	}))
	c := e.client(t, "h2")
	m.SetScript(modelserver.Script{EarlyHead: true, Delay: 250 * time.Millisecond, Tokens: []string{"a"}})
	if _, err := io.ReadAll(stream(t, c).Body); err != nil {
		t.Errorf("first token after the silence of a stream: %v", err)
	}
	m.SetScript(modelserver.Script{EarlyHead: true, Delay: patience, Tokens: []string{"a"}})
	if _, err := io.ReadAll(stream(t, c).Body); err == nil {
		t.Error("no token after the time of the first byte: got a clean end")
	}
}

func TestClientThatStopsSendingIs408(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{}, route(func(r *config.Route) { r.Timeouts.BodyIdle = 50 * time.Millisecond }))
	t.Run("h1", func(t *testing.T) {
		c := e.raw(t)
		c.send(t, "POST /echo HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 10\r\n\r\nhalf")
		if resp, body := c.response(t, "POST"); resp.StatusCode != http.StatusRequestTimeout || !resp.Close {
			t.Errorf("got %d %s, close %v, want a 408 that closes", resp.StatusCode, body, resp.Close)
		}
		c.closed(t)
	})
	t.Run("h2", func(t *testing.T) {
		c := e.h2(t)
		c.headers(t, 1, false, ":method", "POST", ":scheme", "https", ":path", "/echo", ":authority", "a.example.com", "content-length", "10")
		if err := c.WriteData(1, false, []byte("half")); err != nil {
			t.Fatal(err)
		}
		if got := c.status(t, 1); got != "408" {
			t.Errorf("got %s, want 408", got)
		}
	})
	for range 2 {
		if r := e.record(t); r.Reason != proxy.RequestTimeout {
			t.Errorf("got record %+v, want request_timeout", r)
		}
	}
}

// TestClientMayBeSilentWhileTheReplyRuns: once the reply has begun, a client
// that listens need not talk.
func TestClientMayBeSilentWhileTheReplyRuns(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{}, route(func(r *config.Route) { r.Timeouts.BodyIdle = 100 * time.Millisecond }))
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		pr, pw := io.Pipe()
		defer pw.Close()
		req, err := http.NewRequest(http.MethodPost, "https://a.example.com/duplex", pr)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := e.client(t, protocol).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for range 2 {
			<-time.After(250 * time.Millisecond)
			if _, err := io.WriteString(pw, "word"); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 4)
			if _, err := io.ReadFull(resp.Body, got); err != nil {
				t.Fatalf("after a silence: %v", err)
			}
		}
	})
}

func TestTotalTimeIsBoundedOnlyWhenAsked(t *testing.T) {
	e, m := startModel(t, modelserver.Script{Hang: true}, route(func(r *config.Route) { r.Timeouts.Request = 100 * time.Millisecond }))
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		m.SetScript(modelserver.Script{Hang: true})
		resp, body := do(t, e.client(t, protocol), request(t, "POST", chat, "{}"))
		if resp.StatusCode != http.StatusGatewayTimeout || !strings.Contains(body, "total_timeout") {
			t.Errorf("before the head: got %d %s, want 504", resp.StatusCode, body)
		}
		if r := e.record(t); r.Reason != proxy.TotalTimeout {
			t.Errorf("before the head: got record %+v", r)
		}
		m.SetScript(modelserver.Script{Gate: true})
		if body, err := io.ReadAll(stream(t, e.client(t, protocol)).Body); err == nil {
			t.Errorf("after the head: got a clean end after %q", body)
		}
		if r := e.record(t); r.Reason != proxy.TotalTimeout {
			t.Errorf("after the head: got record %+v", r)
		}
	})
}

func TestClientThatDoesNotReadIsGivenUp(t *testing.T) {
	e := startBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 1<<20)
		for {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}, route(func(r *config.Route) { r.Timeouts.StreamIdle = 200 * time.Millisecond }))
	for name, open := range map[string]func(t *testing.T){
		"h1": func(t *testing.T) {
			t.Helper()
			e.raw(t).send(t, "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
		},
		"h2": func(t *testing.T) {
			t.Helper()
			e.h2(t).headers(t, 1, true, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a.example.com")
		},
	} {
		t.Run(name, func(t *testing.T) {
			open(t)
			if r := e.record(t); r.Reason != proxy.ClientStalled && r.Reason != proxy.ClientLeft {
				t.Errorf("got record %+v, want client_stalled", r)
			}
		})
	}
}

func TestMalformedChunkEndsTheConnection(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	c := e.raw(t)
	c.send(t, "POST /echo HTTP/1.1\r\nHost: a.example.com\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nzz\r\nGET /echo HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
	if resp, body := c.response(t, "POST"); resp.StatusCode != http.StatusBadRequest || !resp.Close {
		t.Errorf("got %d %s, close %v, want a 400 that closes", resp.StatusCode, body, resp.Close)
	}
	c.closed(t)
	if r := e.record(t); r.Reason != proxy.BadRequest {
		t.Errorf("got record %+v", r)
	}
}

func TestProtocolsOfAListenerAreAllThereIs(t *testing.T) {
	for _, only := range []config.Protocol{config.H1, config.H2} {
		e, _ := startModel(t, modelserver.Script{}, func(cfg *config.Config) {
			cfg.Listeners["https"].Protocols = []config.Protocol{only}
		})
		if resp, body := do(t, e.client(t, string(only)), request(t, "GET", "https://a.example.com/echo", "")); resp.StatusCode != http.StatusOK {
			t.Errorf("%s only: got %d %s on it", only, resp.StatusCode, body)
		}
		if only == config.H1 {
			if _, err := tls.Dial("tcp", e.addr, clientTLS("a.example.com", "h2")); err == nil {
				t.Error("h1 only: h2 was negotiated")
			}
			continue
		}
		conn, err := tls.Dial("tcp", e.addr, clientTLS("a.example.com")) // no ALPN: HTTP/1.1 it would be
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = fmt.Fprint(conn, "GET /echo HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("h2 only: got %d on HTTP/1.1, want 400", resp.StatusCode)
		}
	}
}

// TestRefusedClientMustReadToo floods the proxy with requests that it refuses,
// before any route bounds anything, and reads nothing.
func TestRefusedClientMustReadToo(t *testing.T) {
	e := start(t, onePool("http://127.0.0.1:1"))
	c := e.raw(t)
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	go func() {
		refused := strings.Repeat("GET /"+strings.Repeat("x", 100)+" HTTP/1.1\r\nHost: z.example.com\r\n\r\n", 100)
		for {
			if _, err := io.WriteString(c, refused); err != nil {
				return
			}
		}
	}()
	for {
		if r := e.record(t); errors.Is(r.Err, os.ErrDeadlineExceeded) {
			return
		}
	}
}
