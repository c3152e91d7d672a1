package admin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/admin"
	"edge/config"
	"edge/tlsmgr"
)

const hookSecret = "T0PSECRETPATH"

// A hook is a server that operators would be told by.
type hook struct {
	*httptest.Server
	got chan map[string]string

	mu     sync.Mutex
	answer http.HandlerFunc // nil is 200
	calls  int
}

func newHook(t *testing.T) *hook {
	t.Helper()
	h := &hook{got: make(chan map[string]string, 1000)}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Server.Close)
	return h
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	h.calls++
	answer := h.answer
	h.mu.Unlock()
	m := map[string]string{}
	if err := json.Unmarshal(body, &m); err != nil {
		m["error"] = fmt.Sprintf("%s %s: %q: %v", r.Method, r.URL.Path, body, err)
	}
	m["request"] = r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type")
	if answer != nil {
		answer(w, r)
	}
	h.got <- m
}

func (h *hook) setAnswer(f http.HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer, h.calls = f, 0
}

func (h *hook) called() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls
}

// next is the next call, which must come.
func (h *hook) next(t *testing.T) map[string]string {
	t.Helper()
	select {
	case m := <-h.got:
		return m
	case <-time.After(20 * time.Second):
		t.Fatal("no call came")
		return nil
	}
}

func (h *hook) url() string { return h.URL + "/services/" + hookSecret + "?token=" + hookSecret }

// newWebhook makes a Webhook that posts to url, without running it.
func newWebhook(t *testing.T, log *journal, url string, served func(string) bool) *admin.Webhook {
	t.Helper()
	w := admin.NewWebhook(admin.WebhookOptions{Version: "1.2.3", Logger: log.logger(), Served: served})
	w.Hasten(time.Millisecond, 500*time.Millisecond)
	aim(t, w, url)
	return w
}

// aim puts another URL in force; "" is none.
func aim(t *testing.T, w *admin.Webhook, url string) {
	t.Helper()
	cfg := &config.Config{}
	if url != "" {
		t.Setenv("EDGE_TEST_HOOK", url)
		cfg.Webhook = config.Secret{Ref: "env:EDGE_TEST_HOOK"}
	}
	commit, err := w.Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	commit()
}

// run runs w until the test or stop ends it, and checks that the log keeps the
// secret.
func run(t *testing.T, w *admin.Webhook, log *journal) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if strings.Contains(log.String(), hookSecret) {
			t.Errorf("the log shows the URL:\n%s", log.String())
		}
	})
	t.Cleanup(stop)
	return stop
}

func expiring(id string) tlsmgr.Event {
	return tlsmgr.Event{Time: time.Now(), Certificate: id, Step: tlsmgr.StepExpiring, Detail: "25% of its lifetime is left", Notify: true}
}

func TestACallSaysWhatIsWrong(t *testing.T) {
	var log journal
	h := newHook(t)
	w := newWebhook(t, &log, h.url(), nil)
	run(t, w, &log)
	e := expiring("a.test")
	e.Detail = "the CA says: <!channel> & more"
	w.Event(e)
	m := h.next(t)
	host := m["host"]
	for key, want := range map[string]string{
		"request": "POST /services/" + hookSecret + " application/json",
		"time":    e.Time.UTC().Format(time.RFC3339Nano), "certificate": "a.test", "step": "expiring", "detail": e.Detail, "version": "1.2.3",
		"text": "edge on " + host + ": certificate a.test: expiring: the CA says: &lt;!channel&gt; &amp; more",
	} {
		if m[key] != want {
			t.Errorf("%s: %q, want %q", key, m[key], want)
		}
	}
}

