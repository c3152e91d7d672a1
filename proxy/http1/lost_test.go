package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"edge/proxy/exchange"
)

func TestNoConnection(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	c := NewClient(func(context.Context) (net.Conn, error) { return nil, refused }, Options{})
	_, err := c.Do(post("hello"))
	if d, ok := errors.AsType[*exchange.DialError](err); !ok || !errors.Is(err, syscall.ECONNREFUSED) || d.Err == nil {
		t.Errorf("%v, want a DialError", err)
	}
}

func TestConnectingIsBounded(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := NewClient(func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }, Options{})
			call := get("/")
			call.Connect = limit
			start, want := time.Now(), limit
			if limit == 0 {
				want = maxConnect
			}
			_, err := c.Do(call)
			if _, ok := errors.AsType[*exchange.DialError](err); !ok || time.Since(start) != want {
				t.Errorf("%v after %v, want a DialError after %v", err, time.Since(start), want)
			}
		})
	}
}

// What is known of a request whose connection ended, as far as the rule of
// replaying asks for it.
func TestALostConnectionTellsWhatIsKnown(t *testing.T) {
	const later = 300 * time.Millisecond
	for _, x := range []struct {
		name   string
		reused bool
		script func(s *serverConn)
		want   exchange.LostError
	}{
		{"closed before an answer", false, func(s *serverConn) { s.whole() }, exchange.LostError{Closed: true}},
		{"closed later", false, func(s *serverConn) { s.whole(); time.Sleep(later) }, exchange.LostError{Closed: true, After: later}},
		{"reset", false, func(s *serverConn) { s.whole(); reset(s) }, exchange.LostError{Closed: true}},
		{"reused and closed", true, func(s *serverConn) { s.whole() }, exchange.LostError{Closed: true, Reused: true}},
		{"closed in the head", true, func(s *serverConn) { s.whole(); s.say("HTTP/1.1 2") }, exchange.LostError{Closed: true, Reused: true, Answered: true}},
		{
			"closed behind an interim reply", false, func(s *serverConn) { s.whole(); s.say("HTTP/1.1 102 Wait\r\n\r\n") },
			exchange.LostError{Closed: true, Answered: true},
		},
		{
			"closed in the body", false,
			func(s *serverConn) {
				s.whole()
				s.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
				time.Sleep(later)
			},
			exchange.LostError{Closed: true, Answered: true, After: later},
		},
		{"invalid", true, func(s *serverConn) { s.whole(); s.say("220 smtp\r\n") }, exchange.LostError{Reused: true, Answered: true}},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := memServer(t, Options{}, func(s *serverConn) {
				if x.reused {
					s.whole()
					s.say(noContent)
				}
				x.script(s)
			})
			if x.reused {
				mustFetch(t, c, get("/"))
			}
			_, _, err := fetch(t, c, post("hello"))
			lost, ok := errors.AsType[*exchange.LostError](err)
			if !ok {
				t.Fatalf("%s: %v, want a lost connection", x.name, err)
			}
			if errors.Is(err, io.EOF) {
				t.Errorf("%s: %v looks like a good end", x.name, err)
			}
			got := *lost
			got.Err = nil
			if got != x.want {
				t.Errorf("%s: %+v, want %+v", x.name, got, x.want)
			}
			if c.Idle() != 0 {
				t.Errorf("%s: the connection was kept", x.name)
			}
		})
	}
}

// A server that has taken the first bytes and goes later did not go for being
// idle, however short ago our last byte was.
func TestALossCountsFromTheFirstBytes(t *testing.T) {
	const later = 2*time.Second + 10*time.Millisecond
	for name, length := range map[string]int64{"chunked": -1, "of known length": 200_000} {
		synctest.Test(t, func(t *testing.T) {
			c := memServer(t, Options{}, func(s *serverConn) {
				s.whole()
				s.say(noContent)
				s.request()
				time.Sleep(later)
			})
			mustFetch(t, c, get("/"))
			_, err := c.Do(uploadOf(length, &slow{pieces: 100, every: 500 * time.Millisecond}))
			lost, ok := errors.AsType[*exchange.LostError](err)
			if !ok || !lost.Closed || !lost.Reused || lost.Answered || lost.After != later {
				t.Errorf("%s: %#v, want closed after %v", name, err, later)
			}
			time.Sleep(time.Second) // for the last Read
		})
	}
}

func reset(s *serverConn) {
	type resetter interface{ Reset() }
	s.Conn.(resetter).Reset()
}

