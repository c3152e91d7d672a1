package tlsmgr

import (
	"crypto/x509"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
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

// The weather: what edge depends on is away, slow or lies. Edge serves on, under
// 50 handshakes a second, and when the weather clears up it goes on alone, with
// at most one order more than it would have placed.

const (
	weatherInterval = 500 * time.Millisecond // between two looks; ten seconds in production
	weatherOutage   = 6 * weatherInterval    // a minute in production
	weatherLease    = 3 * weatherInterval    // half a minute in production
)

// inCI reports whether tests may take their time.
func inCI() bool { return os.Getenv("EDGE_CI") == "1" }

// trust is a pool for certificates that were stocked and for what replaces them.
func trust(l *acmelab.Lab, ca *testCA) *x509.CertPool {
	pool := ca.pool()
	pool.AppendCertsFromPEM(l.CA.RootsPEM)
	return pool
}

// dueConfig wants a certificate for a.example.test that is stored and due for
// renewal.
func dueConfig(t *testing.T, l *acmelab.Lab, ca *testCA) *config.Config {
	t.Helper()
	const name = "a.example.test"
	cfg := stock(t, l, ca, name)
	m := ready(t, cfg, nil)
	defer m.close()
	due := ca.certificate(t, name, config.P256, time.Now().Add(-80*time.Hour), time.Now().Add(20*time.Hour), name)
	rewrite(t, m.Manager, name, func(o *vault.Certificate) {
		o.Chain, o.PrivateKey = due.object.Chain, due.object.PrivateKey
		o.Renewal = &vault.Renewal{Checked: time.Now(), Next: time.Now().Add(time.Hour)}
	})
	return cfg
}

func TestStorageThatIsAwayForAMinuteIsServedThrough(t *testing.T) {
	t.Parallel()
	for name, outage := range map[string]func(l *acmelab.Lab, on bool){
		"no connection": func(l *acmelab.Lab, on bool) { l.S3.SetDown(on) },
		"unavailable": func(l *acmelab.Lab, on bool) {
			l.S3.SetFail(func(*http.Request) int { return map[bool]int{true: http.StatusServiceUnavailable}[on] })
		},
		"answers are lost": func(l *acmelab.Lab, on bool) {
			l.S3.SetFail(func(*http.Request) int { return map[bool]int{true: acmelab.Lose}[on] })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := acmelab.New(t, acmelab.Options{})
			replicas := []*replica{}
			for _, owner := range []string{"a", "b"} {
				r := start(t, labConfig(t, lab, "a.example.test"), func(o *Options) { o.Owner, o.Interval, o.LeaseTTL = owner, weatherInterval, weatherLease })
				r.until(t, "example.test", StepLoaded)
				probe(t, r.Manager, lab.CA.Roots, "a.example.test")
				replicas = append(replicas, r)
			}
			outage(lab, true)
			for _, r := range replicas {
				commit(t, r.Manager, labConfig(t, lab, "a.example.test", "b.example.test"))
			}
			time.Sleep(weatherOutage)
			for _, r := range replicas {
				wait(t, func() bool { return strings.Contains(r.logs.String(), "storage is unavailable") })
				if s := r.Status(); s.StorageUp {
					t.Error("the status calls the storage up")
				}
			}
			outage(lab, false)
			over := time.Now()
			for _, r := range replicas {
				wait(t, func() bool { return slices.Contains(r.one(t).Names, "b.example.test") && r.one(t).State == StateValid })
			}
			t.Logf("%s after the outage everything was served", time.Since(over).Round(100*time.Millisecond))
			if n := lab.CA.Orders(); n > 3 {
				t.Errorf("%d orders, want two and at most one more", n)
			}
			if replicas[0].one(t).Serial != replicas[1].one(t).Serial {
				t.Error("the replicas serve different certificates")
			}
		})
	}
}

