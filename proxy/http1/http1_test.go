package http1

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/proxy/exchange"
)

func echo(conns *atomic.Int32) func(*serverConn) {
	return func(s *serverConn) {
		conns.Add(1)
		for {
			text := s.whole()
			if text == "" {
				return
			}
			switch {
			case strings.Contains(text, "/chunked"):
				s.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "2;x=y\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n")
			case strings.Contains(text, "/close"):
				s.say("HTTP/1.1 200 OK\r\n\r\nto the end")
				return
			case strings.Contains(text, "/empty"):
				s.say("HTTP/1.1 204 No Content\r\n\r\n")
			default:
				s.say("HTTP/1.1 200 OK\r\nContent-Length: ", itoa(len(text)), "\r\nX-A: b\r\n\r\n", text)
			}
		}
	}
}

func itoa(n int) string { return string(appendDecimal(nil, n)) }

func appendDecimal(b []byte, n int) []byte {
	if n >= 10 {
		b = appendDecimal(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

func TestRequestsShareAConnection(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{}, echo(&conns))
	for _, x := range []struct {
		call *exchange.Call
		want string
	}{
		{get("/a"), "GET /a "},
		{post("hello"), "POST /v1/chat/completions hello"},
		{get("/chunked"), "abcde"},
		{get("/empty"), ""},
		{post(strings.Repeat("long", 50_000)), "POST /v1/chat/completions " + strings.Repeat("long", 50_000)},
		{get("/close"), "to the end"},
	} {
		_, got, err := fetch(t, c, x.call)
		if err != nil || got != x.want {
			t.Errorf("%s %s: %.60q, %v; want %.60q", x.call.Method, x.call.Target, got, err, x.want)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	if c.Idle() != 0 {
		t.Error("kept a connection that the server closes")
	}
}

func TestUnknownLengthIsSentInChunks(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{}, echo(&conns))
	call := post("")
	call.Length, call.Body = -1, io.MultiReader(strings.NewReader("one "), strings.NewReader("two"))
	_, got, err := fetch(t, c, call)
	if want := "POST /v1/chat/completions one two"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if c.Idle() != 1 {
		t.Errorf("%d idle connections, want 1", c.Idle())
	}
}

func TestCancelEndsDo(t *testing.T) {
	c := rawServer(t, Options{}, func(s *serverConn) { s.request(); io.Copy(io.Discard, s) })
	cause := errors.New("enough")
	call := get("/")
	time.AfterFunc(20*time.Millisecond, func() { call.Canceler.Cancel(cause) })
	if _, err := c.Do(call); !errors.Is(err, cause) {
		t.Errorf("Do: %v, want %v", err, cause)
	}
}
