package batch_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/batch"
)

func config() batch.Config {
	return batch.Config{
		MaxItems: 4, MaxBytes: 1000, MaxWait: 20 * time.Millisecond, MaxWrites: 1, MaxPending: 1 << 20, Timeout: time.Minute,
	}
}

func one(s string) batch.Size { return batch.Size{Items: 1, Bytes: len(s)} }

// recorder is a write function that notes the batches it was given and blocks while its gate is closed.
type recorder struct {
	mu      sync.Mutex
	batches [][]string
	gate    chan struct{}
	err     error
}

func (r *recorder) write(_ context.Context, items []string) error {
	if r.gate != nil {
		<-r.gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches = append(r.batches, append([]string(nil), items...))
	return r.err
}

func (r *recorder) sizes() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var n []int
	for _, b := range r.batches {
		n = append(n, len(b))
	}
	return n
}

func TestFirstItemWaitsForCompanyNoLongerThanMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		b := batch.New(config(), one, r.write)
		start := time.Now()
		if err := b.Do(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if got, want := time.Since(start), 20*time.Millisecond; got != want {
			t.Errorf("a lone item was answered after %v, want %v", got, want)
		}
	})
}

func TestQuietBatchIsWrittenEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		cfg := config()
		cfg.MaxWait, cfg.MaxQuiet = time.Second, 100*time.Millisecond
		b := batch.New(cfg, one, r.write)
		start := time.Now()
		var wg sync.WaitGroup
		for _, s := range []string{"a", "b", "c"} {
			wg.Go(func() {
				if err := b.Do(context.Background(), s); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(80 * time.Millisecond) // fake time: each item comes before it is quiet
		}
		wg.Wait()
		// Items at 0, 80 and 160 ms, and then none for 100 ms.
		if got, want := time.Since(start), 260*time.Millisecond; got != want {
			t.Errorf("answered after %v, want %v", got, want)
		}
		if diff := cmp.Diff([]int{3}, r.sizes()); diff != "" {
			t.Errorf("batch sizes (-want +got):\n%s", diff)
		}
	})
}

func TestFullBatchIsWrittenAtOnce(t *testing.T) {
	for _, tc := range []struct {
		name  string
		items []string
		limit func(*batch.Config)
	}{
		{"by items", []string{"a", "b"}, func(c *batch.Config) { c.MaxItems = 2 }},
		{"by bytes", []string{"aaa", "bbb"}, func(c *batch.Config) { c.MaxBytes = 6 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r recorder
				cfg := config()
				tc.limit(&cfg)
				b := batch.New(cfg, one, r.write)
				start := time.Now()
				doAll(t, b, tc.items)
				if got := time.Since(start); got != 0 {
					t.Errorf("answered after %v, want at once", got)
				}
				if diff := cmp.Diff([]int{2}, r.sizes()); diff != "" {
					t.Errorf("batch sizes (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestBatchNeverExceedsItsLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		cfg := config()
		cfg.MaxBytes = 5
		b := batch.New(cfg, one, r.write)
		doAll(t, b, []string{"aaa", "bbb", "cc", "ddddddddd"})
		for _, items := range r.batches {
			n := 0
			for _, s := range items {
				n += len(s)
			}
			if n > cfg.MaxBytes && len(items) > 1 {
				t.Errorf("a batch of %d items has %d bytes, limit %d", len(items), n, cfg.MaxBytes)
			}
		}
	})
}

func TestBatchGrowsWhileTheGateIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := recorder{gate: make(chan struct{})}
		b := batch.New(config(), one, r.write)
		var wg sync.WaitGroup
		do := func(s string) {
			wg.Go(func() {
				if err := b.Do(context.Background(), s); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		do("a")
		time.Sleep(25 * time.Millisecond) // fake time: "a" is due, and its write holds the only slot
		do("b")
		time.Sleep(25 * time.Millisecond) // "b" is due too, but must wait, and so gets company
		do("c")
		do("d")
		close(r.gate)
		wg.Wait()
		if diff := cmp.Diff([]int{1, 3}, r.sizes()); diff != "" {
			t.Errorf("batch sizes (-want +got):\n%s", diff)
		}
	})
}

func TestEveryCallerGetsTheOutcomeOfItsOwnBatch(t *testing.T) {
	failed := errors.New("sink is down")
	cfg := config()
	cfg.MaxItems, cfg.MaxWrites = 1, 8
	b := batch.New(cfg, one, func(_ context.Context, items []string) error {
		if items[0] == "bad" {
			return failed
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			item, want := "good", error(nil)
			if i%3 == 0 {
				item, want = "bad", failed
			}
			if err := b.Do(context.Background(), item); !errors.Is(err, want) {
				t.Errorf("Do(%q) = %v, want %v", item, err, want)
			}
		})
	}
	wg.Wait()
}

func TestPanicOfAWriteIsAnError(t *testing.T) {
	b := batch.New(config(), one, func(context.Context, []string) error { panic("boom") })
	if err := b.Do(t.Context(), "a"); err == nil {
		t.Error("Do = nil after a panic, want an error")
	}
	b.Close()
}

func TestPastMaxPendingItemsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := recorder{gate: make(chan struct{})}
		cfg := config()
		cfg.MaxPending = 5
		b := batch.New(cfg, one, r.write)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.Do(context.Background(), "larger than the bound"); err != nil {
				t.Errorf("an oversized item alone: %v, want it written", err)
			}
		})
		synctest.Wait()
		if err := b.Do(t.Context(), "x"); !errors.Is(err, batch.ErrFull) {
			t.Errorf("Do = %v, want ErrFull", err)
		}
		close(r.gate)
		wg.Wait()
		if err := b.Do(t.Context(), "x"); err != nil {
			t.Errorf("after the backlog was written Do = %v, want nil", err)
		}
	})
}

