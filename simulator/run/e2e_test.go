package run_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/storage"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/simulator/cloud"
	"github.com/robofleet/robofleet/simulator/ledger"
	"github.com/robofleet/robofleet/simulator/platform"
	"github.com/robofleet/robofleet/simulator/robots"
	"github.com/robofleet/robofleet/simulator/run"
	"github.com/robofleet/robofleet/simulator/stages"
)

// patience bounds every wait of these tests; none of them measures time.
const patience = 2 * time.Minute

// stageNames are the processes of a platform.
var stageNames = []string{"broker-ingress", "validate", "hot-write", "cold-archive"}

// report is what scripts read of a report file, by the names that they rely on.
type report struct {
	Sent             int64            `json:"sent"`
	Unconfirmed      int64            `json:"unconfirmed"`
	AcceptedRows     int64            `json:"accepted_rows"`
	RowsDistinct     int64            `json:"rows_distinct"`
	RowsUnique       int64            `json:"rows_unique"`
	ArchivedDistinct int64            `json:"archived_distinct"`
	BadSent          int64            `json:"bad_sent"`
	BadByReason      map[string]int64 `json:"bad_sent_by_reason"`
	Rejected         int64            `json:"rejected"`
	RejectedByReason map[string]int64 `json:"rejected_by_reason"`
	DeadLettered     int64            `json:"dead_lettered"`
	Lost             int64            `json:"lost"`
	Duplicates       int64            `json:"duplicates"`
	Injected         int64            `json:"duplicates_injected"`
	Unexpected       int64            `json:"unexpected"`
	Stages           []struct {
		Name     string `json:"name"`
		Restarts int    `json:"restarts"`
	} `json:"stages"`
	Missing   []ledger.Finding `json:"missing"`
	Surprises []ledger.Finding `json:"unexpected_events"`
}

