package hotwrite

import "testing"

// An append that finds its stream broken makes the next one open another.
func TestStreamThatIsBrokenForGoodIsReplaced(t *testing.T) {
	b := &BigQuery{}
	broken := &opening{done: make(chan struct{})}
	b.opening = broken
	b.abandon(broken)
	if b.opening != nil {
		t.Error("the next append would use the broken stream again")
	}
	next := &opening{done: make(chan struct{})}
	b.opening = next
	b.abandon(broken) // by an append that was slower to find it broken
	if b.opening != next {
		t.Error("a stream that works was abandoned")
	}
}
