package main

import "fmt"

// figures are the rows that benchmarks of packages give.
var figures = []figure{
	{
		what: "validate, one reading per push: CPU of the server per event", pkg: "./functions/validate",
		bench: "Push/readings=1/validate", unit: "cpu-ns/reading", reference: "Push/readings=1/bare", against: "for a bare net/http handler",
		goal: "≤ 1.6 ×", show: ratio,
	},
	{
		what: "validate, 100 readings per push: CPU of the server per reading", pkg: "./functions/validate",
		bench: "Push/readings=100/validate", unit: "cpu-ns/reading", reference: "Push/readings=100/bare", against: "for a bare net/http handler",
		goal: "≤ 4 µs", show: micros,
	},
	{
		what: "decode and check one reading", pkg: "./shared/telemetry",
		bench: "Decode/hand-written", unit: "ns/op", reference: "Decode/schema-library", against: "by a JSON Schema library", goal: "", show: micros,
	},
	{
		what: "hot-write, rows per second and core", pkg: "./functions/hotwrite",
		bench: "Write", unit: "rows/cpu-s", reference: "Decode", against: "for decoding alone", goal: "≥ 150,000", show: rate,
	},
	{
		what: "cold-archive, readings per second and core", pkg: "./functions/coldarchive",
		bench: "Archive", unit: "readings/cpu-s", reference: "Compress", against: "for gzip alone", goal: "≥ 150,000", show: rate,
	},
	{
		what: "broker-ingress: CPU per event, client and Pub/Sub stub included", pkg: "./eventing/ingress",
		bench: "Ingress", unit: "cpu-µs/event", reference: "Reference", against: "for a bare net/http handler", goal: "≤ 200 µs", show: plainMicros,
	},
}

func ratio(value, reference float64) (string, string) {
	return fmt.Sprintf("%.1f µs = %.2f ×", value/1e3, value/reference), fmt.Sprintf("%.1f µs", reference/1e3)
}

func micros(value, reference float64) (string, string) {
	return fmt.Sprintf("%.2f µs", value/1e3), fmt.Sprintf("%.2f µs", reference/1e3)
}

func plainMicros(value, reference float64) (string, string) { return micros(value*1e3, reference*1e3) }

func rate(value, reference float64) (string, string) {
	return fmt.Sprintf("%.0f", value), fmt.Sprintf("%.0f", reference)
}
