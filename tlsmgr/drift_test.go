package tlsmgr

import (
	"crypto/tls"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// Replicas that are not alike: in a rolling update the configurations differ for
// a while, and sometimes a clock is wrong.

// settledAt waits until each replica has looked at the storage some times and found
// nothing to order.
func settledAt(t *testing.T, lab *acmelab.Lab, orders int) {
	t.Helper()
	lists, sent := lab.S3.Count(http.MethodGet, "/certs?list"), lab.CA.Requests(acmelab.PathNewOrder)
	wait(t, func() bool { return lab.S3.Count(http.MethodGet, "/certs?list") > lists+12 })
	if n := lab.CA.Orders(); n != orders {
		t.Errorf("%d orders, want %d: %v", n, orders, lab.CA.Ordered())
	}
	if n := lab.CA.Requests(acmelab.PathNewOrder); n != sent { // refused ones too
		t.Errorf("%d more orders were sent", n-sent)
	}
}

func TestNameThatOnlyOneReplicaWantsDoesNotFlap(t *testing.T) {
	t.Parallel()
	hour := func(o *Options) {
		o.Interval, o.Backoff = 50*time.Millisecond, func(int) time.Duration { return time.Hour }
	}
	for name, c := range map[string]struct {
		old, more []string
		limit     int
		blocked   []string
		orders    int // of both replicas in all that the CA took
	}{
		"it joins a certificate":       {old: []string{"a.example.test"}, more: []string{"c.example.test"}, orders: 2},
		"it needs another certificate": {old: []string{"a.example.test", "b.example.test"}, more: []string{"c.example.test"}, limit: 2, orders: 2},
		"a wildcard moves its domain":  {old: []string{"a.example.test", "b.example.test"}, more: []string{"*.b.example.test"}, limit: 2, orders: 2},
		"the CA refuses it": {
			old: []string{"a.example.test"}, more: []string{"bad.example.test"}, blocked: []string{"bad.example.test"}, orders: 1,
		},
		"the CA refuses one of two": {
			old: []string{"a.example.test"}, more: []string{"bad.example.test", "c.example.test"}, blocked: []string{"bad.example.test"}, orders: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Blocked: c.blocked}})
			configure := func(hosts []string) *config.Config {
				cfg := labConfig(t, lab, hosts...)
				if c.limit > 0 {
					cfg.Bundles.MaxNames = c.limit
				}
				return cfg
			}
			before := start(t, configure(c.old), hour)
			before.until(t, "example.test", StepLoaded)
			after := start(t, configure(slices.Concat(c.old, c.more)), hour)
			good := slices.DeleteFunc(slices.Concat(c.old, c.more), func(n string) bool { return slices.Contains(c.blocked, n) })
			wait(t, func() bool {
				return servesAll(t, after, lab, good) && leftOut(after) == len(c.blocked) && lab.CA.Orders() >= c.orders
			})
			settledAt(t, lab, c.orders)
			// A reload that changes nothing, and a restart, change nothing.
			commit(t, before.Manager, configure(c.old))
			commit(t, after.Manager, configure(slices.Concat(c.old, c.more)))
			third := start(t, configure(c.old), hour)
			third.until(t, "example.test", StepLoaded)
			for _, r := range []*replica{before, after, third} {
				wait(t, func() bool { return servesAll(t, r, lab, c.old) })
			}
			settledAt(t, lab, c.orders)
			if !servesAll(t, after, lab, good) {
				t.Error("the new replica does not serve what it did")
			}
			for _, r := range []*replica{before, third} {
				if s := r.Status(); slices.ContainsFunc(s.Certificates, func(c CertificateStatus) bool { return c.State != StateValid }) {
					t.Errorf("status of an old replica: %+v", s.Certificates)
				}
			}
		})
	}
}

// leftOut is how many names are in quarantine.
func leftOut(r *replica) int {
	n := 0
	for _, c := range r.Status().Certificates {
		n += len(c.LeftOut)
	}
	return n
}

