package robots

import (
	"math"
	"math/rand/v2"
	"time"
)

// Clocks of robots: most are set by NTP now and then, a few are off by minutes. The extremes stay well within what the
// platform accepts (1 h ahead, 31 days behind).
const (
	skewSigma    = 500 * time.Millisecond
	shareOff     = 0.01
	offAtLeast   = 2 * time.Minute
	offAtMost    = 10 * time.Minute
	skewBoundary = 2 * time.Second // of an ordinary clock
)

// drawSkew is by how much a robot's clock is ahead.
func drawSkew(rng *rand.Rand) time.Duration {
	if rng.Float64() < shareOff {
		off := offAtLeast + time.Duration(rng.Int64N(int64(offAtMost-offAtLeast)))
		if rng.Float64() < 0.5 {
			return -off
		}
		return off
	}
	skew := time.Duration(rng.NormFloat64() * float64(skewSigma))
	return min(skewBoundary, max(-skewBoundary, skew))
}

// never is a time that does not come.
const never = time.Duration(math.MaxInt64)

// after is a moment later than t by an exponentially distributed time, or never when the mean is 0.
func after(t, mean time.Duration, rng *rand.Rand) time.Duration {
	if mean == 0 {
		return never
	}
	return t + time.Duration(rng.ExpFloat64()*float64(mean))
}

const (
	offlineLeast = 5 * time.Second
	offlineMost  = 60 * time.Second
	// offlineBuffer is how many readings a robot keeps while it is offline. A robot whose buffer is full drives out of the
	// dead spot: a simulated robot never has to drop a reading.
	offlineBuffer = 1000
)

// link is a robot's connection: it breaks now and then, and what was measured meanwhile is kept.
type link struct {
	every  time.Duration // mean time between two breaks, 0: never
	downAt time.Duration // when it breaks next
	upAt   time.Duration // when it is back after that
	kept   []measurement
}

func (l *link) plan(t time.Duration, rng *rand.Rand) {
	l.downAt = after(t, l.every, rng)
	l.upAt = never
	if l.downAt != never {
		l.upAt = l.downAt + offlineLeast + time.Duration(rng.Int64N(int64(offlineMost-offlineLeast)))
	}
}

// online says whether the robot has a connection at a time. It is asked at each reading.
func (l *link) online(t time.Duration, rng *rand.Rand) bool {
	if t < l.downAt {
		return true
	}
	if t < l.upAt && len(l.kept) < offlineBuffer {
		return false
	}
	l.plan(t, rng)
	return true
}
