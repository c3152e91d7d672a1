package vault_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/internal/acmelab"
	"edge/tlsmgr/vault"
)

func TestRotateSealsWhatIsPlainOrSealedByAnotherKeyOnce(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			plain, old, v := open(t, rawURL), open(t, rawURL, "old"), open(t, rawURL, "new", "old")
			put(t, plain, exampleKey, bytes.Replace(testdata(t, "certificate.json"), []byte(`{`), []byte(`{"unknown":[1],`), 1))
			save(t, old, "b", certificate(t, "b", "b.test"))
			save(t, v, "c", certificate(t, "c", "c.test"))
			a, id := account(t)
			save(t, plain, id, a)
			save(t, plain, "b", &vault.Order{ID: "b"})
			save(t, plain, "r", &vault.Replica{ID: "r"})
			before := raw(t, v, vault.CertificateKey("c"))

			if n, err := v.Rotate(t.Context(), nil); n != 4 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
			if n, err := v.Rotate(t.Context(), nil); n != 0 || err != nil {
				t.Errorf("again: %d, %v", n, err)
			}
			if !bytes.Equal(raw(t, v, vault.CertificateKey("c")), before) {
				t.Error("wrote what was in order")
			}
			content, err := ring(t, "new").Open(exampleKey, raw(t, v, exampleKey))
			if err != nil || !bytes.Contains(content, []byte(`"unknown":[1]`)) {
				t.Errorf("lost content: %v", err)
			}
			r, err := open(t, rawURL, "new").Verify(t.Context(), nil) // the old key is not needed any more
			if err != nil || len(r.Findings) > 0 || r.Stale > 0 || r.Objects != 6 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestRotateWithoutKeysIsRefused(t *testing.T) {
	if _, err := open(t, "file://"+t.TempDir()).Rotate(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "set storage.encrypt.keys") {
		t.Errorf("got %v", err)
	}
}

func TestRotateLeavesWhatItCannotReadAndTellsIt(t *testing.T) {
	v := open(t, "file://"+t.TempDir(), "a")
	sealedByOther, err := ring(t, "other").Seal(vault.OrderKey("o"), []byte(`{"format":1,"id":"o"}`))
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{
		vault.CertificateKey("newer"): []byte(`{"format":2}`),
		vault.CertificateKey("torn"):  []byte(`{"format":1`),
		vault.CertificateKey("moved"): testdata(t, "certificate.json"),
		vault.OrderKey("o"):           sealedByOther,
	}
	for key, content := range bad {
		put(t, v, key, content)
	}
	put(t, v, exampleKey, testdata(t, "certificate.json"))
	n, err := v.Rotate(t.Context(), nil)
	if n != 1 || !errors.Is(err, vault.ErrNewer) || !errors.Is(err, vault.ErrDamaged) || !errors.Is(err, vault.ErrNoKey) {
		t.Errorf("%d, %v", n, err)
	}
	for key, content := range bad {
		if !bytes.Equal(raw(t, v, key), content) || !strings.Contains(fmt.Sprint(err), key) {
			t.Errorf("%s was changed or is not told", key)
		}
	}
}

func TestManyErrorsAreToldShortly(t *testing.T) {
	v := open(t, "file://"+t.TempDir(), "a")
	for i := range 50 {
		put(t, v, vault.CertificateKey(fmt.Sprint(i)), []byte(`{"format":2}`))
	}
	_, err := v.Rotate(t.Context(), nil)
	if lines := strings.Count(fmt.Sprint(err), "\n") + 1; lines != 21 || !strings.HasSuffix(err.Error(), "and 30 more") {
		t.Errorf("%d lines: %v", lines, err)
	}
}

// A renewal that is written between Rotate's read and its write must stay.
func TestRotateDoesNotUndoAWriteInBetween(t *testing.T) {
	s3 := acmelab.NewS3(t, "certs")
	rawURL := s3.StoreURL("certs", "p")
	plain, v := open(t, rawURL), open(t, rawURL, "new")
	version := save(t, plain, "a", certificate(t, "a", "a.test"))
	renewed := certificate(t, "a", "a.test")
	var once atomic.Bool
	s3.SetFail(func(r *http.Request) int {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/certificates/a.json") && once.CompareAndSwap(false, true) {
			if _, err := vault.Save(t.Context(), plain, "a", renewed, version); err != nil {
				t.Error(err)
			}
		}
		return 0
	})
	if n, err := v.Rotate(t.Context(), nil); n != 1 || err != nil || !once.Load() {
		t.Fatalf("%d, %v", n, err)
	}
	got, _, err := vault.Load[vault.Certificate](t.Context(), v, "a")
	if err != nil || got.Chain != renewed.Chain {
		t.Errorf("the renewal is lost: %v", err)
	}
	if !bytes.Contains(raw(t, v, vault.CertificateKey("a")), []byte(`"sealed"`)) {
		t.Error("the renewal is not sealed")
	}
}

