package acme_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/tlsmgr/acme"
)

func TestKeysOfEveryTypeComeBackFromPEM(t *testing.T) {
	t.Parallel()
	for kind, want := range map[config.KeyType]string{"": "P-256", config.P256: "P-256", config.P384: "P-384", config.RSA2048: "RSA 2048"} {
		key, err := acme.NewKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		text, err := acme.EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		back, err := acme.DecodeKey(text)
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := key.(interface{ Equal(x any) bool }); ok && !e.Equal(back) {
			t.Errorf("%q came back as another key", kind)
		}
		if got := describe(t, back.Public()); got != want {
			t.Errorf("%q is %s, want %s", kind, got, want)
		}
	}
	if _, err := acme.NewKey("dsa"); err == nil || !strings.Contains(err.Error(), "want p256, p384 or rsa2048") {
		t.Errorf("got %v", err)
	}
}

func describe(t *testing.T, public any) string {
	t.Helper()
	switch k := public.(type) {
	case interface{ Size() int }:
		return fmt.Sprintf("RSA %d", k.Size()*8)
	default:
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		return map[bool]string{true: "P-256", false: "P-384"}[len(der) < 100]
	}
}

func TestWhatIsNoKeyIsNotQuoted(t *testing.T) {
	t.Parallel()
	const secret = "hunter2hunter2"
	for _, text := range []string{"", secret, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte(secret)}))} {
		if _, err := acme.DecodeKey(text); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("got %v", err)
		}
	}
}

// made is a chain by hand: a leaf for names, and its issuer.
func made(t *testing.T, notAfter time.Time, names ...string) (chain, key string, other string) {
	t.Helper()
	issuerKey, leafKey := fresh(t), fresh(t)
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Made"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: notAfter.AddDate(-1, 0, 0), NotAfter: notAfter,
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: issuer.NotBefore, NotAfter: notAfter}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, n)
		}
	}
	issuerPEM := signed(t, issuer, issuer, issuerKey, issuerKey)
	text, err := acme.EncodeKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, leaf, issuer, leafKey, issuerKey) + issuerPEM, text, issuerPEM
}

func TestOnlyWhatWasOrderedIsAccepted(t *testing.T) {
	t.Parallel()
	now := time.Now()
	chain, key, issuer := made(t, now.Add(time.Hour), "b.test", "A.test", "192.0.2.1", "2001:db8::1")
	_, otherKey, otherIssuer := made(t, now.Add(time.Hour), "a.test")
	leaf := strings.SplitAfter(chain, "-----END CERTIFICATE-----\n")[0]
	names := []string{"2001:DB8::1", "a.test", "192.0.2.1", "b.test"} // in any order and form
	for _, c := range []struct {
		name       string
		names      []string
		chain, key string
		now        time.Time
		want       string // "" is accepted
	}{
		{"as ordered", names, chain, key, now, ""},
		{"without intermediate", names, leaf, key, now, ""},
		{"a name missing", append(names, "c.test"), chain, key, now, "ordered 192.0.2.1, 2001:db8::1, a.test, b.test, c.test"},
		{"a name too many", names[1:], chain, key, now, "names "},
		{"another key", names, chain, otherKey, now, "private key does not match"},
		{"expired", names, chain, key, now.Add(2 * time.Hour), "expired"},
		{"another issuer", names, leaf + otherIssuer, key, now, "chain is broken at"},
		{"issuer first", names, issuer + leaf, key, now, "private key does not match"},
		{"nothing", names, "", key, now, "tls:"},
	} {
		err := acme.CheckIssued(c.names, c.chain, c.key, c.now)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	many := make([]string, 30)
	for n := range many {
		many[n] = fmt.Sprintf("n%d.test", n)
	}
	if err := acme.CheckIssued(many, chain, key, now); err == nil || !strings.Contains(err.Error(), "and 20 more") {
		t.Errorf("got %v, want a short list", err)
	}
}

func TestCSRHoldsNamesAndAddresses(t *testing.T) {
	t.Parallel()
	der, _ := csr(t, "*.a.test", "192.0.2.1", "2001:db8::1")
	got, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got.DNSNames) != "[*.a.test]" || fmt.Sprint(got.IPAddresses) != "[192.0.2.1 2001:db8::1]" || got.Subject.CommonName != "" {
		t.Errorf("names %v, addresses %v, subject %q", got.DNSNames, got.IPAddresses, got.Subject)
	}
	if len(got.IPAddresses[0]) != net.IPv4len && got.IPAddresses[0].To4() == nil {
		t.Errorf("address %v is not IPv4", got.IPAddresses[0])
	}
	if err := got.CheckSignature(); err != nil {
		t.Error(err)
	}
}

func fresh(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := acme.NewKey(config.P256)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func signed(t *testing.T, cert, parent *x509.Certificate, key, by crypto.Signer) string {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
