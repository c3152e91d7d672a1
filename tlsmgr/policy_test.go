package tlsmgr

import (
	"crypto/tls"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
)

// policyManager serves *.a.test and a.test from one file certificate: old.a.test
// with the listener's minimum, new.a.test and *.a.test as routes say.
func policyManager(t *testing.T, edit func(*config.Config)) (*Manager, *testCA) {
	t.Helper()
	ca := newTestCA(t)
	route := func(host string, minVersion uint16) *config.Route {
		r := &config.Route{Name: host, Path: "/", Listeners: []string{"https"}, TLS: config.TLS{MinVersion: minVersion}}
		if host != "" {
			r.Hosts = []string{host}
		}
		return r
	}
	cfg := &config.Config{
		Listeners: map[string]*config.Listener{
			"https": {Name: "https", Protocols: []config.Protocol{config.H1, config.H2}, TLS: config.TLS{MinVersion: tls.VersionTLS12}},
			"plain": {Name: "plain", Redirect: true},
		},
		Certificates: map[string]*config.Certificate{"file": {Name: "file", File: ca.files(t, t.TempDir(), "*.a.test", "a.test")}},
		Routes: []*config.Route{
			route("old.a.test", 0), route("other.a.test", 0), route("new.a.test", tls.VersionTLS13), route("", 0),
		},
	}
	if edit != nil {
		edit(cfg)
	}
	m := New(Options{})
	commit(t, m, cfg)
	return m, ca
}

func client(ca *testCA, name string) *tls.Config {
	return &tls.Config{ServerName: name, RootCAs: ca.pool(), MinVersion: tls.VersionTLS12}
}

func TestPolicyOfAHostIsTheLargerMinimum(t *testing.T) {
	m, ca := policyManager(t, nil)
	for _, c := range []struct {
		name string
		max  uint16
		want bool
	}{
		{"old.a.test", tls.VersionTLS12, true},
		{"new.a.test", tls.VersionTLS12, false},
		{"new.a.test", tls.VersionTLS13, true},
		{"unrouted.a.test", tls.VersionTLS12, true},
	} {
		cfg := client(ca, c.name)
		cfg.MaxVersion = c.max
		if _, err := shake(t, m, cfg); (err == nil) != c.want {
			t.Errorf("%s up to %s: %v, want success %v", c.name, tls.VersionName(c.max), err, c.want)
		}
	}
}

// A path that a host's own routes do not take falls through to the wildcard's,
// so a connection for the host must satisfy what those ask for, unless nothing
// can fall through.
func TestPolicyOfAHostCoversTheRoutesThatItsPathsFallThroughTo(t *testing.T) {
	route := func(host, path string, minVersion uint16) *config.Route {
		r := &config.Route{Name: host + path, Path: path, Listeners: []string{"https"}, TLS: config.TLS{MinVersion: minVersion}}
		if host != "" {
			r.Hosts = []string{host}
		}
		return r
	}
	const strict = tls.VersionTLS13
	m, _ := policyManager(t, func(cfg *config.Config) {
		cfg.Routes = []*config.Route{
			route("*.a.test", "/", strict), route("part.a.test", "/public", 0), route("whole.a.test", "/", 0),
			route("a.test", "/x", 0), route("", "/y", strict),
		}
	})
	l := m.listener("https")
	for name, want := range map[string]uint16{
		"part.a.test": strict, "whole.a.test": tls.VersionTLS12, "other.a.test": strict, "a.test": strict, "b.test": strict,
	} {
		if got := l.policyOf(name).config.MinVersion; got != want {
			t.Errorf("%s: minimum %s, want %s", name, tls.VersionName(got), tls.VersionName(want))
		}
	}
	if same(m, "whole.a.test", "part.a.test") {
		t.Error("a connection for the lax host may carry requests that fall through to the strict one")
	}
}

func TestListenersProtocolsAreOfferedByALPN(t *testing.T) {
	for want, protocols := range map[string][]config.Protocol{
		"h2":       {config.H1, config.H2},
		"http/1.1": {config.H1},
	} {
		m, ca := policyManager(t, func(c *config.Config) { c.Listeners["https"].Protocols = protocols })
		cfg := client(ca, "old.a.test")
		cfg.NextProtos = []string{"h2", "http/1.1"}
		state, err := shake(t, m, cfg)
		if err != nil || state.NegotiatedProtocol != want {
			t.Errorf("%v: got %q, %v; want %q", protocols, state.NegotiatedProtocol, err, want)
		}
	}
}

// unrecognizedName is how crypto/tls spells alert 112 (RFC 6066 section 3).
const unrecognizedName = "remote error: tls: unrecognized name"

