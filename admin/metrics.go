package admin

import (
	"cmp"
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
	registry *prometheus.Registry // what is not pulled from the status
	renewals *prometheus.CounterVec
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
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m.renewals, build)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelWarn)})
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

// Gather is what a scrape gets. What the status says does not go through the
// registry, whose checks of each sample cost more than all the rest: for 10,000
// certificates 260 ms in place of 20 ms (BenchmarkScrapeOf10000).
func (m *metrics) Gather() ([]*dto.MetricFamily, error) {
	families, err := m.registry.Gather()
	for _, f := range pull(m.status(), time.Now()) {
		if len(f.Metric) > 0 {
			families = append(families, f)
		}
	}
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return families, err
}

// pull says in metrics what the status says.
func pull(s Status, now time.Time) []*dto.MetricFamily {
	ready := gauges("edge_ready", "1 when edge takes requests.")
	reloaded := gauges("edge_config_last_reload_successful", "1 when the last reload was taken, or none was asked for.")
	reloadedAt := gauges("edge_config_last_reload_timestamp_seconds", "When the configuration in force was read.")
	storage := gauges("edge_storage_up", "1 when the last look at the storage succeeded.")
	replicas := gauges("edge_replicas", "Live replicas that share the storage, this one included.")
	lost := counters("edge_lock_lost_total", "Leases that this process lost to another, or to a storage that did not answer.")
	refused := counters("edge_acme_errors_total", "Orders that a CA, or the way to it, failed.")

	ready.add(one(s.Ready))
	reloaded.add(one(s.Config.Refused == ""))
	if !s.Config.Loaded.IsZero() {
		reloadedAt.add(seconds(s.Config.Loaded))
	}
	c := &s.Certificates
	if c.Storage != "" {
		storage.add(one(c.StorageUp))
		replicas.add(float64(1 + len(c.Replicas)))
		lost.add(float64(c.LeasesLost))
		for _, kind := range slices.Sorted(maps.Keys(c.ACMEErrors)) {
			refused.add(float64(c.ACMEErrors[kind]), label("kind", string(kind)))
		}
	}
	out := pullCertificates(c.Certificates, now)
	for _, f := range []family{ready, reloaded, reloadedAt, storage, replicas, lost, refused} {
		out = append(out, f.MetricFamily)
	}
	return out
}

// pullCertificates says what there is about each certificate. One that is missing
// has no end and no lifetime. They are sorted by id; of two with the same, which
// Prometheus could not tell apart, the first counts.
func pullCertificates(all []tlsmgr.CertificateStatus, now time.Time) []*dto.MetricFamily {
	state := gauges("edge_cert_state", "1 for what the certificate is doing.")
	quarantined := gauges("edge_cert_quarantined_names", "Names that are left out of the certificate for a while, because the CA refused them.")
	end := gauges("edge_cert_not_after_timestamp_seconds", "When the certificate that is served expires.")
	left := gauges("edge_cert_lifetime_left_ratio", "Part of the lifetime that is left of the certificate that is served, 1 to 0.")
	for n := range all {
		c := &all[n]
		if n > 0 && c.ID == all[n-1].ID {
			continue
		}
		id := label("certificate", c.ID)
		state.add(1, id, label("state", string(c.State)))
		if c.Source != "file" {
			quarantined.add(float64(len(c.LeftOut)), id)
		}
		if c.NotAfter.IsZero() {
			continue
		}
		end.add(seconds(c.NotAfter), id)
		if life := c.NotAfter.Sub(c.NotBefore); life > 0 {
			left.add(min(max(float64(c.NotAfter.Sub(now))/float64(life), 0), 1), id)
		}
	}
	return []*dto.MetricFamily{state.MetricFamily, quarantined.MetricFamily, end.MetricFamily, left.MetricFamily}
}

// family collects the samples of one metric.
type family struct{ *dto.MetricFamily }

func gauges(name, help string) family {
	return family{&dto.MetricFamily{Name: &name, Help: &help, Type: dto.MetricType_GAUGE.Enum()}}
}

func counters(name, help string) family {
	return family{&dto.MetricFamily{Name: &name, Help: &help, Type: dto.MetricType_COUNTER.Enum()}}
}

// add adds a sample; labels are in the order of their names.
func (f family) add(value float64, labels ...*dto.LabelPair) {
	m := &dto.Metric{Label: labels}
	if f.GetType() == dto.MetricType_COUNTER {
		m.Counter = &dto.Counter{Value: &value}
	} else {
		m.Gauge = &dto.Gauge{Value: &value}
	}
	f.Metric = append(f.Metric, m)
}

func label(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
