package autoscale

import "time"

// The push window by the same rules as the embedded Pub/Sub (simulator/cloud/pubsub), where production's published behaviour
// is cited: a slow start, one more outstanding push per ack while the endpoint is fast, half of it and a back-off of the
// whole subscription on a nack.
const (
	startWindow    = 10
	minPushBackoff = 100 * time.Millisecond
	maxPushBackoff = time.Minute
	maxRetryDelay  = 600 * time.Second // of a single message: Pub/Sub's bound of the retry policy
)

// window says how many pushes may be outstanding and when the next one may start.
type window struct {
	highest     int
	limit       int
	outstanding int
	epoch       uint32        // counts back-offs; a push remembers in which it started
	delay       time.Duration // present back-off
	until       time.Duration // no push starts before
}

func (w *window) open(now time.Duration) bool { return w.outstanding < w.limit && now >= w.until }

func (w *window) start() uint32 {
	w.outstanding++
	return w.epoch
}

func (w *window) finish(now time.Duration, epoch uint32, acked bool) {
	used := 2*w.outstanding >= w.limit // a window that is not used proves nothing about a larger one
	w.outstanding--
	switch {
	case epoch != w.epoch: // started before the last back-off: it tells nothing new
	case !acked:
		w.epoch++
		w.delay = min(max(2*w.delay, minPushBackoff), maxPushBackoff)
		w.until = now + w.delay
		w.limit = max(w.limit/2, 1)
	default:
		if w.delay /= 2; w.delay < minPushBackoff {
			w.delay = 0
		}
		if used {
			w.limit = min(w.limit+1, w.highest)
		}
	}
}

// retryDelay is how long a message rests after the given number of attempts.
func retryDelay(backoff time.Duration, attempts int) time.Duration {
	delay := backoff
	for range attempts - 1 {
		if delay *= 2; delay >= maxRetryDelay {
			return maxRetryDelay
		}
	}
	return delay
}
