package main_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/internal/edgetest"
	"edge/internal/modelserver"
)

// authority is a CA of a test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// sign completes a template; an authority without a key signs its own.
func (a *authority) sign(t *testing.T, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-2*time.Hour)
	parent, signer := a.cert, a.key
	if signer == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a *authority) pem() string { return pemOf("CERTIFICATE", a.cert.Raw) }

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// pair signs a certificate and returns it with its key, in PEM too.
func (a *authority) pair(t *testing.T, template *x509.Certificate) (pair tls.Certificate, certPEM, keyPEM string) {
	t.Helper()
	template.KeyUsage = x509.KeyUsageDigitalSignature
	cert, key := a.sign(t, template)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, pemOf("CERTIFICATE", cert.Raw), pemOf("PRIVATE KEY", der)
}

func (a *authority) client(t *testing.T, end time.Time) (pair tls.Certificate, certPEM, keyPEM string) {
	t.Helper()
	return a.pair(t, &x509.Certificate{Subject: pkix.Name{CommonName: "a caller"}, NotAfter: end, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// vault is edge with hosts that share one certificate, on two listeners: what
// is behind closed.example.test, and /inner of every other host but
// open.example.test, is for clients with a certificate.
type vault struct {
	*world
	p       *edgetest.Process
	addr    string              // of listener https, which has a default certificate
	other   string              // of listener other
	inner   *modelserver.Server // what nobody reaches without a certificate
	clients *authority
	good    tls.Certificate
	cert    string // file of good
	key     string
	ca      string // file of clients
	known   int    // requests that came to inner with a certificate
}

const vaultYAML = `version: 1
listeners:
  https: {address: "127.0.0.1:0", tls: {default_certificate: shared}}
  other: {address: "127.0.0.1:0"}
storage: "file://%[1]s/store"
certificates: {shared: {file: {certificate: %[1]s/server.pem, private_key: %[1]s/server.key}}}
control: {socket: "%[1]s/vault.sock"}
observability: {log: {format: json}}
drain: {timeout: 5s}
policies: {callers: {client_certificates: {ca: clients.pem}}}
pools:
  m: {endpoints: [%[2]q]}
  inner: {endpoints: [%[3]q]}
routes:
  - {host: open.example.test, %[4]s pool: m}
  - {host: closed.example.test, policies: [callers], pool: inner}
  - {host: half.example.test, path: /v1, pool: m}
  - {host: "*.example.test", path: /v1/models, policies: [callers], pool: inner}
  - {path: /any, pool: m}
`

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{
		world:   newWorld(t, acmelab.Options{}, modelserver.Options{}),
		inner:   modelserver.New(t, modelserver.Options{Name: "inner"}),
		clients: newAuthority(t, "callers"),
	}
	server := newAuthority(t, "servers")
	v.roots.AddCert(server.cert)
	v.file("roots.pem", server.pem())
	_, cert, key := server.pair(t, &x509.Certificate{NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"*.example.test", "example.test"}})
	v.file("server.pem", cert)
	v.file("server.key", key)
	v.good, cert, key = v.clients.client(t, time.Now().Add(time.Hour))
	v.cert, v.key = v.file("client.pem", cert), v.file("client.key", key)
	v.ca = v.file("clients.pem", v.clients.pem())
	v.p, v.addr = v.start(v.write(""))
	var err error
	if v.other, err = v.p.Addr(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	return v
}

// write writes the configuration; more is what else the open host has.
func (v *vault) write(more string) string {
	v.t.Helper()
	return v.file("vault.yaml", fmt.Sprintf(vaultYAML, v.dir, v.model.URL, v.inner.URL, more))
}

func (v *vault) reload(more string) {
	v.t.Helper()
	v.write(more)
	if r, err := v.p.Reload(v.t.Context()); err != nil || len(r.Problems) > 0 {
		v.t.Fatalf("reload: %+v, %v", r, err)
	}
}

// turn replaces the client CAs and waits until edge has seen it.
func (v *vault) turn(to *authority) {
	v.t.Helper()
	before := v.count("client CAs changed")
	next := v.file("next.pem", to.pem())
	if err := os.Rename(next, v.ca); err != nil {
		v.t.Fatal(err)
	}
	eventually(v.t, 15*time.Second, "the new CA was not seen", func() bool { return v.count("client CAs changed") > before })
}

func (v *vault) count(message string) (n int) {
	for _, l := range v.p.Lines() {
		if strings.HasPrefix(l.Message(), message) {
			n++
		}
	}
	return n
}

// untouched fails when anything has come through to what is for callers.
func (v *vault) untouched() {
	v.t.Helper()
	if n := v.inner.Count() - v.known; n != 0 {
		v.t.Errorf("%d requests came through without a certificate", n)
	}
}

// as is a client that shows certificates; name "" sends no server name.
func (v *vault) as(addr, name string, h2 bool, certs ...tls.Certificate) *http.Client {
	c := v.client(addr, h2)
	cfg := c.Transport.(*http.Transport).TLSClientConfig
	cfg.ServerName, cfg.Certificates = name, certs
	if name == "" {
		cfg.ServerName, cfg.InsecureSkipVerify = "127.0.0.1", true // an address is not sent
	}
	return c
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err != nil && os.Getenv("EDGE_CI") == "1":
		t.Fatal(err)
	case err != nil:
		t.Skip(name + " is not installed")
	}
	return path
}

func TestCurlComesInWithItsCertificateOnly(t *testing.T) {
	t.Parallel()
	curl := tool(t, "curl")
	v := newVault(t)
	_, port, _ := net.SplitHostPort(v.addr)
	run := func(host string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		url := "https://" + host + ":" + port + "/v1/models"
		out, err := exec.CommandContext(ctx, curl, append(args, "-sS", "-o", os.DevNull, "-w", "%{http_code}", "--cacert", filepath.Join(v.dir, "roots.pem"),
			"--connect-to", "::127.0.0.1:"+port, url)...).CombinedOutput()
		return string(out), err
	}
	versions := map[string][]string{"alert certificate required": nil, "alert handshake failure": {"--tls-max", "1.2"}}
	for _, protocol := range []string{"--http1.1", "--http2"} {
		for alert, args := range versions {
			args = append(args, protocol)
			for host, closed := range map[string]bool{"open.example.test": false, "closed.example.test": true, "half.example.test": true, "x.example.test": true} {
				out, err := run(host, args...)
				if closed && (err == nil || !strings.Contains(out, alert)) || !closed && (err != nil || out != "200") {
					t.Errorf("%s %q without a certificate: %s, %v", host, args, out, err)
				}
			}
			v.untouched()
		}
	}
	for _, args := range [][]string{{"--http1.1"}, {"--http2"}, {"--http1.1", "--tls-max", "1.2"}} {
		for _, host := range []string{"open.example.test", "closed.example.test", "half.example.test", "x.example.test"} {
			if out, err := run(host, append(args, "--cert", v.cert, "--key", v.key)...); err != nil || out != "200" {
				t.Errorf("%s %q with a certificate: %s, %v", host, args, out, err)
			}
		}
	}
}

func TestNobodyCoalescesIntoAHostWithClientCertificates(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	for _, p := range protocols {
		for _, c := range []struct {
			addr, sni, host string
			want            int
		}{
			{v.addr, "open.example.test", "open.example.test", http.StatusOK},
			{v.addr, "open.example.test", "closed.example.test", http.StatusMisdirectedRequest},
			{v.other, "open.example.test", "closed.example.test", http.StatusMisdirectedRequest},
			{v.addr, "open.example.test", "CLOSED.example.test.:443", http.StatusMisdirectedRequest},
			{v.addr, "open.example.test", "half.example.test", http.StatusMisdirectedRequest},
			{v.addr, "open.example.test", "x.example.test", http.StatusMisdirectedRequest}, // the wildcard's
			{v.addr, "example.test", "closed.example.test", http.StatusMisdirectedRequest}, // any host's
			{v.addr, "", "closed.example.test", http.StatusMisdirectedRequest},             // the default certificate's
			{v.addr, "", "x.example.test", http.StatusMisdirectedRequest},
			{v.addr, "", "open.example.test", http.StatusOK},
		} {
			client := v.as(c.addr, c.sni, p.h2)
			sni := c.sni
			if sni == "" {
				sni = "127.0.0.1"
			}
			if got := status(t, client, sni, c.host); got != c.want {
				t.Errorf("%s: server name %q, host %s: %d, want %d", p.name, c.sni, c.host, got, c.want)
			}
		}
		v.untouched()
	}
	for _, p := range protocols {
		client := v.as(v.addr, "closed.example.test", p.h2, v.good)
		for host, want := range map[string]int{
			"closed.example.test": http.StatusOK, "x.example.test": http.StatusOK, // one policy
			"open.example.test": http.StatusMisdirectedRequest,
		} {
			if got := status(t, client, "closed.example.test", host); got != want {
				t.Errorf("%s, with a certificate: host %s: %d, want %d", p.name, host, got, want)
			}
		}
	}
}

// sClient is openssl s_client: it asks for the models of a host, and keeps or
// offers a session. The certificate is that of the files, if any.
func (v *vault) sClient(openssl, addr, host string, args ...string) string {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, openssl, append([]string{
		"s_client", "-connect", addr, "-servername", host, "-CAfile", filepath.Join(v.dir, "roots.pem"), "-ign_eof",
	}, args...)...)
	cmd.Stdin = strings.NewReader("GET /v1/models HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n")
	out, _ := cmd.CombinedOutput() // it fails as its connection does
	return string(out)
}

