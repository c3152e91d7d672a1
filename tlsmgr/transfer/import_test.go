package transfer_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/rfc2136"
	"go.uber.org/zap"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/transfer"
	"edge/tlsmgr/vault"
)

// wanted is what the plan has for names.
func wanted(id string, names ...string) transfer.Wanted {
	return transfer.Wanted{ID: id, Names: names, KeyType: config.P256, Issuer: "acme", Directory: letsEncrypt}
}

// Certificates that certmagic got from a real CA, in a directory and in a bucket:
// edge takes them over under the ids of its plan, and certmagic finds them again
// in what edge exports. Nothing is ordered on the way.
func TestCaddysCertificatesComeInAndGoOutUnchanged(t *testing.T) {
	lab := acmelab.New(t, acmelab.Options{})
	bucket := lab.S3.StoreURL("certs", "caddy/prod")
	dir := t.TempDir()
	for name, place := range map[string]struct {
		storage certmagic.Storage
		from    string
	}{
		"directory": {storage: &certmagic.FileStorage{Path: dir}, from: dir},
		"bucket":    {storage: openStore(t, bucket), from: bucket},
	} {
		t.Run(name, func(t *testing.T) {
			caddy := magic(t, place.storage, func(cfg *certmagic.Config) certmagic.Issuer {
				roots := x509.NewCertPool()
				roots.AppendCertsFromPEM(lab.CA.APICertPEM)
				return certmagic.NewACMEIssuer(cfg, certmagic.ACMEIssuer{
					CA: lab.CA.Directory, TestCA: lab.CA.Directory, TrustedRoots: roots, Email: "ops@example.test", Agreed: true, Logger: zap.NewNop(),
					DNS01Solver: &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
						DNSProvider:        &rfc2136.Provider{Server: lab.DNS.Addr, KeyName: lab.DNS.Key.Name, KeyAlg: lab.DNS.Key.Alg, Key: lab.DNS.Key.Secret},
						PropagationTimeout: -1, Resolvers: []string{lab.DNS.Addr}, Logger: zap.NewNop(),
					}},
				})
			})
			names := []string{"a.example.test", "*.w.example.test"}
			obtain(t, caddy, names...)
			orders := lab.CA.Orders()

			from, err := transfer.Open(t.Context(), place.from, store.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = from.Close() }()
			v := newVault(t)
			o := transfer.Options{Owner: "me", Wanted: []transfer.Wanted{
				{ID: "a", Names: names[:1], KeyType: config.P256, Issuer: "lab", Directory: lab.CA.Directory},
				{ID: "_.w.example.test", Names: names[1:], KeyType: config.P256, Issuer: "lab", Directory: lab.CA.Directory},
			}}
			r := run(t, from, v, o)
			if r.Count[transfer.Imported] != 2 || len(r.Entries) != 2 {
				t.Fatalf("report %+v, want two imported", r.Entries)
			}
			exported := t.TempDir()
			for _, e := range r.Entries {
				c, sum := stored(t, v, e.ID)
				if sum != e.Fingerprint || !c.Imported || c.Owner != "me" || c.Directory != lab.CA.Directory || c.Issuer != "lab" || c.KeyType != config.P256 {
					t.Errorf("stored %s %s %+v, reported %+v", sum, c.ID, c.Imported, e)
				}
				files, err := transfer.Export(c, transfer.CertMagic, transfer.Form{})
				if err != nil {
					t.Fatal(err)
				}
				if err := transfer.Write(exported, files); err != nil {
					t.Fatal(err)
				}
			}
			again := magic(t, &certmagic.FileStorage{Path: exported}, func(*certmagic.Config) certmagic.Issuer { return caddy.Issuers[0] })
			for _, n := range names {
				before, err := caddy.CacheManagedCertificate(t.Context(), n)
				if err != nil {
					t.Fatal(err)
				}
				after, err := again.CacheManagedCertificate(t.Context(), n)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(before.Leaf.Raw, after.Leaf.Raw) {
					t.Errorf("%s: %s went in, %s came out", n, fingerprint(before.Leaf), fingerprint(after.Leaf))
				}
			}
			if n := lab.CA.Orders(); n != orders {
				t.Errorf("%d orders were placed on the way", n-orders)
			}
			if r := run(t, from, v, o); r.Count[transfer.Kept] != 2 {
				t.Errorf("the second time: %v, want both kept", r.Entries)
			}
		})
	}
}

