package admin

import (
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"edge/tlsmgr"
)

// metrics are what Prometheus reads. Gauges are pulled from the status at each
// scrape; counters are what events and the manager counted. Every label is a
// name of the configuration or one of a fixed set of words, so the
// configuration bounds how many series there are: four for each certificate.
type metrics struct {
	status   func() Status
	log      *slog.Logger
	registry *prometheus.Registry
	renewals *prometheus.CounterVec
}

// What is pulled. The variables are only read.
var (
	descReady      = describe("edge_ready", "1 when edge takes requests.")
	descReloaded   = describe("edge_config_last_reload_successful", "1 when the last reload was taken, or none was asked for.")
	descReloadedAt = describe("edge_config_last_reload_timestamp_seconds", "When the configuration in force was read.")
	descStorage    = describe("edge_storage_up", "1 when the last look at the storage succeeded.")
	descReplicas   = describe("edge_replicas", "Live replicas that share the storage, this one included.")
	descLost       = describe("edge_lock_lost_total", "Leases that this process lost to another, or to a storage that did not answer.")
	descACME       = describe("edge_acme_errors_total", "Orders that a CA, or the way to it, failed.", "kind")
	descNotAfter   = describe("edge_cert_not_after_timestamp_seconds", "When the certificate that is served expires.", "certificate")
	descLeft       = describe("edge_cert_lifetime_left_ratio", "Part of the lifetime that is left of the certificate that is served, 1 to 0.", "certificate")
	descState      = describe("edge_cert_state", "1 for what the certificate is doing.", "certificate", "state")
	descQuarantine = describe("edge_cert_quarantined_names", "Names that are left out of the certificate for a while, because the CA refused them.", "certificate")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func newMetrics(o TelemetryOptions, log *slog.Logger) *metrics {
	m := &metrics{
		status: o.Status, log: log, registry: prometheus.NewRegistry(),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edge_cert_renewals_total", Help: "Attempts to obtain or renew a certificate that have ended.",
		}, []string{"result"}),
	}
	m.renewals.WithLabelValues("ok")
	m.renewals.WithLabelValues("failed")
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "edge_build_info", Help: "1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": o.Version, "go": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m.renewals, build, m)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelWarn),
	})
}

// event counts how attempts end.
func (m *metrics) event(e tlsmgr.Event) {
	switch e.Step { //nolint:exhaustive // the others end nothing
	case tlsmgr.StepStored:
		m.renewals.WithLabelValues("ok").Inc()
	case tlsmgr.StepFailed:
		m.renewals.WithLabelValues("failed").Inc()
	default:
	}
}

// Describe tells the registry what Collect may send.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descReady, descReloaded, descReloadedAt, descStorage, descReplicas, descLost, descACME,
		descNotAfter, descLeft, descState, descQuarantine,
	} {
		out <- d
	}
}

// Collect sends what the status says now.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	s := m.status()
	now := time.Now()
	out <- gauge(descReady, one(s.Ready))
	out <- gauge(descReloaded, one(s.Config.Refused == ""))
	if !s.Config.Loaded.IsZero() {
		out <- gauge(descReloadedAt, seconds(s.Config.Loaded))
	}
	c := &s.Certificates
	if c.Storage != "" {
		out <- gauge(descStorage, one(c.StorageUp))
		out <- gauge(descReplicas, float64(1+len(c.Replicas)))
		out <- counter(descLost, float64(c.LeasesLost))
		for _, kind := range slices.Sorted(maps.Keys(c.ACMEErrors)) {
			out <- counter(descACME, float64(c.ACMEErrors[kind]), pair("kind", string(kind)))
		}
	}
	for n := range c.Certificates {
		collect(out, &c.Certificates[n], now)
	}
}

// collect sends what there is about one certificate. One that is missing has no
// end and no lifetime.
func collect(out chan<- prometheus.Metric, c *tlsmgr.CertificateStatus, now time.Time) {
	id := pair("certificate", c.ID)
	out <- gauge(descState, 1, id, pair("state", string(c.State)))
	if c.Source != "file" {
		out <- gauge(descQuarantine, float64(len(c.LeftOut)), id)
	}
	if c.NotAfter.IsZero() {
		return
	}
	out <- gauge(descNotAfter, seconds(c.NotAfter), id)
	if life := c.NotAfter.Sub(c.NotBefore); life > 0 {
		left := float64(c.NotAfter.Sub(now)) / float64(life)
		out <- gauge(descLeft, min(max(left, 0), 1), id)
	}
}

// sample is one value. It is what client_golang calls a constant metric, without
// the copies and checks that cost most of a scrape of many certificates.
type sample struct {
	desc    *prometheus.Desc
	value   float64
	labels  []*dto.LabelPair // sorted by name
	counter bool
}

func gauge(d *prometheus.Desc, value float64, labels ...*dto.LabelPair) *sample {
	return &sample{desc: d, value: value, labels: labels}
}

func counter(d *prometheus.Desc, value float64, labels ...*dto.LabelPair) *sample {
	return &sample{desc: d, value: value, labels: labels, counter: true}
}

func pair(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

// Desc returns what the sample is of.
func (s *sample) Desc() *prometheus.Desc { return s.desc }

// Write encodes the sample for the registry.
func (s *sample) Write(m *dto.Metric) error {
	m.Label = s.labels
	if s.counter {
		m.Counter = &dto.Counter{Value: &s.value}
	} else {
		m.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
