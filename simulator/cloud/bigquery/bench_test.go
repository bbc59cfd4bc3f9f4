package bigquery_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/bigquery/storage/managedwriter"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// telemetry has the columns of a reading, about as many and as long as the platform's table.
func telemetry() bigquery.Schema {
	s := bigquery.Schema{{Name: "event_id", Type: bigquery.StringFieldType, Required: true}, {Name: "event_time", Type: bigquery.TimestampFieldType, Required: true}}
	for _, name := range []string{"robot_id", "boot_id", "status", "fault_code", "fault_message", "delivery_id", "software_version"} {
		s = append(s, &bigquery.FieldSchema{Name: name, Type: bigquery.StringFieldType})
	}
	for _, name := range []string{"lat_deg", "lon_deg", "heading_deg", "speed_mps", "accuracy_m", "battery_percent"} {
		s = append(s, &bigquery.FieldSchema{Name: name, Type: bigquery.FloatFieldType})
	}
	return append(s, &bigquery.FieldSchema{Name: "seq", Type: bigquery.IntegerFieldType}, &bigquery.FieldSchema{Name: "charging", Type: bigquery.BooleanFieldType},
		&bigquery.FieldSchema{Name: "publish_time", Type: bigquery.TimestampFieldType}, &bigquery.FieldSchema{Name: "ingest_time", Type: bigquery.TimestampFieldType},
		&bigquery.FieldSchema{Name: "extra", Type: bigquery.JSONFieldType})
}

func telemetryRows(t testing.TB, m protoreflect.MessageDescriptor, from, count int) [][]byte {
	rows := make([]map[string]any, count)
	now := time.Now().UnixMicro()
	for i := range rows {
		n := from + i
		rows[i] = map[string]any{
			"event_id": fmt.Sprintf("R-%06d/b-2026-11-23/%d", n%1000, n/1000), "event_time": now, "robot_id": fmt.Sprintf("R-%06d", n%1000), "boot_id": "b-2026-11-23",
			"seq": int64(n / 1000), "status": "delivering", "delivery_id": fmt.Sprintf("D-%08d", n), "software_version": "2026.11.3",
			"lat_deg": 48.137 + float64(n%97)*1e-5, "lon_deg": 11.575 + float64(n%89)*1e-5, "heading_deg": float64(n % 360), "speed_mps": 1.2, "accuracy_m": 0.8,
			"battery_percent": float64(n%1000) / 10, "charging": n%5 == 0, "publish_time": now, "ingest_time": now, "extra": `{"temperature_c":31.5}`,
		}
	}
	return encode(t, m, rows...)
}

// BenchmarkAppend appends rows of 20 columns through the real client to a database on disk: what one connection gets with four requests
// in flight. The client's share of the work is in it.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{250, 2000} {
		b.Run(fmt.Sprintf("rows=%d", size), func(b *testing.B) {
			server := startIn(b, b.TempDir())
			c := client(b, server)
			createTable(b, c, "fleet", "readings", telemetry())
			m, d := descriptorOf(b, telemetry())
			stream := openStream(b, writeClient(b, server), "fleet", "readings", d)
			rows := telemetryRows(b, m, 0, size)
			bytes := 0
			for _, r := range rows {
				bytes += len(r)
			}
			b.SetBytes(int64(bytes))
			b.ResetTimer()
			var pending []*managedwriter.AppendResult
			for i := range b.N + 4 {
				if i < b.N {
					result, err := stream.AppendRows(b.Context(), rows)
					if err != nil {
						b.Fatal(err)
					}
					pending = append(pending, result)
				}
				if i >= 4 {
					if _, err := pending[i-4].GetResult(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(float64(bytes/size), "B/row")
		})
	}
}

// BenchmarkQueryWhileWriting is the platform's load: 5,000 rows/s in four appends per 200 ms, while a poller asks for the newest rows and
// an operator's query counts all of them.
func BenchmarkQueryWhileWriting(b *testing.B) {
	server := startIn(b, b.TempDir())
	c := client(b, server)
	createTable(b, c, "fleet", "readings", telemetry())
	m, d := descriptorOf(b, telemetry())
	descriptors := []*descriptorpb.DescriptorProto{d, d}
	ctx, cancel := context.WithCancel(b.Context())
	var writers sync.WaitGroup
	var mu sync.Mutex
	var appends []time.Duration
	wc := writeClient(b, server)
	for i, d := range descriptors {
		stream := openStream(b, wc, "fleet", "readings", d)
		rows := telemetryRows(b, m, i*1_000_000, 250)
		writers.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				<-tick.C
				begin := time.Now()
				appendAll(b, stream, rows)
				mu.Lock()
				appends = append(appends, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	var queries []time.Duration
	b.ResetTimer()
	for range b.N {
		begin := time.Now()
		query(b, c, `SELECT COUNT(*), APPROX_QUANTILES(TIMESTAMP_DIFF(ingest_time, event_time, MILLISECOND), 100)[OFFSET(95)] FROM fleet.readings
			WHERE ingest_time > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 10 SECOND)`)
		queries = append(queries, time.Since(begin))
		time.Sleep(100 * time.Millisecond)
	}
	cancel()
	writers.Wait()
	b.ReportMetric(percentile(queries, 50), "query-p50-ms")
	b.ReportMetric(percentile(queries, 99), "query-p99-ms")
	b.ReportMetric(percentile(appends, 50), "append-p50-ms")
	b.ReportMetric(percentile(appends, 99), "append-p99-ms")
	b.ReportMetric(percentile(appends, 100), "append-max-ms")
}

func percentile(d []time.Duration, p int) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return float64(d[min(len(d)*p/100, len(d)-1)].Microseconds()) / 1000
}
