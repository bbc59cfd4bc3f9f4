package robots

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/telemetry"
)

// recorder is a Publisher that confirms at once and remembers.
type recorder struct {
	mu       sync.Mutex
	messages []*Message
	at       []time.Time
	fail     func(*Message) error // may be nil
	wait     time.Duration        // that each message takes
}

func (p *recorder) Publish(_ context.Context, m *Message, report func(*Message, error)) {
	time.Sleep(p.wait)
	p.mu.Lock()
	p.messages = append(p.messages, m)
	p.at = append(p.at, time.Now())
	p.mu.Unlock()
	var err error
	if p.fail != nil {
		err = p.fail(m)
	}
	report(m, err)
}

func (p *recorder) Flush() {}

// byRobot are the messages of each robot or gateway in order, as text.
func (p *recorder) byRobot() map[string][]string {
	out := map[string][]string{}
	for _, m := range p.messages {
		key := m.Attributes["ce-"+event.ExtPartitionKey]
		attributes, _ := json.Marshal(m.Attributes) // a map of strings always encodes; keys come sorted
		out[key] = append(out[key], string(attributes)+string(m.Data[:min(len(m.Data), 2000)]))
	}
	return out
}

// runFleet runs a fleet in fake time.
func runFleet(t *testing.T, cfg Config, p Publisher) *Fleet {
	t.Helper()
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		if err := f.Run(t.Context(), p); err != nil {
			t.Error(err)
		}
	})
	return f
}

// busyConfig is a short run in which everything happens.
func busyConfig() Config {
	cfg := testConfig(40)
	cfg.Rate, cfg.Duration = 5, 2*time.Minute
	cfg.BadRatio = 0.02
	cfg.OfflineEvery, cfg.RebootEvery = 30*time.Second, 30*time.Second
	return cfg
}

func TestSameSeedPublishesTheSameMessages(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"robots":   func(*Config) {},
		"gateways": func(c *Config) { c.Gateway = 7 },
		"day":      func(c *Config) { c.Profile = mustProfile(t, "day:1m") },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := busyConfig()
			change(&cfg)
			var first, second, other recorder
			runFleet(t, cfg, &first)
			runFleet(t, cfg, &second)
			if diff := cmp.Diff(first.byRobot(), second.byRobot()); diff != "" {
				t.Errorf("two runs of seed %d differ:\n%.2000s", cfg.Seed, diff)
			}
			cfg.Seed++
			runFleet(t, cfg, &other)
			if cmp.Equal(first.byRobot(), other.byRobot()) {
				t.Error("another seed published the same")
			}
		})
	}
}

