package stages

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuildNamesBinariesAfterTheirFolder(t *testing.T) {
	module := writeModule(t, map[string]string{
		"validate/cmd/validate/main.go":   "package main\nfunc main() { println(\"I am validate\") }\n",
		"hotwrite/cmd/hot-write/main.go":  "package main\nfunc main() { println(\"I am hot-write\") }\n",
		"coldarchive/cmd/unbuilt/main.go": "package main\nfunc main() {}\n",
	})
	bin := filepath.Join(t.TempDir(), "deep", "bin")
	var out bytes.Buffer
	if err := Build(t.Context(), &out, module, bin, "./validate/cmd/validate", "./hotwrite/cmd/hot-write"); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if got, want := out.String(), "building validate, hot-write\n"; got != want {
		t.Errorf("progress: got %q, want %q", got, want)
	}
	for _, name := range []string{"validate", "hot-write"} {
		got, err := exec.Command(filepath.Join(bin, name)).CombinedOutput()
		if err != nil || string(got) != "I am "+name+"\n" {
			t.Errorf("%s: printed %q (%v)", name, got, err)
		}
	}
	if exists(filepath.Join(bin, "unbuilt")) {
		t.Error("built a package that was not named")
	}
}

func TestBuildShowsWhatTheCompilerPrints(t *testing.T) {
	module := writeModule(t, map[string]string{"validate/main.go": "package main\nfunc main() { return 1 }\n"})
	var out bytes.Buffer
	err := Build(t.Context(), &out, module, t.TempDir(), "./validate")
	if got, want := message(err), "go build ./validate: exit status 1"; got != want {
		t.Errorf("error: got %q, want %q", got, want)
	}
	if want := "validate/main.go:2:22: too many return values"; !strings.Contains(out.String(), want) {
		t.Errorf("output: got %q, want %q in it", &out, want)
	}
}

func TestBuildWithoutGoSaysSo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := Build(t.Context(), &bytes.Buffer{}, t.TempDir(), t.TempDir(), "./validate")
	if got, want := message(err), "the go command is not in PATH, and the stages are built with it: see https://go.dev/doc/install"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func writeModule(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	files["go.mod"] = "module example.com/fleet\n\ngo 1.26\n"
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
