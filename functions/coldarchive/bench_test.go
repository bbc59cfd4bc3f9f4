package coldarchive_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/robofleet/robofleet/shared/event"
)

// discard is a Store that takes everything.
type discard struct{}

func (discard) Create(context.Context, string, []byte) error { return nil }

const readingsPerEvent = 500

// fleet is the data of a validated batch, of readings that differ as those of a fleet do.
func fleet() []byte {
	events := make([]string, readingsPerEvent)
	for i := range events {
		robot, measured := fmt.Sprintf("R-%06d", i*7919%1000), published.Add(time.Duration(i)*time.Millisecond)
		data := fmt.Sprintf(`{"robot_id":%q,"boot_id":"20261123T08%04d","seq":%d,"time":%q,`+
			`"position":{"lat_deg":52.%06d,"lon_deg":13.%06d,"heading_deg":%d.%d,"speed_mps":1.%03d,"accuracy_m":2.%d},`+
			`"battery":{"percent":%d.%d,"charging":false},"status":"delivering","delivery_id":"D-%08d","software_version":"4.2.1"}`,
			robot, i*31%10000, 100000+i*17, measured.Format(time.RFC3339Nano),
			i*104729%1000000, i*1299709%1000000, i*37%360, i%10, i*71%1000, i%7, i*13%100, i%10, i*15485863%100000000)
		events[i] = string(event.AppendReading(nil, event.Reading{
			RobotID: robot, BootID: fmt.Sprintf("20261123T08%04d", i*31%10000), Seq: int64(100000 + i*17),
			Time: measured, Published: measured.Add(time.Millisecond), Data: []byte(data),
		}))
	}
	return []byte("[" + strings.Join(events, ",") + "]")
}

// BenchmarkArchive measures readings from validated batches to the store.
func BenchmarkArchive(b *testing.B) {
	a := newArchiver(b, quick(), discard{})
	e := newEvent(event.TypeTelemetryValidated, "")
	e.DataEncoded = fleet()
	perCore(b, func() error { return a.Handle(delivered(b.Context()), e) })
}

// BenchmarkCompress is the reference of BenchmarkArchive: compressing the same bytes, and nothing else.
func BenchmarkCompress(b *testing.B) {
	data := fleet()
	gz, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		if _, err := gz.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*readingsPerEvent)/(cpu(b)-before).Seconds(), "readings/cpu-s")
}

func perCore(b *testing.B, do func() error) {
	b.SetParallelism(64)
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
	b.ReportMetric(float64(b.N*readingsPerEvent)/(cpu(b)-before).Seconds(), "readings/cpu-s")
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
