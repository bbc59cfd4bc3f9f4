package autoscale

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"

	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/function"
)

// Config is what a replay is made of besides the stage, its Service and what arrives.
type Config struct {
	// Cluster is the ConfigMap config-autoscaler; see Cluster and DefaultCluster.
	Cluster *autoscalerconfig.Config
	// PushWindow is the most pushes that Pub/Sub keeps outstanding to the stage.
	PushWindow int
	// Deployed starts with the revision being created instead of one that has been idle for long.
	Deployed bool
	// Seed decides to which pod a request goes where chance does.
	Seed uint64
}

// DefaultPushWindow is where Pub/Sub keeps a subscription whose endpoint answers in more than a second
// (https://cloud.google.com/pubsub/docs/push#delivery_rate), and what the embedded Pub/Sub never exceeds.
const DefaultPushWindow = 3000

// Sample is the state of a stage at the end of a second, and what happened in that second.
type Sample struct {
	Second int `json:"second"`

	Published int `json:"published"` // messages, new ones
	Served    int `json:"served"`    // messages acked
	Shed      int `json:"shed"`      // pushes refused with 429 or 503
	Expired   int `json:"expired"`   // pushes that had no answer within the ack deadline

	Backlog  int `json:"backlog"`   // messages that Pub/Sub keeps and has not pushed, those that rest after a nack included
	Queued   int `json:"queued"`    // requests in the activator and in queue-proxies
	InFlight int `json:"in_flight"` // requests in containers

	Wanted int `json:"pods_wanted"` // replicas of the Deployment
	Ready  int `json:"pods_ready"`
	Pods   int `json:"pods"` // ready, starting and stopping

	Concurrency float64 `json:"concurrency"` // average of the second, as it is reported to the autoscaler
	Stable      float64 `json:"stable"`      // the autoscaler's average over the stable window
	Panic       float64 `json:"panic"`       // the same over the panic window
	Panicking   bool    `json:"panicking"`
	Activator   bool    `json:"activator"` // it is in the path

	P95 float64 `json:"p95_seconds"` // publish to ack of what was served in that second; 0 if nothing was
}

// Totals sum up a replay. Times are seconds since its start.
type Totals struct {
	Published int `json:"published"`
	Served    int `json:"served"`
	Left      int `json:"left"` // at the end, in Pub/Sub or under way
	Shed      int `json:"shed"`
	Expired   int `json:"expired"`

	P50 float64 `json:"p50_seconds"` // publish to ack
	P95 float64 `json:"p95_seconds"`
	P99 float64 `json:"p99_seconds"`
	Max float64 `json:"max_seconds"`

	PodHours   float64  `json:"pod_hours"`
	MaxReady   int      `json:"max_pods_ready"`
	Starts     int      `json:"pods_started"`
	MaxQueued  int      `json:"max_queued"`
	MaxBacklog int      `json:"max_backlog"`
	PanicTime  float64  `json:"panic_seconds"`
	FirstReady *float64 `json:"first_pod_seconds"` // nil: no pod was started
	Zero       *float64 `json:"zero_seconds"`      // since when no pod has been wanted; nil: some are at the end
}

// Result is the replay of one stage.
type Result struct {
	Stage      string      `json:"stage"`
	Service    Service     `json:"service"`
	Parameters []Parameter `json:"parameters"`
	Samples    []Sample    `json:"samples"`
	Totals     Totals      `json:"totals"`
	// Emitted are the batches that the stage has written, which are the messages of the stages behind it.
	Emitted []Arrival `json:"-"`
}

