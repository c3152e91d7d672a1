package tlsmgr

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

func TestRecordsThatDoNotShowFailWithTheServersAnswer(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Lag: func(acmelab.Query, time.Duration) bool { return false }}})
	m := start(t, labConfig(t, lab, "a.example.test", "b.example.test"), func(o *Options) { o.DNSTimeout = 300 * time.Millisecond })
	e := m.until(t, "example.test", StepFailed)
	if !strings.Contains(e.Detail, lab.DNS.Addr) || strings.Contains(e.Detail, "\n") {
		t.Errorf("detail %q, want one line that names %s", e.Detail, lab.DNS.Addr)
	}
	lab.DNS.SetLag(nil)
	m.until(t, "example.test", StepLoaded)
	if names := lab.DNS.TXTNames(); len(names) > 0 {
		t.Errorf("records of %v were left behind", names)
	}
}

func TestEveryNameThatTheCADoesNotBelieveIsTold(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{
		Lag: func(q acmelab.Query, _ time.Duration) bool { return q.Network != "tcp" }, // how Pebble asks
	}})
	m := start(t, labConfig(t, lab, "a.example.test", "b.example.test"), nil)
	e := m.until(t, "example.test", StepFailed)
	for _, want := range []string{"a.example.test: unauthorized: ", "b.example.test: unauthorized: ", "does the internet see what edge set up for the challenge?"} {
		if !strings.Contains(e.Detail, want) {
			t.Errorf("detail %q\nwant %q", e.Detail, want)
		}
	}
	lab.DNS.SetLag(nil)
	m.until(t, "example.test", StepLoaded)
}

func TestDelegatedChallengeIsFollowed(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Zones: []string{"example.test", "deleg.test"}}})
	if err := lab.DNS.Add("_acme-challenge.a.example.test. 60 IN CNAME a.deleg.test."); err != nil {
		t.Fatal(err)
	}
	m := start(t, labConfig(t, lab, "a.example.test", "b.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
}

func TestStorageThatIsDownAtTheStartHoldsUpNothingElse(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	lab.S3.SetFail(func(*http.Request) int { return http.StatusForbidden })
	cfg := labConfig(t, lab, "a.example.test")
	cfg.Certificates["file"] = &config.Certificate{Name: "file", File: ca.files(t, t.TempDir(), "a.test")}
	m := start(t, cfg, func(o *Options) { o.Interval = 50 * time.Millisecond })
	wait(t, func() bool { return strings.Contains(m.logs.String(), "storage is unavailable") })
	if _, err := shake(t, m.Manager, client(ca, "a.test")); err != nil {
		t.Errorf("the file certificate: %v", err)
	}
	if n := lab.CA.Orders(); n != 0 {
		t.Errorf("%d orders without a storage", n)
	}
	status := m.Status()
	if missing := status.Missing(); len(missing) != 1 {
		t.Errorf("missing %v", missing)
	}
	lab.S3.SetFail(nil)
	m.until(t, "example.test", StepLoaded)
}

func TestOrdersInFlightAreBounded(t *testing.T) {
	t.Parallel()
	zones := make([]string, 3*maxOrders)
	hosts := make([]string, len(zones))
	for n := range zones {
		zones[n] = fmt.Sprintf("z%d.test", n)
		hosts[n] = "a." + zones[n]
	}
	var free atomic.Bool
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Zones: zones, Lag: func(acmelab.Query, time.Duration) bool { return free.Load() }}})
	m := start(t, labConfig(t, lab, hosts...), func(o *Options) { o.Interval = 20 * time.Millisecond })
	for range maxOrders {
		m.until(t, "", StepPresent)
	}
	lists := lab.S3.Count(http.MethodGet, "/certs?list")
	wait(t, func() bool { return lab.S3.Count(http.MethodGet, "/certs?list") > lists+5 }) // it looked, and looked again
	if n := lab.CA.Orders(); n != maxOrders {
		t.Errorf("%d orders in flight, want %d", n, maxOrders)
	}
	free.Store(true)
	for range zones {
		m.until(t, "", StepLoaded)
	}
}

func TestCertificatesThatFailDoNotKeepOthersFromTheirTurn(t *testing.T) {
	t.Parallel()
	zones := []string{"zz.test"}
	hosts := []string{"zz.test"}
	for n := range 3 * maxOrders {
		zones = append(zones, fmt.Sprintf("a%d.test", n))
		hosts = append(hosts, fmt.Sprintf("a%d.test", n))
	}
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{
		Zones: zones, Lag: func(q acmelab.Query, _ time.Duration) bool { return strings.HasSuffix(q.Name, "zz.test.") },
	}})
	m := start(t, labConfig(t, lab, hosts...), func(o *Options) {
		o.DNSTimeout, o.Backoff = 200*time.Millisecond, func(int) time.Duration { return time.Millisecond }
	})
	failed := 0
	for {
		switch e := m.until(t, "", StepFailed, StepLoaded); {
		case e.Step == StepLoaded:
			return
		case failed > 2*len(hosts):
			t.Fatalf("%d attempts failed, and the last certificate had no turn", failed)
		}
		failed++
	}
}

