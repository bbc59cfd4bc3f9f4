package robots

import (
	"math"
	"testing"
	"time"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// testConfig is a fleet whose world is eventful.
func testConfig(robots int) Config {
	cfg := DefaultConfig()
	cfg.Robots, cfg.RunID = robots, "run"
	cfg.Start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	return cfg
}

// testRobots are robots that have been started, without a fleet.
func testRobots(cfg Config) []*robot {
	m := newManifest(cfg.RunID, cfg.Robots)
	var all []*robot
	for i := range cfg.Robots {
		r := newRobot(i+1, &cfg, town)
		r.start(0, m)
		all = append(all, r)
	}
	return all
}

func TestRobotsStayOnStreetsWithinLimits(t *testing.T) {
	for _, r := range testRobots(testConfig(20)) {
		before := r.drive.place()
		for i := range 20_000 { // 66 minutes
			r.advance(0.2)
			at, d := r.drive.place(), &r.drive
			if moved := math.Hypot(at.x-before.x, at.y-before.y); moved > 3.4*0.2+1e-9 {
				t.Fatalf("%s: moved %.2f m in 0.2 s", r.id, moved)
			}
			before = at
			if d.heading < 0 || d.heading >= 360 {
				t.Fatalf("%s: heading %v", r.id, d.heading)
			}
			if d.arrived() {
				if d.speed != 0 {
					t.Fatalf("%s: %.2f m/s at rest", r.id, d.speed)
				}
				continue
			}
			e := &town.edges[d.edge]
			if d.along < 0 || d.along > e.length {
				t.Fatalf("%s step %d: %.2f m along a street of %.2f m", r.id, i, d.along, e.length)
			}
			if d.speed > e.limit+1e-9 {
				t.Fatalf("%s step %d: %.2f m/s where %.2f are allowed", r.id, i, d.speed, e.limit)
			}
		}
	}
}

func TestRobotsAccelerateNoFasterThanTheyCan(t *testing.T) {
	for _, r := range testRobots(testConfig(10)) {
		before := r.drive.speed
		for range 10_000 {
			r.advance(0.2)
			if gained := r.drive.speed - before; gained > acceleration*0.2+creepSpeed+1e-9 {
				t.Fatalf("%s gained %.2f m/s in 0.2 s", r.id, gained)
			}
			before = r.drive.speed
		}
	}
}

func TestBatteryStaysBetweenEmptyAndFull(t *testing.T) {
	drained, charged := false, false
	for _, r := range testRobots(testConfig(50)) {
		before := r.battery.percent
		for range 6 * 3600 { // six hours
			r.advance(1)
			p := r.battery.percent
			if p <= 0 || p > 100 {
				t.Fatalf("%s (%s): %.2f %%", r.id, r.status, p)
			}
			drained, charged = drained || p < before, charged || p > before
			before = p
		}
	}
	if !drained || !charged {
		t.Errorf("drained %v, charged %v: want both", drained, charged)
	}
}

func TestStatusChangesAreLegal(t *testing.T) {
	const idle, delivering, returning, charging, fault = telemetry.StatusIdle, telemetry.StatusDelivering,
		telemetry.StatusReturning, telemetry.StatusCharging, telemetry.StatusFault
	legal := map[[2]telemetry.Status]int{
		{idle, delivering}:      0,
		{delivering, returning}: 0,
		{returning, charging}:   0,
		{returning, idle}:       0,
		{charging, idle}:        0,
		{delivering, fault}:     0,
		{returning, fault}:      0,
		{fault, delivering}:     0,
		{fault, returning}:      0,
	}
	for _, r := range testRobots(testConfig(100)) {
		beforeFault := telemetry.Status("")
		for range 6 * 3600 {
			before := r.status
			r.advance(1)
			if (r.status == fault) != (r.fault != nil) {
				t.Fatalf("%s: status %s with fault %v", r.id, r.status, r.fault)
			}
			if (r.deliveryID != "") != (r.status == delivering || r.status == fault && r.resume == delivering) {
				t.Fatalf("%s: status %s with delivery %q", r.id, r.status, r.deliveryID)
			}
			if r.status == before {
				continue
			}
			change := [2]telemetry.Status{before, r.status}
			if _, ok := legal[change]; !ok {
				t.Fatalf("%s went from %s to %s", r.id, before, r.status)
			}
			legal[change]++
			if r.status == fault {
				beforeFault = before
			}
			if before == fault && r.status != beforeFault {
				t.Fatalf("%s was %s, broke down, and is %s", r.id, beforeFault, r.status)
			}
		}
	}
	for change, n := range legal {
		if n == 0 {
			t.Errorf("nobody went from %s to %s in 600 hours", change[0], change[1])
		}
	}
}

func TestReadingsAreNearTheRobotAndValid(t *testing.T) {
	cfg := testConfig(30)
	var decoded telemetry.Reading
	for _, r := range testRobots(cfg) {
		for i := range 2000 {
			at := time.Duration(i) * 700 * time.Millisecond
			r.measure(at, cfg.Start)
			reading := r.reading
			if err := telemetry.Decode(appendReading(nil, &reading), &decoded); err != nil {
				t.Fatalf("%s: %v\n%s", r.id, err, appendReading(nil, &reading))
			}
			if err := telemetry.CheckTime(&reading, cfg.Start.Add(at)); err != nil {
				t.Fatalf("%s: %v", r.id, err)
			}
			is := town.latLon(r.drive.place())
			off := math.Hypot(reading.Position.LatDeg-is.LatDeg, (reading.Position.LonDeg-is.LonDeg)*town.cosLat) * metresPerDegree
			if off > 30 {
				t.Fatalf("%s: reported %.1f m from where it is", r.id, off)
			}
		}
	}
}

func TestClocksAreWrongWithinTheRules(t *testing.T) {
	near, far := 0, 0
	for _, r := range testRobots(testConfig(2000)) {
		switch off := r.skew.Abs(); {
		case off > telemetry.MaxSkew/2:
			t.Errorf("%s is off by %v", r.id, r.skew)
		case off >= offAtLeast:
			far++
		default:
			near++
		}
	}
	if far == 0 || far > near/20 {
		t.Errorf("%d clocks off by minutes, %d by less: want a few", far, near)
	}
}

func TestSampledIsOneRobotInTwenty(t *testing.T) {
	n := 0
	for i := range 1000 {
		if Sampled(RobotID(i + 1)) {
			n++
		}
	}
	if n != 50 {
		t.Errorf("%d of 1000 sampled, want 50", n)
	}
	for _, id := range []string{"", "R-", "R-000000", "G-000001", "R-00001", "R-+00001"} {
		if Sampled(id) {
			t.Errorf("Sampled(%q) = true", id)
		}
	}
}
