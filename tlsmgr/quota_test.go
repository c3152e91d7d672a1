package tlsmgr

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"edge/config"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

const testWeek = 7 * 24 * time.Hour

// noon is when the budgets of these tests begin.
func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func letsEncryptQuotas() config.Quotas {
	return acme.QuotasOf(&config.Issuer{Directory: "https://acme-v02.api.letsencrypt.org/directory"})
}

// reread is b as the next replica reads it.
func reread(t interface{ Fatal(...any) }, b *vault.Budget) *vault.Budget {
	raw, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	out := new(vault.Budget)
	if err := json.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRefusedReservationNamesTheQuotaAndWhenItIsFree(t *testing.T) {
	for name, c := range map[string]struct {
		fill   func(b *vault.Budget, q config.Quotas, at time.Time)
		count  int
		names  []string
		after  time.Duration
		wait   time.Duration
		reason string
	}{
		"orders": {
			fill: func(b *vault.Budget, q config.Quotas, at time.Time) {
				reserve(b, q, []string{fmt.Sprintf("n%d.example", at.Unix())}, false, at)
			},
			count: 300, names: []string{"a.example.com"}, after: time.Hour, wait: 2*time.Hour - 299*time.Second,
			reason: "orders: all 300 in 3h are used until 2026-03-01T15:00:00Z (limits.orders)",
		},
		"registered domain": {
			fill: func(b *vault.Budget, q config.Quotas, at time.Time) {
				reserve(b, q, []string{fmt.Sprintf("n%d.example.co.uk", at.Unix())}, false, at)
			},
			count: 50, names: []string{"*.x.example.co.uk", "example.org"}, after: 24 * time.Hour, wait: 6*24*time.Hour - 49*time.Second,
			reason: "certificates for the registered domain example.co.uk: all 50 in 168h are used until 2026-03-08T12:00:00Z (limits.per_domain)",
		},
		"addresses of one network": {
			fill: func(b *vault.Budget, q config.Quotas, at time.Time) {
				reserve(b, q, []string{fmt.Sprintf("2001:db8:1:1::%x", at.Unix()&0xffff)}, false, at)
			},
			count: 50, names: []string{"2001:db8:1:1:ffff::1"}, after: time.Minute, wait: testWeek - time.Minute - 49*time.Second,
			reason: "the registered domain 2001:db8:1:1::/64",
		},
		"same names": {
			fill: func(b *vault.Budget, q config.Quotas, at time.Time) {
				reserve(b, q, []string{"b.example.com", "a.example.com"}, false, at)
			},
			count: 5, names: []string{"a.example.com", "b.example.com"}, after: time.Minute, wait: testWeek - time.Minute - 4*time.Second,
			reason: "certificates for exactly these names: all 5 in 168h are used until 2026-03-08T12:00:00Z (limits.duplicates)",
		},
		"failed validations": {
			fill:  func(b *vault.Budget, q config.Quotas, at time.Time) { failed(b, q, []string{"bad.example.com"}, at) },
			count: 5, names: []string{"bad.example.com", "good.example.com"}, after: 10 * time.Minute, wait: 50*time.Minute - 4*time.Second,
			reason: "failed validations of bad.example.com: all 5 in 1h are used until 2026-03-01T13:00:00Z (limits.failed)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, q, at := &vault.Budget{}, letsEncryptQuotas(), noon()
			for range c.count {
				c.fill(b, q, at)
				at = at.Add(time.Second)
			}
			at = at.Add(c.after - time.Second)
			b = reread(t, b)
			if wait, reason := reserve(b, q, c.names, false, at); wait != c.wait || !strings.Contains(reason, c.reason) {
				t.Errorf("got %v, %q; want %v, %q", wait, reason, c.wait, c.reason)
			}
			if wait, reason := reserve(reread(t, b), q, c.names, true, at); wait != 0 || reason != "" {
				t.Errorf("a renewal waits %v for %q, want none", wait, reason)
			}
			if wait, _ := reserve(reread(t, b), q, c.names, false, at.Add(c.wait-time.Second)); wait != time.Second {
				t.Errorf("a second before the end the wait is %v", wait)
			}
			if wait, reason := reserve(b, q, c.names, false, at.Add(c.wait)); wait != 0 {
				t.Errorf("when it said that it is free it still waits %v for %q", wait, reason)
			}
		})
	}
}

