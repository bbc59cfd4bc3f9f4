package robots

import (
	"context"
	"math"
	"time"
)

// shards is how many goroutines drive a fleet, whatever the machine has of processors: which robot measures when follows
// from it, and the same seed shall give the same messages anywhere.
const shards = 4

// tick is the grain of pacing. Each shard wakes once per tick and makes the readings that have become due.
const tick = 10 * time.Millisecond

// mostBehind is how late a shard may be and still catch up. What is beyond it, after the machine slept or Pub/Sub was down,
// is not made up for: the schedule slips, instead of flooding what has just recovered.
const mostBehind = 2 * time.Second

// shard drives a part of the fleet. Its robots take turns, so that readings are spread evenly over time with no search for
// who is due: reading g of the shard is measured by robot g mod len(robots), when the integral of the rate reaches g.
type shard struct {
	fleet    *Fleet
	offset   float64 // of the shard's readings against those of the others, 0 to 1
	robots   []*robot
	gateways []*gateway
	made     int64   // readings so far
	due      float64 // readings that are due at the end of the last tick
	scratch  []byte
}

// run drives the robots until ctx ends or the configured duration is over.
func (s *shard) run(ctx context.Context, send func(*Message)) error {
	f := s.fleet
	for _, r := range s.robots {
		r.start(0, f.manifest)
	}
	s.due = -s.offset
	end := int64(math.MaxInt64)
	if f.cfg.Duration > 0 {
		end = int64(f.cfg.Duration / tick)
	}
	start := time.Now().Add(time.Duration(s.offset * float64(tick))) // shards wake in turns
	var slipped time.Duration
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := int64(0); n < end; {
		passed := int64(time.Since(start) / tick)
		if late := passed - n - int64(mostBehind/tick); late > 0 {
			slip := time.Duration(late) * tick
			start = start.Add(slip)
			slipped += slip
			f.noteSlip(slipped)
			passed -= late
			end -= late
		}
		if ctx.Err() != nil {
			return nil
		}
		if n < passed {
			if err := s.tick(n, send); err != nil {
				return err
			}
			n++
			continue
		}
		timer.Reset(time.Until(start.Add(time.Duration(n+1) * tick)))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
	}
	return nil
}

// tick makes the readings of the n-th tick. Their times follow from n alone, not from when the shard got to it.
func (s *shard) tick(n int64, send func(*Message)) error {
	from := time.Duration(n) * tick
	due := s.fleet.cfg.Rate*float64(len(s.robots))*s.fleet.cfg.Profile.seconds(from+tick) - s.offset
	for ; float64(s.made) < due; s.made++ {
		part := max(0, (float64(s.made)-s.due)/(due-s.due))
		at := from + time.Duration(part*float64(tick))
		if err := s.measure(s.robots[s.made%int64(len(s.robots))], at, send); err != nil {
			return err
		}
	}
	s.due = due
	return nil
}

// measure lets a robot measure and publishes what is to be published now.
func (s *shard) measure(r *robot, at time.Duration, send func(*Message)) error {
	f := s.fleet
	wasOffline, before := len(r.link.kept) > 0, r.status
	online := r.link.online(at, r.net)
	if online && !wasOffline && at >= r.rebootAt {
		r.start(at, f.manifest)
	}
	r.measure(at, f.start)
	if r.status != before {
		f.counters.moved(before, r.status)
	}

	f.counters.measured.Add(1)
	s.scratch = appendReading(s.scratch[:0], &r.reading)
	m := measurement{
		readingRef: readingRef{r.boot, r.reading.Seq},
		data:       append(make([]byte, 0, len(s.scratch)), s.scratch...),
		time:       r.reading.Time,
	}
	if !online {
		if !wasOffline {
			f.counters.offline.Add(1)
		}
		r.link.kept = append(r.link.kept, m)
		return nil
	}
	if wasOffline {
		if err := s.catchUp(r, send); err != nil {
			return err
		}
	}
	return s.publish(r, m, send)
}

// publish sends a reading, by itself or through the robot's gateway, and now and then something bad after it.
func (s *shard) publish(r *robot, m measurement, send func(*Message)) error {
	var msg *Message // nil while the gateway collects
	if r.gateway == nil {
		msg = newMessage(r, m)
	} else {
		msg = r.gateway.add(m)
	}
	if msg != nil {
		send(msg)
	}
	if r.net.Float64() >= s.fleet.cfg.BadRatio {
		return nil
	}
	kind := drawBadKind(r.net)
	if kind != BadDuplicate {
		return s.inject(r, kind, send)
	}
	if msg != nil {
		s.fleet.counters.bad[BadDuplicate].Add(1)
		send(msg.again())
	}
	return nil
}

// inject sends a bad message.
func (s *shard) inject(r *robot, kind BadKind, send func(*Message)) error {
	r.badOnes++
	reading := r.reading
	reading.Seq = badSeqBase + r.badOnes
	body, err := badBody(kind, reading, r.net)
	if err != nil {
		return err
	}
	s.fleet.counters.bad[kind].Add(1)
	send(&Message{
		Data: body,
		// Always a CloudEvent, even from a robot that publishes plain JSON: the id is how it is found when rejected.
		Attributes: cloudEvent(badID(r.boot, r.badOnes), r.source, r.id, reading.Time),
		bad:        kind, badOf: r.boot, badNumber: r.badOnes,
	})
	return nil
}

// catchUp sends what a robot kept while it was offline.
func (s *shard) catchUp(r *robot, send func(*Message)) error {
	for _, m := range r.link.kept {
		if err := s.publish(r, m, send); err != nil {
			return err
		}
	}
	r.link.kept = nil // not kept for its capacity: few robots are offline at a time
	s.fleet.counters.offline.Add(-1)
	return nil
}

// finish brings every robot back online and empties the gateways, so that all that was measured is published.
func (s *shard) finish(send func(*Message)) error {
	for _, r := range s.robots {
		if len(r.link.kept) == 0 {
			continue
		}
		if err := s.catchUp(r, send); err != nil {
			return err
		}
	}
	for _, g := range s.gateways {
		if msg := g.flush(); msg != nil {
			send(msg)
		}
	}
	return nil
}
