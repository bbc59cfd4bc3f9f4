package controller

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"knative.dev/pkg/apis"

	"github.com/robofleet/robofleet/eventing/apply"
)

// Metrics count what the passes do.
type Metrics struct {
	seconds  prometheus.Histogram
	failed   prometheus.Counter
	last     prometheus.Gauge
	objects  *prometheus.GaugeVec
	writes   *prometheus.CounterVec
	failures *prometheus.CounterVec
}

// NewMetrics registers them with reg.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	const prefix = "robofleet_broker_controller_"
	m := &Metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "pass_seconds", Help: "Duration of one pass over all Brokers and Triggers.",
			Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30, 100, 300},
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "failed_passes_total", Help: "Passes that did not get everything done.",
		}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "last_success_timestamp_seconds", Help: "When a pass last got everything done.",
		}),
		objects: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "objects", Help: "Brokers and Triggers of this class, by their condition Ready (True, False, Unknown).",
		}, []string{"kind", "ready"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "pubsub_writes_total", Help: "What was created, updated, replaced and deleted at Pub/Sub.",
		}, []string{"verb", "kind"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "pubsub_write_failures_total", Help: "Writes to Pub/Sub that failed, by gRPC code.",
		}, []string{"kind", "code"}),
	}
	for _, collector := range []prometheus.Collector{m.seconds, m.failed, m.last, m.objects, m.writes, m.failures} {
		if err := reg.Register(collector); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *Metrics) pass(took time.Duration, err error) {
	m.seconds.Observe(took.Seconds())
	if err != nil {
		m.failed.Inc()
		return
	}
	m.last.SetToCurrentTime()
}

func (m *Metrics) applied(report apply.Report) {
	for _, action := range report.Actions {
		if action.Verb != apply.Keep {
			m.writes.WithLabelValues(string(action.Verb), action.Kind).Inc()
		}
	}
	for _, failure := range report.Failures {
		m.failures.WithLabelValues(failure.Kind, status.Code(failure.Err).String()).Inc()
	}
}

// counts is how many objects there are, by kind and readiness.
type counts map[[2]string]int

func (c *counts) add(kind string, ready *apis.Condition) {
	if *c == nil {
		*c = counts{}
	}
	word := string(corev1.ConditionUnknown)
	if ready != nil {
		word = string(ready.Status)
	}
	(*c)[[2]string{kind, word}]++
}

func (m *Metrics) counted(c counts) {
	for _, kind := range []string{"Broker", "Trigger"} {
		for _, ready := range []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown} {
			m.objects.WithLabelValues(kind, string(ready)).Set(float64(c[[2]string{kind, string(ready)}]))
		}
	}
}