func TestRenewalsCount(t *testing.T) {
	b, q := &vault.Budget{}, config.Quotas{Orders: config.Quota{Count: 2, Per: time.Hour}}
	for range 3 {
		reserve(b, q, []string{"a.example.com"}, true, noon())
	}
	if wait, _ := reserve(b, q, []string{"b.example.com"}, false, noon()); wait != time.Hour || len(b.Orders) != 2 {
		t.Errorf("after renewals an order waits %v and %d events are kept, want 1h and 2", wait, len(b.Orders))
	}
}

func TestQuotaThatIsOffCountsNothing(t *testing.T) {
	off := config.Quota{Off: true}
	b := &vault.Budget{}
	for range 100 {
		if wait, reason := reserve(b, config.Quotas{Orders: off, Domain: off, Duplicates: off, Failed: off}, []string{"a.example.com"}, false, noon()); wait != 0 {
			t.Fatalf("waits %v for %q", wait, reason)
		}
	}
	failed(b, config.Quotas{}, []string{"a.example.com"}, noon())
	if raw, _ := json.Marshal(b); string(raw) != `{"format":0}` {
		t.Errorf("budget is %s, want nothing in it", raw)
	}
}

func TestClockThatWasWrongBlocksForNoMoreThanAWindow(t *testing.T) {
	q := config.Quotas{Orders: config.Quota{Count: 1, Per: time.Hour}}
	b := &vault.Budget{Orders: []time.Time{noon().Add(1000 * time.Hour)}}
	if wait, _ := reserve(b, q, []string{"a.example.com"}, false, noon()); wait != time.Hour {
		t.Errorf("an event from the far future makes orders wait %v, want 1h", wait)
	}
	if wait, _ := reserve(reread(t, b), q, []string{"a.example.com"}, false, noon().Add(time.Hour)); wait != 0 {
		t.Errorf("an hour later orders still wait %v", wait)
	}
}

// Whatever is asked for and whenever: at the moment of an order that is no
// renewal, no window that ends there holds more than its quota, renewals
// included; what was refused is granted when it was said, and not before.
func TestNoWindowHoldsMoreThanItsQuota(t *testing.T) {
	type event struct {
		at    time.Time
		names []string
		fail  bool
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) config.Quota {
			return config.Quota{Count: rapid.IntRange(1, 4).Draw(t, label), Per: time.Duration(rapid.IntRange(1, 60).Draw(t, label)) * time.Minute}
		}
		q := config.Quotas{Orders: draw("orders"), Domain: draw("domain"), Duplicates: draw("duplicates"), Failed: draw("failed")}
		b, now := &vault.Budget{}, noon()
		var log []event
		within := func(quota config.Quota, match func(event) bool) {
			n := 0
			for _, e := range log {
				if now.Sub(e.at) < quota.Per && match(e) {
					n++
				}
			}
			if n > quota.Count {
				t.Fatalf("%d events in %v, want at most %d", n, quota.Per, quota.Count)
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(10*time.Minute)).Draw(t, "pause")))
			names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a.example.com", "b.example.com", "a.example.org", "192.0.2.1"}), 1, 3, rapid.ID).Draw(t, "names")
			kind := rapid.IntRange(0, 5).Draw(t, "kind")
			b = reread(t, b)
			if kind == 0 {
				failed(b, q, names, now)
				log = append(log, event{now, names, true})
				continue
			}
			before := reread(t, b)
			wait, reason := reserve(b, q, names, kind == 1, now)
			if wait > 0 {
				if kind == 1 || reason == "" || wait > time.Hour+time.Second {
					t.Fatalf("%v waits %v for %q", names, wait, reason)
				}
				if w, _ := reserve(reread(t, b), q, names, false, now.Add(wait-1)); w != 1 {
					t.Fatalf("just before it is free the wait is %v, want 1 ns", w)
				}
				if w, r := reserve(before, q, names, false, now.Add(wait)); w != 0 {
					t.Fatalf("said to be free after %v, then waits %v for %q", wait, w, r)
				}
				continue
			}
			log = append(log, event{now, names, false})
			if kind == 1 {
				continue
			}
			within(q.Orders, func(e event) bool { return !e.fail })
			for _, z := range registered(names) {
				within(q.Domain, func(e event) bool { return !e.fail && slices.Contains(registered(e.names), z) })
			}
			within(q.Duplicates, func(e event) bool { return !e.fail && setOf(e.names) == setOf(names) })
			for _, n := range names {
				if wait, reason := blocked(b, config.Quotas{Failed: q.Failed}, []string{n}, now); wait > 0 {
					t.Fatalf("granted although blocked by %q", reason)
				}
			}
		}
	})
}

