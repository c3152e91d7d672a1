package vault_test

import (
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// later is two days from now: what is written now is old enough to be swept.
func later() time.Time { return time.Now().Add(48 * time.Hour) }

func keysOf(t *testing.T, v *vault.Vault) []string {
	t.Helper()
	objects, err := v.Store().ListVersions(t.Context(), "edge/v1")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, o := range objects {
		keys = append(keys, strings.TrimPrefix(o.Key, "edge/v1/"))
	}
	return keys
}

func TestSweepDeletesOnlyWhatNobodyNeeds(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			v, now := open(t, rawURL, "a"), later()
			save(t, v, "a", certificate(t, "a", "a.test"))
			a, id := account(t)
			save(t, v, id, a)
			save(t, v, "internal", &vault.Authority{Issuer: "internal"})
			save(t, v, "idle", &vault.Order{ID: "idle", UpdatedAt: now.Add(-25 * time.Hour)})
			save(t, v, "fresh", &vault.Order{ID: "fresh", UpdatedAt: now.Add(-23 * time.Hour)})
			save(t, v, "open", &vault.Order{ID: "open", Attempt: &vault.Attempt{}})
			save(t, v, "quarantine", &vault.Order{ID: "quarantine", Quarantine: map[string]vault.Quarantined{"a.test": {Next: now.Add(-23 * time.Hour)}, "b.test": {}}})
			save(t, v, "unwanted", &vault.Order{ID: "unwanted", Quarantine: map[string]vault.Quarantined{"a.test": {Next: now.Add(-25 * time.Hour)}}})
			save(t, v, "paused", &vault.Order{ID: "paused", Next: now.Add(time.Minute)})
			save(t, v, "silent", &vault.Replica{ID: "silent", Beat: now.Add(-25 * time.Hour)})
			save(t, v, "alive", &vault.Replica{ID: "alive", Beat: now.Add(-time.Minute)})
			save(t, v, "clock", &vault.Replica{ID: "clock", Beat: now.AddDate(10, 0, 0)})
			expired := &vault.Challenge{Kind: config.HTTP01, Token: "old", Expires: now.Add(-61 * time.Minute)}
			save(t, v, expired.ID(), expired)
			current := &vault.Challenge{Kind: config.HTTP01, Token: "new", Expires: now.Add(-59 * time.Minute)}
			save(t, v, current.ID(), current)
			put(t, v, vault.OrderKey("newer"), []byte(`{"format":2}`))
			put(t, v, vault.OrderKey("torn"), []byte(`{`))
			put(t, v, "edge/v1/orders/foreign", nil)

			swept, err := v.Sweep(t.Context(), now)
			if want := (vault.Swept{Replicas: 2, Orders: 2, Challenges: 1}); err != nil || swept != want {
				t.Errorf("got %+v, want %+v: %v", swept, want, err)
			}
			want := []string{
				"accounts/" + id + ".json", "authorities/internal.json", "certificates/a.json", "challenges/" + current.ID() + ".json",
				"orders/foreign", "orders/fresh.json", "orders/newer.json", "orders/open.json", "orders/paused.json", "orders/quarantine.json",
				"orders/torn.json", "replicas/alive.json",
			}
			if got := keysOf(t, v); !slices.Equal(got, want) {
				t.Errorf("left:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if swept, err := v.Sweep(t.Context(), now); err != nil || swept != (vault.Swept{}) {
				t.Errorf("again: %+v, %v", swept, err)
			}
		})
	}
}

// A machine whose clock is a year ahead must not delete what others use.
func TestSweepBelievesNeitherClockAlone(t *testing.T) {
	v := open(t, "file://"+t.TempDir())
	long := time.Now().AddDate(-1, 0, 0)
	save(t, v, "r", &vault.Replica{ID: "r", Beat: long}) // its clock is behind, and it has just written
	save(t, v, "o", &vault.Order{ID: "o", UpdatedAt: long})
	c := &vault.Challenge{Token: "t", Expires: long}
	save(t, v, c.ID(), c)
	if swept, err := v.Sweep(t.Context(), time.Now()); err != nil || swept != (vault.Swept{}) {
		t.Errorf("got %+v, %v", swept, err)
	}
}

