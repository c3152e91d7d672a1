package tlsmgr

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// shelfManager wants names and has stored the certificates by id.
func shelfManager(t *testing.T, ca *testCA, wanted []string, have map[string][]string) (*Manager, *state) {
	t.Helper()
	m := New(Options{Owner: "a"})
	st := &state{cfg: &config.Config{}, plan: &Planned{}, bundles: map[string]*Bundle{"b": {ID: "b", Names: wanted}}, wanted: wanted}
	m.state.Store(st)
	for id, names := range have {
		c := ca.certificate(t, id, config.P256, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), names...)
		m.loaded[id] = &stored{version: store.Version("1"), cert: c}
	}
	return m, st
}

// A name is in quarantine, and at the next renewal another one.
func TestCertificateThatIsStillNeededIsNotReplacedOnItsShelf(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	wanted := []string{"a.test", "b.test", "c.test"}
	for name, c := range map[string]struct {
		have map[string][]string
		want string
	}{
		"nothing is kept":    {map[string][]string{"b": {"a.test", "b.test"}}, "b.old"},
		"what is kept has c": {map[string][]string{"b": {"a.test", "b.test"}, "b.old": wanted}, "b.old.2"},
		"the second one, too": {
			map[string][]string{"b": {"a.test"}, "b.old": {"b.test"}, "b.old.2": {"c.test"}}, "b.old.3",
		},
		"what is kept is not needed any more": {map[string][]string{"b": wanted, "b.old": wanted}, "b.old"},
	} {
		m, st := shelfManager(t, ca, wanted, c.have)
		if got := m.roomLocked(st, "b", now); got != c.want {
			t.Errorf("%s: kept as %q, want %q", name, got, c.want)
		}
	}
	full := map[string][]string{"b": nil, "b.old": {"b.test"}, "b.old.2": {"b.test"}, "b.old.3": {"b.test"}, "b.old.4": {"b.test"}}
	full["b"] = []string{"a.test"}
	m, st := shelfManager(t, ca, wanted, full)
	m.loaded["b.old.3"].cert = ca.certificate(t, "b.old.3", config.P256, now.Add(-time.Hour), now.Add(time.Minute), "b.test")
	if got := m.roomLocked(st, "b", now); got != "b.old.3" {
		t.Errorf("%q gives way, want the one that ends first", got)
	}
}

func TestShelvesAreToldFromOtherCertificates(t *testing.T) {
	for id, want := range map[string]string{"b.old": "b", "b.old.2": "b", "b.old.4": "b", "b": "", "b.old.5": "", "old": "", "b.old.x": ""} {
		if of, ok := onShelf(id); of != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", id, of, ok, want)
		}
	}
	ca := newTestCA(t)
	m, st := shelfManager(t, ca, []string{"a.test", "b.test"}, map[string][]string{"b": {"a.test"}, "b.old": {"b.test"}, "b.old.2": {"a.test"}, "x.old": {"z.test"}})
	got := slices.Sorted(slices.Values(m.needless(st, time.Now())))
	if want := []string{"b.old.2", "x.old"}; !slices.Equal(got, want) {
		t.Errorf("%v can go, want %v", got, want)
	}
}

// Whoever keeps a certificate holds the lease of the one that it replaces.
func TestKeptCertificateIsNotDeletedWhileAnotherReplicaOrders(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := stock(t, lab, ca, "a.example.test", "a.example.test.old")
	m := ready(t, cfg, nil)
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := m.vaultInUse()
	lease, ok, err := v.Store().TryAcquire(t.Context(), leaseOf("a.example.test"))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	there := func() bool {
		_, _, err := vault.Load[vault.Certificate](t.Context(), v, "a.example.test.old")
		return err == nil
	}
	if err := m.discard(t.Context(), v, "a.example.test.old"); err != nil || !there() {
		t.Errorf("deleted while another held the lease: %v", err)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.discard(t.Context(), v, "a.example.test.old"); err != nil || there() {
		t.Errorf("not deleted: %v", err)
	}
}

// Thousands of certificates near their end do not hold up the look that would
// renew them.
func TestOneLookTellsAboutSomeCertificatesAtOnce(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	var told atomic.Int32
	m := New(Options{Owner: "a", Logger: (&logs{}).logger(), Events: func(Event) { told.Add(1) }})
	bundles := map[string]*Bundle{}
	c := ca.certificate(t, "x", config.P256, now.Add(-99*time.Hour), now.Add(time.Hour), "a.test")
	for n := range maxNotices + 10 {
		id := fmt.Sprintf("c%d", n)
		one := *c
		one.id = id
		bundles[id], m.loaded[id] = &Bundle{ID: id}, &stored{version: store.Version("1"), cert: &one}
	}
	m.state.Store(&state{cfg: &config.Config{}, plan: &Planned{}, bundles: bundles})
	for _, want := range []int32{maxNotices, maxNotices + 10, maxNotices + 10} {
		m.notice(t.Context(), nil, now)
		if got := told.Load(); got != want {
			t.Errorf("told about %d, want %d", got, want)
		}
	}
}
