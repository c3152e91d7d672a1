package proxy_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/modelserver"
	"edge/proxy"
)

const handshake = "GET /ws HTTP/1.1\r\nHost: a.example.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: graphql\r\n\r\n"

// upgrade opens a websocket; early is sent in one write with the handshake.
func (e *edge) upgrade(tb testing.TB, early ...modelserver.Frame) *raw {
	tb.Helper()
	c := e.raw(tb)
	var out strings.Builder
	out.WriteString(handshake)
	for _, f := range early {
		out.WriteString(string(f.Bytes(true)))
	}
	c.send(tb, out.String())
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		tb.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" ||
		!strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") || !strings.EqualFold(resp.Header.Get("Connection"), "upgrade") ||
		resp.Header.Get("Sec-Websocket-Protocol") != "graphql" {
		tb.Fatalf("got %d %v, want the backend's 101", resp.StatusCode, resp.Header)
	}
	return c
}

func text(s string) modelserver.Frame {
	return modelserver.Frame{Fin: true, Op: modelserver.OpText, Payload: []byte(s)}
}

func (r *raw) frame(tb testing.TB, want string) {
	tb.Helper()
	f, _, err := modelserver.ReadFrame(r.r)
	if err != nil || string(f.Payload) != want {
		tb.Errorf("got %q, %v, want %q", f.Payload, err, want)
	}
}

func TestWebsocketKeepsBytesBehindTheHandshake(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{Greeting: "welcome"})
	long := strings.Repeat("long ", 10_000)
	c := e.upgrade(t, text("one"), text("two"))
	c.frame(t, "welcome")
	c.frame(t, "one")
	c.frame(t, "two")
	for _, s := range []string{"three", long} {
		c.send(t, string(text(s).Bytes(true)))
		c.frame(t, s)
	}
	if n := e.Status().Active; n != 1 {
		t.Errorf("got %d active requests, want the tunnel", n)
	}
	c.send(t, string(modelserver.Frame{Fin: true, Op: modelserver.OpClose}.Bytes(true)))
	c.frame(t, "")
	c.closed(t)
	r := e.record(t)
	if r.Status != http.StatusSwitchingProtocols || r.Reason != "" || r.Sent < int64(len(long)) || r.Received < int64(len(long)) {
		t.Errorf("got record %+v", r)
	}
}

func TestWebsocketEndsWithEitherSide(t *testing.T) {
	e, m := startModel(t, modelserver.Script{})
	t.Run("client", func(t *testing.T) {
		c := e.upgrade(t, text("x"))
		c.frame(t, "x")
		_ = c.Close()
		select {
		case <-m.Aborted():
		case <-time.After(patience):
			t.Error("the backend's end stayed open")
		}
		e.record(t)
	})
	t.Run("backend", func(t *testing.T) {
		c := e.upgrade(t, text("x"))
		c.frame(t, "x")
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		c.closed(t)
		e.record(t)
	})
}

func TestSilentWebsocketIsClosed(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{}, route(func(r *config.Route) { r.Timeouts.StreamIdle = 150 * time.Millisecond }))
	c := e.upgrade(t)
	for range 4 { // longer than the bound in all, never silent for as long
		c.send(t, string(text("x").Bytes(true)))
		c.frame(t, "x")
		<-time.After(60 * time.Millisecond)
	}
	c.closed(t)
}

func TestClientThatHangsOnIsLeftAlone(t *testing.T) {
	e, m := startModel(t, modelserver.Script{})
	c := e.upgrade(t, text("x"))
	c.frame(t, "x")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if r := e.record(t); r.Status != http.StatusSwitchingProtocols { // while c is open
		t.Errorf("got record %+v", r)
	}
	c.closed(t)
}

func TestHalfClosedTunnelStillDeliversTheAnswer(t *testing.T) {
	e := startRaw(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: graphql\r\n\r\n")
		all, _ := io.ReadAll(r) // up to the half-close
		_, _ = c.Write([]byte(strings.ToUpper(string(all))))
	})
	c := e.upgrade(t)
	c.send(t, "question")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c.r); string(got) != "QUESTION" || err != nil {
		t.Errorf("got %q, %v, want the answer", got, err)
	}
}

func TestRefusedUpgradeIsAnOrdinaryReply(t *testing.T) {
	e, m := startModel(t, modelserver.Script{Status: http.StatusForbidden})
	c := e.raw(t)
	for range 2 {
		c.send(t, handshake)
		if resp, body := c.response(t, "GET"); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "scripted") {
			t.Errorf("got %d %s, want the backend's 403", resp.StatusCode, body)
		}
	}
	if m.Count() != 2 {
		t.Errorf("got %d requests, want 2 on one connection", m.Count())
	}
}

// TestClientThatLeftBeforeItsUpgradeIsNotOurFault: the bytes that it sent behind
// the handshake keep net/http from seeing that it left, until the 101 is sent.
func TestClientThatLeftBeforeItsUpgradeIsNotOurFault(t *testing.T) {
	asked, left := make(chan struct{}), make(chan struct{})
	e := startRaw(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		close(asked)
		<-left
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(io.Discard, r)
	})
	c := e.raw(t)
	c.send(t, handshake)
	<-asked
	c.send(t, "early")
	<-time.After(50 * time.Millisecond) // or the reset would take it along
	tcp, ok := c.NetConn().(*net.TCPConn)
	if !ok {
		t.Fatal("not TCP")
	}
	_ = tcp.SetLinger(0)
	_ = tcp.Close()
	<-time.After(50 * time.Millisecond)
	close(left)
	if r := e.record(t); r.Reason != proxy.ClientLeft || r.Err == nil {
		t.Errorf("got record %+v, want client_left with its cause", r)
	}
}

func TestOnlyWebsocketsAreUpgraded(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	for name, head := range map[string]string{
		"h2c":               "GET /echo HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
		"two protocols":     "GET /echo HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
		"two fields":        "GET /echo HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
		"not in connection": "GET /echo HTTP/1.1\r\nUpgrade: websocket\r\n",
		"post":              "POST /echo HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n",
		"http/1.0":          "GET /echo HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
	} {
		c := e.raw(t)
		c.send(t, head+"Host: a.example.com\r\n\r\n")
		resp, body := c.response(t, "GET")
		if resp.StatusCode != http.StatusOK || strings.Contains(body, "Upgrade") || strings.Contains(body, "Http2") {
			t.Errorf("%s: got %d %s, want an ordinary request", name, resp.StatusCode, body)
		}
	}
}

func TestUninvitedUpgradeIsLost(t *testing.T) {
	e := startRaw(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		}
	})
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		resp, body := do(t, e.client(t, protocol), request(t, "GET", "https://a.example.com/", ""))
		if resp.StatusCode != http.StatusBadGateway {
			t.Errorf("got %d %s, want 502", resp.StatusCode, body)
		}
		if r := e.record(t); r.Reason != proxy.UpstreamLost {
			t.Errorf("got record %+v", r)
		}
	})
}

func TestShutdownCutsTunnelsWhenTheTimeIsOver(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	c := e.upgrade(t, text("x"))
	c.frame(t, "x")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := e.Shutdown(ctx); err == nil || !strings.Contains(err.Error(), "1 requests were cut") {
		t.Errorf("got %v, want that a tunnel was cut", err)
	}
	c.closed(t)
	if r := e.record(t); r.Reason != proxy.ShuttingDown {
		t.Errorf("got record %+v, want shutting_down", r)
	}
}
