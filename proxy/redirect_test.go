package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/proxy"
)

// plain sends a request to the redirect listener.
func (e *edge) plain(tb testing.TB, req string) *http.Response {
	tb.Helper()
	c, err := net.Dial("tcp", e.Addr("http").String())
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, req)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		tb.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp
}

func TestPlaintextIsRedirected(t *testing.T) {
	e := start(t, onePool("http://127.0.0.1:1"))
	_, port, _ := net.SplitHostPort(e.addr)
	for _, c := range []struct {
		method, target, host, location string
		status                         int
	}{
		// To port 80: to 443, whatever the listener is bound to.
		{"GET", "/v1?a=b;c&d=%2F", "A.example.com", "https://a.example.com/v1?a=b;c&d=%2F", 301},
		{"HEAD", "/", "a.example.com:80", "https://a.example.com/", 301},
		{"POST", "/v1/chat/completions", "unknown.example.net", "https://unknown.example.net/v1/chat/completions", 308},
		{"GET", "/", "[::1]", "https://[::1]/", 301},
		{"GET", "http://b.example.com/x", "a.example.com:8080", "https://b.example.com/x", 301},
		// To another port: to the TLS listener's.
		{"GET", "/x", "a.example.com:8080", "https://a.example.com:" + port + "/x", 301},
		{"GET", "/", "[::1]:8080", "https://[::1]:" + port + "/", 301},
		{"GET", "/", "a.example.com/evil", "", 400},
		{"GET", "/", "a@b.example.com", "", 400},
		{"GET", "/", "", "", 400},
		{"OPTIONS", "*", "a.example.com", "", 400},
	} {
		resp := e.plain(t, c.method+" "+c.target+" HTTP/1.1\r\nHost: "+c.host+"\r\n\r\n")
		if resp.StatusCode != c.status || resp.Header.Get("Location") != c.location {
			t.Errorf("%s %s on %q: got %d %q, want %d %q", c.method, c.target, c.host, resp.StatusCode, resp.Header.Get("Location"), c.status, c.location)
		}
	}
	if r := e.record(t); r.Listener != "http" || r.Status != 301 || r.Reason != "" {
		t.Errorf("got record %+v", r)
	}
}

func TestChallengeIsAnsweredBeforeTheRedirect(t *testing.T) {
	e := start(t, onePool("http://127.0.0.1:1"), func(o *proxy.Options) {
		o.HTTP01 = func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/") {
					w.WriteHeader(http.StatusTeapot)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
	})
	if got := e.plain(t, "GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: a.example.com\r\n\r\n").StatusCode; got != http.StatusTeapot {
		t.Errorf("challenge: got %d", got)
	}
	if got := e.plain(t, "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n").StatusCode; got != http.StatusMovedPermanently {
		t.Errorf("anything else: got %d, want the redirect", got)
	}
}

func TestRedirectNeedsSomewhereToGo(t *testing.T) {
	cfg := onePool("http://127.0.0.1:1")
	cfg.Listeners = map[string]*config.Listener{"http": cfg.Listeners["http"]}
	s := proxy.New(proxy.Options{})
	change, err := s.Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	change.Commit()
	e := &edge{Server: s}
	if got := e.plain(t, "GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n").StatusCode; got != http.StatusNotFound {
		t.Errorf("got %d, want 404", got)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
