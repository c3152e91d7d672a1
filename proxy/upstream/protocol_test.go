package upstream

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/proxy/exchange"
)

// protocols are what a pool may speak, and the scheme of its endpoints.
var protocols = []struct {
	name   config.PoolProtocol
	scheme string
	proto  string // as net/http calls it
}{
	{"", "http", "HTTP/1.1"},
	{config.PoolH1, "http", "HTTP/1.1"},
	{config.PoolH1, "https", "HTTP/1.1"},
	{config.PoolH2, "https", "HTTP/2.0"},
	{config.PoolH2C, "http", "HTTP/2.0"},
}

// serveAll starts a server that speaks everything that the scheme allows, and
// describes a pool of it.
func serveAll(t *testing.T, scheme string, protocol config.PoolProtocol, h http.HandlerFunc) (*httptest.Server, *config.Pool) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.EnableHTTP2 = true
	if scheme == "https" {
		s.Config.Protocols.SetHTTP2(true)
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	c := poolOf(s.URL)
	c.Protocol = protocol
	if scheme == "https" {
		c.CA = authorityOf(t, s)
	}
	return s, c
}

// authorityOf writes the CA file of an HTTPS server.
func authorityOf(t *testing.T, s *httptest.Server) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPoolSpeaksItsProtocol(t *testing.T) {
	for _, tc := range protocols {
		t.Run(string(tc.name)+" to "+tc.scheme, func(t *testing.T) {
			_, c := serveAll(t, tc.scheme, tc.name, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				w.Header().Set("Trailer", "x-sum")
				w.WriteHeader(http.StatusCreated)
				io.WriteString(w, strings.Join([]string{r.Proto, r.Method, r.RequestURI, r.Host, string(b)}, " "))
				w.Header().Set("x-sum", "1")
			})
			p := open(t, c)
			for range 3 {
				resp := do(t, p, post("prompt"))
				if got, want := text(t, resp), tc.proto+" POST /v1/chat api.example.com prompt"; got != want || resp.Status != 201 {
					t.Errorf("%d %q, want 201 %q", resp.Status, got, want)
				}
				if resp.Trailer().Get("x-sum") != "1" {
					t.Errorf("trailer %v, want x-sum: 1", resp.Trailer())
				}
			}
		})
	}
}

func TestHealthIsCheckedByTheProtocolOfThePool(t *testing.T) {
	for _, tc := range protocols {
		t.Run(string(tc.name)+" to "+tc.scheme, func(t *testing.T) {
			checked := make(chan string, 8)
			_, c := serveAll(t, tc.scheme, tc.name, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusServiceUnavailable)
				select {
				case checked <- r.Proto + " " + r.UserAgent():
				default:
				}
			})
			c.Health = &config.Health{Path: "/health", Interval: 10 * time.Millisecond, Timeout: patience, Rise: 1, Fall: 1}
			p := open(t, c)
			if got, want := within(t, patience, "check", checked), tc.proto+" edge-health-check"; got != want {
				t.Errorf("check by %q, want %q", got, want)
			}
			await(t, patience, "verdict", func() bool { return !p.endpoints[0].usable() })
			if got := p.endpoints[0].status().LastError; got != "status 503" {
				t.Errorf("last error %q, want status 503", got)
			}
		})
	}
}

func TestBadRequestIsNotSentByAnyProtocol(t *testing.T) {
	for _, tc := range protocols {
		c := poolOf(strings.Replace(refused(t), "http", tc.scheme, 1)) // would be a DialError
		c.Protocol = tc.name
		p := open(t, c)
		for name, req := range badRequests() {
			if _, err := p.Do(t.Context(), req); !errors.Is(err, ErrBadRequest) {
				t.Errorf("%s to %s: %s: %v, want ErrBadRequest", tc.name, tc.scheme, name, err)
			}
		}
		if n := p.endpoints[0].inflight.Load(); n != 0 {
			t.Errorf("inflight %d after refused requests, want 0", n)
		}
	}
}

