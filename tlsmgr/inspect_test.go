package tlsmgr

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/dns"
	"edge/tlsmgr/vault"
)

func TestDetailsTellWhatIsStoredAndWhoServesIt(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Blocked: []string{"bad.example.test"}}})
	cfg := labConfig(t, lab, "a.example.test", "bad.example.test", "*.w.example.test")
	serving := start(t, cfg, func(o *Options) { o.Backoff = func(int) time.Duration { return time.Hour } })
	serving.until(t, "example.test", StepLoaded)
	m := ready(t, cfg, func(o *Options) { o.Owner = "command line" })
	defer m.Close()

	var d Detail
	for begin := time.Now(); len(d.Replicas) == 0 || !d.Replicas[0].Loaded || d.Journal == nil; {
		all, err := m.Details(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		if d = all[0]; time.Since(begin) > patience {
			t.Fatalf("no replica has it: %+v", d)
		}
	}
	serving.mu.Lock()
	leaf := serving.loaded["example.test"].cert.leaf()
	serving.mu.Unlock()
	sum := sha256.Sum256(leaf.Raw)
	if d.Fingerprint != hex.EncodeToString(sum[:]) || d.Issuer != "lab" || d.KeyType != config.P256 || d.OrderURL == "" || d.Source != "inferred" {
		t.Errorf("%+v", d)
	}
	if math.Abs(d.Left-1) > 0.01 || !d.Renewal.Before(d.NotAfter) || d.RenewalWhy == "" {
		t.Errorf("%v left, renewal at %s: %s", d.Left, d.Renewal, d.RenewalWhy)
	}
	if !slices.Equal(d.Missing, []string{"bad.example.test"}) || d.Journal.Quarantine["bad.example.test"].Reason == "" || d.Journal.Open {
		t.Errorf("missing %q, journal %+v", d.Missing, d.Journal)
	}
	if r := d.Replicas[0]; r.Silent || r.Role != "issue" || r.Owner == "command line" {
		t.Errorf("%+v", r)
	}
}

func TestFindTakesAnIDOrAHostThatIsServed(t *testing.T) {
	t.Parallel()
	all := []Detail{
		{ID: "a.test", Source: "written", Names: []string{"b.test"}},
		{ID: "old", Source: "stored", Names: []string{"a.test", "x.b.test"}},
		{ID: "wild", Source: "inferred", Names: []string{"*.b.test", "10.0.0.1"}},
		{ID: "more", Source: "stored", Names: []string{"*.c.test"}},
	}
	for what, want := range map[string]string{
		"a.test": "a.test", "B.test": "a.test", "x.b.test": "old", "y.b.test": "wild", "*.b.test": "wild",
		"10.0.0.1": "wild", "y.c.test": "more", "c.test": "", "not a host": "",
	} {
		if got, ok := Find(all, what); got.ID != want || ok != (want != "") {
			t.Errorf("%s: %q, want %q", what, got.ID, want)
		}
	}
}

