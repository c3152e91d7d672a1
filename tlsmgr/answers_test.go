package tlsmgr

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
)

// frontDoor gives a replica a port that a CA comes to.
func frontDoor(t *testing.T) (net.Listener, int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln, ln.Addr().(*net.TCPAddr).Port
}

// withoutDNS is a configuration that proves control by a challenge of a kind.
func withoutDNS(t *testing.T, lab *acmelab.Lab, kind config.Challenge, hosts ...string) *config.Config {
	t.Helper()
	cfg := labConfig(t, lab, hosts...)
	cfg.Issuers["lab"].Challenge, cfg.Issuers["lab"].Providers = kind, nil
	cfg.Providers = map[string]*config.Provider{}
	return cfg
}

func TestNamesAndAddressesAreProvenByHTTPThroughAnyReplica(t *testing.T) {
	t.Parallel()
	ln, port := frontDoor(t)
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{HTTPPort: port}})
	if err := lab.DNS.Add("a.example.test. 1 IN A 127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	cfg := withoutDNS(t, lab, config.HTTP01, "a.example.test")
	cfg.Certificates["ip"] = &config.Certificate{Name: "ip", Names: []string{"127.0.0.1"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	serving := *cfg
	serving.ServeOnly = true
	other := start(t, &serving, nil) // the CA comes to this one, which orders nothing
	server := &http.Server{Handler: other.HTTP01(http.NotFoundHandler()), ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })

	m := start(t, cfg, nil)
	m.until(t, "example.test", StepLoaded)
	wait(t, func() bool { return len(missing(other)) == 0 })
	state, err := shake(t, other.Manager, &tls.Config{ServerName: "a.example.test", RootCAs: lab.CA.Roots})
	if err != nil || state.PeerCertificates[0].VerifyHostname("a.example.test") != nil {
		t.Errorf("handshake: %v", err)
	}
	objects, err := m.vaultInUse().Store().ListVersions(t.Context(), "edge/v1/challenges")
	if err != nil || len(objects) > 0 {
		t.Errorf("answers left in the storage: %v, %v", objects, err)
	}
}

func TestNamesAreProvenByTLSALPNThroughAnyReplica(t *testing.T) {
	t.Parallel()
	ln, port := frontDoor(t)
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{TLSPort: port}})
	if err := lab.DNS.Add("a.example.test. 1 IN A 127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	cfg := withoutDNS(t, lab, config.TLSALPN01, "a.example.test")
	cfg.Certificates["ip"] = &config.Certificate{Name: "ip", Names: []string{"127.0.0.1"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	serving := *cfg
	serving.ServeOnly = true
	other := start(t, &serving, nil)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = tls.Server(c, other.TLSConfig("https")).HandshakeContext(t.Context())
				_ = c.Close()
			}()
		}
	}()
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepLoaded)
	wait(t, func() bool { return len(missing(other)) == 0 })
}

func TestStrangersCannotMakeReplicasReadTheStorage(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test"), nil) // dns-01
	m.until(t, "example.test", StepLoaded)
	h := m.HTTP01(http.NotFoundHandler())
	for path, reads := range map[string]bool{
		"/.well-known/acme-challenge/" + strings.Repeat("a", 43): false, // no issuer uses http-01
		"/.well-known/acme-challenge/../../x":                    false,
		"/other":                                                 false,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusNotFound || reads {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	if len(m.answers.known) != 0 {
		t.Errorf("looked up %v", m.answers.known)
	}
	for _, bad := range []string{"", "a/b", "a%2f", strings.Repeat("a", 129), "ä"} {
		if isToken(bad) {
			t.Errorf("%q is a token", bad)
		}
	}
}

func TestServerNamesOfValidationsStandForNamesAndAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"a.example.test":           "a.example.test",
		"7.113.0.203.in-addr.arpa": "203.0.113.7",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa": "2001:db8::1",
	} {
		if got, ok := challengedName(in); got != want || !ok {
			t.Errorf("%s: %q, %v; want %q", in, got, ok, want)
		}
	}
	for _, bad := range []string{"", "x.in-addr.arpa", "1.2.ip6.arpa", "zz.ip6.arpa"} {
		if got, ok := challengedName(bad); ok {
			t.Errorf("%q stands for %q", bad, got)
		}
	}
}

// A stranger asks for a name just before the CA does.
func TestStrangersCannotMakeAReplicaRefuseTheCA(t *testing.T) {
	t.Parallel()
	ln, port := frontDoor(t)
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{TLSPort: port}})
	if err := lab.DNS.Add("a.example.test. 1 IN A 127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	cfg := withoutDNS(t, lab, config.TLSALPN01, "a.example.test")
	serving := *cfg
	serving.ServeOnly = true
	other := start(t, &serving, nil)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = tls.Server(c, other.TLSConfig("https")).HandshakeContext(t.Context())
				_ = c.Close()
			}()
		}
	}()
	stranger := make(chan struct{})
	go func() {
		defer close(stranger)
		for t.Context().Err() == nil {
			_ = other.answerFor(t.Context(), other.answers.lookups, config.TLSALPN01, "a.example.test")
			time.Sleep(time.Millisecond)
		}
	}()
	t.Cleanup(func() { <-stranger })
	m := start(t, cfg, func(o *Options) { o.Backoff = func(int) time.Duration { return time.Hour } })
	m.until(t, "example.test", StepLoaded)
}

func TestMissThatIsOlderThanTheAnswerDoesNotHideIt(t *testing.T) {
	a := newAnswers()
	now := time.Now()
	a.put("id", "answer", now.Add(answerLife))
	a.put("id", "", now.Add(missLife)) // looked for before, found out after
	if text, known := a.get("id"); text != "answer" || !known {
		t.Errorf("%q, %v", text, known)
	}
	for n := range 2 * maxAnswers {
		a.put(strconv.Itoa(n), "", now.Add(missLife))
	}
	if text, _ := a.get("id"); text != "answer" || len(a.known) > maxAnswers {
		t.Errorf("after many misses: %q, %d remembered", text, len(a.known))
	}
}

func TestPersistentRecordProvesWithoutCredentials(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := withoutDNS(t, lab, config.DNSPersist01, "a.example.test", "*.a.example.test")
	m := start(t, cfg, nil)
	e := m.until(t, "example.test", StepFailed)
	_, rest, ok := strings.Cut(e.Detail, "publish ")
	record, _, quoted := strings.Cut(rest, `")`)
	if !ok || !quoted {
		t.Fatalf("no record to publish in %q", e.Detail)
	}
	name, value, _ := strings.Cut(record, " TXT ")
	if err := lab.DNS.Add(name + ` 1 IN TXT ` + value + `"`); err != nil {
		t.Fatal(err)
	}
	m.until(t, "example.test", StepLoaded)
	if _, updates := lab.DNS.Counts(); updates != 0 {
		t.Errorf("%d DNS updates, want none", updates)
	}
}
