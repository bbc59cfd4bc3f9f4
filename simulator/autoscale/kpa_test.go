package autoscale

import (
	"testing"
	"time"
)

// revision drives the autoscaler of a Service whose pods are ready as soon as they are wanted.
type revision struct {
	t     *testing.T
	kpa   *kpa
	now   time.Duration
	again time.Duration // when reconcile wants to run, 0 for not
	pods  int
}

// newRevision makes one with the target of 10 per pod, of which all is used, and no activator unless changes say otherwise.
func newRevision(t *testing.T, deployed bool, changes ...string) *revision {
	t.Helper()
	cluster, err := DefaultCluster()
	if err != nil {
		t.Fatal(err)
	}
	s := fixture(t, append([]string{"validate.target=10", "validate.target-utilization-percentage=100", "validate.max-scale=",
		"validate.target-burst-capacity=0"}, changes...)...)
	if err := s.Validate(cluster); err != nil {
		t.Fatal(err)
	}
	r := &revision{t: t}
	r.kpa, err = newKPA(s, cluster, deployed, func() int { return r.pods })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.kpa.close)
	r.reconcile()
	return r
}

func (r *revision) reconcile() {
	for {
		r.again = 0
		if again := r.kpa.reconcile(r.now); again > 0 {
			r.again = r.now + again
		}
		if r.pods == int(r.kpa.replicas) {
			return
		}
		r.pods = int(r.kpa.replicas)
	}
}

// load has the given concurrency reported every second for a while.
func (r *revision) load(concurrency float64, lasts time.Duration) {
	for end := r.now + lasts; r.now < end; {
		r.now += time.Second
		r.second(concurrency)
	}
}

func (r *revision) second(concurrency float64) {
	if r.again > 0 && r.now >= r.again {
		r.reconcile()
	}
	if r.pods > 0 || concurrency > 0 {
		r.kpa.record(r.now, concurrency, concurrency)
	}
	if r.now%scalePeriod == 0 && r.kpa.decide(r.now) {
		r.reconcile()
	}
}

// zeroAfter is how long the revision has pods when nothing comes any more.
func (r *revision) zeroAfter(most time.Duration) time.Duration {
	r.t.Helper()
	start := r.now
	for r.now < start+most {
		r.now += time.Second
		r.second(0)
		if r.pods == 0 {
			return r.now - start
		}
	}
	r.t.Fatalf("there are %d pods after %v without requests", r.pods, most)
	return 0
}

func (r *revision) panicking() bool {
	r.t.Helper()
	g, err := r.kpa.read()
	if err != nil {
		r.t.Fatal(err)
	}
	return g.panicking
}

func TestPanicModeBeginsAtTwiceThePodsThatAreReady(t *testing.T) {
	for _, tt := range []struct {
		name        string
		concurrency float64 // per second during one panic window, with 4 pods for 10 each
		want        bool
	}{
		{"at the target", 40, false},
		{"just below twice", 70, false},
		{"above 7 pods, which is 8", 71, true},
		{"twice", 80, true},
		{"far above", 800, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRevision(t, false, "validate.max-scale=4") // so that pods do not follow
			r.load(40, 3*time.Minute)
			if r.pods != 4 {
				t.Fatalf("pods at the target: got %d, want 4", r.pods)
			}
			for end := r.now + 2*time.Minute; r.panicking() && r.now < end; {
				r.load(40, time.Second) // the first pod was one when 40 came
			}
			r.load(tt.concurrency, 8*time.Second)
			if got := r.panicking(); got != tt.want {
				t.Errorf("panic mode: got %t, want %t", got, tt.want)
			}
		})
	}
}

func TestPodsAreNotStoppedInPanicMode(t *testing.T) {
	r := newRevision(t, false)
	r.load(10, 2*time.Minute)
	r.load(100, 8*time.Second)
	most := r.pods
	if !r.panicking() || most < 8 {
		t.Fatalf("after a flood: %d pods, panic mode %t; want at least 8 and true", most, r.panicking())
	}
	for r.load(10, time.Second); r.panicking(); r.load(10, time.Second) {
		if r.pods < most {
			t.Fatalf("%d of %d pods are left in panic mode", r.pods, most)
		}
	}
	r.load(10, 90*time.Second)
	if r.pods != 1 {
		t.Errorf("pods a while after panic mode: got %d, want 1", r.pods)
	}
}

func TestBounds(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changes []string
		load    float64
		want    int
	}{
		{"as many as the load needs", nil, 95, 10},
		{"max-scale", []string{"validate.max-scale=3"}, 95, 3},
		{"min-scale under load", []string{"validate.min-scale=2"}, 5, 2},
		{"min-scale without", []string{"validate.min-scale=2"}, 0, 2},
		{"activation-scale under load", []string{"validate.activation-scale=4"}, 5, 4},
		{"activation-scale without", []string{"validate.activation-scale=4"}, 0, 0},
		{"target utilization", []string{"validate.target-utilization-percentage=50"}, 40, 8},
		{"containerConcurrency below the target", []string{"validate.container-concurrency=5"}, 40, 8},
		{"rps", []string{"validate.metric=rps"}, 95, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRevision(t, false, tt.changes...)
			r.load(tt.load, 3*time.Minute)
			if r.pods != tt.want {
				t.Errorf("pods: got %d, want %d", r.pods, tt.want)
			}
		})
	}
}

