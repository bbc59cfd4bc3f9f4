package stages

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLogKeepsTwoFilesOfWholeLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "validate.log")
	log, err := openLog(path, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, chunk := range []string{"one\ntwo\n", "thr", "ee\n", "four\n", "five\nsix\n", "seven\n"} {
		if _, err := log.Write([]byte(chunk)); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{"validate.log": read(t, path), "validate.log.1": read(t, path+".1")}
	want := map[string]string{"validate.log": "seven\n", "validate.log.1": "four\nfive\nsix\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"six", "seven"}, log.Tail(2)); diff != "" {
		t.Errorf("tail (-want +got):\n%s", diff)
	}
}

func TestLogTailIsBoundedAndBeginsWithAWholeLine(t *testing.T) {
	log, err := openLog(filepath.Join(t.TempDir(), "validate.log"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	line := strings.Repeat("x", 99)
	for range 100 {
		if _, err := log.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	tail := log.Tail(1000)
	if len(tail) == 0 || len(tail)*100 > tailBytes {
		t.Errorf("tail: got %d lines of 100 bytes, want some in %d bytes", len(tail), tailBytes)
	}
	for _, got := range tail {
		if got != line {
			t.Errorf("tail: got %q, want a whole line", got)
		}
	}
}

func TestLogSurvivesALostFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := openLog(filepath.Join(dir, "validate.log"), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first turns the file over, which fails; the second has none
		if n, err := log.Write([]byte("still here\n")); n != 11 || err != nil {
			t.Errorf("Write: got %d, %v, want 11 and no error", n, err)
		}
	}
	if diff := cmp.Diff([]string{"still here"}, log.Tail(1)); diff != "" {
		t.Errorf("tail (-want +got):\n%s", diff)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
