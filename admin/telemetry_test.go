package admin_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"edge/admin"
	"edge/config"
)

// journal is a log that tests can read.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// newTelemetry makes an endpoint for a status that says little, closed with the
// test.
func newTelemetry(tb testing.TB, o admin.TelemetryOptions) *admin.Telemetry {
	tb.Helper()
	if o.Status == nil {
		o.Status = func() admin.Status { return admin.Status{Version: "1.2.3"} }
	}
	if o.Ready == nil {
		o.Ready = func() admin.Readiness { return admin.Readiness{Ready: true} }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	tel := admin.NewTelemetry(o)
	tb.Cleanup(tel.Close)
	return tel
}

// move commits a configuration with another telemetry.address.
func move(tb testing.TB, tel *admin.Telemetry, address string) {
	tb.Helper()
	change, err := tel.Prepare(tb.Context(), &config.Config{Telemetry: config.Telemetry{Address: address}})
	if err != nil {
		tb.Fatal(err)
	}
	change.Commit()
}

// ask sends a request with a Host field to address.
func ask(t *testing.T, method, address, path, host string) (code int, body string, header http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

// get asks address by its own name.
func get(t *testing.T, address, path string) (code int, body string) {
	t.Helper()
	code, body, _ = ask(t, http.MethodGet, address, path, address)
	return code, body
}

func TestNothingListensWithoutAnAddress(t *testing.T) {
	tel := newTelemetry(t, admin.TelemetryOptions{})
	move(t, tel, "")
	if got := tel.Address(); got != "" {
		t.Errorf("listens on %s", got)
	}
}

func TestReadinessSaysWhatIsMissing(t *testing.T) {
	var state admin.Readiness
	tel := newTelemetry(t, admin.TelemetryOptions{Ready: func() admin.Readiness { return state }})
	move(t, tel, "127.0.0.1:0")
	for name, c := range map[string]struct {
		state admin.Readiness
		code  int
		lines []string
	}{
		"ready":    {admin.Readiness{Ready: true}, 200, []string{"ready"}},
		"starting": {admin.Readiness{Reasons: []string{"starting", "certificate a.test: ordering"}}, 503, []string{"not ready", "starting", "certificate a.test: ordering"}},
	} {
		state = c.state
		code, body := get(t, tel.Address(), "/readyz")
		if want := strings.Join(c.lines, "\n") + "\n"; code != c.code || body != want {
			t.Errorf("%s: %d %q, want %d %q", name, code, body, c.code, want)
		}
		if code, body := get(t, tel.Address(), "/livez"); code != 200 || body != "ok\n" {
			t.Errorf("%s: livez %d %q", name, code, body)
		}
	}
	state = admin.Readiness{Reasons: make([]string, 500)}
	if _, body := get(t, tel.Address(), "/readyz"); strings.Count(body, "\n") != 102 || !strings.HasSuffix(body, "and 400 more\n") {
		t.Errorf("500 reasons are %d lines", strings.Count(body, "\n"))
	}
}

func TestTheStatusIsThatOfTheControlSocket(t *testing.T) {
	want := admin.Status{Version: "1.2.3", Ready: true, Config: admin.ConfigStatus{Path: "/etc/edge/routes.yaml"}}
	tel := newTelemetry(t, admin.TelemetryOptions{Status: func() admin.Status { return want }})
	move(t, tel, "127.0.0.1:0")
	_, body := get(t, tel.Address(), "/v1/status")
	var got admin.Status
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Version != want.Version || got.Config.Path != want.Config.Path {
		t.Errorf("status %s, %v", body, err)
	}
}

// A page whose name was rebound to this address still sends its own name.
func TestOnlyNamesThatCannotBeReboundAreAnswered(t *testing.T) {
	tel := newTelemetry(t, admin.TelemetryOptions{})
	move(t, tel, "localhost:0")
	_, port, err := net.SplitHostPort(tel.Address())
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{
		"127.0.0.1":            200,
		"127.0.0.1:" + port:    200,
		"10.1.2.3:9901":        200, // another address of this machine, or a forwarded port
		"[::1]:" + port:        200,
		"localhost":            200,
		"LocalHost.:" + port:   200,
		"evil.test":            421,
		"evil.test:" + port:    421,
		"localhost.evil.test":  421,
		"127.0.0.1.evil.test":  421,
		"0x7f.1":               421,
		"metrics.example.test": 421,
	} {
		for _, path := range []string{"/livez", "/readyz", "/metrics", "/v1/status", "/", "/nowhere"} {
			code, body, _ := ask(t, http.MethodGet, tel.Address(), path, host)
			if want == 200 && (path == "/" || path == "/nowhere") {
				if code != 404 {
					t.Errorf("%s by %s: %d, want 404", path, host, code)
				}
				continue
			}
			if code != want && code != 400 || want == 200 && code != 200 {
				t.Errorf("%s by %s: %d %.40q, want %d", path, host, code, body, want)
			}
		}
	}
}

func TestTheConfiguredNameIsAnswered(t *testing.T) {
	handler := func(host string) http.Handler {
		return admin.TelemetryHandler(newTelemetry(t, admin.TelemetryOptions{}), host)
	}
	for _, c := range []struct {
		configured, asked string
		code              int
	}{
		{"metrics.example.test", "metrics.example.test:9901", 200},
		{"metrics.example.test", "Metrics.Example.Test", 200},
		{"metrics.example.test", "other.example.test", 421},
		{"", "metrics.example.test", 421},
		{"", "", 200}, // HTTP/1.0, as load balancers check
		{"", ":9901", 421},
		{"", "evil.test@127.0.0.1", 421},
		{"", "127.0.0.1/evil.test", 421},
		{"", "[fe80::1%eth0]:9901", 200},
		{"", ".", 421},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/livez", http.NoBody)
		r.Host = c.asked
		handler(c.configured).ServeHTTP(w, r)
		if w.Code != c.code {
			t.Errorf("%q asked as %q: %d, want %d", c.configured, c.asked, w.Code, c.code)
		}
	}
}

func TestNothingCanBeChanged(t *testing.T) {
	tel := newTelemetry(t, admin.TelemetryOptions{})
	move(t, tel, "127.0.0.1:0")
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace, "PURGE"} {
		code, _, header := ask(t, method, tel.Address(), "/v1/status", tel.Address())
		if code != http.StatusMethodNotAllowed || header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d, allow %q", method, code, header.Get("Allow"))
		}
	}
	for _, path := range []string{"/v1/reload", "/debug/pprof/", "/debug/pprof/heap", "/"} {
		if code, _ := get(t, tel.Address(), path); code != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, code)
		}
	}
	code, body, header := ask(t, http.MethodHead, tel.Address(), "/metrics", tel.Address())
	if code != 200 || body != "" {
		t.Errorf("HEAD: %d %q", code, body)
	}
	for field, want := range map[string]string{
		"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
		"Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": "", "Server": "",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
	} {
		if got := header.Get(field); got != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
}

