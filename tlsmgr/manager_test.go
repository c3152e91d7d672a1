package tlsmgr

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

func TestTwoReplicasPlaceOneOrderAndServeOneCertificate(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "*.example.test", "example.test", "a.b.example.test")
	a := start(t, cfg, func(o *Options) { o.Owner = "a" })
	b := start(t, cfg, func(o *Options) { o.Owner = "b" })
	a.until(t, "example.test", StepLoaded)
	b.until(t, "example.test", StepLoaded)
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	if n := lab.CA.Requests(acmelab.PathNewAccount); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	if sa, sb := a.one(t), b.one(t); sa.Serial != sb.Serial {
		t.Errorf("serials %s and %s", sa.Serial, sb.Serial)
	}
}

func TestFiveReplicasPlaceOneOrderForEachBundle(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{Zones: []string{"one.test", "two.test", "three.test"}}})
	cfg := labConfig(t, lab, "*.one.test", "a.two.test", "b.two.test", "three.test")
	replicas := make([]*replica, 5)
	for n := range replicas {
		replicas[n] = start(t, cfg, func(o *Options) { o.Owner = string(rune('a' + n)) })
	}
	for _, r := range replicas {
		for range 3 {
			r.until(t, "", StepLoaded)
		}
	}
	if n := lab.CA.Orders(); n != 3 {
		t.Errorf("%d orders, want 3: %v", n, lab.CA.Ordered())
	}
}

func TestRestartLoadsAndOrdersNothing(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	first := start(t, cfg, nil)
	first.until(t, "example.test", StepLoaded)
	first.stop()
	puts := lab.S3.Count(http.MethodPut, "/")

	m := New(Options{Logger: (&logs{}).logger()})
	commit(t, m, cfg)
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if _, err := shake(t, m, &tls.Config{ServerName: "a.example.test", RootCAs: lab.CA.Roots}); err != nil {
		t.Errorf("after Load: %v", err)
	}
	second := start(t, cfg, nil)
	second.until(t, "example.test", StepLoaded)
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	second.stop()
	if n := lab.S3.Count(http.MethodPut, "/"); n != puts {
		t.Errorf("a process with nothing to do wrote %d objects", n-puts)
	}
}

func TestDeadReplicaIsTakenOver(t *testing.T) {
	t.Parallel()
	var arrived atomic.Bool
	hold := make(chan struct{})
	reached := make(chan struct{}, 100)
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Gate: func(path string) {
		if path == acmelab.PathNewOrder && !arrived.Swap(true) {
			reached <- struct{}{}
			<-hold // the first replica never gets its answer
		}
	}}})
	cfg := labConfig(t, lab, "a.example.test")
	first := start(t, cfg, func(o *Options) { o.Owner, o.LeaseTTL = "first", time.Second })
	<-reached
	_ = first.vaultInUse().Store().Close() // its heartbeats end, as if it had been killed
	second := start(t, cfg, func(o *Options) { o.Owner, o.LeaseTTL = "second", time.Second })
	second.until(t, "example.test", StepWaiting)
	close(hold)
	second.until(t, "example.test", StepLoaded)
	if s := second.one(t); s.State != StateValid {
		t.Errorf("status %+v", s)
	}
}

func TestShortLivedCertificateIsRenewedUnderHandshakes(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Validity: 10 * time.Second}})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	serials := map[string]bool{}
	var shakes int
	for deadline := time.Now().Add(patience); len(serials) < 3; shakes++ {
		state, err := shake(t, m.Manager, &tls.Config{ServerName: "a.example.test", RootCAs: lab.CA.Roots})
		if err != nil {
			t.Fatalf("handshake %d failed: %v", shakes, err)
		}
		serials[state.PeerCertificates[0].SerialNumber.String()] = true
		if time.Now().After(deadline) {
			t.Fatalf("%d certificates after %d handshakes, want 3", len(serials), shakes)
		}
	}
	t.Logf("%d handshakes, %d certificates", shakes, len(serials))
}