func readReport(t *testing.T, file string) report {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// expectNothingLost holds a report to the promise: everything that was sent is everywhere, once for those who read the view.
func expectNothingLost(t *testing.T, r report) {
	t.Helper()
	want := r
	want.Unconfirmed, want.DeadLettered, want.Lost, want.Unexpected, want.Missing, want.Surprises = 0, 0, 0, 0, nil, nil
	want.RowsDistinct, want.RowsUnique, want.ArchivedDistinct = r.Sent, r.Sent, r.Sent
	want.Rejected, want.RejectedByReason = r.BadSent, r.BadByReason
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if r.Duplicates < r.Injected {
		t.Errorf("%d duplicate rows, want at least the %d that robots sent", r.Duplicates, r.Injected)
	}
}

// fleet is a fleet whose run does not collide with another.
func fleet(t *testing.T, change func(*robots.Config)) robots.Config {
	cfg := robots.DefaultConfig()
	cfg.RunID = "run-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	cfg.RunID = cfg.RunID[:min(len(cfg.RunID), 40)]
	cfg.OfflineEvery, cfg.RebootEvery = time.Minute, time.Minute // often, so that a short run has some
	change(&cfg)
	return cfg
}

// simulate runs the simulator on free ports in a new folder.
func simulate(ctx, stop context.Context, t *testing.T, o run.Options) (ok bool, r report, screen string, err error) {
	t.Helper()
	if o.Dir == "" {
		o.Dir = folder(t)
	}
	o.Report = filepath.Join(t.TempDir(), "report.json")
	var out, errOut bytes.Buffer
	ok, err = run.Run(ctx, stop, o, run.Terminal{Out: &out, Err: &errOut, Getenv: func(string) string { return "" }})
	if err != nil {
		return ok, r, out.String(), err
	}
	if !ok {
		t.Log(out.String())
	}
	return ok, readReport(t, o.Report), out.String(), nil
}

// await polls until done says so.
func await(ctx context.Context, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// published is how many messages robots have published.
func published(p *platform.Platform) int64 {
	for name, stats := range p.Cloud.PubSub.Stats().Topics {
		if strings.HasSuffix(name, "/"+platform.Topic) {
			return stats.Published
		}
	}
	return 0
}

// kill kills a stage as a node failure does, and waits until it serves again.
func kill(ctx context.Context, p *platform.Platform, stage string) error {
	before := 0
	for _, s := range p.Stages.Stats() {
		if s.Name == stage {
			before = s.Restarts
		}
	}
	if err := p.Stages.Kill(stage, syscall.SIGKILL); err != nil {
		return err
	}
	err := await(ctx, func() bool {
		for _, e := range p.Stages.Events() {
			if e.Stage == stage && e.Kind == stages.Ready && e.Restarts > before {
				return true
			}
		}
		return false
	})
	if err != nil {
		return fmt.Errorf("%s is not ready after it was killed: %w", stage, err)
	}
	return nil
}

func TestKillingEachStageWhileReadingsFlowLosesNothing(t *testing.T) {
	const robotCount, rate, duration = 400, 5.0, 12 * time.Second
	var chaos sync.WaitGroup
	ok, r, _, err := simulate(t.Context(), t.Context(), t, run.Options{
		Fleet: fleet(t, func(c *robots.Config) {
			c.Robots, c.Rate, c.Duration, c.BadRatio = robotCount, rate, duration, 0.005
		}),
		Platform: func(stop context.Context, p *platform.Platform) {
			chaos.Go(func() {
				for i, stage := range stageNames {
					// Spread over the first four fifths of the run, by what has been published.
					due := int64(i+1) * int64(robotCount*rate*duration.Seconds()) / int64(len(stageNames)+1)
					if err := await(stop, func() bool { return published(p) >= due }); err != nil {
						t.Errorf("wait for %d messages: %v", due, err)
						return
					}
					if err := kill(stop, p, stage); err != nil {
						t.Error(err)
					}
				}
			})
		},
		Drained: func(*platform.Platform) { chaos.Wait() },
	})
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		t.Error("the run says that something was lost or is unexpected")
	}
	expectNothingLost(t, r)
	if r.Sent < 20_000 {
		t.Errorf("%d readings sent, want at least 20,000", r.Sent)
	}
	if r.BadSent == 0 || r.Injected == 0 {
		t.Errorf("%d bad messages and %d duplicates sent, want some of both", r.BadSent, r.Injected)
	}
	if len(r.Stages) != len(stageNames) {
		t.Errorf("%d stages in the report, want %d", len(r.Stages), len(stageNames))
	}
	for _, s := range r.Stages {
		if s.Restarts < 1 {
			t.Errorf("%s was not restarted", s.Name)
		}
	}
}

func TestGatewaysAndPlainPublishersLoseNothing(t *testing.T) {
	ok, r, _, err := simulate(t.Context(), t.Context(), t, run.Options{
		Fleet: fleet(t, func(c *robots.Config) {
			c.Robots, c.Rate, c.Duration = 400, 5, 3*time.Second
			c.BadRatio, c.Gateway, c.PlainRatio = 0.005, 20, 0.2
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		t.Error("the run says that something was lost or is unexpected")
	}
	expectNothingLost(t, r)
}

func TestCtrlCEndsARunWithALedger(t *testing.T) {
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	ok, r, screen, err := simulate(t.Context(), stop, t, run.Options{
		Fleet: fleet(t, func(c *robots.Config) { c.Robots, c.Rate = 100, 5 }),
		Platform: func(stop context.Context, p *platform.Platform) {
			go func() {
				if err := await(stop, func() bool { return published(p) >= 200 }); err != nil {
					t.Errorf("wait for 200 messages: %v", err)
				}
				cancel()
			}()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		t.Error("the run says that something was lost or is unexpected")
	}
	expectNothingLost(t, r)
	if r.Sent < 200 {
		t.Errorf("%d readings sent, want at least 200", r.Sent)
	}
	for _, want := range []string{"Ledger", "lost", "✓ nothing was lost"} {
		if !strings.Contains(screen, want) {
			t.Errorf("%q is not on the screen:\n%s", want, screen)
		}
	}
}

func TestASecondCtrlCEndsTheDrain(t *testing.T) {
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	ctx, abort := context.WithCancelCause(t.Context())
	defer abort(nil)
	_, _, _, err := simulate(ctx, stop, t, run.Options{
		Fleet: fleet(t, func(c *robots.Config) { c.Robots, c.Rate = 100, 5 }),
		Platform: func(_ context.Context, p *platform.Platform) {
			if err := p.Stages.Stop(); err != nil { // so that it cannot drain
				t.Error(err)
			}
			go func() {
				if err := await(ctx, func() bool { return published(p) >= 200 }); err != nil {
					t.Errorf("wait for 200 messages: %v", err)
				}
				cancel()
				abort(errors.New("aborted by a second interrupt"))
			}()
		},
	})
	if err == nil {
		t.Fatal("a run that was aborted is no error")
	}
	if got := err.Error(); !strings.Contains(got, "aborted by a second interrupt: no ledger; Pub/Sub keeps ") || strings.Contains(got, "\n") {
		t.Errorf("error = %q, want one line that says what was aborted and what is kept", got)
	}
}

func TestStoppedWhileItIsBuilding(t *testing.T) {
	stop, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, _, err := simulate(t.Context(), stop, t, run.Options{Fleet: fleet(t, func(c *robots.Config) { c.Robots = 1 })})
	if err == nil || err.Error() != "stopped before the robots started" {
		t.Errorf("error = %v, want that it was stopped before the robots started", err)
	}
}

// TestALossBehindThePlatformsBackIsFound proves that a run can fail: what is taken from a store before the ledger is made is
// missing from it.
func TestALossBehindThePlatformsBackIsFound(t *testing.T) {
	ok, r, screen, err := simulate(t.Context(), t.Context(), t, run.Options{
		Fleet: fleet(t, func(c *robots.Config) { c.Robots, c.Rate, c.Duration = 20, 10, time.Second }),
		Drained: func(p *platform.Platform) {
			it := p.Storage.Bucket(platform.Bucket).Objects(t.Context(), &storage.Query{Prefix: string(coldarchive.KindTelemetry) + "/"})
			for {
				attrs, err := it.Next()
				if errors.Is(err, iterator.Done) {
					return
				}
				if err != nil {
					t.Errorf("list the archive: %v", err)
					return
				}
				if err := p.Storage.Bucket(platform.Bucket).Object(attrs.Name).Delete(t.Context()); err != nil {
					t.Errorf("delete an object: %v", err)
				}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if ok {
		t.Error("the run says that nothing was lost")
	}
	if r.Lost != r.Sent || r.ArchivedDistinct != 0 || r.RowsDistinct != r.Sent {
		t.Errorf("lost %d, archived %d, rows %d; want %d, 0, %d", r.Lost, r.ArchivedDistinct, r.RowsDistinct, r.Sent, r.Sent)
	}
	if len(r.Missing) == 0 || r.Missing[0].What != "in the warehouse, not archived" {
		t.Errorf("missing = %v, want readings that are not archived", r.Missing)
	}
	if !strings.Contains(screen, "✗") {
		t.Errorf("the screen does not say that something was lost:\n%s", screen)
	}
}

// TestReportHasTheFieldsThatScriptsRead holds the names of a report.
func TestReportHasTheFieldsThatScriptsRead(t *testing.T) {
	var fields map[string]json.RawMessage
	o := run.Options{Fleet: fleet(t, func(c *robots.Config) { c.Robots, c.Rate, c.Duration = 20, 10, time.Second }), Dir: folder(t)}
	o.Report = filepath.Join(t.TempDir(), "report.json")
	var out bytes.Buffer
	if _, err := run.Run(t.Context(), t.Context(), o, run.Terminal{Out: &out, Err: io.Discard, Getenv: func(string) string { return "" }}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(o.Report)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"sent", "accepted_rows", "rows_distinct", "archived_distinct", "rejected", "dead_lettered", "lost", "duplicates", "unexpected",
		"rate_per_second", "latency_ms", "stages",
	} {
		if _, ok := fields[name]; !ok {
			t.Errorf("no field %q", name)
		}
	}
	expectFields(t, fields["latency_ms"], "p50", "p95", "p99", "max")
	var list []json.RawMessage
	if err := json.Unmarshal(fields["stages"], &list); err != nil || len(list) != len(stageNames) {
		t.Fatalf("stages = %s, want a list of %d", fields["stages"], len(stageNames))
	}
	for _, stage := range list {
		expectFields(t, stage, "name", "cpu_seconds", "rss_bytes")
	}
}

// expectFields wants fields that are neither zero nor empty.
func expectFields(t *testing.T, object json.RawMessage, names ...string) {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(object, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if v := fields[name]; v == nil || v == 0.0 || v == "" {
			t.Errorf("field %q = %v in %s", name, v, object)
		}
	}
}

func TestUnwritableReportIsFoundBeforeTheRun(t *testing.T) {
	o := run.Options{Fleet: fleet(t, func(c *robots.Config) { c.Robots = 1 }), Dir: folder(t), Report: filepath.Join(t.TempDir(), "none", "r.json")}
	_, err := run.Run(t.Context(), t.Context(), o, run.Terminal{Out: io.Discard, Err: io.Discard, Getenv: func(string) string { return "" }})
	if err == nil || !strings.Contains(err.Error(), o.Report) {
		t.Errorf("error = %v, want one that names %s", err, o.Report)
	}
}

func TestOutsideACheckout(t *testing.T) {
	t.Chdir(t.TempDir())
	_, _, _, err := simulate(t.Context(), t.Context(), t, run.Options{Fleet: fleet(t, func(c *robots.Config) { c.Robots = 1 })})
	if err == nil || !strings.HasPrefix(err.Error(), "this is not a checkout of RoboFleet") {
		t.Errorf("error = %v, want that this is not a checkout", err)
	}
}

// separate is a platform in a process of its own.
type separate struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startSeparate(t *testing.T, dir string) *separate {
	t.Helper()
	s := &separate{cmd: exec.CommandContext(t.Context(), os.Args[0])}
	s.cmd.Env = append(os.Environ(), platformDir+"="+dir)
	s.cmd.Stderr = t.Output()
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "ready")
	return s
}

func (s *separate) expect(t *testing.T, want string) {
	t.Helper()
	if !s.out.Scan() {
		t.Fatalf("the platform ended; want %q of it", want)
	}
	if got := s.out.Text(); got != want {
		t.Fatalf("the platform says %q, want %q", got, want)
	}
}

// TestKillingTheEmbeddedCloudKeepsWhatItHasConfirmed kills the process that is Pub/Sub, BigQuery and Cloud Storage, and its
// stages with it, while messages are under way, and starts it again on the same folder.
func TestKillingTheEmbeddedCloudKeepsWhatItHasConfirmed(t *testing.T) {
	dir := folder(t)
	first := startSeparate(t, dir)
	begin := time.Now()
	f := publishUntil(t, dir, func(sent int64, running context.CancelFunc) {
		if sent >= 2000 {
			if err := first.cmd.Process.Kill(); err != nil {
				t.Errorf("kill the platform: %v", err)
			}
			running()
		}
	})
	if err := first.cmd.Wait(); err == nil || first.cmd.ProcessState.String() != "signal: killed" {
		t.Fatalf("the platform ended by itself: %v", first.cmd.ProcessState)
	}

	second := startSeparate(t, dir)
	if _, err := io.WriteString(second.in, "drain\n"); err != nil {
		t.Fatal(err)
	}
	second.expect(t, "drained")
	l := makeLedger(t, dir, f, begin)
	if err := second.in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.cmd.Wait(); err != nil {
		t.Errorf("stop the platform: %v", err)
	}

	if len(l.Missing) > 0 || len(l.Unexpected) > 0 {
		t.Errorf("of %d confirmed readings and %d bad messages %d are missing, %d unexpected: %v %v", l.Sent, l.BadSent,
			len(l.Missing), len(l.Unexpected), l.Missing[:min(len(l.Missing), 10)], l.Unexpected[:min(len(l.Unexpected), 10)])
	}
	if l.Sent < 2000 || l.BadSent == 0 {
		t.Errorf("%d readings and %d bad messages were confirmed, want at least 2000 and some", l.Sent, l.BadSent)
	}
	t.Logf("%d readings confirmed before the kill, %d messages unconfirmed", l.Sent, l.Unconfirmed)
}

// publishUntil lets a fleet publish to the platform on dir. It calls watch again and again with the number of readings that
// Pub/Sub has confirmed and with what stops the robots.
func publishUntil(t *testing.T, dir string, watch func(sent int64, stop context.CancelFunc)) *robots.Fleet {
	t.Helper()
	e, running, err := platform.Running(dir)
	if err != nil || !running {
		t.Fatalf("endpoints: running %v, %v", running, err)
	}
	p, err := robots.NewPubSub(t.Context(), cloud.Project, platform.Topic, slog.New(slog.DiscardHandler),
		option.WithEndpoint(e.PubSub), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	f, err := robots.New(fleet(t, func(c *robots.Config) {
		c.Robots, c.Rate, c.BadRatio = 200, 10, 0.02
		c.Grace = time.Second // for messages that nobody is left to confirm
	}))
	if err != nil {
		t.Fatal(err)
	}
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.Run(stop, p) }()
	if err := await(t.Context(), func() bool { watch(f.Manifest().Sent(), cancel); return stop.Err() != nil }); err != nil {
		t.Errorf("wait for the robots: %v", err)
	}
	if err := <-done; err != nil {
		t.Logf("robots: %v", err) // what was under way at the kill
	}
	_ = p.Close() // its connection broke
	return f
}

// makeLedger asks the platform on dir.
func makeLedger(t *testing.T, dir string, f *robots.Fleet, begin time.Time) *ledger.Ledger {
	t.Helper()
	e, running, err := platform.Running(dir)
	if err != nil || !running {
		t.Fatalf("endpoints: running %v, %v", running, err)
	}
	warehouse, err := bigquery.NewClient(t.Context(), cloud.Project, option.WithEndpoint(e.BigQuery), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = warehouse.Close() }()
	archive, err := storage.NewClient(t.Context(), option.WithEndpoint("http://"+e.Storage+"/storage/v1/"), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = archive.Close() }()
	l, err := ledger.Make(t.Context(), ledger.Stores{
		BigQuery: warehouse, Dataset: platform.Dataset, Bucket: archive.Bucket(platform.Bucket),
	}, f.Manifest(), fleet(t, func(*robots.Config) {}).RunID, begin)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
