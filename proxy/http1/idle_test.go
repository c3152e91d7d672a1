package http1

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/internal/memnet"
	"edge/proxy/exchange"
)

// answer serves every request with the same reply.
func answer(conns *atomic.Int32, reply string) func(*serverConn) {
	return func(s *serverConn) {
		conns.Add(1)
		for s.whole() != "" {
			s.say(reply)
		}
	}
}

func mustFetch(tb testing.TB, c *Client, call *exchange.Call) {
	tb.Helper()
	if _, _, err := fetch(tb, c, call); err != nil {
		tb.Fatal(err)
	}
}

func TestIdleConnectionsLiveAsLongAsBothSidesLike(t *testing.T) {
	for _, x := range []struct {
		opts  Options
		field string
		want  time.Duration
	}{
		{Options{}, "", 4 * time.Second},
		{Options{Idle: time.Minute}, "", time.Minute},
		{Options{}, "Keep-Alive: timeout=3\r\n", 2 * time.Second},
		{Options{}, "Keep-Alive: max=5, Timeout = 2\r\n", time.Second},
		{Options{}, "Keep-Alive: timeout=1\r\n", time.Second / 2},
		{Options{}, "Keep-Alive: timeout=75\r\n", 4 * time.Second},
		{Options{}, "Keep-Alive: timeout=99999999999999999999\r\n", 4 * time.Second},
		{Options{}, "Keep-Alive: timeout=soon\r\n", 4 * time.Second},
		{Options{Idle: time.Second}, "Keep-Alive: timeout=10\r\n", time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			var conns atomic.Int32
			c := memServer(t, x.opts, answer(&conns, "HTTP/1.1 200 OK\r\n"+x.field+"Content-Length: 0\r\n\r\n"))
			mustFetch(t, c, get("/"))
			time.Sleep(x.want - time.Millisecond)
			synctest.Wait()
			if c.Idle() != 1 {
				t.Errorf("%v %q: closed before %v", x.opts, x.field, x.want)
			}
			mustFetch(t, c, get("/")) // its life begins anew
			time.Sleep(x.want - time.Millisecond)
			synctest.Wait()
			if c.Idle() != 1 || conns.Load() != 1 {
				t.Errorf("%v %q: %d idle, %d connections; want 1 of each", x.opts, x.field, c.Idle(), conns.Load())
			}
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
			if c.Idle() != 0 {
				t.Errorf("%v %q: still there after %v", x.opts, x.field, x.want)
			}
		})
	}
}

// together sends, in a bubble, n requests that the server answers when all are there.
func together(tb testing.TB, c *Client, n int, gate chan struct{}) {
	tb.Helper()
	done := make(chan error, n)
	for range n {
		go func() {
			_, _, err := fetch(tb, c, get("/"))
			done <- err
		}()
	}
	synctest.Wait() // each has a connection
	for range n {
		gate <- struct{}{}
	}
	for range n {
		if err := <-done; err != nil {
			tb.Fatal(err)
		}
	}
}

func gated(gate chan struct{}, used func(net.Addr)) func(*serverConn) {
	return func(s *serverConn) {
		for s.whole() != "" {
			used(s.RemoteAddr())
			<-gate
			s.say(noContent)
		}
	}
}

func TestTheConnectionUsedLastIsUsedNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var last atomic.Value
		c := memServer(t, Options{}, gated(gate, func(a net.Addr) { last.Store(a.String()) }))
		together(t, c, 3, gate)
		together(t, c, 1, gate)
		first := last.Load()
		for range 5 {
			time.Sleep(time.Second)
			together(t, c, 1, gate)
			if last.Load() != first {
				t.Error("another connection was used")
			}
		}
		synctest.Wait()
		if c.Idle() != 1 {
			t.Errorf("%d idle connections, want 1: the others had nothing to do", c.Idle())
		}
	})
}

func TestNoMoreThanMaxIdleAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		c := memServer(t, Options{MaxIdle: 2}, gated(gate, func(net.Addr) {}))
		together(t, c, 5, gate)
		if c.Idle() != 2 {
			t.Errorf("%d idle connections, want 2", c.Idle())
		}
	})
}