// What the replies of HTTP/1.1 pools are tested for one by one, in one stream.
func TestStreamsOfEveryProtocol(t *testing.T) {
	for _, tc := range protocols {
		t.Run(string(tc.name)+" to "+tc.scheme, func(t *testing.T) {
			left := make(chan struct{}, 3)
			_, c := serveAll(t, tc.scheme, tc.name, func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).EnableFullDuplex()
				w.(http.Flusher).Flush()
				buf := make([]byte, 10)
				for {
					n, err := r.Body.Read(buf)
					w.Write(buf[:n])
					w.(http.Flusher).Flush()
					if err != nil && r.Method == http.MethodPost {
						break
					}
					if err != nil {
						<-r.Context().Done()
						break
					}
				}
				left <- struct{}{}
			})
			p := open(t, c)
			buf := make([]byte, 10)

			pr, pw := io.Pipe()
			req := post("")
			req.Length, req.Body = -1, pr
			resp := do(t, p, req)
			for _, word := range []string{"ping", "pong"} {
				io.WriteString(pw, word)
				if n, err := resp.Read(buf); string(buf[:n]) != word {
					t.Fatalf("echo %q, %v; want %q", buf[:n], err, word)
				}
			}
			pw.Close()
			if got := text(t, resp); got != "" {
				t.Errorf("%q after the end of the upload, want the end", got)
			}
			within(t, patience, "end", left)

			resp = do(t, p, get("/"))
			resp.Close()
			within(t, prompt, "endpoint sees the reply closed", left)

			req = get("/")
			req.Canceler = new(exchange.Canceler)
			resp = do(t, p, req)
			gone := errors.New("gone")
			req.Canceler.Cancel(gone)
			if _, err := resp.Read(buf); !errors.Is(err, gone) {
				t.Errorf("Read of a cancelled reply: %v, want %v", err, gone)
			}
			within(t, prompt, "endpoint sees the client leave", left)
		})
	}
}

// openConn counts connections that are not closed.
type openConn struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *openConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

func TestCloseClosesIdleConnectionsOfEveryProtocol(t *testing.T) {
	for _, tc := range protocols {
		t.Run(string(tc.name)+" to "+tc.scheme, func(t *testing.T) {
			next := make(chan struct{})
			_, c := serveAll(t, tc.scheme, tc.name, func(w http.ResponseWriter, r *http.Request) {
				w.(http.Flusher).Flush()
				if r.URL.Path == "/slow" {
					<-next
				}
				io.WriteString(w, "end")
			})
			var live atomic.Int32
			r := NewRegistry(Options{Logger: slog.New(slog.DiscardHandler), Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, address)
				if err == nil {
					live.Add(1)
					nc = &openConn{Conn: nc, open: &live}
				}
				return nc, err
			}})
			defer r.Close()
			set := prepare(t, r, c)
			p := set.Pool(c.Name)
			text(t, do(t, p, get("/")))
			if n := live.Load(); n != 1 {
				t.Errorf("%d connections after a request, want 1", n)
			}
			slow := do(t, p, get("/slow"))
			set.Close()
			close(next)
			if got := text(t, slow); got != "end" {
				t.Errorf("running reply %q, want end", got)
			}
			eventually(t, "connections closed with the Set", func() bool { return live.Load() == 0 })
			text(t, do(t, p, get("/"))) // of a request that began before a reload
			eventually(t, "connection of a late request closed", func() bool { return live.Load() == 0 })
		})
	}
}

