package robots

import (
	"sync/atomic"
	"time"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// Stats is what a fleet does at a moment. Messages are counted, not readings, unless said otherwise: a gateway's message
// holds several, and injected messages are among them.
type Stats struct {
	Published   int64 // handed to the publisher
	Confirmed   int64 // of those, that Pub/Sub has
	Unconfirmed int64 // of those, that were given up
	InFlight    int64 // of those, that are still being published

	Measured int64             // good readings
	Sent     int64             // good readings, distinct, that Pub/Sub has
	Injected map[BadKind]int64 // messages by kind, duplicates among them

	TargetRate float64                  // readings per second that the profile asks for now
	Slipped    time.Duration            // by which the schedule has been delayed because publishing could not keep up
	Robots     map[telemetry.Status]int // by status
	Offline    int                      // robots
}

// counters are the live side of Stats. The shards update them, and the publisher's results do.
type counters struct {
	published, confirmed, unconfirmed, measured, offline, slipped atomic.Int64

	// The maps are made once and only read afterwards.
	bad    map[BadKind]*atomic.Int64
	status map[telemetry.Status]*atomic.Int64
}

func newCounters() *counters {
	c := &counters{bad: map[BadKind]*atomic.Int64{}, status: map[telemetry.Status]*atomic.Int64{}}
	for _, k := range BadKinds() {
		c.bad[k] = new(atomic.Int64)
	}
	for _, s := range []telemetry.Status{
		telemetry.StatusIdle, telemetry.StatusDelivering, telemetry.StatusReturning,
		telemetry.StatusCharging, telemetry.StatusPaused, telemetry.StatusFault,
	} {
		c.status[s] = new(atomic.Int64)
	}
	return c
}

// moved counts a robot that changed its status.
func (c *counters) moved(from, to telemetry.Status) {
	c.status[from].Add(-1)
	c.status[to].Add(1)
}

// Stats returns the counts of now. They are read one after another, so they may differ by what happened in between.
func (f *Fleet) Stats() Stats {
	c := f.counters
	// Read before published, so that InFlight is never negative.
	confirmed, unconfirmed := c.confirmed.Load(), c.unconfirmed.Load()
	s := Stats{
		Published:   c.published.Load(),
		Confirmed:   confirmed,
		Unconfirmed: unconfirmed,
		Measured:    c.measured.Load(),
		Sent:        f.manifest.Sent(),
		Injected:    make(map[BadKind]int64, len(c.bad)),
		Slipped:     time.Duration(c.slipped.Load()),
		Robots:      make(map[telemetry.Status]int, len(c.status)),
		Offline:     int(c.offline.Load()),
	}
	s.InFlight = s.Published - confirmed - unconfirmed
	for kind, n := range c.bad {
		s.Injected[kind] = n.Load()
	}
	for status, n := range c.status {
		s.Robots[status] = int(n.Load())
	}
	if began := f.began.Load(); began != nil && !f.stopped.Load() {
		s.TargetRate = f.cfg.Rate * float64(f.cfg.Robots) * f.cfg.Profile.Factor(time.Since(*began)-s.Slipped)
	}
	return s
}