func TestSweepShortensBudgets(t *testing.T) {
	v, now := open(t, "file://"+t.TempDir()), later().UTC().Round(0)
	old, recent := now.AddDate(0, 0, -32), now.AddDate(0, 0, -30)
	save(t, v, "ca", &vault.Budget{
		Orders:  []time.Time{old, recent, old},
		Domains: map[string][]time.Time{"a.test": {old, old}, "b.test": {recent}},
		Sets:    map[string][]time.Time{"x": {old, recent}, "empty": {}},
		Failed:  map[string][]time.Time{"a.test": {recent}},
	})
	save(t, v, "short", &vault.Budget{Orders: []time.Time{recent}})
	if swept, err := v.Sweep(t.Context(), now); err != nil || swept != (vault.Swept{Budgets: 1}) {
		t.Errorf("got %+v, %v", swept, err)
	}
	b, _, err := vault.Load[vault.Budget](t.Context(), v, "ca")
	if err != nil {
		t.Fatal(err)
	}
	for name, left := range map[string]int{
		"orders": len(b.Orders) - 1, "domains": len(b.Domains) - 1, "b.test": len(b.Domains["b.test"]) - 1,
		"sets": len(b.Sets) - 1, "x": len(b.Sets["x"]) - 1, "failed": len(b.Failed["a.test"]) - 1,
	} {
		if left != 0 {
			t.Errorf("%s: %d too many in %+v", name, left, b)
		}
	}
}

func TestPrunedLeavesItsReceiverAlone(t *testing.T) {
	at := time.Unix(1, 0)
	b := vault.Budget{Orders: []time.Time{at}, Failed: map[string][]time.Time{"a": {at}}}
	got, some := b.Pruned(time.Unix(2, 0))
	if !some || len(got.Orders) != 0 || len(got.Failed) != 0 || len(b.Orders) != 1 || len(b.Failed["a"]) != 1 {
		t.Errorf("got %+v, %t, receiver %+v", got, some, b)
	}
	if _, some := b.Pruned(at); some {
		t.Error("pruned what is not before")
	}
}

func TestSweepLeavesWhatIsLeased(t *testing.T) {
	rawURL := "file://" + t.TempDir()
	v, other := open(t, rawURL), openStore(t, rawURL)
	save(t, v, "a", &vault.Order{ID: "a"})
	lease, err := other.Acquire(t.Context(), vault.Orders.Lease("a"))
	if err != nil {
		t.Fatal(err)
	}
	if swept, err := v.Sweep(t.Context(), later()); err != nil || swept.Orders != 0 {
		t.Errorf("while it is held: %+v, %v", swept, err)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if swept, err := v.Sweep(t.Context(), later()); err != nil || swept.Orders != 1 {
		t.Errorf("afterwards: %+v, %v", swept, err)
	}
}

// An order that begins after Sweep has read its object and before Sweep has the
// lease must not lose its journal.
func TestSweepReadsAgainUnderTheLease(t *testing.T) {
	s3 := acmelab.NewS3(t, "certs")
	v := open(t, s3.StoreURL("certs", "p"))
	version := save(t, v, "a", &vault.Order{ID: "a"})
	var once atomic.Bool
	s3.SetFail(func(r *http.Request) int {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/locks/certificate") && once.CompareAndSwap(false, true) {
			if _, err := vault.Save(t.Context(), v, "a", &vault.Order{ID: "a", Attempt: &vault.Attempt{URL: "open"}}, version); err != nil {
				t.Error(err)
			}
		}
		return 0
	})
	if swept, err := v.Sweep(t.Context(), later()); err != nil || swept.Orders != 0 || !once.Load() {
		t.Errorf("got %+v, %v", swept, err)
	}
	if o, _, err := vault.Load[vault.Order](t.Context(), v, "a"); err != nil || o.Attempt == nil {
		t.Errorf("the journal is lost: %v", err)
	}
}