func TestWhichEventsAreWorthACall(t *testing.T) {
	var log journal
	h := newHook(t)
	w := newWebhook(t, &log, h.url(), func(id string) bool { return id == "served" })
	now := time.Now()
	tell := func(at time.Duration, id string, step tlsmgr.Step, notify bool) {
		w.Event(tlsmgr.Event{Time: now.Add(at), Certificate: id, Step: step, Notify: notify})
	}
	for _, step := range []tlsmgr.Step{tlsmgr.StepPlanned, tlsmgr.StepOrder, tlsmgr.StepStored, tlsmgr.StepLoaded, tlsmgr.StepWaiting, tlsmgr.StepRevoked} {
		tell(0, "progress", step, false)
	}
	for _, step := range []tlsmgr.Step{tlsmgr.StepExpiring, tlsmgr.StepCritical, tlsmgr.StepExpired} {
		tell(0, "another replica tells", step, false)
		tell(0, "level", step, true)
	}
	tell(0, "a", tlsmgr.StepQuarantined, false)
	tell(time.Minute, "a", tlsmgr.StepQuarantined, false) // told already
	tell(time.Minute, "a", tlsmgr.StepReplace, false)     // something else
	tell(time.Minute, "b", tlsmgr.StepQuarantined, false) // another one
	tell(time.Hour, "a", tlsmgr.StepQuarantined, false)   // again
	tell(time.Hour, "a", tlsmgr.StepLoaded, false)
	tell(time.Hour+time.Minute, "a", tlsmgr.StepQuarantined, false) // of a new certificate

	tell(0, "never came", tlsmgr.StepFailed, false)
	tell(30*time.Minute, "never came", tlsmgr.StepFailed, false)
	tell(time.Hour, "never came", tlsmgr.StepFailed, false)
	tell(9*time.Hour, "never came", tlsmgr.StepFailed, false) // told already
	tell(0, "served", tlsmgr.StepFailed, false)
	tell(2*time.Hour, "served", tlsmgr.StepFailed, false) // expiring says so in time
	tell(0, "came", tlsmgr.StepFailed, false)
	tell(time.Minute, "came", tlsmgr.StepLoaded, false)
	tell(2*time.Hour, "came", tlsmgr.StepFailed, false) // for the first time
	stop := run(t, w, &log)
	want := []string{
		"level expiring", "level critical", "level expired", "a quarantined", "a replace", "b quarantined", "a quarantined", "a quarantined", "never came failed",
	}
	var got []string
	for range want {
		m := h.next(t)
		got = append(got, m["certificate"]+" "+m["step"])
	}
	eventually(t, "all delivered", func() bool { return strings.Count(log.String(), "webhook: done") >= len(want) }) // a stop would repeat what is under way
	stop()
	for len(h.got) > 0 {
		m := h.next(t)
		got = append(got, m["certificate"]+" "+m["step"])
	}
	if !slices.Equal(got, want) {
		t.Errorf("calls\n%q, want\n%q", got, want)
	}
}

func TestAServerThatFailsIsAskedAgain(t *testing.T) {
	var log journal
	h := newHook(t)
	var n atomic.Int32
	h.setAnswer(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) < 4 {
			w.WriteHeader([]int{0, 500, 429, 503}[n.Load()])
		}
	})
	w := newWebhook(t, &log, h.url(), nil)
	run(t, w, &log)
	w.Event(expiring("a.test"))
	for range 4 {
		h.next(t)
	}
	eventually(t, "delivered", func() bool { return strings.Contains(log.String(), "webhook: done") })
}

func TestTriesAreBoundedAndTheNextCallGoesOn(t *testing.T) {
	var log journal
	h := newHook(t)
	w := newWebhook(t, &log, h.url(), nil)
	run(t, w, &log)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		calls  int
		reason string
	}{
		"fails for ever":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, 5, "answered HTTP 502 (after 5 tries)"},
		"was revoked":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, 1, "answered HTTP 404 (is the URL still valid?)"},
		"hangs":               {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 5, "no answer in time (after 5 tries)"},
		"cuts the connection": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 5, "the connection ended before the answer (after 5 tries)"},
	} {
		h.setAnswer(c.answer)
		w.Event(expiring(name))
		eventually(t, name, func() bool { return strings.Contains(log.String(), c.reason) })
		if n := h.called(); n != c.calls {
			t.Errorf("%s: %d calls, want %d", name, n, c.calls)
		}
	}
	h.setAnswer(nil)
	w.Event(expiring("after all"))
	eventually(t, "delivered", func() bool { return strings.Contains(log.String(), `msg="webhook: done" certificate="after all"`) })
}

func TestRedirectsLeadNowhereElse(t *testing.T) {
	var log journal
	other := newHook(t)
	h := newHook(t)
	w := newWebhook(t, &log, h.url(), nil)
	run(t, w, &log)
	redirect := func(to string, code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/moved" {
				http.Redirect(w, r, to, code)
			}
		}
	}
	for name, c := range map[string]struct {
		to    string
		code  int
		calls int
	}{
		"another host":          {other.URL + "/" + hookSecret, 307, 1},
		"another host for good": {other.URL, 308, 1},
		"a GET":                 {"/moved", 302, 1},
		"another GET":           {"/moved", 303, 1},
		"nowhere":               {"http://%zz/" + hookSecret, 307, 5}, // no answer that says so
	} {
		before := strings.Count(log.String(), "webhook: not delivered")
		h.setAnswer(redirect(c.to, c.code))
		w.Event(expiring(name))
		eventually(t, name, func() bool { return strings.Count(log.String(), "webhook: not delivered") > before })
		if n := h.called(); n != c.calls {
			t.Errorf("%s: %d calls, want %d", name, n, c.calls)
		}
	}
	if n := other.called(); n != 0 {
		t.Errorf("another host was called %d times", n)
	}
	for len(h.got) > 0 {
		<-h.got
	}
	h.setAnswer(redirect("/moved", 308)) // the same host, the same method
	w.Event(expiring("moved"))
	if h.next(t); h.next(t)["certificate"] != "moved" {
		t.Error("the body got lost on the way")
	}
	h.setAnswer(redirect("/round", 307))
	w.Event(expiring("round and round"))
	eventually(t, "given up", func() bool { return strings.Contains(log.String(), `certificate="round and round"`) })
	if n := h.called(); n > 5 {
		t.Errorf("%d redirects followed", n)
	}
}

