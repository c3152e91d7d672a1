package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

var begin = time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func create(tb testing.TB, now time.Time) *Authority {
	tb.Helper()
	a, err := Create("internal", now)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func serverKey(tb testing.TB) crypto.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// issue returns a certificate with its chain, as a server loads it.
func issue(tb testing.TB, a *Authority, key crypto.Signer, lifetime time.Duration, now time.Time, names ...string) tls.Certificate {
	tb.Helper()
	chain, err := a.Issue(names, key, lifetime, now)
	if err != nil {
		tb.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(chain), []byte(encodeKey(key)))
	if err != nil {
		tb.Fatal(err)
	}
	return pair
}

// verify is what a client does that trusts a's root only.
func verify(tb testing.TB, a *Authority, pair tls.Certificate, name string, now time.Time, use x509.ExtKeyUsage) error {
	tb.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(a.Root())) {
		tb.Fatal("the root is no PEM")
	}
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			tb.Fatal(err)
		}
		between.AddCert(c)
	}
	_, err := pair.Leaf.Verify(x509.VerifyOptions{
		DNSName: name, Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use},
	})
	return err
}

func TestClientThatTrustsTheRootAcceptsEveryName(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	pair := issue(t, a, serverKey(t), 30*day, begin, "app.internal", "*.app.internal", "nas", "10.0.0.7", "fd00::7")
	for _, name := range []string{"app.internal", "www.app.internal", "nas", "10.0.0.7", "[fd00::7]"} {
		if err := verify(t, a, pair, name, begin, x509.ExtKeyUsageServerAuth); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"a.b.app.internal", "other.internal", "10.0.0.8"} {
		if err := verify(t, a, pair, name, begin, x509.ExtKeyUsageServerAuth); err == nil {
			t.Errorf("%s is accepted, which the certificate does not have", name)
		}
	}
	if err := verify(t, a, pair, "app.internal", begin, x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("a server's certificate is accepted as that of a client")
	}
	if err := verify(t, create(t, begin), pair, "app.internal", begin, x509.ExtKeyUsageServerAuth); err == nil {
		t.Error("accepted by one who trusts another root of the same issuer")
	}
}

func TestLeafIsWhatAServerNeedsAndNoMore(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	leaf := issue(t, a, serverKey(t), 30*day, begin, "app.internal", "10.0.0.7").Leaf
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature ||
		len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("CA %v, usage %v, extended %v", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage)
	}
	if want := begin.Add(-time.Minute); !leaf.NotBefore.Equal(want) {
		t.Errorf("begins %s, want a minute ago: %s", leaf.NotBefore, want)
	}
	if want := begin.Add(30 * day); !leaf.NotAfter.Equal(want) {
		t.Errorf("ends %s, want %s", leaf.NotAfter, want)
	}
	if issuer := a.intermediate.certificate; string(leaf.AuthorityKeyId) != string(issuer.SubjectKeyId) || len(leaf.SubjectKeyId) == 0 {
		t.Errorf("key ids: own %x, authority %x, want authority %x", leaf.SubjectKeyId, leaf.AuthorityKeyId, issuer.SubjectKeyId)
	}
}

func TestRSAKeyMayAlsoEncipher(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	a := create(t, begin)
	pair := issue(t, a, key, day, begin, "app.internal")
	if pair.Leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
		t.Errorf("usage %v", pair.Leaf.KeyUsage)
	}
	if err := verify(t, a, pair, "app.internal", begin, x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
}

func TestSerialsAreRandom(t *testing.T) {
	t.Parallel()
	a, key := create(t, begin), serverKey(t)
	seen, longest := map[string]bool{}, 0
	for range 50 {
		n := issue(t, a, key, day, begin, "app.internal").Leaf.SerialNumber
		if n.Sign() <= 0 || n.BitLen() > 128 || seen[n.String()] {
			t.Errorf("serial %x", n)
		}
		seen[n.String()] = true
		longest = max(longest, n.BitLen())
	}
	if longest < 120 {
		t.Errorf("the longest of 50 serials has %d bits, want about 128", longest)
	}
}

func TestAuthorityIsRootAndIntermediateOfTheRightLength(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	root, between := a.root.certificate, a.intermediate.certificate
	if root.MaxPathLen != 1 || between.MaxPathLen != 0 || !between.MaxPathLenZero || !root.IsCA || !between.IsCA {
		t.Errorf("path lengths %d and %d, want 1 and 0", root.MaxPathLen, between.MaxPathLen)
	}
	if want := begin.AddDate(10, 0, 0); !root.NotAfter.Equal(want) || !a.RootEnd().Equal(want) {
		t.Errorf("the root ends %s, want %s", root.NotAfter, want)
	}
	if want := begin.Add(365 * day); !between.NotAfter.Equal(want) {
		t.Errorf("the intermediate ends %s, want %s", between.NotAfter, want)
	}
	id := fmt.Sprintf("%x", root.SubjectKeyId[:4])
	if got, want := a.String(), "edge internal CA internal "+id; got != want {
		t.Errorf("name %q, want %q", got, want)
	}
	if !strings.HasPrefix(between.Subject.CommonName, "edge internal intermediate CA internal ") {
		t.Errorf("name of the intermediate: %q", between.Subject.CommonName)
	}
}