func TestMessagesFollowTheContract(t *testing.T) {
	cfg := busyConfig()
	cfg.PlainRatio = 0.25
	var p recorder
	f := runFleet(t, cfg, &p)

	next := map[string]int64{} // by robot and boot
	plain, injected := map[string]bool{}, map[BadKind]int64{}
	for i, m := range p.messages {
		if m.bad != "" {
			injected[m.bad]++
			id := m.Attributes["ce-id"]
			entry, ok := f.Manifest().Lookup(id)
			if want := (Entry{Confirmed: true, Bad: m.bad, Reason: m.bad.Reason()}); !ok || entry != want {
				t.Errorf("Lookup(%q) = %+v, %v; want %+v", id, entry, ok, want)
			}
			if got := verdict(m.Data, p.at[i]); m.bad != BadLate && got != m.bad.Reason() {
				t.Errorf("%s: refused for %q", m.bad, got)
			}
			continue
		}
		var r telemetry.Reading
		if err := telemetry.Decode(m.Data, &r); err != nil {
			t.Fatalf("%v: %s", err, m.Data)
		}
		if m.duplicate {
			injected[BadDuplicate]++
		} else {
			boot := r.RobotID + "/" + r.BootID
			if next[boot]++; r.Seq != next[boot] {
				t.Fatalf("%s: seq %d where %d is next", boot, r.Seq, next[boot])
			}
		}
		if m.Attributes == nil {
			plain[r.RobotID] = true
			continue
		}
		want := map[string]string{
			"ce-specversion":  "1.0",
			"ce-id":           event.ReadingID(r.RobotID, r.BootID, r.Seq),
			"ce-type":         event.TypeTelemetry,
			"ce-source":       event.RobotSource(r.RobotID),
			"ce-time":         r.Time.Format(time.RFC3339Nano),
			"ce-partitionkey": r.RobotID,
			"content-type":    "application/json",
		}
		if diff := cmp.Diff(want, m.Attributes); diff != "" {
			t.Fatalf("attributes (-want +got):\n%s", diff)
		}
	}
	if len(plain) != 10 {
		t.Errorf("%d of 40 robots publish plain JSON, want 10", len(plain))
	}
	for _, kind := range BadKinds() {
		if injected[kind] == 0 {
			t.Errorf("no %s among %d messages", kind, len(p.messages))
		}
	}
	if diff := cmp.Diff(injected, f.Stats().Injected); diff != "" {
		t.Errorf("Stats().Injected (-found +got):\n%s", diff)
	}
	if len(next) < 80 {
		t.Errorf("%d boots of 40 robots: want reboots", len(next))
	}
	// All that was measured has been published: what is due at the rate, to within one reading per robot.
	if want := 40 * 5 * 120; math.Abs(float64(f.Manifest().Sent())-float64(want)) > 40 {
		t.Errorf("sent %d, want %d", f.Manifest().Sent(), want)
	}
	var sum int64
	for boot := range f.Manifest().Boots() {
		if boot.Last != next[boot.RobotID+"/"+boot.BootID] {
			t.Errorf("%s/%s: manifest has %d, published %d", boot.RobotID, boot.BootID, boot.Last, next[boot.RobotID+"/"+boot.BootID])
		}
		sum += boot.Last
	}
	if sum != f.Manifest().Sent() || sum != f.Stats().Measured {
		t.Errorf("boots hold %d, sent %d, measured %d", sum, f.Manifest().Sent(), f.Stats().Measured)
	}
}

func TestOfflineReadingsArePublishedInABurst(t *testing.T) {
	cfg := testConfig(8)
	cfg.Duration, cfg.OfflineEvery, cfg.RebootEvery = 5*time.Minute, time.Minute, 0
	var p recorder
	f := runFleet(t, cfg, &p)
	bursts := 0
	last := map[string]time.Time{}
	run := map[string]int{}
	for i, m := range p.messages {
		id := m.Attributes["ce-"+event.ExtPartitionKey]
		if p.at[i].Equal(last[id]) {
			if run[id]++; run[id] == 20 {
				bursts++
			}
		} else {
			run[id] = 0
		}
		last[id] = p.at[i]
	}
	if bursts < 8 {
		t.Errorf("%d bursts of readings kept offline", bursts)
	}
	if got := f.Manifest().Sent(); got != 8*5*300 {
		t.Errorf("sent %d, want %d: none lost", got, 8*5*300)
	}
	if off := f.Stats().Offline; off != 0 {
		t.Errorf("%d robots offline after the run", off)
	}
}

func TestGatewaysPublishArrays(t *testing.T) {
	cfg := testConfig(100)
	cfg.Gateway, cfg.Duration, cfg.PlainRatio = 10, 10*time.Second, 0.1
	var p recorder
	f := runFleet(t, cfg, &p)
	ids, readings, plain := map[string]bool{}, 0, 0
	for _, m := range p.messages {
		var batch []telemetry.Reading
		if err := json.Unmarshal(m.Data, &batch); err != nil {
			t.Fatal(err)
		}
		readings += len(batch)
		if m.Attributes == nil {
			plain++
			continue
		}
		if id := m.Attributes["ce-id"]; ids[id] {
			t.Errorf("id %q twice", id)
		} else {
			ids[id] = true
		}
	}
	if int64(readings) != f.Manifest().Sent() || readings != 5000 {
		t.Errorf("%d readings published, %d sent, want 5000", readings, f.Manifest().Sent())
	}
	if plain == 0 || plain > len(p.messages)/9 {
		t.Errorf("%d of %d messages plain, want a tenth", plain, len(p.messages))
	}
	if most := 5000/10 + 10; len(p.messages) > most {
		t.Errorf("%d messages for 5000 readings, want at most %d", len(p.messages), most)
	}
}

