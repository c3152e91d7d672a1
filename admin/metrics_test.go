package admin_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"edge/admin"
	"edge/tlsmgr"
	"edge/tlsmgr/acme"
)

// scrape parses what /metrics says, with Prometheus' own parser.
func scrape(tb testing.TB, tel *admin.Telemetry) map[string]*dto.MetricFamily {
	tb.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody)
	r.Host = "127.0.0.1"
	admin.TelemetryHandler(tel, "").ServeHTTP(w, r)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(w.Body.String()))
	if err != nil || w.Code != http.StatusOK {
		tb.Fatalf("HTTP %d, %v:\n%.2000s", w.Code, err, w.Body)
	}
	return families
}

// values are all values of a family, by labels as text.
func values(families map[string]*dto.MetricFamily, name string) map[string]float64 {
	out := map[string]float64{}
	for _, m := range families[name].GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, l.GetName()+"="+l.GetValue())
		}
		out[strings.Join(labels, ",")] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	return out
}

// certificates is a status that has one of each.
func certificates(now time.Time) admin.Status {
	return admin.Status{
		Version: "1.2.3", Ready: true, Config: admin.ConfigStatus{Loaded: time.Unix(1_700_000_000, 0), Refused: "routes.yaml:1:1: bad"},
		Certificates: tlsmgr.Status{
			Storage: "s3://b/p", StorageUp: true, LeasesLost: 2, ACMEErrors: map[acme.Kind]int64{acme.CAA: 3, acme.Other: 0},
			Replicas: []tlsmgr.ReplicaStatus{{ID: "b"}, {ID: "c"}},
			Certificates: []tlsmgr.CertificateStatus{
				{ID: "a.test", Source: "inferred", Serial: "1", State: tlsmgr.StateRenewing, NotBefore: now.Add(-75 * time.Hour), NotAfter: now.Add(25 * time.Hour), LeftOut: []string{"x.a.test", "y.a.test"}},
				{ID: "file", Source: "file", Serial: "2", State: tlsmgr.StateExpired, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)},
				{ID: `odd"\name`, Source: "written", State: tlsmgr.StateMissing},
			},
		},
	}
}

func TestMetricsSayWhatTheStatusSays(t *testing.T) {
	now := time.Now()
	tel := newTelemetry(t, admin.TelemetryOptions{Status: func() admin.Status { return certificates(now) }, Version: "1.2.3"})
	for _, step := range []tlsmgr.Step{tlsmgr.StepStored, tlsmgr.StepStored, tlsmgr.StepFailed, tlsmgr.StepLoaded, tlsmgr.StepQuarantined} {
		tel.Event(tlsmgr.Event{Certificate: "a.test", Step: step})
	}
	families := scrape(t, tel)
	for name, want := range map[string]map[string]float64{
		"edge_ready":                                {"": 1},
		"edge_storage_up":                           {"": 1},
		"edge_replicas":                             {"": 3},
		"edge_lock_lost_total":                      {"": 2},
		"edge_acme_errors_total":                    {"kind=caa": 3, "kind=other": 0},
		"edge_cert_renewals_total":                  {"result=ok": 2, "result=failed": 1},
		"edge_config_last_reload_successful":        {"": 0},
		"edge_config_last_reload_timestamp_seconds": {"": 1_700_000_000},
		"edge_cert_state":                           {"certificate=a.test,state=renewing": 1, "certificate=file,state=expired": 1, `certificate=odd"\name,state=missing`: 1},
		"edge_cert_quarantined_names":               {"certificate=a.test": 2, `certificate=odd"\name`: 0},
		"edge_cert_lifetime_left_ratio":             {"certificate=a.test": 0.25, "certificate=file": 0},
		"edge_cert_not_after_timestamp_seconds":     {"certificate=a.test": seconds(now.Add(25 * time.Hour)), "certificate=file": seconds(now.Add(-time.Hour))},
	} {
		got := values(families, name)
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		for labels, v := range want {
			if math.Abs(got[labels]-v) > 0.01 {
				t.Errorf("%s{%s}: %v, want %v", name, labels, got[labels], v)
			}
		}
	}
	for labels := range values(families, "edge_build_info") {
		if !strings.Contains(labels, "version=1.2.3") || !strings.Contains(labels, "go=go1.") {
			t.Errorf("edge_build_info{%s}", labels)
		}
	}
	for _, name := range []string{"go_goroutines", "process_start_time_seconds", "process_open_fds"} {
		if families[name] == nil {
			t.Errorf("no %s", name)
		}
	}
}

// A file certificate may have the name that edge gives one of its own.
func TestTwoCertificatesOfOneNameAreOneSeries(t *testing.T) {
	s := admin.Status{Certificates: tlsmgr.Status{Certificates: []tlsmgr.CertificateStatus{
		{ID: "a.test", Source: "file", State: tlsmgr.StateValid}, {ID: "a.test", Source: "inferred", State: tlsmgr.StateMissing},
	}}}
	families := scrape(t, newTelemetry(t, admin.TelemetryOptions{Status: func() admin.Status { return s }}))
	if n := len(families["edge_cert_state"].GetMetric()); n != 1 {
		t.Errorf("%d series, want 1", n)
	}
}

