package tlsmgr

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// A large fleet of names: ten thousand in four hundred certificates.

const (
	fleetNames   = 10_000
	fleetBundles = 400
)

// fleetConfig wants fleetNames names in fleetBundles certificates.
func fleetConfig(tb testing.TB, l *acmelab.Lab) *config.Config {
	tb.Helper()
	hosts := make([]string, fleetNames)
	for n := range hosts {
		hosts[n] = fmt.Sprintf("n%05d.example.test", n)
	}
	cfg := labConfig(tb, l, hosts...)
	cfg.Bundles.MaxNames = fleetNames / fleetBundles
	return cfg
}

// storePlan puts a certificate for each bundle of cfg into its storage; edit, if
// not nil, may change it.
func storePlan(tb testing.TB, cfg *config.Config, ca *testCA, from, to time.Time, edit func(*vault.Certificate)) {
	tb.Helper()
	s, err := store.Open(tb.Context(), cfg.Storage.URL, store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	bundles, _ := Plan(cfg)
	if len(bundles) != fleetBundles {
		tb.Fatalf("%d bundles, want %d", len(bundles), fleetBundles)
	}
	var group errgroup.Group
	group.SetLimit(8)
	for _, b := range bundles {
		group.Go(func() error {
			c := ca.certificate(tb, b.ID, config.P256, from, to, b.Names...)
			c.object.Directory = cfg.Issuers["lab"].Directory
			c.object.Renewal = &vault.Renewal{Checked: from, Next: time.Now().Add(100 * time.Hour)}
			if edit != nil {
				edit(c.object)
			}
			data, err := json.Marshal(c.object)
			if err != nil {
				return err
			}
			_, err = s.Swap(tb.Context(), vault.Certificates.Key(b.ID), data, "")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		tb.Fatal(err)
	}
}

// since are the requests by method that came after before.
func since(after, before map[string]int) map[string]int {
	out := map[string]int{}
	for key, n := range after {
		if n -= before[key]; n > 0 {
			method, path, _ := strings.Cut(key, " ")
			switch {
			case strings.HasSuffix(path, "?list"):
				method = "LIST"
			case strings.Contains(path, "/replicas/"):
				method += " heartbeat"
			}
			out[method] += n
		}
	}
	return out
}

func TestTenThousandNamesAreLoadedAFewAtATimeAndThenCostOneListing(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := fleetConfig(t, lab)
	storePlan(t, cfg, ca, time.Now().Add(-time.Hour), time.Now().Add(1000*time.Hour), nil)
	w := newWay(t, lab)
	cfg.Storage.URL = w.url()
	lab.S3.SetDelay(5 * time.Millisecond)
	before := lab.S3.Requests()
	begin := time.Now()
	m := ready(t, cfg, nil)
	t.Logf("planned and prepared in %s", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := since(lab.S3.Requests(), before)
	t.Logf("loaded in %s by %v, at most %d reads at once", time.Since(begin).Round(time.Millisecond), got, w.highest())
	if want := map[string]int{"LIST": 1, "GET": fleetBundles}; !maps.Equal(got, want) {
		t.Errorf("Load sent %v, want %v", got, want)
	}
	if w.highest() > 64 || w.highest() < 8 {
		t.Errorf("%d reads at once, want at most 64, and some", w.highest())
	}
	lab.S3.SetDelay(0)
	for _, name := range []string{"n00000.example.test", "n09999.example.test"} {
		if _, err := shake(t, m.Manager, &tls.Config{ServerName: name, RootCAs: ca.pool()}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Looks, one by one, without the timer of Run.
	before = lab.S3.Requests()
	var weather weather
	var work sync.WaitGroup
	const looks = 4 * beatEvery
	begin = time.Now()
	for range looks {
		m.reconcile(t.Context(), &weather, &work)
	}
	each := time.Since(begin) / looks
	work.Wait()
	got = since(lab.S3.Requests(), before)
	t.Logf("%d looks, %s each: %v", looks, each.Round(10*time.Microsecond), got)
	if want := map[string]int{"LIST": looks, "PUT heartbeat": looks / beatEvery}; !maps.Equal(got, want) {
		t.Errorf("looks sent %v, want %v", got, want)
	}
	if n := lab.CA.Requests("/"); n != 0 {
		t.Errorf("%d requests to the CA", n)
	}

	begin = time.Now()
	m.mu.Lock()
	m.unsettled = true
	m.mu.Unlock()
	m.replan()
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("replanning took %s", d)
	} else {
		t.Logf("replanned in %s", d.Round(time.Millisecond))
	}
	begin = time.Now()
	m.mu.Lock()
	m.rebuildLocked(begin)
	m.mu.Unlock()
	t.Logf("made an index in %s", time.Since(begin).Round(time.Millisecond))
	m.close()
}

// sized is an index of so many names, 25 in each certificate.
func sized(tb testing.TB, names int) *index {
	tb.Helper()
	ca, now := newTestCA(tb), time.Now()
	c := ca.certificate(tb, "a", config.P256, now, now.Add(time.Hour), "a.test")
	var all []candidate
	var wanted []string
	for n := range names / 25 {
		next := *c
		next.id, next.names = fmt.Sprint(n), nil
		for k := range 25 {
			next.names = append(next.names, fmt.Sprintf("n%d.z%d.example.test", k, n))
		}
		wanted = append(wanted, next.names...)
		all = append(all, candidate{&next, true})
	}
	return buildIndex(all, wanted, now)
}

// lookups is the time of a lookup in x, over names that lie apart.
func lookups(tb testing.TB, x *index, names int) time.Duration {
	tb.Helper()
	hellos := make([]*tls.ClientHelloInfo, 1000)
	for n := range hellos {
		at := n * (names / len(hellos))
		hellos[n] = &tls.ClientHelloInfo{ServerName: fmt.Sprintf("n%d.z%d.example.test", at%25, at/25)}
	}
	best := time.Hour
	for range 20 { // the best of some: others work on this machine
		begin := time.Now()
		for range 20 {
			for _, h := range hellos {
				if c, err := x.certificateFor(h, ""); c == nil || err != nil {
					tb.Fatal(h.ServerName, c, err)
				}
			}
		}
		best = min(best, time.Since(begin)/time.Duration(20*len(hellos)))
	}
	return best
}

func TestLookupTakesAsLongAmongAHundredThousandNames(t *testing.T) {
	small, large := sized(t, 1000), sized(t, 100_000)
	if n := len(large.exact); n != 100_000 {
		t.Fatalf("%d names", n)
	}
	for _, name := range []string{"n3.z17.example.test", "n24.z3999.example.test", "unknown.example.test"} {
		hello := &tls.ClientHelloInfo{ServerName: name}
		if n := testing.AllocsPerRun(1000, func() { _, _ = large.certificateFor(hello, "") }); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
	a, b := lookups(t, small, 1000), lookups(t, large, 100_000)
	t.Logf("%s among 1,000 names, %s among 100,000", a, b)
	if b > 10*a { // a hundred times the names; memory is slower than the cache
		t.Errorf("a lookup takes %s among 100,000 names, %s among 1,000", b, a)
	}
}

// Four hundred certificates whose renewal information is due at once are not
// asked about at once.
func TestRenewalInformationOfManyIsAskedForAFewAtATime(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	busy, most := 0, 0
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Instead: func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/renewalInfo/") {
			return false
		}
		mu.Lock()
		busy++
		most = max(most, busy)
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		mu.Lock()
		busy--
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, window(time.Now().Add(100*time.Hour), time.Now().Add(200*time.Hour)))
		return true
	}}})
	ca := newTestCA(t)
	cfg := fleetConfig(t, lab)
	storePlan(t, cfg, ca, time.Now().Add(-time.Hour), time.Now().Add(1000*time.Hour), func(c *vault.Certificate) { c.Renewal = nil })
	m := start(t, cfg, func(o *Options) { o.Interval = 20 * time.Millisecond })
	wait(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		asked := 0
		for _, l := range m.loaded {
			if renewalOf(l.cert) != nil {
				asked++
			}
		}
		return asked == fleetBundles
	})
	t.Logf("at most %d at once", most)
	if most > maxChores {
		t.Errorf("the CA was asked about %d certificates at once", most)
	}
	if n := lab.CA.Requests(acmelab.PathNewOrder); n != 0 {
		t.Errorf("%d orders", n)
	}
}

