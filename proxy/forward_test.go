package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"edge/config"
	"edge/internal/modelserver"
	"edge/proxy"
)

const chat = "https://a.example.com/v1/chat/completions"

// stream opens a streaming chat.
func stream(tb testing.TB, c *http.Client) *http.Response {
	tb.Helper()
	resp, err := c.Do(request(tb, "POST", chat, `{"model":"m","stream":true}`))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		tb.Fatalf("got %d", resp.StatusCode)
	}
	return resp
}

// event reads up to the end of the next server-sent event.
func event(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\n" {
			return b.String(), err
		}
	}
}

// TestTokensAreNotHeldBack is lock-step: the server sends a token only after the
// client confirmed the one before, so any buffer in between is a deadlock.
func TestTokensAreNotHeldBack(t *testing.T) {
	e, m := startModel(t, modelserver.Script{Gate: true, Tokens: strings.Split("to be or not to be", " ")})
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		resp := stream(t, e.client(t, protocol))
		r := bufio.NewReader(resp.Body)
		events := 0
		for {
			ev, err := event(r)
			if strings.Contains(ev, "[DONE]") {
				break
			}
			if err != nil {
				t.Fatalf("after %d events: %v", events, err)
			}
			events++
			m.Confirm()
		}
		if events < 6 {
			t.Errorf("got %d events, want 6 tokens at least", events)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("end of the stream: %v", err)
		}
		if rec := e.record(t); rec.Status != 200 || rec.Reason != "" || rec.FirstByte <= 0 || rec.Sent == 0 || rec.Received == 0 {
			t.Errorf("got record %+v", rec)
		}
		drainConfirms(m)
	})
}

// drainConfirms takes what the last loop confirmed too often.
func drainConfirms(m *modelserver.Server) {
	m.SetScript(modelserver.Script{Gate: true, Tokens: []string{"to", "be", "or", "not", "to", "be"}})
}

// TestUploadIsNotHeldBack: each piece of a request body comes back before the
// next is sent, on a connection that goes both ways at once.
func TestUploadIsNotHeldBack(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		pr, pw := io.Pipe()
		req, err := http.NewRequest(http.MethodPost, "https://a.example.com/duplex", pr)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := e.client(t, protocol).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for i := range 5 {
			want := fmt.Sprintf("piece %d", i)
			if _, err := io.WriteString(pw, want); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
				t.Fatalf("got %q, %v, want %q", got, err, want)
			}
		}
		_ = pw.Close()
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("got %q, %v, want the end", rest, err)
		}
	})
}

// TestNoStreamIsCutByAnImmediateHead is golang/go#40747: a reply whose head comes
// while the transport still looks for the end of the request body.
func TestNoStreamIsCutByAnImmediateHead(t *testing.T) {
	n := scale(500, 5000) // of each protocol
	if testing.Short() {
		n = 50
	}
	settled(t)
	e := startBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush() // before the body is looked at
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "data: 1\n\ndata: [DONE]\n\n")
	})
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		c := e.client(t, protocol)
		c.Transport.(*http.Transport).MaxIdleConnsPerHost = 16
		var cut tally
		slots := make(chan struct{}, 16)
		var running sync.WaitGroup
		body := `{"stream":true,"prompt":"` + strings.Repeat("x", 4000) + `"}`
		for range n {
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				resp, err := c.Post(chat, "application/json", strings.NewReader(body))
				if err == nil {
					var got []byte
					got, err = io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if err == nil && !strings.HasSuffix(string(got), "[DONE]\n\n") {
						err = fmt.Errorf("got %d %q", resp.StatusCode, got)
					}
				}
				cut.add(err)
				<-e.records
			})
		}
		running.Wait()
		if cut.count > 0 {
			t.Errorf("%d of %d streams were cut: %v …", cut.count, n, errors.Join(cut.first...))
		}
	})
}

