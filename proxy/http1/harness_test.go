package http1

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"edge/internal/memnet"
	"edge/proxy/exchange"
)

// serverConn is a connection of a raw server: it reads requests with net/http
// and writes bytes.
type serverConn struct {
	net.Conn
	br *bufio.Reader
}

// request reads the head of the next request, or returns nil.
func (s *serverConn) request() *http.Request {
	r, err := http.ReadRequest(s.br)
	if err != nil {
		return nil
	}
	return r
}

// whole reads the next request to its end, or returns "".
func (s *serverConn) whole() string {
	r := s.request()
	if r == nil {
		return ""
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return ""
	}
	return r.Method + " " + r.RequestURI + " " + string(body)
}

func (s *serverConn) say(text ...string) {
	for _, t := range text {
		_, _ = io.WriteString(s.Conn, t)
	}
}

// rawServer runs script on every connection that the client opens. The network
// is TCP on loopback.
func rawServer(tb testing.TB, o Options, script func(s *serverConn)) *Client {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
	return runServer(tb, l, dial, o, script)
}

// memServer is rawServer in memory, for bubbles with virtual time.
func memServer(tb testing.TB, o Options, script func(s *serverConn)) *Client {
	tb.Helper()
	var n memnet.Network
	l, err := n.Listen(tb.Context(), "tcp", "127.0.0.1:80")
	if err != nil {
		tb.Fatal(err)
	}
	dial := func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, "tcp", l.Addr().String()) }
	return runServer(tb, l, dial, o, script)
}

func runServer(tb testing.TB, l net.Listener, dial func(context.Context) (net.Conn, error), o Options, script func(s *serverConn)) *Client {
	tb.Helper()
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, nc)
			mu.Unlock()
			serving.Go(func() {
				defer nc.Close()
				script(&serverConn{nc, bufio.NewReader(nc)})
			})
		}
	})
	c := NewClient(dial, o)
	tb.Cleanup(func() {
		c.Close()
		_ = l.Close()
		mu.Lock()
		for _, nc := range open {
			_ = nc.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return c
}

func get(target string) *exchange.Call {
	return &exchange.Call{Method: "GET", Target: target, Host: "model.example", Canceler: new(exchange.Canceler)}
}

func post(body string) *exchange.Call {
	c := get("/v1/chat/completions")
	c.Method, c.Length, c.Body = "POST", int64(len(body)), strings.NewReader(body)
	return c
}

// fetch does the call and reads the reply to its end.
func fetch(tb testing.TB, c *Client, call *exchange.Call) (exchange.Reply, string, error) {
	tb.Helper()
	reply, err := c.Do(call)
	if err != nil {
		return reply, "", err
	}
	body, err := io.ReadAll(reply.Body)
	if cerr := reply.Body.Close(); cerr != nil {
		tb.Errorf("Close: %v", cerr)
	}
	return reply, string(body), err
}

// eventually waits for what another goroutine is about to bring about.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("never: %s", what)
		}
	}
}
