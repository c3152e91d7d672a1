package proxy_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/config"
	"edge/internal/modelserver"
	"edge/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests. Nothing here takes as long unless
// it hangs.
const patience = 20 * time.Second

// names are what the test certificate covers.
var names = []string{"a.example.com", "b.example.com", "other.example.org", "unrouted.example.com", "*.models.example.com"}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "proxy test"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

func clientTLS(serverName string, protocols ...string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(certificate().Leaf)
	return &tls.Config{RootCAs: roots, ServerName: serverName, NextProtos: protocols}
}

// edge is a running proxy, with the records of what it did.
type edge struct {
	*proxy.Server
	addr    string // of listener "https"
	records chan *proxy.Record
}

// start runs a proxy on cfg; mod may change its options.
func start(tb testing.TB, cfg *config.Config, mod ...func(*proxy.Options)) *edge {
	tb.Helper()
	e := &edge{records: make(chan *proxy.Record, 10_000)}
	o := proxy.Options{
		Logger:  slog.New(slog.DiscardHandler),
		TLS:     func(string) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{certificate()}} },
		Observe: func(r *proxy.Record) { e.records <- r },
	}
	for _, m := range mod {
		m(&o)
	}
	e.Server = proxy.New(o)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := e.Shutdown(ctx); err != nil && !strings.Contains(err.Error(), "is shut down") {
			tb.Errorf("shutdown: %v", err)
		}
	})
	e.reload(tb, cfg)
	e.addr = e.Addr("https").String()
	return e
}

func (e *edge) reload(tb testing.TB, cfg *config.Config) {
	tb.Helper()
	change, err := e.Prepare(context.Background(), cfg)
	if err != nil {
		tb.Fatalf("prepare: %v", err)
	}
	change.Commit()
}

// record waits for the next record.
func (e *edge) record(tb testing.TB) *proxy.Record {
	tb.Helper()
	select {
	case r := <-e.records:
		return r
	case <-time.After(patience):
		tb.Fatal("no record")
		return nil
	}
}

// settings is a configuration: one https listener, one http, and what the
// routes want. Routes get defaults where they are silent.
func settings(pools map[string][]string, routes ...*config.Route) *config.Config {
	cfg := &config.Config{
		Listeners: map[string]*config.Listener{
			"https": {Name: "https", Address: "127.0.0.1:0", Protocols: []config.Protocol{config.H1, config.H2}},
			"http":  {Name: "http", Address: "127.0.0.1:0", Redirect: true},
		},
		Pools: map[string]*config.Pool{},
	}
	for name, urls := range pools {
		p := &config.Pool{Name: name, Balance: config.RoundRobin, Retry: config.Retry{Attempts: 2, Replay: 1 << 20}, Connect: 2 * time.Second}
		for _, u := range urls {
			p.Endpoints = append(p.Endpoints, config.Endpoint{URL: u, Weight: 1})
		}
		cfg.Pools[name] = p
	}
	for _, r := range routes {
		if r.Path == "" {
			r.Path = "/"
		}
		if r.Pool == "" {
			r.Pool = "p"
		}
		if r.Name == "" {
			r.Name = r.Pool
		}
		if r.Listeners == nil {
			r.Listeners = []string{"https"}
		}
		cfg.Routes = append(cfg.Routes, r)
	}
	return cfg
}

// onePool is a configuration that sends every path of a.example.com to urls.
func onePool(urls ...string) *config.Config {
	return settings(map[string][]string{"p": urls}, &config.Route{Hosts: []string{"a.example.com"}})
}

// startModel runs a proxy in front of one model server.
func startModel(tb testing.TB, script modelserver.Script, mod ...func(*config.Config)) (*edge, *modelserver.Server) {
	tb.Helper()
	m := modelserver.New(tb, modelserver.Options{Script: script})
	cfg := onePool(m.URL)
	for _, f := range mod {
		f(cfg)
	}
	return start(tb, cfg), m
}

