package tlsmgr

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
)

// doors is a Manager with hosts under one certificate on two listeners: anybody
// may go to open.a.test, closed.a.test demands a certificate of clients.
type doors struct {
	*Manager
	server  *testCA
	clients *testCA
	file    string // of clients
	cfg     *config.Config
}

func newDoors(t *testing.T, edit func(*config.Config)) *doors {
	t.Helper()
	d := &doors{clients: newTestCA(t), file: filepath.Join(t.TempDir(), "clients.pem")}
	d.clients.save(t, d.file)
	d.Manager, d.server = policyManager(t, func(c *config.Config) {
		d.cfg = c
		other := *c.Listeners["https"]
		other.Name = "other"
		c.Listeners["other"] = &other
		c.Routes = []*config.Route{doorRoute("open.a.test", "/", ""), doorRoute("closed.a.test", "/", d.file)}
		if edit != nil {
			edit(c)
		}
	})
	d.log = slog.New(slog.DiscardHandler)
	return d
}

func doorRoute(host, path, ca string) *config.Route {
	r := &config.Route{Name: host + path, Path: path, Listeners: []string{"https", "other"}, TLS: config.TLS{ClientCA: ca}}
	if host != "" {
		r.Hosts = []string{host}
	}
	return r
}

// dial shakes hands as a client that shows certificate c whatever is asked for;
// nil shows none.
func (d *doors) dial(t *testing.T, listener, name string, version uint16, c *tls.Certificate, cache tls.ClientSessionCache) (tls.ConnectionState, error) {
	t.Helper()
	cfg := client(d.server, name)
	cfg.MaxVersion, cfg.ClientSessionCache, cfg.InsecureSkipVerify = version, cache, name == ""
	if c != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil }
	}
	return shakeOverTCP(t, d.TLSConfig(listener), cfg)
}

// shakeOverTCP is shakeWith for sessions that hold clients' certificates: a pipe
// has no buffer for their tickets.
func shakeOverTCP(t *testing.T, with, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		server := tls.Server(c, with)
		if server.Handshake() == nil {
			_, _ = server.Write([]byte("x"))
			_, _ = server.Read(make([]byte, 1)) // the client closes first
		}
	}()
	defer func() { <-done }()
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(c, client)
	if err := conn.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return tls.ConnectionState{}, err
	}
	return conn.ConnectionState(), nil
}

// save writes the CAs' certificates, with text between them.
func (ca *testCA) save(tb testing.TB, path string, more ...*testCA) {
	tb.Helper()
	var text strings.Builder
	for _, ca := range append([]*testCA{ca}, more...) {
		text.WriteString("a CA of " + ca.cert.SerialNumber.String() + "\n")
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
	}
	writeFile(tb, path, text.String())
}

// client makes a client's certificate.
func (ca *testCA) client(tb testing.TB, to time.Time, usage x509.ExtKeyUsage) *tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "a client"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (ca *testCA) goodClient(tb testing.TB) *tls.Certificate {
	tb.Helper()
	return ca.client(tb, time.Now().Add(time.Hour), x509.ExtKeyUsageClientAuth)
}

var bothVersions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

func TestOnlyCertificatesOfTheCAOpenAHost(t *testing.T) {
	d := newDoors(t, nil)
	stranger := newTestCA(t)
	for _, c := range []struct {
		what        string
		certificate *tls.Certificate
		in12, in13  string // the alert
	}{
		{"a good certificate", d.clients.goodClient(t), "", ""},
		{"no certificate", nil, "handshake failure", "certificate required"},
		{"another CA's", stranger.goodClient(t), "unknown certificate authority", "unknown certificate authority"},
		{"an expired one", d.clients.client(t, time.Now().Add(-time.Minute), x509.ExtKeyUsageClientAuth), "expired certificate", "expired certificate"},
		{"a server's", d.clients.client(t, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth), "bad certificate", "bad certificate"},
	} {
		for n, want := range []string{c.in12, c.in13} {
			version := bothVersions[n]
			_, err := d.dial(t, "https", "closed.a.test", version, c.certificate, nil)
			if want == "" && err != nil || want != "" && (err == nil || err.Error() != "remote error: tls: "+want) {
				t.Errorf("%s with %s: %v, want %q", c.what, tls.VersionName(version), err, want)
			}
			if _, err := d.dial(t, "https", "open.a.test", version, c.certificate, nil); err != nil {
				t.Errorf("%s at the open host: %v", c.what, err)
			}
		}
	}
}

