package tlsmgr

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
)

func TestOneRefusedNameDoesNotKeepTheOthersFromBeingIssued(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]acmelab.Options{
		"by policy": {CA: acmelab.CAOptions{Blocked: []string{"bad.example.test"}}},
		"by validation": {DNS: acmelab.DNSOptions{Lag: func(q acmelab.Query, _ time.Duration) bool {
			return q.Network != "tcp" || !strings.Contains(q.Name, "bad.") // what the CA asks
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := acmelab.New(t, options)
			m := start(t, labConfig(t, lab, "a.example.test", "bad.example.test", "c.example.test"), func(o *Options) {
				o.Backoff = func(int) time.Duration { return time.Hour }
			})
			if e := m.until(t, "example.test", StepQuarantined); !strings.HasPrefix(e.Detail, "bad.example.test: ") {
				t.Errorf("quarantined: %s", e.Detail)
			}
			m.until(t, "example.test", StepLoaded)
			s := m.one(t)
			if want := []string{"a.example.test", "c.example.test"}; !slices.Equal(s.Names, want) || s.State != StateValid {
				t.Errorf("names %v, state %s; want %v, valid", s.Names, s.State, want)
			}
			if !slices.Equal(s.LeftOut, []string{"bad.example.test"}) || !strings.Contains(s.Error, "bad.example.test is left out: ") {
				t.Errorf("left out %v because of %q", s.LeftOut, s.Error)
			}
			if n := lab.CA.Orders(); n > 2 {
				t.Errorf("%d orders, want at most one more than the refused one", n)
			}
			if left := lab.DNS.TXTNames(); len(left) > 0 {
				t.Errorf("records of %v were left behind", left)
			}
		})
	}
}

func TestNameLeavesQuarantineWhenTheCATakesIt(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Lag: func(q acmelab.Query, _ time.Duration) bool {
		return q.Network != "tcp" || !strings.Contains(q.Name, "bad.")
	}}})
	m := start(t, labConfig(t, lab, "a.example.test", "bad.example.test"), func(o *Options) {
		o.Interval, o.Backoff = 50*time.Millisecond, func(int) time.Duration { return time.Second } // some looks find nothing to do
	})
	m.until(t, "example.test", StepLoaded)
	lab.DNS.SetLag(nil)
	for !slices.Contains(m.one(t).Names, "bad.example.test") {
		m.until(t, "example.test", StepLoaded)
	}
	wait(t, func() bool { s := m.one(t); return len(s.LeftOut) == 0 && s.Error == "" })
}

func TestQuarantineIsKnownToOtherReplicas(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Blocked: []string{"bad.example.test"}}})
	cfg := labConfig(t, lab, "a.example.test", "bad.example.test")
	hour := func(o *Options) { o.Backoff = func(int) time.Duration { return time.Hour } }
	start(t, cfg, hour).until(t, "example.test", StepLoaded)
	orders := lab.CA.Requests(acmelab.PathNewOrder)
	other := start(t, cfg, hour)
	other.until(t, "example.test", StepLoaded)
	wait(t, func() bool { return len(other.one(t).LeftOut) == 1 })
	if n := lab.CA.Requests(acmelab.PathNewOrder); n != orders {
		t.Errorf("another replica sent %d more orders", n-orders)
	}
}

// What the old certificate has and the new one has not goes on being served.
func TestNameInQuarantineIsServedByTheCertificateBefore(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Validity: 24 * time.Hour}})
	cfg := labConfig(t, lab, "a.example.test", "bad.example.test")
	m := start(t, cfg, func(o *Options) { o.Backoff = func(int) time.Duration { return time.Hour } })
	m.until(t, "example.test", StepLoaded)
	lab.DNS.SetLag(func(q acmelab.Query, _ time.Duration) bool {
		return q.Network != "tcp" || !strings.Contains(q.Name, "bad.")
	})
	if err := m.Obtain(t.Context(), nil, true); err == nil || !strings.Contains(err.Error(), "bad.example.test is left out") {
		t.Errorf("Obtain: %v", err)
	}
	wait(t, func() bool { return slices.Equal(m.one(t).Names, []string{"a.example.test"}) })
	again := start(t, cfg, func(o *Options) { o.Backoff = func(int) time.Duration { return time.Hour } }) // from the storage alone
	again.until(t, "example.test", StepLoaded)
	for _, r := range []*replica{m, again} {
		wait(t, func() bool {
			state, err := shake(t, r.Manager, &tls.Config{ServerName: "bad.example.test", RootCAs: lab.CA.Roots})
			return err == nil && state.PeerCertificates[0].VerifyHostname("bad.example.test") == nil
		})
	}
}