func TestConnectionsAreSharedByProtocolAndName(t *testing.T) {
	r := registry(t)
	describe := func(name string, change func(c *config.Pool)) *config.Pool {
		c := poolOf("https://gpu-1:443")
		c.Name = name
		change(c)
		return c
	}
	set := prepare(t, r,
		describe("plain", func(*config.Pool) {}),
		describe("h1", func(c *config.Pool) { c.Protocol = config.PoolH1 }),
		describe("same name", func(c *config.Pool) { c.ServerName = "gpu-1" }),
		describe("h2", func(c *config.Pool) { c.Protocol = config.PoolH2 }),
		describe("other name", func(c *config.Pool) { c.ServerName = "gpu.internal" }),
	)
	defer set.Close()
	of := func(pool string) *backend { return set.Pool(pool).endpoints[0].backend }
	if of("plain") != of("h1") || of("plain") != of("same name") {
		t.Error("equal pools have connections of their own")
	}
	if of("plain") == of("h2") || of("plain") == of("other name") || len(r.backends) != 3 {
		t.Errorf("%d backends, want 3: protocols and names do not share connections", len(r.backends))
	}
	plain := poolOf("http://gpu-1:80")
	plain.ServerName = "ignored"
	other := prepare(t, r, plain)
	defer other.Close()
	if key := other.Pool("test").endpoints[0].backend.key; key.serverName != "" {
		t.Errorf("an http endpoint has the server name %q", key.serverName)
	}
}

func TestServerNameIsAskedForAndVerified(t *testing.T) {
	var asked atomic.Value
	s, c := serveAll(t, "https", config.PoolH1, func(http.ResponseWriter, *http.Request) {})
	s.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		asked.Store(hello.ServerName)
		return nil, nil
	}
	for _, tc := range []struct {
		name, sni string
		good      bool
	}{{"", "", true}, {"example.com", "example.com", true}, {"127.0.0.1", "", true}, {"other.test", "other.test", false}} {
		c.ServerName = tc.name
		resp, err := open(t, c).Do(t.Context(), get("/"))
		if err == nil {
			text(t, resp)
		}
		_, isDial := errors.AsType[*DialError](err)
		_, isTLS := errors.AsType[*tls.CertificateVerificationError](err)
		if refused := isDial && isTLS; tc.good != (err == nil) || tc.good == refused {
			t.Errorf("server name %q: error %v, want one: %v", tc.name, err, !tc.good)
		}
		if asked.Load() != tc.sni {
			t.Errorf("server name %q: SNI %q, want %q", tc.name, asked.Load(), tc.sni)
		}
	}
}

func TestServerWithoutHTTP2IsADialError(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("request arrived") }))
	defer s.Close()
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	c := poolOf(s.URL)
	c.Protocol, c.CA = config.PoolH2, authorityOf(t, s)
	_, err := open(t, c).Do(t.Context(), get("/"))
	if _, ok := errors.AsType[*DialError](err); !ok {
		t.Errorf("error %v, want a DialError", err)
	}
}

func TestProtocolFitsTheScheme(t *testing.T) {
	r := registry(t)
	h2, h2c := poolOf("http://x:1"), poolOf("https://x:1")
	h2.Name, h2.Protocol, h2c.Name, h2c.Protocol = "a", config.PoolH2, "b", config.PoolH2C
	_, err := r.Prepare(pools(h2, h2c))
	for _, want := range []string{
		"pool a: endpoint http://x:1: protocol h2 is for https (write h2c for http)",
		"pool b: endpoint https://x:1: protocol h2c is for http (write h2 for https)",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
}

// A server that shuts down refuses the streams it has not begun; they go to
// another, whatever their method.
func TestShutdownOfAnHTTP2ServerFailsNoRequest(t *testing.T) {
	handler := func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}
	a, c := serveAll(t, "http", config.PoolH2C, handler)
	b, _ := serveAll(t, "http", config.PoolH2C, handler)
	c.Endpoints = append(c.Endpoints, config.Endpoint{URL: b.URL, Weight: 1})
	c.Retry.Attempts = 2
	p := open(t, c)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := p.Do(context.Background(), post("prompt"))
				if err != nil {
					t.Errorf("request: %v", err)
					return
				}
				if got, err := io.ReadAll(resp); string(got) != "prompt" {
					t.Errorf("echo %q, %v; want prompt", got, err)
				}
				resp.Close()
			}
		})
	}
	await(t, patience, "load", func() bool { return p.endpoints[0].requests.Load() > 100 })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := a.Config.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	before := p.endpoints[1].requests.Load()
	await(t, patience, "load on the other", func() bool { return p.endpoints[1].requests.Load() > before+100 })
	close(stop)
	wg.Wait()
}