// caddy is a directory with a certificate for each of names, by certmagic.
func caddy(t *testing.T, ca *testCA, names ...string) (dir string, from *store.Store) {
	t.Helper()
	dir = t.TempDir()
	obtain(t, magic(t, &certmagic.FileStorage{Path: dir}, func(*certmagic.Config) certmagic.Issuer { return ca }), names...)
	return dir, openStore(t, "file://"+dir)
}

// place puts a certificate into dir as certmagic would.
func place(t *testing.T, dir, issuer, name string, chain, key, meta []byte) {
	t.Helper()
	for file, data := range map[string][]byte{
		certmagic.StorageKeys.SiteCert(issuer, name): chain, certmagic.StorageKeys.SitePrivateKey(issuer, name): key, certmagic.StorageKeys.SiteMeta(issuer, name): meta,
	} {
		if data == nil {
			continue
		}
		file = filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImportTakesWhatThePlanWants(t *testing.T) {
	_, from := caddy(t, newTestCA(t), "example.com", "a.example.com", "*.b.example.com", "other.example.org", "192.0.2.1")
	for name, c := range map[string]struct {
		options transfer.Options
		want    map[string]string
	}{
		"nothing is wanted": {
			want: map[string]string{
				"example.com.crt": "skipped: the configuration wants none of its names", "a.example.com.crt": "skipped: the configuration wants none of its names",
				"wildcard_.b.example.com.crt": "skipped: the configuration wants none of its names", "other.example.org.crt": "skipped: the configuration wants none of its names",
				"192.0.2.1.crt": "skipped: the configuration wants none of its names",
			},
		},
		"under the ids of the plan, or beside them until more is ordered": {
			options: transfer.Options{Wanted: []transfer.Wanted{
				wanted("a.example.com", "a.example.com"), wanted("example.com", "example.com", "www.example.com"),
				wanted("b", "x.b.example.com"), wanted("192.0.2.1", "192.0.2.1"),
			}},
			want: map[string]string{
				"a.example.com.crt": "imported a.example.com", "192.0.2.1.crt": "imported 192.0.2.1",
				"example.com.crt":             "imported example.com.imported: serves until edge has ordered example.com: it lacks www.example.com",
				"wildcard_.b.example.com.crt": "imported _.b.example.com: serves until edge has ordered b: it lacks x.b.example.com",
				"other.example.org.crt":       "skipped: the configuration wants none of its names",
			},
		},
		"all": {
			options: transfer.Options{All: true, Wanted: []transfer.Wanted{wanted("mine", "a.example.com")}},
			want: map[string]string{
				"a.example.com.crt": "imported mine", "192.0.2.1.crt": "imported 192.0.2.1: the configuration wants none of its names",
				"example.com.crt":             "imported example.com: the configuration wants none of its names",
				"wildcard_.b.example.com.crt": "imported _.b.example.com: the configuration wants none of its names",
				"other.example.org.crt":       "imported other.example.org: the configuration wants none of its names",
			},
		},
		"another key type is no substitute": {
			options: transfer.Options{Wanted: []transfer.Wanted{{ID: "a", Names: []string{"a.example.com"}, KeyType: config.RSA2048}, {ID: "none"}}},
			want: map[string]string{
				"a.example.com.crt": "imported a.example.com: serves until edge has ordered a: its key type is p256, not rsa2048",
				"example.com.crt":   "skipped: the configuration wants none of its names", "wildcard_.b.example.com.crt": "skipped: the configuration wants none of its names",
				"other.example.org.crt": "skipped: the configuration wants none of its names", "192.0.2.1.crt": "skipped: the configuration wants none of its names",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			dry := c.options
			dry.DryRun = true
			if got := outcome(run(t, from, v, dry)); !maps.Equal(got, c.want) {
				t.Errorf("dry run says %v\nwant %v", got, c.want)
			}
			if objects, err := v.Store().ListVersions(t.Context(), "edge"); err != nil || len(objects) > 0 {
				t.Errorf("a dry run wrote %v, %v", objects, err)
			}
			r := run(t, from, v, c.options)
			if got := outcome(r); !maps.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
			for _, e := range r.Entries {
				if e.Action != transfer.Imported {
					continue
				}
				if _, sum := stored(t, v, e.ID); sum != e.Fingerprint {
					t.Errorf("%s is %s, reported %s", e.ID, sum, e.Fingerprint)
				}
			}
		})
	}
}

func TestOneCertificateServesForSeveralOfThePlan(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	chain, key := ca.pair(config.P256, "a.example.com", "b.example.com", "a.example.org", "b.example.org")
	for _, n := range []string{"a.example.com", "b.example.com"} { // the same twice, as edge exports it
		place(t, dir, ca.IssuerKey(), n, chain, key, nil)
	}
	chain, key = ca.pair(config.RSA2048, "a.example.org", "b.example.org")
	place(t, dir, ca.IssuerKey(), "b.example.org", chain, key, nil)
	v := newVault(t)
	rsa := wanted("example.org.rsa2048", "a.example.org", "b.example.org")
	rsa.KeyType = config.RSA2048
	got := outcome(run(t, openStore(t, "file://"+dir), v, transfer.Options{Wanted: []transfer.Wanted{
		wanted("example.com", "a.example.com", "b.example.com"), wanted("example.org", "a.example.org", "b.example.org"), rsa,
	}}))
	want := map[string]string{"a.example.com.crt": "imported example.com | imported example.org", "b.example.org.crt": "imported example.org.rsa2048"}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	c, _ := stored(t, v, "example.org")
	if c.Directory != letsEncrypt || c.Issuer != "acme" {
		t.Errorf("from %q of %q: without metadata the directory follows from the key of the issuer", c.Issuer, c.Directory)
	}
}

func TestTheNewestOfSeveralIsTaken(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	const day = 24 * time.Hour
	put := func(issuer, name string, from, to time.Duration, names ...string) {
		chain, key := ca.aged(from, to).pair(config.P256, names...)
		place(t, dir, issuer, name, chain, key, []byte(`{"issuer_data":{"ca":"https://`+issuer+`/dir"}}`))
	}
	put("old", "a.example.com", -80*day, 10*day, "a.example.com")
	put("new", "a.example.com", -10*day, 80*day, "a.example.com")
	put("gone", "a.example.com", -90*day, -day, "a.example.com")
	put("more", "b.example.com", -5*day, 85*day, "b.example.com", "a.example.com")
	from := openStore(t, "file://"+dir)
	bySource := func(o transfer.Options) map[string]string {
		out := map[string]string{}
		for _, e := range run(t, from, newVault(t), o).Entries {
			out[strings.Split(e.Source, "/")[1]] = fmt.Sprintf("%s %s: %s", e.Action, e.ID, e.Reason)
		}
		return out
	}
	want := map[string]string{
		"old":  "skipped : for the same names certificates/new/a.example.com/a.example.com.crt is newer",
		"new":  "skipped : certificates/more/b.example.com/b.example.com.crt is newer and has all that is wanted of it",
		"gone": "skipped : expired on " + time.Now().Add(-day).UTC().Format(time.DateOnly),
		"more": "imported id: ",
	}
	if got := bySource(transfer.Options{Wanted: []transfer.Wanted{wanted("id", "a.example.com")}}); !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	want["new"] = "imported a.example.com: "
	if got := bySource(transfer.Options{All: true, Wanted: []transfer.Wanted{wanted("id", "a.example.com")}}); !maps.Equal(got, want) {
		t.Errorf("all: got  %v\nwant %v", got, want)
	}
}

func TestWhatCannotBeUsedIsToldAndKeepsNobodyWaiting(t *testing.T) {
	ca := newTestCA(t)
	dir, from := caddy(t, ca, "good.example.com")
	chain, key := ca.pair(config.P256, "x.example.com")
	other, _ := ca.pair(config.P256, "x.example.com")
	nameless, namelessKey := ca.pair(config.P256)
	locked := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
	for name, files := range map[string][3][]byte{
		"no-key":       {chain, nil, nil},
		"empty":        {{}, key, nil},
		"torn":         {chain[:len(chain)/3], key, nil},
		"not-pem":      {[]byte("\x00\xff<html>"), key, nil},
		"not-a-cert":   {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), key, nil},
		"mixed-up":     {other, key, nil},
		"no-names":     {nameless, namelessKey, nil},
		"locked":       {chain, locked, nil},
		"torn-key":     {chain, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")}), nil},
		"huge":         {bytes.Repeat([]byte("x"), store.MaxObject+1), key, nil},
		"huge-meta":    {chain, key, bytes.Repeat([]byte("x"), store.MaxObject+1)},
		"ca":           {chain, key, nil},
		"strange-meta": {chain, key, []byte(`{"issuer_data":7}`)},
	} {
		place(t, dir, "some-ca", name, files[0], files[1], files[2])
	}
	v := newVault(t)
	r := run(t, from, v, transfer.Options{All: true})
	got := outcome(r)
	for name, want := range map[string]string{
		"good.example.com": "imported good.example.com", "no-key": "failed: load", "empty": "failed: there is no certificate in it (want PEM)",
		"torn": "failed: there is no certificate", "not-pem": "failed: there is no certificate", "not-a-cert": "failed: certificate cannot be parsed",
		"mixed-up": "failed: certificate and private key do not belong together", "no-names": "failed: certificate is for no name",
		"locked": "failed: private key has a passphrase (take it off", "torn-key": "failed: private key cannot be parsed",
		"huge": "failed: load", "huge-meta": "failed: load", "ca": "imported x.example.com",
	} {
		if line := got[name+".crt"]; !strings.HasPrefix(line, want) || strings.Contains(line, "\n") {
			t.Errorf("%s: %q, want %q", name, line, want)
		}
	}
	if got["strange-meta.crt"] != "" { // the same certificate as "ca"
		t.Errorf("strange metadata: %q, want it to be the same certificate", got["strange-meta.crt"])
	}
	for _, e := range r.Entries {
		if strings.Contains(e.Reason, string(key[40:60])) {
			t.Errorf("%s quotes the key: %s", e.Source, e.Reason)
		}
	}
}

func TestNothingNewerIsOverwritten(t *testing.T) {
	ca := newTestCA(t)
	_, from := caddy(t, ca, "a.example.com")
	const day = 24 * time.Hour
	foreign := func(t *testing.T, v *vault.Vault) *vault.Vault {
		t.Helper()
		keys, err := vault.NewKeyring([]config.Secret{secret(t, strings.Repeat("x", 32))})
		if err != nil {
			t.Fatal(err)
		}
		return vault.New(v.Store(), vault.Options{Keys: keys})
	}
	writes := func(data string) func(*testing.T, *vault.Vault) {
		return func(t *testing.T, v *vault.Vault) {
			t.Helper()
			if _, err := v.Store().Swap(t.Context(), vault.CertificateKey("id"), []byte(data), ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	save := func(t *testing.T, v *vault.Vault, c *vault.Certificate) {
		t.Helper()
		if _, err := vault.Save(t.Context(), v, "id", c, ""); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		before func(t *testing.T, v *vault.Vault)
		action transfer.Action
		reason string
	}{
		"newer": {
			before: func(t *testing.T, v *vault.Vault) {
				t.Helper()
				save(t, v, ca.aged(-day, 80*day).certificate("id", "a.example.com"))
			},
			action: transfer.Kept, reason: "what is there is newer (" + time.Now().Add(-day).UTC().Format(time.DateOnly) + ")",
		},
		"newer and for other names": {
			before: func(t *testing.T, v *vault.Vault) {
				t.Helper()
				save(t, v, ca.aged(-day, 80*day).certificate("id", "b.example.com"))
			},
			action: transfer.Kept, reason: "what is there is newer",
		},
		"older": {
			before: func(t *testing.T, v *vault.Vault) {
				t.Helper()
				save(t, v, ca.aged(-80*day, 80*day).certificate("id", "a.example.com"))
			},
			action: transfer.Imported,
		},
		"damaged":         {before: writes(`{"format":1,"id":"id","chain":7}`), action: transfer.Imported},
		"no chain":        {before: writes(`{"format":1,"id":"id"}`), action: transfer.Imported},
		"of a newer edge": {before: writes(`{"format":2}`), action: transfer.Failed, reason: "written by a newer edge"},
		"sealed with another key": {
			before: func(t *testing.T, v *vault.Vault) {
				t.Helper()
				save(t, foreign(t, v), ca.aged(-80*day, 80*day).certificate("id", "a.example.com"))
			},
			action: transfer.Failed, reason: "sealed with a key that is not here",
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			c.before(t, v)
			before, _ := v.Store().Load(t.Context(), vault.CertificateKey("id"))
			r, err := transfer.Import(t.Context(), from, v, transfer.Options{Wanted: []transfer.Wanted{wanted("id", "a.example.com")}})
			if err != nil || len(r.Entries) != 1 || r.Entries[0].Action != c.action || !strings.Contains(r.Entries[0].Reason, c.reason) {
				t.Fatalf("got %+v, %v; want %s %q", r.Entries, err, c.action, c.reason)
			}
			after, err := v.Store().Load(t.Context(), vault.CertificateKey("id"))
			if err != nil || bytes.Equal(before, after) != (c.action != transfer.Imported) {
				t.Errorf("object was changed: %v, %v", !bytes.Equal(before, after), err)
			}
		})
	}
}

func TestSourceIsFoundFromWhereverItIsPointedAt(t *testing.T) {
	dir, _ := caddy(t, newTestCA(t), "a.example.com")
	elsewhere := t.TempDir()
	if err := os.Rename(dir, filepath.Join(elsewhere, "caddy")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(elsewhere, "caddy", "certificates", "README.crt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{elsewhere, elsewhere + "/caddy/", elsewhere + "/caddy/certificates", "file://" + elsewhere + "/caddy"} {
		s, err := transfer.Open(t.Context(), from, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r := run(t, s, newVault(t), transfer.Options{All: true}); r.Count[transfer.Imported] != 1 || len(r.Entries) != 1 {
			t.Errorf("%s: %+v, want one imported", from, r.Entries)
		}
		_ = s.Close()
	}
	for _, from := range []string{elsewhere + "/missing", "file://" + elsewhere + "/missing", elsewhere + "/caddy/certificates/README.crt", "ftp://x"} {
		if _, err := transfer.Open(t.Context(), from, store.Options{}); err == nil {
			t.Errorf("%s was opened", from)
		}
	}
	if _, err := os.Stat(elsewhere + "/missing"); err == nil {
		t.Error("a directory was made by looking for it")
	}
}

func TestSourceOrStorageThatIsDownEndsTheImport(t *testing.T) {
	ca := newTestCA(t)
	s3, err := acmelab.StartS3(acmelab.S3Options{Buckets: []string{"caddy"}})
	if err != nil {
		t.Fatal(err)
	}
	from := openStore(t, s3.StoreURL("caddy", ""))
	obtain(t, magic(t, from, func(*certmagic.Config) certmagic.Issuer { return ca }), "a.example.com", "b.example.com")
	o := transfer.Options{All: true, Logger: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := transfer.Import(ctx, from, newVault(t), o); err == nil {
		t.Error("an import that was cancelled succeeded")
	}
	v := newVault(t)
	if err := v.Store().Close(); err != nil {
		t.Fatal(err)
	}
	if r, err := transfer.Import(t.Context(), from, v, o); err == nil || r.Count[transfer.Failed] != 1 {
		t.Errorf("into a storage that is closed: %+v, %v; want one that failed and an error", r, err)
	}
	if err := s3.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := transfer.Import(ctx, from, newVault(t), o); err == nil {
		t.Error("an import from a bucket that is gone succeeded")
	}
}

func TestPEMIsImportedUnderAnID(t *testing.T) {
	ca, v := newTestCA(t), newVault(t)
	chain, key := ca.pair(config.P384, "a.example.com", "192.0.2.7", "2001:db8::1")
	o := transfer.Options{Wanted: []transfer.Wanted{wanted("mine", "a.example.com", "b.example.com")}, Owner: "me"}
	e, err := transfer.ImportPEM(t.Context(), v, "mine", "a.pem", slices.Concat(key, chain), slices.Concat(key, chain), o)
	if err != nil || e.Action != transfer.Imported || e.Reason != "edge will order another: it lacks b.example.com" || e.Fingerprint != fingerprint(leafOf(t, chain)) {
		t.Errorf("got %+v, %v", e, err)
	}
	c, sum := stored(t, v, "mine")
	if sum != e.Fingerprint || !slices.Equal(c.Names, []string{"192.0.2.7", "2001:db8::1", "a.example.com"}) || c.KeyType != config.P384 || !c.Imported || c.Issuer != "acme" {
		t.Errorf("stored %s %+v", sum, c.Names)
	}
	sound(t, v)
	again, err := transfer.ImportPEM(t.Context(), v, "mine", "a.pem", chain, key, o)
	if err != nil || again.Action != transfer.Kept || again.Reason != "is there already" {
		t.Errorf("again: %+v, %v", again, err)
	}
	caChain, caKey := authority(t)
	expired, expiredKey := ca.aged(-2*time.Hour, -time.Hour).pair(config.P256, "a.example.com")
	for name, c := range map[string]struct{ chain, key []byte }{
		"there is no private key": {chain, nil}, "there is no certificate": {key, key}, "do not belong together": {chain, expiredKey}, "expired on": {expired, expiredKey},
		"is a CA": {caChain, caKey},
	} {
		e, err := transfer.ImportPEM(t.Context(), v, "other", "x", c.chain, c.key, o)
		if err != nil || e.Action != transfer.Failed || !strings.Contains(e.Reason, name) {
			t.Errorf("want %q, got %+v, %v", name, e, err)
		}
	}
}

func ExampleImportPEM() {
	v := exampleVault()
	defer func() { _ = v.Store().Close() }()
	e, err := transfer.ImportPEM(context.Background(), v, "shop", "shop.pem", []byte("not PEM"), nil, transfer.Options{})
	fmt.Println(e.Action, e.Reason, err)
	// Output: failed there is no certificate in it (want PEM) <nil>
}