const ok200 = "HTTP/1.1 200 OK"

func TestOpenSSLsSessionsDoNotReplaceACertificate(t *testing.T) {
	t.Parallel()
	openssl := tool(t, "openssl")
	v := newVault(t)
	with := []string{"-cert", v.cert, "-key", v.key}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		open, closed := filepath.Join(v.dir, "open"+version), filepath.Join(v.dir, "closed"+version)
		if out := v.sClient(openssl, v.addr, "open.example.test", version, "-sess_out", open); !strings.Contains(out, ok200) {
			t.Fatalf("%s: %s", version, out)
		}
		if out := v.sClient(openssl, v.addr, "open.example.test", version, "-sess_in", open); !strings.Contains(out, "Reused, ") || !strings.Contains(out, ok200) {
			t.Errorf("%s: the session was not resumed at its own host:\n%s", version, out)
		}
		for _, addr := range []string{v.addr, v.other} {
			if out := v.sClient(openssl, addr, "closed.example.test", version, "-sess_in", open); strings.Contains(out, "Reused, ") || strings.Contains(out, "HTTP/1.1") {
				t.Errorf("%s: a session without a certificate got in:\n%s", version, out)
			}
		}
		v.untouched()
		if out := v.sClient(openssl, v.addr, "closed.example.test", append(with, version, "-sess_out", closed)...); !strings.Contains(out, ok200) {
			t.Fatalf("%s with a certificate: %s", version, out)
		}
		if out := v.sClient(openssl, v.addr, "closed.example.test", version, "-sess_in", closed); !strings.Contains(out, "Reused, ") || !strings.Contains(out, ok200) {
			t.Errorf("%s: the caller's session was not resumed:\n%s", version, out)
		}
		if out := v.sClient(openssl, v.other, "closed.example.test", version, "-sess_in", closed); strings.Contains(out, "Reused, ") || strings.Contains(out, "HTTP/1.1") {
			t.Errorf("%s: a session of another listener got in:\n%s", version, out)
		}
		old := v.clients
		v.turn(newAuthority(t, "new callers"))
		if out := v.sClient(openssl, v.addr, "closed.example.test", version, "-sess_in", closed); strings.Contains(out, "Reused, ") || strings.Contains(out, "HTTP/1.1") {
			t.Errorf("%s: a session from before the CA changed got in:\n%s", version, out)
		}
		v.turn(old)
		v.known = v.inner.Count()
	}
}