func TestLongIssuerNamesFitIntoACommonName(t *testing.T) {
	t.Parallel()
	a, err := Create(strings.Repeat("ü", 40), begin)
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Renewed(begin)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*x509.Certificate{a.root.certificate, a.intermediate.certificate, b.intermediate.certificate} {
		if n := c.Subject.CommonName; len(n) > 64 || !strings.Contains(n, "üü ") {
			t.Errorf("common name %q of %d bytes", n, len(n))
		}
	}
}

func TestIntermediateIsReplacedAtAThirdUnderTheSameRoot(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	if now := begin.Add(243 * day); a.Due(now) {
		t.Errorf("due with %s left", a.intermediate.certificate.NotAfter.Sub(now))
	}
	now := begin.Add(244 * day)
	if !a.Due(now) {
		t.Error("not due with less than a third left")
	}
	old := issue(t, a, serverKey(t), 30*day, now, "app.internal")
	b, err := a.Renewed(now)
	if err != nil {
		t.Fatal(err)
	}
	if b.Root() != a.Root() || b.Due(now) || b.intermediate.certificate.Equal(a.intermediate.certificate) {
		t.Error("the new one has another root, is due already, or is the old one")
	}
	if strings.Count(b.intermediate.certificate.Subject.CommonName, " internal ") != 2 {
		t.Errorf("the name is not kept: %q", b.intermediate.certificate.Subject.CommonName)
	}
	for _, pair := range []tls.Certificate{old, issue(t, b, serverKey(t), 30*day, now, "app.internal")} {
		if err := verify(t, a, pair, "app.internal", now.Add(29*day), x509.ExtKeyUsageServerAuth); err != nil {
			t.Error(err)
		}
	}
}

func TestNothingOutlivesWhatVouchesForIt(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	leaf := issue(t, a, serverKey(t), 400*day, begin, "app.internal").Leaf
	if want := a.intermediate.certificate.NotAfter; !leaf.NotAfter.Equal(want) {
		t.Errorf("a leaf of 400 days ends %s, want with the intermediate: %s", leaf.NotAfter, want)
	}
	late := begin.AddDate(9, 6, 0)
	b, err := a.Renewed(late)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.intermediate.certificate.NotAfter; !got.Equal(a.RootEnd()) {
		t.Errorf("an intermediate of the root's last half year ends %s, want with the root: %s", got, a.RootEnd())
	}
	if b.Due(a.RootEnd().Add(-day)) {
		t.Error("due, though a new one would live no longer")
	}
}

func TestRootIsNeverReplacedButAnnouncesItsEnd(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	if a.RootDue(begin.AddDate(8, 11, 0)) {
		t.Error("warned of more than a year before")
	}
	if !a.RootDue(begin.AddDate(9, 0, 1)) {
		t.Error("not warned of in its last year")
	}
	_, err := a.Renewed(a.RootEnd())
	if err == nil || !strings.Contains(err.Error(), "has ended on 2036-11-24 (add an internal issuer") {
		t.Errorf("renewed after the end of the root: %v", err)
	}
}

func TestIssueRefusesWhatWouldBeNoUse(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	many := make([]string, 1001)
	for i := range many {
		many[i] = fmt.Sprintf("n%d.internal", i)
	}
	for _, c := range []struct {
		what     string
		names    []string
		key      crypto.Signer
		lifetime time.Duration
		now      time.Time
		want     string
	}{
		{"no names", nil, serverKey(t), day, begin, "no names"},
		{"too many names", many, serverKey(t), day, begin, "1001 names (at most 1000 are allowed)"},
		{"a name with a space", []string{"a b"}, serverKey(t), day, begin, `name "a b"`},
		{"capitals", []string{"App.internal"}, serverKey(t), day, begin, `"App.internal" is not canonical (write app.internal)`},
		{"a zoned address", []string{"fe80::1%eth0"}, serverKey(t), day, begin, `name "fe80::1%eth0"`},
		{"no key", []string{"a.internal"}, nil, day, begin, "no key"},
		{"a key that browsers do not take", []string{"a.internal"}, edKey, day, begin, "ECDSA and RSA are known"},
		{"no lifetime", []string{"a.internal"}, serverKey(t), 0, begin, "lifetime of 0s"},
		{"a clock behind", []string{"a.internal"}, serverKey(t), day, begin.Add(-day), "is the clock right?"},
		{"an intermediate that has ended", []string{"a.internal"}, serverKey(t), day, begin.Add(366 * day), "has ended on 2027-11-24"},
	} {
		_, err := a.Issue(c.names, c.key, c.lifetime, c.now)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", c.what, err, c.want)
		}
	}
}

func TestAuthorityNeverPrintsItsKeys(t *testing.T) {
	t.Parallel()
	a := create(t, begin)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", slog.Any("authority", a))
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", slog.Any("authority", a))
	for _, text := range []string{log.String(), fmt.Sprintf("%v %+v %s", a, a, a)} {
		if strings.Contains(text, "PRIVATE") || strings.Contains(text, "0x") {
			t.Errorf("prints as %s", text)
		}
	}
}
