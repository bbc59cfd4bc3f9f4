package latency

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"google.golang.org/api/option"

	embedded "github.com/robofleet/robofleet/simulator/cloud/bigquery"
)

func TestPercentiles(t *testing.T) {
	p := New(nil, "d.t", nil)
	if got := p.All(); got != (Percentiles{}) {
		t.Errorf("percentiles of nothing = %+v, want zeros", got)
	}
	now := time.Now()
	for i := range 100 { // 100 ms down to 1 ms, the first 40 long ago
		at := now
		if i < 40 {
			at = now.Add(-time.Hour)
		}
		p.seen = append(p.seen, observation{at: at, latency: time.Duration(100-i) * time.Millisecond})
	}
	ms := time.Millisecond
	if got, want := p.All(), (Percentiles{P50: 51 * ms, P95: 96 * ms, P99: 100 * ms, Max: 100 * ms, N: 100}); got != want {
		t.Errorf("All() = %+v, want %+v", got, want)
	}
	if got, want := p.Recent(), (Percentiles{P50: 31 * ms, P95: 58 * ms, P99: 60 * ms, Max: 60 * ms, N: 60}); got != want {
		t.Errorf("Recent() = %+v, want %+v", got, want)
	}
}

func TestProbeSeesEachReadingOfItsSampleOnce(t *testing.T) {
	s, err := embedded.Start(t.Context(), embedded.Config{Project: "p-1", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	client, err := bigquery.NewClient(t.Context(), "p-1", option.WithEndpoint(s.RESTEndpoint()), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if err := client.Dataset("d").Create(t.Context(), &bigquery.DatasetMetadata{}); err != nil {
		t.Fatal(err)
	}
	// A view is enough of a table to be asked, and has its rows at once: one reading that was delivered twice, one of a
	// robot outside the sample, and one that was never published.
	err = client.Dataset("d").Table("t").Create(t.Context(), &bigquery.TableMetadata{ViewQuery: `
		SELECT 'R-1/b/1' AS event_id, 'R-1' AS robot_id, CURRENT_TIMESTAMP() AS ingest_time
		UNION ALL SELECT 'R-1/b/1', 'R-1', CURRENT_TIMESTAMP()
		UNION ALL SELECT 'R-2/b/1', 'R-2', CURRENT_TIMESTAMP()
		UNION ALL SELECT 'R-1/b/9', 'R-1', CURRENT_TIMESTAMP()`})
	if err != nil {
		t.Fatal(err)
	}
	p := New(client, "d.t", []string{"R-1", "R-3"})
	p.Published("R-1/b/1", time.Now())
	p.Published("R-2/b/1", time.Now())
	p.Published("R-3/b/1", time.Now()) // which never arrives
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for asked := 0; asked < 2; asked++ {
		if _, err := p.ask(ctx, time.Now().Add(-overlap)); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.All(); got.N != 1 || got.Max <= 0 {
		t.Errorf("percentiles = %+v, want one reading", got)
	}
}

func TestProbeThatNeverGotAnAnswerSaysSo(t *testing.T) {
	client, err := bigquery.NewClient(t.Context(), "p-1", option.WithEndpoint("http://127.0.0.1:1"), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*period)
	defer cancel()
	if _, err := New(client, "d.t", []string{"R-1"}).ask(ctx, time.Now()); err == nil {
		t.Error("ask of nobody succeeded")
	}
}
