package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"edge/config"
	"edge/internal/modelserver"
	"edge/proxy"
)

func TestHopByHopFieldsStayOnTheirHop(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	c := e.raw(t)
	c.send(t, "GET /echo?a=1;b=2&c=%zz HTTP/1.1\r\nHost: a.example.com:8443\r\nConnection: keep-alive, X-Private, Te\r\nKeep-Alive: timeout=5\r\n"+
		"X-Private: 1\r\nTE: gzip\r\nProxy-Connection: x\r\nProxy-Authorization: secret\r\nTrailer: X-T\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"+
		"Expect: 100-continue\r\nX-Dup: 1\r\nX-Dup: 2\r\nAuthorization: Bearer key\r\nAccept: */*\r\n\r\n")
	resp, body := c.response(t, "GET")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("got %d %s", resp.StatusCode, body)
	}
	for _, gone := range []string{"X-Private", "Keep-Alive", `"Te"`, "Proxy-", "Trailer", "Upgrade", "Http2", "Expect", "Connection"} {
		if strings.Contains(body, gone) {
			t.Errorf("%s reached the backend: %s", gone, body)
		}
	}
	for _, kept := range []string{
		`["X-Dup","1"],["X-Dup","2"]`, `["Authorization","Bearer key"]`, `"target":"/echo?a=1;b=2\u0026c=%zz"`, `"host":"a.example.com:8443"`,
	} {
		if !strings.Contains(body, kept) {
			t.Errorf("%s did not reach the backend: %s", kept, body)
		}
	}
}

