package autoscale

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"
	asmetrics "knative.dev/serving/pkg/autoscaler/metrics"
	"knative.dev/serving/pkg/autoscaler/scaling"
	kparesources "knative.dev/serving/pkg/reconciler/autoscaling/kpa/resources"
	asresources "knative.dev/serving/pkg/reconciler/autoscaling/resources"
)

// The periods of Knative Serving 0.50 that are not configurable.
const (
	reportPeriod = time.Second     // pkg/autoscaler/metrics scrapeTickInterval, pkg/activator/handler reportInterval
	scalePeriod  = 2 * time.Second // pkg/autoscaler/scaling tickInterval
	probePeriod  = time.Second     // pkg/reconciler/autoscaling/kpa: until the activator is known to be in the path
	proxyPeriod  = 3 * time.Second // the same: until a PodAutoscaler that became inactive is looked at again
)

// unknown is the number of pods that the autoscaler wants before it has data.
const unknown = -1

// epoch is the wall clock's time at the start of a replay. Any time that is long after the zero time.Time would do.
var epoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC)

// condition is the state of a PodAutoscaler's condition Active.
type condition uint8

const (
	inactive   condition = iota // False: no traffic, scaled to zero or about to be
	activating                  // Unknown: fewer pods ready than wanted at the least
	active                      // True
)

// kpa is the autoscaler and the reconciler of one revision.
type kpa struct {
	cluster   *autoscalerconfig.Config
	pa        *autoscalingv1alpha1.PodAutoscaler
	key       types.NamespacedName
	collector *asmetrics.MetricCollector
	scaler    scaling.UniScaler
	gauges    *sdkmetric.ManualReader
	decider   *scaling.Decider
	minScale  int32
	maxScale  int32
	pods      func() int // ready ones

	desired  int32 // what the autoscaler last said, or unknown
	excess   int32 // excess burst capacity, as it last said
	replicas int32 // what the reconciler last asked the Deployment for
	status   paStatus
}

// paStatus is what the reconciler keeps in the objects' status. A change of it makes the reconciler run again.
type paStatus struct {
	condition   condition
	since       time.Duration // of condition
	initialized bool          // the first scale has been reached once
	proxy       bool          // the activator is in the path
	proxySince  time.Duration
}

// newKPA makes the autoscaler of a Service. The revision has existed for long and is idle, or with deployed it is created at
// time 0 and starts with its initial scale. Call close when done.
func newKPA(service Service, cluster *autoscalerconfig.Config, deployed bool, pods func() int) (*kpa, error) {
	pa := &autoscalingv1alpha1.PodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: service.Name, Annotations: service.Annotations},
		Spec: autoscalingv1alpha1.PodAutoscalerSpec{
			ContainerConcurrency: service.ContainerConcurrency,
			Reachability:         autoscalingv1alpha1.ReachabilityReachable,
		},
	}
	k := &kpa{
		cluster: cluster, pa: pa, pods: pods,
		key:     types.NamespacedName{Namespace: service.Namespace, Name: service.Name},
		decider: kparesources.MakeDecider(pa, cluster),
		gauges:  sdkmetric.NewManualReader(),
	}
	k.minScale, k.maxScale = pa.ScaleBounds(cluster)
	log := zap.NewNop().Sugar()

	// The collector would scrape pods by the wall clock; without a scraper it does nothing by itself and takes what
	// Record gives it.
	k.collector = asmetrics.NewMetricCollector(
		func(*autoscalingv1alpha1.Metric, *zap.SugaredLogger) (asmetrics.StatsScraper, error) { return nil, nil }, log)
	target := "pods"
	if k.decider.Spec.TargetBurstCapacity == -1 {
		target = "" // the activator sees everything, pods are not scraped
	}
	if err := k.collector.CreateOrUpdate(asresources.MakeMetric(pa, target, cluster)); err != nil {
		return nil, fmt.Errorf("create the metric of %s: %w", service.Name, err)
	}

	k.status.proxy = true
	if deployed {
		k.desired = unknown
		k.status.condition = activating
		k.replicas = max(kparesources.GetInitialScale(cluster, pa), k.minScale)
	} else {
		k.status.initialized = true
		k.replicas = k.minScale
		if k.minScale > 0 {
			k.status.condition = active
		}
	}
	if tbc := k.decider.Spec.TargetBurstCapacity; tbc <= 0 {
		k.excess = int32(tbc)
	} else {
		k.excess = int32(float64(k.replicas)*k.decider.Spec.TotalValue - tbc)
	}
	// The autoscaler begins in panic mode, by the wall clock, if there are pods already. It is made before there are any.
	k.scaler = scaling.New(attribute.NewSet(), sdkmetric.NewMeterProvider(sdkmetric.WithReader(k.gauges)), service.Namespace, service.Name,
		k.collector, podCounter{k}, &k.decider.Spec)
	return k, nil
}

// podCounter counts pods for the autoscaler: none while it is being made, then those that are ready.
type podCounter struct{ k *kpa }

func (p podCounter) ReadyCount() (int, error) {
	if p.k.scaler == nil {
		return 0, nil
	}
	return p.k.pods(), nil
}

func (p podCounter) NotReadyCount() (int, error) { return 0, nil }

func (k *kpa) close() {
	k.scaler.OnDelete()
	k.collector.Delete(k.key.Namespace, k.key.Name)
}

