package upstream

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/config"
	"edge/proxy/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 10 * time.Second

// prompt is how fast an aborted exchange must reach the other side.
const prompt = time.Second

// serve starts a server of the standard library.
func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// script starts a server that runs f on each connection, for what a proper
// server does not do.
func script(t *testing.T, f func(c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c, bufio.NewReader(c))
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "http://" + l.Addr().String()
}

// refused returns the URL of a port that nobody listens on.
func refused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return "http://" + l.Addr().String()
}

// poolOf describes a pool of equal endpoints.
func poolOf(urls ...string) *config.Pool {
	c := &config.Pool{Name: "test", Retry: config.Retry{Attempts: 3, Replay: 1 << 20}, Connect: patience}
	for _, u := range urls {
		c.Endpoints = append(c.Endpoints, config.Endpoint{URL: u, Weight: 1})
	}
	return c
}

// open puts a pool in force in a Registry of its own.
func open(t *testing.T, c *config.Pool) *Pool {
	t.Helper()
	return openWith(t, Options{}, c)
}

func openWith(t *testing.T, o Options, c *config.Pool) *Pool {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	r := NewRegistry(o)
	s, err := r.Prepare(map[string]*config.Pool{c.Name: c})
	if err != nil {
		t.Fatal(err)
	}
	s.Commit()
	t.Cleanup(func() { s.Close(); r.Close() })
	return s.Pool(c.Name)
}

func get(target string) *Request {
	return &Request{Method: "GET", Target: target, Host: "api.example.com"}
}

func post(body string) *Request {
	return &Request{
		Method: "POST", Target: "/v1/chat", Host: "api.example.com",
		Length: int64(len(body)), Body: strings.NewReader(body),
	}
}

// do must succeed.
func do(t *testing.T, p *Pool, req *Request) *Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	resp, err := p.Do(ctx, req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.Target, err)
	}
	t.Cleanup(func() { resp.Close() })
	return resp
}

// text reads a reply to its end and closes it.
func text(t *testing.T, resp *Response) string {
	t.Helper()
	b, err := io.ReadAll(resp)
	if err != nil {
		t.Fatalf("read reply: %v", err)
	}
	resp.Close()
	return string(b)
}

// within waits for c, for at most d.
func within[T any](t *testing.T, d time.Duration, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(d):
		t.Fatalf("%s: not within %v", what, d)
	}
	return v
}

// head reads a request's head as it is on the wire.
func head(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return b.String(), err
		}
		if line == "\r\n" {
			return b.String(), nil
		}
		b.WriteString(line)
	}
}

// closedByPeer is closed when the other side of c closes or resets it.
func closedByPeer(r io.Reader) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(io.Discard, r)
	}()
	return done
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// wire returns what the server of a request reads, head and rest.
func wire(t *testing.T, req *Request) string {
	t.Helper()
	seen := make(chan string, 1)
	url := script(t, func(c net.Conn, r *bufio.Reader) {
		h, err := head(r)
		if err != nil {
			return
		}
		// The reply ends the exchange only when everything was read: half
		// a second without a byte is the end of a request that says no length.
		rest := make([]byte, 0, 64)
		for {
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			b, err := r.ReadByte()
			if err != nil {
				break
			}
			rest = append(rest, b)
		}
		seen <- h + "\r\n" + string(rest)
		io.WriteString(c, ok)
	})
	text(t, do(t, open(t, poolOf(url)), req))
	return within(t, patience, "request on the wire", seen)
}

func TestRequestOnTheWire(t *testing.T) {
	fields := func(nv ...string) (f exchange.Fields) {
		for i := 0; i < len(nv); i += 2 {
			f.Add(nv[i], nv[i+1])
		}
		return f
	}
	for name, tc := range map[string]struct {
		req  *Request
		want string
	}{
		"nothing is added to a GET": {
			get("/v1/models?a=1;b"),
			"GET /v1/models?a=1;b HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
		},
		"target stays as it came": {
			get("//a/%2F%c3/../b?x=%zz&y"),
			"GET //a/%2F%c3/../b?x=%zz&y HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
		},
		"asterisk": {
			&Request{Method: "OPTIONS", Target: "*", Host: "h"},
			"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
		},
		"fields of the connection are replaced, others stay as they came": {
			&Request{Method: "GET", Target: "/", Host: "h", Header: fields(
				"host", "evil", "content-length", "7", "transfer-encoding", "chunked", "connection", "x",
				"upgrade", "h2c", "keep-alive", "5", "expect", "100-continue", "trailer", "t", "x-b", "1", "A", "0", "X-B", "2", "te", "trailers",
			)},
			"GET / HTTP/1.1\r\nHost: h\r\nx-b: 1\r\nA: 0\r\nX-B: 2\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
		},
		"user agent of the client": {
			&Request{Method: "GET", Target: "/", Host: "h", Header: fields("user-agent", "openai/1")},
			"GET / HTTP/1.1\r\nHost: h\r\nuser-agent: openai/1\r\n\r\n",
		},
		"known length": {
			post("hello"),
			"POST /v1/chat HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\n\r\nhello",
		},
		"no body of a POST": {
			&Request{Method: "POST", Target: "/", Host: "h", Body: strings.NewReader("never read")},
			"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
		},
		"unknown length": {
			&Request{Method: "POST", Target: "/", Host: "h", Length: -1, Body: strings.NewReader("hello")},
			"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		},
		"GET of unknown length without a body": {
			&Request{Method: "GET", Target: "/", Host: "h", Length: -1, Body: strings.NewReader("")},
			"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		},
		"trailers": {
			&Request{
				Method: "POST", Target: "/", Host: "h", Length: -1, Body: strings.NewReader("hello"),
				Trailer: func() exchange.Fields { return fields("x-sum", "1") },
			},
			"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n",
		},
		"upgrade": {
			&Request{Method: "GET", Target: "/ws", Host: "h", Upgrade: true},
			"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := wire(t, tc.req); got != tc.want {
				t.Errorf("on the wire:\n%q\nwant:\n%q", got, tc.want)
			}
		})
	}
}

// badRequests are what no protocol can say.
func badRequests() map[string]*Request {
	return map[string]*Request{
		"space in target":      get("/a b"),
		"line break in target": get("/a\r\nX: y"),
		"absolute form":        get("http://h/"),
		"empty target":         get(""),
		"CONNECT":              {Method: "CONNECT", Target: "/", Host: "h"},
		"no method":            {Target: "/", Host: "h"},
		"bad method":           {Method: "G T", Target: "/", Host: "h"},
		"bad host":             {Method: "GET", Target: "/", Host: "a b"},
		"host not ASCII":       {Method: "GET", Target: "/", Host: "bücher.example"},
		"bad field":            {Method: "GET", Target: "/", Host: "h", Header: exchange.Fields{{Name: "a", Value: "x\ny"}}},
	}
}