func TestReadingsAreSpreadEvenly(t *testing.T) {
	cfg := testConfig(500)
	cfg.Duration, cfg.OfflineEvery = 10*time.Second, 0
	var p recorder
	runFleet(t, cfg, &p)
	perSlice := map[int64]int{}
	for _, at := range p.at {
		perSlice[at.Sub(p.at[0]).Milliseconds()/100]++
	}
	for slice, n := range perSlice {
		if slice < 99 && (n < 225 || n > 275) {
			t.Errorf("%d readings in the %d-th tenth of a second, want about 250", n, slice)
		}
	}
}

func TestBurstFloodsAfterSilence(t *testing.T) {
	cfg := testConfig(100)
	cfg.Duration, cfg.OfflineEvery = 20*time.Second, 0
	cfg.Profile = mustProfile(t, "burst:10s")
	var p recorder
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where the clock of a synctest bubble starts
	runFleet(t, cfg, &p)
	perSecond := map[int64]int{}
	for _, at := range p.at {
		perSecond[int64(at.Add(-20*time.Millisecond).Sub(start)/time.Second)]++
	}
	for second := range int64(20) {
		want := 0
		if second%10 >= 8 {
			want = 2500
		}
		if got := perSecond[second]; math.Abs(float64(got-want)) > 50 {
			t.Errorf("second %d: %d readings, want about %d", second, got, want)
		}
	}
}

func TestScheduleSlipsWhenPublishingCannotKeepUp(t *testing.T) {
	cfg := testConfig(100)
	cfg.Duration, cfg.OfflineEvery = time.Minute, 0
	p := recorder{wait: 80 * time.Millisecond} // 4 shards publish 50 per second, 500 are due
	f := runFleet(t, cfg, &p)
	if slipped := f.Stats().Slipped; slipped < 40*time.Second || slipped > time.Minute {
		t.Errorf("slipped %v", slipped)
	}
	for i := 1; i < len(p.at); i++ {
		if p.at[i].Sub(p.at[0]) > time.Minute+2*mostBehind {
			t.Fatalf("a reading is published %v after the first", p.at[i].Sub(p.at[0]))
		}
	}
	if n := f.Manifest().Sent(); n < 2000 || n > 5000 {
		t.Errorf("sent %d, want about 50 per second", n)
	}
}

func TestUnconfirmedMessagesAreNamed(t *testing.T) {
	cfg := testConfig(4)
	cfg.Duration, cfg.OfflineEvery = 5*time.Second, 0
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	lost := errors.New("no answer")
	p := recorder{fail: func(m *Message) error {
		if strings.HasPrefix(m.Attributes["ce-id"], "R-000003/run-1/") && m.readings[0].seq%10 == 0 {
			return lost
		}
		return nil
	}}
	synctest.Test(t, func(t *testing.T) {
		if err := f.Run(t.Context(), &p); !errors.Is(err, lost) {
			t.Errorf("Run = %v, want %v", err, lost)
		}
	})
	want := []string{"R-000003/run-1/10", "R-000003/run-1/20"}
	if diff := cmp.Diff(want, slices.Collect(f.Manifest().Unconfirmed())); diff != "" {
		t.Errorf("unconfirmed (-want +got):\n%s", diff)
	}
	if got := f.Manifest().Sent(); got != 4*25-2 {
		t.Errorf("sent %d, want 98", got)
	}
	f.Manifest().Good(func(robotID, bootID string, seq int64) bool {
		if slices.Contains(want, event.ReadingID(robotID, bootID, seq)) {
			t.Errorf("%d is among the good", seq)
		}
		return true
	})
	s := f.Stats()
	if s.Published != 100 || s.Confirmed != 98 || s.Unconfirmed != 2 || s.InFlight != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestRefusalStopsTheFleet(t *testing.T) {
	cfg := testConfig(10)
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := recorder{fail: func(*Message) error { return fmt.Errorf("%w: no topic", ErrRefused) }}
	synctest.Test(t, func(t *testing.T) {
		if err := f.Run(t.Context(), &p); !errors.Is(err, ErrRefused) {
			t.Errorf("Run = %v, want %v", err, ErrRefused)
		}
		if err := f.Run(t.Context(), &p); err == nil {
			t.Error("a fleet ran twice")
		}
	})
}

func TestCancelledRunEndsWithoutError(t *testing.T) {
	f, err := New(testConfig(10))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := f.Run(ctx, &recorder{}); err != nil {
			t.Error(err)
		}
	})
	if n := f.Manifest().Sent(); n < 140 || n > 150 {
		t.Errorf("sent %d, want about 150", n)
	}
}