func TestGoneCallerDoesNotTakeItsBatchAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		b := batch.New(config(), one, r.write)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.Do(ctx, "gone"); !errors.Is(err, context.Canceled) {
				t.Errorf("Do = %v, want context.Canceled", err)
			}
		})
		wg.Go(func() {
			if err := b.Do(context.Background(), "stays"); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		if diff := cmp.Diff([]int{2}, r.sizes()); diff != "" {
			t.Errorf("batch sizes (-want +got):\n%s", diff)
		}
	})
}

func TestFlushEndsTheWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		cfg := config()
		cfg.MaxWait = time.Hour
		b := batch.New(cfg, one, r.write)
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { _ = b.Do(context.Background(), "before") })
		synctest.Wait()
		b.Flush()
		wg.Wait()
		_ = b.Do(t.Context(), "after")
		if got := time.Since(start); got != 0 {
			t.Errorf("items waited %v after Flush, want not at all", got)
		}
	})
}

func TestCloseWaitsForWritesAndRefusesItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := recorder{gate: make(chan struct{})}
		b := batch.New(config(), one, r.write)
		var answered atomic.Bool
		go func() {
			_ = b.Do(context.Background(), "a")
			answered.Store(true)
		}()
		synctest.Wait()
		closed := make(chan struct{})
		go func() { b.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Fatal("Close returned while a write was under way")
		default:
		}
		close(r.gate)
		<-closed
		synctest.Wait()
		if !answered.Load() {
			t.Error("Close returned before the caller was answered")
		}
		if err := b.Do(t.Context(), "late"); !errors.Is(err, batch.ErrClosed) {
			t.Errorf("Do after Close = %v, want ErrClosed", err)
		}
	})
}

func TestConfigNamesTheFieldThatIsMissing(t *testing.T) {
	cfg := config()
	cfg.MaxWait = 0
	if err := cfg.Validate(); err == nil || err.Error() != "batch: MAX_WAIT must be positive" {
		t.Errorf("Validate = %v", err)
	}
}

// doAll hands in the items at the same time, in order, and waits for the answers.
func doAll(t *testing.T, b *batch.Batcher[string], items []string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, s := range items {
		wg.Go(func() {
			if err := b.Do(context.Background(), s); err != nil {
				t.Errorf("Do(%q): %v", s, err)
			}
		})
	}
	wg.Wait()
}

func BenchmarkDo(b *testing.B) {
	for _, callers := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			cfg := config()
			cfg.MaxItems, cfg.MaxBytes, cfg.MaxWait, cfg.MaxWrites = 500, 1<<20, time.Millisecond, 4
			bt := batch.New(cfg, one, func(context.Context, []string) error { return nil })
			b.SetParallelism(callers)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_ = bt.Do(context.Background(), "x")
				}
			})
		})
	}
}
