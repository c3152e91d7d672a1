package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"edge/proxy/exchange"
)

var errEnough = errors.New("enough")

// A call ends where it is, at once, and its connection with it.
func TestCancelEndsACallAnywhere(t *testing.T) {
	chunks := func(s *serverConn) {
		s.request()
		s.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
		io.Copy(io.Discard, s.br)
	}
	silence := func(s *serverConn) { s.request(); io.Copy(io.Discard, s.br) }
	deaf := func(s *serverConn) { s.request(); time.Sleep(time.Minute) }
	for _, x := range []struct {
		name   string
		call   func() *exchange.Call
		script func(*serverConn)
	}{
		{"before the reply", func() *exchange.Call { return get("/") }, silence},
		{"with an endless body", func() *exchange.Call { return uploadOf(-1, &slow{1 << 30, time.Millisecond}) }, silence},
		{"with a body that waits", func() *exchange.Call { return uploadOf(-1, &slow{1, time.Minute}) }, silence},
		{"with a large body that waits", func() *exchange.Call { return uploadOf(1<<20, &slow{1, time.Minute}) }, silence},
		{"writing to a server that takes nothing", func() *exchange.Call { return uploadOf(1<<20, &endless{}) }, deaf},
		{"waiting for a 100", func() *exchange.Call { c := post("x"); c.Continue = true; return c }, silence},
		{"in the reply", func() *exchange.Call { return get("/") }, chunks},
		{"in the reply to an upload", func() *exchange.Call { return uploadOf(-1, &slow{1 << 30, time.Millisecond}) }, chunks},
		{
			"in a reply that goes on to its end", func() *exchange.Call { return get("/") },
			func(s *serverConn) { s.request(); s.say("HTTP/1.1 200 OK\r\n\r\nhi"); io.Copy(io.Discard, s.br) },
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			var gone atomic.Bool
			c := memServer(t, Options{}, func(s *serverConn) { x.script(s); gone.Store(true) })
			call := x.call()
			call.FirstByte = time.Hour
			const after = 500 * time.Millisecond
			start := time.Now()
			time.AfterFunc(after, func() { call.Canceler.Cancel(errEnough) })
			reply, _, err := fetch(t, c, call)
			if !errors.Is(err, errEnough) || time.Since(start) != after {
				t.Errorf("%s: %v after %v, want %v after %v", x.name, err, time.Since(start), errEnough, after)
			}
			if reply.Body != nil {
				if _, again := reply.Body.Read(make([]byte, 1)); !errors.Is(again, errEnough) {
					t.Errorf("%s: read again: %v", x.name, again)
				}
			}
			time.Sleep(time.Hour)
			if !gone.Load() || c.Idle() != 0 {
				t.Errorf("%s: the server noticed %v, %d idle", x.name, gone.Load(), c.Idle())
			}
		})
	}
}

func TestCancelEndsADial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }, Options{})
		call := get("/")
		start := time.Now()
		time.AfterFunc(time.Second, func() { call.Canceler.Cancel(errEnough) })
		if _, err := c.Do(call); !errors.Is(err, errEnough) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestACancelledCallDoesNothing(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{}, answer(&conns, noContent))
	call := get("/")
	call.Canceler.Cancel(errEnough)
	if _, err := c.Do(call); !errors.Is(err, errEnough) || conns.Load() != 0 {
		t.Errorf("%v, %d connections", err, conns.Load())
	}
	call = uploadOf(5, iotest.ErrReader(io.ErrClosedPipe)) // as whoever cancels ends the body, too
	call.Canceler.Cancel(errEnough)
	if _, err := c.Do(call); !errors.Is(err, errEnough) {
		t.Errorf("%v, want %v", err, errEnough)
	}
}

// A cancellation that comes with a connection that was dialled in vain.
func TestCancelBetweenDialAndRequest(t *testing.T) {
	nc := &tapeConn{piece: 1}
	call := get("/")
	c := NewClient(func(context.Context) (net.Conn, error) { call.Canceler.Cancel(errEnough); return nc, nil }, Options{})
	if _, err := c.Do(call); !errors.Is(err, errEnough) || len(nc.writes) > 0 {
		t.Errorf("%v, wrote %q", err, nc.writes)
	}
}

