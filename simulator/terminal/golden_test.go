package terminal

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files with what is rendered now")

func TestFramesAreTheGoldenOnes(t *testing.T) {
	starting := Snapshot{Phase: "starting", Remaining: time.Minute, TargetRate: 5000, Stages: []Stage{
		{Name: "validate", PID: 12344}, {Name: "hot-write", PID: 12345}, {Name: "cold-archive"},
	}}
	tests := []struct {
		golden   string
		snapshot Snapshot
		columns  int
		colour   bool
	}{
		{"running-80", running(), 80, false},
		{"running-80-colour", running(), 80, true},
		{"running-120", running(), 120, false},
		{"running-200-is-not-wider", running(), 200, false},
		{"running-50-is-cut", running(), 50, false},
		{"starting-80", starting, 80, false},
		{"huge-80", huge(), 80, false},
	}
	for _, test := range tests {
		t.Run(test.golden, func(t *testing.T) {
			d := liveDisplay(&strings.Builder{}, test.columns, 0)
			d.colour = test.colour
			width := d.width(test.columns)
			lines := d.lines(frame(test.snapshot, width), width)
			for _, l := range lines {
				if n := utf8.RuneCountInString(l); !test.colour && n > test.columns-1 {
					t.Errorf("%d columns, want at most %d: %s", n, test.columns-1, l)
				}
			}
			checkGolden(t, test.golden, strings.Join(lines, "\n")+"\n")
		})
	}
}

func TestLedgersAreTheGoldenOnes(t *testing.T) {
	tests := []struct {
		golden  string
		view    LedgerView
		columns int
		colour  bool
	}{
		{"ledger-80", account(0), 80, false},
		{"ledger-120", account(0), 120, false},
		{"ledger-lost-80", account(13), 80, false},
		{"ledger-lost-80-colour", account(13), 80, true},
	}
	for _, test := range tests {
		t.Run(test.golden, func(t *testing.T) {
			var out strings.Builder
			d := liveDisplay(&out, test.columns, 0)
			d.colour = test.colour
			if err := d.PrintLedger(test.view); err != nil {
				t.Fatal(err)
			}
			checkGolden(t, test.golden, out.String())
		})
	}
}

func TestOutputThatIsNoTerminalGetsPlainLines(t *testing.T) {
	var out strings.Builder
	d := New(&out, func(string) string { return "" })
	if got, want := d.Interval(), 10*time.Second; got != want {
		t.Errorf("interval: got %v, want %v", got, want)
	}
	s := running()
	draw(t, d, s) // with both messages
	draw(t, d, s) // with none, as they are no longer new
	s.Messages = append(s.Messages, Message{s.Messages[1].Time.Add(time.Second), "a\x1b[31m b"})
	draw(t, d, s) // with the third
	if err := d.PrintLedger(account(0)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("control sequences in plain output")
	}
	checkGolden(t, "plain", out.String())
}

func TestLiveViewRedrawsInPlace(t *testing.T) {
	var out strings.Builder
	d := liveDisplay(&out, 80, 24)
	s := running()
	draw(t, d, s)
	height := strings.Count(out.String(), "\n")

	out.Reset()
	s.Messages = nil
	draw(t, d, s)
	if want := fmt.Sprintf("%s%s\x1b[%dA\r RoboFleet", beginUpdate, hideCursor, height); !strings.HasPrefix(out.String(), want) {
		t.Errorf("second frame begins %q, want %q: up to where the first began", out.String()[:len(want)], want)
	}
	if want := "\n" + clearBelow + showCursor + endUpdate; !strings.HasSuffix(out.String(), want) {
		t.Errorf("second frame ends otherwise than %q: what the first was longer must go", want)
	}
	lower := strings.Count(out.String(), "\n")

	out.Reset()
	draw(t, d, s)
	if want := fmt.Sprintf("\x1b[%dA\r", lower); !strings.Contains(out.String(), want) {
		t.Errorf("third frame goes up otherwise than %q, the height of the second", want)
	}

	out.Reset()
	d.size = func() (int, int) { return 100, 10 }
	draw(t, d, s)
	if !strings.Contains(out.String(), clearScreen) {
		t.Error("a resized terminal is not cleared")
	}
	if got, want := strings.Count(out.String(), "\n"), 9; got != want {
		t.Errorf("lines on a terminal of 10: got %d, want %d", got, want)
	}
}

func liveDisplay(out *strings.Builder, columns, rows int) *Display {
	return &Display{out: out, live: true, size: func() (int, int) { return columns, rows }}
}

func draw(t *testing.T, d *Display, s Snapshot) {
	t.Helper()
	if err := d.Draw(s); err != nil {
		t.Fatal(err)
	}
}

