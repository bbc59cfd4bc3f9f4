package telemetry_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// typical is a reading as robots send it.
const typical = `{"robot_id":"R-000017","boot_id":"01JD3Z8Q5W","seq":48151,"time":"2026-11-23T11:19:03.250Z",` +
	`"position":{"lat_deg":48.137154,"lon_deg":11.576124,"heading_deg":271.5,"speed_mps":1.42,"accuracy_m":2.5},` +
	`"battery":{"percent":83.5,"charging":false},"status":"delivering","delivery_id":"D-7F3A","software_version":"4.12.0"}`

func BenchmarkDecode(b *testing.B) {
	data := []byte(typical)
	schema := compileSchema(b)
	b.Run("hand-written", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		var r telemetry.Reading
		for b.Loop() {
			if err := telemetry.Decode(data, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("hand-written-with-unknown-fields", func(b *testing.B) {
		data := bytes.Replace(data, []byte(`"charging"`), []byte(`"voltage_v":48.1,"temperature_c":21.5,"charging"`), 1)
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		var r telemetry.Reading
		for b.Loop() {
			if err := telemetry.Decode(data, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding-json-without-rules", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			var r telemetry.Reading
			if err := json.Unmarshal(data, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("schema-library", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			var v any
			if err := json.Unmarshal(data, &v); err != nil {
				b.Fatal(err)
			}
			if err := schema.Validate(v); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecodeAny(b *testing.B) {
	const n = 100
	body := []byte("[" + string(bytes.Repeat([]byte(typical+","), n-1)) + typical + "]")
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	var r telemetry.Reading
	for b.Loop() {
		for _, err := range telemetry.DecodeAny(body, &r) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/reading")
}

func BenchmarkRefuse(b *testing.B) {
	data := bytes.Replace([]byte(typical), []byte("48.137154"), []byte("148.137154"), 1)
	b.ReportAllocs()
	var r telemetry.Reading
	for b.Loop() {
		if err := telemetry.Decode(data, &r); err == nil {
			b.Fatal("accepted")
		}
	}
}
