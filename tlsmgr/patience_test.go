package tlsmgr

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/tlsmgr/vault"

	"edge/internal/acmelab"
)

// busyCA refuses the first new orders, as a rate limit or a load balancer does.
type busyCA struct {
	next        http.RoundTripper
	status      int
	contentType string
	body        string
	left        atomic.Int32
}

func (b *busyCA) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != acmelab.PathNewOrder || b.left.Add(-1) < 0 {
		return b.next.RoundTrip(r)
	}
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", b.contentType)
	w.Header().Set("Retry-After", "2")
	w.WriteHeader(b.status)
	_, _ = w.WriteString(b.body)
	return w.Result(), nil
}

func TestCAThatAsksForPatienceIsLeftAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ca    *busyCA
		times int32
		want  string
	}{
		"rate limit": {
			&busyCA{
				status: http.StatusTooManyRequests, contentType: "application/problem+json",
				body: `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many certificates\nalready issued"}`,
			}, 1,
			"place the order: the CA refuses: rateLimited: too many certificates already issued (",
		},
		"load balancer": {
			&busyCA{status: http.StatusServiceUnavailable, contentType: "text/html", body: "<html>\nback soon"}, 3, // acmez tries three times
			"answers HTTP 503 (edge tries again",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := acmelab.New(t, acmelab.Options{})
			c.ca.next = lab.CA.Client.Transport
			c.ca.left.Store(c.times)
			m := start(t, labConfig(t, lab, "a.example.test"), func(o *Options) { o.ACMEClient = &http.Client{Transport: c.ca} })
			e := m.until(t, "example.test", StepFailed)
			if !strings.Contains(e.Detail, c.want) {
				t.Errorf("detail %s", e.Detail)
			}
			if wait := m.one(t).NextAttempt.Sub(e.Time); wait < 1500*time.Millisecond {
				t.Errorf("next attempt after %s, want 2 s", wait)
			}
			commit(t, m.Manager, m.state.Load().cfg) // does not override the CA
			loaded := m.until(t, "example.test", StepLoaded)
			if d := loaded.Time.Sub(e.Time); d < 1500*time.Millisecond {
				t.Errorf("ordered again after %s, want 2 s", d)
			}
		})
	}
}

func TestStorageThatFailsAtTheLastStepCostsNoSecondOrder(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	var failed atomic.Int32
	lab.S3.SetFail(func(r *http.Request) int {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, vault.Certificates.Dir()) && failed.Add(1) == 1 {
			return http.StatusForbidden
		}
		return 0
	})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	if n := lab.CA.Orders(); n != 1 || failed.Load() < 2 {
		t.Errorf("%d orders and %d attempts to store, want 1 and 2", n, failed.Load())
	}
}

// The storage takes no writes for longer than a lease lives, just when the
// certificate is issued: it is stored when the storage is back.
func TestAnOutageLongerThanTheLeaseCostsNoSecondOrder(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	var began atomic.Int64
	lab.S3.SetFail(func(r *http.Request) int {
		if r.Method != http.MethodPut {
			return 0
		}
		if strings.Contains(r.URL.Path, vault.Certificates.Dir()) {
			began.CompareAndSwap(0, time.Now().UnixNano())
		}
		if at := began.Load(); at != 0 && time.Since(time.Unix(0, at)) < 2*time.Second {
			return http.StatusForbidden
		}
		return 0
	})
	m := start(t, labConfig(t, lab, "a.example.test"), func(o *Options) { o.LeaseTTL = time.Second })
	m.until(t, "example.test", StepLoaded)
	if n := lab.CA.Orders(); n != 1 || began.Load() == 0 {
		t.Errorf("%d orders, outage at %d; want 1 and some time", n, began.Load())
	}
}

// One failed look at another's lease, while waiting for it, is no failure that
// a minute's pause should follow.
func TestABlipOfTheStorageDoesNotDelayATakeover(t *testing.T) {
	t.Parallel()
	hold, reached := make(chan struct{}), make(chan struct{}, 100)
	var arrived atomic.Bool
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Gate: func(path string) {
		if path == acmelab.PathNewOrder && !arrived.Swap(true) {
			reached <- struct{}{}
			<-hold
		}
	}}})
	cfg := labConfig(t, lab, "a.example.test")
	first := start(t, cfg, func(o *Options) { o.Owner, o.LeaseTTL = "first", 3*time.Second })
	<-reached
	_ = first.vaultInUse().Store().Close() // its heartbeats end, as if it had been killed
	second := start(t, cfg, func(o *Options) { o.Owner = "second" })
	second.until(t, "example.test", StepWaiting)
	var failed atomic.Int32
	lab.S3.SetFail(func(r *http.Request) int {
		if strings.Contains(r.URL.Path, "/locks/") && failed.Add(1) == 1 { // which the SDK does not repeat
			return http.StatusForbidden
		}
		return 0
	})
	second.until(t, "example.test", StepLoaded)
	close(hold)
	if failed.Load() == 0 {
		t.Error("nothing failed")
	}
	if text := second.logs.String(); strings.Contains(text, "step=failed") {
		t.Errorf("an attempt failed: %s", text)
	}
}

func TestMissingCertificateIsToldOnceAfterAMinute(t *testing.T) {
	j, now := &job{}, time.Now()
	for _, c := range []struct {
		after time.Duration
		have  *stored
		want  bool
	}{
		{0, nil, false},
		{59 * time.Second, nil, false},
		{60 * time.Second, nil, true},
		{70 * time.Second, nil, false},
		{80 * time.Second, &stored{cert: &certificate{}}, false},
		{90 * time.Second, &stored{}, false}, // gone again: a new minute
		{150 * time.Second, nil, true},
	} {
		if got := j.overdue(c.have, now.Add(c.after)); (got != "") != c.want {
			t.Errorf("after %s: %q, want a warning: %v", c.after, got, c.want)
		}
	}
}

func TestBackoffGrowsToAnHour(t *testing.T) {
	for failures, want := range map[int]time.Duration{1: time.Minute, 2: 2 * time.Minute, 3: 5 * time.Minute, 6: time.Hour, 100: time.Hour} {
		if got := backoff(failures); got < want*9/10 || got > want*11/10 {
			t.Errorf("after %d failures %s, want %s ± 10 %%", failures, got, want)
		}
	}
}

func TestLoadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := New(Options{Logger: (&logs{}).logger()})
	commit(t, m, labConfig(t, lab, "a.example.test"))
	defer m.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Load(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Load: %v, want context.Canceled", err)
	}
}
