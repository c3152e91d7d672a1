package vault_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"edge/internal/acmelab"
	"edge/tlsmgr/vault"
)

// csr is a certificate request by the key in keyPEM's place, of a fresh one.
func csr(t *testing.T) (der []byte, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.test"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der, pemKey(t, key)
}

func TestHealthyStorageHasNoFindings(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			v := open(t, rawURL, "a")
			plain := open(t, rawURL)
			save(t, v, "a", certificate(t, "a", "a.test", "192.0.2.1", "2001:db8::1", "*.b.test"))
			save(t, plain, "b", certificate(t, "b", "b.test"))
			a, id := account(t)
			save(t, open(t, rawURL, "old"), id, a)
			request, key := csr(t)
			save(t, v, "a", &vault.Order{ID: "a", Attempt: &vault.Attempt{PrivateKey: key, CSR: request}})
			save(t, v, "b", &vault.Order{ID: "b"})
			chain, key := pair(t, "ca.test")
			save(t, v, "internal", &vault.Authority{Issuer: "internal", RootChain: chain, RootKey: key, Chain: chain, Key: key})
			save(t, v, "ca", &vault.Budget{})
			save(t, v, "r", &vault.Replica{ID: "r"})
			c := &vault.Challenge{Token: "t"}
			save(t, v, c.ID(), c)

			var told []int
			r, err := open(t, rawURL, "a", "old").Verify(t.Context(), func(done, total int) { told = append(told, done, total) })
			if err != nil || len(r.Findings) > 0 {
				t.Fatalf("%v, %+v", err, r.Findings)
			}
			if got := r.Kinds[vault.Certificates]; got.Objects != 2 || got.Sealed != 1 || got.Bytes < 1000 {
				t.Errorf("certificates: %+v", got)
			}
			ids := ring(t, "a", "old").IDs()
			if r.Objects != 9 || r.Stale != 2 || r.Keys[ids[0]] != 4 || r.Keys[ids[1]] != 1 || len(r.Kinds) != 7 {
				t.Errorf("%+v", r)
			}
			if got := fmt.Sprint(told); !strings.HasPrefix(got, "[1 9 2 9 ") || !strings.HasSuffix(got, " 9 9]") {
				t.Errorf("progress %s", got)
			}
		})
	}
}

func TestVerifyFindsWhatIsWrong(t *testing.T) {
	v := open(t, "file://"+t.TempDir(), "a")
	good := certificate(t, "id", "a.test")
	_, otherKey := pair(t, "a.test")
	request, _ := csr(t)
	root, rootKey := pair(t, "root.test")
	stranger, strangerKey := pair(t, "stranger.test")
	want := map[string]string{} // by key: problem and a part of the detail
	add := func(key, finding string) { want[key] = finding }
	put(t, v, "edge/v1/certificates/a/b.json", nil)
	add("edge/v1/certificates/a/b.json", "foreign: left alone")
	put(t, v, "edge/v1/future/x.json", nil)
	add("edge/v1/future/x.json", "foreign: left alone")
	put(t, v, vault.CertificateKey("newer"), []byte(`{"format":9}`))
	add(vault.CertificateKey("newer"), "newer: upgrade edge")
	save(t, vault.New(v.Store(), vault.Options{Keys: ring(t, "b")}), "locked", certificate(t, "locked", "a.test"))
	add(vault.CertificateKey("locked"), "no key: add the one it was sealed with")
	put(t, v, vault.CertificateKey("moved"), testdata(t, "sealed-by-a.json"))
	add(vault.CertificateKey("moved"), "damaged: was it copied?")
	put(t, v, vault.CertificateKey("copied"), testdata(t, "certificate.json"))
	add(vault.CertificateKey("copied"), `damaged: holds certificate "example.com"`)
	for id, edit := range map[string]func(*vault.Certificate){
		"mismatch: private key does not match":               func(c *vault.Certificate) { c.PrivateKey = otherKey },
		"mismatch: is for other names than it says (a.test)": func(c *vault.Certificate) { c.Names = []string{"b.test"} },
		"mismatch: find any PEM":                             func(c *vault.Certificate) { c.Chain = "" },
		"mismatch: chain or private key cannot be parsed":    func(c *vault.Certificate) { c.Chain = pemOf("CERTIFICATE", []byte("x")) },
	} {
		c := *good
		c.ID = id
		edit(&c)
		save(t, v, id, &c)
		add(vault.CertificateKey(id), id)
	}
	for id, o := range map[string]vault.Attempt{
		"mismatch: private key is not PEM":                 {},
		"mismatch: private key cannot be parsed":           {PrivateKey: pemOf("PRIVATE KEY", []byte("x"))},
		"mismatch: certificate request cannot be parsed":   {PrivateKey: otherKey, CSR: []byte("x")},
		"mismatch: certificate request is for another key": {PrivateKey: otherKey, CSR: request},
	} {
		save(t, v, id, &vault.Order{ID: id, Attempt: &o})
		add(vault.OrderKey(id), id)
	}
	for id, a := range map[string]vault.Authority{
		"mismatch: root: tls: private key does not match":         {RootChain: root, RootKey: otherKey},
		"mismatch: intermediate: tls: private key does not match": {RootChain: root, RootKey: rootKey, Chain: root, Key: otherKey},
		"mismatch: not signed by the root":                        {RootChain: root, RootKey: rootKey, Chain: stranger, Key: strangerKey},
	} {
		a.Issuer = id
		save(t, v, id, &a)
		add(vault.AuthorityKey(id), id)
	}
	a, id := account(t)
	a.NextKey = "x"
	save(t, v, id, a)
	add(vault.AccountKey(id), "mismatch: next key: private key is not PEM")

	r, err := v.Verify(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		problem, detail, _ := strings.Cut(want[f.Key], ": ")
		if f.Problem != vault.Problem(problem) || !strings.Contains(f.Detail, detail) || strings.Contains(f.Detail, "\n") {
			t.Errorf("%s: got %s: %s\nwant %s", f.Key, f.Problem, f.Detail, want[f.Key])
		}
		delete(want, f.Key)
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}

func TestOneUnreadableObjectIsAFindingAndADeadStorageAnError(t *testing.T) {
	s3 := acmelab.NewS3(t, "certs")
	v := open(t, s3.StoreURL("certs", "p"))
	for i := range 40 {
		save(t, v, fmt.Sprint(i), certificate(t, fmt.Sprint(i), "a.test"))
	}
	s3.SetFail(func(r *http.Request) int {
		if strings.HasSuffix(r.URL.Path, "/7.json") {
			return http.StatusForbidden
		}
		return 0
	})
	r, err := v.Verify(t.Context(), nil)
	if err != nil || len(r.Findings) != 1 || r.Findings[0].Problem != vault.Unreadable || r.Objects != 40 {
		t.Errorf("%v, %+v", err, r.Findings)
	}
	s3.SetFail(func(r *http.Request) int {
		if strings.HasSuffix(r.URL.Path, ".json") {
			return http.StatusForbidden
		}
		return 0
	})
	if _, err := v.Verify(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "gave up, the storage seems to be down") {
		t.Errorf("got %v", err)
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	v := open(t, "file://"+t.TempDir())
	for i := range 100 {
		save(t, v, fmt.Sprint(i), &vault.Replica{ID: fmt.Sprint(i)})
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := v.Verify(ctx, func(done, _ int) {
		if done == 3 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || r.Objects > 50 || len(r.Findings) > 0 {
		t.Errorf("%v, %+v", err, r)
	}
}