func TestAnEndlessHeadIsCut(t *testing.T) {
	tel := newTelemetry(t, admin.TelemetryOptions{})
	move(t, tel, "127.0.0.1:0")
	conn, err := net.Dial("tcp", tel.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = fmt.Fprintf(conn, "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10)) // it may be cut
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil && resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("HTTP %d, want 431 or the end", resp.StatusCode)
	}
}

// Replies that look at every certificate are few at a time; health never waits.
func TestCostlyRepliesAreBounded(t *testing.T) {
	enter, release := make(chan struct{}, 8), make(chan struct{})
	tel := newTelemetry(t, admin.TelemetryOptions{Status: func() admin.Status {
		enter <- struct{}{}
		<-release
		return admin.Status{}
	}})
	move(t, tel, "127.0.0.1:0")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if code, _ := get(t, tel.Address(), "/v1/status"); code != 200 {
				t.Errorf("HTTP %d within the bound", code)
			}
		})
		<-enter
	}
	for _, path := range []string{"/v1/status", "/metrics"} {
		if code, _ := get(t, tel.Address(), path); code != http.StatusServiceUnavailable {
			t.Errorf("%s beyond the bound: %d, want 503", path, code)
		}
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if code, _ := get(t, tel.Address(), path); code != 200 {
			t.Errorf("%s beyond the bound: %d, want 200", path, code)
		}
	}
	close(release)
	all.Wait()
}

func TestTheAddressFollowsTheConfiguration(t *testing.T) {
	var log journal
	tel := newTelemetry(t, admin.TelemetryOptions{Logger: log.logger()})
	move(t, tel, "127.0.0.1:0")
	first := tel.Address()
	conn, err := net.Dial("tcp", first) // accepted before the reload, asks after it
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	move(t, tel, "127.0.0.1:0")
	if got := tel.Address(); got != first {
		t.Errorf("the same address was bound anew: %s, was %s", got, first)
	}
	_, _ = io.WriteString(conn, "GET /livez HTTP/1.0\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a connection over a reload: %v, %v", resp, err)
	}
	move(t, tel, "localhost:0")
	second := tel.Address()
	if code, _ := get(t, second, "/livez"); code != 200 {
		t.Errorf("the new address: %d", code)
	}
	eventually(t, "the old address is closed", func() bool {
		c, err := net.Dial("tcp", first)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	move(t, tel, "")
	if got := tel.Address(); got != "" {
		t.Errorf("still listens on %s", got)
	}
	if n := strings.Count(log.String(), "msg=telemetry address="); n != 2 {
		t.Errorf("%d lines about an address, want one for each:\n%s", n, log.String())
	}
}

func TestARefusedAddressChangesNothing(t *testing.T) {
	tel := newTelemetry(t, admin.TelemetryOptions{})
	move(t, tel, "127.0.0.1:0")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for address, want := range map[string]string{taken.Addr().String(): "ss -ltnp", "192.0.2.1:9901": "no interface of this machine"} {
		_, err := tel.Prepare(t.Context(), &config.Config{Telemetry: config.Telemetry{Address: address}})
		if err == nil {
			t.Fatalf("%s was bound", address)
		}
		for _, w := range []string{"telemetry.address " + address, want} {
			if !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q lacks %q", err, w)
			}
		}
	}
	if code, _ := get(t, tel.Address(), "/livez"); code != 200 {
		t.Errorf("the address in force: %d", code)
	}
}

func TestAnAbortedChangeReleasesItsAddress(t *testing.T) {
	tel := newTelemetry(t, admin.TelemetryOptions{})
	move(t, tel, "127.0.0.1:0")
	before := tel.Address()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	for range 2 {
		change, err := tel.Prepare(t.Context(), &config.Config{Telemetry: config.Telemetry{Address: address}})
		if err != nil {
			t.Fatal(err)
		}
		change.Abort()
	}
	if got := tel.Address(); got != before {
		t.Errorf("listens on %s, want %s", got, before)
	}
}

// A reload may come while edge stops.
func TestAChangeAfterCloseListensNowhere(t *testing.T) {
	tel := newTelemetry(t, admin.TelemetryOptions{})
	change, err := tel.Prepare(context.Background(), &config.Config{Telemetry: config.Telemetry{Address: "127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	tel.Close()
	change.Commit()
	if got := tel.Address(); got != "" {
		t.Errorf("listens on %s", got)
	}
}

// eventually polls until ok, for ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