// Four hundred certificates are due at once, at a CA that allows sixteen orders.
func TestRenewalStormKeepsToTheBudgetAndAFewOrdersAtATime(t *testing.T) {
	t.Parallel()
	const budget, some = 16, 20
	var mu sync.Mutex
	open, most := 0, 0
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Gate: func(path string) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case path == acmelab.PathNewOrder:
			open++
			most = max(most, open)
		case strings.HasPrefix(path, acmelab.PathCert):
			open--
		}
	}}})
	ca := newTestCA(t)
	hosts := make([]string, fleetBundles)
	for n := range hosts {
		hosts[n] = fmt.Sprintf("n%03d.example.test", n)
	}
	cfg := labConfig(t, lab, hosts...)
	cfg.Bundles.Packing = config.PerName
	cfg.Issuers["lab"].Quotas.Orders = config.Quota{Count: budget, Per: time.Hour}
	storePlan(t, cfg, ca, time.Now().Add(-80*time.Hour), time.Now().Add(20*time.Hour), nil)
	begin := time.Now()
	replicas := []*replica{start(t, cfg, nil), start(t, cfg, nil)}
	probe(t, replicas[0].Manager, trust(lab, ca), waitFor(t, replicas[0], "n399.example.test"))
	waiting := func(r *replica) int {
		s := r.Status()
		return len(slices.DeleteFunc(s.Certificates, func(c CertificateStatus) bool { return !strings.Contains(c.Error, "waiting ") }))
	}
	renewed := func(r *replica) int {
		s := r.Status()
		return len(slices.DeleteFunc(s.Certificates, func(c CertificateStatus) bool { return c.IssuedBy == "test CA" }))
	}
	for _, r := range replicas {
		wait(t, func() bool {
			time.Sleep(200 * time.Millisecond) // the status of four hundred is not for nothing
			return waiting(r) >= some && renewed(r) == budget
		})
	}
	t.Logf("after %s %d are renewed, and at least %d wait in each of two replicas; at most %d orders at once", time.Since(begin).Round(100*time.Millisecond), budget, some, most)
	lists := lab.S3.Count(http.MethodGet, "/certs?list")
	wait(t, func() bool { return lab.S3.Count(http.MethodGet, "/certs?list") > lists+8 })
	if n := lab.CA.Requests(acmelab.PathNewOrder); n != budget {
		t.Errorf("%d orders were sent, want %d", n, budget)
	}
	if most > len(replicas)*maxOrders {
		t.Errorf("%d orders at once in two replicas, want at most %d in each", most, maxOrders)
	}
}

// waitFor waits until id is served.
func waitFor(t *testing.T, r *replica, id string) string {
	t.Helper()
	r.until(t, id, StepLoaded)
	return id
}

// BenchmarkMemoryOfOneCertificate tells how much memory a certificate of 25
// names takes that is loaded and in the index.
func BenchmarkMemoryOfOneCertificate(b *testing.B) {
	ca, now := newTestCA(b), time.Now()
	const count = 1000
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		m := New(Options{})
		var wanted []string
		for n := range count {
			var names []string
			for k := range 25 {
				names = append(names, fmt.Sprintf("n%d.z%d.example.test", k, n))
			}
			wanted = append(wanted, names...)
			id := fmt.Sprintf("z%d.example.test", n)
			m.loaded[id] = &stored{version: "1", cert: ca.certificate(b, id, config.P256, now, now.Add(time.Hour), names...)}
		}
		m.state.Store(&state{cfg: &config.Config{}, plan: &Planned{}, wanted: wanted})
		m.rebuildLocked(now)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/count, "B/certificate")
		runtime.KeepAlive(m)
	}
}
