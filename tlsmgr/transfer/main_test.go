package transfer_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/transfer"
	"edge/tlsmgr/vault"
)

func TestMain(m *testing.M) {
	for name, value := range map[string]string{ // not the machine's own
		"AWS_ACCESS_KEY_ID": acmelab.AccessKeyID, "AWS_SECRET_ACCESS_KEY": acmelab.SecretAccessKey, "AWS_SESSION_TOKEN": "",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "",
	} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(acmelab.LeakedFunction),
		// certmagic's own: one for each account for good, one for each lock for seconds after it.
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"))
}

const letsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// openStore opens a store that ends with the test.
func openStore(tb testing.TB, rawURL string) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), rawURL, store.Options{Logger: slog.New(slog.DiscardHandler), LeaseTTL: 5 * time.Second})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// newVault is an empty vault that seals what it keeps.
func newVault(tb testing.TB) *vault.Vault {
	tb.Helper()
	keys, err := vault.NewKeyring([]config.Secret{secret(tb, strings.Repeat("k", 32))})
	if err != nil {
		tb.Fatal(err)
	}
	return vault.New(openStore(tb, "file://"+tb.TempDir()), vault.Options{Keys: keys, Logger: slog.New(slog.DiscardHandler)})
}

func secret(tb testing.TB, value string) config.Secret {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "key")
	if err := os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString([]byte(value))), 0o600); err != nil {
		tb.Fatal(err)
	}
	return config.Secret{Ref: "file:" + file}
}

// A testCA issues certificates without ACME. It is a certmagic.Issuer that says
// it is Let's Encrypt.
type testCA struct {
	tb       testing.TB
	key      crypto.Signer
	cert     *x509.Certificate
	from, to time.Duration // validity, from now; zero is a month ago to two months ahead
}

func newTestCA(tb testing.TB) *testCA {
	tb.Helper()
	ca := &testCA{tb: tb, key: newKey(tb, config.P256)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-10_000 * time.Hour), NotAfter: time.Now().Add(10_000 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	return ca
}

func newKey(tb testing.TB, kind config.KeyType) crypto.Signer {
	tb.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case config.P256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case config.P384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case config.RSA2048:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// sign makes a chain for names and public.
func (ca *testCA) sign(public crypto.PublicKey, names ...string) []byte {
	ca.tb.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		ca.tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-30 * 24 * time.Hour), NotAfter: time.Now().Add(60 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ca.to != 0 {
		template.NotBefore, template.NotAfter = time.Now().Add(ca.from), time.Now().Add(ca.to)
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		ca.tb.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})...)
}

// aged is ca with another validity.
func (ca *testCA) aged(from, to time.Duration) *testCA {
	other := *ca
	other.from, other.to = from, to
	return &other
}

// pair is a chain and its key, PKCS #8.
func (ca *testCA) pair(kind config.KeyType, names ...string) (chain, key []byte) {
	ca.tb.Helper()
	signer := newKey(ca.tb, kind)
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		ca.tb.Fatal(err)
	}
	return ca.sign(signer.Public(), names...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (ca *testCA) certificate(id string, names ...string) *vault.Certificate {
	ca.tb.Helper()
	chain, key := ca.pair(config.P256, names...)
	leaf := leafOf(ca.tb, chain)
	return &vault.Certificate{
		ID: id, Names: names, Issuer: "acme", Directory: letsEncrypt, KeyType: config.P256,
		Chain: string(chain), PrivateKey: string(key), ObtainedAt: leaf.NotBefore,
	}
}

// Issue makes ca a certmagic.Issuer.
func (ca *testCA) Issue(_ context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	names := csr.DNSNames
	for _, ip := range csr.IPAddresses {
		names = append(names, ip.String())
	}
	return &certmagic.IssuedCertificate{
		Certificate: ca.sign(csr.PublicKey, names...),
		Metadata:    acme.Certificate{URL: "https://acme-v02.api.letsencrypt.org/acme/cert/1", CA: letsEncrypt},
	}, nil
}

// IssuerKey is that of Let's Encrypt.
func (ca *testCA) IssuerKey() string { return (&certmagic.ACMEIssuer{CA: letsEncrypt}).IssuerKey() }

// magic is certmagic as Caddy uses it, with a storage and an issuer, which it
// makes of the configuration.
func magic(tb testing.TB, storage certmagic.Storage, issuer func(*certmagic.Config) certmagic.Issuer) *certmagic.Config {
	tb.Helper()
	var cfg *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return cfg, nil },
		Logger:           zap.NewNop(),
	})
	tb.Cleanup(cache.Stop)
	cfg = certmagic.New(cache, certmagic.Config{
		Storage: storage, Logger: zap.NewNop(), OCSP: certmagic.OCSPConfig{DisableStapling: true}, DisableARI: true,
	})
	cfg.Issuers = []certmagic.Issuer{issuer(cfg)}
	return cfg
}

// obtain lets certmagic obtain a certificate for each name.
func obtain(tb testing.TB, cfg *certmagic.Config, names ...string) {
	tb.Helper()
	for _, n := range names {
		if err := cfg.ObtainCertSync(tb.Context(), n); err != nil {
			tb.Fatal(err)
		}
	}
}

func leafOf(tb testing.TB, chain []byte) *x509.Certificate {
	tb.Helper()
	block, _ := pem.Decode(chain)
	if block == nil {
		tb.Fatalf("no PEM in %q", chain)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return leaf
}

func fingerprint(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return hex.EncodeToString(sum[:])
}

// stored is the certificate called id, which must be one that can be served.
func stored(tb testing.TB, v *vault.Vault, id string) (*vault.Certificate, string) {
	tb.Helper()
	c, _, err := vault.Load[vault.Certificate](tb.Context(), v, id)
	if err != nil {
		tb.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(c.Chain), []byte(c.PrivateKey))
	if err != nil {
		tb.Fatal(err)
	}
	return c, fingerprint(pair.Leaf)
}

func run(tb testing.TB, from *store.Store, v *vault.Vault, o transfer.Options) *transfer.Report {
	tb.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	r, err := transfer.Import(tb.Context(), from, v, o)
	if err != nil {
		tb.Fatal(err)
	}
	sound(tb, v)
	return r
}

// sound checks that edge finds nothing wrong with what is stored.
func sound(tb testing.TB, v *vault.Vault) {
	tb.Helper()
	r, err := v.Verify(tb.Context(), nil)
	if err != nil || len(r.Findings) > 0 {
		tb.Errorf("the storage after it: %+v, %v", r.Findings, err)
	}
}

// outcome is a report as "action id: reason" by the last part of the source.
func outcome(r *transfer.Report) map[string]string {
	out := map[string]string{}
	for _, e := range r.Entries {
		line := strings.TrimSuffix(string(e.Action)+" "+e.ID, " ")
		if e.Reason != "" {
			line += ": " + e.Reason
		}
		name := filepath.Base(e.Source)
		if out[name] != "" {
			line = out[name] + " | " + line
		}
		out[name] = line
	}
	return out
}