// The storage goes away while an order is on its way, for longer than the lease
// lasts.
func TestStorageThatGoesAwayDuringAnOrderCostsAtMostOneMore(t *testing.T) {
	t.Parallel()
	for _, path := range []string{acmelab.PathNewAccount, acmelab.PathNewOrder, acmelab.PathChallenge, acmelab.PathFinalize, acmelab.PathCert} {
		t.Run(strings.Trim(path, "/"), func(t *testing.T) {
			t.Parallel()
			var lab *acmelab.Lab
			var caught atomic.Bool
			reached := make(chan struct{})
			lab = acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Gate: func(p string) {
				if strings.HasPrefix(p, path) && !caught.Swap(true) {
					lab.S3.SetDown(true)
					close(reached)
				}
			}}})
			ca := newTestCA(t)
			cfg := dueConfig(t, lab, ca)
			a := start(t, cfg, func(o *Options) { o.Owner, o.Interval, o.LeaseTTL = "a", weatherInterval, weatherLease })
			b := start(t, cfg, func(o *Options) { o.Owner, o.Interval, o.LeaseTTL = "b", weatherInterval, weatherLease })
			<-reached
			for _, r := range []*replica{a, b} {
				probe(t, r.Manager, trust(lab, ca), "a.example.test")
			}
			time.Sleep(weatherOutage)
			lab.S3.SetDown(false)
			over := time.Now()
			for _, r := range []*replica{a, b} {
				wait(t, func() bool { s := r.one(t); return s.State == StateValid && s.IssuedBy != "test CA" })
			}
			t.Logf("%s after the outage the new certificate was served", time.Since(over).Round(100*time.Millisecond))
			if n := lab.CA.Orders(); n > 2 {
				t.Errorf("%d orders, want at most two", n)
			}
			wait(t, func() bool { return len(lab.DNS.TXTNames()) == 0 })
		})
	}
}

// Every call to the storage takes two seconds, with the leases of production;
// outside CI both are an eighth.
func TestStorageThatTakesTwoSecondsForEachCallCostsNoOrder(t *testing.T) {
	t.Parallel()
	delay, ttl := 2*time.Second, store.DefaultLeaseTTL
	if !inCI() {
		delay, ttl = delay/8, ttl/8
	}
	lab := acmelab.New(t, acmelab.Options{})
	ca := newTestCA(t)
	cfg := dueConfig(t, lab, ca)
	lab.S3.SetDelay(delay)
	before := lab.S3.Count("", "/")
	begin := time.Now()
	r := start(t, cfg, func(o *Options) { o.LeaseTTL = ttl })
	r.until(t, "a.example.test", StepLoaded)
	probe(t, r.Manager, trust(lab, ca), "a.example.test")
	for _, step := range []Step{StepAccount, StepOrder, StepFinalize, StepLoaded} { // each has its minute
		r.until(t, "a.example.test", step)
	}
	t.Logf("renewed after %s and %d calls", time.Since(begin).Round(100*time.Millisecond), lab.S3.Count("", "/")-before)
	if n, lost := lab.CA.Orders(), r.Status().LeasesLost; n != 1 || lost != 0 {
		t.Errorf("%d orders and %d lost leases, want 1 and 0", n, lost)
	}
	lab.S3.SetDelay(0)
}

// way is another way into the S3 server of a lab, which can cut answers short.
type way struct {
	*httptest.Server

	mu    sync.Mutex
	short func(r *http.Request) bool // whose answer ends in the middle of the body that it announces
	busy  int                        // reads of objects under way
	most  int
}

func (w *way) url() string {
	s := acmelab.S3{Endpoint: w.URL}
	return s.StoreURL("certs", "t")
}

func (w *way) set(short func(*http.Request) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.short = short
}

func (w *way) reading(r *http.Request, n int) {
	if r.Method != http.MethodGet || r.URL.Query().Has("list-type") {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy += n
	w.most = max(w.most, w.busy)
}

// highest is how many reads there were at once.
func (w *way) highest() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.most
}

func newWay(t *testing.T, l *acmelab.Lab) *way {
	t.Helper()
	w := &way{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.reading(r, 1)
		defer w.reading(r, -1)
		w.mu.Lock()
		short := w.short != nil && w.short(r)
		w.mu.Unlock()
		if !short {
			l.S3.ServeHTTP(rw, r)
			return
		}
		whole := httptest.NewRecorder()
		l.S3.ServeHTTP(whole, r)
		maps.Copy(rw.Header(), whole.Header())
		body := whole.Body.Bytes()
		rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
		rw.WriteHeader(whole.Code)
		_, _ = rw.Write(body[:len(body)/2]) // the server ends the connection then
	}))
	t.Cleanup(w.Close)
	return w
}

