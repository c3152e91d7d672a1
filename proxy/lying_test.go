package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"edge/config"
)

// poison is in whatever a lying backend says that no client may ever see.
const poison = "poison"

// startLiar runs a proxy in front of a pool of one endpoint, to which serve is
// the server.
func startLiar(t *testing.T, protocol config.PoolProtocol, serve func(net.Conn)) *edge {
	t.Helper()
	cfg := onePool(listen(t, func(c *net.TCPConn, _ *bufio.Reader) { serve(c) }))
	cfg.Pools["p"].Protocol = protocol
	return start(t, cfg)
}

// sayH1 answers each request with the reply, and then ends the connection as end
// says.
func sayH1(reply string, end func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if _, err := io.WriteString(c, reply); err != nil {
				return
			}
			if end != nil {
				end(c)
			}
		}
	}
}

// sayH2 answers each request as reply does.
func sayH2(reply func(w *h2liar)) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := r.Discard(len(http2.ClientPreface)); err != nil {
			return
		}
		w := &h2liar{Framer: http2.NewFramer(c, r), conn: c}
		w.AllowIllegalWrites = true
		w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		_ = w.WriteSettings()
		for {
			f, err := w.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					_ = w.WriteSettingsAck()
				}
			case *http2.MetaHeadersFrame:
				w.id = f.StreamID
				reply(w)
			}
		}
	}
}

// h2liar is a backend's side of an HTTP/2 connection.
type h2liar struct {
	*http2.Framer
	conn net.Conn
	id   uint32
}

// head sends fields as they are given, and no more than that.
func (w *h2liar) head(end bool, fields ...string) {
	var b strings.Builder
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true}) // outside the table
	}
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: w.id, BlockFragment: []byte(b.String()), EndHeaders: true, EndStream: end})
}

func (w *h2liar) data(end bool, s string) { _ = w.WriteData(w.id, end, []byte(s)) }

func finish(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
}