func TestRenewalIsAFractionOfTheLifetime(t *testing.T) {
	ca := newTestCA(t)
	day := 24 * time.Hour
	from := time.Now().Truncate(time.Second)
	for life, left := range map[time.Duration]float64{
		90 * day: 1.0 / 3, 45 * day: 1.0 / 3, 10 * day: 1.0 / 3, 6 * day: 0.5, 20 * time.Second: 0.5,
	} {
		var earliest, latest time.Time
		for range 20 {
			at := renewAt(ca.certificate(t, "a", config.P256, from, from.Add(life), "a.test"))
			if earliest.IsZero() || at.Before(earliest) {
				earliest = at
			}
			if at.After(latest) {
				latest = at
			}
		}
		due := from.Add(life).Add(-time.Duration(left * float64(life)))
		if latest.After(due.Add(time.Millisecond)) || earliest.Before(due.Add(-life/20)) || earliest.Equal(latest) {
			t.Errorf("life %s: renewals from %s to %s after the start, want up to a twentieth before %s, spread",
				life, earliest.Sub(from), latest.Sub(from), due.Sub(from))
		}
	}
}

func TestCAThatComesBackIsAskedAgain(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	lab.CA.SetDown(true)
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepFailed)
	if s := m.one(t); !strings.Contains(s.Error, "cannot reach") || s.State != StateFailed {
		t.Errorf("status %+v", s)
	}
	lab.CA.SetDown(false)
	m.until(t, "example.test", StepLoaded)
	if s := m.one(t); s.Error != "" || s.Failures != 0 || s.State != StateValid {
		t.Errorf("status %+v, want no trace of the failure", s)
	}
}

func TestStorageThatFailsTakesNothingAway(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	m := start(t, cfg, func(o *Options) { o.Interval = 50 * time.Millisecond })
	m.until(t, "example.test", StepLoaded)
	lab.S3.SetFail(func(*http.Request) int { return http.StatusForbidden })
	wait(t, func() bool { return strings.Contains(m.logs.String(), "storage is unavailable") })
	before := lab.S3.Count("", "/")
	wait(t, func() bool { return lab.S3.Count("", "/") > before+3 }) // it goes on asking
	if _, err := shake(t, m.Manager, &tls.Config{ServerName: "a.example.test", RootCAs: lab.CA.Roots}); err != nil {
		t.Errorf("while the storage is down: %v", err)
	}
	if err := m.Load(t.Context()); err == nil {
		t.Error("Load succeeded without a storage")
	}
	lab.S3.SetFail(nil)
	wait(t, func() bool { return strings.Contains(m.logs.String(), "storage is available again") })
	if n := strings.Count(m.logs.String(), "storage is unavailable"); n != 1 {
		t.Errorf("%d warnings about one outage", n)
	}
}

// wait polls until ok.
func wait(tb testing.TB, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			tb.Fatal("did not happen in time")
		}
	}
}