// model is one stage, from its subscription to its writes.
type model struct {
	clock
	cfg     Config
	stage   Stage
	service Service
	batch   batch.Config
	limits  function.Limits
	cores   float64
	random  *rand.Rand
	kpa     *kpa

	backlog  fifo[message]
	resting  int // messages after a nack
	window   window
	wakeUp   bool // a dispatch is planned for the end of the back-off
	waiting  fifo[*request]
	pods     []*pod // ready, oldest first
	starting []*pod // oldest first
	stopping []*pod // out of the endpoints, and not gone
	next     int    // round robin
	plans    uint64 // counts reconcile; a planned one that another came before is void

	inside    int           // requests in activator and pods
	area      time.Duration // integral of inside over the present report period
	since     time.Duration // until where area goes
	arrived   int           // requests of the present report period
	tracked   bool          // the activator has reported requests in its last period
	firstSeen float64       // the request that a poke has reported already

	sample    Sample
	latencies []float32 // seconds, of the present second from mark
	mark      int
	result    Result
	err       error
}

// Replay lets the arrivals come to the stage for the given duration. The service must be valid.
func Replay(cfg Config, stage Stage, service Service, arrivals []Arrival, duration time.Duration) (Result, error) {
	m := &model{cfg: cfg, stage: stage, service: service, cores: service.CPU}
	var err error
	if m.batch, m.limits, err = stage.limits(service); err != nil {
		return Result{}, err
	}
	if m.cores == 0 {
		m.cores = 1
	}
	if cfg.PushWindow < 1 {
		return Result{}, errors.New("the push window must be positive")
	}
	m.window = window{highest: cfg.PushWindow, limit: min(startWindow, cfg.PushWindow)}
	m.random = rand.New(rand.NewPCG(cfg.Seed, 0))
	m.result = Result{Stage: stage.Name, Service: service}
	if m.result.Parameters, err = stage.Parameters(service); err != nil {
		return Result{}, err
	}
	if m.kpa, err = newKPA(service, cfg.Cluster, cfg.Deployed, func() int { return len(m.pods) }); err != nil {
		return Result{}, err
	}
	defer m.kpa.close()

	if cfg.Deployed {
		m.resize()
	} else {
		for range m.kpa.replicas { // they have been there for long
			m.pods = append(m.pods, &pod{m: m})
		}
	}
	m.reconcile()
	m.feed(arrivals)
	m.after(reportPeriod, m.second)
	m.run(duration)
	if m.err != nil {
		return Result{}, fmt.Errorf("replay %s: %w", stage.Name, m.err)
	}
	m.sum()
	return m.result, nil
}

// feed publishes the arrivals one after the other.
func (m *model) feed(arrivals []Arrival) {
	if len(arrivals) == 0 {
		return
	}
	a := arrivals[0]
	m.after(a.At-m.now, func() {
		for range a.Messages {
			m.backlog.push(message{published: m.now, readings: a.Readings})
		}
		m.sample.Published += a.Messages
		m.dispatch()
		m.feed(arrivals[1:])
	})
}

// dispatch pushes while the window allows.
func (m *model) dispatch() {
	for m.backlog.len() > 0 && m.window.open(m.now) {
		r := &request{message: m.backlog.pop(), started: m.now, epoch: m.window.start()}
		r.message.attempts++
		m.count(1)
		m.arrived++
		m.route(r)
	}
	if m.backlog.len() > 0 && m.now < m.window.until && !m.wakeUp {
		m.wakeUp = true
		m.after(m.window.until-m.now, func() {
			m.wakeUp = false
			m.dispatch()
		})
	}
}

// count adds n to the requests inside.
func (m *model) count(n int) {
	m.area += time.Duration(m.inside) * (m.now - m.since)
	m.since = m.now
	m.inside += n
}

// route is the ingress, and the activator if it is in the path.
func (m *model) route(r *request) {
	if len(m.pods) > 0 && !m.kpa.status.proxy {
		m.pods[m.random.IntN(len(m.pods))].enter(r)
		return
	}
	if !m.tracked {
		m.tracked, m.firstSeen = true, 1
		if m.kpa.poke(m.now) {
			m.reconcile()
		}
	}
	if p := m.free(); p != nil {
		p.handle(r)
		return
	}
	// The activator's queue is bounded by 10,000 and 2³¹ more (pkg/activator/net/throttler.go), which is not at all.
	m.waiting.push(r)
}

