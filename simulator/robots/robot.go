package robots

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/telemetry"
)

// The streams of random numbers that are drawn from one seed. A robot has one for the world and one for its software and
// network, so that asking for bad messages does not change where the robots drive.
const (
	streamStreets uint64 = iota
	streamWorld
	streamNet
)

// robot is one robot. It belongs to one shard, whose goroutine is the only one to touch it.
type robot struct {
	number int // from 1
	id     string
	source string
	runID  string
	world  *rand.Rand
	net    *rand.Rand

	at      time.Duration // simulated time up to which the world has been advanced
	drive   drive
	battery battery
	gnss    gnss
	work

	boot        *bootRecord
	boots       int
	reading     telemetry.Reading // the last one
	badOnes     int64             // bad messages of the boot
	rebootAt    time.Duration
	rebootEvery time.Duration
	version     string
	skew        time.Duration // by which the clock is ahead
	link        link
	plain       bool // publishes bare JSON instead of CloudEvents
	gateway     *gateway
}

// RobotID is the id of the n-th robot, counted from 1: "R-000001".
func RobotID(n int) string { return fmt.Sprintf("R-%06d", n) }

// Sampled says whether a robot is one of the twentieth of the fleet whose readings Config.OnPublish hears of.
func Sampled(robotID string) bool {
	n, ok := robotNumber(robotID)
	return ok && sampled(n)
}

func sampled(number int) bool { return number%20 == 1 }

// versions of the robots' software, by how common they are.
var versions = []string{"2.4.1", "2.4.1", "2.4.1", "2.4.1", "2.4.1", "2.4.1", "2.5.0", "2.5.0", "2.3.7", "2.6.0-rc.1"}

func newRobot(number int, cfg *Config, streets *Streets) *robot {
	random := func(stream uint64) *rand.Rand {
		return rand.New(rand.NewPCG(cfg.Seed, uint64(number)<<8|stream))
	}
	r := &robot{
		number: number, id: RobotID(number), source: event.RobotSource(RobotID(number)), runID: cfg.RunID,
		world: random(streamWorld), net: random(streamNet),
		rebootEvery: cfg.RebootEvery,
	}
	r.drive.streets = streets
	r.gnss.accuracy = 1 + 2*r.world.Float64()
	r.settle()
	r.skew = drawSkew(r.net)
	r.link.every = cfg.OfflineEvery
	r.link.plan(0, r.net)
	return r
}

// start begins a boot.
func (r *robot) start(t time.Duration, m *Manifest) {
	r.boots++
	r.boot = m.addBoot(r.number, r.boots)
	r.reading.Seq, r.badOnes = 0, 0
	r.version = versions[r.net.IntN(len(versions))]
	r.rebootAt = after(t, r.rebootEvery, r.net)
}

// measure advances the robot to a simulated time and makes its next reading.
func (r *robot) measure(t time.Duration, start time.Time) {
	r.advance((t - r.at).Seconds())
	r.at = t
	r.gnss.advance(r)
	place := r.drive.place()
	at := r.drive.streets.latLon(point{place.x + r.gnss.off.x, place.y + r.gnss.off.y})
	r.reading = telemetry.Reading{
		RobotID: r.id,
		BootID:  r.boot.bootID,
		Seq:     r.reading.Seq + 1,
		Time:    start.Add(t + r.skew).Truncate(time.Millisecond).UTC(),
		Position: telemetry.Position{
			LatDeg:     round(at.LatDeg, powersOfTen[decimalsDegrees]),
			LonDeg:     round(at.LonDeg, powersOfTen[decimalsDegrees]),
			HeadingDeg: normalHeading(round(r.drive.heading, powersOfTen[decimalsHeading])), // 359.97 rounds to 360
			SpeedMPS:   round(r.drive.speed, powersOfTen[decimalsSpeed]),
			AccuracyM:  round(r.gnss.accuracy, powersOfTen[decimalsMetres]),
		},
		Battery: telemetry.Battery{
			Percent:  round(r.battery.percent, powersOfTen[decimalsPercent]),
			Charging: r.status == telemetry.StatusCharging,
		},
		Status:          r.status,
		Fault:           r.fault,
		DeliveryID:      r.deliveryID,
		SoftwareVersion: r.version,
	}
}
