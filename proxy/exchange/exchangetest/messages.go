package exchangetest

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/proxy/exchange"
)

func testRequest(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		expect(t, "method", e.Method, http.MethodPost)
		expect(t, "length", e.Length, 5)
		expect(t, "body", readAll(t, e), "hello")
		expect(t, "X-Test", e.Header.Get("x-test"), "1")
		expect(t, "Host in the header", e.Header.Has("host"), false)
		expect(t, "peer", e.Conn.Peer.IsValid(), true)
		if n, err := e.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("Read after the end gave %d, %v, want 0, EOF", n, err)
		}
	})
	r := s.request(t, http.MethodPost, "/", strings.NewReader("hello"))
	r.Header.Set("X-Test", "1")
	res, body := s.do(t, r)
	expect(t, "status", res.StatusCode, http.StatusOK)
	expect(t, "body", body, "")
	expect(t, "received", s.end(t).received, 5)
}

func testTarget(t *testing.T, start Start) {
	t.Helper()
	const path, query = "/a%2Fb//c%20d", "x=1;y=%zz&&"
	s := serve(t, start, func(e *exchange.Exchange) {
		expect(t, "target", e.Target, path+"?"+query)
		expect(t, "path", e.Path, path)
		expect(t, "query", e.Query, query)
		expect(t, "length", e.Length, 0)
		expect(t, "body", readAll(t, e), "")
	})
	s.do(t, s.request(t, http.MethodGet, path+"?"+query, nil))
}

func testAbsoluteForm(t *testing.T, start Start) {
	t.Helper()
	hosts := make(chan [3]string, 2)
	s := serve(t, start, func(e *exchange.Exchange) { hosts <- [3]string{e.Host, e.Path, e.Query} })
	w := s.dial(t, "GET http://a.example/p?q HTTP/1.1\r\nHost: b.example\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: c.example\r\nConnection: close\r\n\r\n")
	w.rest(t)
	expect(t, "absolute-form", receive(t, hosts, "a request"), [3]string{"a.example", "/p", "q"})
	expect(t, "asterisk-form", receive(t, hosts, "a request"), [3]string{"c.example", "*", ""})
}

func testFields(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		expect(t, "request", strings.Join(slices.Collect(e.Header.Values("X-DUP")), " "), "2 1 2")
		e.Reply = exchange.Fields{{Name: "x-dup", Value: "b"}, {Name: "set-cookie", Value: "z"}, {Name: "x-dup", Value: "a"}, {Name: "set-cookie", Value: "y"}}
	})
	r := s.request(t, http.MethodGet, "/", nil)
	r.Header["X-Dup"] = []string{"2", "1", "2"}
	res, _ := s.do(t, r)
	expect(t, "reply", strings.Join(append(res.Header["X-Dup"], res.Header["Set-Cookie"]...), " "), "b a z y")
	if s.Sorted || s.Dial == nil {
		return
	}
	w := s.dial(t, "GET / HTTP/1.1\r\nHost: a\r\nx-dup: 2\r\nX-DUP: 1\r\nx-Dup: 2\r\n\r\n")
	if head := w.head(t); !strings.Contains(head, "x-dup: b\r\nset-cookie: z\r\nx-dup: a\r\nset-cookie: y\r\n") {
		t.Errorf("head is %q, want the fields in order", head)
	}
}

func testChunked(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		expect(t, "length", e.Length, -1)
		write(t, e, readAll(t, e))
		write(t, e, "!")
	})
	_, body := s.do(t, s.request(t, http.MethodPost, "/", io.MultiReader(strings.NewReader("hello"))))
	expect(t, "body", body, "hello!")
	expect(t, "sent", s.end(t).sent, 6)
}

