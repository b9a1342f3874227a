package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
)

// Metrics counts. Labels are bounded: no user, no token, no name that a stranger
// chose.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	refusals *prometheus.CounterVec
	events   *prometheus.CounterVec
	leases   *prometheus.CounterVec
}

// NewMetrics returns metrics. status is asked when they are read.
func NewMetrics(version string, status func(ctx context.Context) broker.Status) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stint_http_request_seconds", Help: "Time to answer a request, by route and status.",
			Buckets: []float64{.0002, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}, []string{"route", "status"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stint_http_errors_total", Help: "Errors answered, by route and OAuth error.",
		}, []string{"route", "error"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stint_events_total", Help: "Audit events, by kind, outcome and code.",
		}, []string{"kind", "outcome", "code"}),
		leases: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stint_lease_outcomes_total", Help: "What became of leases upstream, by provider.",
		}, []string{"provider", "outcome"}),
	}
	m.registry.MustRegister(m.requests, m.refusals, m.events, m.leases, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &statusCollector{version, status})
	return m
}

// Handler serves the metrics in Prometheus' format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *Metrics) request(route string, status int, took time.Duration) {
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Observe(took.Seconds())
}

func (m *Metrics) refused(route, name string) {
	if route == "" {
		route = "none"
	}
	m.refusals.WithLabelValues(route, name).Inc()
}

// Counting returns a recorder that counts the events of another.
func (m *Metrics) Counting(r broker.Recorder) broker.Recorder { return counting{r, m} }

type counting struct {
	broker.Recorder
	metrics *Metrics
}

// Record implements [broker.Recorder].
func (c counting) Record(ctx context.Context, e *audit.Event, p audit.Personal, more ...audit.Frame) error {
	err := c.Recorder.Record(ctx, e, p, more...)
	c.count(e, err)
	return err
}

// Note implements [broker.Recorder]. It counts what happened, not what was kept.
func (c counting) Note(ctx context.Context, e *audit.Event, p audit.Personal) error {
	err := c.Recorder.Note(ctx, e, p)
	c.count(e, nil)
	return err
}

func (c counting) count(e *audit.Event, err error) {
	outcome := string(e.Outcome)
	if err != nil {
		outcome = "unrecorded"
	}
	c.metrics.events.WithLabelValues(string(e.Kind), outcome, e.Code).Inc()
	if e.Kind == audit.KindLease && e.Lease != nil {
		c.metrics.leases.WithLabelValues(e.Lease.Provider, e.Lease.Outcome).Inc()
	}
}

// statusCollector reads the broker's status when metrics are read.
type statusCollector struct {
	version string
	status  func(ctx context.Context) broker.Status
}

var (
	descCurrent = prometheus.NewDesc("stint_current", "1 if this replica may grant.", nil, nil)
	descBehind  = prometheus.NewDesc("stint_feed_behind_seconds", "Age of the last confirmed heartbeat.", nil, nil)
	descRecords = prometheus.NewDesc("stint_revocations", "Live revocation records in memory.", nil, nil)
	descSeq     = prometheus.NewDesc("stint_feed_position", "Sequence number that this replica has applied.", nil, nil)
	descLeases  = prometheus.NewDesc("stint_open_leases", "Leases that are not closed; -1 if the ledger cannot be asked.", nil, nil)
	descJournal = prometheus.NewDesc("stint_journal_failed", "1 if the audit journal takes nothing.", nil, nil)
	descPolicy  = prometheus.NewDesc("stint_policy_info", "The policy in force.", []string{"version"}, nil)
	descBuild   = prometheus.NewDesc("stint_build_info", "The version of this program.", []string{"version"}, nil)
	descUp      = prometheus.NewDesc("stint_provider_ready", "1 if the upstream can be used.", []string{"provider"}, nil)
)

// Describe implements [prometheus.Collector].
func (s *statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descCurrent, descBehind, descRecords, descSeq, descLeases, descJournal, descPolicy, descBuild, descUp} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (s *statusCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	st := s.status(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descCurrent, bit(st.Current))
	gauge(descBehind, min(st.Behind.Seconds(), 1e9))
	gauge(descRecords, float64(st.Records))
	gauge(descSeq, float64(st.Head.Seq))
	gauge(descLeases, float64(st.OpenLeases))
	gauge(descJournal, bit(st.Record != ""))
	gauge(descPolicy, 1, st.Policy)
	gauge(descBuild, 1, s.version)
	for name, problem := range st.Providers {
		gauge(descUp, bit(problem == ""), name)
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
