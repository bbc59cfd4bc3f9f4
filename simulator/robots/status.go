package robots

import (
	"fmt"
	"math"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// How long things take and how often they go wrong, in seconds.
const (
	idleMost           = 90.0   // wait at the depot for the next delivery, at most
	repairLeast        = 15.0   // a fault lasts at least
	repairMost         = 120.0  // and at most
	betweenFaults      = 3600.0 // mean driving time between faults
	shareBadlyCharging = 0.02   // of faults while driving that come from the battery
)

// faults are what can go wrong on the road.
var faults = []*telemetry.Fault{
	{Code: "MOTOR_STALL", Message: "rear left motor drew over 12 A for 2 s"},
	{Code: "WHEEL_SLIP", Message: "odometry and GNSS differ by more than 15 %"},
	{Code: "LIDAR_BLOCKED", Message: "front sensor is covered"},
	{Code: "PATH_BLOCKED", Message: "no way around the obstacle, waiting for an operator"},
	{Code: "LID_OPEN", Message: "cargo lid is open while driving"},
}

var faultBattery = &telemetry.Fault{Code: "BATTERY_HOT", Message: "cell temperature over 55 °C"}

// work is what a robot does: the status machine
//
//	idle → delivering → returning → charging → idle
//
// with a short cut (returning → idle, when the battery lasts) and, while driving, fault and back to what it did before. No
// robot pauses of its own accord.
type work struct {
	status     telemetry.Status
	wait       float64 // seconds left to be idle, or to be repaired
	untilFault float64 // seconds of driving left before the next fault
	fault      *telemetry.Fault
	resume     telemetry.Status // what to go back to after a fault
	deliveries int              // taken so far
	deliveryID string
}

// settle puts a new robot somewhere in the middle of a working day.
func (r *robot) settle() {
	s := r.drive.streets
	r.untilFault = r.world.ExpFloat64() * betweenFaults
	r.battery.percent = 40 + r.world.Float64()*(batteryFull-40)
	r.drive.heading = r.world.Float64() * 360
	r.drive.edge = noEdge
	switch p := r.world.Float64(); {
	case p < 0.15:
		r.drive.node = s.depots[r.world.IntN(len(s.depots))]
		r.rest()
	case p < 0.30:
		r.drive.node = s.depots[r.world.IntN(len(s.depots))]
		r.status = telemetry.StatusCharging
	case p < 0.70:
		r.drive.node = uint16(r.world.IntN(len(s.nodes)))
		r.deliver()
	default:
		r.drive.node = uint16(r.world.IntN(len(s.nodes)))
		r.goHome()
	}
}

// advance lets some seconds pass for the robot.
func (r *robot) advance(seconds float64) {
	// Long steps are cut, so that a robot that reports once an hour still does what it would have done meanwhile.
	for seconds > 0 {
		h := min(seconds, 1)
		seconds -= h
		r.step(h)
	}
}

func (r *robot) step(seconds float64) {
	metres := 0.0
	switch r.status {
	case telemetry.StatusIdle:
		if r.wait -= seconds; r.wait <= 0 {
			r.deliver()
		}
	case telemetry.StatusDelivering, telemetry.StatusReturning:
		metres = r.drive.advance(seconds)
		switch {
		case r.drive.arrived() && r.status == telemetry.StatusDelivering:
			r.goHome()
		case r.drive.arrived() && r.battery.percent < batteryLow:
			r.status = telemetry.StatusCharging
		case r.drive.arrived():
			r.rest()
		default:
			if r.untilFault -= seconds; r.untilFault <= 0 {
				r.breakDown()
			}
		}
	case telemetry.StatusCharging:
		r.battery.charge(seconds)
		if r.battery.percent >= batteryFull {
			r.rest()
		}
	case telemetry.StatusFault:
		if r.wait -= seconds; r.wait <= 0 {
			r.status, r.fault = r.resume, nil
			r.untilFault = r.world.ExpFloat64() * betweenFaults
		}
	}
	if r.status != telemetry.StatusCharging {
		r.battery.drain(metres, seconds)
	}
}

func (r *robot) rest() {
	r.status, r.deliveryID = telemetry.StatusIdle, ""
	r.wait = r.world.Float64() * idleMost
}

func (r *robot) deliver() {
	r.status = telemetry.StatusDelivering
	r.deliveries++
	r.deliveryID = fmt.Sprintf("D-%06d-%s-%04d", r.number, r.runID, r.deliveries)
	r.drive.to(uint16(r.world.IntN(len(r.drive.streets.nodes))))
}

func (r *robot) goHome() {
	r.status, r.deliveryID = telemetry.StatusReturning, ""
	r.drive.to(r.drive.streets.nearestDepot(r.drive.node))
}

func (r *robot) breakDown() {
	r.fault = faults[r.world.IntN(len(faults))]
	if r.world.Float64() < shareBadlyCharging {
		r.fault = faultBattery
	}
	r.status, r.resume = telemetry.StatusFault, r.status
	r.drive.speed = 0
	r.wait = repairLeast + r.world.Float64()*(repairMost-repairLeast)
}

// gnss is the error of a robot's satellite positions: it wanders, as real ones do, instead of jumping.
type gnss struct {
	accuracy float64 // metres, radius of 68 % confidence
	off      point   // metres
}

// advance lets the error wander for one reading.
func (g *gnss) advance(r *robot) {
	const keep = 0.9
	g.accuracy = min(6, max(0.8, g.accuracy+0.1*r.world.NormFloat64()))
	// 68 % of a two-dimensional normal distribution lie within 1.51 σ; the factor keeps the variance of the walk at σ².
	sigma := g.accuracy / 1.51 * math.Sqrt(1-keep*keep)
	g.off.x = keep*g.off.x + sigma*r.world.NormFloat64()
	g.off.y = keep*g.off.y + sigma*r.world.NormFloat64()
}