// Whoever changes an order under its lease finds it whole or gone, never
// deleted after the change.
func TestSweepAndWritersUnderTheLeaseLoseNothing(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			sweeper, writer := open(t, rawURL), open(t, rawURL)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range 10 {
					writeUnderLease(t, writer)
				}
			}()
			for running := true; running; {
				select {
				case <-done:
					running = false
				default:
				}
				if _, err := sweeper.Sweep(t.Context(), later()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// writeUnderLease opens an order, looks whether it stands, and ends it.
func writeUnderLease(t *testing.T, v *vault.Vault) {
	t.Helper()
	lease, err := v.Store().Acquire(t.Context(), vault.Orders.Lease("a"))
	if err != nil {
		t.Error(err)
		return
	}
	defer func() {
		if err := lease.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	for _, attempt := range []*vault.Attempt{{URL: "open"}, nil} {
		if _, _, err := vault.Update(t.Context(), v, "a", func(o *vault.Order) (bool, error) {
			o.ID, o.Attempt = "a", attempt
			return true, nil
		}); err != nil {
			t.Error(err)
		}
		if _, _, err := vault.Load[vault.Order](t.Context(), v, "a"); err != nil {
			t.Errorf("written under the lease, and then: %v", err)
		}
	}
}

// A replica that slept for a day writes its heartbeat anew.
func TestReplicaThatWakesAfterItWasSweptComesBack(t *testing.T) {
	v := open(t, "file://"+t.TempDir())
	version := save(t, v, "r", &vault.Replica{ID: "r"})
	if swept, err := v.Sweep(t.Context(), later()); err != nil || swept.Replicas != 1 {
		t.Fatalf("%+v, %v", swept, err)
	}
	if _, err := vault.Save(t.Context(), v, "r", &vault.Replica{ID: "r"}, version); !errors.Is(err, store.ErrConflict) {
		t.Errorf("beat on what is gone: %v", err)
	}
	if _, _, err := vault.Load[vault.Replica](t.Context(), v, "r"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	save(t, v, "r", &vault.Replica{ID: "r"})
}

func TestOneReplicaSweepsAtATime(t *testing.T) {
	s3 := acmelab.NewS3(t, "certs")
	rawURL := s3.StoreURL("certs", "p")
	v, other := open(t, rawURL), openStore(t, rawURL)
	save(t, v, "r", &vault.Replica{ID: "r"})
	lease, err := other.Acquire(t.Context(), "sweep")
	if err != nil {
		t.Fatal(err)
	}
	before := lists(s3)
	if swept, err := v.Sweep(t.Context(), later()); err != nil || swept != (vault.Swept{}) || lists(s3) != before {
		t.Errorf("got %+v, %v, %d listings", swept, err, lists(s3)-before)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if swept, err := v.Sweep(t.Context(), time.Now()); err != nil || swept != (vault.Swept{}) || lists(s3) != before+2 {
		t.Errorf("nothing due: %+v, %v, %d listings, want one and one for the leases", swept, err, lists(s3)-before)
	}
}

func lists(s3 *acmelab.S3) (n int) {
	requests := s3.Requests()
	for key := range maps.Keys(requests) {
		if strings.HasSuffix(key, "?list") {
			n += requests[key]
		}
	}
	return n
}

func TestLocksAreListed(t *testing.T) {
	v := open(t, "file://"+t.TempDir())
	lease, err := v.Store().Acquire(t.Context(), vault.Certificates.Lease("*.a.test"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lease.Release(t.Context()) }()
	locks, err := v.Locks(t.Context())
	if err != nil || len(locks) != 1 || locks[0].Name != "certificate/*.a.test" || !locks[0].Held {
		t.Errorf("got %+v, %v", locks, err)
	}
}

func TestSweepTellsThatTheStorageIsDown(t *testing.T) {
	s := openStore(t, "file://"+t.TempDir())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.New(s, vault.Options{}).Sweep(t.Context(), later()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
