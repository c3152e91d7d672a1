package acme_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

func TestEveryNameThatFailsIsReported(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	o := order(t, l.CA, a, "good.example.test", "bad.example.test", "*.worse.example.test")
	proofs := l.present(t, o)
	for _, p := range proofs {
		if p.Name != "good.example.test" {
			c := p.Challenges[config.DNS01]
			if err := l.dns.Remove(c.DNSName + `. 1 IN TXT "` + c.DNSValue + `"`); err != nil {
				t.Fatal(err)
			}
		}
	}
	failed := func(err error) {
		t.Helper()
		e := refused(t, err, acme.Unproven, "prove control of the names", "bad.example.test: unauthorized", "does the internet see")
		if len(e.Names) != 2 || e.Names["bad.example.test"] == "" || e.Names["*.worse.example.test"] == "" {
			t.Errorf("names %q, want the two that failed", e.Names)
		}
	}
	failed(o.Validate(t.Context(), proofs, config.DNS01))
	heirs, err := l.GetOrder(t.Context(), a, o.URL)
	if err != nil {
		t.Fatal(err)
	}
	if heirs.Status != "invalid" {
		t.Errorf("order is %s, want invalid", heirs.Status)
	}
	_, err = heirs.Proofs(t.Context())
	failed(err)
	der, _ := csr(t, "good.example.test", "bad.example.test", "*.worse.example.test")
	refused(t, heirs.Finalize(t.Context(), der), acme.Unproven, "finalize the order", "does the internet see")
}

func TestHeirWaitsForAValidationThatIsUnderWay(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{Sleep: 3}, nil)
	a := l.register(t)
	o := order(t, l.CA, a, "a.example.test", "*.a.example.test")
	proofs := l.present(t, o)
	heirs, err := l.GetOrder(t.Context(), a, o.URL)
	if err != nil {
		t.Fatal(err)
	}
	stale, err := heirs.Proofs(t.Context()) // before the predecessor began
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- o.Validate(t.Context(), proofs, config.DNS01) }()
	if err := heirs.Validate(t.Context(), stale, config.DNS01); err != nil {
		t.Errorf("heir: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("predecessor: %v", err)
	}
	if err := heirs.Validate(t.Context(), stale, config.DNS01); err != nil {
		t.Errorf("once more: %v", err)
	}
}

func TestPersistentRecordProvesManyOrders(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	// One record is there before any order.
	value := "lab.test; accounturi=" + a.URL + "; policy=wildcard"
	if err := l.dns.Add(`_validation-persist.example.test. 60 IN TXT "` + value + `"`); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		names := []string{"example.test", "*.example.test"}
		o := order(t, l.CA, a, names...)
		proofs, err := o.Proofs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range proofs {
			c := p.Challenges[config.DNSPersist01]
			want := "lab.test; accounturi=" + a.URL
			if p.Wildcard {
				want = value
			}
			if c.DNSName != "_validation-persist.example.test" || c.DNSValue != want || !slices.Equal(c.Issuers, []string{"lab.test"}) || c.Token != "" {
				t.Errorf("%s: challenge %+v, want %q", p.Identifier(), c, want)
			}
		}
		if err := o.Validate(t.Context(), proofs, config.DNSPersist01); err != nil {
			t.Fatal(err)
		}
		der, _ := csr(t, names...)
		if err := o.Finalize(t.Context(), der); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyNamesAreProvenTogether(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{BadNonces: 10}, nil)
	var names []string
	for c := 'a'; c <= 'z'; c++ {
		names = append(names, string(c)+".example.test")
	}
	got := l.obtain(t, l.register(t), acme.Request{Names: names})
	if !slices.Equal(slices.Sorted(slices.Values(got.leaf.DNSNames)), names) {
		t.Errorf("names %q, want %q", got.leaf.DNSNames, names)
	}
}

// answers is what a front of edge would answer for challenges.
type answers struct{ byToken, byName sync.Map }

func (a *answers) add(proofs []acme.Proof) {
	for _, p := range proofs {
		a.byToken.Store(p.Challenges[config.HTTP01].Token, p.Challenges[config.HTTP01].KeyAuthorization)
		a.byName.Store(p.Name, p.Challenges[config.TLSALPN01].KeyAuthorization)
	}
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, ok := strings.CutPrefix(r.URL.Path, "/.well-known/acme-challenge/")
	if key, found := a.byToken.Load(token); ok && found {
		_, _ = w.Write([]byte(key.(string)))
		return
	}
	http.NotFound(w, r)
}

// certificate answers tls-alpn-01. For an address the CA asks for its name in
// the reverse zone (RFC 8738 section 6); this one knows a single address.
func (a *answers) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "1.0.0.127.in-addr.arpa" {
		name = "127.0.0.1"
	}
	key, ok := a.byName.Load(name)
	if !ok || !slices.Equal(hello.SupportedProtos, []string{acme.ALPNProtocol}) {
		return nil, errors.New("no such challenge")
	}
	return acme.ALPNCertificate(name, key.(string))
}

func TestNamesAndAddressesAreProvenByHTTPAndTLS(t *testing.T) {
	t.Parallel()
	var a answers
	web := httptest.NewServer(&a)
	t.Cleanup(web.Close)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: a.certificate, NextProtos: []string{acme.ALPNProtocol}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	go accept(ln)
	t.Cleanup(func() { _ = ln.Close() })
	l := start(t, acmelab.CAOptions{HTTPPort: web.Listener.Addr().(*net.TCPAddr).Port, TLSPort: ln.Addr().(*net.TCPAddr).Port}, nil)
	if err := l.dns.Add("a.example.test. 1 IN A 127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	account := l.register(t)
	for _, kind := range []config.Challenge{config.HTTP01, config.TLSALPN01} {
		o := order(t, l.CA, account, "a.example.test", "127.0.0.1")
		proofs, err := o.Proofs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a.add(proofs)
		if err := o.Validate(t.Context(), proofs, kind); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		der, _ := csr(t, "a.example.test", "127.0.0.1")
		if err := o.Finalize(t.Context(), der); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	if _, err := acme.ALPNCertificate("a.example.test", ""); err != nil {
		t.Error(err)
	}
}

// accept shakes hands until ln is closed.
func accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		_ = conn.(*tls.Conn).HandshakeContext(context.Background())
		_ = conn.Close()
	}
}