// crash resets the connection once the client's side has had time to read.
func crash(c net.Conn) {
	time.Sleep(20 * time.Millisecond)
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

func TestInvalidReplyIsA502WithoutAByteOfIt(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	const body = "\r\n" + poison
	h1 := func(reply string) func(net.Conn) { return sayH1(reply, nil) }
	h2 := func(fields ...string) func(net.Conn) {
		return sayH2(func(w *h2liar) {
			w.head(false, fields...)
			w.data(true, poison)
		})
	}
	for name, tc := range map[string]struct {
		protocol config.PoolProtocol
		serve    func(net.Conn)
	}{
		"HTTP/0.9":               {config.PoolH1, sayH1("<html>"+poison+"</html>\r\n", finish)},
		"status of two digits":   {config.PoolH1, h1("HTTP/1.1 20 " + poison + "\r\nContent-Length: 6\r\n" + body)},
		"two lengths":            {config.PoolH1, h1(ok + "Content-Length: 6\r\nContent-Length: 60\r\n" + body)},
		"length and coding":      {config.PoolH1, h1(ok + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n" + body)},
		"two codings":            {config.PoolH1, h1(ok + "Transfer-Encoding: gzip, chunked\r\n" + body)},
		"a name with a space":    {config.PoolH1, h1(ok + "Content-Length : 6\r\nX: " + poison + "\r\n" + body)},
		"a field behind a CR":    {config.PoolH1, h1(ok + "Content-Length: 6\r\nX: a\rSet-Cookie: " + poison + "\r\n" + body)},
		"a folded field":         {config.PoolH1, h1(ok + "Content-Length: 6\r\nX: a\r\n " + poison + "\r\n" + body)},
		"NUL in a field":         {config.PoolH1, h1(ok + "Content-Length: 6\r\nX: a\x00" + poison + "\r\n" + body)},
		"70 KiB of head":         {config.PoolH1, h1(ok + "X: " + strings.Repeat(poison, 12_000) + "\r\n" + body)},
		"a tunnel nobody wanted": {config.PoolH1, h1("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + body)},
		"a tunnel to h2c":        {config.PoolH1, h1("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + body)},
		"HTTP/2: no status":      {config.PoolH2C, h2("x", poison)},
		"HTTP/2: two statuses":   {config.PoolH2C, h2(":status", "200", ":status", "200", "x", poison)},
		"HTTP/2: upper case":     {config.PoolH2C, h2(":status", "200", "X", poison)},
		"HTTP/2: a field in one": {config.PoolH2C, h2(":status", "200", "x", "a\r\nset-cookie: "+poison)},
		"HTTP/2: a coding":       {config.PoolH2C, h2(":status", "200", "transfer-encoding", "chunked", "x", poison)},
		"HTTP/2: a tunnel":       {config.PoolH2C, h2(":status", "101", "upgrade", poison)},
		"HTTP/2: two lengths":    {config.PoolH2C, h2(":status", "200", "content-length", "6", "content-length", "60", "x", poison)},
		"HTTP/2: DATA first":     {config.PoolH2C, sayH2(func(w *h2liar) { w.data(true, poison) })},
		"HTTP/2: HTTP/1.1":       {config.PoolH2C, h1(ok + "Content-Length: 6\r\n" + body)},
		"HTTP/2: to nobody":      {config.PoolH2C, sayH2(func(w *h2liar) { w.id += 2; w.head(false, ":status", "200"); w.data(true, poison) })},
		"HTTP/2: another request": {config.PoolH2C, sayH2(func(w *h2liar) {
			_ = w.WritePushPromise(http2.PushPromiseParam{StreamID: w.id, PromiseID: 2, BlockFragment: []byte("\x82"), EndHeaders: true})
		})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startLiar(t, tc.protocol, tc.serve)
			bothProtocols(t, func(t *testing.T, protocol string) {
				t.Helper()
				// POST: a GET may be asked again.
				resp, got := do(t, e.client(t, protocol), request(t, "POST", "https://a.example.com/v1/chat/completions", "{}"))
				if resp.StatusCode != http.StatusBadGateway || !strings.Contains(got, `"upstream_lost"`) {
					t.Errorf("got %d %s, want 502 upstream_lost", resp.StatusCode, got)
				}
				if all := fmt.Sprint(resp.Status, resp.Header, resp.Trailer, got); strings.Contains(all, poison) {
					t.Errorf("the client sees what the backend said: %s", all)
				}
				if r := e.record(t); string(r.Reason) != "upstream_lost" {
					t.Errorf("recorded %q, want upstream_lost", r.Reason)
				}
			})
		})
	}
}

func TestTruncatedReplyNeverEndsCleanly(t *testing.T) {
	const (
		sized   = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"
		chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
		open    = "HTTP/1.1 200 OK\r\n\r\nhello"
	)
	for name, tc := range map[string]struct {
		protocol config.PoolProtocol
		serve    func(net.Conn)
	}{
		"short of its length, FIN": {config.PoolH1, sayH1(sized, finish)},
		"short of its length, RST": {config.PoolH1, sayH1(sized, crash)},
		"no last chunk, FIN":       {config.PoolH1, sayH1(chunked, finish)},
		"no last chunk, RST":       {config.PoolH1, sayH1(chunked, crash)},
		"in the last chunk":        {config.PoolH1, sayH1(chunked+"0\r\n", finish)},
		"in a trailer":             {config.PoolH1, sayH1(chunked+"0\r\nX: "+poison+"\r\n", finish)},
		"a bad size":               {config.PoolH1, sayH1(chunked+"0x6\r\n"+poison+"\r\n0\r\n\r\n", nil)},
		"a size beyond 64 bits":    {config.PoolH1, sayH1(chunked+"10000000000000006\r\n"+poison+"\r\n0\r\n\r\n", nil)},
		"data beyond its size":     {config.PoolH1, sayH1(strings.TrimSuffix(chunked, "\r\n")+poison+"\r\n0\r\n\r\n", nil)},
		"a bad trailer":            {config.PoolH1, sayH1(chunked+"0\r\nX Y: "+poison+"\r\n\r\n", nil)},
		"no length, RST":           {config.PoolH1, sayH1(open, crash)},
		"HTTP/2: FIN":              {config.PoolH2C, sayH2(func(w *h2liar) { w.head(false, ":status", "200"); w.data(false, "hello"); finish(w.conn) })},
		"HTTP/2: RST":              {config.PoolH2C, sayH2(func(w *h2liar) { w.head(false, ":status", "200"); w.data(false, "hello"); crash(w.conn) })},
		"HTTP/2: RST_STREAM": {config.PoolH2C, sayH2(func(w *h2liar) {
			w.head(false, ":status", "200")
			w.data(false, "hello")
			_ = w.WriteRSTStream(w.id, http2.ErrCodeNo)
		})},
		"HTTP/2: short of its length": {config.PoolH2C, sayH2(func(w *h2liar) {
			w.head(false, ":status", "200", "content-length", "50")
			w.data(true, "hello")
		})},
		"HTTP/2: beyond its length": {config.PoolH2C, sayH2(func(w *h2liar) {
			w.head(false, ":status", "200", "content-length", "5")
			w.data(false, "hell")
			w.data(true, poison)
		})},
		"HTTP/2: a bad trailer": {config.PoolH2C, sayH2(func(w *h2liar) {
			w.head(false, ":status", "200")
			w.data(false, "hello")
			w.head(true, "X", poison)
		})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startLiar(t, tc.protocol, tc.serve)
			bothProtocols(t, func(t *testing.T, protocol string) {
				t.Helper()
				checkBroken(t, e.client(t, protocol))
				if r := e.record(t); string(r.Reason) != "upstream_lost" {
					t.Errorf("recorded %q, want upstream_lost", r.Reason)
				}
			})
		})
	}
}

// checkBroken wants a reply of "hello" that breaks off, maybe before its head
// has left.
func checkBroken(t *testing.T, c *http.Client) {
	t.Helper()
	resp, err := c.Do(request(t, "POST", "https://a.example.com/", "{}"))
	if err != nil {
		return
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusBadGateway {
		return
	}
	if whole := "hello"; err == nil || !strings.HasPrefix(whole, string(got)) {
		t.Errorf("got %d %q, %v; want no more than hello, and an error", resp.StatusCode, got, err)
	}
	if all := fmt.Sprint(resp.Header, resp.Trailer); strings.Contains(all, poison) {
		t.Errorf("the client sees what the backend said: %s", all)
	}
}

func TestSurplusOfAReplyReachesNobody(t *testing.T) {
	surplus := "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" + poison
	for name, reply := range map[string]string{
		"behind a body":   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"behind chunks":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"behind trailers": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
		"behind a 204":    "HTTP/1.1 204 No Content\r\nContent-Length: 44\r\n\r\n",
		"behind a 304":    "HTTP/1.1 304 Not Modified\r\nContent-Length: 44\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startLiar(t, config.PoolH1, sayH1(reply+surplus, nil))
			bothProtocols(t, func(t *testing.T, protocol string) {
				t.Helper()
				c := e.client(t, protocol)
				for range 5 {
					resp, got := do(t, c, request(t, "GET", "https://a.example.com/", ""))
					if want := strings.Contains(reply, "hello"); strings.Contains(got, poison) || (got == "hello") != want {
						t.Fatalf("got %d %q, want the reply without its surplus", resp.StatusCode, got)
					}
				}
			})
		})
	}
}

func TestForbiddenTrailersOfABackendAreDropped(t *testing.T) {
	reply := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n" +
		"Content-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: " + poison + "\r\nSet-Cookie: " + poison + "\r\n\r\n"
	bad := []string{"Content-Length", "Transfer-Encoding", "Connection"}
	over := map[config.PoolProtocol]func(net.Conn){
		config.PoolH1: sayH1(reply, nil),
		config.PoolH2C: sayH2(func(w *h2liar) {
			w.head(false, ":status", "200")
			w.data(false, "hello")
			w.head(true, "x-sum", "1", "content-length", "3")
		}),
	}
	for backend, serve := range over {
		t.Run(string(backend), func(t *testing.T) {
			e := startLiar(t, backend, serve)
			bothProtocols(t, func(t *testing.T, protocol string) {
				t.Helper()
				resp, got := do(t, e.client(t, protocol), request(t, "GET", "https://a.example.com/", ""))
				if resp.StatusCode != http.StatusOK || got != "hello" || resp.Trailer.Get("X-Sum") != "1" {
					t.Errorf("got %d %q trailer %v, want 200 hello and x-sum", resp.StatusCode, got, resp.Trailer)
				}
				for _, name := range bad {
					if _, has := resp.Trailer[name]; has {
						t.Errorf("trailer %v, want no %s in it", resp.Trailer, name)
					}
				}
			})
		})
	}
}
