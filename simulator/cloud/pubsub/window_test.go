package pubsub

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testWindow = 10_000

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// round fills the window and finishes all of it with one result.
func round(w *window, now time.Time, acked bool, took time.Duration) {
	var epochs []uint32
	for w.open(now) {
		epochs = append(epochs, w.start())
	}
	for _, epoch := range epochs {
		w.finish(now, epoch, acked, took)
	}
}

func TestWindowGrowsByAThirdToDoublePerRoundTrip(t *testing.T) {
	w := newWindow(testWindow)
	var got []int
	for range 4 {
		got = append(got, w.limit)
		round(&w, noon, true, time.Millisecond)
	}
	for i := 1; i < len(got); i++ {
		if 10*got[i] < 13*got[i-1] || got[i] > 2*got[i-1] {
			t.Errorf("windows = %v, want each 1.3 to 2 times the one before", got)
		}
	}
}

func TestWindowDoesNotGrowWhenItIsNotUsed(t *testing.T) {
	w := newWindow(testWindow)
	for range 100 {
		w.finish(noon, w.start(), true, time.Millisecond)
	}
	if w.limit != startWindow {
		t.Errorf("window = %d, want %d", w.limit, startWindow)
	}
}

func TestWindowStaysAtThreeThousandWhenSlowOrNacked(t *testing.T) {
	tests := []struct {
		name string
		took time.Duration
		nack int // every nack-th push
		want func(limit int) bool
	}{
		{"healthy", 100 * time.Millisecond, 0, func(limit int) bool { return limit == testWindow }},
		{"slower than a second", 1500 * time.Millisecond, 0, func(limit int) bool { return limit == steadyWindow }},
		{"2 % nacked", 100 * time.Millisecond, 50, func(limit int) bool { return limit <= steadyWindow }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWindow(testWindow)
			now := noon
			for n := 0; n < 200_000; now = now.Add(tt.took) {
				var epochs []uint32
				for w.open(now) {
					epochs = append(epochs, w.start())
				}
				for _, epoch := range epochs {
					n++
					w.finish(now, epoch, tt.nack == 0 || n%tt.nack != 0, tt.took)
				}
			}
			if !tt.want(w.limit) {
				t.Errorf("window = %d", w.limit)
			}
		})
	}
}

func TestNacksBackOffExponentiallyToAMinute(t *testing.T) {
	w := newWindow(testWindow)
	now := noon
	var got []time.Duration
	for range 12 {
		round(&w, now, false, time.Millisecond)
		got = append(got, w.delay)
		now = w.until
	}
	ms := time.Millisecond
	want := []time.Duration{
		100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 51200 * ms, time.Minute, time.Minute,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("back-offs (-want +got):\n%s", diff)
	}
	if w.limit != 1 {
		t.Errorf("window = %d, want 1", w.limit)
	}
	for range 10 {
		now = w.until
		w.finish(now, w.start(), true, time.Millisecond)
	}
	if w.delay != 0 {
		t.Errorf("back-off after ten acks = %s, want none", w.delay)
	}
}

func TestOutstandingPushesCountAsOneFailure(t *testing.T) {
	w := newWindow(testWindow)
	round(&w, noon, false, time.Millisecond) // ten nacks
	if want := minPushBackoff; w.delay != want {
		t.Errorf("back-off = %s, want %s", w.delay, want)
	}
	if want := startWindow / 2; w.limit != want {
		t.Errorf("window = %d, want %d", w.limit, want)
	}
}

func TestNothingStartsDuringBackoff(t *testing.T) {
	w := newWindow(testWindow)
	round(&w, noon, false, time.Millisecond)
	if w.open(noon.Add(minPushBackoff - 1)) {
		t.Error("the window is open before the back-off is over")
	}
	if !w.open(noon.Add(minPushBackoff)) {
		t.Error("the window is closed after the back-off")
	}
}
