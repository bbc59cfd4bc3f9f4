package pubsub

import "time"

// The flow control of push subscriptions. Production publishes the behaviour, not the algorithm
// (https://cloud.google.com/pubsub/docs/push#push_backoff and #delivery_rate): a slow start, growth while more than
// 99 % of the pushes are acked within a second, about 3,000 outstanding per region when slower, and on nacks a back-off
// of the whole subscription between 100 ms and 60 s.
const (
	startWindow  = 10
	steadyWindow = 3_000

	minPushBackoff = 100 * time.Millisecond
	maxPushBackoff = 60 * time.Second

	healthyAcks    = 0.99
	healthyLatency = time.Second
	// healthWeight is the weight of one push in the moving averages: the last few hundred pushes decide.
	healthWeight = 1.0 / 256
)

// window decides how many pushes may be outstanding and when the next one may start. The zero value is not ready: use
// newWindow. It does no locking and reads no clock.
type window struct {
	highest     int // bound of limit, however healthy the endpoint
	limit       int
	outstanding int
	epoch       uint32        // counts back-offs; a push remembers the epoch it started in
	delay       time.Duration // the present back-off, 0 when there is none
	until       time.Time     // no push starts before it
	acked       float64       // moving average: share of acked pushes
	latency     float64       // moving average: seconds
}

func newWindow(highest int) window {
	return window{highest: highest, limit: min(startWindow, highest), acked: 1}
}

// open says whether a push may start now.
func (w *window) open(now time.Time) bool {
	return w.outstanding < w.limit && !now.Before(w.until)
}

// start counts a push as outstanding and returns the epoch to hand to finish.
func (w *window) start() uint32 {
	w.outstanding++
	return w.epoch
}

// finish records the result of a push.
func (w *window) finish(now time.Time, epoch uint32, acked bool, took time.Duration) {
	used := 2*w.outstanding >= w.limit // a window that is not used proves nothing about a larger one
	w.outstanding--
	result := 0.0
	if acked {
		result = 1
	}
	w.acked += (result - w.acked) * healthWeight
	w.latency += (took.Seconds() - w.latency) * healthWeight

	switch {
	case !acked && epoch == w.epoch:
		// The first nack since the last back-off. The pushes that were already under way tell nothing new: when an
		// endpoint dies, its thousand outstanding pushes are one failure, not a thousand.
		w.epoch++
		w.delay = min(max(2*w.delay, minPushBackoff), maxPushBackoff)
		w.until = now.Add(w.delay)
		w.limit = max(w.limit/2, 1)
	case acked && epoch == w.epoch:
		if w.delay /= 2; w.delay < minPushBackoff {
			w.delay = 0
		}
		if used {
			w.limit++ // one more per ack: the window grows by a third to double per round trip
		}
	}
	w.limit = min(w.limit, w.highest)
	if w.acked <= healthyAcks || w.latency > healthyLatency.Seconds() {
		w.limit = min(w.limit, steadyWindow)
	}
}

// collapse puts the window back to a single outstanding push and the longest delay that a first nack causes.
func (w *window) collapse(now time.Time) {
	w.epoch++
	w.limit, w.delay = 1, minPushBackoff
	w.until = now.Add(w.delay)
}