func TestSilenceBeforeTheReplyIsBounded(t *testing.T) {
	const limit = 3 * time.Second
	wait := func(d time.Duration, say ...string) func(*serverConn) {
		return func(s *serverConn) { s.whole(); time.Sleep(d); s.say(say...); time.Sleep(time.Minute) }
	}
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, x := range []struct {
		name   string
		call   func() *exchange.Call
		script func(*serverConn)
		fails  bool
		after  time.Duration
	}{
		{"silence", func() *exchange.Call { return get("/") }, wait(time.Hour), true, limit},
		{"in time", func() *exchange.Call { return get("/") }, wait(limit-1, ok), false, limit - 1},
		{"half a head", func() *exchange.Call { return post("hi") }, wait(time.Second, "HTTP/1.1 20"), true, limit},
		{
			"an interim reply breaks the silence", func() *exchange.Call { return get("/") },
			func(s *serverConn) {
				s.whole()
				time.Sleep(limit - 1)
				s.say("HTTP/1.1 102 Wait\r\n\r\n")
				time.Sleep(limit - 1)
				s.say(ok)
				s.whole()
			},
			false, 2*limit - 2,
		},
		{
			"also behind an upload", func() *exchange.Call { return uploadOf(-1, &slow{pieces: 1, every: time.Second}) },
			func(s *serverConn) {
				r := s.request()
				s.say("HTTP/1.1 102 Wait\r\n\r\n") // before the silence counts
				io.Copy(io.Discard, r.Body)
				time.Sleep(limit - 1)
				s.say("HTTP/1.1 102 Wait\r\n\r\n")
				time.Sleep(time.Minute)
			},
			true, 2*time.Second + 2*limit - 1,
		},
		{
			"the time that the client takes is its own",
			func() *exchange.Call { return uploadOf(-1, &slow{pieces: 5, every: 2 * time.Second}) }, wait(limit-1, ok), false, 12*time.Second + limit - 1,
		},
		{
			"and then the silence counts",
			func() *exchange.Call { return uploadOf(-1, &slow{pieces: 5, every: 2 * time.Second}) }, wait(time.Hour), true, 12*time.Second + limit,
		},
		{
			"a server that takes nothing more",
			func() *exchange.Call { return uploadOf(1<<20, &endless{}) },
			func(s *serverConn) { s.request(); time.Sleep(time.Hour) }, true, limit,
		},
		{
			"one that takes nothing of a small request",
			func() *exchange.Call { c := post("x"); c.Header.Add("A", strings.Repeat("a", 70_000)); return c },
			func(*serverConn) { time.Sleep(time.Hour) }, true, limit,
		},
		{
			"a reply may be slow",
			func() *exchange.Call { return get("/") },
			func(s *serverConn) {
				s.whole()
				s.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
				time.Sleep(10 * limit)
				s.say("k")
				s.whole()
			},
			false, 10 * limit,
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := memServer(t, Options{}, x.script)
			start := time.Now()
			call := x.call()
			call.FirstByte = limit
			_, body, err := fetch(t, c, call)
			if x.fails != errors.Is(err, exchange.ErrFirstByte) || !x.fails && (err != nil || body != "ok") {
				t.Errorf("%s: %q, %v", x.name, body, err)
			}
			if took := time.Since(start); took != x.after {
				t.Errorf("%s: took %v, want %v", x.name, took, x.after)
			}
			c.Close()
		})
	}
}

// slow is a client that takes its time.
type slow struct {
	pieces int
	every  time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(s.every)
	if s.pieces--; s.pieces < 0 {
		return 0, io.EOF
	}
	return copy(p, "piece"), nil
}

// A deadline of one call must not end the next, which has none.
func TestDeadlinesEndWithTheirCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var conns atomic.Int32
		c := memServer(t, Options{Idle: time.Hour}, func(s *serverConn) {
			conns.Add(1)
			for {
				text := s.whole()
				if text == "" {
					return
				}
				if strings.HasPrefix(text, "GET /slow") {
					time.Sleep(time.Minute)
				}
				s.say(noContent)
			}
		})
		for _, body := range []int{0, 10, 200_000} {
			call := post(strings.Repeat("a", body))
			call.FirstByte = time.Second
			mustFetch(t, c, call)
			mustFetch(t, c, get("/slow"))
		}
		if conns.Load() != 1 {
			t.Errorf("%d connections, want 1", conns.Load())
		}
	})
}