func TestCloseEndsIdleConnectionsNowAndTheOthersAtTheirEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var gone atomic.Int32
		serve := gated(gate, func(net.Addr) {})
		c := memServer(t, Options{}, func(s *serverConn) { serve(s); gone.Add(1) })
		together(t, c, 2, gate)
		done := make(chan error, 1)
		go func() {
			_, _, err := fetch(t, c, get("/"))
			done <- err
		}()
		synctest.Wait()
		c.Close()
		c.Close()
		synctest.Wait()
		if c.Idle() != 0 || gone.Load() != 1 {
			t.Errorf("%d idle, %d closed; want 0 and 1", c.Idle(), gone.Load())
		}
		gate <- struct{}{}
		if err := <-done; err != nil {
			t.Errorf("the request under way: %v", err)
		}
		together(t, c, 1, gate) // one that began before a reload and comes late
		synctest.Wait()
		if c.Idle() != 0 || gone.Load() != 3 {
			t.Errorf("%d idle, %d closed; want 0 and 3", c.Idle(), gone.Load())
		}
	})
}

func TestOneShotKeepsNothing(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{OneShot: true}, answer(&conns, noContent))
	mustFetch(t, c, get("/"))
	mustFetch(t, c, get("/"))
	if c.Idle() != 0 || conns.Load() != 2 {
		t.Errorf("%d idle, %d connections; want 0 and 2", c.Idle(), conns.Load())
	}
}

// spoil has the server do something to a connection that has fallen idle.
func spoil(s func(*serverConn), conns *atomic.Int32) func(*serverConn) {
	return func(sc *serverConn) {
		first := conns.Add(1) == 1
		for sc.whole() != "" {
			sc.say(noContent)
			if first {
				s(sc)
				io.Copy(io.Discard, sc.br)
				return
			}
		}
	}
}

func TestDeadAndTalkativeConnectionsAreReplaced(t *testing.T) {
	for name, s := range map[string]func(*serverConn){
		"closed":     func(s *serverConn) { s.Close() },
		"half":       func(s *serverConn) { _ = closeWrite(s.Conn) },
		"a stranger": func(s *serverConn) { s.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison") },
		"one byte":   func(s *serverConn) { s.say("x") },
		"reset": func(s *serverConn) {
			time.Sleep(5 * time.Millisecond) // or it may overtake the reply
			if tcp, ok := s.Conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
				s.Close()
				return
			}
			s.Conn.(*memnet.Conn).Reset()
		},
	} {
		var conns atomic.Int32
		check := func(c *Client, settle func()) {
			mustFetch(t, c, get("/"))
			settle()
			reply, body, err := fetch(t, c, post("never sent in vain"))
			if err != nil || reply.Status != 204 || body != "" || conns.Load() != 2 {
				t.Errorf("%s: %d %q, %v, %d connections; want 204 and 2", name, reply.Status, body, err, conns.Load())
			}
		}
		done := make(chan struct{}, 2)
		c := rawServer(t, Options{}, spoil(func(sc *serverConn) { s(sc); done <- struct{}{} }, &conns))
		check(c, func() {
			<-done
			eventually(t, name+" arrives", func() bool { // loopback is nearly at once
				c.mu.Lock()
				defer c.mu.Unlock()
				return len(c.idle) == 0 || !c.idle[0].alive() // 0 when it came with the reply
			})
		})
		conns.Store(0)
		synctest.Test(t, func(t *testing.T) {
			check(memServer(t, Options{}, spoil(s, &conns)), func() { time.Sleep(time.Second); synctest.Wait() })
		})
	}
}

func TestPeekingNeitherWaitsNorAllocates(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{Idle: time.Minute}, answer(&conns, noContent))
	mustFetch(t, c, get("/"))
	cn := c.pop()
	if cn == nil {
		t.Fatal("no idle connection")
	}
	defer cn.close()
	if n := testing.AllocsPerRun(100, func() {
		if !cn.alive() {
			t.Error("a good connection looks dead")
		}
	}); n > 0 {
		t.Errorf("%v allocations a look", n)
	}
}
