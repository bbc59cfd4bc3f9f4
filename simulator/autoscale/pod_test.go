package autoscale

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/function"
)

// The model of the group commit must make the same batches as the group commit, or it predicts something else.
func TestPodBatchesLikeTheBatcher(t *testing.T) {
	const writeTime = 31 * time.Millisecond
	for _, tt := range []struct {
		name  string
		cfg   batch.Config
		every time.Duration // mean time between items
	}{
		{"by time", batch.Config{MaxItems: 1000, MaxBytes: 1 << 20, MaxWait: 20 * time.Millisecond, MaxWrites: 4}, time.Millisecond},
		{"by number", batch.Config{MaxItems: 10, MaxBytes: 1 << 20, MaxWait: time.Second, MaxWrites: 4}, time.Millisecond},
		{"by size", batch.Config{MaxItems: 1000, MaxBytes: 1500, MaxWait: time.Second, MaxWrites: 4}, 5 * time.Millisecond},
		{"behind a gate", batch.Config{MaxItems: 50, MaxBytes: 1 << 20, MaxWait: 5 * time.Millisecond, MaxWrites: 1}, time.Millisecond},
		{
			"by quiet", batch.Config{
				MaxItems: 1000, MaxBytes: 1 << 20, MaxWait: 200 * time.Millisecond, MaxQuiet: 12 * time.Millisecond, MaxWrites: 2,
			}, 8 * time.Millisecond,
		},
	} {
		tt.cfg.MaxPending, tt.cfg.Timeout = 1<<30, time.Minute
		t.Run(tt.name, func(t *testing.T) {
			stage := Stage{Batch: tt.cfg, WriteTime: writeTime, BytesPerReading: 100}
			random := rand.New(rand.NewPCG(1, 2))
			type item struct {
				at       time.Duration
				readings int
			}
			var items []item
			at := time.Duration(0)
			for range 400 {
				// Odd microseconds never fall together with the ends of windows, whose order would be open.
				at += time.Duration(random.Int64N(int64(2*tt.every/time.Microsecond)))*time.Microsecond + 2*time.Microsecond
				items = append(items, item{at | 1, 1 + random.IntN(3)})
			}

			m := &model{stage: stage, batch: tt.cfg, limits: function.Limits{MaxInFlight: 1 << 20, MaxInFlightBytes: 1 << 40}, cores: 1}
			m.window = window{highest: 1, limit: 1}
			p := &pod{m: m}
			for _, i := range items {
				m.after(i.at, func() {
					m.count(1)
					p.handle(&request{message: message{published: m.now, readings: i.readings, attempts: 1}, started: m.now})
				})
			}
			m.stage.AckDeadline = time.Hour
			m.run(time.Minute)

			var want []Arrival
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var mu sync.Mutex
				batcher := batch.New(tt.cfg, func(n int) batch.Size { return batch.Size{Items: n, Bytes: n * stage.BytesPerReading} },
					func(_ context.Context, group []int) error {
						time.Sleep(writeTime)
						mu.Lock()
						defer mu.Unlock()
						sum := 0
						for _, n := range group {
							sum += n
						}
						want = append(want, Arrival{At: time.Since(start), Messages: 1, Readings: sum})
						return nil
					})
				var callers sync.WaitGroup
				for _, i := range items {
					callers.Go(func() {
						time.Sleep(i.at)
						if err := batcher.Do(context.Background(), i.readings); err != nil {
							t.Error(err)
						}
					})
				}
				callers.Wait()
				batcher.Close()
			})
			order := func(a, b Arrival) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Readings, b.Readings)) }
			got := m.result.Emitted
			slices.SortFunc(got, order)
			slices.SortFunc(want, order)
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("batches (-Batcher +model):\n%s", diff)
			}
		})
	}
}

func TestPushWindow(t *testing.T) {
	w := window{highest: 12, limit: startWindow}
	push := func(n int) (epochs []uint32) {
		for range n {
			epochs = append(epochs, w.start())
		}
		return epochs
	}
	for _, e := range push(10) {
		w.finish(0, e, true)
	}
	if w.limit != 12 {
		t.Errorf("limit after acks of a full window: got %d, want its bound of 12", w.limit)
	}
	for _, e := range push(12) {
		w.finish(time.Second, e, false)
	}
	if w.limit != 6 || w.until != time.Second+minPushBackoff {
		t.Errorf("after 12 nacks at once: got limit %d until %v, want 6 until %v", w.limit, w.until, time.Second+minPushBackoff)
	}
	if w.open(time.Second) || !w.open(w.until) {
		t.Errorf("open during and after the back-off: got %t, %t, want false, true", w.open(time.Second), w.open(w.until))
	}
	w.finish(2*time.Second, push(1)[0], true)
	if w.delay != 0 || w.limit != 6 {
		t.Errorf("after an ack of a window that is not used: got delay %v, limit %d, want 0, 6", w.delay, w.limit)
	}
}

func TestRetryDelayDoublesToItsBound(t *testing.T) {
	got := []time.Duration{}
	for _, attempts := range []int{1, 2, 3, 20, 1000} {
		got = append(got, retryDelay(500*time.Millisecond, attempts))
	}
	want := []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, maxRetryDelay, maxRetryDelay}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("delays (-want +got):\n%s", diff)
	}
}