func TestTruncatedReadsAreNoDamage(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	ca := newTestCA(t)
	cfg := dueConfig(t, lab, ca)
	w := newWay(t, lab)
	cfg.Storage.URL = w.url()
	for name, short := range map[string]func(*http.Request) bool{
		"objects":   func(r *http.Request) bool { return r.Method == http.MethodGet && !r.URL.Query().Has("list-type") },
		"listings":  func(r *http.Request) bool { return r.URL.Query().Has("list-type") },
		"certainly": func(r *http.Request) bool { return r.Method == http.MethodGet },
	} {
		t.Run(name, func(t *testing.T) { // one after the other
			w.set(short)
			lists := lab.S3.Count(http.MethodGet, "/certs?list")
			m := start(t, cfg, func(o *Options) { o.Interval = 50 * time.Millisecond })
			wait(t, func() bool { return lab.S3.Count(http.MethodGet, "/certs?list") > lists+5 })
			m.stop()
			if s := m.one(t); s.Serial != "" {
				t.Errorf("half a certificate is served: %+v", s)
			}
			if n := lab.CA.Requests(acmelab.PathNewOrder) + lab.CA.Requests(acmelab.PathNewAccount); n != 0 {
				t.Errorf("%d requests for orders and accounts, though nothing could be read", n)
			}
		})
	}
	w.set(nil)
	m := start(t, cfg, func(o *Options) { o.Interval = 50 * time.Millisecond })
	m.until(t, "a.example.test", StepLoaded)
	probe(t, m.Manager, trust(lab, ca), "a.example.test")
	m.until(t, "a.example.test", StepLoaded)
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	// With everything there: account, journal, budget. They are not damaged either.
	w.set(func(r *http.Request) bool { return r.Method == http.MethodGet && !r.URL.Query().Has("list-type") })
	next := *cfg
	next.Routes = append(slices.Clone(cfg.Routes), &config.Route{Name: "b", Hosts: []string{"b.example.test"}, Path: "/", Listeners: []string{"https"}})
	commit(t, m.Manager, &next)
	for range 3 {
		m.until(t, "b.example.test", StepFailed)
	}
	w.set(nil)
	m.until(t, "b.example.test", StepLoaded)
	if o, a := lab.CA.Orders(), lab.CA.Requests(acmelab.PathNewAccount); o != 2 || a != 1 {
		t.Errorf("%d orders and %d accounts, want 2 and 1", o, a)
	}
}

// caWeather is a CA that does not work for a while.
type caWeather struct {
	on       atomic.Bool
	refusals atomic.Int64
	path     string // "" is every one
	status   int
	after    string
	body     string
	slow     bool // for CI only
}

func (c *caWeather) instead(w http.ResponseWriter, r *http.Request) bool {
	if !c.on.Load() || !strings.HasPrefix(r.URL.Path, c.path) {
		return false
	}
	c.refusals.Add(1)
	if c.after != "" {
		w.Header().Set("Retry-After", c.after)
	}
	if strings.HasPrefix(c.body, "{") {
		w.Header().Set("Content-Type", "application/problem+json")
	}
	w.WriteHeader(c.status)
	_, _ = w.Write([]byte(c.body))
	return true
}

func TestCAThatIsAwayIsLeftAloneAndThenAskedAgain(t *testing.T) {
	t.Parallel()
	const maintenance = `{"type":"urn:ietf:params:acme:error:serverInternal","detail":"The service is down for maintenance","status":503}`
	for name, c := range map[string]*caWeather{
		"no connection":                   {},
		"a load balancer's 503":           {status: 503, after: "2", body: "<html>Service Unavailable</html>"},
		"503 to new orders":               {path: acmelab.PathNewOrder, status: 503, after: "2", body: maintenance},
		"503 to finalize":                 {path: acmelab.PathFinalize, status: 503, after: "2", body: maintenance},
		"503 to challenges":               {slow: true, path: acmelab.PathChallenge, status: 503, after: "2", body: maintenance},
		"429 to new orders":               {slow: true, path: acmelab.PathNewOrder, status: 429, after: "2", body: `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many","status":429}`},
		"503 to downloads":                {slow: true, path: acmelab.PathCert, status: 503, after: "2", body: maintenance},
		"503 to new orders, no more said": {path: acmelab.PathNewOrder, status: 503, body: maintenance},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.slow && !inCI() {
				t.Skip("runs with EDGE_CI=1; others are much alike")
			}
			lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Instead: c.instead}})
			ca := newTestCA(t)
			cfg := dueConfig(t, lab, ca)
			c.on.Store(c.status != 0)
			lab.CA.SetDown(c.status == 0)
			m := start(t, cfg, func(o *Options) { o.Interval = 50 * time.Millisecond })
			m.until(t, "a.example.test", StepLoaded)
			probe(t, m.Manager, trust(lab, ca), "a.example.test")
			first := m.until(t, "a.example.test", StepFailed)
			asked := c.refusals.Load()
			second := m.until(t, "a.example.test", StepFailed)
			if c.after != "" && second.Time.Sub(first.Time) < 2*time.Second {
				t.Errorf("asked again after %s: %s", second.Time.Sub(first.Time), first.Detail)
			}
			t.Logf("%d requests in an attempt, %d in the next: %s", asked, c.refusals.Load()-asked, first.Detail)
			c.on.Store(false)
			lab.CA.SetDown(false)
			m.until(t, "a.example.test", StepLoaded)
			if n := lab.CA.Orders(); n > 2 {
				t.Errorf("%d orders, want at most two", n)
			}
			if left := lab.DNS.TXTNames(); len(left) > 0 {
				t.Errorf("records of %v were left behind", left)
			}
		})
	}
}

