package vault_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
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
	goleak.VerifyTestMain(m)
}

// eachStore is the URL of an empty directory and that of an empty bucket.
func eachStore(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{"file": "file://" + t.TempDir(), "s3": acmelab.NewS3(t, "certs").StoreURL("certs", "some/prefix")}
}

// openStore opens a store that ends with the test.
func openStore(tb testing.TB, rawURL string) *store.Store {
	tb.Helper()
	return openStoreTTL(tb, rawURL, 5*time.Second)
}

func openStoreTTL(tb testing.TB, rawURL string, ttl time.Duration) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), rawURL, store.Options{Logger: slog.New(slog.DiscardHandler), LeaseTTL: ttl})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// open opens a vault with the keys called, "" is none.
func open(tb testing.TB, rawURL string, keys ...string) *vault.Vault {
	tb.Helper()
	return vault.New(openStore(tb, rawURL), vault.Options{Keys: ring(tb, keys...), Logger: slog.New(slog.DiscardHandler)})
}

// ring is a keyring of the keys with these names, whose bytes follow from them.
func ring(tb testing.TB, names ...string) *vault.Keyring {
	tb.Helper()
	var secrets []config.Secret
	for _, name := range names {
		secrets = append(secrets, secret(tb, base64.StdEncoding.EncodeToString(keyBytes(name))))
	}
	k, err := vault.NewKeyring(secrets)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func keyBytes(name string) []byte { return bytes.Repeat([]byte(name), 32)[:32] }

func secret(tb testing.TB, content string) config.Secret {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "key")
	if err := os.WriteFile(file, []byte(content+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return config.Secret{Ref: "file:" + file}
}

// pair is a self-signed certificate and its key, as PEM.
func pair(tb testing.TB, names ...string) (chain, key string) {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		tb.Fatal(err)
	}
	return pemOf("CERTIFICATE", der), pemKey(tb, private)
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pemKey(tb testing.TB, key *ecdsa.PrivateKey) string {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

// certificate is one that is in order.
func certificate(tb testing.TB, id string, names ...string) *vault.Certificate {
	tb.Helper()
	chain, key := pair(tb, names...)
	slices.Sort(names)
	return &vault.Certificate{
		ID: id, Names: names, Issuer: "acme", Directory: "https://ca.test/directory", KeyType: config.P256,
		Chain: chain, PrivateKey: key, ObtainedAt: time.Now().UTC(), Owner: "me",
	}
}

// account is one that is in order, and its id.
func account(tb testing.TB) (*vault.Account, string) {
	tb.Helper()
	_, key := pair(tb, "account.test")
	return &vault.Account{
		Directory: "https://ca.test/directory", Email: "ops@example.com", PrivateKey: key,
		Account: vault.Registration{Status: "valid", Contact: []string{"mailto:ops@example.com"}, Location: "https://ca.test/account/1"},
	}, vault.AccountID("https://ca.test/directory", "ops@example.com")
}

// save creates an object.
func save[T vault.Object](tb testing.TB, v *vault.Vault, id string, o *T) store.Version {
	tb.Helper()
	version, err := vault.Save(tb.Context(), v, id, o, "")
	if err != nil {
		tb.Fatal(err)
	}
	return version
}

// raw is the object at key as it is stored.
func raw(tb testing.TB, v *vault.Vault, key string) []byte {
	tb.Helper()
	content, err := v.Store().Load(tb.Context(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return content
}

// put writes an object as it is, whatever was there.
func put(tb testing.TB, v *vault.Vault, key string, content []byte) {
	tb.Helper()
	if err := v.Store().Store(context.WithoutCancel(tb.Context()), key, content); err != nil {
		tb.Fatal(err)
	}
}

func testdata(tb testing.TB, name string) []byte {
	tb.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return content
}