func TestFallbackIssuerIsAskedWhenTheFirstFails(t *testing.T) {
	t.Parallel()
	first, second := acmelab.New(t, acmelab.Options{}), acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, first, "a.example.test")
	other := labConfig(t, second)
	spare := *other.Issuers["lab"]
	spare.Name, spare.Providers = "spare", []string{"spare"}
	cfg.Issuers["spare"], cfg.Providers["spare"] = &spare, other.Providers["lab"]
	cfg.Bundles.Issuers = []string{"lab", "spare"}
	first.CA.SetDown(true)
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepFailed)
	m.until(t, "example.test", StepLoaded)
	if first.CA.Orders() != 0 || second.CA.Orders() != 1 {
		t.Errorf("%d orders at the first CA and %d at the second, want 0 and 1", first.CA.Orders(), second.CA.Orders())
	}
	first.CA.SetDown(false)
	commit(t, m.Manager, cfg)
	time.Sleep(3 * m.options.Interval) // nothing is to happen
	if n := first.CA.Orders(); n != 0 {
		t.Errorf("a certificate of the fallback issuer was replaced before its renewal: %d orders", n)
	}
}

func TestFallbackWaitsForAQuarterOfTheLifetime(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	b := Bundle{ID: "b", Issuer: "one", Fallbacks: []string{"two"}}
	for name, c := range map[string]struct {
		left     time.Duration
		failures int
		want     string
	}{
		"nothing failed":    {10 * time.Hour, 0, "one"},
		"much is left":      {30 * time.Hour, 1, "one"},
		"a quarter is left": {24 * time.Hour, 1, "two"},
		"it has expired":    {-time.Hour, 1, "two"},
		"both failed":       {time.Hour, 2, "one"},
	} {
		cert := ca.certificate(t, "b", config.P256, now.Add(c.left-100*time.Hour), now.Add(c.left), "a.test")
		if got := b.pick(&stored{version: "1", cert: cert}, c.failures, nil, now); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := b.pick(nil, 1, nil, now); got != "two" {
		t.Errorf("nothing is there: %q, want the next issuer", got)
	}
}

func TestBudgetIsSharedAndHoldsOrdersBack(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test", "b.example.test")
	cfg.Bundles.Packing = config.PerName
	cfg.Issuers["lab"].Quotas.Orders = config.Quota{Count: 1, Per: time.Hour}
	m := start(t, cfg, nil)
	e := m.until(t, "", StepFailed)
	if !strings.Contains(e.Detail, "waiting ") {
		t.Errorf("detail %q", e.Detail)
	}
	second := start(t, cfg, nil)
	second.until(t, "", StepLoaded)
	wait(t, func() bool { return len(missing(second)) == 1 })
	if n := lab.CA.Requests(acmelab.PathNewOrder); n != 1 {
		t.Errorf("%d orders were sent, want the one that the quota allows", n)
	}
}

func missing(r *replica) []string {
	s := r.Status()
	return s.Missing()
}

func TestZoneThatCannotBeChangedDoesNotKeepOthersFromBeingIssued(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Zones: []string{"example.test", "other.test"}}})
	cfg := labConfig(t, lab)
	cfg.Providers["lab"].Zones = []string{"example.test"} // nobody can change other.test
	cfg.Certificates["both"] = &config.Certificate{Name: "both", Names: []string{"a.example.test", "a.other.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	m := start(t, cfg, func(o *Options) { o.Backoff = func(int) time.Duration { return time.Hour } })
	m.until(t, "both", StepLoaded)
	s := m.one(t)
	if !slices.Equal(s.Names, []string{"a.example.test"}) || !slices.Equal(s.LeftOut, []string{"a.other.test"}) || !strings.Contains(s.Error, "no DNS provider") {
		t.Errorf("names %v, left out %v: %s", s.Names, s.LeftOut, s.Error)
	}
}
