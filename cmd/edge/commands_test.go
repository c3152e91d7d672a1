package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

func TestCheckComplainsAboutWhatNeedsAPerson(t *testing.T) {
	t.Parallel()
	now := time.Now()
	day := 24 * time.Hour
	good := tlsmgr.Detail{ID: "a", Source: "inferred", Serial: "1", Left: 0.26, NotAfter: now.Add(26 * day)}
	with := func(f func(*tlsmgr.Detail)) tlsmgr.Detail {
		d := good
		f(&d)
		return d
	}
	for name, c := range map[string]struct {
		d    tlsmgr.Detail
		want []string
	}{
		"good":      {good, nil},
		"unplanned": {with(func(d *tlsmgr.Detail) { d.Source, d.Left = "stored", -1 }), nil},
		"missing":   {tlsmgr.Detail{ID: "a", Source: "written", Missing: []string{"a.test"}}, []string{"critical: missing"}},
		"quarter":   {with(func(d *tlsmgr.Detail) { d.Left, d.NotAfter = 0.24, now.Add(22*day) }), []string{"warning: expires in 22d, 24 % of its lifetime is left"}},
		"tenth":     {with(func(d *tlsmgr.Detail) { d.Left, d.NotAfter = 0.09, now.Add(8*day) }), []string{"critical: expires in 8d, 9 % of its lifetime is left"}},
		"expired":   {with(func(d *tlsmgr.Detail) { d.Left, d.NotAfter = -0.1, now.Add(-9*day) }), []string{"critical: expired 9d ago"}},
		"damaged":   {with(func(d *tlsmgr.Detail) { d.Error = "torn" }), []string{"critical: torn"}},
		"unusable":  {tlsmgr.Detail{ID: "a", Source: "written", Error: "no key"}, []string{"critical: no key"}},
		"replace":   {with(func(d *tlsmgr.Detail) { d.Replace = "it will be revoked" }), []string{"warning: the CA wants it replaced now: it will be revoked"}},
		"lacks":     {with(func(d *tlsmgr.Detail) { d.Missing = []string{"b.test"} }), []string{"warning: lacks b.test"}},
		"failing": {with(func(d *tlsmgr.Detail) {
			d.Need, d.Journal = "due for renewal", &tlsmgr.Journal{Failures: 2, Error: "CA down"}
		}), []string{"warning: the order failed 2 times: CA down"}},
		"quarantine": {with(func(d *tlsmgr.Detail) {
			d.Missing = []string{"b.test"}
			d.Journal = &tlsmgr.Journal{Quarantine: map[string]vault.Quarantined{"b.test": {Reason: "CAA"}, "gone.test": {Reason: "old"}}}
		}), []string{"warning: b.test is left out: CAA"}},
	} {
		var got []string
		for _, f := range judge(c.d, now) {
			got = append(got, f.Level+": "+f.Detail)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestAnOutcomeTellsWhatChanged(t *testing.T) {
	t.Parallel()
	old, fresh := tlsmgr.Detail{Serial: "1"}, tlsmgr.Detail{Serial: "2"}
	for _, c := range []struct {
		was, is tlsmgr.Detail
		problem string
		want    string
	}{
		{old, old, "", "unchanged"},
		{tlsmgr.Detail{}, fresh, "", "obtained"},
		{old, old, "CA down", "failed"},
		{old, fresh, "b.test is left out", "partly"},
		{old, tlsmgr.Detail{Serial: "1", Error: "sealed"}, "", "failed"},
		{old, tlsmgr.Detail{Serial: "1", Need: "due for renewal"}, "", "failed"},
	} {
		if o := compare(c.was, c.is, c.problem); o.Result != c.want || (o.Error == "") != (c.want == "unchanged" || c.want == "obtained") {
			t.Errorf("%+v to %+v, %q: %+v, want %s", c.was, c.is, c.problem, o, c.want)
		}
	}
}

func TestErrorsOfCertificatesAreTakenApartFromThoseOfTheStorage(t *testing.T) {
	t.Parallel()
	one := &tlsmgr.CertificateError{ID: "a", Err: errors.New("refused")}
	failed, err := perCertificate(errors.Join(one))
	if err != nil || len(failed) != 1 || failed["a"] != "refused" {
		t.Errorf("%q, %v", failed, err)
	}
	one = &tlsmgr.CertificateError{ID: "a", Err: fmt.Errorf("%w: %w", errInterrupted, context.Canceled)}
	if failed, _ := perCertificate(errors.Join(one)); failed["a"] != "interrupted" {
		t.Errorf("interrupted: %q", failed)
	}
	for _, down := range []error{errors.New("storage is down"), errors.Join(one, errors.New("storage is down"))} {
		if _, err := perCertificate(down); err == nil {
			t.Errorf("%v is nobody's error", down)
		}
	}
}

func TestThePlanSaysWhatIsDoneNext(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for want, p := range map[string]tlsmgr.Preview{
		"renew in 3d":                         {Renewal: now.Add(3*24*time.Hour + time.Minute)},
		"order: missing":                      {Need: "missing"},
		"order in 1h0m: missing":              {Need: "missing", NotBefore: now.Add(time.Hour)},
		"resume the order: missing":           {Need: "missing", OpenOrder: "https://ca.test/1"},
		"nothing: left as it is":              {Need: "missing", Error: "no key"},
		"nothing: imported":                   {Renewal: now.Add(-time.Hour)},
		"nothing: all its names are left out": {LeftOut: []string{"a.test"}},
	} {
		if got := next(&p, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestReasonsAreThoseOfRFC5280(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]int{"unspecified": 0, "KEYCOMPROMISE": 1, "superseded": 4, "cessationOfOperation": 5} {
		if got, err := reasonCode(word); got != want || err != nil {
			t.Errorf("%s: %d, %v", word, got, err)
		}
	}
	_, err := reasonCode("removeFromCRL")
	if err == nil || exitCode(err) != exitUsage {
		t.Errorf("removeFromCRL: %v", err)
	}
}

func TestLongTXTValuesAreSplit(t *testing.T) {
	t.Parallel()
	if got := quoted("a b"); got != `"a b"` {
		t.Error(got)
	}
	if got := quoted(strings.Repeat("x", 300)); got != `"`+strings.Repeat("x", 255)+`" "`+strings.Repeat("x", 45)+`"` {
		t.Error(got)
	}
}

func TestALeaseOfASilentHolderHasLapsed(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for want, l := range map[string]store.LeaseInfo{
		"held":    {Held: true, TTL: time.Minute, At: now.Add(-30 * time.Second)},
		"lapsed":  {Held: true, TTL: time.Minute, At: now.Add(-2 * time.Minute)},
		"free":    {TTL: time.Minute, At: now},
		"damaged": {Held: true, Owner: "unreadable record"},
	} {
		if got := stateOf(l, now); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// Progress is for people: nothing of it where nobody looks, and a count at most
// once a second.
func TestProgressIsToldWhenItIsWanted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for verbose, want := range map[bool]int{false: 0, true: 2} {
			var out bytes.Buffer
			cmd := &cobra.Command{}
			cmd.SetErr(&out)
			g := &globals{verbose: verbose}
			p := g.progress(cmd)
			tell := p.countOf("copy")
			var work sync.WaitGroup
			for n := range 25 {
				work.Go(func() { tell(n, 25) })
				work.Wait()
				time.Sleep(100 * time.Millisecond)
			}
			if got := strings.Count(out.String(), "copy: "); got != want {
				t.Errorf("verbose %v: %d lines, want %d:\n%s", verbose, got, want, &out)
			}
			out.Reset()
			p.event(tlsmgr.Event{Certificate: "a", Step: tlsmgr.StepPresent, Detail: "2 records"})
			if got := out.String() == "a: dns present: 2 records\n"; got != verbose {
				t.Errorf("verbose %v: %q", verbose, out.String())
			}
		}
	})
}

func TestWarningsOfThePackagesBelowAreLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetErr(&out)
	log := (&globals{}).progress(cmd).logger().With(slog.String("storage", "s3://b"))
	log.Info("lease acquired")
	log.Warn("certificate", slog.String("step", "failed"))
	log.Warn("not readable", slog.String("not_after", "now"))
	if got, want := out.String(), "warning: not readable, storage s3://b, not after now\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAStagingRunIsOfTheSameCertificatesElsewhere(t *testing.T) {
	t.Parallel()
	cfg := &config.Config{
		Storage: config.Storage{URL: "s3://real", Snapshot: "/snap"},
		Issuers: map[string]*config.Issuer{
			"le":    {Name: "le", Directory: "https://acme-v02.api.letsencrypt.org/directory", Quotas: config.Quotas{Orders: config.Quota{Count: 1, Per: time.Hour}}},
			"own":   {Name: "own", Directory: "https://ca.test/dir", Staging: "https://ca.test/staging"},
			"local": {Name: "local", Internal: &config.Internal{Lifetime: time.Hour}},
		},
		Routes: []*config.Route{{}},
	}
	bundles := []tlsmgr.Bundle{
		{ID: "a", Names: []string{"a.example.com"}, Issuer: "le", Fallbacks: []string{"own"}, KeyType: config.P256},
		{ID: "a.rsa2048", Names: []string{"a.example.com"}, Issuer: "le", KeyType: config.RSA2048},
		{ID: "b", Names: []string{"b.local"}, Issuer: "local", KeyType: config.P256},
	}
	s := staging{}
	got, err := s.config(cfg, bundles, nil, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	planned, problems := tlsmgr.Plan(got)
	if len(problems) > 0 || len(planned) != 3 || planned[1].ID != "a.rsa2048" || planned[1].KeyType != config.RSA2048 || len(planned[0].Fallbacks) > 0 {
		t.Errorf("%+v, %v", planned, problems)
	}
	if le := got.Issuers["le"]; le.Directory != "https://acme-staging-v02.api.letsencrypt.org/directory" || le.Quotas != (config.Quotas{}) {
		t.Errorf("%+v", le)
	}
	if !strings.HasPrefix(got.Storage.URL, "file://") || got.Storage.Snapshot != "" || cfg.Issuers["le"].Quotas.Orders.Count != 1 {
		t.Errorf("%+v", got.Storage)
	}
	s.issuer = "own"
	if got, err = s.config(cfg, bundles, []string{"a"}, t.TempDir()); err != nil || len(got.Certificates) != 1 || got.Issuers["own"].Directory != "https://ca.test/staging" {
		t.Errorf("%+v, %v", got, err)
	}
}
