package tlsmgr

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

func TestStatusCountsOrdersThatTheCARefuses(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{
		Lag: func(q acmelab.Query, _ time.Duration) bool { return q.Network != "tcp" }, // how Pebble asks
	}})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepFailed)
	s := m.Status()
	if n := s.ACMEErrors[acme.Unproven]; n < 1 {
		t.Errorf("%d orders unproven of %v, want at least 1", n, s.ACMEErrors)
	}
	if n, known := s.ACMEErrors[acme.RateLimited]; n != 0 || !known {
		t.Errorf("%d orders rate limited (known: %v), want 0", n, known)
	}
}

func TestStatusSaysWhetherTheStorageAnswers(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := ready(t, labConfig(t, lab, "a.example.test"), func(o *Options) { o.Interval = 50 * time.Millisecond })
	if m.Status().StorageUp {
		t.Error("the storage is up before anybody looked")
	}
	m.run(t)
	m.until(t, "example.test", StepLoaded)
	if !m.Status().StorageUp {
		t.Error("the storage is down after a certificate was stored")
	}
	lab.S3.SetFail(func(*http.Request) int { return http.StatusForbidden })
	wait(t, func() bool { return !m.Status().StorageUp })
	lab.S3.SetFail(nil)
	wait(t, func() bool { return m.Status().StorageUp })
}

func TestOnlyWhatACADidIsItsFailure(t *testing.T) {
	var c tally
	c.failed(errors.New("the storage is full"))
	c.failed(fmt.Errorf("order: %w", &acme.Error{Kind: acme.CAA}))
	for kind, n := range c.counts() {
		if want := map[bool]int64{true: 1}[kind == acme.CAA]; n != want {
			t.Errorf("%s: %d, want %d", kind, n, want)
		}
	}
}

// What a scrape of 10,000 certificates costs here, and for how much of that it
// holds the lock.
func BenchmarkStatusOf10000(b *testing.B) {
	const many = 10_000
	ca, now := newTestCA(b), time.Now()
	m := New(Options{})
	st := &state{cfg: &config.Config{}, plan: &Planned{}, bundles: map[string]*Bundle{}}
	one := ca.certificate(b, "one", config.P256, now.Add(-time.Hour), now.Add(1000*time.Hour), "one.test")
	for n := range many {
		id := fmt.Sprintf("%05d.example.test", n)
		st.plan.Bundles = append(st.plan.Bundles, Bundle{ID: id, Names: []string{id}, Issuer: "i"})
		c := *one
		c.id = id
		m.loaded[id], m.jobs[id] = &stored{version: "1", cert: &c}, &job{settled: true}
	}
	m.state.Store(st)
	b.Run("status", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if s := m.Status(); len(s.Certificates) != many {
				b.Fatalf("%d certificates", len(s.Certificates))
			}
		}
	})
	b.Run("locked", func(b *testing.B) {
		for b.Loop() {
			if v := m.views(&Status{}, now); len(v) != many {
				b.Fatalf("%d certificates", len(v))
			}
		}
	})
}