func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), go test -update accepts it:\n%s", path, diff)
	}
}

// running is half a minute into a run of 1,000 robots, just after validate was killed.
func running() Snapshot {
	at := time.Date(2026, 11, 23, 9, 30, 12, 0, time.UTC)
	s := Snapshot{
		Phase: "running", Elapsed: 32 * time.Second, Remaining: 28 * time.Second,
		Measured: 159936, Sent: 159930, Rows: 159400, Objects: 48, Rejected: 160, DeadLettered: 0,
		TargetRate: 5000, Rate: 4998.4,
		Latency: Latency{P50: 84 * time.Millisecond, P95: 212 * time.Millisecond, P99: 1340 * time.Millisecond},
		Backlog: []Figure{{"validate", 112}, {"hot-write", 3}, {"cold-archive", 9}},
		Robots:  []Figure{{"idle", 100}, {"delivering", 512}, {"returning", 201}, {"charging", 100}, {"paused", 80}, {"fault", 7}},
		Stages: []Stage{
			{Name: "validate", PID: 12399, Restarts: 1, CPUPercent: 23.4, RSS: 34_200_000},
			{Name: "hot-write", PID: 12345, CPUPercent: 18.2, RSS: 61_000_000, Ready: true},
			{Name: "cold-archive", CPUPercent: 0, RSS: 0},
			{Name: "broker-ingress", PID: 12347, CPUPercent: 101.7, RSS: 1_250_000_000, Ready: true},
		},
		Messages: []Message{
			{at, "validate exited (signal: killed), restarting now"},
			{at, "cold-archive exited (exit status 1), restarting in 200ms"},
		},
	}
	for second := range 32 {
		rate := 5000 * min(1, float64(second)/6)
		if second == 20 || second == 21 {
			rate = 0
		}
		s.Rates = append(s.Rates, rate)
	}
	return s
}

// huge is a run of a day that ends at no time.
func huge() Snapshot {
	s := running()
	s.Elapsed, s.Remaining = 26*time.Hour, -1
	s.Measured, s.Sent, s.Rows, s.Objects = 9_999_999_999, 9_999_999_998, 9_999_999_997, 1_234_567
	s.Rejected, s.DeadLettered = 12_345_678, 1_234
	s.Rate, s.TargetRate = 123456, 100000
	s.Rates = append(s.Rates, make([]float64, 60)...)
	for i := range s.Rates {
		s.Rates[i] = 100000 + 20000*math.Sin(float64(i)/4)
	}
	s.Messages = append(s.Messages, Message{s.Messages[0].Time, strings.Repeat("a very long message ", 10)})
	return s
}

// account is the ledger of a run that lost some readings.
func account(lost int) LedgerView {
	v := LedgerView{
		Title: "60 s, 1,000 robots, 5 readings/s each",
		Sections: []Section{
			{"readings", []Row{
				{"sent", Count(300_000), "confirmed by Pub/Sub", false},
				{"accepted rows", Count(299_712), "in the warehouse", false},
				{"distinct rows", Count(299_700), "", false},
				{"archived", Count(299_700), "distinct, in the bucket", false},
				{"rejected", Count(300), "of 300 bad ones sent: malformed 100, out_of_range 120, wrong_type 80", false},
				{"dead-lettered", "0", "", false},
				{"duplicates", "12", "in storage; 0 on read", false},
				{"lost", Count(int64(lost)), "", lost > 0},
				{"unexpected", "0", "", false},
			}},
			{"speed", []Row{
				{"rate", Rate(4998.2), "", false},
				{"latency p50", Milliseconds(84 * time.Millisecond), "publish to visible in a query", false},
				{"latency p95", Milliseconds(212 * time.Millisecond), "", false},
				{"latency p99", Milliseconds(340 * time.Millisecond), "", false},
				{"latency max", Milliseconds(1204 * time.Millisecond), "", false},
			}},
		},
		Stages: []StageUsage{
			{"validate", 1, 14210 * time.Millisecond, 34_200_000, 51_000_000},
			{"hot-write", 0, 9120 * time.Millisecond, 61_000_000, 84_000_000},
			{"cold-archive", 0, 4300 * time.Millisecond, 41_000_000, 47_000_000},
		},
		OK: lost == 0, Verdict: "nothing was lost",
	}
	if lost > 0 {
		v.Verdict = fmt.Sprintf("%d readings were lost", lost)
	}
	for i := range lost {
		v.Missing = append(v.Missing, MissingEvent{fmt.Sprintf("robot-%04d/boot-1/%d", i*37, i*11), "archived, not in the warehouse"})
	}
	return v
}
