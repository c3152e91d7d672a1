package upstream

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"edge/config"
	"edge/proxy/exchange"
	"edge/proxy/http1"
	"edge/proxy/http2"
)

// dialFunc is net.Dialer.DialContext.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

const (
	keepAlive      = 30 * time.Second // TCP probes
	connectTimeout = 10 * time.Second // dial and TLS when a pool sets none
	idleConn       = 4 * time.Second  // uvicorn closes after 5
	maxIdleConns   = 256              // kept-alive connections of a backend
)

func defaultDial() dialFunc {
	return (&net.Dialer{KeepAlive: keepAlive}).DialContext
}

// engine is the client half of a protocol: http1.Client or http2.Client.
type engine interface {
	Do(call *exchange.Call) (exchange.Reply, error)
	// Close closes idle connections, and others when they become idle.
	Close()
}

// backendKey is what connections are shared by. serverName and roots are zero
// for http.
type backendKey struct {
	scheme, address string // address is host:port
	protocol        config.PoolProtocol
	serverName      string
	roots           [32]byte // SHA-256 of the CA file; zero for the system's roots
}

// backend is the connections to one address. Two configurations, and two pools,
// that name the same address share it.
type backend struct {
	key  backendKey
	dial dialFunc
	tls  *tls.Config // nil for http

	client engine // keeps connections
	probe  engine // makes one for each request
	fresh  engine // what a request takes whose kept-alive connection failed

	refs int // guarded by Registry.mu
}

func newBackend(key backendKey, roots *x509.CertPool, dial dialFunc) *backend {
	b := &backend{key: key, dial: dial}
	alpn := "http/1.1"
	if key.protocol == config.PoolH2 {
		alpn = "h2"
	}
	if key.scheme == "https" {
		b.tls = &tls.Config{
			RootCAs: roots, ServerName: key.serverName, MinVersion: tls.VersionTLS12,
			NextProtos:         []string{alpn},
			ClientSessionCache: tls.NewLRUClientSessionCache(0),
		}
	}
	if key.protocol == config.PoolH1 {
		b.client = http1.NewClient(b.connect, http1.Options{Idle: idleConn, MaxIdle: maxIdleConns})
		b.probe = http1.NewClient(b.connect, http1.Options{OneShot: true})
		b.fresh = b.probe
		return b
	}
	b.client = http2.NewClient(b.connect, http2.Options{})
	b.probe = http2.NewClient(b.connect, http2.Options{OneShot: true})
	b.fresh = b.client // requests share connections, and their fate: the dead one is gone
	return b
}

// connect opens a connection and, for https, completes the handshake, all before
// the deadline of ctx.
func (b *backend) connect(ctx context.Context) (net.Conn, error) {
	raw, err := b.dial(ctx, "tcp", b.key.address)
	if err != nil || b.tls == nil {
		return raw, err
	}
	secure := tls.Client(http1.NoteEOF(raw), b.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error says more
		return nil, err
	}
	return secure, nil
}

// close closes idle connections.
func (b *backend) close() {
	b.client.Close()
	b.probe.Close()
}

// parseEndpoint understands the URL of an endpoint, whose host is its serverName.
func parseEndpoint(raw string, protocol config.PoolProtocol) (backendKey, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return backendKey{}, fmt.Errorf("endpoint: %w", err)
	}
	port := u.Port()
	switch {
	case u.Hostname() == "":
		return backendKey{}, fmt.Errorf("endpoint %s: no host (write http://host:port)", raw)
	case u.Scheme != "http" && u.Scheme != "https":
		return backendKey{}, fmt.Errorf("endpoint %s: scheme %q (write http or https)", raw, u.Scheme)
	case protocol == config.PoolH2 && u.Scheme != "https":
		return backendKey{}, fmt.Errorf("endpoint %s: protocol h2 is for https (write h2c for http)", raw)
	case protocol == config.PoolH2C && u.Scheme != "http":
		return backendKey{}, fmt.Errorf("endpoint %s: protocol h2c is for http (write h2 for https)", raw)
	case port == "" && u.Scheme == "http":
		port = "80"
	case port == "":
		port = "443"
	}
	return backendKey{
		scheme: u.Scheme, address: net.JoinHostPort(u.Hostname(), port),
		protocol: protocol, serverName: u.Hostname(),
	}, nil
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