// rewrite edits the stored object of certificate id, again when the manager
// writes it too: it notes what the CA says about the renewal.
func rewrite(t *testing.T, m *Manager, id string, edit func(*vault.Certificate)) store.Version {
	t.Helper()
	s, key := m.vaultInUse().Store(), vault.Certificates.Key(id)
	for {
		data, version, err := s.LoadVersion(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		var o vault.Certificate
		if err := json.Unmarshal(data, &o); err != nil {
			t.Fatal(err)
		}
		edit(&o)
		if data, err = json.Marshal(&o); err != nil {
			t.Fatal(err)
		}
		version, err = s.Swap(t.Context(), key, data, version)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return version
	}
}

func TestNewerFormatIsNeverOverwritten(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	version := rewrite(t, m.Manager, "example.test", func(o *vault.Certificate) { o.Format = vault.Format + 1 })
	wait(t, func() bool { return strings.Contains(m.one(t).Error, "written by a newer edge") })
	if _, err := shake(t, m.Manager, &tls.Config{ServerName: "a.example.test", RootCAs: lab.CA.Roots}); err != nil {
		t.Errorf("what was loaded does not serve any more: %v", err)
	}
	if _, got, _ := m.vaultInUse().Store().LoadVersion(t.Context(), vault.Certificates.Key("example.test")); got != version {
		t.Error("the object was overwritten")
	}
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}

func TestUnusableObjectIsReplaced(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	rewrite(t, m.Manager, "example.test", func(o *vault.Certificate) { o.PrivateKey = "torn" })
	m.until(t, "example.test", StepLoaded)
	if n := lab.CA.Orders(); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
	if n := strings.Count(m.logs.String(), "stored certificate is not usable"); n != 1 {
		t.Errorf("%d warnings about one object", n)
	}
}

func TestDeletedObjectIsObtainedAgainWhileTheOldOneServes(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	old := m.one(t).Serial
	lab.CA.SetDown(true)
	if err := m.vaultInUse().Store().Delete(t.Context(), vault.Certificates.Key("example.test")); err != nil {
		t.Fatal(err)
	}
	m.until(t, "example.test", StepFailed)
	if s := m.one(t); s.Serial != old {
		t.Errorf("status %+v, want the old certificate", s)
	}
	lab.CA.SetDown(false)
	m.until(t, "example.test", StepLoaded)
}

func TestPausedHolderCannotOverwriteWhatCameAfterIt(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepLoaded)
	m.mu.Lock()
	mine, before := *m.loaded["example.test"].cert.object, m.loaded["example.test"].version
	m.mu.Unlock()
	theirs := rewrite(t, m.Manager, "example.test", func(o *vault.Certificate) { o.Owner = "heir" })
	mine.Owner = "sleeper"
	if err := m.commit(t.Context(), m.vaultInUse(), &mine, before); err != nil {
		t.Fatal(err)
	}
	data, version, err := m.vaultInUse().Store().LoadVersion(t.Context(), vault.Certificates.Key("example.test"))
	if err != nil || !bytes.Contains(data, []byte("heir")) {
		t.Errorf("the sleeper's certificate replaced its heir's %s by %s: %v", theirs, version, err)
	}
}

func TestReplicasThatDisagreeDoNotFightOverOneCertificate(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	a := start(t, labConfig(t, lab, "a.example.test"), func(o *Options) { o.Owner = "a" })
	a.until(t, "example.test", StepLoaded)
	// A replica whose plan is new gets what it wants; the other one yields.
	b := start(t, labConfig(t, lab, "b.example.test"), func(o *Options) { o.Owner = "b" })
	b.until(t, "example.test", StepStored)
	wait(t, func() bool {
		return strings.Contains(a.one(t).Error, "names differ: b replaced it, leaving it alone for 10m0s")
	})
	// A reload that changes nothing does not end that.
	commit(t, a.Manager, labConfig(t, lab, "a.example.test"))
	lists := lab.S3.Count(http.MethodGet, "/certs?list")
	wait(t, func() bool { return lab.S3.Count(http.MethodGet, "/certs?list") > lists+4 })
	if s := a.one(t); !strings.Contains(s.Error, "leaving it alone") || lab.CA.Orders() != 2 {
		t.Errorf("status %+v and %d orders after a reload, want 2", s, lab.CA.Orders())
	}
	// More names suit both.
	commit(t, a.Manager, labConfig(t, lab, "a.example.test", "b.example.test"))
	a.until(t, "example.test", StepStored)
	wait(t, func() bool {
		return a.one(t).State == StateValid && len(b.one(t).Names) == 2 && b.one(t).State == StateValid
	})
	// Fewer names wait for the renewal.
	commit(t, a.Manager, labConfig(t, lab, "a.example.test"))
	a.until(t, "example.test", StepPlanned)
	if s := a.one(t); s.State != StateValid {
		t.Errorf("status %+v after a host was removed, want valid", s)
	}
	if n := lab.CA.Orders(); n != 3 {
		t.Errorf("%d orders, want 3", n)
	}
}