// free is the pod to which the activator sends the next request, or nil if none has room: the less busy of two that chance
// chooses when containers take any number of requests, else the first with room, beginning behind the last one
// (pkg/activator/net/lb_policy.go).
func (m *model) free() *pod {
	n := len(m.pods)
	cc := m.service.ContainerConcurrency
	switch {
	case n == 0:
		return nil
	case cc == 0 && n == 1:
		return m.pods[0]
	case cc == 0:
		a := m.random.IntN(n)
		b := m.random.IntN(n - 1)
		if b >= a {
			b++
		}
		if m.pods[b].inside < m.pods[a].inside {
			a = b
		}
		return m.pods[a]
	}
	for i := range n {
		// Up to a concurrency of 3 the first pod with room is taken, so that few are busy.
		at := i
		if cc > 3 {
			at = (m.next + i) % n
		}
		if p := m.pods[at]; int64(p.inside+p.queue.len()) < cc {
			m.next = (at + 1) % n
			return p
		}
	}
	return nil
}

// drain sends on what waits in the activator.
func (m *model) drain() {
	for m.waiting.len() > 0 {
		p := m.free()
		if p == nil {
			return
		}
		p.handle(m.waiting.pop())
	}
}

// refuse answers 429 or 503 after the time of a hop.
func (m *model) refuse(r *request) {
	m.sample.Shed++
	m.after(m.stage.Hop, func() { m.answer(r, false) })
}

// answer ends a push. An ack that comes too late is none: Pub/Sub has given the message up for redelivery.
func (m *model) answer(r *request, acked bool) {
	if acked && m.now-r.started > m.stage.AckDeadline {
		acked = false
		m.sample.Expired++
	}
	m.count(-1)
	m.window.finish(m.now, r.epoch, acked)
	if acked {
		m.sample.Served++
		m.latencies = append(m.latencies, float32((m.now - r.message.published).Seconds()))
	} else {
		m.resting++
		m.after(retryDelay(m.stage.Backoff, r.message.attempts), func() {
			m.resting--
			m.backlog.push(r.message)
			m.dispatch()
		})
	}
	if p := r.pod; p != nil {
		r.pod = nil
		p.leave(r)
	}
	m.drain()
	m.dispatch()
}

// size is the length of a request's body.
func (m *model) size(r *request) int64 { return int64(r.message.readings * m.stage.BytesPerReading) }

func (m *model) emit(a Arrival) { m.result.Emitted = append(m.result.Emitted, a) }

// second is what happens every second: what waited too long is given up, pods and activator report, the autoscaler decides
// every other time, and a sample is taken.
func (m *model) second() {
	m.after(reportPeriod, m.second)
	m.expire()
	m.count(0)
	concurrency, requests := m.area.Seconds()/reportPeriod.Seconds(), float64(m.arrived)
	m.area, m.arrived = 0, 0
	scraped := len(m.pods) > 0 && m.kpa.decider.Spec.TargetBurstCapacity != -1
	if scraped || m.tracked || concurrency > 0 {
		m.kpa.record(m.now, max(concurrency-m.firstSeen, 0), requests-m.firstSeen)
	}
	m.firstSeen = 0
	if concurrency == 0 {
		m.tracked = false
	}
	if m.now%scalePeriod == 0 && m.kpa.decide(m.now) {
		m.reconcile()
	}
	m.observe(concurrency)
}

// expire gives up the requests in queues whose ack deadline has passed: their sender has hung up. Queues are in the order of
// arrival.
func (m *model) expire() {
	late := func(q *fifo[*request]) {
		for q.len() > 0 && m.now-q.front().started > m.stage.AckDeadline {
			m.sample.Expired++
			m.answer(q.pop(), false)
		}
	}
	late(&m.waiting)
	for _, p := range slices.Concat(m.pods, m.stopping) {
		late(&p.queue)
	}
}