func TestInitialScaleHoldsUntilItIsReached(t *testing.T) {
	r := newRevision(t, true, "validate.initial-scale=3")
	if r.pods != 3 {
		t.Fatalf("pods of a new revision: got %d, want 3", r.pods)
	}
	if zero := r.zeroAfter(10 * time.Minute); zero < time.Minute {
		t.Errorf("a new revision without requests goes to zero after %v, want not before its stable window of 60s", zero)
	}
}

// To zero leads the stable window, and then the grace period unless the activator has been in the path for so long already;
// the last pod stays for its retention at the least. Windows are averaged in seconds and looked at every two.
func TestScaleToZero(t *testing.T) {
	const slack = 4 * time.Second
	for _, tt := range []struct {
		name    string
		changes []string
		want    time.Duration
	}{
		{"stable window and grace period", nil, 90 * time.Second},
		{"the activator has always been in the path", []string{"validate.target-burst-capacity=-1"}, 60 * time.Second},
		{"the activator has been in the path for long", []string{"validate.target-burst-capacity=200"}, 60 * time.Second},
		{"a shorter window", []string{"validate.window=20s"}, 50 * time.Second},
		{"retention above the grace period", []string{"validate.scale-to-zero-pod-retention-period=50s"}, 110 * time.Second},
		{
			"retention with the activator in the path",
			[]string{"validate.target-burst-capacity=-1", "validate.scale-to-zero-pod-retention-period=50s"}, 110 * time.Second,
		},
		// The delay is kept in steps of two seconds, the present one among them.
		{"scale-down-delay", []string{"validate.scale-down-delay=40s"}, 128 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRevision(t, false, tt.changes...)
			r.load(5, 3*time.Minute)
			if r.pods != 1 {
				t.Fatalf("pods under load: got %d, want 1", r.pods)
			}
			if got := r.zeroAfter(10 * time.Minute); got < tt.want || got > tt.want+slack {
				t.Errorf("zero after %v, want %v to %v", got, tt.want, tt.want+slack)
			}
		})
	}
}

func TestScaleToZeroCanBeSwitchedOff(t *testing.T) {
	r := newRevision(t, false)
	cluster := *r.kpa.cluster
	cluster.EnableScaleToZero = false
	r.kpa.cluster = &cluster
	r.load(5, time.Minute)
	r.load(0, 10*time.Minute)
	if r.pods != 1 {
		t.Errorf("pods: got %d, want 1", r.pods)
	}
}

func TestScaleDownDelayKeepsPods(t *testing.T) {
	without, with := newRevision(t, false), newRevision(t, false, "validate.scale-down-delay=60s")
	for _, r := range []*revision{without, with} {
		r.load(80, 3*time.Minute)
		r.load(5, 56*time.Second)
	}
	if without.pods > 2 || with.pods != 8 {
		t.Errorf("pods 56 s after most of the load went: got %d without and %d with a delay, want at most 2 and 8", without.pods, with.pods)
	}
}

func TestFirstRequestAtZeroIsNotWaitedFor(t *testing.T) {
	r := newRevision(t, false)
	r.now = 500 * time.Millisecond
	if !r.kpa.poke(r.now) {
		t.Fatal("poke: got no new decision")
	}
	r.reconcile()
	if r.pods != 1 {
		t.Errorf("pods: got %d, want 1", r.pods)
	}
}

func TestActivatorIsInThePathUntilABurstFits(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changes []string
		load    float64
		want    bool
	}{
		{"a pod of 10 has no room for 15", []string{"validate.min-scale=1", "validate.target-burst-capacity=15"}, 1, true},
		{"three pods of 10 with 14 have", []string{"validate.min-scale=3", "validate.target-burst-capacity=15"}, 14, false},
		{"three pods of 10 with 16 have not", []string{"validate.min-scale=3", "validate.target-burst-capacity=15"}, 16, true},
		{"never with a capacity of 0", []string{"validate.min-scale=1", "validate.target-burst-capacity=0"}, 10, false},
		{"except at zero", []string{"validate.target-burst-capacity=0"}, 0, true},
		{"always with a capacity of -1", []string{"validate.min-scale=20", "validate.target-burst-capacity=-1"}, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRevision(t, false, tt.changes...)
			r.load(tt.load, 3*time.Minute)
			if got := r.kpa.status.proxy; got != tt.want {
				t.Errorf("activator in the path with %d pods: got %t, want %t", r.pods, got, tt.want)
			}
		})
	}
}