func TestClientThatLeavesCancelsUpstream(t *testing.T) {
	for name, script := range map[string]modelserver.Script{
		"before the head":   {Hang: true},
		"after a token":     {Gate: true},
		"while tokens come": {Tokens: strings.Split(strings.Repeat("word ", 50_000), " "), Delay: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			e, m := startModel(t, script)
			bothProtocols(t, func(t *testing.T, protocol string) {
				t.Helper()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				before := m.Count()
				left := make(chan time.Time, 1)
				c := e.client(t, protocol)
				go func() {
					req := request(t, "POST", chat, `{"model":"m","stream":true}`).WithContext(ctx)
					resp, err := c.Do(req)
					if err != nil {
						return
					}
					defer resp.Body.Close()
					_, _ = event(bufio.NewReader(resp.Body))
					left <- time.Now()
					cancel()
				}()
				if script.Hang {
					wait, done := context.WithTimeout(t.Context(), patience)
					defer done()
					if err := m.Wait(wait, before+1); err != nil {
						t.Fatal(err)
					}
					left <- time.Now()
					cancel()
				}
				select {
				case a := <-m.Aborted():
					if d := a.At.Sub(<-left); d > time.Second {
						t.Errorf("upstream learned it after %v, want at most 1 s", d)
					}
				case <-time.After(patience):
					t.Fatal("upstream never learned that the client left")
				}
				if r := e.record(t); r.Reason != proxy.ClientLeft {
					t.Errorf("got record %+v, want reason client_left", r)
				} else if want := map[bool]int{true: 499, false: 200}[script.Hang]; r.Status != want {
					t.Errorf("got status %d, want %d", r.Status, want)
				}
			})
		})
	}
}

// Who goes in the middle of a body has not sent nonsense.
func TestClientThatLeavesDuringItsBodyHasLeft(t *testing.T) {
	e := startRaw(t, func(_ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	for _, body := range []string{
		"Content-Length: 100\r\n\r\n12345",
		"Content-Length: 1000000\r\n\r\n12345",
		"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
	} {
		for _, reset := range []bool{false, true} {
			r := e.raw(t)
			r.send(t, "POST /v1/chat/completions HTTP/1.1\r\nHost: a.example.com\r\n"+body)
			if tcp, ok := r.NetConn().(*net.TCPConn); ok && reset {
				time.Sleep(10 * time.Millisecond) // for what was sent to be read
				_ = tcp.SetLinger(0)
				_ = tcp.Close()
			}
			_ = r.Close()
			if rec := e.record(t); rec.Reason != proxy.ClientLeft || rec.Status != 499 {
				t.Errorf("%.20q, reset %v: got record %+v, want client_left", body, reset, rec)
			}
		}
	}
}

func TestReplyThatBreaksOffIsBrokenForTheClient(t *testing.T) {
	e, m := startModel(t, modelserver.Script{})
	for name, script := range map[string]modelserver.Script{
		"stream":                {AbortAfter: 2},
		"stream by reset":       {AbortAfter: 2, Reset: true},
		"stream after the head": {AbortAfter: -1},
	} {
		t.Run(name, func(t *testing.T) {
			m.SetScript(script)
			bothProtocols(t, func(t *testing.T, protocol string) {
				t.Helper()
				resp := stream(t, e.client(t, protocol))
				if body, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("got a clean end after %q, want a broken body", body)
				}
				if r := e.record(t); r.Reason != proxy.UpstreamLost || r.Status != 200 || r.Err == nil {
					t.Errorf("got record %+v, want upstream_lost", r)
				}
			})
		})
	}
	t.Run("json", func(t *testing.T) {
		m.SetScript(modelserver.Script{AbortAfter: 1, Tokens: []string{strings.Repeat("long ", 10_000)}})
		bothProtocols(t, func(t *testing.T, protocol string) {
			t.Helper()
			resp, err := e.client(t, protocol).Do(request(t, "POST", chat, `{"model":"m"}`))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			if err == nil {
				t.Error("got a clean end, want a broken body")
			}
			if r := e.record(t); r.Reason != proxy.UpstreamLost {
				t.Errorf("got record %+v, want upstream_lost", r)
			}
		})
	})
}

func TestDeadBackendIsAnErrorInTheCallersDialect(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := ln.Addr().String()
	_ = ln.Close()
	e := start(t, onePool("http://"+dead))
	for path, want := range map[string]string{
		"/v1/chat/completions": `"code":"upstream_unreachable"`,
		"/v1/messages":         `"type":"api_error"`,
		"/api/chat":            `{"error":"the model server could not be reached"}`,
		"/":                    `"reason":"upstream_unreachable"`,
	} {
		resp, body := do(t, e.client(t, "h1"), request(t, "POST", "https://a.example.com"+path, "{}"))
		if resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, want) {
			t.Errorf("%s: got %d %s, want 502 with %s", path, resp.StatusCode, body, want)
		}
		if strings.Contains(body, "127.0.0.1") {
			t.Errorf("%s: the client is told an address: %s", path, body)
		}
		r := e.record(t)
		if r.Reason != proxy.UpstreamUnreachable || !strings.Contains(r.Endpoint, dead) || r.Err == nil {
			t.Errorf("%s: got record %+v", path, r)
		}
	}
	req := request(t, "POST", "https://a.example.com/inference.Service/Infer", "x")
	req.Header.Set("Content-Type", "application/grpc")
	resp, _ := do(t, e.client(t, "h2"), req)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Grpc-Status") != "14" || !strings.HasPrefix(resp.Header.Get("Grpc-Message"), "upstream_unreachable") {
		t.Errorf("gRPC: got %d %v, want status 14", resp.StatusCode, resp.Header)
	}
}

