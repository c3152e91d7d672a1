package main_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/internal/edgetest"
	"edge/internal/modelserver"
)

// A world is everything around edge for one end-to-end test: a CA, a DNS
// server, a bucket and a model server, all real and on loopback.
type world struct {
	t     *testing.T
	lab   *acmelab.Lab
	model *modelserver.Server
	dir   string
	roots *x509.CertPool
}

const (
	patience  = 90 * time.Second // for anything that needs a certificate
	reactTime = time.Second      // within which a departure is seen upstream
)

func newWorld(t *testing.T, lab acmelab.Options, model modelserver.Options) *world {
	t.Helper()
	w := &world{t: t, lab: acmelab.New(t, lab), model: modelserver.New(t, model), dir: t.TempDir(), roots: x509.NewCertPool()}
	w.roots.AppendCertsFromPEM(w.lab.CA.RootsPEM)
	w.file("ca.pem", string(w.lab.CA.APICertPEM))
	return w
}

// file writes a file into the world's directory and returns its path.
func (w *world) file(name, content string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// settings are what tests change about the configuration.
type settings struct {
	storage  string // "" is the world's bucket
	tsig     string // secret reference of the TSIG key
	ca       string // directory URL
	provider string // the whole providers block
	extra    string // more top-level keys
	routes   string // the list; "" is chat.example.test and *.example.test to the model server
}

// config writes routes.yaml under a name and returns its path. Two processes
// need two names, since the control socket is named after it.
func (w *world) config(name string, s settings) string {
	w.t.Helper()
	or := func(v, fallback string) string {
		if v == "" {
			return fallback
		}
		return v
	}
	provider := fmt.Sprintf("{rfc2136: {server: %q, key_name: %q, key: %q}}", w.lab.DNS.Addr, w.lab.DNS.Key.Name, or(s.tsig, "env:EDGE_TEST_TSIG"))
	routes := fmt.Sprintf("  - {host: [example.test, \"*.example.test\"], endpoints: [%q]}\n", w.model.URL)
	return w.file(name+".yaml", fmt.Sprintf(`version: 1
listeners:
  https: {address: "127.0.0.1:0"}
  http: {address: "127.0.0.1:0", redirect: https}
storage: %q
providers:
  dns: %s
issuers:
  lab:
    acme: {directory: %q, email: ops@example.test, ca: %q}
    challenge: {providers: [dns], resolvers: [%q], authoritative: [%q]}
control: {socket: %q}
observability: {log: {format: json}}
drain: {timeout: 5s}
%s
routes:
%s`, or(s.storage, w.lab.S3.StoreURL("certs", "prod")), or(s.provider, provider), or(s.ca, w.lab.CA.Directory),
		filepath.Join(w.dir, "ca.pem"), w.lab.DNS.Addr, w.lab.DNS.Addr, filepath.Join(w.dir, name+".sock"), s.extra, or(s.routes, routes)))
}

// launch starts edge with a configuration and returns at once.
func (w *world) launch(config string, env ...string) *edgetest.Process {
	w.t.Helper()
	p, err := edgetest.Start(edgetest.Options{Binary: binary(w.t), Config: config, Env: append(w.env(), env...)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		p.Kill()
		for _, l := range p.Lines() {
			if strings.Contains(l.Message(), "DATA RACE") {
				w.t.Error("edge has a data race, see its log")
			}
		}
		if w.t.Failed() {
			for _, l := range p.Lines() {
				w.t.Log(l)
			}
		}
	})
	return p
}

// start launches edge, waits until it is ready and returns its TLS address.
func (w *world) start(config string, env ...string) (*edgetest.Process, string) {
	w.t.Helper()
	p := w.launch(config, env...)
	return p, w.ready(p)
}

func (w *world) ready(p *edgetest.Process) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if err := p.WaitReady(ctx); err != nil {
		w.t.Fatal(err)
	}
	addr, err := p.Addr(ctx, "https")
	if err != nil {
		w.t.Fatal(err)
	}
	return addr
}

func (w *world) env() []string {
	return append(w.lab.S3.Env(), "EDGE_TEST_TSIG="+w.lab.DNS.Key.Secret)
}

// client speaks HTTP/1.1 or HTTP/2 to addr whatever the host of the URL is.
func (w *world) client(addr string, h2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		TLSClientConfig:   &tls.Config{RootCAs: w.roots},
		ForceAttemptHTTP2: h2,
	}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// handshake connects with a server name and returns the leaf certificate.
func (w *world) handshake(addr, name string) (*x509.Certificate, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{RootCAs: w.roots, ServerName: name}}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), 10*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// leaf is handshake for a name that must be served.
func (w *world) leaf(addr, name string) *x509.Certificate {
	w.t.Helper()
	leaf, err := w.handshake(addr, name)
	if err != nil {
		w.t.Fatalf("handshake for %s: %v", name, err)
	}
	return leaf
}

// oneLine checks that an error message is what an operator can use: one line,
// with a hint, that names what it is about, and no secret.
func oneLine(t *testing.T, text string, want ...string) {
	t.Helper()
	if strings.Count(strings.TrimSpace(text), "\n") > 0 {
		t.Errorf("more than one line: %q", text)
	}
	if !strings.HasSuffix(strings.TrimSpace(text), ")") {
		t.Errorf("no hint at the end of %q", text)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not say %q", text, w)
		}
	}
}