func TestClientCAsSeparateHostsOfOneCertificate(t *testing.T) {
	d := newDoors(t, func(c *config.Config) {
		c.Listeners["https"].DefaultCertificate = "file"
		again := filepath.Join(t.TempDir(), "again.pem") // other bytes, the same CA
		data, err := os.ReadFile(c.Routes[1].TLS.ClientCA)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, again, "# a copy\n"+string(data)+string(data))
		other := filepath.Join(t.TempDir(), "other.pem")
		newTestCA(t).save(t, other)
		c.Routes = append(c.Routes, doorRoute("twin.a.test", "/", again), doorRoute("third.a.test", "/", other))
	})
	for _, c := range []struct {
		server, host string
		want         bool
	}{
		{"open.a.test", "closed.a.test", false},
		{"unrouted.a.test", "closed.a.test", false},
		{"", "closed.a.test", false},
		{"", "open.a.test", true},
		{"closed.a.test", "closed.a.test", true},
		{"closed.a.test", "twin.a.test", true},
		{"closed.a.test", "open.a.test", false},
		{"closed.a.test", "third.a.test", false},
	} {
		if got := same(d.Manager, c.server, c.host); got != c.want {
			t.Errorf("server name %q, host %q: admitted %v, want %v", c.server, c.host, got, c.want)
		}
	}
}

// What a host's paths fall through to counts, and the stricter wins.
func TestFallingThroughToAHostWithClientCertificatesDemandsThem(t *testing.T) {
	d := newDoors(t, nil)
	routes := []*config.Route{
		doorRoute("*.a.test", "/", d.file), doorRoute("part.a.test", "/public", ""), doorRoute("whole.a.test", "/", ""), doorRoute("a.test", "/x", ""),
	}
	next := *d.cfg
	next.Routes = routes
	commit(t, d.Manager, &next)
	l := d.listener("https")
	check := func(want map[string]bool) {
		t.Helper()
		for name, want := range want {
			if got := l.policyOf(name).config.ClientAuth == tls.RequireAndVerifyClientCert; got != want {
				t.Errorf("%s demands a client certificate: %v, want %v", name, got, want)
			}
		}
	}
	check(map[string]bool{"part.a.test": true, "whole.a.test": false, "any.a.test": true, "a.test": false, "b.test": false})
	next.Routes = append(slices.Clone(routes), doorRoute("", "/y", d.file))
	commit(t, d.Manager, &next)
	l = d.listener("https")
	check(map[string]bool{"part.a.test": true, "whole.a.test": false, "any.a.test": true, "a.test": true, "b.test": true, "": true})
}

func TestTwoCAsThatOneConnectionWouldNeedAreRefused(t *testing.T) {
	d := newDoors(t, nil)
	other := filepath.Join(t.TempDir(), "other.pem")
	newTestCA(t).save(t, other)
	before := d.state.Load()
	for want, routes := range map[string][]*config.Route{
		"listener https: paths of part.a.test fall through to *.a.test: ": {doorRoute("*.a.test", "/", d.file), doorRoute("part.a.test", "/x", other)},
		"listener https: paths of part.a.test fall through to any host: ": {doorRoute("", "/", d.file), doorRoute("part.a.test", "/x", other)},
		"listener other: the routes of any host: ":                        {doorRoute("", "/", d.file), doorRoute("", "/x", other)},
		"listener https: the routes of part.a.test: ":                     {doorRoute("part.a.test", "/", d.file), doorRoute("part.a.test", "/x", other)},
	} {
		next := *d.cfg
		next.Routes = routes
		_, err := d.Prepare(t.Context(), &next)
		if !errors.Is(err, errTwoCAs) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "(use one file with the certificates of both") {
			t.Errorf("got %v, want %q and a hint", err, want)
		}
	}
	next := *d.cfg
	next.Routes = []*config.Route{doorRoute("*.a.test", "/", d.file), doorRoute("whole.a.test", "/", other)}
	if _, err := d.Prepare(t.Context(), &next); err != nil {
		t.Errorf("a host that reaches no other's routes: %v", err)
	}
	if d.state.Load() != before {
		t.Error("what was refused is in force")
	}
}

