package tlsmgr

import (
	"bytes"
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

// stock puts certificates for names into the bucket of a lab, each under its
// name, and returns a configuration that wants them.
func stock(t *testing.T, l *acmelab.Lab, ca *testCA, names ...string) *config.Config {
	t.Helper()
	cfg := labConfig(t, l, names...)
	cfg.Bundles.Packing = config.PerName
	for _, name := range names {
		c := ca.certificate(t, name, config.P256, time.Now().Add(-time.Hour), time.Now().Add(1000*time.Hour), name)
		c.object.Directory = l.CA.Directory
		data, err := json.Marshal(c.object)
		if err != nil {
			t.Fatal(err)
		}
		put(t, cfg, vault.Certificates.Key(name), data)
	}
	return cfg
}

// put writes an object that is not there yet.
func put(t *testing.T, cfg *config.Config, key string, value []byte) {
	t.Helper()
	s, err := store.Open(t.Context(), cfg.Storage.URL, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := s.Swap(t.Context(), key, value, ""); err != nil {
		t.Fatal(err)
	}
}

// With an index for each, ten thousand stored certificates took two minutes.
func TestWhatIsStoredIsServedByOneNewIndex(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	names := make([]string, 60)
	for n := range names {
		names[n] = fmt.Sprintf("n%d.example.test", n)
	}
	cfg := stock(t, lab, newTestCA(t), names...)
	var m *Manager
	var told, served atomic.Int32
	m = New(Options{Logger: (&logs{}).logger(), Events: func(e Event) {
		if e.Step == StepLoaded && told.Add(1) == 1 {
			served.Store(int32(len(m.index.Load().exact)))
		}
	}})
	defer m.close()
	commit(t, m, cfg)
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if int(told.Load()) != len(names) || int(served.Load()) != len(names) {
		t.Errorf("%d told, %d served when the first was told; want %d", told.Load(), served.Load(), len(names))
	}
}

func TestTwoLooksAtOnceReadEachObjectOnce(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := stock(t, lab, newTestCA(t), "a.example.test")
	lab.S3.SetDelay(20 * time.Millisecond)
	m := New(Options{Logger: (&logs{}).logger()})
	defer m.close()
	commit(t, m, cfg)
	var looks sync.WaitGroup
	for range 4 {
		looks.Go(func() {
			if err := m.Load(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	looks.Wait()
	if n := lab.S3.Count(http.MethodGet, "/certs/t/"+vault.Certificates.Dir()+"/a.example.test.json"); n != 1 {
		t.Errorf("read %d times, want once", n)
	}
}

func TestObjectThatCannotBeReadHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := stock(t, lab, ca, "a.example.test", "b.example.test")
	key := vault.Certificates.Dir() + "/foreign.json"
	put(t, cfg, key, []byte("{}"))
	cfg.Routes = append(cfg.Routes, &config.Route{Name: "c", Hosts: []string{"c.example.test"}, Path: "/", Listeners: []string{"https"}})
	var mended atomic.Bool
	lab.S3.SetFail(func(r *http.Request) int { // as when an object went to an archive class
		if !mended.Load() && r.Method == http.MethodGet && (strings.HasSuffix(r.URL.Path, "/a.example.test.json") || strings.HasSuffix(r.URL.Path, key)) {
			return http.StatusForbidden
		}
		return 0
	})
	m := start(t, cfg, func(o *Options) { o.Interval = 50 * time.Millisecond })
	m.until(t, "b.example.test", StepLoaded)
	m.until(t, "c.example.test", StepStored) // ordered, though another is in trouble
	e := m.until(t, "a.example.test", StepFailed)
	if !strings.Contains(e.Detail, "a.example.test.json") || strings.Contains(m.logs.String(), "storage is unavailable") {
		t.Errorf("detail %q, log:\n%s", e.Detail, m.logs)
	}
	mended.Store(true)
	m.until(t, "a.example.test", StepLoaded)
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1: what cannot be read is not replaced", n)
	}
	if n := strings.Count(m.logs.String(), "certificate=foreign"); n > 2 { // unreadable, then unusable
		t.Errorf("%d warnings about one object", n)
	}
}

func TestStorageWithoutReadsIsUnavailable(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	names := make([]string, maxUnread+1)
	for n := range names {
		names[n] = fmt.Sprintf("n%d.example.test", n)
	}
	cfg := stock(t, lab, newTestCA(t), names...)
	lab.S3.SetFail(func(r *http.Request) int {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ".json") {
			return http.StatusForbidden
		}
		return 0
	})
	m := New(Options{Logger: (&logs{}).logger()})
	defer m.close()
	commit(t, m, cfg)
	if err := m.Load(t.Context()); err == nil {
		t.Error("Load succeeded without reading anything")
	}
}

func TestWhatNobodyWantsIsForgottenWithItsObject(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	m := New(Options{Logger: (&logs{}).logger()})
	cert := func(left time.Duration) *certificate {
		return ca.certificate(t, "x", config.P256, now.Add(-2*time.Hour), now.Add(left), "x.test")
	}
	m.loaded = map[string]*stored{
		"serves": {version: "1", cert: cert(time.Hour)}, "expired": {version: "1", cert: cert(-time.Hour)}, "torn": {version: "1", err: bytes.ErrTooLarge},
	}
	before := map[string]*stored{"serves": m.loaded["serves"], "expired": m.loaded["expired"], "torn": m.loaded["torn"]}
	m.forget(before)
	if len(m.loaded) != 1 || m.loaded["serves"] == nil || m.loaded["serves"].version != "" {
		t.Errorf("left %v, want only what may still serve", m.loaded)
	}
}