// testFullDuplex has the client send a part only when the last one came back.
func testFullDuplex(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		if err := e.Flush(); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 32<<10)
		for {
			n, err := e.Read(buf)
			if n > 0 {
				write(t, e, string(buf[:n]))
			}
			if err != nil {
				expect(t, "end of the body", err, io.EOF)
				return
			}
		}
	})
	body, client := io.Pipe()
	res := s.open(t, s.request(t, http.MethodPost, "/", body))
	part, back := make([]byte, 32<<10), make([]byte, 32<<10)
	for i := range 32 {
		for j := range part {
			part[j] = byte(i + j)
		}
		if _, err := client.Write(part); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(res.Body, back); err != nil {
			t.Fatalf("part %d: %v", i, err)
		}
		if !slices.Equal(part, back) {
			t.Fatalf("part %d came back changed", i)
		}
	}
	_ = client.Close()
	if n, err := res.Body.Read(back); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the last part: %d, %v, want EOF", n, err)
	}
	expect(t, "received", s.end(t).received, 1<<20)
}

func testReadLimit(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.SetReadLimit(5)
		b, err := io.ReadAll(e)
		expect(t, "body", string(b), "hello")
		if e.Status = http.StatusOK; err != nil {
			expect(t, "too large", errors.Is(err, exchange.ErrTooLarge), true)
			e.Status = http.StatusRequestEntityTooLarge
		}
	})
	for body, want := range map[string]int{"hello": http.StatusOK, "hello!": http.StatusRequestEntityTooLarge} {
		res, _ := s.do(t, s.request(t, http.MethodPost, "/", io.MultiReader(strings.NewReader(body))))
		expect(t, "status of "+body, res.StatusCode, want)
		expect(t, "received", s.end(t).received, 5)
	}
}

func testRequestTrailers(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		expect(t, "announcement", strings.ToLower(e.Header.Get("trailer")), "x-sum")
		expect(t, "body", readAll(t, e), "hello")
		expect(t, "trailer", e.Trailer().Get("x-sum"), "42")
	})
	r := s.request(t, http.MethodPost, "/", io.MultiReader(strings.NewReader("hello")))
	r.Trailer = http.Header{"X-Sum": {"42"}}
	s.do(t, r)
}

func testReplyTrailers(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		if e.Path == "/announced" {
			e.Reply.Set("trailer", "x-sum")
		}
		if e.Path != "/empty" {
			_, _ = io.WriteString(e, "hello")
		}
		e.ReplyTrailer.Add("x-sum", "42")
		e.ReplyTrailer.Add("x-sum", "43")
		e.ReplyTrailer.Add("content-length", "7") // RFC 9110 6.5.1: not in a trailer section
	})
	for path, want := range map[string]string{"/announced": "hello", "/unannounced": "hello", "/empty": ""} {
		res, body := s.do(t, s.request(t, http.MethodGet, path, nil))
		expect(t, path, body, want)
		expect(t, "trailer of "+path, strings.Join(res.Trailer("X-Sum"), " "), "42 43")
		expect(t, "forbidden trailer of "+path, len(res.Trailer("Content-Length")), 0)
	}
}

// testBodiless checks on one connection that nothing follows the head.
func testBodiless(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		switch e.Path {
		case "/204":
			e.Status = http.StatusNoContent
		case "/304":
			e.Status = http.StatusNotModified
		}
		e.Reply.Set("content-length", "5")
		write(t, e, "hello")
	})
	for _, x := range []struct {
		method, path string
		status       int
		length       string
	}{
		{http.MethodHead, "/", http.StatusOK, "5"},
		{http.MethodGet, "/204", http.StatusNoContent, ""},
		{http.MethodGet, "/304", http.StatusNotModified, ""},
		{http.MethodGet, "/", http.StatusOK, "5"},
	} {
		res, body := s.do(t, s.request(t, x.method, x.path, nil))
		expect(t, "status", res.StatusCode, x.status)
		expect(t, "length of "+x.path, res.Header.Get("Content-Length"), x.length)
		want := ""
		if x.method == http.MethodGet && x.path == "/" {
			want = "hello"
		}
		expect(t, "body of "+x.path, body, want)
		expect(t, "sent", s.end(t).sent, int64(len(want)))
	}
}