func TestUnknownServerNameIsRefusedWithUnrecognizedName(t *testing.T) {
	m, ca := policyManager(t, nil)
	for _, name := range []string{"b.test", "x.y.a.test", ""} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			cfg := client(ca, name)
			cfg.MaxVersion, cfg.InsecureSkipVerify = version, true
			_, err := shake(t, m, cfg)
			if err == nil || err.Error() != unrecognizedName {
				t.Errorf("%q with %s: got %v, want %s", name, tls.VersionName(version), err, unrecognizedName)
			}
		}
	}
}

// What crypto/tls lets through is not always a name (RFC 6066 section 3).
func TestHostileServerNamesAreRefused(t *testing.T) {
	m, _ := policyManager(t, nil)
	for _, name := range []string{
		".", "..", "../old.a.test", "old..a.test", ".old.a.test", "*.a.test", "old.a.test\x00", "old.a.test/", "old.a.test:x", "b\u00fccher.a.test", "[::1]", "::1", "127.0.0.1",
		strings.Repeat("x", 64) + ".a.test", strings.Repeat("x.", 125) + "a.test", strings.Repeat("x", 70_000),
	} {
		if m.policyFor("https", &tls.ClientHelloInfo{ServerName: name}) != nil {
			t.Errorf("%.40q is served", name)
		}
	}
	l := m.listener("https")
	for name, want := range map[string]*policy{"OLD.A.TEST": l.any, "NEW.a.test": l.exact["new.a.test"], "xn--bcher-kva.a.test": l.any} {
		if got := m.policyFor("https", &tls.ClientHelloInfo{ServerName: name}); got != want {
			t.Errorf("%s falls under another policy", name)
		}
	}
}

func TestUnknownListenerRefusesEverything(t *testing.T) {
	m, ca := policyManager(t, func(c *config.Config) {
		c.Listeners["other"] = c.Listeners["https"]
		delete(c.Listeners, "https")
	})
	_, err := shake(t, m, client(ca, "old.a.test"))
	if err == nil || err.Error() != unrecognizedName {
		t.Errorf("got %v, want %s", err, unrecognizedName)
	}
}

func TestClientWithoutServerNameGetsTheDefaultCertificate(t *testing.T) {
	m, ca := policyManager(t, func(c *config.Config) { c.Listeners["https"].DefaultCertificate = "file" })
	cfg := client(ca, "")
	cfg.InsecureSkipVerify = true
	state, err := shake(t, m, cfg)
	if err != nil || !slices.Contains(state.PeerCertificates[0].DNSNames, "a.test") {
		t.Fatalf("got %v", err)
	}
	for host, want := range map[string]bool{"old.a.test": true, "new.a.test": false, "b.test": false} {
		if got := same(m, "", host); got != want {
			t.Errorf("without a server name, host %q: admitted %v, want %v", host, got, want)
		}
	}
}

// Clients that connect to an IP address send no server name.
func TestClientWithoutServerNameGetsTheCertificateOfTheAddress(t *testing.T) {
	for _, fallback := range []string{"", "file"} {
		m, ca := policyManager(t, func(c *config.Config) {
			c.Listeners["https"].DefaultCertificate = fallback
			c.Listeners["https"].TLS.MinVersion = tls.VersionTLS12
		})
		now := time.Now()
		address := ca.certificate(t, "address", config.P256, now.Add(-time.Hour), now.Add(time.Hour), "address.test")
		address.names = append(address.names, "127.0.0.1", "2001:db8::1")
		all := []candidate{{address, true}, {m.files["file"], true}}
		m.index.Store(buildIndex(all, []string{"127.0.0.1", "2001:db8::1", "a.test", "old.a.test"}, now))

		cfg := client(ca, "")
		cfg.InsecureSkipVerify = true
		state, err := shakeOverTCP(t, m.TLSConfig("https"), cfg)
		if err != nil || state.PeerCertificates[0].DNSNames[0] != "address.test" {
			t.Fatalf("default certificate %q: %v", fallback, err)
		}
		mark := m.listener("https").any.mark
		for host, want := range map[string]bool{
			"127.0.0.1": true, "127.0.0.1:8443": true, "[2001:db8::1]:443": true, "[2001:DB8:0::1]": true, "127.0.0.2": false, "[::1]": false, "address.test": false,
			"old.a.test": fallback != "", "new.a.test": false,
		} {
			if got := m.Admits("https", mark, "", host); got != want {
				t.Errorf("default certificate %q, host %s: admitted %v, want %v", fallback, host, got, want)
			}
		}
		if m.Admits("https", markOf(m, "https", "new.a.test"), "", "127.0.0.1") {
			t.Error("an address is admitted under another policy")
		}
	}
}

