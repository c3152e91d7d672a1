package vault_test

import (
	"bytes"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"edge/internal/acmelab"
	"edge/tlsmgr/vault"
)

func TestCopyMovesAStorageFromOneKindAndKeyToAnother(t *testing.T) {
	urls := eachStore(t)
	from, to := open(t, urls["file"], "a", "old"), open(t, urls["s3"], "b")
	c := certificate(t, "*.a.test", "*.a.test")
	save(t, from, c.ID, c)
	put(t, from, exampleKey, testdata(t, "certificate.json"))
	a, id := account(t)
	save(t, open(t, urls["file"], "old"), id, a)
	save(t, from, "ca", &vault.Budget{})
	save(t, from, "r", &vault.Replica{ID: "r"})
	lease, err := from.Store().Acquire(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lease.Release(t.Context()) }()

	if n, err := from.Copy(t.Context(), to, nil); n != 4 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := from.Copy(t.Context(), to, nil); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	got, _, err := vault.Load[vault.Certificate](t.Context(), to, c.ID)
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("certificate: %v", err)
	}
	gotA, _, err := vault.Load[vault.Account](t.Context(), to, id)
	if err != nil || !reflect.DeepEqual(gotA, a) {
		t.Errorf("account: %v", err)
	}
	objects, err := to.Store().ListVersions(t.Context(), "")
	if err != nil || len(objects) != 4 {
		t.Errorf("copied leases or replicas: %v, %v", objects, err)
	}
	r, err := to.Verify(t.Context(), nil)
	if err != nil || len(r.Findings) > 0 || r.Stale > 0 || r.Keys[ring(t, "b").IDs()[0]] != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestCopyKeepsWhatTheTargetHasUnlessForced(t *testing.T) {
	from, to := open(t, "file://"+t.TempDir()), open(t, "file://"+t.TempDir(), "b")
	save(t, from, "a", certificate(t, "a", "a.test"))
	save(t, from, "b", certificate(t, "b", "b.test"))
	save(t, from, "c", certificate(t, "c", "c.test"))
	theirs := certificate(t, "a", "a.test")
	save(t, to, "a", theirs)
	put(t, to, vault.CertificateKey("b"), []byte("torn"))

	n, err := from.Copy(t.Context(), to, nil)
	if n != 1 || !errors.Is(err, vault.ErrDiffers) || strings.Count(err.Error(), "the target holds another") != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if got, _, err := vault.Load[vault.Certificate](t.Context(), to, "a"); err != nil || got.Chain != theirs.Chain {
		t.Errorf("overwritten: %v", err)
	}
	if n, err := from.CopyOver(t.Context(), to, nil); n != 2 || err != nil {
		t.Errorf("forced: %d, %v", n, err)
	}
	if n, err := from.Copy(t.Context(), to, nil); n != 0 || err != nil {
		t.Errorf("afterwards: %d, %v", n, err)
	}
}

func TestCopyOverLeavesWhatOnlyOthersCanRead(t *testing.T) {
	from, to := open(t, "file://"+t.TempDir()), open(t, "file://"+t.TempDir(), "b")
	theirs := map[string][]byte{vault.CertificateKey("a"): []byte(`{"format":2}`), exampleKey: testdata(t, "sealed-by-a.json")}
	for key, content := range theirs {
		put(t, to, key, content)
	}
	save(t, from, "a", certificate(t, "a", "a.test"))
	put(t, from, exampleKey, testdata(t, "certificate.json"))
	n, err := from.CopyOver(t.Context(), to, nil)
	if n != 0 || !errors.Is(err, vault.ErrNewer) || !errors.Is(err, vault.ErrNoKey) {
		t.Errorf("%d, %v", n, err)
	}
	for key, content := range theirs {
		if !bytes.Equal(raw(t, to, key), content) {
			t.Errorf("%s was overwritten", key)
		}
	}
}

func TestCopyTellsWhatItCannotRead(t *testing.T) {
	from, to := open(t, "file://"+t.TempDir()), open(t, "file://"+t.TempDir())
	put(t, from, vault.CertificateKey("newer"), []byte(`{"format":2}`))
	put(t, from, exampleKey, testdata(t, "sealed-by-a.json"))
	put(t, from, vault.CertificateKey("torn"), nil)
	save(t, from, "a", certificate(t, "a", "a.test"))
	n, err := from.Copy(t.Context(), to, nil)
	if n != 1 || !errors.Is(err, vault.ErrNewer) || !errors.Is(err, vault.ErrNoKey) || !errors.Is(err, vault.ErrDamaged) {
		t.Errorf("%d, %v", n, err)
	}
}

// An edge that is at work in the target may write at any moment.
func TestCopyDoesNotOverwriteWhatAppearsInBetween(t *testing.T) {
	s3 := acmelab.NewS3(t, "certs")
	from, to := open(t, "file://"+t.TempDir()), open(t, s3.StoreURL("certs", "p"))
	save(t, from, "a", certificate(t, "a", "a.test"))
	theirs := certificate(t, "a", "a.test")
	var once atomic.Bool
	s3.SetFail(func(r *http.Request) int {
		if r.Method == http.MethodPut && once.CompareAndSwap(false, true) {
			save(t, to, "a", theirs)
		}
		return 0
	})
	if n, err := from.Copy(t.Context(), to, nil); n != 0 || !errors.Is(err, vault.ErrDiffers) || !once.Load() {
		t.Errorf("%d, %v", n, err)
	}
	if got, _, err := vault.Load[vault.Certificate](t.Context(), to, "a"); err != nil || got.Chain != theirs.Chain {
		t.Errorf("overwritten: %v", err)
	}
}

// A write whose answer is lost has happened; it is not counted as a conflict.
func TestCopySurvivesALostAnswer(t *testing.T) {
	s3 := acmelab.NewS3(t, "certs")
	from, to := open(t, "file://"+t.TempDir()), open(t, s3.StoreURL("certs", "p"), "b")
	c := certificate(t, "a", "a.test")
	save(t, from, "a", c)
	var once atomic.Bool
	s3.SetFail(func(r *http.Request) int {
		if r.Method == http.MethodPut && once.CompareAndSwap(false, true) {
			return acmelab.Lose
		}
		return 0
	})
	if n, err := from.Copy(t.Context(), to, nil); n != 1 || err != nil || !once.Load() {
		t.Errorf("%d, %v", n, err)
	}
	if got, _, err := vault.Load[vault.Certificate](t.Context(), to, "a"); err != nil || got.Chain != c.Chain {
		t.Errorf("got %v", err)
	}
}
