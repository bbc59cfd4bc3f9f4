package run

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/robofleet/robofleet/shared/telemetry"
	"github.com/robofleet/robofleet/simulator/latency"
	"github.com/robofleet/robofleet/simulator/ledger"
	"github.com/robofleet/robofleet/simulator/robots"
	"github.com/robofleet/robofleet/simulator/stages"
	"github.com/robofleet/robofleet/simulator/terminal"
)

// Report is the ledger as JSON, for scripts.
type Report struct {
	Run     string  `json:"run"`
	Robots  int     `json:"robots"`
	Seconds float64 `json:"seconds"` // that the robots published

	Sent             int64            `json:"sent"`              // distinct good readings that Pub/Sub confirmed
	Unconfirmed      int64            `json:"unconfirmed"`       // messages of which nobody knows whether they arrived
	AcceptedRows     int64            `json:"accepted_rows"`     // rows in the warehouse
	RowsDistinct     int64            `json:"rows_distinct"`     // distinct readings among them
	RowsUnique       int64            `json:"rows_unique"`       // rows of the view that keeps one of each
	Archived         int64            `json:"archived"`          // readings in the archive
	ArchivedDistinct int64            `json:"archived_distinct"` // distinct ones among them
	Objects          int64            `json:"objects"`
	BadSent          int64            `json:"bad_sent"`
	BadByReason      map[string]int64 `json:"bad_sent_by_reason"`
	Rejected         int64            `json:"rejected"` // distinct bad messages in the archive
	RejectedByReason map[string]int64 `json:"rejected_by_reason"`
	DeadLettered     int64            `json:"dead_lettered"`
	Lost             int64            `json:"lost"`
	Duplicates       int64            `json:"duplicates"` // rows that repeat another
	Injected         int64            `json:"duplicates_injected"`
	Unexpected       int64            `json:"unexpected"`

	RatePerSecond float64          `json:"rate_per_second"`
	LatencyMS     latencyReport    `json:"latency_ms"` // from the publish call to the first query that shows the row
	Stages        []stageReport    `json:"stages"`
	Missing       []ledger.Finding `json:"missing,omitempty"`           // the first 1,000
	Surprises     []ledger.Finding `json:"unexpected_events,omitempty"` // the first 1,000
}

