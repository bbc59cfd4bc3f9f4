// Package terminal shows a run of the local platform: a live view while readings flow, and the ledger at the end.
//
// It renders plain values and computes nothing. On a terminal the live view redraws in place, without the alternate screen, so
// that its last frame stays above the ledger. Where that cannot be (output to a file or a pipe, TERM=dumb) it prints one line
// per interval instead. NO_COLOR (https://no-color.org) takes the colours away, and nothing else.
package terminal

import "time"

// Snapshot is what the live view shows at one moment. Counts are totals since the start unless said otherwise.
type Snapshot struct {
	Phase     string        // "starting", "running", "draining", "done"
	Elapsed   time.Duration // since the first reading
	Remaining time.Duration // until the robots stop; negative when they run until stopped

	Measured     int64 // good readings; one that was not sent waits for a connection, for a gateway or for Pub/Sub
	Sent         int64 // of these, distinct, whose publish was confirmed
	Rows         int64 // in the warehouse
	Objects      int64 // in the bucket
	Rejected     int64 // readings quarantined
	DeadLettered int64 // messages

	TargetRate float64   // readings per second that the robots are to send; 0 when there is no such number
	Rate       float64   // readings per second, now
	Rates      []float64 // Rate of the last seconds, one each, oldest first; the view shows up to a minute

	Latency Latency // publish to visible in a query

	Backlog []Figure // messages in flight per subscription, in the order to show
	Robots  []Figure // robots by status, in the order to show
	Stages  []Stage

	Messages []Message // the last events worth a line, oldest first
}

// Latency are percentiles; zero when not known yet.
type Latency struct {
	P50, P95, P99 time.Duration
}

// Figure is a number with a name.
type Figure struct {
	Name string
	N    int64
}

// Stage is one process of the platform.
type Stage struct {
	Name       string
	PID        int // 0 while none runs
	Restarts   int
	CPUPercent float64 // of one core
	RSS        uint64  // bytes
	Ready      bool
}

// Message is something that happened.
type Message struct {
	Time time.Time
	Text string
}

// LedgerView is the account of a finished run, ready to print.
type LedgerView struct {
	Title    string // what was run, such as "60 s, 1,000 robots, 5 readings/s each"
	Sections []Section
	Stages   []StageUsage
	OK       bool   // colours the verdict
	Verdict  string // one line, such as "nothing was lost"
	Missing  []MissingEvent
}

// Section is a group of rows under a heading.
type Section struct {
	Title string
	Rows  []Row
}

// Row is one figure. Count, Milliseconds, Bytes and Rate make values.
type Row struct {
	Label, Value string
	Note         string // what it means or how it comes about; may be empty
	Bad          bool   // the figure is why the verdict is not OK
}

// StageUsage is what the processes of a stage used in all.
type StageUsage struct {
	Name         string
	Restarts     int
	CPU          time.Duration
	RSS, PeakRSS uint64 // bytes
}

// MissingEvent is an event that was sent and is not where it should be. The ledger prints the first ten and how many more there are.
type MissingEvent struct {
	ID       string
	LastSeen string // such as "archived, not in the warehouse"
}
