package tlsmgr

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/vault"
)

// Let's Encrypt allows five certificates for the same names in a week. Five
// failures are none.
func TestOrdersThatFailDoNotCountAsCertificates(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Lag: func(q acmelab.Query, _ time.Duration) bool {
		return q.Network != "tcp" // what the CA asks
	}}})
	cfg := labConfig(t, lab, "a.example.test")
	cfg.Issuers["lab"].Quotas = config.Quotas{Duplicates: config.Quota{Count: 2, Per: time.Hour}, Domain: config.Quota{Count: 2, Per: time.Hour}}
	m := start(t, cfg, nil)
	for range 3 {
		if e := m.until(t, "example.test", StepFailed); strings.Contains(e.Detail, "waiting ") {
			t.Fatalf("the budget is spent: %s", e.Detail)
		}
	}
	lab.DNS.SetLag(nil)
	m.until(t, "example.test", StepLoaded)
	b, _, err := vault.Load[vault.Budget](t.Context(), m.vaultInUse(), vault.BudgetID(lab.CA.Directory))
	if err != nil || len(b.Domains["example.test"]) != 1 || len(b.Sets) != 1 || len(b.Orders) < 4 {
		t.Errorf("budget %+v, %v; want one certificate and every order", b, err)
	}
}

func TestOrdersThatTheCADidNotTakeAreNotCharged(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	cfg.Issuers["lab"].Quotas.Orders = config.Quota{Count: 2, Per: time.Hour}
	busy := &busyCA{
		status: http.StatusTooManyRequests, contentType: "application/problem+json", next: lab.CA.Client.Transport,
		body: `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"not now"}`,
	}
	busy.left.Store(2)
	m := start(t, cfg, func(o *Options) { o.ACMEClient = &http.Client{Transport: busy} })
	m.until(t, "example.test", StepLoaded)
	b, _, err := vault.Load[vault.Budget](t.Context(), m.vaultInUse(), vault.BudgetID(lab.CA.Directory))
	if err != nil || len(b.Orders) != 1 {
		t.Errorf("budget %+v, %v; want one order", b, err)
	}
}

// A budget that is spent for a week must not keep a certificate from being
// renewed that ends before.
func TestSpentBudgetDoesNotLetACertificateExpire(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := stock(t, lab, ca, "a.example.test")
	cfg.Issuers["lab"].Quotas.Domain = config.Quota{Count: 1, Per: 7 * 24 * time.Hour}
	m := ready(t, cfg, nil)
	now := time.Now()
	soon := ca.certificate(t, "a.example.test", config.P256, now.Add(-99*time.Hour), now.Add(time.Hour), "a.example.test")
	rewrite(t, m.Manager, "a.example.test", func(o *vault.Certificate) { o.Chain, o.PrivateKey = soon.object.Chain, soon.object.PrivateKey })
	spent := &vault.Budget{Format: vault.Format, Domains: map[string][]time.Time{"example.test": {now.UTC()}}}
	if _, err := vault.Save(t.Context(), m.vaultInUse(), vault.BudgetID(lab.CA.Directory), spent, ""); err != nil {
		t.Fatal(err)
	}
	m.run(t)
	for m.one(t).Serial == soon.serial() || m.one(t).Serial == "" {
		m.until(t, "a.example.test", StepLoaded)
	}
}