// startBackend runs a proxy in front of a net/http handler.
func startBackend(tb testing.TB, h http.HandlerFunc, mod ...func(*config.Config)) *edge {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln)
	}()
	tb.Cleanup(func() {
		_ = srv.Close()
		<-served
	})
	cfg := onePool("http://" + ln.Addr().String())
	for _, f := range mod {
		f(cfg)
	}
	return start(tb, cfg)
}

// startRaw runs a proxy in front of a backend that does as serve says with each
// connection, which is closed afterwards.
func startRaw(tb testing.TB, serve func(c net.Conn, r *bufio.Reader)) *edge {
	tb.Helper()
	return start(tb, onePool(listen(tb, func(c *net.TCPConn, r *bufio.Reader) { serve(c, r) })))
}

// listen runs a backend that does as serve says with each connection, which is
// closed afterwards, and returns its URL.
func listen(tb testing.TB, serve func(c *net.TCPConn, r *bufio.Reader)) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				serve(c.(*net.TCPConn), bufio.NewReader(c))
			})
		}
	})
	tb.Cleanup(func() {
		_ = ln.Close()
		running.Wait()
	})
	return "http://" + ln.Addr().String()
}

// client speaks one protocol ("h1" or "h2") to e, whatever the URL's host is.
func (e *edge) client(tb testing.TB, protocol string) *http.Client {
	tb.Helper()
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", e.addr)
		},
		TLSClientConfig:    clientTLS(""),
		DisableCompression: true,
		Protocols:          new(http.Protocols),
	}
	t.Protocols.SetHTTP1(protocol == "h1")
	t.Protocols.SetHTTP2(protocol == "h2")
	tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// bothProtocols runs f on HTTP/1.1 and on HTTP/2.
func bothProtocols(t *testing.T, f func(t *testing.T, protocol string)) {
	t.Helper()
	for _, protocol := range []string{"h1", "h2"} {
		t.Run(protocol, func(t *testing.T) { f(t, protocol) })
	}
}

func request(tb testing.TB, method, url, body string) *http.Request {
	tb.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, url, r)
	if err != nil {
		tb.Fatal(err)
	}
	return req
}

func do(tb testing.TB, c *http.Client, req *http.Request) (*http.Response, string) {
	tb.Helper()
	resp, err := c.Do(req)
	if err != nil {
		tb.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("%s %s: read body: %v", req.Method, req.URL, err)
	}
	return resp, string(body)
}

// echo does req and returns what the model server saw of it.
func echo(tb testing.TB, c *http.Client, req *http.Request) *modelserver.Echo {
	tb.Helper()
	resp, body := do(tb, c, req)
	var seen modelserver.Echo
	if err := json.Unmarshal([]byte(body), &seen); err != nil || resp.StatusCode != http.StatusOK {
		tb.Fatalf("%s %s: got %d %s", req.Method, req.URL, resp.StatusCode, body)
	}
	return &seen
}

// raw is a TLS connection on which a test writes HTTP/1.1 by hand.
type raw struct {
	*tls.Conn
	r *bufio.Reader
}

func (e *edge) raw(tb testing.TB) *raw {
	tb.Helper()
	c, err := tls.Dial("tcp", e.addr, clientTLS("a.example.com", "http/1.1"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &raw{c, bufio.NewReader(c)}
}

func (r *raw) send(tb testing.TB, s string) {
	tb.Helper()
	if _, err := io.WriteString(r, s); err != nil {
		tb.Fatal(err)
	}
}

// response reads one response whole.
func (r *raw) response(tb testing.TB, method string) (*http.Response, string) {
	tb.Helper()
	resp, err := http.ReadResponse(r.r, &http.Request{Method: method})
	if err != nil {
		tb.Fatalf("read response: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("read body: %v", err)
	}
	return resp, string(body)
}

// closed fails unless the server ends the connection with nothing more on it.
func (r *raw) closed(tb testing.TB) {
	tb.Helper()
	rest, err := io.ReadAll(r.r)
	if len(rest) > 0 {
		tb.Errorf("the connection went on: %q, %v", rest, err)
	}
	_ = r.Close()
}

func loopback() []config.Prefix { return []config.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }
