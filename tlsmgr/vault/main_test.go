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

// onEachStore runs f with the URL of an empty directory, then with that of an
// empty bucket.
func onEachStore(t *testing.T, f func(t *testing.T, rawURL string)) {
	t.Helper()
	t.Run("file", func(t *testing.T) { f(t, "file://"+t.TempDir()) })
	t.Run("s3", func(t *testing.T) { f(t, acmelab.NewS3(t, "certs").StoreURL("certs", "some/prefix")) })
}

// openStore opens a store that ends with the test.
func openStore(t testing.TB, rawURL string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), rawURL, store.Options{Logger: slog.New(slog.DiscardHandler), LeaseTTL: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// open opens a vault with the keys called, "" is none.
func open(t testing.TB, rawURL string, keys ...string) *vault.Vault {
	t.Helper()
	return vault.New(openStore(t, rawURL), vault.Options{Keys: ring(t, keys...), Logger: slog.New(slog.DiscardHandler)})
}

// ring is a keyring of the keys with these names, whose bytes follow from them.
func ring(t testing.TB, names ...string) *vault.Keyring {
	t.Helper()
	var secrets []config.Secret
	for _, name := range names {
		secrets = append(secrets, secret(t, base64.StdEncoding.EncodeToString(keyBytes(name))))
	}
	k, err := vault.NewKeyring(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keyBytes(name string) []byte { return bytes.Repeat([]byte(name), 32)[:32] }

func secret(t testing.TB, content string) config.Secret {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(content+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Secret{Ref: "file:" + file}
}

// pair is a self-signed certificate and its key, as PEM.
func pair(t testing.TB, names ...string) (chain, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
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
		t.Fatal(err)
	}
	return pemOf("CERTIFICATE", der), pemKey(t, private)
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pemKey(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

// certificate is one that is in order.
func certificate(t testing.TB, id string, names ...string) *vault.Certificate {
	t.Helper()
	chain, key := pair(t, names...)
	slices.Sort(names)
	return &vault.Certificate{
		ID: id, Names: names, Issuer: "acme", Directory: "https://ca.test/directory", KeyType: config.P256,
		Chain: chain, PrivateKey: key, ObtainedAt: time.Now().UTC(), Owner: "me",
	}
}

// account is one that is in order, and its id.
func account(t testing.TB) (*vault.Account, string) {
	t.Helper()
	_, key := pair(t, "account.test")
	return &vault.Account{
		Directory: "https://ca.test/directory", Email: "ops@example.com", PrivateKey: key,
		Account: vault.Registration{Status: "valid", Contact: []string{"mailto:ops@example.com"}, Location: "https://ca.test/account/1"},
	}, vault.AccountID("https://ca.test/directory", "ops@example.com")
}

// save creates an object.
func save[T vault.Object](t testing.TB, v *vault.Vault, id string, o *T) store.Version {
	t.Helper()
	version, err := vault.Save(t.Context(), v, id, o, "")
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// raw is the object at key as it is stored.
func raw(t testing.TB, v *vault.Vault, key string) []byte {
	t.Helper()
	content, err := v.Store().Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// put writes an object as it is, whatever was there.
func put(t testing.TB, v *vault.Vault, key string, content []byte) {
	t.Helper()
	if err := v.Store().Store(context.WithoutCancel(t.Context()), key, content); err != nil {
		t.Fatal(err)
	}
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}
