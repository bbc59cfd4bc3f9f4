package function_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

// BenchmarkPush compares a stage whose handler does nothing with a bare net/http handler that reads the body and answers 204.
// Both are sent the same request by the same client over a kept connection: one reading in binary mode, with a token. The
// client's CPU is in both figures.
func BenchmarkPush(b *testing.B) {
	g := newGuarded(b)
	stage := newHandler(b, func(context.Context, cloudevents.Event) error { return nil }, limits, guardedIdentity(g.issuer))
	bareHandler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	body := []byte(`{"robot_id":"R-000017","boot_id":"01JB2Q9","seq":48213,"time":"2026-11-01T12:00:00.120Z",` +
		`"position":{"lat_deg":47.376887,"lon_deg":8.541694,"heading_deg":271.5,"speed_mps":1.42,"accuracy_m":0.8},` +
		`"battery":{"percent":71.5,"charging":false},"status":"delivering","delivery_id":"D-004711","software_version":"2026.10.3"}`)
	header := headers(metadata(), attrs("ce-time", "2026-11-01T12:00:00.12Z", "ce-partitionkey", "R-000017"),
		map[string]string{"authorization": "Bearer " + g.good(b)})
	for _, bm := range []struct {
		name    string
		handler http.Handler
	}{{"bare", bareHandler}, {"stage", stage}} {
		b.Run(bm.name, func(b *testing.B) {
			server, client := newServer(b, bm.handler), newClient(b, false)
			send := func() {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, server.URL, bytes.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				req.Header = header
				res, err := client.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				_ = res.Body.Close()
				if res.StatusCode != http.StatusNoContent {
					b.Fatalf("got %s", res.Status)
				}
			}
			send() // connects, and lets the stage check the token
			before := cpu(b)
			b.ReportAllocs()
			for b.Loop() {
				send()
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/event")
		})
	}
}

// cpu returns the CPU time that the process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