// TestErrorOfGRPCIsTrailersOnly because a gRPC client takes a head that does not
// end the stream for the beginning of a reply, and misses the status behind it.
func TestErrorOfGRPCIsTrailersOnly(t *testing.T) {
	e := start(t, onePool("http://127.0.0.1:1"))
	h2 := e.h2(t)
	h2.headers(t, 1, true, ":method", "POST", ":scheme", "https", ":path", "/inference.Service/Infer", ":authority", "a.example.com",
		"content-type", "application/grpc", "te", "trailers")
	for {
		f, err := h2.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if head, ok := f.(*http2.HeadersFrame); ok {
			if !head.StreamEnded() {
				t.Error("the head does not end the stream")
			}
			return
		}
	}
}

func TestPoolWithoutHealthyEndpointIs503WithRetryAfter(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	m.SetHealth(http.StatusInternalServerError)
	cfg := onePool(m.URL)
	cfg.Pools["p"].Health = &config.Health{Path: "/health", Interval: 10 * time.Millisecond, Timeout: 10 * time.Millisecond, Rise: 1, Fall: 1}
	e := start(t, cfg)
	c := e.client(t, "h1")
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		resp, body := do(t, c, request(t, "GET", "https://a.example.com/v1/models", ""))
		if r := e.record(t); r.Reason != proxy.NoEndpoint {
			continue // the first check is under way
		}
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "no_endpoint") {
			t.Errorf("got %d %v %s, want 503 no_endpoint with Retry-After", resp.StatusCode, resp.Header, body)
		}
		return
	}
	t.Error("the endpoint was never held down")
}

func TestTrailersAndEarlyHintsArrive(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{
		Trailer: http.Header{"X-Usage": {"tokens=4"}}, EarlyHints: http.Header{"Link": {"</style.css>"}},
	})
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		resp := stream(t, e.client(t, protocol))
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		if got := resp.Trailer.Get("X-Usage"); got != "tokens=4" {
			t.Errorf("got trailers %v, want X-Usage", resp.Trailer)
		}
	})
	r := e.raw(t)
	body := `{"stream":true}`
	r.send(t, fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	if line, err := r.r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 103 ") {
		t.Errorf("got %q, %v, want 103 first", line, err)
	}
}

func TestRequestTrailersAreForGRPCOnly(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	for contentType, want := range map[string]int{"application/grpc": 1, "application/json": 0} {
		bothProtocols(t, func(t *testing.T, protocol string) {
			t.Helper()
			req := request(t, "POST", "https://a.example.com/echo", "body")
			req.ContentLength = -1
			req.Header.Set("Content-Type", contentType)
			req.Header.Set("TE", "trailers")
			req.Trailer = http.Header{"X-Checksum": {"1"}, "X-Forwarded-For": {"6.6.6.6"}, "X_real_ip": {"6.6.6.6"}}
			seen := echo(t, e.client(t, protocol), req)
			if n := len(seen.Trailers); n != want {
				t.Errorf("%s: got trailers %v", contentType, seen.Trailers)
			}
			if te := seen.Header("Te"); len(te) != want {
				t.Errorf("%s: got TE %v, want %d", contentType, te, want)
			}
			if string(seen.Body) != "body" {
				t.Errorf("%s: got body %q", contentType, seen.Body)
			}
		})
	}
}

