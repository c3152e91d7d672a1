package exchange_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"edge/proxy/exchange"
	"edge/proxy/exchange/exchangetest"
)

func TestEngineHTTP1(t *testing.T) {
	exchangetest.Run(t, starter(false, false))
}

func TestEngineHTTP1OverTLS(t *testing.T) {
	exchangetest.Run(t, starter(true, false))
}

func TestEngineHTTP2(t *testing.T) {
	exchangetest.Run(t, starter(true, true))
}

func discard() *log.Logger { return slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) }

// newServer serves h with net/http.
func newServer(tb testing.TB, h exchange.Handler, secure, h2 bool) *httptest.Server {
	tb.Helper()
	srv := httptest.NewUnstartedServer(exchange.ToHTTP(h, nil))
	srv.Config.ErrorLog = discard()
	srv.Config.DisableGeneralOptionsHandler = true
	srv.EnableHTTP2 = h2
	if secure {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	return srv
}

func starter(secure, h2 bool) exchangetest.Start {
	return func(tb testing.TB, h exchange.Handler) *exchangetest.Server {
		tb.Helper()
		srv := newServer(tb, h, secure, h2)
		tb.Cleanup(func() {
			srv.CloseClientConnections()
			srv.Close()
		})
		s := &exchangetest.Server{URL: srv.URL, Client: srv.Client(), Sorted: true}
		addr := srv.Listener.Addr().String()
		switch {
		case h2:
		case secure:
			conf := srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			conf.NextProtos = []string{"http/1.1"}
			s.Dial = func() (net.Conn, error) { return tls.Dial("tcp", addr, conf) }
		default:
			s.Dial = func() (net.Conn, error) { return net.Dial("tcp", addr) }
		}
		return s
	}
}

func TestConnIsBuiltFromTheRequest(t *testing.T) {
	conns := make(chan *exchange.Conn, 1)
	srv := newServer(t, func(e *exchange.Exchange) { conns <- e.Conn }, true, true)
	defer srv.Close()
	if _, _, err := fetch(t, srv, http.MethodGet, "/", nil); err != nil {
		t.Fatal(err)
	}
	c := <-conns
	local := netip.MustParseAddrPort(srv.Listener.Addr().String())
	if !c.Peer.IsValid() || c.Local != local || !c.TLS || c.TLSState == nil || c.Protocol != "HTTP/2.0" {
		t.Errorf("conn is %+v", c)
	}
}

func TestConnComesFromTheServer(t *testing.T) {
	own := &exchange.Conn{Listener: "web", Protocol: "HTTP/1.1"}
	h := exchange.ToHTTP(func(e *exchange.Exchange) {
		if e.Conn != own {
			t.Errorf("conn is %+v, want the server's", e.Conn)
		}
	}, func(*http.Request) *exchange.Conn { return own })
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", http.NoBody))
}

func TestHandMadeRequestsWork(t *testing.T) {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a.example/p%2Fq?x", nil)
	if err != nil {
		t.Fatal(err)
	}
	w := record(r, func(e *exchange.Exchange) {
		if n, err := e.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("read: %d, %v, want EOF", n, err)
		}
		io.WriteString(e, e.Host+" "+e.Target+" "+e.Path)
	})
	if got, want := w.Body.String(), "a.example /p%2Fq?x /p%2Fq"; got != want {
		t.Errorf("request is %q, want %q", got, want)
	}
}

// TestImmediateHeadDoesNotBreakStreams is golang/go#40747: the backend answers
// before the Transport has looked for the end of the request's body. Without
// full duplex some replies of a thousand break.
func TestImmediateHeadDoesNotBreakStreams(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.(http.Flusher).Flush()
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "hello")
	}))
	defer backend.Close()
	client := backend.Client()
	srv := newServer(t, func(e *exchange.Exchange) {
		r, err := http.NewRequestWithContext(e.Context(), e.Method, backend.URL, io.NopCloser(e))
		if err != nil {
			t.Error(err)
			return
		}
		r.ContentLength = e.Length
		res, err := client.Do(r)
		if err != nil {
			t.Error(err)
			return
		}
		e.Detach(&responseSource{res})
	}, false, false)
	defer srv.Close()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if _, body, err := fetch(t, srv, http.MethodPost, "/", strings.NewReader("request")); err != nil || body != "hello" {
					t.Errorf("reply %q: %v", body, err)
				}
			}
		})
	}
	wg.Wait()
}

// responseSource is a client's response as a Source.
type responseSource struct{ res *http.Response }

func (s *responseSource) Read(p []byte) (int, error) { return s.res.Body.Read(p) }
func (s *responseSource) Trailer() exchange.Fields   { return nil }
func (s *responseSource) Close() error               { return s.res.Body.Close() }

// Who the client is counts only when it was verified.
func TestClientCertificateOfAConnIsAVerifiedOne(t *testing.T) {
	leaf := &x509.Certificate{Raw: []byte("leaf")}
	unverified := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	verified := &tls.ConnectionState{PeerCertificates: unverified.PeerCertificates, VerifiedChains: [][]*x509.Certificate{{leaf}}}
	for _, c := range []struct {
		state *tls.ConnectionState
		want  *x509.Certificate
	}{{nil, nil}, {new(tls.ConnectionState), nil}, {unverified, nil}, {verified, leaf}} {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.TLS = c.state
		record(r, func(e *exchange.Exchange) {
			if e.Conn.ClientCertificate != c.want {
				t.Errorf("%+v: client certificate %v, want %v", c.state, e.Conn.ClientCertificate, c.want)
			}
		})
	}
}