func TestOnPublishHearsOfSampledRobotsOnce(t *testing.T) {
	cfg := busyConfig()
	var mu sync.Mutex
	heard := map[string]int{}
	cfg.OnPublish = func(id string, _ time.Time) {
		mu.Lock()
		defer mu.Unlock()
		heard[id]++
	}
	f := runFleet(t, cfg, &recorder{})
	want := map[string]int{}
	f.Manifest().Good(func(robotID, bootID string, seq int64) bool {
		if Sampled(robotID) {
			want[event.ReadingID(robotID, bootID, seq)] = 1
		}
		return true
	})
	if diff := cmp.Diff(want, heard); diff != "" || len(heard) == 0 {
		t.Errorf("heard of (-want +got):\n%s", diff)
	}
}

func TestConfigErrorsNameTheSetting(t *testing.T) {
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Robots = 0 }, "robots"},
		{func(c *Config) { c.Robots = 1_000_000 }, "robots"},
		{func(c *Config) { c.Rate = 0 }, "rate"},
		{func(c *Config) { c.Rate = math.NaN() }, "rate"},
		{func(c *Config) { c.Duration = -1 }, "duration"},
		{func(c *Config) { c.RunID = "" }, "run id"},
		{func(c *Config) { c.RunID = "a/b" }, "run id"},
		{func(c *Config) { c.RunID = strings.Repeat("a", 41) }, "run id"},
		{func(c *Config) { c.Centre.LatDeg = 90 }, "centre"},
		{func(c *Config) { c.BadRatio = 1.5 }, "bad ratio"},
		{func(c *Config) { c.PlainRatio = math.NaN() }, "plain ratio"},
		{func(c *Config) { c.Gateway = 0 }, "gateway"},
		{func(c *Config) { c.OfflineEvery = -1 }, "offline"},
		{func(c *Config) { c.RebootEvery = -1 }, "reboots"},
		{func(c *Config) { c.Grace = -1 }, "grace"},
	} {
		t.Run(tc.want, func(t *testing.T) {
			cfg := testConfig(1)
			tc.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v does not speak of %q", err, tc.want)
			}
		})
	}
}

// startedShard is a quarter of a fleet, ready to be driven by hand.
func startedShard(b *testing.B) *shard {
	b.Helper()
	cfg := testConfig(1000)
	cfg.BadRatio = 0.001
	f, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	f.start = cfg.Start
	s := f.shards[0]
	for _, r := range s.robots {
		r.start(0, f.manifest)
	}
	return s
}

// BenchmarkReading is what one reading costs on one core, from the world to the attributes of its message and the manifest.
func BenchmarkReading(b *testing.B) {
	s := startedShard(b)
	send := func(m *Message) {
		s.fleet.handOver(m)
		s.fleet.manifest.confirm(m)
	}
	b.ReportAllocs()
	for n := int64(0); s.made < int64(b.N); n++ {
		if err := s.tick(n, send); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(s.made)/b.Elapsed().Seconds(), "readings/s")
}

func BenchmarkEncode(b *testing.B) {
	r := testRobots(testConfig(1))[0]
	r.measure(time.Second, time.Now())
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = appendReading(buf[:0], &r.reading)
	}
	b.SetBytes(int64(len(buf)))
}
