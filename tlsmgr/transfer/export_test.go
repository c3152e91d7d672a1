package transfer_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.yaml.in/yaml/v4"
	"pgregory.net/rapid"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/transfer"
	"edge/tlsmgr/vault"
)

// authority is a CA that has a name, as a server has.
func authority(t *testing.T) (chain, key []byte) {
	t.Helper()
	signer := newKey(t, config.P256)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"ca.example.com"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func exampleVault() *vault.Vault {
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		panic(err)
	}
	s, err := store.Open(context.Background(), "file://"+dir, store.Options{})
	if err != nil {
		panic(err)
	}
	return vault.New(s, vault.Options{})
}

// export is c in a format, made twice.
func export(t *testing.T, c *vault.Certificate, format transfer.Format, form transfer.Form) map[string][]byte {
	t.Helper()
	files, err := transfer.Export(c, format, form)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := transfer.Export(c, format, form); err != nil || !reflect.DeepEqual(files, again) {
		t.Errorf("the second time it is another: %v", err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		out[f.Path] = f.Data
	}
	return out
}

func same(t *testing.T, c *vault.Certificate, chain, key []byte) {
	t.Helper()
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	want := leafOf(t, []byte(c.Chain))
	if fingerprint(pair.Leaf) != fingerprint(want) || len(pair.Certificate) != 2 {
		t.Errorf("exported %s with %d certificates, want %s with 2", fingerprint(pair.Leaf), len(pair.Certificate), fingerprint(want))
	}
}

func ExampleExport() {
	_, err := transfer.Export(&vault.Certificate{ID: "shop", Chain: "torn"}, transfer.Kubernetes, transfer.Form{Namespace: "web"})
	fmt.Println(err)
	// Output: export "shop": there is no certificate in it (want PEM)
}

func TestPEMIsTwoFilesOrOne(t *testing.T) {
	c := newTestCA(t).certificate("example.com/odd", "example.com")
	two := export(t, c, transfer.PEM, transfer.Form{})
	same(t, c, two["example.com%2Fodd.crt"], two["example.com%2Fodd.key"])
	if len(two) != 2 || strings.Contains(string(two["example.com%2Fodd.crt"]), "PRIVATE") {
		t.Errorf("files %d, or the key stands in the chain", len(two))
	}
	one := export(t, c, transfer.PEM, transfer.Form{Single: true})
	same(t, c, one["example.com%2Fodd.pem"], one["example.com%2Fodd.pem"])
	for id, want := range map[string]string{"..": "%2E..pem", ".hidden": "%2Ehidden.pem", "_.x": "_.x.pem"} {
		c.ID = id
		if got := export(t, c, transfer.PEM, transfer.Form{Single: true}); got[want] == nil {
			t.Errorf("%q: no %s", id, want)
		}
	}
}

func TestSecretIsWhatKubernetesTakes(t *testing.T) {
	ca := newTestCA(t)
	for id, want := range map[string]string{
		"example.com": "example.com", "_.example.com": "wildcard.example.com", "Shop Front!": "shop-front", "1.0": "1.0", "on": "on", "2001:db8::1": "2001-db8-1",
		"a..b-.c": "a.b.c", strings.Repeat("a", 300): strings.Repeat("a", 253),
	} {
		c := ca.certificate(id, "example.com", "www.example.com")
		for _, form := range []transfer.Form{{}, {Name: "null", Namespace: "0"}} {
			files := export(t, c, transfer.Kubernetes, form)
			var secret struct {
				APIVersion string `yaml:"apiVersion"`
				Kind, Type string
				Metadata   map[string]any
				Data       map[string]any
			}
			if len(files) != 1 {
				t.Fatalf("%d files", len(files))
			}
			for name, data := range files {
				if !strings.HasSuffix(name, ".yaml") {
					t.Errorf("file %s", name)
				}
				if err := yaml.Unmarshal(data, &secret); err != nil {
					t.Fatalf("%v in %s", err, data)
				}
			}
			meta := map[string]any{"name": want}
			if form.Name != "" {
				meta = map[string]any{"name": "null", "namespace": "0"}
			}
			if secret.APIVersion != "v1" || secret.Kind != "Secret" || secret.Type != "kubernetes.io/tls" || !reflect.DeepEqual(secret.Metadata, meta) || len(secret.Data) != 2 {
				t.Errorf("%s: %s %s %s %v, want %v", id, secret.APIVersion, secret.Kind, secret.Type, secret.Metadata, meta)
			}
			decode := func(key string) []byte {
				text, _ := secret.Data[key].(string)
				data, err := base64.StdEncoding.DecodeString(text)
				if err != nil {
					t.Fatal(err)
				}
				return data
			}
			same(t, c, decode("tls.crt"), decode("tls.key"))
		}
	}
}

func TestExportRefusesWhatWouldNotWork(t *testing.T) {
	c := newTestCA(t).certificate("example.com", "example.com")
	homeless := *c
	homeless.Directory = ""
	own := *c
	own.Directory = "internal:lab"
	odd := *c
	odd.ID = "___"
	for name, try := range map[string]func() ([]transfer.File, error){
		"cannot be the name of a Secret": func() ([]transfer.File, error) {
			return transfer.Export(c, transfer.Kubernetes, transfer.Form{Name: "a\"b"})
		},
		`"" cannot be the name`: func() ([]transfer.File, error) { return transfer.Export(&odd, transfer.Kubernetes, transfer.Form{}) },
		"cannot be a namespace": func() ([]transfer.File, error) {
			return transfer.Export(c, transfer.Kubernetes, transfer.Form{Namespace: "a.b"})
		},
		"say which one Caddy uses": func() ([]transfer.File, error) {
			return transfer.Export(&homeless, transfer.CertMagic, transfer.Form{})
		},
		"from no ACME directory": func() ([]transfer.File, error) {
			return transfer.Export(&own, transfer.CertMagic, transfer.Form{})
		},
		"(pem, kubernetes, certmagic)": func() ([]transfer.File, error) { return transfer.Export(c, "pfx", transfer.Form{}) },
		`export "x": there is no certificate`: func() ([]transfer.File, error) {
			return transfer.Export(&vault.Certificate{ID: "x"}, transfer.PEM, transfer.Form{})
		},
	} {
		if files, err := try(); err == nil || !strings.Contains(err.Error(), name) || files != nil {
			t.Errorf("got %d files, %v; want %q", len(files), err, name)
		}
	}
}

// certmagic itself loads what edge exports for it, for each of the names, from a
// directory and from a bucket.
func TestCertmagicFindsEveryNameOfAnExport(t *testing.T) {
	ca := newTestCA(t)
	names := []string{"*.example.com", "192.0.2.1", "2001:db8::1", "example.com", "www.example.com", "xn--bcher-kva.example"}
	for _, kind := range []config.KeyType{config.P256, config.RSA2048} {
		chain, key := ca.pair(kind, names...)
		c := &vault.Certificate{ID: "id", Names: names, Directory: "https://elsewhere.test/dir", Chain: string(chain), PrivateKey: string(key)}
		files, err := transfer.Export(c, transfer.CertMagic, transfer.Form{Directory: letsEncrypt})
		if err != nil {
			t.Fatal(err)
		}
		dir, bucket := t.TempDir(), openStore(t, acmelab.NewS3(t, "caddy").StoreURL("caddy", "prod"))
		if err := transfer.Write(dir, files); err != nil {
			t.Fatal(err)
		}
		if err := transfer.Upload(t.Context(), bucket, files); err != nil {
			t.Fatal(err)
		}
		for _, storage := range []certmagic.Storage{&certmagic.FileStorage{Path: dir}, bucket} {
			caddy := magic(t, storage, func(*certmagic.Config) certmagic.Issuer { return ca })
			for _, n := range names {
				got, err := caddy.CacheManagedCertificate(t.Context(), n)
				if err != nil {
					t.Fatal(err)
				}
				if fingerprint(got.Leaf) != fingerprint(leafOf(t, chain)) || !slices.Contains(got.Names, n) {
					t.Errorf("%s: certmagic found %s for %v", n, fingerprint(got.Leaf), got.Names)
				}
			}
		}
		// And edge finds it again.
		if r := run(t, openStore(t, "file://"+dir), newVault(t), transfer.Options{All: true}); len(r.Entries) != 1 || r.Count[transfer.Imported] != 1 || !slices.Equal(r.Entries[0].Names, names) {
			t.Errorf("report %+v, want one certificate with all names", r.Entries)
		}
	}
}

// Whatever names a certificate has: out as certmagic's layout and in again it is
// the same, under the id that the plan has for it.
func TestWhatGoesOutComesInAgain(t *testing.T) {
	ca := newTestCA(t)
	root, runs := t.TempDir(), 0
	rapid.Check(t, func(rt *rapid.T) {
		label := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?`)
		name := rapid.Custom(func(rt *rapid.T) string {
			n := label.Draw(rt, "label") + ".example.com"
			if rapid.IntRange(0, 3).Draw(rt, "wild") == 0 {
				n = "*." + n
			}
			return n
		})
		names := rapid.SliceOfNDistinct(name, 1, 6, rapid.ID).Draw(rt, "names")
		slices.Sort(names)
		c := ca.certificate("id", names...)
		files, err := transfer.Export(c, transfer.CertMagic, transfer.Form{})
		if err != nil {
			rt.Fatal(err)
		}
		runs++
		dir := filepath.Join(root, strconv.Itoa(runs))
		for _, f := range files {
			file := filepath.Join(dir, f.Path)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				rt.Fatal(err)
			}
			if err := os.WriteFile(file, f.Data, 0o600); err != nil { // transfer.Write waits for the disk
				rt.Fatal(err)
			}
		}
		v := vault.New(openStore(t, "file://"+dir+"/edge"), vault.Options{})
		r, err := transfer.Import(t.Context(), openStore(t, "file://"+dir), v, transfer.Options{
			Wanted: []transfer.Wanted{wanted("id", names...)}, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil || len(r.Entries) != 1 || r.Entries[0].Action != transfer.Imported {
			rt.Fatalf("%+v, %v", r, err)
		}
		got, _, err := vault.Load[vault.Certificate](t.Context(), v, "id")
		if err != nil || !slices.Equal(got.Names, names) || got.Chain != c.Chain || got.PrivateKey != c.PrivateKey || got.Directory != c.Directory {
			rt.Fatalf("came in as %v, %v", got, err)
		}
	})
}

func TestFilesAreWrittenAtOnceAndKeysForTheOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	files := []transfer.File{{"a.crt", []byte("1")}, {"a.key", []byte("2")}, {"sub/dir/a.yaml", []byte("3")}}
	for range 2 {
		if err := transfer.Write(dir, files); err != nil {
			t.Fatal(err)
		}
	}
	modes := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		name, _ := filepath.Rel(dir, path)
		modes[name] = info.Mode().Perm()
		return err
	})
	want := map[string]fs.FileMode{"a.crt": 0o644, "a.key": 0o600, "sub/dir/a.yaml": 0o600}
	if err != nil || !reflect.DeepEqual(modes, want) {
		t.Errorf("files %v, %v; want %v", modes, err, want)
	}
	for _, path := range []string{"../out.crt", "/out.crt", "a.crt/b"} {
		if err := transfer.Write(dir, []transfer.File{{path, []byte("x")}}); err == nil {
			t.Errorf("%s was written", path)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "..", "out.crt")); err == nil {
		t.Error("a file was written outside")
	}
}

// Whatever lies in a bucket of somebody else, reading it ends with an entry.
func FuzzImportPEM(f *testing.F) {
	chain, key := newTestCA(f).pair(config.P256, "a.example.com")
	v := newVault(f)
	f.Add(chain, key)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"), []byte("-----BEGIN EC PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, chain, key []byte) {
		e, err := transfer.ImportPEM(t.Context(), v, "id", "fuzz", chain, key, transfer.Options{DryRun: true})
		if err != nil || e.Action == "" || e.Action == transfer.Failed && e.Reason == "" || strings.ContainsAny(e.Reason, "\n\r") {
			t.Errorf("%+v, %v", e, err)
		}
	})
}