func TestWithoutAStorageThereIsNoMetricOfIt(t *testing.T) {
	families := scrape(t, newTelemetry(t, admin.TelemetryOptions{}))
	for _, name := range []string{"edge_storage_up", "edge_replicas", "edge_lock_lost_total", "edge_acme_errors_total"} {
		if families[name] != nil {
			t.Errorf("%s without a storage", name)
		}
	}
}

// The configuration bounds the series, whatever happens to certificates.
func TestEventsMakeNoSeries(t *testing.T) {
	tel := newTelemetry(t, admin.TelemetryOptions{})
	count := func() (n int) {
		for name, f := range scrape(t, tel) {
			if strings.HasPrefix(name, "edge_") {
				n += len(f.GetMetric())
			}
		}
		return n
	}
	before := count()
	for n := range 1000 {
		for _, step := range []tlsmgr.Step{tlsmgr.StepStored, tlsmgr.StepFailed, tlsmgr.Step(fmt.Sprint(n))} {
			tel.Event(tlsmgr.Event{Certificate: fmt.Sprintf("%d.test", n), Step: step, Detail: fmt.Sprint(n)})
		}
	}
	if after := count(); after != before {
		t.Errorf("%d series after events, %d before", after, before)
	}
}

// promtool knows the conventions of names, types and help texts.
func TestPromtoolHasNothingToSay(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("EDGE_CI") == "1" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
	now := time.Now()
	tel := newTelemetry(t, admin.TelemetryOptions{Status: func() admin.Status { return certificates(now) }})
	move(t, tel, "127.0.0.1:0")
	_, body := get(t, tel.Address(), "/metrics")
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(body)
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// many is a status of 10,000 certificates.
func many() admin.Status {
	now := time.Now()
	s := admin.Status{Certificates: tlsmgr.Status{Storage: "s3://b/p"}}
	for n := range 10_000 {
		s.Certificates.Certificates = append(s.Certificates.Certificates, tlsmgr.CertificateStatus{
			ID: fmt.Sprintf("%05d.example.test", n), Source: "inferred", Serial: "1", State: tlsmgr.StateValid,
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour),
		})
	}
	return s
}

func TestTenThousandCertificatesAreFourSeriesEach(t *testing.T) {
	s := many()
	families := scrape(t, newTelemetry(t, admin.TelemetryOptions{Status: func() admin.Status { return s }}))
	n := 0
	for name := range families {
		if strings.HasPrefix(name, "edge_cert_") && name != "edge_cert_renewals_total" {
			n += len(families[name].GetMetric())
		}
	}
	if n != 40_000 {
		t.Errorf("%d series, want 40000", n)
	}
}

// A whole scrape of 10,000 certificates, as Prometheus asks for it, less the
// status itself, which the certificate manager measures.
func BenchmarkScrapeOf10000(b *testing.B) {
	s := many()
	tel := newTelemetry(b, admin.TelemetryOptions{Status: func() admin.Status { return s }})
	h := admin.TelemetryHandler(tel, "")
	for _, encoding := range []string{"identity", "gzip"} {
		b.Run(encoding, func(b *testing.B) {
			r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/metrics", http.NoBody)
			r.Host = "127.0.0.1"
			r.Header.Set("Accept-Encoding", encoding)
			b.ReportAllocs()
			for b.Loop() {
				w := &discard{header: http.Header{}}
				h.ServeHTTP(w, r)
				if w.n == 0 {
					b.Fatal("nothing was written")
				}
				b.ReportMetric(float64(w.n), "B/scrape")
			}
		})
	}
}

// discard is a client that counts.
type discard struct {
	header http.Header
	n      int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(p []byte) (int, error) {
	d.n += len(p)
	return io.Discard.Write(p)
}

func seconds(t time.Time) float64 { return float64(t.Unix()) + float64(t.Nanosecond())/1e9 }

// What the rules for Prometheus ask for must be what edge says.
func TestTheAlertsAskForMetricsThatExist(t *testing.T) {
	rules, err := os.ReadFile("../deploy/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	families := scrape(t, newTelemetry(t, admin.TelemetryOptions{Status: func() admin.Status { return certificates(now) }}))
	found := 0
	for _, word := range strings.FieldsFunc(string(rules), func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z')
	}) {
		if !strings.HasPrefix(word, "edge_") {
			continue
		}
		found++
		if families[word] == nil {
			t.Errorf("deploy/alerts.yaml asks for %s, which does not exist", word)
		}
	}
	if found < 8 {
		t.Errorf("found %d metrics in deploy/alerts.yaml", found)
	}
	states := []tlsmgr.State{tlsmgr.StateValid, tlsmgr.StateExpired, tlsmgr.StateMissing, tlsmgr.StateWaiting, tlsmgr.StateOrdering, tlsmgr.StateRenewing, tlsmgr.StateFailed}
	for _, part := range strings.Split(string(rules), `state=~"`)[1:] {
		text, _, _ := strings.Cut(part, `"`)
		for word := range strings.SplitSeq(text, "|") {
			if !slices.Contains(states, tlsmgr.State(word)) {
				t.Errorf("deploy/alerts.yaml asks for state %s, which does not exist", word)
			}
		}
	}
}
