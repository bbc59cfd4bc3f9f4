package run

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"cloud.google.com/go/bigquery"

	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/shared/telemetry"
	"github.com/robofleet/robofleet/simulator/platform"
	"github.com/robofleet/robofleet/simulator/robots"
	"github.com/robofleet/robofleet/simulator/stages"
	"github.com/robofleet/robofleet/simulator/terminal"
)

// view keeps the live view up to date.
type view struct {
	session  *session
	counters *platform.Counters

	mu      sync.Mutex // guards what follows
	current string     // phase
	start   time.Time  // of the robots
	figures figures

	// The rest belongs to the goroutine that measures.
	lastSent int64
	lastTime time.Time
}

// figures are what the view has to ask others for.
type figures struct {
	rows, objects, rejected, deadLettered int64

	rates []float64 // of the last seconds
}

func newView(s *session) *view {
	now := time.Now()
	return &view{session: s, counters: s.platform.NewCounters(), start: now, lastTime: now, current: "starting"}
}

func (v *view) phase(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if name == "running" {
		v.start = time.Now()
	}
	v.current = name
}

func (v *view) now() (phase string, start time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current, v.start
}

// run draws until ctx ends. The figures that cost something are asked for once a second, and by another goroutine: a stage that
// hangs is what an operator wants to see, and must not hang the view.
func (v *view) run(ctx context.Context) error {
	var measuring sync.WaitGroup
	measuring.Go(func() { v.measureUntil(ctx) })
	ticker := time.NewTicker(v.session.display.Interval())
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			// The last frame stays above the ledger, and should not differ from it by a second.
			measuring.Wait()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			v.measure(last)
			cancel()
			return v.session.display.Draw(v.snapshot())
		case <-ticker.C:
			if err := v.session.display.Draw(v.snapshot()); err != nil {
				return fmt.Errorf("draw: %w", err)
			}
		}
	}
}

func (v *view) measureUntil(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-second.C:
			v.pace()
			v.measure(ctx)
		}
	}
}

// measure asks the stages and the warehouse. What does not answer keeps its last figure: the view is no proof.
func (v *view) measure(ctx context.Context) {
	v.counters.Update(ctx)
	_, start := v.now()
	q := v.session.platform.BigQuery.Query(`SELECT COUNT(*) FROM ` + platform.Dataset + "." + hotwrite.Table + ` WHERE ingest_time >= @start`)
	q.Parameters = []bigquery.QueryParameter{{Name: "start", Value: start}}
	rows := int64(-1)
	var row []bigquery.Value
	if it, err := q.Read(ctx); err == nil && it.Next(&row) == nil && len(row) == 1 {
		if n, ok := row[0].(int64); ok {
			rows = n
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.figures.objects = v.counters.Total("cold_archive_objects_total")
	v.figures.rejected = v.counters.Total("validate_rejected_total")
	v.figures.deadLettered = v.counters.Labelled("cold_archive_events_total", "dead-letter")
	if rows >= 0 {
		v.figures.rows = rows
	}
}

// pace notes the rate of the last second.
func (v *view) pace() {
	sent, now := v.session.fleet.Stats().Sent, time.Now()
	rate := float64(sent-v.lastSent) / now.Sub(v.lastTime).Seconds()
	v.lastSent, v.lastTime = sent, now
	v.mu.Lock()
	defer v.mu.Unlock()
	rates := append(slices.Clone(v.figures.rates), rate) // a snapshot has the old ones
	v.figures.rates = rates[max(0, len(rates)-60):]
}

func (v *view) snapshot() terminal.Snapshot {
	p := v.session.platform
	phase, start := v.now()
	s := fleetSnapshot(v.session.fleet, v.session.options.Fleet, start)
	s.Phase = phase
	v.mu.Lock()
	f := v.figures
	v.mu.Unlock()
	s.Rows, s.Objects, s.Rejected, s.DeadLettered = f.rows, f.objects, f.rejected, f.deadLettered
	if n := len(f.rates); n > 0 {
		s.Rates, s.Rate = f.rates, f.rates[n-1]
	}
	recent := v.session.probe.Recent()
	s.Latency = terminal.Latency{P50: recent.P50, P95: recent.P95, P99: recent.P99}
	backlog := p.Backlog()
	for _, trigger := range []string{"validate", "hot-write", "cold-archive"} {
		s.Backlog = append(s.Backlog, terminal.Figure{Name: trigger, N: int64(backlog[trigger])})
	}
	for _, stats := range p.Stages.Stats() {
		s.Stages = append(s.Stages, terminal.Stage{
			Name: stats.Name, PID: stats.PID, Restarts: stats.Restarts, CPUPercent: stats.CPUPercent, RSS: stats.RSS, Ready: stats.Ready,
		})
	}
	for _, e := range p.Stages.Events() {
		if e.Kind != stages.Started && (e.Restarts > 0 || e.Kind == stages.Exited) {
			s.Messages = append(s.Messages, terminal.Message{Time: e.Time, Text: e.String()})
		}
	}
	return s
}

// fleetSnapshot is what the robots alone can tell.
func fleetSnapshot(f *robots.Fleet, cfg robots.Config, start time.Time) terminal.Snapshot {
	stats := f.Stats()
	s := terminal.Snapshot{
		Phase: "running", Elapsed: time.Since(start), Remaining: -1,
		Measured: stats.Measured, Sent: stats.Sent, TargetRate: stats.TargetRate,
	}
	if cfg.Duration > 0 {
		s.Remaining = max(0, cfg.Duration-s.Elapsed)
	}
	var statuses []telemetry.Status
	for status := range stats.Robots {
		statuses = append(statuses, status)
	}
	slices.Sort(statuses)
	for _, status := range statuses {
		s.Robots = append(s.Robots, terminal.Figure{Name: string(status), N: int64(stats.Robots[status])})
	}
	return s
}
