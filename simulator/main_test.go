package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/robofleet/robofleet/simulator/run"
)

// simulator runs the command as a shell does.
func simulator(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errOut bytes.Buffer
	status = command(t.Context(), stop, args, run.Terminal{Out: &out, Err: &errOut, Getenv: func(string) string { return "" }})
	return status, out.String(), errOut.String()
}

func TestWrongArgumentsAreOneLineAndStatus2(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown flag", []string{"--robot", "3"}, "-robot"},
		{"argument that is no flag", []string{"start"}, `"start"`},
		{"not a number", []string{"--robots", "many"}, `"many"`},
		{"no robots", []string{"--robots", "0"}, "robots must be"},
		{"no rate", []string{"--rate", "0"}, "rate must be"},
		{"not a duration", []string{"--duration", "60"}, `"60"`},
		{"negative duration", []string{"--duration", "-1s"}, "duration must not"},
		{"not a profile", []string{"--profile", "spiky"}, "--profile"},
		{"not a ratio", []string{"--bad", "lots"}, "--bad"},
		{"too large a ratio", []string{"--plain", "110%"}, "--plain"},
		{"no folder", []string{"--data", ""}, "--data"},
		{"port that does not exist", []string{"--port", "70000"}, "--port"},
		{"report without stores", []string{"--project", "p", "--report", "r.json"}, "--report"},
		{"topic without a project", []string{"--topic", "t"}, "--topic"},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, stdout, stderr := simulator(t, test.args...)
			t.Log(strings.TrimSpace(stderr))
			if status != 2 {
				t.Errorf("status = %d, want 2", status)
			}
			if stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, test.want) {
				t.Errorf("stdout %q, stderr %q; want one line on stderr with %q", stdout, stderr, test.want)
			}
		})
	}
}

func TestHelpIsNoMistake(t *testing.T) {
	status, stdout, stderr := simulator(t, "--help")
	if status != 0 || stderr != "" || !strings.Contains(stdout, "-robots") {
		t.Errorf("status %d, stdout %q, stderr %q; want 0 and the flags", status, stdout, stderr)
	}
}

func TestPlatformThatCannotStartIsOneLineAndStatus1(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	status, _, stderr := simulator(t, "--data", filepath.Join(t.TempDir(), "data"), "--port", port)
	if want := "simulator: port " + port + " of Pub/Sub is taken by another process; --port chooses others\n"; status != 1 || stderr != want {
		t.Errorf("status %d, stderr %q; want 1, %q", status, stderr, want)
	}
}

// TestEveryRunHasAnIDOfItsOwn: two runs over the same data must not share the ids of their readings.
func TestEveryRunHasAnIDOfItsOwn(t *testing.T) {
	o, err := parse(nil, run.Terminal{Out: io.Discard, Err: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(o.Fleet.RunID, "run20") {
		t.Errorf("run id = %q, want one of the present time", o.Fleet.RunID)
	}
}