func TestBadClientCAFilesAreRefusedWithAHint(t *testing.T) {
	d := newDoors(t, nil)
	good, err := os.ReadFile(d.file)
	if err != nil {
		t.Fatal(err)
	}
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.clients.goodClient(t).Certificate[0]})
	var crowd []byte
	for range 3 {
		crowd = append(crowd, bigCA(t)...)
	}
	bad := filepath.Join(t.TempDir(), "bad.pem")
	for want, content := range map[string]string{
		"no certificate in it (":                           "hello\n",
		"block in it is damaged or not complete (":         string(good[:len(good)-40]),
		"damaged or not complete (":                        string(good) + strings.Replace(string(good), "\nM", "\n?", 1),
		`block of type "X509 CRL" (`:                       string(good) + string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("x")})),
		`block of type "EC PRIVATE KEY" (`:                 string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")})) + string(good),
		"certificate 1: x509: ":                            string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})),
		`certificate 2, "CN=a client", is not a CA's (`:    string(good) + string(leaf),
		"are larger than 32768 bytes (":                    string(crowd),
		"is larger than 1048576 bytes (want a PEM chain)":  strings.Repeat("x", maxCertificateFile+1),
		"no such file or directory (check the path, or re": "",
	} {
		path := bad
		if writeFile(t, bad, content); content == "" {
			path += ".gone"
		}
		next := *d.cfg
		next.Routes = []*config.Route{doorRoute("closed.a.test", "/", path)}
		_, err := d.Prepare(t.Context(), &next)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "client_certificates.ca: ") ||
			!strings.HasSuffix(err.Error(), ")") || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, d.clients.goodClient(t), nil); err != nil {
		t.Errorf("the last good configuration: %v", err)
	}
}

// bigCA is the PEM of a CA with a long subject.
func bigCA(tb testing.TB) []byte {
	tb.Helper()
	ca := newTestCA(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{strings.Repeat("long", 4000)}},
		IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestDigestOfClientCAsIsThatOfTheirCertificates(t *testing.T) {
	a, b, dir := newTestCA(t), newTestCA(t), t.TempDir()
	digest := func(ca *testCA, more ...*testCA) string {
		t.Helper()
		path := filepath.Join(dir, "ca.pem")
		ca.save(t, path, more...)
		got, err := readClientCA(path)
		if err != nil {
			t.Fatal(err)
		}
		return got.digest
	}
	if digest(a, b) != digest(b, a) || digest(a) != digest(a, a) {
		t.Error("order or repetition counts")
	}
	if digest(a) == digest(b) || digest(a) == digest(a, b) {
		t.Error("other CAs have the same digest")
	}
}

func TestExpiredClientCAsAreWarnedOf(t *testing.T) {
	d := newDoors(t, nil)
	cas := d.state.Load().sides.Load().cas
	end := d.clients.cert.NotAfter
	if got := expiredClientCAs(d.cfg, cas, end.Add(-time.Second)); len(got) != 0 {
		t.Errorf("warned of %v", got)
	}
	got := expiredClientCAs(d.cfg, cas, end)
	if len(got) != 1 || !strings.Contains(got[0].Error(), "all client CAs in "+d.file+" have expired") || got[0].Hint == "" {
		t.Errorf("warnings %v", got)
	}
}

// A CA that is taken out of the file lets nobody in from then on: not by a
// handshake, a session or a connection of before.
func TestChangedClientCAsHoldAtOnce(t *testing.T) {
	d := newDoors(t, nil)
	old, next := d.clients, newTestCA(t)
	mark, open := markOf(d.Manager, "https", "closed.a.test"), markOf(d.Manager, "https", "open.a.test")
	next.save(t, d.file)
	bad := map[string]complaint{}
	if d.reloadFiles(t.Context(), d.state.Load(), bad); len(bad) != 0 {
		t.Fatal(bad)
	}
	if d.Admits("https", mark, "closed.a.test", "closed.a.test") {
		t.Error("a connection of before still passes")
	}
	if !d.Admits("https", open, "open.a.test", "open.a.test") {
		t.Error("a connection to a host without client certificates does not pass any more")
	}
	if _, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, old.goodClient(t), nil); err == nil {
		t.Error("a certificate of the old CA still opens")
	}
	if _, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, next.goodClient(t), nil); err != nil {
		t.Errorf("the new CA: %v", err)
	}
	same := d.state.Load().sides.Load()
	next.save(t, d.file, next)
	if d.reloadFiles(t.Context(), d.state.Load(), bad); d.state.Load().sides.Load() != same {
		t.Error("a file that says the same made a difference")
	}
	commit(t, d.Manager, d.cfg)
	if _, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, next.goodClient(t), nil); err != nil {
		t.Errorf("after a reload: %v", err)
	}
}