func TestCertificateThatIsDueAtOnceCountsAsAFailure(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	m := New(Options{Logger: (&logs{}).logger()})
	st := &state{cfg: &config.Config{Issuers: map[string]*config.Issuer{"ca": {Name: "ca", Directory: "https://ca.test/dir"}}}}
	b := Bundle{ID: "b", Names: []string{"a.test"}, Issuer: "ca", KeyType: config.P256}
	for left, want := range map[time.Duration]bool{time.Hour: true, time.Minute: false} {
		c := ca.certificate(t, "b", config.P256, now.Add(-time.Minute*30), now.Add(left), "a.test")
		c.object.Directory = "https://ca.test/dir"
		m.keep(t.Context(), "b", &stored{version: store.Version(left.String()), cert: c})
		if err := m.enough(st, b, nil); (err == nil) != want {
			t.Errorf("%s of life left: %v, want enough %v", left, err, want)
		}
	}
}

func TestContestsGrowRarer(t *testing.T) {
	j, now := &job{settled: true}, time.Now()
	l := &stored{cert: &certificate{object: &vault.Certificate{Owner: "other"}}}
	for _, want := range []time.Duration{10 * time.Minute, 20 * time.Minute, 40 * time.Minute} {
		if warning := j.contest(needNames, l, now); !strings.Contains(warning, want.String()) || j.next.Sub(now) != want || j.settled {
			t.Errorf("%q, next after %s; want %s", warning, j.next.Sub(now), want)
		}
		j.rest()
		j.settled = true
	}
	j.contests = 1000
	if j.contest(needNames, l, now); j.next.Sub(now) > 24*time.Hour {
		t.Errorf("next after %s, want at most a day", j.next.Sub(now))
	}
}

func TestOldCertificateServesUntilItsSuccessorIsThere(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test", "b.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	lab.CA.SetDown(true)
	next := labConfig(t, lab)
	next.Storage = m.state.Load().cfg.Storage
	next.Certificates["wild"] = &config.Certificate{Names: []string{"*.example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	commit(t, m.Manager, next)
	m.until(t, "wild", StepFailed)
	if _, err := shake(t, m.Manager, &tls.Config{ServerName: "b.example.test", RootCAs: lab.CA.Roots}); err != nil {
		t.Errorf("before the wildcard is there: %v", err)
	}
	lab.CA.SetDown(false)
	m.until(t, "wild", StepLoaded)
	state, err := shake(t, m.Manager, &tls.Config{ServerName: "b.example.test", RootCAs: lab.CA.Roots})
	if err != nil || !slices.Equal(state.PeerCertificates[0].DNSNames, []string{"*.example.test"}) {
		t.Errorf("after the wildcard is there: %v", err)
	}
}

func TestAnotherKeyTypeOrIssuerIsOrderedAtOnce(t *testing.T) {
	t.Parallel()
	first, second := acmelab.New(t, acmelab.Options{}), acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, first, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)

	key := labConfig(t, first, "a.example.test")
	key.Bundles.KeyTypes = []config.KeyType{config.P384}
	commit(t, m.Manager, key)
	m.until(t, "example.test", StepLoaded)
	if m.mu.Lock(); m.loaded["example.test"].cert.object.KeyType != config.P384 {
		t.Error("the key type was not changed")
	}
	m.mu.Unlock()

	moved := labConfig(t, second, "a.example.test")
	moved.Storage = key.Storage
	commit(t, m.Manager, moved)
	m.until(t, "example.test", StepLoaded)
	if _, err := shake(t, m.Manager, &tls.Config{ServerName: "a.example.test", RootCAs: second.CA.Roots}); err != nil {
		t.Errorf("the certificate of the second CA: %v", err)
	}
	if a, b := first.CA.Orders(), second.CA.Orders(); a != 2 || b != 1 {
		t.Errorf("%d and %d orders, want 2 and 1", a, b)
	}
}

func TestClientWithoutServerNameIsServedAnObtainedDefault(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab)
	cfg.Certificates["main"] = &config.Certificate{Names: []string{"example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	cfg.Listeners["https"].DefaultCertificate = "main"
	m := start(t, cfg, nil)
	anonymous := &tls.Config{InsecureSkipVerify: true}
	m.until(t, "main", StepLoaded)
	if _, err := shake(t, m.Manager, anonymous); err != nil {
		t.Error(err)
	}
}

func TestCommitTriesAgainAtOnce(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	path := strings.TrimPrefix(cfg.Providers["lab"].RFC2136.Key.Ref, "file:")
	writeFile(t, path, "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmchd3I=")
	m := start(t, cfg, func(o *Options) { o.Backoff = func(int) time.Duration { return time.Hour } })
	m.until(t, "example.test", StepFailed)
	writeFile(t, path, lab.DNS.Key.Secret)
	commit(t, m.Manager, cfg)
	m.until(t, "example.test", StepLoaded)
}

func TestStopLeavesNoChallengeRecordAndNoLease(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{DNS: acmelab.DNSOptions{
		Lag: func(acmelab.Query, time.Duration) bool { return false }, // the wait never ends
	}})
	cfg := labConfig(t, lab, "a.example.test")
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepPresent)
	m.stop()
	if names := lab.DNS.TXTNames(); len(names) > 0 {
		t.Errorf("records of %v were left behind", names)
	}
	lab.DNS.SetLag(nil)
	begin := time.Now()
	second := start(t, cfg, func(o *Options) { o.LeaseTTL = time.Minute })
	second.until(t, "example.test", StepLoaded)
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("the lease was free after %s only", d)
	}
	if strings.Contains(m.logs.String(), "step=failed") {
		t.Errorf("stopping counts as a failure:\n%s", m.logs)
	}
}

