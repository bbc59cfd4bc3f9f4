package stages

import "time"

// kubelet waits 10 s, doubles up to 5 min and forgets after 10 min of running
// (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy). A laptop's owner is less patient.
const (
	firstDelay  = 100 * time.Millisecond
	maxDelay    = 5 * time.Second
	stableAfter = 10 * time.Second
)

// backoff says how long to wait before a stage that exited is started again. The zero value is a stage that never exited.
type backoff struct {
	exits int // since it last ran for stableAfter
}

// next is the delay after a run of the given length: 0 for the first exit, then firstDelay, doubling up to maxDelay.
func (b *backoff) next(ran time.Duration) time.Duration {
	if ran >= stableAfter {
		b.exits = 0
	}
	b.exits++
	if b.exits == 1 {
		return 0
	}
	delay := firstDelay
	for range b.exits - 2 {
		if delay *= 2; delay >= maxDelay {
			return maxDelay
		}
	}
	return delay
}
