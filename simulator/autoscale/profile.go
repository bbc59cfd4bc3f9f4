package autoscale

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/robofleet/robofleet/simulator/robots"
)

// Profile is how many readings per second robots publish, over time.
type Profile struct {
	text     string
	shape    func(time.Duration) float64 // readings per second
	duration time.Duration
	end      time.Duration // of the traffic
}

// What the parts of a profile are when they are not given.
const (
	defaultSteady = 5 * time.Minute
	defaultBurst  = time.Minute
	defaultLead   = 10 * time.Second
	defaultZero   = 5 * time.Minute
	defaultDay    = 30 * time.Minute

	// burstTail is what is shown after a burst: as long as the longest way to zero with the numbers of knative/ takes.
	burstTail = 4 * time.Minute

	maxRate     = 1e6
	maxDuration = 24 * time.Hour
	maxReadings = 100e6 // about five minutes of a core and 2 GB of memory
)

// ParseProfile reads one of
//
//   - steady:RATE[:DURATION]: the same rate all the time (5 min).
//   - burst:RATE[:DURATION[:LEAD]]: silence for LEAD (10 s), RATE for DURATION (1 min), then silence for four minutes.
//   - zero[:DURATION]: silence (5 min).
//   - day:RATE[:PERIOD]: the robots' curve of a day with the mean RATE, compressed to PERIOD (30 min).
func ParseProfile(s string) (Profile, error) {
	fail := func(format string, args ...any) (Profile, error) {
		return Profile{}, fmt.Errorf("profile %q: %s", s, fmt.Sprintf(format, args...))
	}
	parts := strings.Split(s, ":")
	name, parts := parts[0], parts[1:]
	var rate float64
	if name != "zero" {
		if len(parts) == 0 {
			return fail("want a rate in readings per second, as in %s:2000", name)
		}
		var err error
		if rate, err = strconv.ParseFloat(parts[0], 64); err != nil || !(rate > 0 && rate <= maxRate) {
			return fail("rate %q: want more than 0 and at most %g readings per second", parts[0], maxRate)
		}
		parts = parts[1:]
	}
	var durations []time.Duration
	for _, part := range parts {
		d, err := time.ParseDuration(part)
		if err != nil {
			return fail("%v", err)
		}
		if d < 0 || d > maxDuration || d != d.Truncate(time.Second) {
			return fail("%s: want whole seconds, at most %v", part, maxDuration)
		}
		durations = append(durations, d)
	}
	given := func(i int, otherwise time.Duration) time.Duration {
		if i < len(durations) {
			return durations[i]
		}
		return otherwise
	}
	p, most := Profile{text: s}, 1
	var length time.Duration
	switch name {
	case "steady":
		length = given(0, defaultSteady)
		p.duration, p.end = length, length
		p.shape = func(time.Duration) float64 { return rate }
	case "burst":
		most = 2
		lead := given(1, defaultLead)
		length = given(0, defaultBurst)
		p.end = lead + length
		p.duration = p.end + burstTail
		p.shape = func(t time.Duration) float64 {
			if t < lead || t >= p.end {
				return 0
			}
			return rate
		}
	case "zero":
		length = given(0, defaultZero)
		p.duration = length
		p.shape = func(time.Duration) float64 { return 0 }
	case "day":
		length = given(0, defaultDay)
		p.duration, p.end = length, length
		if length > 0 {
			day, err := robots.ParseProfile("day:" + length.String())
			if err != nil {
				return fail("%v", err)
			}
			p.shape = func(t time.Duration) float64 { return rate * day.Factor(t) }
		}
	default:
		return fail("want steady, burst, zero or day")
	}
	switch {
	case len(durations) > most:
		return fail("too many parts")
	case length <= 0:
		return fail("its duration must be positive")
	case rate*length.Seconds() > maxReadings:
		return fail("it has %.3g readings; at most %.3g are replayed", rate*length.Seconds(), float64(maxReadings))
	}
	return p, nil
}

// String is the profile as ParseProfile read it.
func (p Profile) String() string { return p.text }

// Duration is how long the profile takes, the silence at its end included.
func (p Profile) Duration() time.Duration { return p.duration }

// Rate is how many readings per second are published at a time since the start.
func (p Profile) Rate(t time.Duration) float64 { return p.shape(t) }

// An Arrival is messages that are published to the stage's topic at one moment.
type Arrival struct {
	At       time.Duration
	Messages int
	Readings int // in each message
}

// arrivalStep is how finely robots publish: each of 1,000 robots at another moment of the second.
const arrivalStep = time.Millisecond

// arrivals are the messages that the robots publish, one reading in each.
func (p Profile) arrivals() []Arrival {
	var all []Arrival
	due := 0.0
	for t := time.Duration(0); t < p.end; t += arrivalStep {
		due += p.shape(t) * arrivalStep.Seconds()
		// The slack keeps 1,000 thousandths a whole reading, however the sum was rounded.
		if n := int(due + 1e-6); n > 0 {
			due -= float64(n)
			all = append(all, Arrival{At: t, Messages: n, Readings: 1})
		}
	}
	return all
}
