package knative

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/robofleet/robofleet/simulator/stages"
)

func TestImagesAreStaticAndOnAPinnedBase(t *testing.T) {
	text, err := os.ReadFile("../.ko.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var ko struct {
		DefaultBaseImage string
		DefaultEnv       []string
		DefaultFlags     []string
		DefaultLdflags   []string
		DefaultPlatforms []string
	}
	if err := yaml.UnmarshalStrict(text, &ko); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(ko.DefaultBaseImage, "@sha256:") {
		t.Errorf("base image %s may change under its name", ko.DefaultBaseImage)
	}
	if !slices.Contains(ko.DefaultEnv, "CGO_ENABLED=0") {
		t.Errorf("with cgo a binary needs a C library, which the base has not: %v", ko.DefaultEnv)
	}
	// What the local platform runs is built as what the cluster runs.
	if tags := "-tags=" + stages.Tags; !slices.Contains(ko.DefaultFlags, tags) {
		t.Errorf("flags %v, want %s as the local platform has", ko.DefaultFlags, tags)
	}
}

// A number in a manifest that nobody can explain is one that nobody dares to change.
func TestEveryAutoscalingNumberHasItsReason(t *testing.T) {
	for _, file := range yamlFiles(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// How many annotations stand under the last comment; more than three are not what it is about.
		under := 4
		for number, line := range strings.Split(string(text), "\n") {
			line = strings.TrimSpace(line)
			switch {
			case strings.HasPrefix(line, "#"):
				under = 0
			case strings.HasPrefix(line, "autoscaling.knative.dev/"):
				if under++; under > 3 {
					t.Errorf("%s:%d: %s has no reason above it", file, number+1, line)
				}
			default:
				under = 4
			}
		}
	}
}

func yamlFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, dir := range []string{"base", "overlays/dev", "overlays/local", "overlays/prod"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".yaml") {
				files = append(files, dir+"/"+e.Name())
			}
		}
	}
	return files
}
