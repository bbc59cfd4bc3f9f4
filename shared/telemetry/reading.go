package telemetry

import (
	"encoding/json"
	"time"
)

// Status says what a robot is doing.
type Status string

// The statuses a robot can report.
const (
	StatusIdle       Status = "idle"
	StatusDelivering Status = "delivering"
	StatusReturning  Status = "returning"
	StatusCharging   Status = "charging"
	StatusPaused     Status = "paused"
	StatusFault      Status = "fault"
)

// Reading is one measurement of one robot. RobotID, BootID and Seq together identify it for ever.
type Reading struct {
	// RobotID names the robot, for example "R-000017".
	RobotID string `json:"robot_id"`
	// BootID names one run of the robot's software, from power-on to power-off.
	BootID string `json:"boot_id"`
	// Seq counts the readings of a boot: 1, 2, 3, … without gaps, so that storage can prove loss by itself.
	Seq int64 `json:"seq"`
	// Time is when the robot measured, by its own clock, in UTC.
	Time            time.Time `json:"time"`
	Position        Position  `json:"position"`
	Battery         Battery   `json:"battery"`
	Status          Status    `json:"status"`
	Fault           *Fault    `json:"fault,omitempty"`
	DeliveryID      string    `json:"delivery_id,omitempty"`
	SoftwareVersion string    `json:"software_version,omitempty"`
	// Extra holds the unknown fields as one compact JSON object, or is nil. Those of an object are under its name:
	// {"gripper":{"open":true},"battery":{"voltage_v":48.1}}.
	Extra json.RawMessage `json:"-"`
}

// Position is where a robot is, in WGS 84.
type Position struct {
	LatDeg     float64 `json:"lat_deg"`     // degrees north, -90 to 90
	LonDeg     float64 `json:"lon_deg"`     // degrees east, -180 to 180
	HeadingDeg float64 `json:"heading_deg"` // degrees clockwise from north, 0 ≤ heading < 360
	SpeedMPS   float64 `json:"speed_mps"`   // metres per second over ground
	AccuracyM  float64 `json:"accuracy_m"`  // radius of 68 % confidence, metres
}

// Battery is the state of a robot's battery.
type Battery struct {
	Percent  float64 `json:"percent"` // 0 to 100
	Charging bool    `json:"charging"`
}

// Fault is what a robot reports when its Status is StatusFault.
type Fault struct {
	Code    string `json:"code"` // for example "MOTOR_STALL"
	Message string `json:"message,omitempty"`
}
