package run_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/robofleet/robofleet/simulator/platform"
)

// bin is the folder of the stages' binaries, which all tests share: linking them takes seconds.
var bin string

// platformDir makes the test binary a platform of its own, to be killed.
const platformDir = "ROBOFLEET_TEST_PLATFORM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(platformDir); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
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

// serve is a platform on dir that does what it is told on stdin, a word per line, and answers each with a line: "drain" waits
// until every message is acknowledged. At the end of stdin it stops.
func serve(dir string) (err error) {
	ctx := context.Background()
	p, err := platform.Start(ctx, platform.Config{Dir: dir, ModuleDir: moduleRoot(), Port: 0, Out: os.Stderr})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := p.Drain(ctx); err != nil {
			return err
		}
		fmt.Println("drained")
	}
	return p.Close()
}

// moduleRoot is where go test of this package finds the module.
func moduleRoot() string { return filepath.Join("..", "..") }

// folder is an empty folder for a platform, but for the binaries.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(bin, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	return dir
}