// reconcile applies what the autoscaler wants, and plans to do so again if it could not be done yet.
func (m *model) reconcile() {
	again := m.kpa.reconcile(m.now)
	m.resize()
	m.plans++
	if again > 0 {
		plan := m.plans
		m.after(again, func() {
			if plan == m.plans {
				m.reconcile()
			}
		})
	}
}

// resize starts and stops pods.
func (m *model) resize() {
	want := int(m.kpa.replicas)
	if want == 0 {
		if m.result.Totals.Zero == nil {
			zero := m.now.Seconds()
			m.result.Totals.Zero = &zero
		}
	} else {
		m.result.Totals.Zero = nil
	}
	for len(m.pods)+len(m.starting) < want {
		p := &pod{m: m}
		m.starting = append(m.starting, p)
		m.result.Totals.Starts++
		m.after(m.stage.ColdStart, func() { m.started(p) })
	}
	for len(m.pods)+len(m.starting) > want {
		// A ReplicaSet stops pods that are not ready first, then those that have been ready for the shortest time.
		if n := len(m.starting); n > 0 {
			m.starting = m.starting[:n-1]
			continue
		}
		last := m.pods[len(m.pods)-1]
		m.pods = m.pods[:len(m.pods)-1]
		last.stop()
		m.stopping = append(m.stopping, last)
	}
}

func (m *model) started(p *pod) {
	i := slices.Index(m.starting, p)
	if i < 0 {
		return // stopped before it was ready
	}
	m.starting = slices.Delete(m.starting, i, i+1)
	m.pods = append(m.pods, p)
	if m.result.Totals.FirstReady == nil {
		first := m.now.Seconds()
		m.result.Totals.FirstReady = &first
	}
	m.drain()
	m.reconcile()
}

// observe takes the sample of the second that ends.
func (m *model) observe(concurrency float64) {
	m.stopping = slices.DeleteFunc(m.stopping, (*pod).gone)
	g, err := m.kpa.read()
	m.err = errors.Join(m.err, err)
	s := &m.sample
	s.Second = int(m.now / time.Second)
	s.Backlog, s.Queued = m.backlog.len()+m.resting, m.waiting.len()
	for _, p := range slices.Concat(m.pods, m.stopping) {
		s.Queued += p.queue.len()
		s.InFlight += p.inside
	}
	s.Wanted, s.Ready = int(m.kpa.replicas), len(m.pods)
	s.Pods = len(m.pods) + len(m.starting) + len(m.stopping)
	s.Concurrency, s.Stable, s.Panic, s.Panicking = concurrency, g.stable, g.panic, g.panicking
	s.Activator = m.kpa.status.proxy
	if m.mark < len(m.latencies) {
		now := m.latencies[m.mark:]
		sorted := slices.Clone(now)
		slices.Sort(sorted)
		s.P95 = quantile(sorted, 0.95)
	}
	m.mark = len(m.latencies)
	m.result.Samples = append(m.result.Samples, *s)
	m.sample = Sample{}
}

func (m *model) sum() {
	t := &m.result.Totals
	for _, s := range m.result.Samples {
		t.Published += s.Published
		t.Served += s.Served
		t.Shed += s.Shed
		t.Expired += s.Expired
		t.PodHours += float64(s.Pods) / 3600
		t.MaxReady = max(t.MaxReady, s.Ready)
		t.MaxQueued = max(t.MaxQueued, s.Queued)
		t.MaxBacklog = max(t.MaxBacklog, s.Backlog)
		if s.Panicking {
			t.PanicTime++
		}
	}
	t.Left = m.backlog.len() + m.resting + m.inside
	slices.Sort(m.latencies)
	t.P50, t.P95, t.P99 = quantile(m.latencies, 0.5), quantile(m.latencies, 0.95), quantile(m.latencies, 0.99)
	t.Max = quantile(m.latencies, 1)
}

// quantile is the value that a share q of the sorted values does not exceed, 0 of none.
func quantile(sorted []float32, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return math.Round(float64(sorted[max(i, 0)])*1e6) / 1e6
}
