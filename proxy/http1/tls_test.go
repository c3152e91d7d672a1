package http1

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/proxy/exchange"
)

// tlsServer is rawServer under TLS. With note, dial puts a NoteEOF below.
func tlsServer(tb testing.TB, note bool, script func(*serverConn)) *Client {
	tb.Helper()
	certs := httptest.NewTLSServer(nil) // for its certificate
	serverConf := &tls.Config{Certificates: certs.TLS.Certificates, MinVersion: tls.VersionTLS12}
	roots := x509.NewCertPool()
	roots.AddCert(certs.Certificate())
	certs.Close()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	clientConf := &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS12}
	dial := func(ctx context.Context) (net.Conn, error) {
		raw, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		if note {
			raw = NoteEOF(raw)
		}
		t := tls.Client(raw, clientConf)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return t, nil
	}
	return runServer(tb, &tlsListener{l, serverConf}, dial, Options{}, script)
}

type tlsListener struct {
	net.Listener

	conf *tls.Config
}

func (l *tlsListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(&cork{Conn: nc}, l.conf), nil
}

// cork keeps what is written until it is pulled, so that records share a packet.
type cork struct {
	net.Conn

	in   bool
	kept []byte
}

func (c *cork) Write(p []byte) (int, error) {
	if !c.in {
		return c.Conn.Write(p)
	}
	c.kept = append(c.kept, p...)
	return len(p), nil
}

func (c *cork) pull() {
	c.in = false
	_, _ = c.Conn.Write(c.kept)
}

func TestOverTLS(t *testing.T) {
	var conns atomic.Int32
	c := tlsServer(t, true, echo(&conns))
	large := strings.Repeat("long", 50_000)
	for _, x := range []struct {
		call *exchange.Call
		want string
	}{
		{get("/a"), "GET /a "},
		{post("hello"), "POST /v1/chat/completions hello"},
		{get("/chunked"), "abcde"},
		{get("/empty"), ""},
		{post(large), "POST /v1/chat/completions " + large},
		{uploadOf(-1, strings.NewReader(large)), "POST /v1/chat/completions " + large},
		{get("/b"), "GET /b "},
	} {
		x.call.FirstByte = time.Minute
		_, got, err := fetch(t, c, x.call)
		if err != nil || got != x.want {
			t.Errorf("%s %s: %.60q, %v; want %.60q", x.call.Method, x.call.Target, got, err, x.want)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// crypto/tls hides whether the end of the stream is the peer's word or a FIN that
// anybody can send.
func TestAReplyThatEndsWithTLSNeedsAGoodbye(t *testing.T) {
	const reply = "HTTP/1.0 200 OK\r\n\r\nto the end"
	rude := func(s *serverConn) {
		s.whole()
		s.say(reply)
		_ = s.Conn.(*tls.Conn).NetConn().Close()
	}
	polite := func(s *serverConn) { s.whole(); s.say(reply) } // and Close, which says goodbye
	for _, x := range []struct {
		name   string
		note   bool
		script func(*serverConn)
		fails  bool
	}{
		{"goodbye", true, polite, false},
		{"FIN", true, rude, true},
		{"goodbye that cannot be seen", false, polite, true},
		{"FIN that cannot be seen", false, rude, true},
	} {
		c := tlsServer(t, x.note, x.script)
		_, body, err := fetch(t, c, get("/"))
		if body != "to the end" || (err != nil) != x.fails {
			t.Errorf("%s: %q, %v; want an error: %v", x.name, body, err, x.fails)
		}
		if lost, ok := errors.AsType[*exchange.LostError](err); x.fails && (!ok || !lost.Closed || !lost.Answered) {
			t.Errorf("%s: %#v, want a lost connection", x.name, err)
		}
	}
}

// What comes in the same packet as a reply is read ahead by TLS, where the socket
// does not show it.
func TestBytesBehindAReplySpoilTheConnectionUnderTLS(t *testing.T) {
	for name, say := range map[string][]string{
		"same record":    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\npoison"},
		"next record":    {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\n\r\npoison"},
		"behind no body": {noContent, "HTTP/1.1 200 OK\r\n\r\npoison"},
		"behind a chunk": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "x"},
		"a goodbye":      {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
	} {
		var conns atomic.Int32
		done := make(chan struct{}, 2)
		c := tlsServer(t, true, func(s *serverConn) {
			if conns.Add(1) > 1 {
				s.whole()
				s.say(noContent)
				return
			}
			s.whole()
			flight := s.Conn.(*tls.Conn).NetConn().(*cork)
			flight.in = true
			s.say(say...)
			flight.pull()
			if name == "a goodbye" {
				s.Close()
			}
			done <- struct{}{}
			io.Copy(io.Discard, s.br)
		})
		if _, _, err := fetch(t, c, get("/")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		<-done
		eventually(t, name+" arrives", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.idle) == 0 || !c.idle[0].alive()
		})
		if reply, body, err := fetch(t, c, get("/")); err != nil || reply.Status != 204 || body != "" {
			t.Errorf("%s: the next reply is %d %q, %v; want 204", name, reply.Status, body, err)
		}
	}
}

// tls.Conn.Close would wait up to 5 s for room to say goodbye in.
func TestCancelDoesNotWaitForATLSServerThatTakesNothing(t *testing.T) {
	release := make(chan struct{})
	c := tlsServer(t, true, func(s *serverConn) { s.request(); <-release })
	defer close(release)
	body := &endless{}
	call := uploadOf(-1, body)
	done := make(chan error, 1)
	go func() {
		_, err := c.Do(call)
		done <- err
	}()
	eventually(t, "the server's buffers are full", func() bool {
		before := body.read.Load()
		time.Sleep(30 * time.Millisecond)
		return before > 0 && body.read.Load() == before
	})
	start := time.Now()
	call.Canceler.Cancel(errEnough)
	if err := <-done; !errors.Is(err, errEnough) {
		t.Errorf("%v, want %v", err, errEnough)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestABareFINWhileIdleIsNoticedUnderTLS(t *testing.T) {
	var conns atomic.Int32
	done := make(chan struct{}, 2)
	c := tlsServer(t, false, func(s *serverConn) {
		conns.Add(1)
		s.whole()
		s.say(noContent)
		_ = s.Conn.(*tls.Conn).NetConn().Close()
		done <- struct{}{}
	})
	mustFetch(t, c, get("/"))
	<-done
	eventually(t, "the FIN arrives", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.idle) == 0 || !c.idle[0].alive()
	})
	mustFetch(t, c, get("/"))
	if conns.Load() != 2 {
		t.Errorf("%d connections, want 2", conns.Load())
	}
}

func TestATLSReplyCutOffIsLost(t *testing.T) {
	c := tlsServer(t, true, func(s *serverConn) {
		s.whole()
		s.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe") // and a goodbye
	})
	_, body, err := fetch(t, c, get("/"))
	if lost, ok := errors.AsType[*exchange.LostError](err); !ok || !lost.Closed || !lost.Answered || body != "he" {
		t.Errorf("%q, %#v; want a lost connection", body, err)
	}
}