func TestBadClientCAFileKeepsTheLastGoodAndWarnsOnce(t *testing.T) {
	second := filepath.Join(t.TempDir(), "second.pem")
	newTestCA(t).save(t, second)
	d := newDoors(t, func(c *config.Config) { c.Routes = append(c.Routes, doorRoute("second.a.test", "/", second)) })
	writer := &logs{}
	d.log = writer.logger()
	writeFile(t, d.file, "half a file")
	next := newTestCA(t)
	next.save(t, second) // is not held up by the bad one
	bad := map[string]complaint{}
	for n, again := range []bool{true, false, false} {
		if got := d.reloadFiles(t.Context(), d.state.Load(), bad); got != again {
			t.Errorf("look %d: again %v, want %v", n, got, again)
		}
	}
	if n := strings.Count(writer.String(), "client CA file is not usable, the last good CAs stay"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, writer)
	}
	for name, ca := range map[string]*testCA{"closed.a.test": d.clients, "second.a.test": next} {
		if _, err := d.dial(t, "https", name, tls.VersionTLS13, ca.goodClient(t), nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	d.clients.save(t, d.file)
	if d.reloadFiles(t.Context(), d.state.Load(), bad); len(bad) != 0 {
		t.Errorf("complaints about a good file: %v", bad)
	}
}

// Two files that have to agree are replaced one after the other.
func TestClientCAFilesThatContradictEachOtherWaitForTheSecond(t *testing.T) {
	twin := filepath.Join(t.TempDir(), "twin.pem")
	d := newDoors(t, func(c *config.Config) {
		data, err := os.ReadFile(c.Routes[1].TLS.ClientCA)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, twin, string(data))
		c.Routes = []*config.Route{doorRoute("*.a.test", "/", c.Routes[1].TLS.ClientCA), doorRoute("closed.a.test", "/x", twin)}
	})
	next, bad := newTestCA(t), map[string]complaint{}
	next.save(t, d.file)
	if again := d.reloadFiles(t.Context(), d.state.Load(), bad); !again || len(bad) != 1 {
		t.Errorf("again %v, complaints %v", again, bad)
	}
	if _, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, d.clients.goodClient(t), nil); err != nil {
		t.Errorf("the last good CAs: %v", err)
	}
	next.save(t, twin)
	if again := d.reloadFiles(t.Context(), d.state.Load(), bad); again || len(bad) != 0 {
		t.Errorf("again %v, complaints %v", again, bad)
	}
	if _, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, next.goodClient(t), nil); err != nil {
		t.Errorf("the new CAs: %v", err)
	}
}