// A fleet of 10,000 domains, a certificate for each, ordered within a week and
// all of them failed within an hour.
func TestBudgetOfTenThousandNamesCanBeStored(t *testing.T) {
	b, q, now := &vault.Budget{}, letsEncryptQuotas(), noon()
	names := make([]string, 10_000)
	for n := range names {
		names[n] = fmt.Sprintf("www.customer-%05d.com", n)
	}
	// As reserve does, but for settling each time, which takes quadratic time.
	for _, name := range names {
		b.Orders = enter(b.Orders, q.Orders, now)
		enterAs(&b.Domains, registered([]string{name})[0], q.Domain, now)
		enterAs(&b.Sets, setOf([]string{name}), q.Duplicates, now)
		now = now.Add(36 * time.Second) // 300 in 3 h
	}
	if wait, reason := reserve(b, q, []string{"one-more.example.com"}, false, now); wait != 0 {
		t.Fatalf("waits %v for %s", wait, reason)
	}
	if len(b.Domains) != 10_001 || len(b.Sets) != 10_001 {
		t.Errorf("%d domains and %d sets are kept, want all", len(b.Domains), len(b.Sets))
	}
	raw, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("10,000 orders: %d bytes", len(raw))
	if len(raw) > maxBudget {
		t.Errorf("10,000 orders take %d bytes, want at most %d", len(raw), maxBudget)
	}
	failed(b, q, names, now)
	raw, err = json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("and as many failures: %d bytes", len(raw))
	if len(raw) > maxBudget || len(b.Failed) != len(names) {
		t.Errorf("with failures it is %d bytes and %d failures, want at most %d bytes and the newest events", len(raw), len(b.Failed), maxBudget)
	}
}

func TestBudgetForgetsTheOldestWhenItIsFull(t *testing.T) {
	q := letsEncryptQuotas()
	b, now := &vault.Budget{Failed: map[string][]time.Time{}}, noon()
	long := strings.Repeat("long-label.", 20)
	for n := range 5000 {
		b.Failed[fmt.Sprintf("%sn%d.example.com", long, n)] = []time.Time{now.Add(time.Duration(n) * time.Millisecond * 100)}
	}
	now = now.Add(500 * time.Second)
	failed(b, q, []string{"new.example.com"}, now)
	if raw, _ := json.Marshal(b); len(raw) > store.MaxObject {
		t.Errorf("%d bytes, want at most %d", len(raw), store.MaxObject)
	}
	if len(b.Failed["new.example.com"]) != 1 || b.Failed[long+"n0.example.com"] != nil || b.Failed[long+"n4999.example.com"] == nil {
		t.Error("want the newest kept and the oldest forgotten")
	}
}

func TestHugeQuotaIsNoReasonForAHugeBudget(t *testing.T) {
	q := config.Quotas{Orders: config.Quota{Count: 1_000_000, Per: testWeek}}
	b, now := &vault.Budget{}, noon()
	for n := range 100_000 {
		b.Orders = append(b.Orders, now.Add(time.Duration(n)*time.Second))
	}
	now = now.Add(100_000 * time.Second)
	if wait, reason := reserve(b, q, []string{"a.example.com"}, false, now); wait != 0 {
		t.Errorf("waits %v for %q", wait, reason)
	}
	if raw, _ := json.Marshal(b); len(raw) > maxBudget || !b.Orders[len(b.Orders)-1].Equal(now) {
		t.Errorf("%d bytes, want at most %d and the newest events", len(raw), maxBudget)
	}
}