// An HTTP/2 connection is open when its host becomes stricter, by a reload or
// by another CA: it is refused, and given up so that the client opens another.
func TestOpenConnectionsMeetWhatHasBecomeStricter(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	for _, p := range protocols {
		open := v.as(v.addr, "open.example.test", p.h2)
		closed := v.as(v.addr, "closed.example.test", p.h2, v.good)
		if a, b := askAgain(t, open, "open.example.test", "open.example.test"), askAgain(t, closed, "closed.example.test", "closed.example.test"); a != 200 || b != 200 {
			t.Fatalf("%s: %d and %d, want 200", p.name, a, b)
		}
		v.reload("")
		if a, b := askAgain(t, open, "open.example.test", "open.example.test"), askAgain(t, closed, "closed.example.test", "closed.example.test"); a != 200 || b != 200 {
			t.Errorf("%s: %d and %d after a reload that changed nothing, want 200", p.name, a, b)
		}
		v.reload("policies: [callers],")
		if got := askAgain(t, open, "open.example.test", "open.example.test"); got != http.StatusMisdirectedRequest {
			t.Errorf("%s: %d on a connection older than its policy, want 421", p.name, got)
		}
		refused(t, open, "https://open.example.test/v1/models", "certificate required")
		v.reload("")

		v.turn(newAuthority(t, "new callers"))
		if got := askAgain(t, closed, "closed.example.test", "closed.example.test"); got != http.StatusMisdirectedRequest {
			t.Errorf("%s: %d on a connection made under the old CA, want 421", p.name, got)
		}
		refused(t, closed, "https://closed.example.test/v1/models", "certificate") // none of the new CA's, or an unknown authority
		v.turn(v.clients)
		if got := askAgain(t, closed, "closed.example.test", "closed.example.test"); got != http.StatusOK {
			t.Errorf("%s: %d after the CA came back, want 200", p.name, got)
		}
	}
}

