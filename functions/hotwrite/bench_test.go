package hotwrite_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/telemetry"
)

// discard is a Warehouse that takes everything.
type discard struct{}

func (discard) Append(context.Context, [][]byte) error { return nil }

const readingsPerEvent = 500

func full() []string {
	events := make([]string, readingsPerEvent)
	for i := range events {
		events[i] = one("R-000017", int64(i+1))
	}
	return events
}

// BenchmarkWrite measures rows from validated batches to the warehouse.
func BenchmarkWrite(b *testing.B) {
	h := newWriter(b, quick(), discard{}, &recorder{})
	e := batchOf(full()...)
	perCore(b, func() error { return h.Handle(b.Context(), e) })
}

// BenchmarkDecode is the reference of BenchmarkWrite: taking batches apart and decoding the readings, and nothing else.
func BenchmarkDecode(b *testing.B) {
	data := batchOf(full()...).Data()
	perCore(b, func() error {
		var r telemetry.Reading
		return event.Split(data, func(e event.Element) error { return telemetry.Decode(e.Data, &r) })
	})
}

func perCore(b *testing.B, do func() error) {
	b.SetParallelism(32)
	b.ReportAllocs()
	before := cpu(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := do(); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N*readingsPerEvent)/(cpu(b)-before).Seconds(), "rows/cpu-s")
}

// cpu returns the CPU time that this process has spent.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
