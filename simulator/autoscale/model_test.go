package autoscale

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// setup is a Setup of the fixtures with a profile.
func setup(tb testing.TB, profile string) Setup {
	tb.Helper()
	cluster, err := DefaultCluster()
	if err != nil {
		tb.Fatal(err)
	}
	stages, err := Stages(Google)
	if err != nil {
		tb.Fatal(err)
	}
	services, err := LoadServices("testdata", nil)
	if err != nil {
		tb.Fatal(err)
	}
	p, err := ParseProfile(profile)
	if err != nil {
		tb.Fatal(err)
	}
	return Setup{
		Config: Config{Cluster: cluster, PushWindow: DefaultPushWindow, Seed: 1},
		Stages: stages, Services: services, Profile: p, Stage: "validate",
	}
}

func replay(t *testing.T, s Setup, changes ...string) Result {
	t.Helper()
	run, err := s.Replay(parseChanges(t, changes...))
	if err != nil {
		t.Fatal(err)
	}
	return run.Results[0]
}

// Whatever happens to a message, it is acked, or Pub/Sub still has it.
func TestNoMessageIsLost(t *testing.T) {
	for _, tt := range []struct {
		name, profile string
		changes       []string
		check         func(Totals) bool
		what          string
	}{
		{"steady", "steady:1000:30s", nil, func(t Totals) bool { return t.Shed == 0 }, "nothing is shed"},
		{"burst", "burst:5000:20s", nil, func(t Totals) bool { return t.Left == 0 }, "everything is served"},
		{
			"shed by the stage", "burst:5000:20s", []string{"validate.env.MAX_IN_FLIGHT=20", "validate.max-scale=1"},
			func(t Totals) bool { return t.Shed > 100 && t.Left > 0 }, "pushes are shed",
		},
		{
			"shed by queue-proxy", "burst:5000:20s",
			[]string{"validate.container-concurrency=5", "validate.max-scale=1", "validate.min-scale=1", "validate.target-burst-capacity=0"},
			func(t Totals) bool { return t.Shed > 100 }, "pushes are shed",
		},
		{
			"memory of the batcher", "burst:5000:20s", []string{"validate.env.READINGS_MAX_PENDING=5000", "validate.max-scale=1"},
			func(t Totals) bool { return t.Shed > 100 }, "pushes are shed",
		},
		{
			"writes that take longer than the ack deadline", "burst:100:10s", []string{"validate.model.write-time=40s"},
			func(t Totals) bool { return t.Expired > 10 && t.Served == 0 }, "pushes are late",
		},
		{
			"a cold start that takes longer than the ack deadline", "burst:100:10s", []string{"validate.model.cold-start=70s"},
			func(t Totals) bool { return t.Expired >= 10 && t.Left == 0 }, "pushes are late and then served",
		},
		{
			"a CPU that is too small", "burst:2000:20s", []string{"validate.cpu=10m", "validate.max-scale=1"},
			func(t Totals) bool { return t.MaxBacklog > 1000 }, "messages wait in Pub/Sub",
		},
		{"any concurrency", "burst:5000:20s", []string{"validate.container-concurrency=0"}, func(t Totals) bool { return t.Left == 0 }, "everything is served"},
		{"pods that come and go", "day:2000:5m", []string{"validate.target=5", "validate.window=6s"}, func(t Totals) bool { return t.Starts > 10 }, "many pods start"},
		{"silence", "zero:2m", nil, func(t Totals) bool { return t.Starts == 0 && t.PodHours == 0 }, "no pod starts"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := replay(t, setup(t, tt.profile), tt.changes...)
			got := r.Totals
			if got.Published != got.Served+got.Left {
				t.Errorf("published %d, but served %d and left %d", got.Published, got.Served, got.Left)
			}
			if !tt.check(got) {
				t.Errorf("want that %s; got %+v", tt.what, got)
			}
			published, served := 0, 0
			for _, s := range r.Samples {
				published, served = published+s.Published, served+s.Served
				// Requests that are being answered are in no container any more, so Pub/Sub may still count them.
				if kept := s.Backlog + s.Queued + s.InFlight; published-served < kept {
					t.Fatalf("second %d: %d messages are not served, but %d are kept", s.Second, published-served, kept)
				}
				if cc := int(r.Service.ContainerConcurrency); cc > 0 && s.InFlight > cc*s.Pods {
					t.Fatalf("second %d: %d requests in %d containers of %d", s.Second, s.InFlight, s.Pods, cc)
				}
			}
		})
	}
}

