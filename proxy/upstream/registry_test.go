package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/config"
)

// counting starts a server that counts its connections and knows the open ones.
func counting(t *testing.T, h http.HandlerFunc) (s *httptest.Server, opened, live *atomic.Int32) {
	t.Helper()
	opened, live = new(atomic.Int32), new(atomic.Int32)
	s = httptest.NewUnstartedServer(h)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			opened.Add(1)
			live.Add(1)
		case http.StateClosed, http.StateHijacked:
			live.Add(-1)
		case http.StateActive, http.StateIdle:
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s, opened, live
}

func pools(c ...*config.Pool) map[string]*config.Pool {
	m := map[string]*config.Pool{}
	for _, p := range c {
		m[p.Name] = p
	}
	return m
}

func prepare(t *testing.T, r *Registry, c ...*config.Pool) *Set {
	t.Helper()
	s, err := r.Prepare(pools(c...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func registry(t *testing.T) *Registry {
	t.Helper()
	r := NewRegistry(Options{Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(r.Close)
	return r
}

// eventually waits for a fact that another goroutine brings about, less long than
// an idle connection lives by itself.
func eventually(t *testing.T, what string, fact func() bool) {
	t.Helper()
	await(t, idleConn/2, what, fact)
}

// await waits for a fact, for at most d.
func await(t *testing.T, d time.Duration, what string, fact func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); !fact(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
	}
}

func TestReloadKeepsWarmConnections(t *testing.T) {
	s, opened, live := counting(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	r := registry(t)
	old := prepare(t, r, poolOf(s.URL))
	old.Commit()
	text(t, do(t, old.Pool("test"), get("/")))
	for range 3 {
		c := poolOf(s.URL, "http://127.0.0.1:1")
		c.Balance = config.LeastRequests
		next := prepare(t, r, c)
		next.Commit()
		old.Close()
		text(t, do(t, next.Pool("test"), get("/")))
		old = next
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections for requests across 3 reloads, want 1", n)
	}
	if n := old.Pool("test").endpoints[0].requests.Load(); n != 4 {
		t.Errorf("%d requests counted, want 4", n)
	}
	old.Close()
	eventually(t, "idle connection closed with the last Set", func() bool { return live.Load() == 0 })
}

func TestPrepareAndCloseChangeNothingInForce(t *testing.T) {
	s, _, live := counting(t, func(http.ResponseWriter, *http.Request) {})
	r := registry(t)
	set := prepare(t, r, poolOf(s.URL))
	set.Commit()
	defer set.Close()
	text(t, do(t, set.Pool("test"), get("/")))
	before := r.Status()
	other := poolOf(s.URL)
	other.Name = "other"
	prepare(t, r, poolOf(s.URL), other).Close() // an aborted reload
	if after := r.Status(); len(after) != 1 || after[0].Name != before[0].Name {
		t.Errorf("status after an aborted reload %v, want %v", after, before)
	}
	if n := live.Load(); n != 1 {
		t.Errorf("%d connections after an aborted reload, want 1", n)
	}
	if len(r.backends) != 1 || len(r.counters) != 1 {
		t.Errorf("%d backends, %d counters held, want 1, 1", len(r.backends), len(r.counters))
	}
}

func TestRunningReplySurvivesTheCloseOfItsSet(t *testing.T) {
	next := make(chan struct{})
	s, _, live := counting(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "begin")
		w.(http.Flusher).Flush()
		<-next
		io.WriteString(w, " end")
	})
	r := registry(t)
	set := prepare(t, r, poolOf(s.URL))
	set.Commit()
	resp := do(t, set.Pool("test"), get("/"))
	set.Close()
	set.Close()
	close(next)
	if got := text(t, resp); got != "begin end" {
		t.Errorf("reply %q, want begin end", got)
	}
	eventually(t, "connection of a released backend closed at its end", func() bool { return live.Load() == 0 })
	if got := text(t, do(t, set.Pool("test"), get("/"))); got != "begin end" {
		t.Errorf("late request on a closed Set: %q, want begin end", got)
	}
}

func TestPoolsShareConnectionsButNotCounters(t *testing.T) {
	s, opened, _ := counting(t, func(http.ResponseWriter, *http.Request) {})
	r := registry(t)
	a, b := poolOf(s.URL), poolOf(s.URL)
	a.Name, b.Name = "a", "b"
	set := prepare(t, r, a, b)
	set.Commit()
	defer set.Close()
	text(t, do(t, set.Pool("a"), get("/")))
	text(t, do(t, set.Pool("b"), get("/")))
	held := do(t, set.Pool("b"), get("/"))
	var got []string
	for _, p := range r.Status() {
		e := p.Endpoints[0]
		got = append(got, p.Name, e.URL, strings.Repeat("r", int(e.Requests))+strings.Repeat("i", e.Inflight))
		if !e.Healthy || e.LastError != "" || e.Since.IsZero() {
			t.Errorf("status of %s: %+v, want healthy, no error, a time", p.Name, e)
		}
	}
	held.Close()
	if want := []string{"a", s.URL, "r", "b", s.URL, "rri"}; !slices.Equal(got, want) {
		t.Errorf("status %q, want %q", got, want)
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestStatusTellsTheLastError(t *testing.T) {
	r := registry(t)
	if got := r.Status(); got != nil {
		t.Errorf("status of an empty Registry %v, want none", got)
	}
	set := prepare(t, r, poolOf(refused(t)))
	set.Commit()
	defer set.Close()
	set.Pool("test").Do(t.Context(), get("/"))
	if got := r.Status()[0].Endpoints[0].LastError; !strings.Contains(got, "connection refused") {
		t.Errorf("last error %q, want connection refused", got)
	}
}

func TestPrepareNamesAllProblemsAndKeepsNothing(t *testing.T) {
	r := registry(t)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("not PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, b, c := poolOf("ftp://x:1", "http://:80"), poolOf("https://x:1"), poolOf("https://x:1")
	a.Name, b.Name, b.CA, c.Name, c.CA = "a", "b", empty, "c", filepath.Join(t.TempDir(), "absent.pem")
	_, err := r.Prepare(pools(a, b, c))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`pool a: endpoint ftp://x:1: scheme "ftp" (write http or https)`,
		"endpoint http://:80: no host (write http://host:port)",
		"pool b: ca: " + empty + " holds no certificate (it must be PEM)",
		"pool c: ca: open ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	if !errors.Is(err, os.ErrNotExist) || len(r.backends) != 0 {
		t.Errorf("%v holds %d backends, want os.ErrNotExist and 0", err, len(r.backends))
	}
}

func TestClosedRegistryPreparesNothing(t *testing.T) {
	before := goleak.IgnoreCurrent()
	s, _, live := counting(t, func(http.ResponseWriter, *http.Request) {})
	r := NewRegistry(Options{})
	c := poolOf(s.URL)
	c.Health = &config.Health{Path: "/", Interval: time.Millisecond, Timeout: time.Millisecond, Rise: 1, Fall: 1e9}
	set := prepare(t, r, c)
	set.Commit()
	set.Commit()
	text(t, do(t, set.Pool("test"), get("/")))
	r.Close()
	r.Close()
	eventually(t, "connections closed", func() bool { return live.Load() == 0 })
	set.Close()
	set.Commit()
	if _, err := r.Prepare(nil); err == nil {
		t.Error("Prepare after Close: no error")
	}
	s.Close()
	goleak.VerifyNone(t, before)
}

func TestConcurrentReloadsUnderLoad(t *testing.T) {
	s, _, _ := counting(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	r := registry(t)
	var current atomic.Pointer[Set]
	first := prepare(t, r, poolOf(s.URL))
	first.Commit()
	current.Store(first)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := current.Load().Pool("test").Do(context.Background(), post("x"))
				if err != nil {
					t.Errorf("request during a reload: %v", err)
					return
				}
				if b, err := io.ReadAll(resp); string(b) != "x" {
					t.Errorf("echo %q, %v; want x", b, err)
				}
				resp.Close()
			}
		})
	}
	for range 50 {
		next := prepare(t, r, poolOf(s.URL))
		next.Commit()
		r.Status()
		current.Swap(next).Close()
	}
	close(stop)
	wg.Wait()
	current.Load().Close()
	if len(r.backends)+len(r.counters) != 0 {
		t.Errorf("%d backends, %d counters left, want none", len(r.backends), len(r.counters))
	}
}

// secure starts an HTTPS server and returns its CA file.
func secure(t *testing.T, h http.HandlerFunc) (s *httptest.Server, ca string) {
	t.Helper()
	s, c := serveAll(t, "https", config.PoolH1, h)
	return s, c.CA
}

func TestHTTPSIsRefusedUnlessNameAndRootsMatch(t *testing.T) {
	s, ca := secure(t, func(http.ResponseWriter, *http.Request) { t.Error("request arrived") })
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	for name, tc := range map[string]struct{ url, ca string }{
		"system roots": {s.URL, ""},
		"other name":   {"https://localhost:" + port, ca},
	} {
		c := poolOf(tc.url)
		c.CA = tc.ca
		_, err := open(t, c).Do(t.Context(), post("x"))
		_, isDial := errors.AsType[*DialError](err)
		_, isTLS := errors.AsType[*tls.CertificateVerificationError](err)
		if !isDial || !isTLS {
			t.Errorf("%s: %v, want a DialError around a certificate error", name, err)
		}
	}
}

func TestChangedCAFileMakesANewBackend(t *testing.T) {
	s, ca := secure(t, func(http.ResponseWriter, *http.Request) {})
	r := registry(t)
	c := poolOf(s.URL)
	c.CA = ca
	old := prepare(t, r, c)
	defer old.Close()
	other, otherCA := secure(t, nil)
	other.Close()
	b, _ := os.ReadFile(otherCA)
	a, _ := os.ReadFile(ca)
	if err := os.WriteFile(ca, append(a, b...), 0o600); err != nil {
		t.Fatal(err)
	}
	next := prepare(t, r, c)
	defer next.Close()
	if old.Pool("test").endpoints[0].backend == next.Pool("test").endpoints[0].backend {
		// httptest servers share one certificate, so the content differs by length only.
		t.Error("backend is shared across different CA files")
	}
}

func TestTLSHandshakeIsBoundedByTheConnectTimeout(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, never shakes hands
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := poolOf("https://" + l.Addr().String())
	c.Connect = 50 * time.Millisecond
	_, err = open(t, c).Do(t.Context(), get("/"))
	if dial, ok := errors.AsType[*DialError](err); !ok || !dial.Timeout() {
		t.Errorf("error %v, want a DialError that is a timeout", err)
	}
}