// record takes what activator and pods report: average concurrency and arrived requests of a reportPeriod.
func (k *kpa) record(now time.Duration, concurrency, requests float64) {
	k.collector.Record(k.key, epoch.Add(now), asmetrics.Stat{AverageConcurrentRequests: concurrency, RequestCount: requests})
}

// poke is the activator's report of the first request after silence: a service that is at zero is looked at without delay. It
// says whether the decision has changed.
func (k *kpa) poke(now time.Duration) bool {
	k.record(now, 1, 1)
	return k.desired == 0 && k.decide(now)
}

// decide asks the autoscaler, and says whether reconcile has reason to run.
func (k *kpa) decide(now time.Duration) bool {
	result := k.scaler.Scale(zap.NewNop().Sugar(), epoch.Add(now))
	if !result.ScaleValid {
		return false
	}
	changed := k.desired != result.DesiredPodCount || (k.excess < 0) != (result.ExcessBurstCapacity < 0)
	k.desired, k.excess = result.DesiredPodCount, result.ExcessBurstCapacity
	return changed
}

// reconcile applies the last decision to replicas and status. It returns when it wants to run again without being told of a
// change, or 0.
func (k *kpa) reconcile(now time.Duration) (again time.Duration) {
	// Every run may change what the next one sees; two follow a change of the condition at the most.
	for range 4 {
		before := k.status
		again = k.reconcileOnce(now)
		if k.status == before {
			break
		}
	}
	return again
}

func (k *kpa) reconcileOnce(now time.Duration) time.Duration {
	want, again := k.scale(now)

	proxy := want <= 0 || k.excess < 0
	if proxy && !k.status.proxy {
		k.status.proxySince = now
	}
	k.status.proxy = proxy

	// The first scale must be reached once; from then on one pod is enough to be active.
	atLeast := int(max(k.minScale, 1))
	if !k.status.initialized {
		atLeast = int(max(k.minScale, kparesources.GetInitialScale(k.cluster, k.pa)))
	}
	ready := k.pods()
	if ready >= atLeast {
		k.status.initialized = true
	}
	next := k.status.condition
	switch {
	case want == 0 || atLeast == 0:
		next = inactive
	case want == unknown && k.status.condition == inactive:
	case ready < atLeast:
		next = activating
	default:
		next = active
	}
	if next != k.status.condition {
		k.status.condition, k.status.since = next, now
	}
	return again
}

// scale sets replicas within the bounds and, at zero, as late as it must be. It returns what is wanted, which at zero may
// not be applied yet, and when to look again.
func (k *kpa) scale(now time.Duration) (want int32, again time.Duration) {
	if k.desired < 0 && k.status.condition != activating {
		return k.desired, 0
	}
	lowest := k.minScale
	if initial := kparesources.GetInitialScale(k.cluster, k.pa); initial > 1 && !k.status.initialized {
		lowest = max(lowest, initial)
	}
	want = max(k.desired, lowest)
	if k.maxScale > 0 {
		want = min(want, k.maxScale)
	}
	if want > 0 {
		k.replicas = want
		return want, 0
	}
	if !k.cluster.EnableScaleToZero {
		k.replicas = 1
		return 1, 0
	}

	lasted := now - k.status.since
	switch k.status.condition {
	case activating:
		// Here every pod starts, so that the time after which Knative gives up on them never passes.
		return unknown, 0
	case active:
		if window := k.decider.Spec.StableWindow; lasted < window {
			k.replicas = 1
			return 1, window - lasted
		}
		return 0, proxyPeriod // becomes inactive
	}
	if k.decider.Spec.TargetBurstCapacity != -1 && now-k.status.proxySince < probePeriod {
		return 0, probePeriod - (now - k.status.proxySince) // the probe does not meet the activator yet
	}
	retention, ok := k.pa.ScaleToZeroPodRetention()
	if !ok {
		retention = k.cluster.ScaleToZeroPodRetentionPeriod
	}
	grace := k.cluster.ScaleToZeroGracePeriod
	switch proxied := now - k.status.proxySince; {
	case lasted >= max(grace, retention):
	case lasted < retention:
		return 0, retention - lasted
	case proxied < grace:
		return 0, grace - proxied
	}
	k.replicas = 0
	return 0, 0
}

// gauge is what the autoscaler publishes about itself: averages over both windows, and whether it is in panic mode.
type gauge struct {
	stable, panic float64
	panicking     bool
}

func (k *kpa) read() (gauge, error) {
	var all metricdata.ResourceMetrics
	if err := k.gauges.Collect(context.Background(), &all); err != nil {
		return gauge{}, fmt.Errorf("read the autoscaler's metrics: %w", err)
	}
	var g gauge
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Gauge[int64]:
				if m.Name == "kn.revision.panic.mode" && len(data.DataPoints) > 0 {
					g.panicking = data.DataPoints[0].Value > 0
				}
			case metricdata.Gauge[float64]:
				if len(data.DataPoints) == 0 {
					continue
				}
				switch m.Name {
				case "kn.revision.concurrency.stable", "kn.revision.rps.stable":
					g.stable = data.DataPoints[0].Value
				case "kn.revision.concurrency.panic", "kn.revision.rps.panic":
					g.panic = data.DataPoints[0].Value
				}
			}
		}
	}
	return g, nil
}
