package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"edge/proxy/exchange"
)

// sent returns what a client writes for call, a string for each write.
func sent(tb testing.TB, call *exchange.Call, o Options) ([]string, error) {
	tb.Helper()
	nc := &tapeConn{reply: "HTTP/1.1 204 No Content\r\n\r\n", piece: 1 << 20}
	c := NewClient(func(context.Context) (net.Conn, error) { return nc, nil }, o)
	defer c.Close()
	_, err := c.Do(call)
	return nc.writes, err
}

func TestRequestsAsTheyAreSent(t *testing.T) {
	fields := func(kv ...string) (f exchange.Fields) {
		for i := 0; i < len(kv); i += 2 {
			f.Add(kv[i], kv[i+1])
		}
		return f
	}
	for _, x := range []struct {
		name string
		call exchange.Call
		opts Options
		want string
	}{
		{"the least", exchange.Call{Method: "GET"}, Options{}, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
		{
			"fields in order, their names as they are",
			exchange.Call{Method: "GET", Header: fields("x-B", "1", "X-a", "2", "x-B", "3\xff")},
			Options{},
			"GET / HTTP/1.1\r\nHost: h\r\nx-B: 1\r\nX-a: 2\r\nx-B: 3\xff\r\n\r\n",
		},
		{
			"RFC 9110 7.6.1: nothing of the connection",
			exchange.Call{Method: "GET", Header: fields(
				"host", "x", "CONTENT-LENGTH", "5", "Transfer-Encoding", "chunked", "trailer", "x", "Expect", "100-continue",
				"Connection", "close", "Upgrade", "h2c", "Keep-Alive", "x", "Proxy-Connection", "x", "TE", "gzip")},
			Options{},
			"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		},
		{
			"RFC 9110 10.1.4: TE",
			exchange.Call{Method: "GET", Header: fields("te", "gzip, Trailers")},
			Options{},
			"GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
		},
		{
			"RFC 9110 8.6: no body where one is expected",
			exchange.Call{Method: "POST"},
			Options{},
			"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
		},
		{
			"a small body",
			exchange.Call{Method: "PUT", Length: 5, Body: strings.NewReader("hello, world")},
			Options{},
			"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
		},
		{
			"a body whose end comes with it",
			exchange.Call{Method: "PUT", Length: 5, Body: iotest.DataErrReader(strings.NewReader("hello"))},
			Options{},
			"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
		},
		{
			"a websocket",
			exchange.Call{Method: "GET", Upgrade: true, Body: strings.NewReader("x"), Length: 1},
			Options{},
			"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
		},
		{"one shot", exchange.Call{Method: "GET"}, Options{OneShot: true}, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"},
		{
			"one shot with trailers",
			exchange.Call{Method: "GET", Header: fields("TE", "trailers")},
			Options{OneShot: true},
			"GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n",
		},
	} {
		x.call.Target, x.call.Host, x.call.Canceler = "/", "h", new(exchange.Canceler)
		got, err := sent(t, &x.call, x.opts)
		if err != nil || len(got) != 1 || got[0] != x.want {
			t.Errorf("%s: wrote %q, %v; want %q at once", x.name, got, err, x.want)
		}
	}
}

func TestALargeHeadIsOneWriteToo(t *testing.T) {
	for _, size := range []int{5_000, 60_000, 100_000} {
		call := post("the body")
		call.Header.Add("Cookie", strings.Repeat("c", size))
		got, err := sent(t, call, Options{})
		joined := strings.Join(got, "")
		if err != nil || len(joined) < size || !strings.HasSuffix(joined, "\r\n\r\nthe body") || size < writeSize && len(got) != 1 {
			t.Errorf("head of %d bytes: %d bytes in %d writes, %v", size, len(joined), len(got), err)
		}
	}
}

func TestChunksAsTheyAreSent(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
	trailer := func() exchange.Fields {
		return exchange.Fields{{Name: "Grpc-Status", Value: "0"}, {Name: "content-length", Value: "7"}, {Name: "HOST", Value: "x"}}
	}
	large := strings.Repeat("a", 70_000)
	for _, x := range []struct {
		name    string
		body    io.Reader
		trailer func() exchange.Fields
		want    string
	}{
		{"nothing", strings.NewReader(""), nil, head + "0\r\n\r\n"},
		{"a piece", strings.NewReader("hello"), nil, head + "5\r\nhello\r\n0\r\n\r\n"},
		{"its end with it", iotest.DataErrReader(strings.NewReader("hello")), nil, head + "5\r\nhello\r\n0\r\n\r\n"},
		{"bytes", iotest.OneByteReader(strings.NewReader("hi")), nil, head + "1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"},
		{"trailers, without those of framing", strings.NewReader("hi"), trailer, head + "2\r\nhi\r\n0\r\nGrpc-Status: 0\r\n\r\n"},
		{"more than a buffer", strings.NewReader(large), nil, head + "fff1\r\n" + large[:0xfff1] + "\r\n117f\r\n" + large[:0x117f] + "\r\n0\r\n\r\n"},
	} {
		c := rawServer(t, Options{}, func(s *serverConn) {
			got := make([]byte, len(x.want))
			n, _ := io.ReadFull(s.br, got)
			if string(got[:n]) != x.want {
				t.Errorf("%s: wrote %.200q, want %.200q", x.name, got[:n], x.want)
			}
			s.say("HTTP/1.1 204 No Content\r\n\r\n")
			s.whole()
		})
		call := &exchange.Call{Method: "POST", Target: "/", Host: "h", Length: -1, Body: x.body, Trailer: x.trailer, Canceler: new(exchange.Canceler)}
		if _, err := c.Do(call); err != nil {
			t.Errorf("%s: %v", x.name, err)
		}
		c.Close()
	}
}

func TestTrailersAreAnnouncedAsTheClientDid(t *testing.T) {
	for value, want := range map[string]bool{"Grpc-Status, X": true, "Content-Length": false, "a b": false} {
		call := get("/")
		call.Header.Add("Trailer", value)
		call.Trailer = func() exchange.Fields { return nil }
		head, err := appendHead(nil, call, -1, false, false)
		if got := strings.Contains(string(head), "Trailer: "+value+"\r\n"); got != want || err != nil {
			t.Errorf("%q: announced %v, %v; want %v", value, got, err, want)
		}
	}
}

func TestWhatCannotBeSentIsNot(t *testing.T) {
	for name, change := range map[string]func(*exchange.Call){
		"no method":           func(c *exchange.Call) { c.Method = "" },
		"method with blank":   func(c *exchange.Call) { c.Method = "GET /" },
		"CONNECT":             func(c *exchange.Call) { c.Method = "CONNECT" },
		"no target":           func(c *exchange.Call) { c.Target = "" },
		"absolute target":     func(c *exchange.Call) { c.Target = "http://h/" },
		"target with line":    func(c *exchange.Call) { c.Target = "/\r\nX: y" },
		"target with blank":   func(c *exchange.Call) { c.Target = "/ HTTP/1.1" },
		"target with NUL":     func(c *exchange.Call) { c.Target = "/\x00" },
		"host with line":      func(c *exchange.Call) { c.Host = "h\r\nX: y" },
		"host with slash":     func(c *exchange.Call) { c.Host = "h/x" },
		"name with line":      func(c *exchange.Call) { c.Header.Add("A\r\nB", "c") },
		"name with colon":     func(c *exchange.Call) { c.Header.Add("A:", "c") },
		"pseudo field":        func(c *exchange.Call) { c.Header.Add(":path", "/") },
		"no name":             func(c *exchange.Call) { c.Header.Add("", "c") },
		"value with line":     func(c *exchange.Call) { c.Header.Add("A", "b\r\nC: d") },
		"value with LF":       func(c *exchange.Call) { c.Header.Add("A", "b\nC: d") },
		"value with NUL":      func(c *exchange.Call) { c.Header.Add("A", "\x00") },
		"even of what we own": func(c *exchange.Call) { c.Header.Add("Connection", "x\r\n") },
		"length below -1":     func(c *exchange.Call) { c.Length, c.Body = -2, strings.NewReader("") },
	} {
		call := get("/")
		change(call)
		wrote, err := sent(t, call, Options{})
		if !errors.Is(err, exchange.ErrUnsendable) || len(wrote) > 0 {
			t.Errorf("%s: wrote %q, %v; want nothing, %v", name, wrote, err, exchange.ErrUnsendable)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("%s: the error quotes it: %q", name, err)
		}
	}
}

func TestTrailersThatCannotBeSentEndTheCall(t *testing.T) {
	seen := make(chan string, 1)
	c := rawServer(t, Options{}, func(s *serverConn) { seen <- s.whole() })
	call := post("")
	call.Length, call.Body = -1, strings.NewReader("hello")
	call.Trailer = func() exchange.Fields { return exchange.Fields{{Name: "A", Value: "b\r\nGET / HTTP/1.1"}} }
	if _, err := c.Do(call); !errors.Is(err, exchange.ErrUnsendable) {
		t.Errorf("Do: %v, want %v", err, exchange.ErrUnsendable)
	}
	if got := <-seen; got != "" {
		t.Errorf("the server saw a whole request: %q", got)
	}
}

func TestFramingNamesAreKnownInAnyCase(t *testing.T) {
	names := []string{"host", "content-length", "transfer-encoding", "trailer", "expect", "connection", "upgrade", "keep-alive", "proxy-connection", "te"}
	for _, name := range names {
		if !isFraming(name) || !isFraming(strings.ToUpper(name)) {
			t.Errorf("%s is not known", name)
		}
	}
	for _, name := range []string{"hos", "content-lengtH2", "expecd", "tf", "connectio\x0e", "Authorization"} {
		if isFraming(name) {
			t.Errorf("%q is taken for framing", name)
		}
	}
	if slices.ContainsFunc(names, func(s string) bool { return !isToken(s) }) {
		t.Error("a name is no token")
	}
}
