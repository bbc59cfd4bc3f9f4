package platform_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/robofleet/robofleet/simulator/platform"
)

// bin is the folder of the stages' binaries, which all tests share: linking them takes seconds.
var bin string

// platformDir makes the test binary a platform of its own, to be killed.
const platformDir = "ROBOFLEET_TEST_PLATFORM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(platformDir); dir != "" {
		serveUntilKilled(dir)
	}
	os.Exit(test(m))
}

func test(m *testing.M) int {
	dir, err := os.MkdirTemp("", "robofleet-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin = dir
	return m.Run()
}

func serveUntilKilled(dir string) {
	if _, err := platform.Start(context.Background(), config(dir)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or until the test itself is gone
	os.Exit(0)
}

func config(dir string) platform.Config {
	return platform.Config{Dir: dir, ModuleDir: filepath.Join("..", ".."), Out: io.Discard}
}

// folder is an empty folder for a platform, but for the binaries.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(bin, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, dir string) *platform.Platform {
	t.Helper()
	p, err := platform.Start(t.Context(), config(dir))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func stop(t *testing.T, p *platform.Platform) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// expectRefusal wants Start to fail with one line that has all of the words.
func expectRefusal(t *testing.T, cfg platform.Config, words ...string) {
	t.Helper()
	_, err := platform.Start(t.Context(), cfg)
	if err == nil {
		t.Fatal("the platform started")
	}
	t.Log(err)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error = %q, want one line", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error = %q, want %q in it", err, word)
		}
	}
}

func pids(p *platform.Platform) []int {
	var pids []int
	for _, s := range p.Stages.Stats() {
		pids = append(pids, s.PID)
	}
	return pids
}

func expectGone(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there (%v)", pid, err)
		}
	}
}

func TestCloseLeavesNoProcessAndTheFolderToTheNext(t *testing.T) {
	dir := folder(t)
	p := start(t, dir)
	children := pids(p)
	if len(children) != 4 {
		t.Fatalf("%d stages, want 4", len(children))
	}
	if _, running, err := platform.Running(dir); err != nil || !running {
		t.Errorf("Running = %v, %v; want true", running, err)
	}
	stop(t, p)
	expectGone(t, children)
	if _, running, err := platform.Running(dir); err != nil || running {
		t.Errorf("Running after Close = %v, %v; want false", running, err)
	}
	stop(t, start(t, dir)) // on the data of the first
}

func TestSecondPlatformOnAFolderIsRefusedAndTheFirstGoesOn(t *testing.T) {
	dir := folder(t)
	p := start(t, dir)
	defer stop(t, p)
	expectRefusal(t, config(dir), dir, "a platform is running on it")
	if _, running, err := platform.Running(dir); err != nil || !running {
		t.Errorf("Running = %v, %v; want true", running, err)
	}
	if err := p.Drain(t.Context()); err != nil {
		t.Errorf("the first platform: %v", err)
	}
}

func TestCorruptDataIsNamed(t *testing.T) {
	for _, file := range []string{"pubsub/pubsub.db", "bigquery/bigquery.duckdb"} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			dir := folder(t)
			path := filepath.Join(dir, "data", filepath.FromSlash(file))
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(strings.Repeat("this is no database ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
			expectRefusal(t, config(dir), path)
		})
	}
}

func TestFolderThatIsAFileIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expectRefusal(t, config(file), file)
}

// TestAKilledPlatformTakesItsStagesWithIt, leaves its endpoints behind, and the next takes over.
func TestAKilledPlatformTakesItsStagesWithIt(t *testing.T) {
	dir := folder(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), platformDir+"="+dir)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("the platform says %q, %v", line, err)
	}
	if _, running, err := platform.Running(dir); err != nil || !running {
		t.Errorf("Running = %v, %v; want true", running, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed, as intended
	if _, err := os.Stat(filepath.Join(dir, "endpoints.json")); err != nil {
		t.Errorf("this test is about endpoints that are left behind: %v", err)
	}
	if _, running, err := platform.Running(dir); err != nil || running {
		t.Errorf("Running after the kill = %v, %v; want false", running, err)
	}
	stop(t, start(t, dir))
}