func TestACertificateThatIsNotTrustedIsRefused(t *testing.T) {
	var log journal
	called := false
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	defer server.Close()
	w := newWebhook(t, &log, server.URL+"/"+hookSecret, nil)
	stop := run(t, w, &log)
	w.Event(expiring("a.test"))
	eventually(t, "given up", func() bool { return strings.Contains(log.String(), "its certificate is not trusted: x509: ") })
	stop()
	server.Close()
	if called {
		t.Error("the message went to a server that nobody vouches for")
	}
}

// A dead server must not hold the certificate manager up.
func TestWhatIsTooMuchIsDroppedAndSaid(t *testing.T) {
	var log journal
	h := newHook(t)
	release := make(chan struct{})
	h.setAnswer(func(http.ResponseWriter, *http.Request) { <-release })
	w := newWebhook(t, &log, h.url(), nil)
	w.Hasten(time.Millisecond, time.Minute)
	stop := run(t, w, &log)
	w.Event(expiring("first"))
	eventually(t, "the first is under way", func() bool { return h.called() == 1 })
	start := time.Now()
	for n := range 100 {
		w.Event(expiring(fmt.Sprintf("%03d", n)))
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("events waited: %v", d)
	}
	if got := strings.Count(log.String(), "too many calls wait"); got != 36 || w.Waiting() != 64 {
		t.Errorf("%d dropped, %d wait; want 36 and 64", got, w.Waiting())
	}
	h.setAnswer(nil)
	close(release)
	for range 65 {
		h.next(t)
	}
	stop()
}

func TestTheURLFollowsTheConfiguration(t *testing.T) {
	var log journal
	first, second := newHook(t), newHook(t)
	w := newWebhook(t, &log, "", nil)
	run(t, w, &log)
	w.Event(expiring("nobody to tell"))
	w.Event(tlsmgr.Event{Time: time.Now(), Certificate: "a.test", Step: tlsmgr.StepQuarantined})
	aim(t, w, first.url())
	w.Event(tlsmgr.Event{Time: time.Now(), Certificate: "a.test", Step: tlsmgr.StepQuarantined}) // nobody has been told
	if m := first.next(t); m["step"] != "quarantined" {
		t.Errorf("call %v", m)
	}
	aim(t, w, second.url())
	w.Event(expiring("b.test"))
	if m := second.next(t); m["certificate"] != "b.test" {
		t.Errorf("call %v", m)
	}
	t.Setenv("EDGE_TEST_HOOK", "http://hooks.example.test/"+hookSecret)
	if _, err := w.Prepare(&config.Config{Webhook: config.Secret{Ref: "env:EDGE_TEST_HOOK"}}); err == nil || strings.Contains(err.Error(), hookSecret) {
		t.Errorf("a plaintext URL: %v", err)
	}
	w.Event(expiring("c.test")) // the last good URL
	if m := second.next(t); m["certificate"] != "c.test" {
		t.Errorf("call %v", m)
	}
	if n := first.called(); n != 1 {
		t.Errorf("the first server was called %d times, want once", n)
	}
}

// Who stops says what is still to be said, but not for long.
func TestTheStopTriesOnceMore(t *testing.T) {
	var log journal
	h := newHook(t)
	h.setAnswer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	w := newWebhook(t, &log, h.url(), nil)
	w.Hasten(time.Hour, time.Minute) // it waits for its second try
	stop := run(t, w, &log)
	w.Event(expiring("a.test"))
	h.next(t)
	w.Event(expiring("b.test"))
	h.setAnswer(nil)
	stop()
	got := []string{h.next(t)["certificate"], h.next(t)["certificate"]}
	if !slices.Equal(got, []string{"a.test", "b.test"}) {
		t.Errorf("last words about %q", got)
	}
	if strings.Contains(log.String(), "not delivered") {
		t.Errorf("log:\n%s", log.String())
	}
}
