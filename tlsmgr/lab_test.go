package tlsmgr

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/vault"
)

func TestMain(m *testing.M) {
	for _, kv := range slices.Concat(new(acmelab.S3).Env(), new(acmelab.Azurite).Env()) {
		k, v, _ := strings.Cut(kv, "=")
		if err := os.Setenv(k, v); err != nil {
			panic(err)
		}
	}
	if path := os.Getenv(childConfig); path != "" {
		if err := beReplica(path); err != nil {
			panic(err)
		}
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(acmelab.LeakedFunction))
}

// patience bounds every wait of the tests on the slowest machine.
const patience = 60 * time.Second

// testCA issues certificates for tests that need no ACME.
type testCA struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newTestCA(tb testing.TB) *testCA {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &testCA{key: key, cert: cert}
}

func (ca *testCA) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// issue makes a chain and a key, in PEM.
func (ca *testCA) issue(tb testing.TB, kind config.KeyType, from, to time.Time, names ...string) (chain, keyPEM string) {
	tb.Helper()
	key, err := acme.NewKey(kind)
	if err != nil {
		tb.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: from, NotAfter: to, DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	keyPEM, err = acme.EncodeKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	chain = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
	return chain, keyPEM
}

func (ca *testCA) certificate(tb testing.TB, id string, kind config.KeyType, from, to time.Time, names ...string) *certificate {
	tb.Helper()
	chain, key := ca.issue(tb, kind, from, to, names...)
	c, err := newStored(&vault.Certificate{Format: vault.Format, ID: id, Names: names, KeyType: kind, Chain: chain, PrivateKey: key, ObtainedAt: from})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// files writes a new pair for names into dir and returns the file certificate.
func (ca *testCA) files(tb testing.TB, dir string, names ...string) *config.CertificateFile {
	tb.Helper()
	chain, key := ca.issue(tb, config.P256, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), names...)
	f := &config.CertificateFile{Certificate: filepath.Join(dir, "tls.crt"), PrivateKey: config.Secret{Ref: "file:" + filepath.Join(dir, "tls.key")}}
	writeFile(tb, f.Certificate, chain)
	writeFile(tb, filepath.Join(dir, "tls.key"), key)
	return f
}

func writeFile(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// labConfig obtains certificates for hosts from a lab, into its bucket.
func labConfig(tb testing.TB, l *acmelab.Lab, hosts ...string) *config.Config {
	tb.Helper()
	dir := tb.TempDir()
	writeFile(tb, filepath.Join(dir, "ca.pem"), string(l.CA.APICertPEM))
	writeFile(tb, filepath.Join(dir, "tsig"), l.DNS.Key.Secret)
	cfg := &config.Config{
		Path:      "routes.yaml",
		Listeners: map[string]*config.Listener{"https": {Name: "https", Protocols: []config.Protocol{config.H1, config.H2}}},
		Storage:   config.Storage{URL: l.S3.StoreURL("certs", "t")},
		Providers: map[string]*config.Provider{"lab": {Name: "lab", RFC2136: &config.RFC2136{
			Server: l.DNS.Addr, KeyName: l.DNS.Key.Name, KeyAlgorithm: strings.TrimSuffix(l.DNS.Key.Alg, "."),
			Key: config.Secret{Ref: "file:" + filepath.Join(dir, "tsig")},
		}}},
		Issuers: map[string]*config.Issuer{"lab": {
			Name: "lab", Directory: l.CA.Directory, CA: filepath.Join(dir, "ca.pem"), Email: "ops@example.test",
			Providers: []string{"lab"}, Resolvers: []string{l.DNS.Addr}, Authoritative: config.Authoritative{Servers: []string{l.DNS.Addr}},
		}},
		Certificates: map[string]*config.Certificate{},
		Bundles:      config.Bundles{Issuers: []string{"lab"}, Packing: config.ByZone, MaxNames: 100, KeyTypes: []config.KeyType{config.P256}},
	}
	for n, h := range hosts {
		cfg.Routes = append(cfg.Routes, &config.Route{Name: fmt.Sprintf("routes[%d]", n), Hosts: []string{h}, Path: "/", Listeners: []string{"https"}})
	}
	return cfg
}

// logs collects log lines.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// replica is a running Manager.
type replica struct {
	*Manager
	logs   *logs
	events chan Event
	stop   func() // and wait
}

// start runs a Manager for cfg until the test ends.
func start(tb testing.TB, cfg *config.Config, edit func(*Options)) *replica {
	tb.Helper()
	r := ready(tb, cfg, edit)
	r.run(tb)
	return r
}

// ready is a Manager that has committed cfg and does not run yet.
func ready(tb testing.TB, cfg *config.Config, edit func(*Options)) *replica {
	tb.Helper()
	r := &replica{logs: &logs{}, events: make(chan Event, 10_000)}
	o := Options{
		Logger: r.logs.logger(), Events: func(e Event) { r.events <- e }, Owner: tb.Name(),
		Interval: 500 * time.Millisecond, DNSPoll: 20 * time.Millisecond,
		Backoff: func(int) time.Duration { return 200 * time.Millisecond },
	}
	if edit != nil {
		edit(&o)
	}
	r.Manager = New(o)
	commit(tb, r.Manager, cfg)
	return r
}

// run runs a replica until the test ends.
func (r *replica) run(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				tb.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			tb.Error("Run did not end")
		}
	})
	tb.Cleanup(r.stop)
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of the manager:\n%s", r.logs)
		}
	})
}

func commit(tb testing.TB, m *Manager, cfg *config.Config) {
	tb.Helper()
	change, err := m.Prepare(context.Background(), cfg)
	if err != nil {
		tb.Fatalf("Prepare: %v", err)
	}
	change.Commit()
}

// until waits for an event of one of steps for certificate id ("" is any).
func (r *replica) until(tb testing.TB, id string, steps ...Step) Event {
	tb.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e := <-r.events:
			if slices.Contains(steps, e.Step) && (id == "" || e.Certificate == id) {
				return e
			}
		case <-timeout:
			tb.Fatalf("no event %s for %q; status %+v", steps, id, r.Status())
		}
	}
}

// one is the status of the only certificate.
func (r *replica) one(tb testing.TB) CertificateStatus {
	tb.Helper()
	s := r.Status()
	if len(s.Certificates) != 1 {
		tb.Fatalf("%d certificates, want 1: %+v", len(s.Certificates), s)
	}
	return s.Certificates[0]
}

// shake does one handshake over memory with the listener "https" of m.
func shake(tb testing.TB, m *Manager, client *tls.Config) (tls.ConnectionState, error) {
	tb.Helper()
	return shakeWith(tb, m.TLSConfig("https"), client)
}

// shakeWith does one handshake over memory.
func shakeWith(tb testing.TB, with, client *tls.Config) (tls.ConnectionState, error) {
	tb.Helper()
	c, s := net.Pipe()
	deadline := time.Now().Add(patience)
	_, _ = c.SetDeadline(deadline), s.SetDeadline(deadline)
	server := tls.Server(s, with)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = s.Close() }() // abruptly: nobody reads a close_notify
		if server.Handshake() == nil {
			_, _ = server.Write([]byte("x")) // carries the session ticket of TLS 1.3 with it
		}
	}()
	defer func() { <-done }()
	defer func() { _ = c.Close() }()
	conn := tls.Client(c, client)
	if err := conn.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return tls.ConnectionState{}, err
	}
	return conn.ConnectionState(), nil
}