func TestDNSProviderThatRefusesForAWhileCostsNoOrder(t *testing.T) {
	t.Parallel()
	for name, ops := range map[string][]string{
		"everything": {"list zones", "list records", "create record", "delete record"}, "writes": {"create record"}, "deletes": {"delete record"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "everything" && !inCI() {
				t.Skip("runs with EDGE_CI=1: the requests are repeated for 20 seconds")
			}
			lab := acmelab.New(t, acmelab.Options{})
			fake := acmelab.NewCloudflare(t, acmelab.CloudflareOptions{DNS: lab.DNS})
			ca := newTestCA(t)
			cfg := dueConfig(t, lab, ca)
			token := t.TempDir() + "/token"
			writeFile(t, token, acmelab.CloudflareToken)
			cfg.Providers["lab"] = &config.Provider{Name: "lab", Cloudflare: &config.Cloudflare{Token: config.Secret{Ref: "file:" + token}}}
			var on atomic.Bool
			on.Store(true)
			fake.SetFail(func(op string) (status, code int, message string) {
				if on.Load() && slices.Contains(ops, op) {
					return http.StatusTooManyRequests, 971, "Please wait and consider throttling your request speed"
				}
				return 0, 0, ""
			})
			m := start(t, cfg, func(o *Options) { o.Interval, o.DNSClient = 50*time.Millisecond, fake.HTTPClient() })
			m.until(t, "a.example.test", StepLoaded)
			probe(t, m.Manager, trust(lab, ca), "a.example.test")
			if name == "deletes" { // what cannot be removed holds up nothing
				m.until(t, "a.example.test", StepLoaded)
			} else if e := m.until(t, "a.example.test", StepFailed); !strings.Contains(e.Detail, "throttling") {
				t.Errorf("detail %q", e.Detail)
			}
			calls := fake.Requests()
			on.Store(false)
			if name == "deletes" { // this one looks again after a minute, another one at once
				start(t, cfg, func(o *Options) { o.DNSClient = fake.HTTPClient() })
			} else {
				m.until(t, "a.example.test", StepLoaded)
			}
			t.Logf("calls while refused: %v", calls)
			if n := lab.CA.Orders(); n != 1 {
				t.Errorf("%d orders, want 1", n)
			}
			wait(t, func() bool { return len(lab.DNS.TXTNames()) == 0 })
		})
	}
}

// What warns of an end that is near must not hold up the renewal that averts it.
func TestWarningThatIsSlowToStoreHoldsUpNoRenewal(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := stock(t, lab, ca, "stuck.example.test", "other.example.test")
	first := ready(t, cfg, nil)
	for _, name := range []string{"stuck.example.test", "other.example.test"} {
		due := ca.certificate(t, name, config.P256, time.Now().Add(-80*time.Hour), time.Now().Add(20*time.Hour), name)
		rewrite(t, first.Manager, name, func(o *vault.Certificate) { o.Chain, o.PrivateKey = due.object.Chain, due.object.PrivateKey })
	}
	first.close()
	hold := make(chan struct{})
	lab.S3.SetFail(func(r *http.Request) int {
		if strings.Contains(r.URL.Path, "/locks/certificatestuck.") {
			<-hold
		}
		return 0
	})
	m := ready(t, cfg, func(o *Options) { o.Interval = 50 * time.Millisecond })
	if err := m.Load(t.Context()); err != nil { // it knows of both ends at its first look
		t.Fatal(err)
	}
	m.run(t)
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release) // before the manager stops
	begin := time.Now()
	m.until(t, "other.example.test", StepStored)
	if d := time.Since(begin); d > storageTimeout/2 { // after which the warning gives up
		t.Errorf("the renewal came after %s", d)
	}
	release()
	m.until(t, "stuck.example.test", StepStored)
	if n := lab.CA.Orders(); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
}
