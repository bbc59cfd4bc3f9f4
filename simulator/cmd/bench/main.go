// Command bench measures what the README claims and prints it as a table, each figure beside its reference of the same run.
//
// It runs the packages' own benchmarks, then the whole platform for a minute, then looks for the highest rate that the whole
// platform sustains on this machine. Nothing is asserted: machines differ, and a figure is not a test.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	duration := f.Duration("duration", time.Minute, "of the run of the whole platform")
	probe := f.Duration("probe", 20*time.Second, "of each run that looks for the highest rate; 0 does not look")
	benchtime := f.String("benchtime", "2s", "of each benchmark")
	if err := f.Parse(args); err != nil {
		return err
	}
	p := printer{stdout}
	p.line("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	p.line("")
	p.line("| what | measured | reference, same run | goal |")
	p.line("|---|---|---|---|")
	for _, figure := range figures {
		if err := figure.print(ctx, p, *benchtime, stderr); err != nil {
			return err
		}
	}
	return platform(ctx, p, *duration, *probe, stderr)
}

type printer struct{ out io.Writer }

func (p printer) line(format string, args ...any) {
	_, _ = fmt.Fprintf(p.out, format+"\n", args...) // a table that cannot be printed has no other way to say so
}

// figure is one row: a benchmark's metric, and what it is compared with.
type figure struct {
	what, pkg, bench, unit string
	reference, against     string // another benchmark of the package, and how to call it
	goal                   string
	show                   func(value, reference float64) (string, string)
}

func (f figure) print(ctx context.Context, p printer, benchtime string, stderr io.Writer) error {
	pattern := "^Benchmark(" + strings.Split(f.bench, "/")[0]
	if f.reference != "" {
		pattern += "|" + strings.Split(f.reference, "/")[0]
	}
	results, err := benchmark(ctx, f.pkg, pattern+")$", benchtime, stderr)
	if err != nil {
		return err
	}
	value, ok := results[f.bench][f.unit]
	if !ok {
		return fmt.Errorf("%s: no %s of %s among %v", f.pkg, f.unit, f.bench, results)
	}
	measured, reference := f.show(value, results[f.reference][f.unit])
	if f.reference != "" {
		reference += " " + f.against
	}
	p.line("| %s | %s | %s | %s |", f.what, measured, reference, f.goal)
	return nil
}

// benchmark runs a package's benchmarks and returns their metrics by name, without the number of processors, and unit.
func benchmark(ctx context.Context, pkg, pattern, benchtime string, stderr io.Writer) (map[string]map[string]float64, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", pattern, "-benchtime", benchtime, "-count", "1", pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	cmd.Stderr = stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go test -bench %s %s: %w\n%s", pattern, pkg, err, out)
	}
	return parse(string(out)), nil
}

// parse reads the lines of `go test -bench` (https://go.dev/design/14313-benchmark-format): a name, a count, and pairs of a value and its unit.
func parse(out string) map[string]map[string]float64 {
	results := make(map[string]map[string]float64)
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			name = name[:i]
		}
		metrics := make(map[string]float64)
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				metrics[fields[i+1]] = v
			}
		}
		results[name] = metrics
	}
	return results
}

// outcome is what is read of a run's report.
type outcome struct {
	Lost          int64   `json:"lost"`
	Unexpected    int64   `json:"unexpected"`
	RatePerSecond float64 `json:"rate_per_second"`
	LatencyMS     struct {
		P50 float64 `json:"p50"`
		P95 float64 `json:"p95"`
		P99 float64 `json:"p99"`
	} `json:"latency_ms"`
	Stages []struct {
		Name       string  `json:"name"`
		CPUSeconds float64 `json:"cpu_seconds"`
		PeakBytes  uint64  `json:"peak_rss_bytes"`
		IdleBytes  uint64  `json:"idle_rss_bytes"`
		ReadyMS    float64 `json:"ready_ms"`
	} `json:"stages"`
}

// platform measures the whole platform with everything that belongs to it on this machine.
func platform(ctx context.Context, p printer, duration, probe time.Duration, stderr io.Writer) error {
	dir, err := os.MkdirTemp("", "robofleet-bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // of the system's temporary folder
	binary := filepath.Join(dir, "simulator")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./simulator")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	build.Stderr = stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the simulator: %w", err)
	}
	const robots = 1000
	o, err := simulate(ctx, binary, dir, robots, 5, duration, stderr)
	if err != nil {
		return err
	}
	p.line("| whole platform, %d robots × 5/s for %v | %.0f readings/s, lost %d, p50 %.0f ms, p95 %.0f ms, p99 %.0f ms | | lost 0, p95 ≤ 500 ms |",
		robots, duration, o.RatePerSecond, o.Lost, o.LatencyMS.P50, o.LatencyMS.P95, o.LatencyMS.P99)
	for _, s := range o.Stages {
		p.line("| … %s | ready in %.0f ms, %.0f MB idle, %.0f MB at most, %.0f %% of a core | | ≤ 100 ms, ≤ 30 MB idle, ≤ 200 MB |",
			s.Name, s.ReadyMS, float64(s.IdleBytes)/1e6, float64(s.PeakBytes)/1e6, 100*s.CPUSeconds/duration.Seconds())
	}
	if probe == 0 {
		return nil
	}
	best, err := highest(ctx, func(rate float64) (bool, outcome, error) {
		o, err := simulate(ctx, binary, dir, robots, rate, probe, stderr)
		ok := err == nil && o.Lost == 0 && o.Unexpected == 0 && o.LatencyMS.P95 < 5000 && o.RatePerSecond >= .97*rate*robots
		return ok, o, err
	})
	if err != nil {
		return err
	}
	p.line("| highest rate with p95 < 5 s, for %v | %.0f readings/s, lost %d, p95 %.0f ms | | |", probe, best.RatePerSecond, best.Lost, best.LatencyMS.P95)
	return nil
}

// highest finds the highest rate per robot that holds: it doubles until one does not, and then halves the gap three times.
func highest(ctx context.Context, try func(rate float64) (bool, outcome, error)) (best outcome, err error) {
	good, bad := 0.0, 0.0
	rate := 5.0
	for range 8 {
		if err := ctx.Err(); err != nil {
			return best, err
		}
		ok, o, err := try(rate)
		if err != nil {
			return best, err
		}
		if ok {
			good, best = rate, o
		} else {
			bad = rate
		}
		switch {
		case bad == 0:
			rate *= 2
		case bad-good < good/8:
			return best, nil
		default:
			rate = (good + bad) / 2
		}
	}
	return best, nil
}

func simulate(ctx context.Context, binary, dir string, robots int, rate float64, duration time.Duration, stderr io.Writer) (o outcome, err error) {
	data, err := os.MkdirTemp(dir, "data")
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	report := filepath.Join(data, "report.json")
	cmd := exec.CommandContext(ctx, binary, "--robots", strconv.Itoa(robots), "--rate", strconv.FormatFloat(rate, 'f', -1, 64),
		"--duration", duration.String(), "--bad", "0.1%", "--port", "0", "--data", data, "--report", report)
	cmd.Stdout, cmd.Stderr = stderr, stderr
	if err := cmd.Run(); err != nil {
		if _, statErr := os.Stat(report); statErr != nil {
			return o, fmt.Errorf("%v: %w", cmd.Args, err)
		}
	}
	text, err := os.ReadFile(report)
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(text, &o)
}