func TestTwoIssuersHaveAnAccountEach(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab)
	second := *cfg.Issuers["lab"]
	second.Name, second.Email = "second", "else@example.test"
	cfg.Issuers["second"] = &second
	for id, i := range map[string]string{"one": "lab", "two": "second", "three": "lab"} {
		cfg.Certificates[id] = &config.Certificate{Names: []string{id + ".example.test"}, Issuers: []string{i}, KeyTypes: []config.KeyType{config.P256}}
	}
	m := start(t, cfg, nil)
	for range cfg.Certificates {
		m.until(t, "", StepLoaded)
	}
	if n := lab.CA.Requests(acmelab.PathNewAccount); n != 2 {
		t.Errorf("%d accounts, want 2", n)
	}
	if a, b := accountID(cfg.Issuers["lab"]), accountID(&second); a == b || !strings.HasPrefix(a, "127.0.0.1-") {
		t.Errorf("ids %q and %q", a, b)
	}
}

func TestUnreadableAccountIsNotReplaced(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	s, err := store.Open(t.Context(), cfg.Storage.URL, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	key := vault.Accounts.Key(accountID(cfg.Issuers["lab"]))
	version, err := s.Swap(t.Context(), key, []byte(`{"format":1}`), "")
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, cfg, nil)
	e := m.until(t, "example.test", StepFailed)
	if !strings.Contains(e.Detail, "stored ACME account "+key) || !strings.Contains(e.Detail, "restore the object, or delete it") {
		t.Errorf("detail %q", e.Detail)
	}
	if _, got, err := s.LoadVersion(t.Context(), key); err != nil || got != version {
		t.Errorf("the account was replaced: %v", err)
	}
	if err := s.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	m.until(t, "example.test", StepLoaded)
}

func TestBundleThatIsNotWantedAnyMoreIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	s, err := store.Open(t.Context(), cfg.Storage.URL, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	other, err := s.Acquire(t.Context(), "certificate/example.test")
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepWaiting)
	if s := m.one(t); s.State != StateWaiting {
		t.Errorf("status %+v, want waiting", s)
	}
	next := labConfig(t, lab)
	next.Certificates["wild"] = &config.Certificate{Names: []string{"*.example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	commit(t, m.Manager, next)
	m.until(t, "wild", StepLoaded)
	if err := other.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}

func TestForeignObjectsAreIgnoredAndLeftoversServe(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := labConfig(t, lab, "new.example.test")
	s, err := store.Open(t.Context(), cfg.Storage.URL, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	left := ca.certificate(t, "left", config.P256, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "new.example.test", "gone.example.test")
	data, err := json.Marshal(left.object)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string][]byte{
		vault.Certificates.Key("left"): data, vault.Certificates.Dir() + "/README": []byte("x"), vault.Certificates.Dir() + "/sub/x.json": []byte("{"),
	} {
		if _, err := s.Swap(t.Context(), key, value, ""); err != nil {
			t.Fatal(err)
		}
	}
	lab.CA.SetDown(true)
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepFailed)
	if _, err := shake(t, m.Manager, client(ca, "new.example.test")); err != nil {
		t.Errorf("a leftover that covers the name does not serve: %v", err)
	}
	if _, err := shake(t, m.Manager, client(ca, "gone.example.test")); err == nil {
		t.Error("a leftover serves a name that nobody wants")
	}
	if text := m.logs.String(); strings.Contains(text, "not usable") || strings.Contains(text, "certificate=left") {
		t.Errorf("log:\n%s", text)
	}
}

func TestExpiryHandsOverToAnotherCertificate(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	m := New(Options{Logger: (&logs{}).logger()})
	m.files = map[string]*certificate{
		"exact": ca.certificate(t, "exact", config.P256, now.Add(-time.Hour), now.Add(time.Minute), "x.a.test"),
		"wild":  ca.certificate(t, "wild", config.P256, now.Add(-time.Hour), now.Add(time.Hour), "*.a.test"),
	}
	m.state.Store(&state{cfg: &config.Config{}, plan: &Planned{}, wanted: []string{"x.a.test"}})
	m.rebuildLocked(now)
	end := m.files["exact"].leaf().NotAfter
	for _, c := range []struct {
		after time.Duration
		want  string
	}{{-time.Minute, "exact"}, {-time.Second, "exact"}, {0, "wild"}, {time.Second, "wild"}, {58 * time.Minute, "wild"}} {
		m.expire(end.Add(c.after))
		if got := entryID(m.index.Load(), "x.a.test"); got != c.want {
			t.Errorf("after %s: %s, want %s", c.after, got, c.want)
		}
	}
	if d := m.soon(m.state.Load(), now); d > 12*time.Second {
		t.Errorf("looks again in %s", d)
	}
}

func TestReloadsAndHandshakesDoNotDisturbEachOther(t *testing.T) {
	m, ca := policyManager(t, nil)
	cfg := m.state.Load().cfg
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for _, name := range []string{"old.a.test", "new.a.test", "a.test"} {
		readers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := shake(t, m, &tls.Config{ServerName: name, RootCAs: ca.pool()}); err != nil {
					t.Errorf("handshake %d with %s: %v", n, name, err)
					return
				}
				m.Admits("https", "https min=0303", "old.a.test", name)
				m.Status()
			}
		})
	}
	for range 30 {
		commit(t, m, cfg)
	}
	close(stop)
	readers.Wait()
}