func testShortBody(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.Reply.Set("content-length", "10")
		write(t, e, "hello")
	})
	s.breaks(t, s.request(t, http.MethodGet, "/", nil))
	expect(t, "ErrLength", errors.Is(s.end(t).err, exchange.ErrLength), true)
}

func testLongBody(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.Reply.Set("content-length", "5")
		write(t, e, "hello")
		if _, err := io.WriteString(e, "!"); !errors.Is(err, exchange.ErrLength) {
			t.Errorf("write beyond the length: %v, want ErrLength", err)
		}
	})
	_, body := s.do(t, s.request(t, http.MethodGet, "/", nil))
	expect(t, "body", body, "hello")
}

func testCommit(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.Status = http.StatusTeapot
		e.Reply.Set("x-test", "before")
		e.Reply.Set("connection", "x-test") // the engine's business
		e.Reply.Set("transfer-encoding", "gzip")
		expect(t, "committed", e.Committed(), false)
		if err := e.Flush(); err != nil {
			t.Error(err)
		}
		expect(t, "committed", e.Committed(), true)
		e.Status = http.StatusOK
		e.Reply.Set("x-test", "after")
	})
	res, _ := s.do(t, s.request(t, http.MethodGet, "/", nil))
	expect(t, "status", res.StatusCode, http.StatusTeapot)
	expect(t, "field", res.Header.Get("X-Test"), "before")
	expect(t, "invented type", res.Header.Get("Content-Type"), "")
}

func testInterim(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.Interim(http.StatusEarlyHints, exchange.Fields{{Name: "link", Value: "</a>"}, {Name: "link", Value: "</b>"}})
		e.Interim(http.StatusSwitchingProtocols, nil)
		e.Interim(http.StatusOK, nil)
		write(t, e, "hello")
		e.Interim(http.StatusEarlyHints, nil)
	})
	var got []string
	r := s.request(t, http.MethodGet, "/", nil)
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			got = append(got, http.StatusText(code)+" "+strings.Join(h["Link"], ","))
			return nil
		},
	}))
	res, body := s.do(t, r)
	expect(t, "interim replies", strings.Join(got, ";"), "Early Hints </a>,</b>")
	expect(t, "hint in the reply", res.Header.Get("Link"), "")
	expect(t, "body", body, "hello")
	if s.Dial != nil { // RFC 9110 15.2
		if rest := s.dial(t, "GET / HTTP/1.0\r\n\r\n").rest(t); strings.Contains(rest, "103") {
			t.Errorf("an HTTP/1.0 client got %q, want no 103", rest)
		}
	}
}

// testInterimTimeout hints to a client that does not read.
func testInterimTimeout(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.SetWriteTimeout(200 * time.Millisecond)
		for range 2048 {
			e.Interim(http.StatusEarlyHints, exchange.Fields{{Name: "link", Value: strings.Repeat("x", 8<<10)}})
		}
		if err := e.Flush(); err == nil {
			t.Error("a client that does not read took all")
		}
	})
	if s.Dial == nil {
		return // only a client made by hand leaves hints unread
	}
	s.dial(t, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if end := s.end(t); end.err == nil {
		t.Error("Err is nil, want the cause")
	}
}

func testContinue(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		if e.Path == "/read" {
			expect(t, "body", readAll(t, e), "hello")
		}
	})
	const head = " HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	w := s.dial(t, "POST /read"+head)
	expect(t, "interim", w.head(t)[:12], "HTTP/1.1 100")
	w.send(t, "hello")
	expect(t, "reply", w.head(t)[:12], "HTTP/1.1 200")
	// A client that was never told to continue may, or may not, send the body.
	rest := s.dial(t, "POST /ignore"+head).rest(t)
	if !strings.HasPrefix(rest, "HTTP/1.1 200") || !strings.Contains(strings.ToLower(rest), "connection: close") {
		t.Errorf("reply is %q, want 200 and a closed connection", rest)
	}
}
