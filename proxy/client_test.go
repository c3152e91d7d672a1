package proxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"edge/config"
	"edge/internal/modelserver"
	"edge/proxy"
)

// clientCertificate is one that the test certificate has signed.
func clientCertificate(tb testing.TB, end time.Time) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: strings.Repeat("caller", 100)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, certificate().Leaf, key.Public(), certificate().PrivateKey)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// guarded is the TLS side of a listener that demands client certificates for
// a.example.com, as the policy "strict"; every other name is under "lax".
func guarded() *tls.Config {
	lax := &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"h2", "http/1.1"}}
	strict := lax.Clone()
	strict.ClientAuth, strict.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	strict.ClientCAs.AddCert(certificate().Leaf)
	return &tls.Config{
		NextProtos: lax.NextProtos,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c, mark := lax, "lax"
			if h.ServerName == "a.example.com" {
				c, mark = strict, "strict"
			}
			h.Conn.(interface{ SetPolicy(string) }).SetPolicy(mark)
			return c, nil
		},
	}
}

// startGuarded runs a proxy behind guarded, with a.example.com and
// b.example.com.
func startGuarded(t *testing.T, admits func(listener, policy, serverName, host string) bool, mod ...func(*proxy.Options)) (*edge, *modelserver.Server) {
	t.Helper()
	m := modelserver.New(t, modelserver.Options{})
	cfg := settings(map[string][]string{"p": {m.URL}},
		&config.Route{Name: "a", Hosts: []string{"a.example.com"}, TLS: config.TLS{ClientCA: "ca.pem"}},
		&config.Route{Name: "b", Hosts: []string{"b.example.com"}})
	return start(t, cfg, append(mod, func(o *proxy.Options) {
		o.TLS, o.Admits = func(string) *tls.Config { return guarded() }, admits
	})...), m
}

func (e *edge) clientWith(t *testing.T, protocol, serverName string, certs ...tls.Certificate) *http.Client {
	t.Helper()
	c := e.client(t, protocol)
	tr := c.Transport.(*http.Transport)
	tr.TLSClientConfig.ServerName, tr.TLSClientConfig.Certificates = serverName, certs
	return c
}

func TestPolicyOfTheHandshakeIsWhatEachRequestIsJudgedBy(t *testing.T) {
	type question struct{ listener, policy, serverName, host string }
	questions := make(chan question, 10)
	e, _ := startGuarded(t, func(listener, policy, serverName, host string) bool {
		questions <- question{listener, policy, serverName, host}
		return true
	})
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		for _, c := range []struct {
			client *http.Client
			want   question
		}{
			{e.clientWith(t, protocol, "b.example.com"), question{"https", "lax", "b.example.com", "b.example.com"}},
			{e.clientWith(t, protocol, "a.example.com", clientCertificate(t, time.Now().Add(time.Hour))), question{"https", "strict", "a.example.com", "b.example.com"}},
		} {
			for range 2 {
				echo(t, c.client, request(t, "GET", "https://b.example.com/echo", ""))
				if got := <-questions; got != c.want {
					t.Errorf("asked %+v, want %+v", got, c.want)
				}
			}
		}
	})
}

// Whatever is said of the policies, a route that demands a client certificate
// is not reached without one.
func TestRouteWithClientCertificatesIsNotReachedWithoutOne(t *testing.T) {
	e, m := startGuarded(t, func(_, _, _, _ string) bool { return true })
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		before := m.Count()
		c := e.clientWith(t, protocol, "b.example.com")
		resp, _ := do(t, c, request(t, "GET", "https://a.example.com/echo", ""))
		if resp.StatusCode != http.StatusMisdirectedRequest || m.Count() != before {
			t.Errorf("got %d, %d requests reached the backend", resp.StatusCode, m.Count()-before)
		}
		c = e.clientWith(t, protocol, "a.example.com", clientCertificate(t, time.Now().Add(time.Hour)))
		echo(t, c, request(t, "GET", "https://a.example.com/echo", ""))
	})
}

func TestRouteWithAMinimumVersionIsNotReachedBelowIt(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	e := start(t, settings(map[string][]string{"p": {m.URL}}, &config.Route{Hosts: []string{"a.example.com"}, TLS: config.TLS{MinVersion: tls.VersionTLS13}}))
	for version, want := range map[uint16]int{tls.VersionTLS12: http.StatusMisdirectedRequest, tls.VersionTLS13: http.StatusOK} {
		c := e.client(t, "h2")
		c.Transport.(*http.Transport).TLSClientConfig.MaxVersion = version
		if resp, _ := do(t, c, request(t, "GET", "https://a.example.com/echo", "")); resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d", tls.VersionName(version), resp.StatusCode, want)
		}
	}
}