// Cancel after the end of a reply must not hit the next call on its connection.
func TestALateCancelHitsNobody(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{}, answer(&conns, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	for range 100 {
		call := get("/")
		reply, err := c.Do(call)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(reply.Body); err != nil {
			t.Fatal(err)
		}
		var late sync.WaitGroup
		late.Go(func() { call.Canceler.Cancel(errEnough) })
		late.Go(func() { _ = reply.Body.Close() })
		mustFetch(t, c, get("/"))
		late.Wait()
	}
	if conns.Load() != 1 {
		t.Errorf("%d connections, want 1", conns.Load())
	}
}

// Whether Cancel or the end of the reply wins, the connection is kept only if it
// is good.
func TestCancelRacesWithTheEnd(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{}, answer(&conns, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	for range 300 {
		call := get("/")
		var race sync.WaitGroup
		race.Go(func() { call.Canceler.Cancel(errEnough) })
		if _, body, err := fetch(t, c, call); !errors.Is(err, errEnough) && (err != nil || body != "ok") {
			t.Fatalf("%q, %v", body, err)
		}
		race.Wait()
		mustFetch(t, c, get("/"))
	}
}

func TestCloseEndsAReadAndTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Bool
		c := memServer(t, Options{}, func(s *serverConn) {
			s.whole()
			s.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
			io.Copy(io.Discard, s.br)
			gone.Store(true)
		})
		reply, err := c.Do(get("/"))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := reply.Body.Read(buf); string(buf[:n]) != "hi" || err != nil {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		var reading sync.WaitGroup
		reading.Go(func() {
			if n, err := reply.Body.Read(buf); n != 0 || !errors.Is(err, net.ErrClosed) {
				t.Errorf("the Read under way: %d, %v", n, err)
			}
		})
		synctest.Wait()
		if gone.Load() {
			t.Error("the server was left too early")
		}
		_ = reply.Body.Close()
		reading.Wait()
		synctest.Wait()
		if !gone.Load() || c.Idle() != 0 {
			t.Errorf("the server was left %v, %d idle", gone.Load(), c.Idle())
		}
		_ = reply.Body.Close()
		if _, err := reply.Body.Read(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a Read after Close: %v", err)
		}
	})
}

// A reply that came whole is no work for the server any more.
func TestClosingAReplyThatCameWholeKeepsTheConnection(t *testing.T) {
	for _, tape := range []string{"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", "HTTP/1.1 503 No\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("no", 10_000)} {
		nc := &tapeConn{reply: tape, piece: 1 << 20}
		c := NewClient(func(context.Context) (net.Conn, error) { return nc, nil }, Options{})
		reply, err := c.Do(get("/"))
		if err != nil {
			t.Fatal(err)
		}
		_ = reply.Body.Close()
		want := 0
		if len(tape) < readSize {
			want = 1
		}
		if _, err := reply.Body.Read(make([]byte, 5)); !errors.Is(err, net.ErrClosed) || c.Idle() != want {
			t.Errorf("%d bytes: %v, %d idle; want %v and %d", len(tape), err, c.Idle(), net.ErrClosed, want)
		}
		c.Close()
	}
}

// Many calls at once, some cancelled, some closed, some read: under the race
// detector, and with no reply ever given to the wrong call.
func TestCallsDoNotMix(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{MaxIdle: 4}, echo(&conns))
	var calls sync.WaitGroup
	for worker := range 8 {
		calls.Go(func() {
			for i := range 60 {
				body := strings.Repeat(itoa(worker)+"-"+itoa(i)+" ", 1+i*i%7*3000)
				call := post(body)
				if i%3 == 0 {
					call.Length = -1
				}
				var cancelling sync.WaitGroup
				if i%5 == 0 {
					cancelling.Go(func() { call.Canceler.Cancel(errEnough) })
				}
				reply, err := c.Do(call)
				if err == nil && i%4 == 1 {
					_ = reply.Body.Close()
				} else if err == nil {
					var got []byte
					if got, err = io.ReadAll(reply.Body); err == nil && string(got) != "POST /v1/chat/completions "+body {
						t.Errorf("worker %d, call %d: got the reply %.50q", worker, i, got)
					}
				}
				if err != nil && !errors.Is(err, errEnough) {
					t.Errorf("worker %d, call %d: %v", worker, i, err)
				}
				cancelling.Wait()
			}
		})
	}
	calls.Wait()
}