func TestHeadAndEmptyRepliesKeepTheirLength(t *testing.T) {
	e := startBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "uvicorn")
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(http.StatusNoContent)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(http.StatusNotModified)
		default:
			w.Header()["Content-Type"] = nil
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "12345")
		}
	})
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		c := e.client(t, protocol)
		for _, x := range []struct {
			method, path string
			status       int
			length       string
			body         string
		}{
			{"GET", "/", 200, "5", "12345"},
			{"HEAD", "/", 200, "5", ""},
			{"GET", "/204", 204, "", ""},
			{"GET", "/304", 304, "", ""},
		} {
			resp, body := do(t, c, request(t, x.method, "https://a.example.com"+x.path, ""))
			if resp.StatusCode != x.status || resp.Header.Get("Content-Length") != x.length || body != x.body {
				t.Errorf("%s %s: got %d, length %q, %q", x.method, x.path, resp.StatusCode, resp.Header.Get("Content-Length"), body)
			}
			if got := resp.Header.Values("Date"); len(got) != 1 {
				t.Errorf("%s %s: got Date %q, want one", x.method, x.path, got)
			}
			if got := resp.Header.Get("Server"); got != "uvicorn" {
				t.Errorf("%s %s: got Server %q, want the backend's", x.method, x.path, got)
			}
			if got := resp.Header.Values("Content-Type"); len(got) > 0 {
				t.Errorf("%s %s: got Content-Type %q, which the backend did not send", x.method, x.path, got)
			}
		}
	})
}

func TestRequestIsTriedOnAnotherEndpoint(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + ln.Addr().String()
	_ = ln.Close()
	m := modelserver.New(t, modelserver.Options{})
	e := start(t, onePool(dead, m.URL))
	c := e.client(t, "h2")
	twice := 0
	for range 4 {
		if got := string(echo(t, c, request(t, "POST", "https://a.example.com/echo", "the body")).Body); got != "the body" {
			t.Errorf("got body %q", got)
		}
		r := e.record(t)
		if r.Attempts == 2 {
			twice++
		}
		if r.Endpoint != m.URL {
			t.Errorf("got endpoint %s, want %s", r.Endpoint, m.URL)
		}
	}
	if twice == 0 {
		t.Error("no request needed a second attempt")
	}
}

func TestReplyBeforeTheRequestEndsIsDelivered(t *testing.T) {
	gone := make(chan struct{})
	e := startRaw(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n")
		}
		<-gone
	})
	t.Cleanup(func() { close(gone) })
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		pr, pw := io.Pipe()
		stop := time.AfterFunc(patience, func() { _ = pw.Close() }) // net/http's client waits for its reader
		defer stop.Stop()
		defer pw.Close()
		go func() { _, _ = io.WriteString(pw, "the beginning") }()
		req, err := http.NewRequest(http.MethodPost, chat, pr)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		resp, err := e.client(t, protocol).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusUnauthorized || err != nil {
			t.Errorf("got %d, %v, want the whole 401", resp.StatusCode, err)
		}
		if d := time.Since(begin); d > patience/4 {
			t.Errorf("it took %v, while the client had not ended its request", d)
		}
	})
}

func TestInvalidUpstreamReplyIsLost(t *testing.T) {
	for name, reply := range map[string]string{
		"garbage":             "SSH-2.0-OpenSSH_9.2\r\n",
		"length and chunked":  "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
		"endless head":        "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
		"nothing":             "",
		"a flood of interims": strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100),
	} {
		t.Run(name, func(t *testing.T) {
			e := startRaw(t, func(c net.Conn, r *bufio.Reader) {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(c, reply)
			})
			resp, body := do(t, e.client(t, "h1"), request(t, "POST", chat, "{}"))
			if resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "upstream_lost") {
				t.Errorf("got %d %s, want 502 upstream_lost", resp.StatusCode, body)
			}
		})
	}
}