func TestOpenSSLSeesUnrecognizedName(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	switch {
	case err != nil && os.Getenv("EDGE_CI") == "1":
		t.Fatal(err)
	case err != nil:
		t.Skip("openssl is not installed")
	}
	m, _ := policyManager(t, nil)
	l, err := tls.Listen("tcp", "127.0.0.1:0", m.TLSConfig("https"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			_ = c.Close()
		}
	}()
	out, _ := exec.Command(openssl, "s_client", "-connect", l.Addr().String(), "-servername", "b.test").CombinedOutput()
	if !strings.Contains(string(out), "alert number 112") {
		t.Errorf("openssl says:\n%s\nwant alert number 112", out)
	}
}

// oneSession is a session cache that offers whatever session it has to every
// server name, as a client bent on confusion would.
type oneSession struct{ session *tls.ClientSessionState }

func (c *oneSession) Get(string) (*tls.ClientSessionState, bool) { return c.session, c.session != nil }

func (c *oneSession) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.session = s
	}
}

func TestTicketOpensOnlyHostsWithItsPolicy(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		m, ca := policyManager(t, nil)
		for _, c := range []struct {
			first, second string
			resumed       bool
		}{
			{"old.a.test", "old.a.test", true},
			{"old.a.test", "other.a.test", true},
			{"old.a.test", "new.a.test", false},
			{"new.a.test", "old.a.test", false},
		} {
			if version == tls.VersionTLS12 && c.first == "new.a.test" {
				continue
			}
			cache := &oneSession{}
			connect := func(name string, most uint16) tls.ConnectionState {
				cfg := client(ca, name)
				cfg.MaxVersion, cfg.ClientSessionCache = most, cache
				state, err := shake(t, m, cfg)
				if err != nil {
					t.Fatalf("%s then %s: %v", c.first, c.second, err)
				}
				return state
			}
			connect(c.first, version)
			if cache.session == nil {
				t.Fatal("no session ticket")
			}
			second := version
			if c.second == "new.a.test" {
				second = tls.VersionTLS13
			}
			if got := connect(c.second, second).DidResume; got != c.resumed {
				t.Errorf("%s: %s then %s: resumed %v, want %v", tls.VersionName(version), c.first, c.second, got, c.resumed)
			}
		}
	}
}

func TestTicketDoesNotHelpIntoAnUnknownName(t *testing.T) {
	m, ca := policyManager(t, nil)
	cache := &oneSession{}
	cfg := client(ca, "old.a.test")
	cfg.ClientSessionCache = cache
	if _, err := shake(t, m, cfg); err != nil {
		t.Fatal(err)
	}
	cfg.ServerName, cfg.InsecureSkipVerify = "b.test", true
	if _, err := shake(t, m, cfg); err == nil {
		t.Error("a session for old.a.test opened b.test")
	}
}

func TestSessionsSurviveAReload(t *testing.T) {
	m, ca := policyManager(t, nil)
	cfg := client(ca, "old.a.test")
	cfg.ClientSessionCache = &oneSession{}
	if _, err := shake(t, m, cfg); err != nil {
		t.Fatal(err)
	}
	commit(t, m, m.state.Load().cfg)
	if state, err := shake(t, m, cfg); err != nil || !state.DidResume {
		t.Errorf("resumed %v, %v after a reload that changed nothing", state.DidResume, err)
	}
	next := *m.state.Load().cfg
	https := *next.Listeners["https"]
	https.TLS.MinVersion = tls.VersionTLS13
	next.Listeners = map[string]*config.Listener{"https": &https}
	commit(t, m, &next)
	if state, err := shake(t, m, cfg); err != nil || state.DidResume {
		t.Errorf("resumed %v, %v after a reload that changed the policy", state.DidResume, err)
	}
}

// same is Admits for a connection to the listener "https" that was made for
// server under what is in force.
func same(m *Manager, server, host string) bool {
	return m.Admits("https", markOf(m, "https", server), server, host)
}

// markOf is the mark of a connection made for server now.
func markOf(m *Manager, listener, server string) string {
	if p := m.policyFor(listener, &tls.ClientHelloInfo{ServerName: server}); p != nil {
		return p.mark
	}
	return ""
}