type latencyReport struct {
	P50     float64 `json:"p50"`
	P95     float64 `json:"p95"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
	Samples int     `json:"samples"`
}

type stageReport struct {
	Name       string  `json:"name"`
	CPUSeconds float64 `json:"cpu_seconds"`
	RSSBytes   uint64  `json:"rss_bytes"`
	PeakBytes  uint64  `json:"peak_rss_bytes"`
	IdleBytes  uint64  `json:"idle_rss_bytes"` // before the robots started
	Restarts   int     `json:"restarts"`
	ReadyMS    float64 `json:"ready_ms"` // from exec to the first 200
}

// maxFindings bounds the lists of a report.
const maxFindings = 1000

// NewReport makes the report of a run whose robots published that long. The figures of the stages may be missing, in both lists.
func NewReport(cfg robots.Config, l *ledger.Ledger, published time.Duration, p latency.Percentiles, idle, used []stages.Stats) *Report {
	r := &Report{
		Run: cfg.RunID, Robots: cfg.Robots, Seconds: published.Seconds(),
		Sent: l.Sent, Unconfirmed: l.Unconfirmed, AcceptedRows: l.Rows, RowsDistinct: l.RowsDistinct, RowsUnique: l.RowsUnique,
		Archived: l.Archived, ArchivedDistinct: l.ArchivedOnce, Objects: l.Objects, BadSent: l.BadSent, Rejected: l.Rejected,
		BadByReason: byReason(l.BadByReason), RejectedByReason: byReason(l.RejectedByReason), DeadLettered: l.DeadLettered, Lost: int64(len(l.Missing)),
		Duplicates: l.Duplicates(), Injected: l.Injected, Unexpected: int64(len(l.Unexpected)),
		RatePerSecond: float64(l.Sent) / published.Seconds(),
		LatencyMS:     latencyReport{ms(p.P50), ms(p.P95), ms(p.P99), ms(p.Max), p.N},
		Missing:       l.Missing[:min(len(l.Missing), maxFindings)],
		Surprises:     l.Unexpected[:min(len(l.Unexpected), maxFindings)],
	}
	for i, s := range used { // both lists are in the order of the stages
		r.Stages = append(r.Stages, stageReport{
			Name: s.Name, CPUSeconds: s.CPU.Seconds(), RSSBytes: s.RSS, PeakBytes: s.PeakRSS, IdleBytes: idle[i].RSS,
			Restarts: s.Restarts, ReadyMS: ms(idle[i].ReadyAfter),
		})
	}
	return r
}

func byReason(counts map[telemetry.Reason]int64) map[string]int64 {
	m := make(map[string]int64)
	for reason, n := range counts {
		m[string(reason)] = n
	}
	return m
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Write writes the report to file, if there is one.
func (r *Report) Write(file string) error {
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// View is the report for a person.
func (r *Report) View() terminal.LedgerView {
	latency := func(v float64) string { return terminal.Milliseconds(time.Duration(v * float64(time.Millisecond))) }
	count := terminal.Count
	rejected := terminal.Section{Title: "Refused", Rows: []terminal.Row{
		{Label: "bad messages sent", Value: count(r.BadSent)},
		{Label: "in the archive", Value: count(r.Rejected), Note: "rejected/, distinct", Bad: r.Rejected != r.BadSent},
	}}
	var reasons []string
	for reason := range r.RejectedByReason {
		reasons = append(reasons, reason)
	}
	slices.Sort(reasons)
	for _, reason := range reasons {
		rejected.Rows = append(rejected.Rows, terminal.Row{Label: "  " + reason, Value: count(r.RejectedByReason[reason])})
	}
	v := terminal.LedgerView{
		Title: fmt.Sprintf("%s: %s robots, %.0f s", r.Run, count(int64(r.Robots)), r.Seconds),
		OK:    r.Lost == 0 && r.Unexpected == 0,
		Sections: []terminal.Section{
			{Title: "Readings", Rows: []terminal.Row{
				{Label: "sent", Value: count(r.Sent), Note: "distinct, confirmed by Pub/Sub"},
				{Label: "unconfirmed", Value: count(r.Unconfirmed), Note: "may have arrived or not"},
				{Label: "rows", Value: count(r.AcceptedRows), Note: "BigQuery"},
				{Label: "distinct", Value: count(r.RowsDistinct), Note: "of these", Bad: r.RowsDistinct < r.Sent},
				{Label: "unique view", Value: count(r.RowsUnique), Note: "what readers see", Bad: r.RowsUnique != r.RowsDistinct},
				{Label: "archived, distinct", Value: count(r.ArchivedDistinct), Note: fmt.Sprintf("Cloud Storage, %s objects", count(r.Objects)), Bad: r.ArchivedDistinct < r.Sent},
				{Label: "duplicates", Value: count(r.Duplicates), Note: fmt.Sprintf("rows; robots sent %s on purpose", count(r.Injected))},
				{Label: "dead-lettered", Value: count(r.DeadLettered)},
				{Label: "lost", Value: count(r.Lost), Bad: r.Lost > 0},
				{Label: "unexpected", Value: count(r.Unexpected), Bad: r.Unexpected > 0},
			}},
			rejected,
			{Title: "Speed", Rows: []terminal.Row{
				{Label: "rate", Value: terminal.Rate(r.RatePerSecond), Note: "readings per second"},
				{Label: "p50", Value: latency(r.LatencyMS.P50), Note: "publish to visible in a query"},
				{Label: "p95", Value: latency(r.LatencyMS.P95)},
				{Label: "p99", Value: latency(r.LatencyMS.P99)},
				{Label: "max", Value: latency(r.LatencyMS.Max)},
			}},
		},
		Verdict: "nothing was lost, nothing was invented",
	}
	switch {
	case !v.OK:
		v.Verdict = fmt.Sprintf("%s lost, %s unexpected", count(r.Lost), count(r.Unexpected))
	case r.Sent == 0 && r.BadSent == 0:
		v.Verdict = "nothing was sent"
	}
	for _, s := range r.Stages {
		v.Stages = append(v.Stages, terminal.StageUsage{
			Name: s.Name, Restarts: s.Restarts, CPU: time.Duration(s.CPUSeconds * float64(time.Second)), RSS: s.RSSBytes, PeakRSS: s.PeakBytes,
		})
	}
	for _, f := range slices.Concat(r.Missing, r.Surprises) {
		v.Missing = append(v.Missing, terminal.MissingEvent{ID: f.ID, LastSeen: f.What})
	}
	return v
}