// Who orders commits with the version read under the lease. If Rotate changed it
// meanwhile, a certificate that was just issued would be dropped.
func TestRotateKeepsItsHandsOffWhatIsLeased(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			plain, v := open(t, rawURL), open(t, rawURL, "new")
			version := save(t, plain, "a", certificate(t, "a", "a.test"))
			lease, err := plain.Store().Acquire(t.Context(), vault.Certificates.Lease("a"))
			if err != nil {
				t.Fatal(err)
			}
			save(t, plain, "b", certificate(t, "b", "b.test"))
			done := make(chan error, 1)
			first := make(chan struct{})
			go func() {
				_, err := v.Rotate(t.Context(), func(done, _ int) {
					if done == 1 { // b is
						close(first)
					}
				})
				done <- err
			}()
			<-first
			renewed := certificate(t, "a", "a.test")
			if _, err := vault.Save(t.Context(), plain, "a", renewed, version); err != nil {
				t.Errorf("the order could not commit: %v", err)
			}
			if err := lease.Release(t.Context()); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			got, _, err := vault.Load[vault.Certificate](t.Context(), v, "a")
			if err != nil || got.Chain != renewed.Chain || !bytes.Contains(raw(t, v, vault.CertificateKey("a")), []byte(`"sealed"`)) {
				t.Errorf("not renewed or not sealed: %v", err)
			}
		})
	}
}

func TestRotateDoesNotWaitForEver(t *testing.T) {
	dir := "file://" + t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		plain, v := open(t, dir), open(t, dir, "new")
		save(t, plain, "a", certificate(t, "a", "a.test"))
		save(t, plain, "b", certificate(t, "b", "b.test"))
		before := raw(t, v, vault.CertificateKey("a"))
		lease, err := plain.Store().Acquire(t.Context(), vault.Certificates.Lease("a"))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		n, err := v.Rotate(t.Context(), nil)
		if n != 1 || err == nil || !strings.Contains(err.Error(), "certificates/a.json: ") || !strings.Contains(err.Error(), "in use for 2m0s") {
			t.Errorf("%d, %v", n, err)
		}
		if took := time.Since(start); took > 3*time.Minute {
			t.Errorf("took %s", took)
		}
		if !bytes.Equal(raw(t, v, vault.CertificateKey("a")), before) {
			t.Error("changed")
		}
		if err := lease.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if n, err := v.Rotate(t.Context(), nil); n != 1 || err != nil {
			t.Errorf("afterwards: %d, %v", n, err)
		}
	})
}

// Two rotations that disagree which key is first write all the time.
func TestRotateAndWritersOnOneObjectLoseNothing(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			const writes = 30
			writer := open(t, rawURL, "a", "b")
			save(t, writer, "x", &vault.Order{ID: "x"})
			done := make(chan struct{})
			var wrote atomic.Int64
			var wg sync.WaitGroup
			for _, v := range []*vault.Vault{open(t, rawURL, "a", "b"), open(t, rawURL, "b", "a")} {
				wg.Go(func() {
					for running := true; running; {
						select {
						case <-done:
							running = false
						default:
						}
						n, err := v.Rotate(t.Context(), nil)
						if err != nil {
							t.Error(err)
						}
						wrote.Add(int64(n))
					}
				})
			}
			for range writes {
				if _, _, err := vault.Update(t.Context(), writer, "x", func(o *vault.Order) (bool, error) { o.Failures++; return true, nil }); err != nil {
					t.Error(err)
				}
			}
			close(done)
			wg.Wait()
			o, _, err := vault.Load[vault.Order](t.Context(), writer, "x")
			if err != nil || o.Failures != writes {
				t.Errorf("got %d, want %d: %v", o.Failures, writes, err)
			}
			if wrote.Load() == 0 {
				t.Error("the rotations wrote nothing")
			}
		})
	}
}

func TestRotateSkipsWhatIsDeletedMeanwhile(t *testing.T) {
	s3 := acmelab.NewS3(t, "certs")
	v := open(t, s3.StoreURL("certs", "p"), "a")
	plain := open(t, s3.StoreURL("certs", "p"))
	save(t, plain, "a", &vault.Order{ID: "a", UpdatedAt: time.Now()})
	var once atomic.Bool
	s3.SetFail(func(r *http.Request) int {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/a.json") && once.CompareAndSwap(false, true) {
			if err := plain.Store().Delete(t.Context(), vault.OrderKey("a")); err != nil {
				t.Error(err)
			}
		}
		return 0
	})
	if n, err := v.Rotate(t.Context(), nil); n != 0 || err != nil || !once.Load() {
		t.Errorf("%d, %v", n, err)
	}
}

// Objects in use say nothing about the storage: the others have their turn.
func TestManyObjectsInUseDoNotStopRotate(t *testing.T) {
	dir := "file://" + t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const ttl = 10 * time.Minute // so that few polls and heartbeats happen
		plain := vault.New(openStoreTTL(t, dir, ttl), vault.Options{})
		v := vault.New(openStoreTTL(t, dir, ttl), vault.Options{Keys: ring(t, "new")})
		for i := range 40 {
			id := fmt.Sprintf("busy%02d", i)
			save(t, plain, id, &vault.Order{ID: id})
			lease, err := plain.Store().Acquire(t.Context(), vault.Orders.Lease(id))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = lease.Release(t.Context()) }()
		}
		save(t, plain, "free", &vault.Order{ID: "free"})
		if n, err := v.Rotate(t.Context(), nil); n != 1 || err == nil || strings.Contains(err.Error(), "gave up") {
			t.Errorf("%d, %v", n, err)
		}
	})
}