func TestAdmissionNeedsOneCertificateAndOnePolicy(t *testing.T) {
	m, _ := policyManager(t, func(c *config.Config) {
		ca := newTestCA(t)
		c.Certificates["b"] = &config.Certificate{Name: "b", File: ca.files(t, t.TempDir(), "b.test")}
	})
	for _, c := range []struct {
		server, host string
		want         bool
	}{
		{"old.a.test", "old.a.test", true},
		{"OLD.a.test.", "old.a.test:443", true},
		{"old.a.test", "other.a.test", true},
		{"old.a.test", "unrouted.a.test", true}, // the policy of any host
		{"old.a.test", "new.a.test", false},
		{"new.a.test", "new.a.test", true},
		{"new.a.test", "old.a.test", false},
		{"old.a.test", "b.test", false},
		{"old.a.test", "x.y.a.test", false},
		{"old.a.test", "not a host", false},
		{"unknown.test", "old.a.test", false},
		{"unknown.test", "unknown.test", false}, // no such connection can exist
		{"", "old.a.test", false},               // nobody without a server name is served
	} {
		if got := same(m, c.server, c.host); got != c.want {
			t.Errorf("server name %q, host %q: admitted %v, want %v", c.server, c.host, got, c.want)
		}
	}
	mark := markOf(m, "https", "old.a.test")
	if m.Admits("https", mark, "not a host", "old.a.test") || m.Admits("other", mark, "old.a.test", "old.a.test") ||
		m.Admits("https", "", "old.a.test", "old.a.test") || m.Admits("https", markOf(m, "https", "new.a.test"), "old.a.test", "old.a.test") {
		t.Error("admitted without a server name, a listener, a mark or the host's mark")
	}
}

func TestPolicyOfAHandshakeDoesNotAllocate(t *testing.T) {
	m, _ := policyManager(t, nil)
	for _, name := range []string{"old.a.test", "unrouted.a.test", "b.test"} {
		hello := &tls.ClientHelloInfo{ServerName: name}
		if n := testing.AllocsPerRun(100, func() { m.policyFor("https", hello) }); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
	mark := markOf(m, "https", "old.a.test")
	for _, host := range []string{"old.a.test", "other.a.test", "new.a.test", "b.test"} {
		if n := testing.AllocsPerRun(100, func() { m.Admits("https", mark, "old.a.test", host) }); n != 0 {
			t.Errorf("a request for %s: %v allocations, want 0", host, n)
		}
	}
}

func TestTicketOpensOnlyItsListener(t *testing.T) {
	m, ca := policyManager(t, func(c *config.Config) {
		other := *c.Listeners["https"]
		other.Name = "other"
		c.Listeners["other"] = &other
		for _, r := range c.Routes {
			r.Listeners = append(r.Listeners, "other")
		}
	})
	cfg := client(ca, "old.a.test")
	cfg.ClientSessionCache = &oneSession{}
	for _, c := range []struct {
		listener string
		resumed  bool
	}{{"https", false}, {"https", true}, {"other", false}, {"other", true}} {
		state, err := shakeWith(t, m.TLSConfig(c.listener), cfg)
		if err != nil || state.DidResume != c.resumed {
			t.Errorf("%s: resumed %v, %v; want %v", c.listener, state.DidResume, err, c.resumed)
		}
	}
}

// Every listener judges by what it demands itself.
func TestListenersDoNotTakeEachOthersConnections(t *testing.T) {
	m, _ := policyManager(t, func(c *config.Config) {
		c.Listeners["other"] = &config.Listener{Name: "other"}
		c.Routes = append(c.Routes, &config.Route{
			Name: "strict", Hosts: []string{"other.a.test"}, Path: "/", Listeners: []string{"other"}, TLS: config.TLS{MinVersion: tls.VersionTLS13},
		})
	})
	https, other := markOf(m, "https", "old.a.test"), markOf(m, "other", "old.a.test")
	if !m.Admits("https", https, "old.a.test", "other.a.test") || m.Admits("other", other, "old.a.test", "other.a.test") {
		t.Error("other.a.test is as strict as on the other listener")
	}
	if m.Admits("other", https, "old.a.test", "old.a.test") {
		t.Error("a connection of one listener passes on another")
	}
}

func BenchmarkAdmits(b *testing.B) {
	ca := newTestCA(b)
	cfg := &config.Config{
		Listeners:    map[string]*config.Listener{"https": {Name: "https"}},
		Certificates: map[string]*config.Certificate{"file": {Name: "file", File: ca.files(b, b.TempDir(), "*.a.test")}},
	}
	m := New(Options{})
	commit(b, m, cfg)
	mark := markOf(m, "https", "old.a.test")
	b.ReportAllocs()
	for b.Loop() {
		if !m.Admits("https", mark, "old.a.test", "old.a.test") {
			b.Fatal("not admitted")
		}
	}
}