func TestMissingFilesFailPrepareAndChangeNothing(t *testing.T) {
	m, ca := policyManager(t, nil)
	good := m.state.Load()
	bad := *good.cfg
	bad.Certificates = map[string]*config.Certificate{
		"file": good.cfg.Certificates["file"],
		"gone": {Name: "gone", File: &config.CertificateFile{Certificate: "/nonexistent/tls.crt", PrivateKey: config.Secret{Ref: "file:/nonexistent/tls.key"}}},
	}
	bad.Issuers = map[string]*config.Issuer{"x": {Name: "x", Directory: "https://ca.test/dir", CA: "/nonexistent/ca.pem"}}
	bad.Bundles.Issuers = []string{"x"}
	bad.Routes = append(slices.Clone(bad.Routes), &config.Route{Name: "r", Hosts: []string{"c.test"}, Listeners: []string{"https"}})
	_, err := m.Prepare(t.Context(), &bad)
	for _, want := range []string{
		"certificates.gone: open /nonexistent/tls.crt: no such file or directory (check the path, or remove the entry)",
		"issuers.x.acme.ca: open /nonexistent/ca.pem: no such file or directory",
		"storage URL",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Prepare: %v\nwant it to say %s", err, want)
		}
	}
	if m.state.Load() != good {
		t.Error("a failed Prepare changed the state")
	}
	if _, err := shake(t, m, client(ca, "old.a.test")); err != nil {
		t.Errorf("after a failed Prepare: %v", err)
	}
}

func TestChangeOfStorageWaitsForARestart(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	m := start(t, cfg, nil)
	next := *cfg
	next.Storage = config.Storage{URL: "file:///elsewhere", Pos: config.Pos{Line: 3, Column: 5}}
	change, err := m.Prepare(t.Context(), &next)
	if err != nil {
		t.Fatal(err)
	}
	w := change.Warnings()
	if len(w) != 1 || !strings.Contains(w[0].Error(), "routes.yaml:3:5: storage: storage changed") || !strings.Contains(w[0].Error(), "restart to apply") {
		t.Errorf("warnings %v", w)
	}
	m.until(t, "example.test", StepLoaded)
}

func TestStorageThatIgnoresConditionsIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	lab.S3.SetFail(func(r *http.Request) int {
		r.Header.Del("If-Match")
		r.Header.Del("If-None-Match")
		return 0
	})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	wait(t, func() bool { return strings.Contains(m.logs.String(), "storage does not keep its promises") })
	if n := lab.CA.Orders(); n != 0 {
		t.Errorf("%d orders with an unsafe storage", n)
	}
}