// A connection that is older than its host's policy is given up, not only
// refused: many clients would go on sending on it.
func TestConnectionOlderThanThePolicyOfItsHostIsGivenUp(t *testing.T) {
	var old atomic.Bool
	e, m := startGuarded(t, func(_, _, serverName, host string) bool { return serverName == host && !old.Load() })
	bothProtocols(t, func(t *testing.T, protocol string) {
		t.Helper()
		old.Store(false)
		c := e.clientWith(t, protocol, "b.example.com")
		first := echo(t, c, request(t, "GET", "https://b.example.com/echo", ""))
		before := e.record(t).Peer
		other := request(t, "GET", "https://b.example.com/echo", "")
		other.Host = "a.example.com"
		resp, _ := do(t, c, other)
		if r := e.record(t); resp.StatusCode != http.StatusMisdirectedRequest || protocol == "h2" && r.Peer != before {
			t.Errorf("another host: got %d on %s, want 421 on %s", resp.StatusCode, r.Peer, before)
		}
		if protocol == "h2" { // the connection is good for its own host
			echo(t, c, request(t, "GET", "https://b.example.com/echo", ""))
			if r := e.record(t); r.Peer != before {
				t.Errorf("a 421 for another host ended the connection")
			}
		}
		old.Store(true)
		count := m.Count()
		resp, _ = do(t, c, request(t, "GET", "https://b.example.com/echo", ""))
		r := e.record(t)
		if resp.StatusCode != http.StatusMisdirectedRequest || r.Reason != proxy.Misdirected || m.Count() != count {
			t.Errorf("got %d %s, %d requests at the backend", resp.StatusCode, r.Reason, m.Count()-count)
		}
		old.Store(false)
		again := echo(t, c, request(t, "GET", "https://b.example.com/echo", ""))
		if next := e.record(t); next.Peer == r.Peer || first.Server != again.Server {
			t.Errorf("the old connection is still in use: %s", next.Peer)
		}
	})
}

func TestConnectionEndsWithTheCertificateOfItsClient(t *testing.T) {
	e, m := startGuarded(t, func(_, _, serverName, host string) bool { return serverName == host })
	end := time.Now().Add(4 * time.Second).Truncate(time.Second)
	c := e.clientWith(t, "h2", "a.example.com", clientCertificate(t, end))
	echo(t, c, request(t, "GET", "https://a.example.com/echo", ""))
	<-time.After(time.Until(end) + 10*time.Millisecond) // the certificate counts in seconds
	resp, _ := do(t, c, request(t, "GET", "https://a.example.com/echo", ""))
	if resp.StatusCode != http.StatusMisdirectedRequest || m.Count() != 1 {
		t.Errorf("got %d, %d requests at the backend", resp.StatusCode, m.Count())
	}
	// Go's client reports the alert or only that it could not connect, as its
	// goroutines happen to run.
	_, err := c.Do(request(t, "GET", "https://a.example.com/echo", ""))
	if err == nil || !strings.Contains(err.Error(), "expired certificate") && !strings.Contains(err.Error(), "could not be established") {
		t.Errorf("a new connection: %v, want the alert", err)
	}
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// until waits for a line of the log.
func (b *buffer) until(t *testing.T, want string) string {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; time.Now().Before(deadline); <-tick.C {
		for line := range strings.Lines(b.String()) {
			if strings.Contains(line, want) {
				return line
			}
		}
	}
	t.Fatalf("no line with %q in\n%s", want, b)
	return ""
}

// In TLS 1.3 a client sends requests before it learns that it is refused.
func TestRefusedClientThatWentOnSendingStillReadsWhy(t *testing.T) {
	var log buffer
	e, _ := startGuarded(t, nil, func(o *proxy.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	conn, err := tls.Dial("tcp", e.addr, clientTLS("a.example.com", http2.NextProtoTLS))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = conn.Write(make([]byte, 10_000))
	log.until(t, "peer="+conn.LocalAddr().String()) // it is refused, and closed
	if _, err := conn.Write(make([]byte, 10_000)); err != nil {
		t.Errorf("the connection was reset: %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || err.Error() != "remote error: tls: certificate required" {
		t.Errorf("got %v, want the alert", err)
	}
	begin := time.Now()
	for err = nil; err == nil; _, err = conn.NetConn().Write(make([]byte, 1)) {
		if time.Since(begin) > patience {
			t.Fatal("the refused connection stays open")
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestClientsRefusedForTheirCertificatesAreLoggedWithinBounds(t *testing.T) {
	var log buffer
	e, _ := startGuarded(t, nil, func(o *proxy.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	expired := clientCertificate(t, time.Now().Add(-time.Minute))
	try := func(serverName string, cert *tls.Certificate) string {
		t.Helper()
		cfg := clientTLS(serverName, http2.NextProtoTLS)
		if cert != nil {
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		conn, err := tls.Dial("tcp", e.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if serverName == "a.example.com" {
			if _, err = conn.Read(make([]byte, 1)); err == nil {
				t.Fatal("a client without a good certificate was let in")
			}
			if !strings.HasPrefix(err.Error(), "remote error: tls: ") {
				t.Errorf("the client sees %v, want an alert", err)
			}
		}
		return conn.LocalAddr().String()
	}
	try("b.example.com", nil)
	line := log.until(t, "peer="+try("a.example.com", nil))
	for _, want := range []string{"level=INFO", `msg="client refused in the handshake"`, "reason=client_certificate_missing", "listener=https", "server_name=a.example.com"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q does not say %s", line, want)
		}
	}
	line = log.until(t, "peer="+try("a.example.com", &expired))
	for _, want := range []string{"reason=client_certificate_refused", "certificate has expired", "certificate=CN=callercaller"} {
		if !strings.Contains(strings.ReplaceAll(line, `"`, ""), want) {
			t.Errorf("%q does not say %s", line, want)
		}
	}
	if len(line) > 700 {
		t.Errorf("the client's own word makes a line of %d bytes", len(line))
	}
	for range 100 {
		try("a.example.com", nil)
	}
	if n := strings.Count(log.String(), "\n"); n > 20 {
		t.Errorf("%d lines for 102 refusals", n)
	}
}
