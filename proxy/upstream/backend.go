package upstream

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"edge/config"
)

// backendKey is what connections are shared by.
type backendKey struct {
	scheme, address string   // address is host:port
	roots           [32]byte // SHA-256 of the CA file; zero for the system's roots
}

// backend is the connections to one address. Two configurations, and two pools,
// that name the same address share it.
type backend struct {
	key       backendKey
	dial      dialFunc
	tls       *tls.Config // nil for http
	transport *http.Transport

	refs int // guarded by Registry.mu
}

func newBackend(key backendKey, roots *x509.CertPool, dial dialFunc) *backend {
	b := &backend{key: key, dial: dial}
	if key.scheme == "https" {
		host, _, _ := net.SplitHostPort(key.address) // parseEndpoint joined it
		b.tls = &tls.Config{
			RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12,
			NextProtos:         []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(0),
		}
	}
	b.transport = newTransport(dial, b.tls)
	return b
}

// parseEndpoint splits the URL of an endpoint.
func parseEndpoint(raw string) (scheme, address string, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", "", fmt.Errorf("endpoint: %w", err)
	}
	port := u.Port()
	switch {
	case u.Hostname() == "":
		return "", "", fmt.Errorf("endpoint %s: no host (write http://host:port)", raw)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", "", fmt.Errorf("endpoint %s: scheme %q (write http or https)", raw, u.Scheme)
	case port == "" && u.Scheme == "http":
		port = "80"
	case port == "":
		port = "443"
	}
	return u.Scheme, net.JoinHostPort(u.Hostname(), port), nil
}

// authority is a set of root certificates; nil pool means the system's.
type authority struct {
	pool *x509.CertPool
	sum  [32]byte
}

func loadAuthority(path string) (authority, error) {
	if path == "" {
		return authority{}, nil
	}
	pem, err := os.ReadFile(path) //nolint:gosec // the path is the operator's
	if err != nil {
		return authority{}, fmt.Errorf("ca: %w (check the path, or leave tls.ca out for the system's roots)", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return authority{}, fmt.Errorf("ca: %s holds no certificate (it must be PEM)", path)
	}
	return authority{pool, sha256.Sum256(pem)}, nil
}

// counters are what a pool knows about one of its endpoints.
type counters struct {
	since     time.Time
	inflight  atomic.Int64
	requests  atomic.Uint64
	lastError atomic.Pointer[string] // of an attempt; nil for none

	refs int // guarded by Registry.mu
}

// endpoint is one entry of a Pool. The struct belongs to one Set; what it
// points to is shared with others.
type endpoint struct {
	*counters

	url     string
	weight  int64
	backend *backend
	checker *checker // nil means always up
}

func (e *endpoint) usable() bool { return e.checker == nil || e.checker.up.Load() }

func (e *endpoint) acquire() {
	e.inflight.Add(1)
	e.requests.Add(1)
}

func (e *endpoint) release() { e.inflight.Add(-1) }

func (e *endpoint) failed(err error) {
	text := err.Error()
	e.lastError.Store(&text)
}

func (e *endpoint) status() EndpointStatus {
	s := EndpointStatus{
		URL: e.url, Healthy: e.usable(), Inflight: int(e.inflight.Load()),
		Requests: e.requests.Load(), Since: e.since,
	}
	if text := e.lastError.Load(); text != nil {
		s.LastError = *text
	}
	if e.checker != nil {
		since, reason := e.checker.verdict()
		s.Since = since
		if reason != "" {
			s.LastError = reason
		}
	}
	return s
}

// countersKey is what counters are shared by.
type countersKey struct{ pool, url string }

// checkKey is what health is shared by.
type checkKey struct {
	backend backendKey
	check   config.Health
}
