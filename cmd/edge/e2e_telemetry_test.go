package main_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"edge/internal/acmelab"
	"edge/internal/edgetest"
	"edge/internal/modelserver"
)

// amend replaces part of a configuration on disk.
func (w *world) amend(path, old, next string) {
	w.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), old) {
		w.t.Fatalf("%s lacks %q: %v", path, old, err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), old, next, 1)), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// telemetry is the address that edge answers monitoring at.
func (w *world) telemetry(p *edgetest.Process) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	s, err := p.Status(ctx)
	if err != nil || s.Telemetry == "" {
		w.t.Fatalf("no telemetry: %v", err)
	}
	return s.Telemetry
}

// peek reads a page of telemetry; code 0 is no answer.
func peek(addr, path string) (code int, body string) {
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("http://" + addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

// scrape parses the metrics as Prometheus does.
func (w *world) scrape(addr string) map[string]*dto.MetricFamily {
	w.t.Helper()
	code, body := peek(addr, "/metrics")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if code != http.StatusOK || err != nil {
		w.t.Fatalf("metrics: HTTP %d, %v", code, err)
	}
	if promtool, err := exec.LookPath("promtool"); err == nil {
		cmd := exec.CommandContext(w.t.Context(), promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(body)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			w.t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	}
	return families
}

// value is the one sample of a metric that has all labels ("name=value").
func (w *world) value(families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	w.t.Helper()
	for _, m := range families[name].GetMetric() {
		found := 0
		for _, l := range m.GetLabel() {
			for _, want := range labels {
				if l.GetName()+"="+l.GetValue() == want {
					found++
				}
			}
		}
		if found == len(labels) {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	w.t.Errorf("no sample %s%v of %v", name, labels, families[name].GetMetric())
	return -1
}

// Monitoring sees edge start, reload, refuse a reload, move and stop.
func TestTelemetryThroughTheLifeOfEdge(t *testing.T) {
	t.Parallel()
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w := newWorld(t, acmelab.Options{CA: acmelab.CAOptions{Gate: func(path string) {
		if strings.Contains(path, "finalize") {
			once.Do(func() { close(reached) })
			<-release
		}
	}}}, modelserver.Options{})
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	path := w.config("a", settings{extra: `telemetry: {address: "127.0.0.1:0"}`})
	w.amend(path, "drain: {timeout: 5s}", "drain: {delay: 2s, timeout: 5s}")
	p := w.launch(path)
	wait(t, reached, 60*time.Second, "no order was finalized")

	addr := w.telemetry(p)
	if code, body := peek(addr, "/livez"); code != http.StatusOK {
		t.Errorf("livez at the start: %d %s", code, body)
	}
	if code, body := peek(addr, "/readyz"); code != http.StatusServiceUnavailable || body != "not ready\nstarting\ncertificate example.test: ordering\n" {
		t.Errorf("readyz at the start: %d %q", code, body)
	}
	if v := w.value(w.scrape(addr), "edge_cert_state", "certificate=example.test", "state=ordering"); v != 1 {
		t.Errorf("state ordering: %v", v)
	}
	open()
	w.ready(p)
	if code, body := peek(addr, "/readyz"); code != http.StatusOK || body != "ready\n" {
		t.Errorf("readyz: %d %q", code, body)
	}
	w.tellsOfTheCertificate(addr)

	w.reload(p, "")
	if got := w.telemetry(p); got != addr {
		t.Errorf("a reload moved telemetry from %s to %s", addr, got)
	}
	w.refusesATakenAddress(p, path, addr)
	w.amend(path, "telemetry: {address: \"127.0.0.1:0\"}", `telemetry: {address: "localhost:0"}`)
	w.reload(p, "")
	moved := w.telemetry(p)
	if code, _ := peek(moved, "/readyz"); code != http.StatusOK || moved == addr {
		t.Errorf("readyz at %s: %d", moved, code)
	}
	eventually(t, 10*time.Second, "the old address is open", func() bool { code, _ := peek(addr, "/livez"); return code == 0 })

	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Second, "readyz did not say stopping", func() bool {
		code, body := peek(moved, "/readyz")
		return code == http.StatusServiceUnavailable && body == "not ready\nstopping\n"
	})
	if code, body := peek(moved, "/livez"); code != http.StatusOK {
		t.Errorf("livez in the drain: %d %s", code, body)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if code, _ := peek(moved, "/livez"); code != 0 {
		t.Errorf("livez after the stop: %d", code)
	}
}

func (w *world) tellsOfTheCertificate(addr string) {
	w.t.Helper()
	families := w.scrape(addr)
	for name, least := range map[string]float64{
		"edge_ready": 1, "edge_storage_up": 1, "edge_replicas": 1, "edge_config_last_reload_successful": 1,
		"edge_config_last_reload_timestamp_seconds": float64(time.Now().Add(-time.Hour).Unix()), "edge_build_info": 1,
		"process_start_time_seconds": 1, "go_goroutines": 1,
	} {
		if v := w.value(families, name); v < least {
			w.t.Errorf("%s: %v, want at least %v", name, v, least)
		}
	}
	if v := w.value(families, "edge_cert_renewals_total", "result=ok"); v != 1 {
		w.t.Errorf("renewals: %v, want 1", v)
	}
	if v := w.value(families, "edge_cert_lifetime_left_ratio", "certificate=example.test"); v <= 0.9 || v > 1 {
		w.t.Errorf("lifetime left: %v", v)
	}
	if v := w.value(families, "edge_cert_state", "certificate=example.test", "state=valid"); v != 1 {
		w.t.Errorf("state valid: %v", v)
	}
	_, body := peek(addr, "/v1/status")
	var status struct {
		Certificates struct{ Certificates []struct{ ID string } }
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil || len(status.Certificates.Certificates) != 1 {
		w.t.Errorf("status %s: %v", body, err)
	}
}

// reload reloads; problem is part of why it is refused, "" when it is not.
func (w *world) reload(p *edgetest.Process, problem string) {
	w.t.Helper()
	r, err := p.Reload(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if got := strings.Join(r.Problems, "\n"); (got == "") != (problem == "") || !strings.Contains(got, problem) {
		w.t.Fatalf("problems %q, want %q", got, problem)
	}
}

func (w *world) refusesATakenAddress(p *edgetest.Process, path, addr string) {
	w.t.Helper()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer taken.Close()
	block := func(address string) string { return fmt.Sprintf("telemetry: {address: %q}", address) }
	w.amend(path, block("127.0.0.1:0"), block(taken.Addr().String()))
	w.reload(p, "telemetry.address "+taken.Addr().String()+": ")
	if v := w.value(w.scrape(addr), "edge_config_last_reload_successful"); v != 0 {
		w.t.Errorf("a refused reload counts as successful: %v", v)
	}
	w.amend(path, block(taken.Addr().String()), block("127.0.0.1:0"))
	w.reload(p, "")
	if v := w.value(w.scrape(addr), "edge_config_last_reload_successful"); v != 1 {
		w.t.Errorf("a good reload does not count: %v", v)
	}
}

// pair writes a certificate with that much of its lifetime left.
func (w *world) pair(name string, left float64) (cert, key string) {
	w.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	const life = 10 * time.Hour
	end := time.Now().Add(time.Duration(left * float64(life)))
	template := &x509.Certificate{SerialNumber: big.NewInt(77), DNSNames: []string{name}, NotBefore: end.Add(-life), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		w.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.file("corp.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		w.file("corp.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

func TestTheWebhookIsCalledOnceForACertificateThatExpires(t *testing.T) {
	t.Parallel()
	calls := make(chan map[string]string, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		m := map[string]string{}
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil || r.URL.Path != "/hooks/T0PSECRET" {
			m["error"] = fmt.Sprintf("%s: %v", r.URL.Path, err)
		}
		calls <- m
	}))
	defer hook.Close()
	next := func() map[string]string {
		select {
		case m := <-calls:
			return m
		case <-time.After(60 * time.Second):
			t.Fatal("no call came")
			return nil
		}
	}
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	cert, key := w.pair("corp.test", 0.2)
	path := w.config("a", settings{
		extra:  fmt.Sprintf("certificates: {corp: {file: {certificate: %q, private_key: %q}}}", cert, key),
		routes: fmt.Sprintf("  - {host: corp.test, endpoints: [%q]}\n", w.model.URL),
	})
	w.amend(path, "observability: {log: {format: json}}", `observability: {log: {format: json}, webhook: "env:EDGE_TEST_HOOK"}`)
	p, _ := w.start(path, "EDGE_TEST_HOOK="+hook.URL+"/hooks/T0PSECRET")
	m := next()
	for key, want := range map[string]string{"error": "", "certificate": "corp", "step": "expiring"} {
		if m[key] != want {
			t.Errorf("%s: %q, want %q", key, m[key], want)
		}
	}
	if !strings.HasPrefix(m["text"], "edge on ") || !strings.Contains(m["text"], "certificate corp: expiring: 20% of its lifetime is left") {
		t.Errorf("text %q", m["text"])
	}
	w.reload(p, "") // looks at all certificates again, and says nothing new
	w.pair("corp.test", 0.05)
	w.reload(p, "")
	if m = next(); m["step"] != "critical" {
		t.Errorf("after the first call came %v, want critical of another certificate", m)
	}
	if err := p.Close(); err != nil {
		t.Errorf("stop: %v", err)
	}
	for len(calls) > 0 { // a stop sends again what it does not know to have arrived
		if again := <-calls; !maps.Equal(again, m) {
			t.Errorf("one call too many: %v", again)
		}
	}
	for _, l := range p.Lines() {
		if strings.Contains(fmt.Sprint(l), "T0PSECRET") {
			t.Errorf("the log shows the URL: %v", l)
		}
	}
}