func TestPatienceForOneIssuerIsNoneForAnother(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	alone, both := Bundle{ID: "b", Issuer: "one"}, Bundle{ID: "b", Issuer: "one", Fallbacks: []string{"two"}}
	soonest, week := now.Add(time.Minute), now.Add(7*24*time.Hour)
	for name, c := range map[string]struct {
		bundle  *Bundle
		left    time.Duration // of 100 h; 0 is no certificate
		waits   []string
		ours    bool
		want    time.Duration
		wantWho string // who is asked then
	}{
		"nothing to serve, another issuer":        {&both, 0, []string{"one"}, false, time.Minute, "two"},
		"nothing to serve, both wait":             {&both, 0, []string{"one", "two"}, false, 7 * 24 * time.Hour, ""},
		"nothing to serve, no other issuer":       {&alone, 0, []string{"one"}, true, 7 * 24 * time.Hour, "one"},
		"until another may be asked":              {&both, 40 * time.Hour, []string{"one"}, false, 15 * time.Hour, "two"},
		"the last quarter, another issuer":        {&both, 20 * time.Hour, []string{"one"}, false, time.Minute, "two"},
		"the CA's patience, no other issuer":      {&alone, 40 * time.Hour, []string{"one"}, false, 7 * 24 * time.Hour, "one"},
		"edge's budget, until the last tenth":     {&alone, 40 * time.Hour, []string{"one"}, true, 30 * time.Hour, "one"},
		"edge's budget, in the last tenth":        {&alone, 5 * time.Hour, []string{"one"}, true, time.Minute, "one"},
		"edge's budget, when the end has come":    {&alone, -time.Hour, []string{"one"}, true, time.Minute, "one"},
		"the fallback waits, the first does not ": {&both, 20 * time.Hour, []string{"two"}, false, time.Minute, "one"},
	} {
		var s *stored
		if c.left != 0 {
			s = &stored{version: "1", cert: ca.certificate(t, "b", config.P256, now.Add(c.left-100*time.Hour), now.Add(c.left), "a.test")}
		}
		waits := map[string]time.Time{}
		for _, w := range c.waits {
			waits[w] = week
		}
		at := c.bundle.postpone(s, waits, soonest, c.ours, now)
		if d := at.Sub(now.Add(c.want)).Abs(); d > 2*time.Second { // certificates count in seconds
			t.Errorf("%s: after %s, want %s", name, at.Sub(now), c.want)
		}
		for failures := range 4 {
			if got := c.bundle.pick(s, failures+1, waits, at.Add(2*time.Second)); got != c.wantWho && c.wantWho != "" {
				t.Errorf("%s: %q is asked then, want %q", name, got, c.wantWho)
			}
		}
	}
}

func TestRateLimitedIssuerDoesNotHoldTheFallbackUp(t *testing.T) {
	t.Parallel()
	first, second := acmelab.New(t, acmelab.Options{}), acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, first, "a.example.test")
	other := labConfig(t, second)
	spare := *other.Issuers["lab"]
	spare.Name, spare.Providers = "spare", []string{"spare"}
	cfg.Issuers["spare"], cfg.Providers["spare"] = &spare, other.Providers["lab"]
	cfg.Bundles.Issuers = []string{"lab", "spare"}
	cfg.Issuers["lab"].Quotas.Domain = config.Quota{Count: 1, Per: 7 * 24 * time.Hour}
	m := ready(t, cfg, nil)
	spent := &vault.Budget{Format: vault.Format, Domains: map[string][]time.Time{"example.test": {time.Now().UTC()}}}
	if _, err := vault.Save(t.Context(), m.vaultInUse(), vault.BudgetID(first.CA.Directory), spent, ""); err != nil {
		t.Fatal(err)
	}
	m.run(t)
	m.until(t, "example.test", StepLoaded)
	if n := second.CA.Orders(); n != 1 || first.CA.Orders() != 0 {
		t.Errorf("%d orders at the first CA and %d at the second, want 0 and 1", first.CA.Orders(), n)
	}
}

func TestRefundLeavesWhatOthersWereCharged(t *testing.T) {
	q, now := letsEncryptQuotas(), noon()
	b := &vault.Budget{}
	names := []string{"a.example.com", "b.example.com"}
	for i := range 3 {
		reserve(b, q, names, false, now.Add(time.Duration(i)*time.Minute))
	}
	reserve(b, q, []string{"c.example.com"}, false, now.Add(time.Minute))
	unenter(b, names, moment(now.Add(time.Minute)), false)
	if len(b.Orders) != 4 || len(b.Domains["example.com"]) != 3 || len(b.Sets[setOf(names)]) != 2 || slices.ContainsFunc(b.Sets[setOf(names)], now.Add(time.Minute).Equal) {
		t.Errorf("budget %+v", b)
	}
	unenter(b, []string{"unknown.example.org"}, now, true)
	if len(b.Orders) != 3 || len(b.Domains) != 1 {
		t.Errorf("budget %+v", b)
	}
}

func TestDamagedBudgetIsStartedAnewByAnOrderAndNotByALook(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	key := vault.Budgets.Key(vault.BudgetID(lab.CA.Directory))
	put(t, cfg, key, []byte("{torn"))
	m := ready(t, cfg, nil)
	if _, err := m.Preview(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := m.vaultInUse().Store().Load(t.Context(), key); err != nil {
		t.Errorf("a look deleted the budget: %v", err)
	}
	m.run(t)
	m.until(t, "example.test", StepLoaded)
}