func TestForwardedFieldsAreTheTruth(t *testing.T) {
	spoof := map[string]string{
		"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil", "X-Forwarded-Port": "1",
		"X-Forwarded-Prefix": "/x", "Forwarded": "for=6.6.6.6", "X-Real-Ip": "6.6.6.6", "X-Request-Id": "mine",
		"X_Forwarded_For": "6.6.6.6", "X_Real_Ip": "6.6.6.6", "X_request_id": "mine", "Content_Length": "5", "Transfer_Encoding": "chunked",
		"X_Custom": "kept",
	}
	send := func(t *testing.T, protocol string, trusted bool, fields map[string]string) (*modelserver.Echo, *proxy.Record, *edge) {
		t.Helper()
		e, _ := startModel(t, modelserver.Script{}, func(cfg *config.Config) {
			if trusted {
				cfg.Listeners["https"].Trusted = loopback()
			}
		})
		req := request(t, "GET", "https://a.example.com/echo", "")
		for name, value := range fields {
			req.Header[name] = []string{value}
		}
		return echo(t, e.client(t, protocol), req), e.record(t), e
	}
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		t.Run("from a stranger", func(t *testing.T) {
			seen, r, _ := send(t, protocol, false, spoof)
			for name, want := range map[string][]string{
				"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"a.example.com"},
				"X-Forwarded-Port": nil, "X-Forwarded-Prefix": nil, "Forwarded": nil, "X-Real-Ip": nil, "X-Request-Id": {r.RequestID},
			} {
				if got := seen.Header(name); !slices.Equal(got, want) {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			for _, h := range seen.Headers {
				if strings.Contains(h[0], "_") && !strings.EqualFold(h[0], "X_Custom") {
					t.Errorf("%s: %s reached the backend under an alias", h[0], h[1])
				}
			}
			if r.RequestID == "mine" || len(r.RequestID) < 20 {
				t.Errorf("got request id %q, want a fresh one", r.RequestID)
			}
		})
		t.Run("from a trusted proxy", func(t *testing.T) {
			seen, r, _ := send(t, protocol, true, spoof)
			for name, want := range map[string][]string{
				"X-Forwarded-For": {"6.6.6.6, 127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"evil"},
				"Forwarded": {"for=6.6.6.6, for=127.0.0.1;proto=https"}, "X-Request-Id": {"mine"},
			} {
				if got := seen.Header(name); !slices.Equal(got, want) {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			if r.RequestID != "mine" {
				t.Errorf("got request id %q, want the proxy's", r.RequestID)
			}
		})
		t.Run("from a trusted proxy that says nothing", func(t *testing.T) {
			seen, _, _ := send(t, protocol, true, map[string]string{"X-Request-Id": "no spaces allowed"})
			for name, want := range map[string][]string{
				"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"a.example.com"}, "Forwarded": nil,
			} {
				if got := seen.Header(name); !slices.Equal(got, want) {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			if id := seen.Header("X-Request-Id"); len(id) != 1 || strings.Contains(id[0], " ") {
				t.Errorf("got request id %q, want a fresh one", id)
			}
		})
	})
}

// TestSmuggledRequestIsNeverSeen sends what two servers may read differently,
// with a second request inside, on HTTP/1.1. Whatever the answer is, nothing
// may reach the backend as a request of its own, nor be answered.
func TestSmuggledRequestIsNeverSeen(t *testing.T) {
	const second = "GET /echo/smuggled HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
	head := "POST /echo HTTP/1.1\r\nHost: a.example.com\r\n"
	for name, req := range map[string]string{
		"length and chunked":       head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second,
		"chunked and length":       head + "Transfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\n" + second,
		"chunked twice":            head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second,
		"chunked of identity":      head + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + second,
		"chunked with a tab":       head + "Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + second,
		"chunked with a name mark": head + "Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + second,
		"xchunked":                 head + "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + second,
		"of a version to come":     strings.Replace(head, "/1.1", "/1.2", 1) + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second,
		"chunked in HTTP/1.0":      strings.Replace(head, "/1.1", "/1.0", 1) + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + second,
		"two lengths":              head + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + second,
		"length with a sign":       head + "Content-Length: +0\r\n\r\n" + second,
		"length list":              head + "Content-Length: 0, 0\r\n\r\n" + second,
		"folded field":             head + "X: y\r\n Content-Length: 5\r\nContent-Length: 0\r\nTransfer-Encoding:\r\n chunked\r\n\r\n" + second,
		"bad chunk size":           head + "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + second,
		"two hosts":                "GET /echo HTTP/1.1\r\nHost: a.example.com\r\nHost: b.example.com\r\n\r\n" + second,
		"no host":                  "GET /echo HTTP/1.1\r\n\r\n" + second,
		"host with a path":         "GET /echo HTTP/1.1\r\nHost: a.example.com/x\r\n\r\n" + second,
		"host with userinfo":       "GET /echo HTTP/1.1\r\nHost: x@a.example.com\r\n\r\n" + second,
	} {
		t.Run(name, func(t *testing.T) {
			e, m := startModel(t, modelserver.Script{})
			c := e.raw(t)
			c.send(t, req)
			resp, body := c.response(t, "POST")
			if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusNotImplemented {
				t.Errorf("got %d %s", resp.StatusCode, body)
			}
			c.closed(t)
			for _, r := range m.Requests() {
				if strings.Contains(r.Target, "smuggled") {
					t.Errorf("the backend saw %s", r.Target)
				}
			}
		})
	}
}

func TestVersionIsThatOfEachRequest(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	c := e.raw(t)
	const second = "GET /echo/smuggled HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
	c.send(t, "GET /echo HTTP/1.1\r\nHost: a.example.com\r\n\r\n"+
		"POST /echo HTTP/1.0\r\nHost: a.example.com\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"+second)
	for _, want := range []string{"HTTP/1.1", "HTTP/1.0"} {
		if resp, body := c.response(t, "GET"); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: got %d %s", want, resp.StatusCode, body)
		}
		if r := e.record(t); r.Protocol != want {
			t.Errorf("got protocol %s in the record, want %s", r.Protocol, want)
		}
	}
	c.closed(t)
}

func TestOddRequestsOnHTTP2AreRefused(t *testing.T) {
	base := []string{":method", "POST", ":scheme", "https", ":path", "/echo", ":authority", "a.example.com"}
	with := func(fields ...string) []string { return append(slices.Clone(base), fields...) }
	path := func(p string) []string {
		f := slices.Clone(base)
		f[1], f[5] = "GET", p
		return f
	}
	for name, c := range map[string]struct {
		fields []string
		want   string
	}{
		"as usual":                      {with("content-length", "0"), "200"},
		"host beside authority":         {with("host", "a.example.com"), "200"},
		"another host":                  {with("host", "b.example.com"), "400"},
		"two hosts":                     {with("host", "a.example.com", "host", "a.example.com"), "400"},
		"length without a body":         {with("content-length", "5"), "400"},
		"malformed length":              {with("content-length", "0x0"), "400"},
		"empty length":                  {with("content-length", ""), "400"},
		"signed length":                 {with("content-length", "+0"), "400"},
		"lengths that differ":           {with("content-length", "0", "content-length", "5"), "400"},
		"repeated length":               {with("content-length", "0", "content-length", "0"), "400"},
		"space in the path":             {path("/echo /x"), "400"},
		"fragment in the path":          {path("/echo#x"), "400"},
		"asterisk":                      {path("*"), "400"},
		"transfer-encoding":             {with("transfer-encoding", "chunked"), "400"},
		"connection":                    {with("connection", "x-a"), "400"},
		"trace":                         {append([]string{":method", "TRACE"}, base[2:]...), "405"},
		"connect":                       {[]string{":method", "CONNECT", ":authority", "a.example.com:443"}, "405"},
		"authority with userinfo":       {[]string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "x@a.example.com"}, "400"},
		"no authority":                  {[]string{":method", "GET", ":scheme", "https", ":path", "/"}, "400"},
		"upgrade, which HTTP/2 has not": {[]string{":method", "GET", ":scheme", "https", ":path", "/echo", ":authority", "a.example.com", "upgrade", "websocket"}, "400"},
	} {
		t.Run(name, func(t *testing.T) {
			e, m := startModel(t, modelserver.Script{})
			h2 := e.h2(t)
			h2.headers(t, 1, true, c.fields...)
			got := h2.status(t, 1)
			if got != c.want && (c.want == "200" || got != "reset") { // refusing by reset is as good
				t.Errorf("got %s, want %s", got, c.want)
			}
			if n := m.Count(); c.want != "200" && n != 0 {
				t.Errorf("%d requests reached the backend, want none", n)
			}
		})
	}
}

func TestTraceAndConnectAreNotServed(t *testing.T) {
	e, m := startModel(t, modelserver.Script{})
	for _, head := range []string{"TRACE /echo HTTP/1.1\r\nHost: a.example.com", "CONNECT a.example.com:443 HTTP/1.1\r\nHost: a.example.com:443"} {
		c := e.raw(t)
		c.send(t, head+"\r\n\r\n")
		resp, body := c.response(t, "GET")
		if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") == "" {
			t.Errorf("%.7s: got %d %s, Allow %q, want 405", head, resp.StatusCode, body, resp.Header.Get("Allow"))
		}
		c.closed(t) // what follows a CONNECT may be meant for the tunnel
	}
	if m.Count() != 0 {
		t.Errorf("%d requests reached the backend", m.Count())
	}
}

func TestAbsoluteTargetIsForwardedInOriginForm(t *testing.T) {
	e, _ := startModel(t, modelserver.Script{})
	c := e.raw(t)
	c.send(t, "GET https://a.example.com/echo?x=1;y HTTP/1.1\r\nHost: ignored.example.com\r\n\r\n")
	resp, body := c.response(t, "GET")
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"target":"/echo?x=1;y"`) || !strings.Contains(body, `"host":"a.example.com"`) {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
}

func TestContinueIsAskedOfTheBackend(t *testing.T) {
	e, m := startModel(t, modelserver.Script{})
	c := e.raw(t)
	c.send(t, "POST /echo HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if line, err := c.r.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q, %v, want 100", line, err)
	}
	if _, err := c.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	c.send(t, "body")
	if resp, body := c.response(t, "POST"); resp.StatusCode != http.StatusOK || !strings.Contains(body, `["Expect","100-continue"]`) {
		t.Errorf("got %d %s, want the backend asked", resp.StatusCode, body)
	}
	if m.Count() != 1 {
		t.Errorf("got %d requests, want 1", m.Count())
	}
}

// A backend that refuses the head spares the client the upload.
func TestBackendThatDoesNotContinueIsBelieved(t *testing.T) {
	e := startRaw(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n")
		}
	})
	c := e.raw(t)
	c.send(t, "POST / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 4000000\r\nExpect: 100-continue\r\n\r\n")
	if resp, body := c.response(t, "POST"); resp.StatusCode != http.StatusRequestEntityTooLarge || body != "no\n" {
		t.Errorf("got %d %q, want the backend's 413 and no 100 before it", resp.StatusCode, body)
	}
}

func TestTooManyFieldsAre431(t *testing.T) {
	e, m := startModel(t, modelserver.Script{}, func(cfg *config.Config) { cfg.Routes[0].Limits.Headers = 8 << 10 })
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		c := e.client(t, protocol)
		many := request(t, "GET", "https://a.example.com/echo", "")
		for i := range 250 {
			many.Header.Set(fmt.Sprintf("X-%d", i), "1")
		}
		large := request(t, "GET", "https://a.example.com/echo", "")
		large.Header.Set("X-Large", strings.Repeat("x", 9<<10))
		for name, req := range map[string]*http.Request{"many": many, "large": large} {
			resp, body := do(t, c, req)
			if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge || !strings.Contains(body, "headers_too_large") {
				t.Errorf("%s: got %d %s, want 431", name, resp.StatusCode, body)
			}
			if r := e.record(t); r.Reason != proxy.HeadersTooLarge {
				t.Errorf("%s: got record %+v", name, r)
			}
		}
	})
	c := e.raw(t)
	go func() { // the server stops reading before the end
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example.com\r\nX: "+strings.Repeat("x", 200<<10)+"\r\n\r\n")
	}()
	if resp, _ := c.response(t, "GET"); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("200 KiB: got %d, want 431", resp.StatusCode)
	}
	if m.Count() != 0 {
		t.Errorf("%d requests reached the backend", m.Count())
	}
}
