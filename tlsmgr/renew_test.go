package tlsmgr

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/vault"
)

// window is renewal information as a CA sends it.
func window(start, end time.Time) string {
	return fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q},"explanationURL":"https://ca.test/why"}`, start.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339))
}

// asked waits until the CA was asked about the only certificate.
func asked(t *testing.T, m *replica, id string) vault.Renewal {
	t.Helper()
	var r *vault.Renewal
	wait(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		r = renewalOf(m.loaded[id].cert)
		return r != nil
	})
	return *r
}

// askNow makes what is stored say that the CA is to be asked again now, and old
// enough to be replaced.
func askNow(t *testing.T, m *replica, id string) {
	t.Helper()
	rewrite(t, m.Manager, id, func(o *vault.Certificate) {
		o.ObtainedAt = time.Now().Add(-48 * time.Hour)
		o.Renewal.Next = time.Now()
	})
}

func TestCAIsAskedWhenToRenewAndReplicasAgree(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepLoaded)
	r := asked(t, m, "example.test")
	if r.Selected.Before(r.Start) || r.Selected.After(r.End) || r.Start.IsZero() || r.Next.Before(time.Now()) {
		t.Errorf("renewal %+v", r)
	}
	other := start(t, cfg, nil)
	other.until(t, "example.test", StepLoaded)
	if again := asked(t, other, "example.test"); again != r {
		t.Errorf("another replica has %+v, want %+v", again, r)
	}
	if got := m.one(t).NextAttempt; !got.Equal(r.Selected) {
		t.Errorf("renewal at %s, want %s", got, r.Selected)
	}
}

func TestCertificateThatTheCAWantsReplacedIsReplacedNow(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	var replaced strings.Builder
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	asked(t, m, "example.test")
	m.mu.Lock()
	old := m.loaded["example.test"].cert
	m.mu.Unlock()
	past := time.Now().Add(-time.Hour)
	if err := lab.CA.SetRenewalInfo(t.Context(), []byte(old.object.Chain), window(past.Add(-time.Hour), past)); err != nil {
		t.Fatal(err)
	}
	askNow(t, m, "example.test")
	e := m.until(t, "example.test", StepReplace)
	fmt.Fprint(&replaced, e.Detail)
	if !strings.Contains(replaced.String(), "https://ca.test/why") {
		t.Errorf("detail %q", e.Detail)
	}
	for m.one(t).Serial == old.serial() {
		m.until(t, "example.test", StepLoaded)
	}
	if n := lab.CA.Orders(); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
}

// A CA whose renewal information always lies in the past is given no stream of
// orders.
func TestCertificateIsNotReplacedRightAfterItWasIssued(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	st := &state{cfg: &config.Config{Issuers: map[string]*config.Issuer{"ca": {Name: "ca", Directory: "https://ca.test/dir"}}}}
	b := Bundle{ID: "b", Names: []string{"a.test"}, Issuer: "ca", KeyType: config.P256}
	c := ca.certificate(t, "b", config.P256, now, now.Add(90*24*time.Hour), "a.test")
	c.object.Directory, c.object.ObtainedAt = "https://ca.test/dir", now
	c.object.Renewal = &vault.Renewal{Start: now.Add(-2 * time.Hour), End: now.Add(-time.Hour), Replace: true}
	for after, want := range map[time.Duration]need{time.Minute: needNothing, time.Hour: needReplaced} {
		if got := st.needs(&b, &stored{version: "1", cert: c}, nil, now.Add(after)); got != want {
			t.Errorf("after %s: %q, want %q", after, got, want)
		}
	}
}

func TestRenewalIsDueByTheCAsWindowElseByAFraction(t *testing.T) {
	ca, now := newTestCA(t), time.Now().Truncate(time.Second)
	day := 24 * time.Hour
	c := ca.certificate(t, "b", config.P256, now, now.Add(90*day), "a.test")
	if at := renewAt(c); at.After(now.Add(60*day)) || at.Before(now.Add(55*day)) {
		t.Errorf("without advice due after %s, want about two thirds of 90 days", at.Sub(now))
	}
	c.object.Renewal = &vault.Renewal{Selected: now.Add(40 * day)}
	if at := renewAt(c); !at.Equal(now.Add(40 * day)) {
		t.Errorf("due after %s, want the CA's 40 days", at.Sub(now))
	}
	c.object.Renewal.Selected = now.Add(89 * day)
	if at := renewAt(c); !at.Equal(now.Add(75 * day)) {
		t.Errorf("due after %s, want a sixth of the life left whatever the CA says", at.Sub(now))
	}
	c.object.ObtainedAt, c.object.Renewal.Selected = now, now.Add(-time.Hour)
	if at := renewAt(c); !at.Equal(now.Add(time.Hour)) {
		t.Errorf("due %s after the issue, want an hour though the CA's window began before", at.Sub(now))
	}
	short := ca.certificate(t, "b", config.P256, now, now.Add(6*day), "a.test")
	if at := renewAt(short); at.After(now.Add(3*day)) || at.Before(now.Add(2*day)) {
		t.Errorf("short-lived due after %s, want at most half of 6 days", at.Sub(now))
	}
}

func TestOperatorIsToldOnceThatTheEndIsNear(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := stock(t, lab, ca, "a.example.test")
	lab.CA.SetDown(true)
	for name, c := range map[string]struct {
		left time.Duration
		step Step
	}{"a quarter": {20 * time.Hour, StepExpiring}, "a tenth": {5 * time.Hour, StepCritical}, "nothing": {-time.Minute, StepExpired}} {
		t.Run(name, func(t *testing.T) {
			first := ready(t, cfg, nil)
			soon := ca.certificate(t, "a.example.test", config.P256, time.Now().Add(c.left-100*time.Hour), time.Now().Add(c.left), "a.example.test")
			rewrite(t, first.Manager, "a.example.test", func(o *vault.Certificate) { o.Chain, o.PrivateKey = soon.object.Chain, soon.object.PrivateKey })
			first.run(t)
			second := start(t, cfg, nil)
			told := 0
			for _, r := range []*replica{first, second} {
				if r.until(t, "a.example.test", c.step).Notify {
					told++
				}
			}
			if told != 1 {
				t.Errorf("%d replicas tell the operator, want 1", told)
			}
		})
	}
}