// askAgain is status on a connection that is kept.
func askAgain(t *testing.T, c *http.Client, sni, host string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+sni+"/v1/models", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// refused checks that a request does not come to a connection. Go's client of
// HTTP/2 does not always say what it was told.
func refused(t *testing.T, c *http.Client, url, alert string) {
	t.Helper()
	resp, err := c.Get(url)
	if err == nil {
		_ = resp.Body.Close()
		t.Errorf("%s: %s, want a refused handshake", url, resp.Status)
	} else if text := err.Error(); !strings.Contains(text, "client conn could not be established") && (!strings.Contains(text, "remote error: tls: ") || !strings.Contains(text, alert)) {
		t.Errorf("%s: %v, want the alert %s", url, err, alert)
	}
}

func TestRefusedCallersAreToldByAlertAndTheOperatorByTheLog(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	expired, _, _ := v.clients.client(t, time.Now().Add(-time.Hour))
	stranger, _, _ := newAuthority(t, "callers").client(t, time.Now().Add(time.Hour)) // of the same name
	for alert, certs := range map[string][]tls.Certificate{
		"certificate required": nil, "expired certificate": {expired}, "unknown certificate authority": {stranger},
	} {
		refused(t, v.as(v.addr, "closed.example.test", true, certs...), "https://closed.example.test/v1/models", alert)
	}
	v.untouched()
	want := map[string]string{"client didn't provide a certificate": "client_certificate_missing", "has expired": "client_certificate_refused", "unknown authority": "client_certificate_refused"}
	eventually(t, 5*time.Second, "not all refusals are in the log", func() bool {
		for _, l := range v.p.Lines() {
			for text, reason := range want {
				if l.Text("reason") == reason && strings.Contains(l.Text("error"), text) && l.Text("server_name") == "closed.example.test" && l.Text("peer") != "" {
					delete(want, text)
				}
			}
		}
		return len(want) == 0
	})
	for range 200 {
		if conn, err := tls.Dial("tcp", v.addr, &tls.Config{RootCAs: v.roots, ServerName: "closed.example.test"}); err == nil {
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}
	if n := v.count("client refused"); n > 40 {
		t.Errorf("%d lines for 203 refusals", n)
	}
}

func TestABadClientCAFileRefusesTheReload(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	if err := os.WriteFile(v.ca, bytes.Repeat([]byte("x"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := v.p.Reload(t.Context())
	if err != nil || len(r.Problems) != 1 {
		t.Fatalf("reload: %+v, %v; want one problem", r, err)
	}
	oneLine(t, r.Problems[0], "client_certificates.ca", v.ca, "no certificate")
	if got := askAgain(t, v.as(v.addr, "closed.example.test", true, v.good), "closed.example.test", "closed.example.test"); got != http.StatusOK {
		t.Errorf("with the last good CA: %d", got)
	}
	refused(t, v.as(v.addr, "closed.example.test", true), "https://closed.example.test/v1/models", "certificate required")
}
