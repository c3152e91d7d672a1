package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"edge/config"
	"edge/internal/modelserver"
	"edge/proxy"
)

func Example() {
	s := proxy.New(proxy.Options{Logger: slog.New(slog.DiscardHandler)})
	change, err := s.Prepare(context.Background(), &config.Config{
		Listeners: map[string]*config.Listener{"http": {Name: "http", Address: "127.0.0.1:0", Redirect: true}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	change.Commit()
	fmt.Println(s.Addr("http") != nil, s.Status().Active)
	fmt.Println(s.Shutdown(context.Background()))
	// Output:
	// true 0
	// <nil>
}

func TestRequestIsRoutedByHostAndPath(t *testing.T) {
	one, two := modelserver.New(t, modelserver.Options{Name: "one"}), modelserver.New(t, modelserver.Options{Name: "two"})
	e := start(t, settings(map[string][]string{"one": {one.URL}, "two": {two.URL}},
		&config.Route{Hosts: []string{"a.example.com"}, Pool: "one"},
		&config.Route{Hosts: []string{"a.example.com"}, Path: "/echo/two", Pool: "two"},
		&config.Route{Hosts: []string{"*.models.example.com"}, Pool: "two"},
	))
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		c := e.client(t, protocol)
		for url, want := range map[string]string{
			"https://a.example.com/echo":             "one",
			"https://A.Example.com./echo":            "one",
			"https://a.example.com:8443/echo":        "one",
			"https://a.example.com/echo/two":         "two",
			"https://a.example.com/echo/two/x?y=1":   "two",
			"https://a.example.com/echo/twofold":     "one",
			"https://llama.models.example.com/echo/": "two",
		} {
			if got := echo(t, c, request(t, "GET", url, "")).Server; got != want {
				t.Errorf("%s: got server %s, want %s", url, got, want)
			}
			if r := e.record(t); r.Route != want || r.Pool != want || r.Endpoint == "" || r.Attempts != 1 || r.Status != 200 || r.Reason != "" {
				t.Errorf("%s: got record %+v", url, r)
			}
		}
	})
}

func TestUnroutedIs404InTheCallersDialect(t *testing.T) {
	e, m := startModel(t, modelserver.Script{}, func(cfg *config.Config) { cfg.Routes[0].Path = "/only" })
	c := e.client(t, "h2")
	for url, want := range map[string]string{
		"https://unrouted.example.com/":                  `"reason":"no_route"`,
		"https://a.example.com/v1/chat/completions":      `{"error":{"message":"nothing is served at this host and path","type":"invalid_request_error","param":null,"code":"no_route"}}`,
		"https://a.example.com/v1/messages":              `"type":"not_found_error"`,
		"https://unrouted.example.com/api/chat":          `{"error":"nothing is served at this host and path"}`,
		"https://unrouted.example.com/only/but/not/here": `"status":404`,
	} {
		resp, body := do(t, c, request(t, "GET", url, ""))
		if resp.StatusCode != http.StatusNotFound || !strings.Contains(body, want) {
			t.Errorf("%s: got %d %s, want 404 with %s", url, resp.StatusCode, body, want)
		}
		r := e.record(t)
		if r.Status != http.StatusNotFound || r.Reason != proxy.NoRoute || r.Attempts != 0 {
			t.Errorf("%s: got record %+v", url, r)
		}
		if id := resp.Header.Get("X-Request-Id"); id == "" || id != r.RequestID {
			t.Errorf("%s: got request id %q, recorded %q", url, id, r.RequestID)
		}
	}
	if m.Count() != 0 {
		t.Errorf("%d requests reached the backend, want none", m.Count())
	}
}

func TestPathThatMeansAnotherRouteDecodedIsRefused(t *testing.T) {
	open, closed := modelserver.New(t, modelserver.Options{Name: "open"}), modelserver.New(t, modelserver.Options{Name: "closed"})
	e := start(t, settings(map[string][]string{"open": {open.URL}, "closed": {closed.URL}},
		&config.Route{Hosts: []string{"a.example.com"}, Pool: "open"},
		&config.Route{Hosts: []string{"a.example.com"}, Path: "/echo/closed", Pool: "closed"},
	))
	for _, target := range []string{
		"/echo/../echo/closed", "/echo/%2e%2e/x", "/echo/x/%2E./closed", "/echo%2Fclosed", "/echo/clo%73ed", "/echo//closed",
		"//echo/closed", `/echo\closed`, "/echo/..;/closed", "/echo/%00", "/echo/./closed",
	} {
		c := e.raw(t)
		c.send(t, "GET "+target+" HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
		if resp, body := c.response(t, "GET"); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: got %d %s, want 400", target, resp.StatusCode, body)
		}
	}
	for _, target := range []string{"/echo/org%2Fname", "/echo/a%20b?x=%2e%2e/;y", "/echo/closed/%2f"} {
		c := e.raw(t)
		c.send(t, "GET "+target+" HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
		resp, body := c.response(t, "GET")
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"target":"`+target+`"`) {
			t.Errorf("%s: got %d %s, want it forwarded as it came", target, resp.StatusCode, body)
		}
	}
}

func TestHostMustBeTheConnections(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	cfg := settings(map[string][]string{"p": {m.URL}},
		&config.Route{Hosts: []string{"a.example.com", "b.example.com", "other.example.org"}})
	e := start(t, cfg, func(o *proxy.Options) {
		o.Admits = func(_, _, serverName, host string) bool {
			return serverName == host || strings.HasSuffix(serverName, ".example.com") && strings.HasSuffix(host, ".example.com") || serverName == "" && host == "b.example.com"
		}
	})
	for _, c := range []struct {
		serverName, host string
		want             int
	}{
		{"a.example.com", "a.example.com", 200},
		{"a.example.com", "A.EXAMPLE.COM.", 200},
		{"a.example.com", "b.example.com", 200},
		{"a.example.com", "b.example.com:443", 200},
		{"a.example.com", "other.example.org", 421},
		{"other.example.org", "a.example.com", 421},
		{"unrouted.example.com", "a.example.com", 421}, // its certificate is the same, but it is not served here
		{"a.example.com", "unrouted.example.com", 404},
		{"a.example.com", "10.0.0.1", 404},
		{"", "b.example.com", 200},
		{"", "a.example.com", 421},
	} {
		bothProtocols(t, func(t *testing.T, protocol string) {
			t.Helper()
			client := e.client(t, protocol)
			tr := client.Transport.(*http.Transport)
			tr.TLSClientConfig.ServerName = c.serverName
			if c.serverName == "" { // an IP address is never sent as SNI (RFC 6066 section 3)
				tr.TLSClientConfig.ServerName = "127.0.0.1"
				tr.TLSClientConfig.InsecureSkipVerify = true
			}
			req := request(t, "GET", "https://"+c.host+"/echo", "")
			resp, body := do(t, client, req)
			if resp.StatusCode != c.want {
				t.Errorf("SNI %q, host %q: got %d %s, want %d", c.serverName, c.host, resp.StatusCode, body, c.want)
			}
			if r := e.record(t); r.ServerName != c.serverName || r.Status != c.want {
				t.Errorf("SNI %q, host %q: got record %+v", c.serverName, c.host, r)
			}
		})
	}
}

func TestCoalescedRequestOnOneHTTP2ConnectionIsMisdirected(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	e := start(t, settings(map[string][]string{"p": {m.URL}}, &config.Route{Hosts: []string{"a.example.com", "b.example.com"}}))
	c := e.h2(t)
	for i, want := range []struct{ host, status string }{{"a.example.com", "200"}, {"b.example.com", "421"}, {"a.example.com", "200"}} {
		c.headers(t, uint32(2*i+1), true, ":method", "GET", ":scheme", "https", ":path", "/echo", ":authority", want.host)
		if got := c.status(t, uint32(2*i+1)); got != want.status {
			t.Errorf("request %d for %s: got %s, want %s", i, want.host, got, want.status)
		}
	}
}

// TestResumptionDoesNotOpenAnotherPolicy: a ticket of a lenient host is used
// towards a strict one. The handshake fixes what the connection is for by its
// own server name, so the resumed session is judged anew.
func TestResumptionDoesNotOpenAnotherPolicy(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	base := &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"http/1.1"}}
	strict := base.Clone()
	strict.MinVersion = tls.VersionTLS13
	base.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if h.ServerName == "b.example.com" {
			return strict, nil
		}
		return nil, nil
	}
	e := start(t, settings(map[string][]string{"p": {m.URL}}, &config.Route{Hosts: []string{"a.example.com", "b.example.com"}}),
		func(o *proxy.Options) { o.TLS = func(string) *tls.Config { return base } })
	sessions := tls.NewLRUClientSessionCache(8)
	get := func(serverName, host string) (status int, resumed bool) {
		cfg := clientTLS(serverName, "http/1.1")
		cfg.MaxVersion, cfg.ClientSessionCache = tls.VersionTLS12, oneSession{sessions}
		conn, err := tls.Dial("tcp", e.addr, cfg)
		if err != nil {
			return 0, false
		}
		defer conn.Close()
		r := &raw{conn, nil}
		r.send(t, "GET /echo HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(newReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, conn.ConnectionState().DidResume
	}
	if status, _ := get("a.example.com", "a.example.com"); status != 200 {
		t.Fatalf("first: got %d", status)
	}
	if status, resumed := get("a.example.com", "a.example.com"); status != 200 || !resumed {
		t.Fatalf("second: got %d, resumed %v, want a resumed 200", status, resumed)
	}
	if status, resumed := get("a.example.com", "b.example.com"); status != http.StatusMisdirectedRequest || !resumed {
		t.Errorf("resumed for a, asked for b: got %d, resumed %v, want 421", status, resumed)
	}
	if status, _ := get("b.example.com", "b.example.com"); status != 0 {
		t.Errorf("TLS 1.2 ticket of a towards b: got %d, want a failed handshake", status)
	}
}

// TestPanicIs500AndLogged panics where foreign code runs while a request is
// judged.
func TestPanicIs500AndLogged(t *testing.T) {
	var log strings.Builder
	m := modelserver.New(t, modelserver.Options{})
	e := start(t, settings(map[string][]string{"p": {m.URL}}, &config.Route{Hosts: []string{"a.example.com", "b.example.com"}}),
		func(o *proxy.Options) {
			o.Admits = func(_, _, _, _ string) bool { panic("on purpose") }
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
	c := e.client(t, "h2")
	c.Transport.(*http.Transport).TLSClientConfig.ServerName = "a.example.com"
	resp, body := do(t, c, request(t, "POST", "https://b.example.com/v1/chat/completions", "{}"))
	if resp.StatusCode != http.StatusInternalServerError || !strings.Contains(body, `"code":"internal"`) || strings.Contains(body, "on purpose") {
		t.Errorf("got %d %s, want a 500 that tells nothing", resp.StatusCode, body)
	}
	if r := e.record(t); r.Reason != proxy.Internal || r.Err == nil {
		t.Errorf("got record %+v", r)
	}
	if err := e.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := log.String(); !strings.Contains(got, "on purpose") || !strings.Contains(got, "conn.go") {
		t.Errorf("got log %q, want the panic and its stack", got)
	}
	if m.Count() != 0 {
		t.Errorf("%d requests reached the backend", m.Count())
	}
}