// The file is a link through ..data, as in a Kubernetes volume, and Run watches.
func TestSwappedClientCAIsSeen(t *testing.T) {
	server, dir := newTestCA(t), t.TempDir()
	swap := func(n string, ca *testCA) {
		if err := os.Mkdir(filepath.Join(dir, n), 0o700); err != nil {
			t.Fatal(err)
		}
		ca.save(t, filepath.Join(dir, n, "ca.pem"))
		if err := errors.Join(os.Symlink(n, filepath.Join(dir, "..tmp")), os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	old, next := newTestCA(t), newTestCA(t)
	swap("..1", old)
	file := filepath.Join(dir, "ca.pem")
	if err := os.Symlink(filepath.Join("..data", "ca.pem"), file); err != nil {
		t.Fatal(err)
	}
	m := start(t, &config.Config{
		Listeners:    map[string]*config.Listener{"https": {Name: "https"}},
		Certificates: map[string]*config.Certificate{"file": {Name: "file", File: server.files(t, t.TempDir(), "*.a.test")}},
		Routes:       []*config.Route{doorRoute("closed.a.test", "/", file)},
	}, nil)
	d := &doors{Manager: m.Manager, server: server}
	if _, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, old.goodClient(t), nil); err != nil {
		t.Fatal(err)
	}
	swap("..2", next)
	good := next.goodClient(t)
	deadline := time.Now().Add(filePoll / 2) // by the watch, not by the poll
	tick := time.NewTicker(fileSettle / 4)
	defer tick.Stop()
	for {
		_, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, good, nil)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new CA is not seen: %v", err)
		}
		<-tick.C
	}
	if _, err := d.dial(t, "https", "closed.a.test", tls.VersionTLS13, old.goodClient(t), nil); err == nil {
		t.Error("the old CA still opens")
	}
}

// A client of an address sends no server name, so what counts is where it
// arrived.
func TestAddressWithClientCertificatesIsNotReachedByTheDefaultOne(t *testing.T) {
	d := newDoors(t, func(c *config.Config) {
		c.Listeners["https"].DefaultCertificate = "file"
		c.Routes = append(c.Routes, doorRoute("127.0.0.1", "/", c.Routes[1].TLS.ClientCA))
	})
	anybody, closed := d.listener("https").any.mark, markOf(d.Manager, "https", "closed.a.test")
	if _, err := d.dial(t, "https", "", tls.VersionTLS13, nil, nil); err != nil {
		t.Errorf("without a certificate for the address the default one serves: %v", err)
	}
	now := time.Now()
	address := d.server.certificate(t, "address", config.P256, now.Add(-time.Hour), now.Add(time.Hour), "address.test")
	address.names = append(address.names, "127.0.0.1")
	d.index.Store(buildIndex([]candidate{{address, true}, {d.files["file"], true}}, []string{"127.0.0.1", "a.test"}, now))
	if _, err := d.dial(t, "https", "", tls.VersionTLS13, nil, nil); err == nil || err.Error() != "remote error: tls: certificate required" {
		t.Errorf("at the address without a certificate: %v", err)
	}
	if _, err := d.dial(t, "https", "", tls.VersionTLS13, d.clients.goodClient(t), nil); err != nil {
		t.Errorf("at the address with one: %v", err)
	}
	for mark, want := range map[string]bool{anybody: false, closed: true} {
		if got := d.Admits("https", mark, "", "127.0.0.1:8443"); got != want {
			t.Errorf("the address on a connection under %q: admitted %v, want %v", mark, got, want)
		}
	}
	if d.Admits("https", closed, "", "open.a.test") || !d.Admits("https", anybody, "", "open.a.test") {
		t.Error("the default certificate's names follow the address")
	}
}

// marked is a connection that wants to know its policy.
type marked struct {
	net.Conn
	marks []string
}

func (c *marked) SetPolicy(mark string) { c.marks = append(c.marks, mark) }

func TestConnectionIsToldItsPolicyOnce(t *testing.T) {
	d := newDoors(t, nil)
	for name, want := range map[string]int{"closed.a.test": 1, "open.a.test": 1, "unknown.test": 0} {
		c, s := net.Pipe()
		conn := &marked{Conn: s}
		server := tls.Server(conn, d.TLSConfig("https"))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Handshake()
			_ = s.Close()
		}()
		cfg := client(d.server, name)
		good := d.clients.goodClient(t)
		cfg.Certificates = []tls.Certificate{*good}
		_ = c.SetDeadline(time.Now().Add(patience))
		_ = tls.Client(c, cfg).Handshake()
		<-done
		_ = c.Close()
		if len(conn.marks) != want || want > 0 && conn.marks[0] != markOf(d.Manager, "https", name) {
			t.Errorf("%s: told %q", name, conn.marks)
		}
	}
}
