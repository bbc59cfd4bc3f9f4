package robots

import "math"

// How a robot drives. The figures are those of a six-wheeled pavement robot of about 25 kg.
const (
	acceleration = 0.8   // m/s²
	braking      = 1.2   // m/s²
	slewRate     = 120.0 // degrees per second, turning on the spot
	creepSpeed   = 0.3   // m/s, the least speed of a robot that drives, so that it always arrives
	motionStep   = 0.5   // seconds, the longest step of the integration
)

// drive is a robot on its way along the streets: on an edge, or at a node when it has none.
type drive struct {
	streets *Streets
	node    uint16  // where the robot is when edge is noEdge, else where it came from
	dest    uint16  // where it goes
	edge    uint16  // the edge it is on
	along   float64 // metres from the start of the edge
	exit    float64 // m/s to slow down to by the end of the edge
	speed   float64 // m/s
	heading float64 // degrees clockwise from north
}

// to starts a way to a node from the node where the robot stands.
func (d *drive) to(dest uint16) {
	d.dest, d.along = dest, 0
	d.enter(d.streets.next[dest][d.node])
}

// enter puts the robot at the start of an edge, or at rest when there is none.
func (d *drive) enter(i uint16) {
	d.edge = i
	if i == noEdge {
		d.along, d.speed = 0, 0
		return
	}
	e := &d.streets.edges[i]
	d.node = e.from
	d.speed = min(d.speed, e.limit)
	after := d.streets.next[d.dest][e.to]
	if after == noEdge {
		d.exit = creepSpeed
		return
	}
	onto := &d.streets.edges[after]
	d.exit = min(onto.limit, cornerSpeed(turn(e.bearing, onto.bearing)))
}

// arrived says that the robot stands at its destination.
func (d *drive) arrived() bool { return d.edge == noEdge }

// advance drives for some seconds and returns the metres covered.
func (d *drive) advance(seconds float64) float64 {
	covered := 0.0
	for seconds > 0 && !d.arrived() {
		h := min(seconds, motionStep)
		seconds -= h
		e := &d.streets.edges[d.edge]
		// The speed from which braking still reaches the exit speed at the end of the edge: v² = exit² + 2·a·s.
		target := min(e.limit, math.Sqrt(d.exit*d.exit+2*braking*(e.length-d.along)))
		if d.speed < target {
			d.speed = min(target, d.speed+acceleration*h)
		} else {
			d.speed = target
		}
		d.speed = max(d.speed, creepSpeed)
		d.slew(e.bearing, h)
		d.along += d.speed * h
		covered += d.speed * h
		if over := d.along - e.length; over >= 0 {
			covered -= over // what is over is lost at the crossing: a robot looks before it goes
			d.node, d.along = e.to, 0
			d.enter(d.streets.next[d.dest][e.to])
		}
	}
	return covered
}

// slew turns towards a bearing.
func (d *drive) slew(bearing, seconds float64) {
	diff := turn(d.heading, bearing)
	if most := slewRate * seconds; math.Abs(diff) > most {
		diff = math.Copysign(most, diff)
	}
	d.heading = normalHeading(d.heading + diff)
}

// place is where the robot is, in metres from the centre.
func (d *drive) place() point {
	if d.arrived() {
		return d.streets.nodes[d.node]
	}
	e := &d.streets.edges[d.edge]
	from := d.streets.nodes[e.from]
	return point{from.x + e.dir.x*d.along, from.y + e.dir.y*d.along}
}

// turn is the angle from one heading to another, -180 ≤ turn < 180.
func turn(from, to float64) float64 { return normalHeading(to-from+180) - 180 }

// cornerSpeed is the highest speed in m/s at which to take a turn.
func cornerSpeed(deg float64) float64 {
	switch deg = math.Abs(deg); {
	case deg < 20:
		return math.Inf(1)
	case deg < 60:
		return 1.5
	default:
		return 0.8
	}
}
