package stages

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStartReturnsOnceEveryStageIsReady(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	supervisor := newSupervisor(t, testStage(t, "validate", "stage"), testStage(t, "hot-write", "gated", "GATE="+gate))
	started := make(chan error, 1)
	go func() { started <- supervisor.Start(t.Context()) }()

	eventually(t, "validate is ready", func() bool { return supervisor.Stats()[0].Ready })
	select {
	case err := <-started:
		t.Fatalf("Start returned (%v) while hot-write answers 503", err)
	default:
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	for _, stats := range supervisor.Stats() {
		if !stats.Ready || stats.ReadyAfter <= 0 {
			t.Errorf("%s: ready %v after %v, want ready and the time it took", stats.Name, stats.Ready, stats.ReadyAfter)
		}
	}
	if err := supervisor.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestKilledStageIsRestartedAtOnceAndThenBacksOff(t *testing.T) {
	supervisor := start(t, testStage(t, "validate", "stage"))
	var pids []int
	for kill := range 3 {
		eventually(t, "validate is ready", func() bool { return supervisor.Stats()[0].Ready })
		pids = append(pids, supervisor.Stats()[0].PID)
		if err := supervisor.Kill("validate", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "validate is restarted", func() bool { return supervisor.Stats()[0].Restarts == kill+1 })
	}
	eventually(t, "validate is ready", func() bool { return supervisor.Stats()[0].Ready })

	got := eventsOf(supervisor, Exited)
	want := []Event{
		{Stage: "validate", Kind: Exited, PID: pids[0], Restarts: 0, Status: "signal: killed", RestartIn: 0},
		{Stage: "validate", Kind: Exited, PID: pids[1], Restarts: 1, Status: "signal: killed", RestartIn: 100 * time.Millisecond},
		{Stage: "validate", Kind: Exited, PID: pids[2], Restarts: 2, Status: "signal: killed", RestartIn: 200 * time.Millisecond},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("exits (-want +got):\n%s", diff)
	}
	if err := supervisor.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestCrashLoopBacksOff(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	supervisor := start(t, testStage(t, "validate", "once", "GATE="+gate))
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := supervisor.Kill("validate", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "four exits", func() bool { return len(eventsOf(supervisor, Exited)) >= 4 })

	var got []string
	for _, e := range eventsOf(supervisor, Exited)[:4] {
		got = append(got, e.String())
	}
	want := []string{
		"validate exited (signal: killed), restarting now",
		"validate exited (exit status 4), restarting in 100ms",
		"validate exited (exit status 4), restarting in 200ms",
		"validate exited (exit status 4), restarting in 400ms",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("exits (-want +got):\n%s", diff)
	}
	if err := supervisor.Stop(); err != nil {
		t.Errorf("stop during a back-off: %v", err)
	}
}

func TestStageSeesItsOwnEnvironmentOnly(t *testing.T) {
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/someone/key.json")
	stage := testStage(t, "hot-write", "stage", "BIGQUERY_ENDPOINT=http://127.0.0.1:9050")
	start(t, stage)

	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/environment", stage.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var got []string
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := []string{
		"BIGQUERY_ENDPOINT=http://127.0.0.1:9050",
		"HOME=/nonexistent",
		"K_CONFIGURATION=hot-write",
		"K_REVISION=hot-write-local",
		"K_SERVICE=hot-write",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"PORT=" + strconv.Itoa(stage.Port),
		"ROLE=stage",
		"TMPDIR=" + os.TempDir(),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestStopSendsSIGTERMBeforeSIGKILL(t *testing.T) {
	tests := []struct {
		name, role string
		grace      time.Duration
		wantErr    string
		wantStatus string
	}{
		{"a stage that drains is not killed", "stage", time.Minute, "", "exit status 0"},
		{"a stage that ignores SIGTERM is killed", "deaf", 300 * time.Millisecond,
			"validate did not end within 300ms of SIGTERM and was killed", "signal: killed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			supervisor := newSupervisor(t, testStage(t, "validate", test.role))
			supervisor.config.Grace = test.grace
			if err := supervisor.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := message(supervisor.Stop()); got != test.wantErr {
				t.Errorf("Stop: got %q, want %q", got, test.wantErr)
			}
			exits := eventsOf(supervisor, Exited)
			if len(exits) != 1 || exits[0].Status != test.wantStatus || exits[0].RestartIn >= 0 {
				t.Errorf("exits: got %v, want one with %q and no restart", exits, test.wantStatus)
			}
			log, err := os.ReadFile(filepath.Join(supervisor.config.LogDir, "validate.log"))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := string(log), "SIGTERM received\n"; got != want {
				t.Errorf("log: got %q, want %q", got, want)
			}
		})
	}
}

func TestStartFailsWithOneReasonAndTheLastLines(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	taken := testStage(t, "validate", "stage")
	taken.MetricsPort = listener.Addr().(*net.TCPAddr).Port
	missing := testStage(t, "validate", "stage")
	missing.Path = "/nonexistent/validate"
	never := testStage(t, "validate", "gated", "GATE=/nonexistent/gate")

	tests := []struct {
		name  string
		stage Stage
		want  string
	}{
		{"exits", testStage(t, "validate", "crash"),
			"start validate: exit status 3 before it was ready; its last lines:\n  cannot start: the bucket is gone"},
		{"port taken", taken, fmt.Sprintf("port %d of validate is taken by another process", taken.MetricsPort)},
		{"no binary", missing, "start validate: fork/exec /nonexistent/validate: no such file or directory before it was ready (it wrote nothing)"},
		{"never ready", never, "start validate: not ready after 2s at " + never.ReadyURL + " (it wrote nothing)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			other := testStage(t, "hot-write", "stage")
			supervisor := newSupervisor(t, other, test.stage)
			supervisor.config.StartTimeout = 2 * time.Second
			if got := message(supervisor.Start(t.Context())); got != test.want {
				t.Errorf("Start:\n got %q\nwant %q", got, test.want)
			}
			if probe(t.Context(), newProber(), other.ReadyURL) {
				t.Error("hot-write still runs after Start failed")
			}
		})
	}
}

func TestCancelledStartLeavesNothingRunning(t *testing.T) {
	running := testStage(t, "validate", "stage")
	supervisor := newSupervisor(t, running, testStage(t, "hot-write", "gated", "GATE=/nonexistent/gate"))
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { started <- supervisor.Start(ctx) }()
	eventually(t, "validate is ready", func() bool { return supervisor.Stats()[0].Ready })
	cancel()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("Start: got %v, want context.Canceled", err)
	}
	if probe(t.Context(), newProber(), running.ReadyURL) {
		t.Error("validate still runs after Start was cancelled")
	}
}

func TestStagesDieWithTheParentEvenKilled(t *testing.T) {
	port := freePort(t)
	parent := exec.Command(os.Args[0])
	parent.Env = []string{"ROLE=parent", "LOGS=" + t.TempDir(), "STAGE_PORT=" + strconv.Itoa(port)}
	stdin, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("parent printed %q (%v), want ready", line, err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // killed, as intended
	eventually(t, "the stage is gone", func() bool {
		return !probe(t.Context(), newProber(), fmt.Sprintf("http://127.0.0.1:%d/ready", port))
	})
}

// The thread that asks for the child ends with its goroutine here, and on Linux a child dies with the thread that forked it.
func TestChildOutlivesTheThreadThatAskedForIt(t *testing.T) {
	stage := testStage(t, "validate", "stage")
	cmd := exec.Command(os.Args[0])
	cmd.Env = stage.environment()
	cmd.SysProcAttr = attributes()
	fork := newForker()
	defer fork.Close()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // without unlocking, the thread ends with the goroutine
		started <- fork.Start(cmd)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	eventually(t, "the child is ready or dead", func() bool {
		return len(exited) > 0 || probe(t.Context(), newProber(), stage.ReadyURL)
	})
	_ = cmd.Process.Signal(syscall.SIGTERM) // an error means that it is dead, which Wait tells
	if err := <-exited; err != nil {
		t.Errorf("child: got %v, want it to live until SIGTERM and drain", err)
	}
}

func TestStatsAddUpOverRestartsAndRemainAfterStop(t *testing.T) {
	supervisor := start(t, testStage(t, "validate", "stage"))
	first := supervisor.Stats()[0]
	if first.PID == 0 || first.RSS == 0 || first.PeakRSS < first.RSS || first.Uptime <= 0 {
		t.Errorf("stats of a running stage: got %+v, want a pid, memory and an uptime", first)
	}
	if err := supervisor.Kill("validate", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "validate is restarted and ready", func() bool {
		stats := supervisor.Stats()[0]
		return stats.Restarts == 1 && stats.Ready && stats.PID != first.PID
	})
	if err := supervisor.Stop(); err != nil {
		t.Fatal(err)
	}
	last := supervisor.Stats()[0]
	if last.PID != 0 || last.Ready || last.Uptime != 0 {
		t.Errorf("stats after Stop: got %+v, want no pid, not ready, no uptime", last)
	}
	if last.CPU <= first.CPU || last.RSS == 0 || last.PeakRSS == 0 {
		t.Errorf("stats after Stop: got %+v, want more CPU time than %v, and the last memory", last, first.CPU)
	}
}

func TestKillTellsWhyItCannot(t *testing.T) {
	supervisor := newSupervisor(t, testStage(t, "validate", "stage"))
	if got, want := message(supervisor.Kill("validate", syscall.SIGKILL)), "kill validate: it is not running"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := message(supervisor.Kill("invalidate", syscall.SIGKILL)), "kill invalidate: no such stage"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBackoffGrowsToItsLimitAndForgets(t *testing.T) {
	var delays backoff
	var got []time.Duration
	for range 9 {
		got = append(got, delays.next(time.Second))
	}
	got = append(got, delays.next(stableAfter), delays.next(0))
	const ms = time.Millisecond
	want := []time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms, 0, 100 * ms}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("delays (-want +got):\n%s", diff)
	}
}

func TestUsagePercentIsOfTheTimeSinceTheLastCall(t *testing.T) {
	begin := time.Unix(0, 0)
	var u usage
	u.begin(begin, 0)
	u.running = time.Second
	got := []float64{u.percent(begin.Add(2 * time.Second))}
	u.ended, u.running = 2*time.Second, time.Second // restarted: 1 s more before, 1 s since
	got = append(got, u.percent(begin.Add(3*time.Second)), u.percent(begin.Add(4*time.Second)))
	if diff := cmp.Diff([]float64{50, 200, 0}, got); diff != "" {
		t.Errorf("percent (-want +got):\n%s", diff)
	}
}

// newSupervisor stops what the test leaves running.
func newSupervisor(t *testing.T, stages ...Stage) *Supervisor {
	t.Helper()
	supervisor := New(Config{LogDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}, stages...)
	t.Cleanup(func() { _ = supervisor.Stop() }) // the test checks it where it matters
	return supervisor
}

func start(t *testing.T, stages ...Stage) *Supervisor {
	t.Helper()
	supervisor := newSupervisor(t, stages...)
	if err := supervisor.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return supervisor
}

func testStage(t *testing.T, name, role string, env ...string) Stage {
	t.Helper()
	folder, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := filepath.Rel(folder, os.Args[0]) // as a caller's may be
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	return Stage{
		Name:     name,
		Path:     binary,
		Env:      append(env, "ROLE="+role),
		Port:     port,
		ReadyURL: fmt.Sprintf("http://127.0.0.1:%d/ready", port),
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port
}

// eventsOf are the events of a kind, without what differs from run to run.
func eventsOf(s *Supervisor, kind Kind) []Event {
	var events []Event
	for _, e := range s.Events() {
		if e.Kind == kind {
			e.Time, e.After = time.Time{}, 0
			events = append(events, e)
		}
	}
	return events
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return strings.TrimSpace(err.Error())
}
