package robots

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Profile is the shape of the traffic over time. Its mean is 1, so that a fleet's rate is kept over a whole period. The
// zero value is steady.
type Profile struct {
	name   string
	period time.Duration
}

// The names of the profiles and the periods they have when none is given.
const (
	profileSteady = "steady"
	profileBurst  = "burst"
	profileDay    = "day"

	defaultBurstPeriod = 30 * time.Second
	defaultDayPeriod   = 10 * time.Minute
)

// burstSilence is the share of a burst's period in which nothing is measured; in the rest, everything is.
const burstSilence = 0.8

// ParseProfile reads "steady", "burst" or "day", the latter two with an optional period as in "day:5m": how long it takes
// until the shape repeats.
//
//   - steady: the same rate all the time.
//   - burst: silence for four fifths of the period (30 s), then a flood at five times the rate.
//   - day: the curve of a day compressed to the period (10 min): a tenth of the rate at midnight, where it starts, peaks
//     in the morning and the evening.
func ParseProfile(s string) (Profile, error) {
	name, text, given := strings.Cut(s, ":")
	p := Profile{name: name}
	switch name {
	case profileSteady:
		if given {
			return Profile{}, fmt.Errorf("profile %q: steady has no period", s)
		}
		return Profile{}, nil
	case profileBurst:
		p.period = defaultBurstPeriod
	case profileDay:
		p.period = defaultDayPeriod
	default:
		return Profile{}, fmt.Errorf("profile %q: want steady, burst[:period] or day[:period]", s)
	}
	if given {
		period, err := time.ParseDuration(text)
		if err != nil {
			return Profile{}, fmt.Errorf("profile %q: %w", s, err)
		}
		if period < time.Second || period > 365*24*time.Hour {
			return Profile{}, fmt.Errorf("profile %q: the period must be between 1 s and a year", s)
		}
		p.period = period
	}
	return p, nil
}

// String is the profile as ParseProfile reads it.
func (p Profile) String() string {
	if p.period == 0 {
		return profileSteady
	}
	return p.name + ":" + p.period.String()
}

// Factor is by what the rate is multiplied at a time since the start.
func (p Profile) Factor(t time.Duration) float64 {
	switch p.name {
	case profileBurst:
		if p.phase(t) < burstSilence {
			return 0
		}
		return 1 / (1 - burstSilence)
	case profileDay:
		x := 2 * math.Pi * p.phase(t)
		return 1 - 0.6*math.Cos(x) - 0.3*math.Cos(2*x)
	default:
		return 1
	}
}

// seconds is the integral of Factor from 0 to t: for how long a steady fleet would have measured to have done as much.
func (p Profile) seconds(t time.Duration) float64 {
	if p.period == 0 {
		return t.Seconds()
	}
	period, phase := p.period.Seconds(), p.phase(t)
	periods := float64(t / p.period)
	if p.name == profileBurst {
		return period * (periods + max(0, phase-burstSilence)/(1-burstSilence))
	}
	x := 2 * math.Pi * phase
	return period * (periods + phase - (0.6*math.Sin(x)+0.15*math.Sin(2*x))/(2*math.Pi))
}

// phase is how much of the current period has passed, 0 ≤ phase < 1.
func (p Profile) phase(t time.Duration) float64 { return float64(t%p.period) / float64(p.period) }

// ParseRatio reads a share between 0 and 1, as "0.001" or as "0.1%".
func ParseRatio(s string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	r, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil {
		return 0, fmt.Errorf("ratio %q: want a number such as 0.001 or 0.1%%", s)
	}
	if percent {
		r /= 100
	}
	if !(r >= 0 && r <= 1) { // written so that NaN fails
		return 0, fmt.Errorf("ratio %q: want 0 to 1, or 0%% to 100%%", s)
	}
	return r, nil
}