func TestReplayIsRepeatable(t *testing.T) {
	text := func() string {
		s := setup(t, "burst:3000:20s")
		s.Stage = "hot-write"
		run, err := s.Replay(parseChanges(t, "validate.target-burst-capacity=0"))
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(run)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if diff := cmp.Diff(text(), text()); diff != "" {
		t.Errorf("two replays of the same differ:\n%s", diff)
	}
}

func TestBurstFromZeroWaitsForTheColdStart(t *testing.T) {
	r := replay(t, setup(t, "burst:500:20s:10s"), "validate.model.cold-start=4s")
	if got := r.Totals.FirstReady; got == nil || *got < 14 || *got > 14.01 {
		t.Errorf("first pod ready: got %v, want 14 s: silence of 10 s and a start of 4 s", moment(got))
	}
	if got := r.Totals.Max; got < 4 || got > 6 {
		t.Errorf("longest wait: got %g s, want the cold start of 4 s and little more", got)
	}
	before := r.Samples[12] // 3 s into the burst
	if before.Queued != startWindow || before.Backlog != 3*500-startWindow {
		t.Errorf("while the pod starts: got %d queued and %d kept by Pub/Sub, want the first window of %d and the rest of 1500",
			before.Queued, before.Backlog, startWindow)
	}
	last := r.Samples[len(r.Samples)-1]
	if last.Ready != 0 || r.Totals.Zero == nil {
		t.Errorf("at the end: got %d pods ready, want none", last.Ready)
	}
}

func TestStoppedPodsDrain(t *testing.T) {
	r := replay(t, setup(t, "burst:100:10s"))
	zero := int(*r.Totals.Zero)
	for _, s := range r.Samples {
		if want := s.Second < zero+int(drainPeriod/time.Second); s.Second > 15 && want != (s.Pods > 0) {
			t.Fatalf("second %d: got %d pods, none being wanted since %d", s.Second, s.Pods, zero)
		}
	}
}

func TestPodsFollowTheLoad(t *testing.T) {
	// A request takes 5 ms for its batch and as long for its write, so 4,000/s are about 40 at a time.
	r := replay(t, setup(t, "steady:4000:4m"), "validate.target=10", "validate.target-utilization-percentage=100",
		"validate.model.write-time=5ms", "validate.model.hop=0s", "validate.env.READINGS_MAX_WAIT=10ms", "validate.env.READINGS_MAX_ITEMS=100000")
	last := r.Samples[len(r.Samples)-1]
	if last.Concurrency < 36 || last.Concurrency > 50 {
		t.Errorf("concurrency: got %g, want about 40", last.Concurrency)
	}
	if last.Ready < 4 || last.Ready > 5 {
		t.Errorf("pods for a target of 10: got %d, want 4 or 5", last.Ready)
	}
}

func TestStagesBehindGetTheBatchesOfTheirUpstream(t *testing.T) {
	s := setup(t, "steady:1000:20s")
	s.Stage = ""
	run, err := s.Replay(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(run.Results) != 2 || run.Results[0].Stage != "validate" || run.Results[1].Stage != "hot-write" {
		t.Fatalf("stages: got %d results, want validate and hot-write, which have Services", len(run.Results))
	}
	emitted := len(run.Results[0].Emitted)
	if got := run.Results[1].Totals.Published; got != emitted || got == 0 {
		t.Errorf("messages to hot-write: got %d, want validate's %d batches", got, emitted)
	}
}

func TestReplayRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, stage, change, want string
	}{
		{"a stage without a model", "control", "", `stage "control" has no model`},
		{"a stage without a Service", "cold-archive", "", "no Service cold-archive"},
		{"a change of a Service that is not there", "validate", "cold-archive.target=1", "no Service cold-archive"},
		{"a change that the webhook refuses", "validate", "validate.window=1s", "window"},
		{"a duration that is none", "validate", "validate.model.hop=fast", "model.hop"},
		{"a number that is none", "validate", "validate.container-concurrency=many", "container-concurrency"},
		{"an upstream that is wrong", "hot-write", "validate.window=1s", "upstream of hot-write"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := setup(t, "zero:10s")
			s.Stage = tt.stage
			var changes []Change
			if tt.change != "" {
				changes = parseChanges(t, tt.change)
			}
			_, err := s.Replay(changes)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Replay: got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestParseProfile(t *testing.T) {
	for _, tt := range []struct {
		text     string
		duration time.Duration
		readings int
	}{
		{"steady:1000", 5 * time.Minute, 300_000},
		{"steady:0.5:10s", 10 * time.Second, 5},
		{"burst:2000", 10*time.Second + time.Minute + 4*time.Minute, 120_000},
		{"burst:2000:5s:0s", 5*time.Second + 4*time.Minute, 10_000},
		{"zero", 5 * time.Minute, 0},
		{"zero:3s", 3 * time.Second, 0},
		{"day:100:10m", 10 * time.Minute, 60_000},
	} {
		t.Run(tt.text, func(t *testing.T) {
			p, err := ParseProfile(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			readings := 0
			for _, a := range p.arrivals() {
				readings += a.Messages * a.Readings
			}
			if p.Duration() != tt.duration || readings < tt.readings-1 || readings > tt.readings+1 {
				t.Errorf("got %v, %d readings, want %v, %d", p.Duration(), readings, tt.duration, tt.readings)
			}
		})
	}
}

func FuzzParseProfile(f *testing.F) {
	for _, s := range []string{"steady:1", "burst:2000:60s:1s", "zero", "day:1e3:1h", "steady", "steady:-1", "zero:0s", "burst:1:1s:1s:1s",
		"steady:NaN", "day:1:1ms", "wave:1", "steady:1e6:24h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseProfile(s)
		if err != nil {
			return
		}
		if p.Duration() <= 0 || p.Duration() > 3*maxDuration || p.String() != s {
			t.Errorf("ParseProfile(%q): got %q of %v", s, p, p.Duration())
		}
		for _, at := range []time.Duration{0, p.Duration() / 2, p.Duration()} {
			if r := p.Rate(at); !(r >= 0 && r <= 2*maxRate) {
				t.Errorf("ParseProfile(%q).Rate(%v): got %g", s, at, r)
			}
		}
	})
}

func TestCompareStatesTheError(t *testing.T) {
	samples := []Sample{}
	for s, ready := range []int{0, 0, 2, 2, 2, 0, 0} {
		samples = append(samples, Sample{Second: s, Wanted: ready, Ready: ready})
	}
	observed, err := ParseObserved(strings.NewReader("seconds,pods_wanted,pods_ready\n0,0,0\n1.5,1,0\n2.5,1,1\n6,0,0\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Compare(samples, observed)
	if err != nil {
		t.Fatal(err)
	}
	number := func(v float64) *float64 { return &v }
	want := Deviation{
		Seconds:    7,
		MeanWanted: (0 + 0 + 1 + 1 + 1 + 1 + 0) / 7.0,
		MeanReady:  (0 + 0 + 2 + 1 + 1 + 1 + 0) / 7.0,
		MostReady:  Pair{number(2), number(1)},
		FirstReady: Pair{number(2), number(3)},
		Zero:       Pair{number(5), number(6)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
	if _, err := Compare(samples, []Observation{{Seconds: 100}}); err == nil {
		t.Error("Compare with what does not overlap: got no error")
	}
}

func FuzzParseObserved(f *testing.F) {
	for _, s := range []string{"seconds,pods_wanted,pods_ready\n0,0,0\n1,2,1\n", "seconds,pods_wanted,pods_ready\n", "", "a,b,c\n1,1,1\n",
		"seconds,pods_wanted,pods_ready\n1,1,1\n1,1,1\n", "seconds,pods_wanted,pods_ready\nNaN,1,1\n", "seconds,pods_wanted,pods_ready\n1,-1,1\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all, err := ParseObserved(strings.NewReader(s))
		if err != nil {
			return
		}
		if len(all) == 0 {
			t.Errorf("ParseObserved(%q): nothing and no error", s)
		}
		for i := 1; i < len(all); i++ {
			if all[i].Seconds <= all[i-1].Seconds {
				t.Errorf("ParseObserved(%q): seconds do not rise", s)
			}
		}
	})
}

func TestPicturesAreWellFormedAndSmall(t *testing.T) {
	s := setup(t, "burst:5000:60s")
	changes := parseChanges(t, "validate.target=80")
	report := Report{Profile: "<burst> & more", Duration: s.Profile.Duration(), Observed: []Observation{{Seconds: 0}, {Seconds: 12, Wanted: 3, Ready: 2}}}
	for _, c := range [][]Change{nil, changes} {
		run, err := s.Replay(c)
		if err != nil {
			t.Fatal(err)
		}
		report.Runs = append(report.Runs, run)
	}
	var picture bytes.Buffer
	if err := WriteSVG(&picture, report, 0); err != nil {
		t.Fatal(err)
	}
	if picture.Len() > 40_000 {
		t.Errorf("the picture has %d bytes, want at most 40,000", picture.Len())
	}
	for _, want := range []string{"&lt;burst&gt; &amp; more", "changed: validate.target=80", "ready, observed", "ready, changed", "Pods"} {
		if !strings.Contains(picture.String(), want) {
			t.Errorf("the picture does not say %q", want)
		}
	}
	if strings.Contains(picture.String(), "NaN") || strings.Contains(picture.String(), "Inf") {
		t.Error("the picture has numbers that are none")
	}
	for d := xml.NewDecoder(&picture); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the picture is not XML: %v", err)
		}
	}
}

func TestSparkline(t *testing.T) {
	if got, want := sparkline([]float64{0, 1, 4, 8}, 8), " ▂▅█"; got != want {
		t.Errorf("sparkline: got %q, want %q", got, want)
	}
	long := make([]float64, 10*sparkWidth)
	long[len(long)-3] = 1
	if got, want := sparkline(long, 1), strings.Repeat(" ", sparkWidth-1)+"█"; got != want {
		t.Errorf("sparkline of a single peak: got %q, want %q", got, want)
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0444: "0.0444", 12: "12", 1234567: "1,234,567", 123.4: "123", 999: "999"} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v): got %q, want %q", v, got, want)
		}
	}
}

func BenchmarkReplay(b *testing.B) {
	s := setup(b, "burst:5000:60s")
	messages := 0
	for b.Loop() {
		run, err := s.Replay(nil)
		if err != nil {
			b.Fatal(err)
		}
		messages += run.Results[0].Totals.Served
	}
	b.ReportMetric(float64(messages)/b.Elapsed().Seconds(), "messages/s")
}
