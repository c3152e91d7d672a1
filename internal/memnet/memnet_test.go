package memnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"edge/internal/memnet"
	"edge/internal/modelserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The suite that the Go project has for every net.Conn.
func TestConnIsANetConn(t *testing.T) {
	t.Parallel()
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		var n memnet.Network
		l, err := n.Listen(t.Context(), "tcp", ":0")
		if err != nil {
			return nil, nil, nil, err
		}
		defer l.Close()
		a, err := n.Dial(context.Background(), "tcp", l.Addr().String())
		if err != nil {
			return nil, nil, nil, err
		}
		b, err := l.Accept()
		return a, b, func() { a.Close(); b.Close() }, err
	})
}

func TestHTTPRunsOnVirtualTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Network
		l, err := n.Listen(t.Context(), "tcp", "127.0.0.1:8000")
		if err != nil {
			t.Fatal(err)
		}
		s := modelserver.New(t, modelserver.Options{
			Listener: l, IdleTimeout: time.Minute, Script: modelserver.Script{HeadDelay: time.Hour, Delay: time.Minute},
		})
		tr := &http.Transport{DialContext: n.Dial}
		defer tr.CloseIdleConnections()
		begin := time.Now()
		for range 2 {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/chat/completions", strings.NewReader(`{"stream":true}`))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !bytes.HasSuffix(text, []byte("data: [DONE]\n\n")) {
				t.Errorf("got %q, %v", text, err)
			}
		}
		if got := time.Since(begin); got != 2*time.Hour+8*time.Minute {
			t.Errorf("two answers took %v, want 2h8m", got)
		}
		if n.Dials() != 1 {
			t.Errorf("%d connections, want one that is used again", n.Dials())
		}
		time.Sleep(2 * time.Minute) // virtual: the idle connection is closed
		synctest.Wait()
		if s.Connections() != 1 || s.URL != "http://127.0.0.1:8000" {
			t.Errorf("%d connections at %s", s.Connections(), s.URL)
		}
	})
}

func TestClientThatLeavesIsSeenThroughTheNetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Network
		l, err := n.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := modelserver.New(t, modelserver.Options{Listener: l, Script: modelserver.Script{Delay: time.Hour}})
		tr := &http.Transport{DialContext: n.Dial}
		defer tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/chat/completions", strings.NewReader(`{"stream":true}`))
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if resp, err := tr.RoundTrip(req); err == nil {
			resp.Body.Close()
			t.Fatal("an answer before its time")
		}
		if a := <-s.Aborted(); a.At.Sub(begin) != time.Minute {
			t.Errorf("left after %v, want 1m", a.At.Sub(begin))
		}
	})
}

func TestWriterWaitsForItsReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, server := memnet.Pair(t)
		done := make(chan int, 1)
		go func() {
			n, _ := client.Write(make([]byte, 100<<10))
			done <- n
		}()
		synctest.Wait()
		select {
		case n := <-done:
			t.Fatalf("%d bytes were written although nobody reads", n)
		default:
		}
		if _, err := io.ReadFull(server, make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
		if n := <-done; n != 100<<10 {
			t.Errorf("%d bytes were written", n)
		}
		_ = client.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := client.Write(make([]byte, 100<<10)); n != 64<<10 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d bytes, %v, want what the buffer holds", n, err)
		}
	})
}

func TestEndsOfAConnection(t *testing.T) {
	t.Parallel()
	read := func(c net.Conn) (string, error) {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		b, err := io.ReadAll(c)
		return string(b), err
	}
	t.Run("half close", func(t *testing.T) {
		t.Parallel()
		client, server := memnet.Pair(t)
		_, _ = io.WriteString(client, "question")
		_ = client.CloseWrite()
		if got, err := read(server); got != "question" || err != nil {
			t.Errorf("server got %q, %v", got, err)
		}
		_, _ = io.WriteString(server, "answer")
		_ = server.Close()
		if got, err := read(client); got != "answer" || err != nil {
			t.Errorf("client got %q, %v", got, err)
		}
		if _, err := io.WriteString(client, "more"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after CloseWrite: %v", err)
		}
	})
	t.Run("write to a closed peer", func(t *testing.T) {
		t.Parallel()
		client, server := memnet.Pair(t)
		_ = server.Close()
		if _, err := io.WriteString(client, "x"); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("got %v", err)
		}
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of the closed end: %v", err)
		}
	})
	t.Run("close with unread bytes resets", func(t *testing.T) {
		t.Parallel()
		client, server := memnet.Pair(t)
		_, _ = io.WriteString(client, "unread")
		_, _ = io.WriteString(server, "lost")
		_ = server.Close()
		if got, err := read(client); got != "" || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client got %q, %v", got, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		t.Parallel()
		client, server := memnet.Pair(t)
		client.Reset()
		if _, err := read(server); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v", err)
		}
	})
}

func TestListenAndDialFailLikeTCP(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var n memnet.Network
	l, err := n.Listen(ctx, "tcp", "localhost:80")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Listen(ctx, "tcp", "127.0.0.1:80"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listen twice: %v", err)
	}
	for _, address := range []string{"127.0.0.1", "example.test:80", "[::1:80"} {
		if _, err := n.Listen(ctx, "tcp", address); err == nil {
			t.Errorf("listen on %q", address)
		}
		if _, err := n.Dial(ctx, "tcp", address); err == nil {
			t.Errorf("dial %q", address)
		}
	}
	if _, err := n.Dial(ctx, "tcp", "127.0.0.1:81"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	waiting, err := n.Dial(ctx, "tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	if waiting.RemoteAddr().String() != "127.0.0.1:80" || waiting.LocalAddr().(*net.TCPAddr).Port == 80 {
		t.Errorf("connection from %v to %v", waiting.LocalAddr(), waiting.RemoteAddr())
	}
	for range 127 { // the rest of the backlog
		if _, err := n.Dial(ctx, "tcp", "127.0.0.1:80"); err != nil {
			t.Fatal(err)
		}
	}
	late, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := n.Dial(late, "tcp", "127.0.0.1:80"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("full backlog: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection that nobody accepted: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if _, err := n.Dial(ctx, "tcp", "127.0.0.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after close: %v", err)
	}
	if _, err := n.Listen(ctx, "tcp", "127.0.0.1:80"); err != nil {
		t.Errorf("listen again: %v", err)
	}
}