func TestARenewalIsExplained(t *testing.T) {
	t.Parallel()
	ca, now := newTestCA(t), time.Now()
	year := ca.certificate(t, "year", config.P256, now, now.Add(365*24*time.Hour), "a.test")
	week := ca.certificate(t, "week", config.P256, now, now.Add(7*24*time.Hour), "a.test")
	advised, late := *year, *year
	advised.object = &vault.Certificate{Renewal: &vault.Renewal{Start: now, End: now.Add(2 * time.Hour), Selected: now.Add(time.Hour)}}
	late.object = &vault.Certificate{Renewal: &vault.Renewal{Start: now, End: now.Add(9000 * time.Hour), Selected: now.Add(8700 * time.Hour)}}
	for c, want := range map[*certificate]string{year: "a third", week: "half", &advised: "window that the CA suggests", &late: "a sixth"} {
		if got := whyThen(c); !strings.Contains(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestBudgetsTellWhatIsUsed(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test", "b.example.test")
	cfg.Issuers["lab"].Quotas = config.Quotas{Orders: config.Quota{Count: 9, Per: time.Hour}, Domain: config.Quota{Count: 7, Per: time.Hour}}
	m := ready(t, cfg, nil)
	defer m.Close()
	for n := range 2 {
		used, err := m.Budgets(t.Context())
		want := []Used{
			{Issuer: "lab", Limit: "orders", Used: n, Count: 9, Per: time.Hour},
			{Issuer: "lab", Limit: "per_domain", For: "example.test", Used: n, Count: 7, Per: time.Hour},
		}
		if err != nil || !slices.Equal(used, want) {
			t.Errorf("%+v, %v; want %+v", used, err, want)
		}
		if err := m.Obtain(t.Context(), nil, false); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDelegationsNameTheTargetOfEachChallenge(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Zones: []string{"example.test", "auth.test"}}})
	if err := lab.DNS.Add("_acme-challenge.a.example.test. 60 IN CNAME a.auth.test."); err != nil {
		t.Fatal(err)
	}
	m := ready(t, labConfig(t, lab, "a.example.test", "b.elsewhere.test"), nil)
	defer m.Close()
	got := m.Delegations(t.Context())
	want := dns.Place{Name: "_acme-challenge.a.example.test", Target: "a.auth.test", Zone: "auth.test", Provider: "lab"}
	if d := got["a.example.test"]; d.Place != want || d.Issuer != "lab" || d.Error != "" {
		t.Errorf("%+v", d)
	}
	if d := got["b.elsewhere.test"]; d.Error == "" || d.Target != "" {
		t.Errorf("a zone that nobody has: %+v", d)
	}
}

func TestPublicationsRegisterTheAccountThatTheyName(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := withoutDNS(t, lab, config.DNSPersist01, "a.example.test", "*.a.example.test")
	m := ready(t, cfg, nil)
	defer m.Close()
	for n := range 2 {
		all, err := m.Publications(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		p := all[0]
		if p.Registered != (n == 0) || p.Account == "" || len(p.Identities) == 0 {
			t.Errorf("call %d: %+v", n+1, p)
		}
		value := p.Identities[0] + "; accounturi=" + p.Account
		if want := (CAARecord{"example.test", value}); len(p.CAA) != 1 || p.CAA[0] != want {
			t.Errorf("CAA %+v, want %+v", p.CAA, want)
		}
		if len(p.Records) != 1 {
			t.Fatalf("%+v", p.Records)
		}
		r := p.Records[0]
		if r.Name != "_validation-persist.a.example.test" || r.Value != value+"; policy=wildcard" || r.Published != (n == 1) || (r.Problem == "") != r.Published {
			t.Errorf("call %d: %+v", n+1, r)
		}
		if err := lab.DNS.Add(r.Name + `. 60 IN TXT "` + r.Value + `"`); err != nil {
			t.Fatal(err)
		}
	}
	if n := lab.CA.Requests(acmelab.PathNewOrder); n != 0 {
		t.Errorf("%d orders", n)
	}
}

func TestACheckOfANameUsesItsIssuerAndRegistersNothing(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Zones: []string{"test", "example.test"}}})
	cfg := labConfig(t, lab, "a.example.test")
	cfg.Certificates["box"] = &config.Certificate{Name: "box", Names: []string{"box.local"}, Issuers: []string{config.InternalIssuer}}
	cfg.Issuers[config.InternalIssuer] = &config.Issuer{Name: config.InternalIssuer, Internal: &config.Internal{Lifetime: time.Hour}}
	m := ready(t, cfg, nil)
	defer m.Close()
	for _, write := range []bool{false, true} {
		report, issuer, err := m.CheckDNS(t.Context(), "A.example.test", write)
		if err != nil || issuer != "lab" {
			t.Fatal(issuer, err)
		}
		probed := slices.ContainsFunc(report.Steps, func(s dns.Step) bool { return strings.HasPrefix(s.Title, "probe") && s.State == dns.StateOK })
		if !report.OK() || probed != write {
			t.Errorf("write %v:\n%s", write, report)
		}
	}
	if left := lab.DNS.TXTNames(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	if n := lab.CA.Requests(acmelab.PathNewAccount); n != 0 {
		t.Errorf("%d registrations", n)
	}
	if _, issuer, err := m.CheckDNS(t.Context(), "box.local", false); err == nil || issuer != config.InternalIssuer {
		t.Errorf("a local name: %q, %v", issuer, err)
	}
}