func servesAll(t *testing.T, r *replica, lab *acmelab.Lab, names []string) bool {
	t.Helper()
	for _, n := range names {
		if _, err := shake(t, r.Manager, &tls.Config{ServerName: strings.Replace(n, "*", "x", 1), RootCAs: lab.CA.Roots}); err != nil {
			return false
		}
	}
	return true
}

// An old replica renews without the new name, as in a rolling update that takes
// long. The new replica goes on serving it from the certificate before.
func TestNameThatOnlyOneReplicaWantsIsServedPastARenewalByTheOther(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	quick := func(o *Options) { o.Interval = 50 * time.Millisecond }
	old := start(t, labConfig(t, lab, "a.example.test"), quick)
	old.until(t, "example.test", StepLoaded)
	fresh := start(t, labConfig(t, lab, "a.example.test", "c.example.test"), quick)
	wait(t, func() bool { return servesAll(t, fresh, lab, []string{"c.example.test"}) })
	serial := fresh.one(t).Serial
	wait(t, func() bool { return old.one(t).Serial == serial })
	probe(t, fresh.Manager, lab.CA.Roots, "c.example.test")
	if err := old.Obtain(t.Context(), nil, true); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool { return fresh.one(t).Serial != serial })
	settledAt(t, lab, 3) // it yields for ten minutes
	if !servesAll(t, fresh, lab, []string{"a.example.test", "c.example.test"}) {
		t.Error("the new replica lost a name that only it wants")
	}
}

// The clock of one replica is an hour ahead, which is as far as settle lets
// clocks differ.
func TestClockThatIsAnHourAheadRenewsNothingAndFreesNoQuota(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	ahead := now.Add(maxSkew)
	st := &state{cfg: &config.Config{Issuers: map[string]*config.Issuer{"ca": {Name: "ca", Directory: "https://ca.test/dir"}}}}
	b := Bundle{ID: "b", Names: []string{"a.test"}, Issuer: "ca", KeyType: config.P256}
	day := 24 * time.Hour
	for _, life := range []time.Duration{6 * day, 45 * day, 90 * day} {
		for _, age := range []time.Duration{0, life / 4, life/2 - life/20 - 2*time.Hour} {
			c := ca.certificate(t, "b", config.P256, now.Add(-age), now.Add(life-age), "a.test")
			c.object.Directory = "https://ca.test/dir"
			if got := st.needs(&b, &stored{version: store.Version("1"), cert: c}, nil, ahead); got != needNothing {
				t.Errorf("life %s, age %s: %q", life, age, got)
			}
		}
	}

	q := config.Quotas{Orders: config.Quota{Count: 10, Per: 3 * time.Hour}}
	budget := &vault.Budget{}
	for n := range 10 { // in the last two hours and a half
		if wait, why := reserve(budget, q, []string{"a.test"}, false, now.Add(-150*time.Minute+time.Duration(n)*15*time.Minute)); wait > 0 {
			t.Fatalf("order %d waits %s: %s", n, wait, why)
		}
	}
	// The clock that is ahead may be an hour early itself: nobody tells it. It
	// must not make the others early, by dropping what still counts for them.
	settle(budget, q, ahead)
	if wait, _ := reserve(budget, q, []string{"a.test"}, false, now); wait < 29*time.Minute {
		t.Errorf("the right clock waits %s, want the half hour until the first order is three hours old", wait)
	}
	if n := used(budget.Orders, q.Orders, ahead); n >= 10 {
		t.Errorf("%d orders count for the clock that is ahead, want those of three hours", n)
	}
	// What it writes counts for the others, and not for longer than its own window.
	written := &vault.Budget{}
	for range 10 {
		reserve(written, q, []string{"a.test"}, false, ahead)
	}
	if wait, _ := reserve(written, q, []string{"a.test"}, false, now); wait < 3*time.Hour-time.Minute || wait > 4*time.Hour+time.Minute {
		t.Errorf("orders of the clock that is ahead hold the right one back for %s, want 3 h to 4 h", wait)
	}
}
