package shared_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/robofleet/robofleet"

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath   string
	Name         string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
	CgoFiles     []string
	Standard     bool
}

// list asks the go command, which sees what a build with cgo sees if cgo is "1".
func list(t *testing.T, cgo string, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{
		"list", "-json=ImportPath,Name,Imports,TestImports,XTestImports,Deps,CgoFiles,Standard",
	}, args...)...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatalf("output of go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

// room is the place of a package of the module: "shared", "functions/validate", "eventing", "simulator". Functions are rooms
// of their own; what else is below functions/ is "functions".
func room(importPath string) string {
	path, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	parts := strings.Split(path, "/")
	if parts[0] == "functions" && len(parts) > 1 {
		return strings.Join(parts[:2], "/")
	}
	return parts[0]
}

// floor is how high a room is: imports point down.
func floor(room string) int {
	top, _, _ := strings.Cut(room, "/")
	return slices.Index([]string{"shared", "functions", "eventing", "simulator"}, top)
}

// inProduction says that a package is not for tests: by convention the others are named conformance or …test.
func inProduction(importPath string) bool {
	base := importPath[strings.LastIndex(importPath, "/")+1:]
	return base != "conformance" && !strings.HasSuffix(base, "test")
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range list(t, "1", "./...") {
		from := room(p.ImportPath)
		if floor(from) < 0 && from != "" {
			continue // tools beside the product
		}
		imports := p.Imports
		if from == "shared" { // a test of the lowest room that needs a higher one belongs there
			imports = slices.Concat(p.Imports, p.TestImports, p.XTestImports)
		}
		for _, imported := range imports {
			to := room(imported)
			switch {
			case to == "" || to == from:
			case floor(to) > floor(from):
				t.Errorf("%s imports %s: imports point down (simulator → eventing → functions → shared), so that what is below can be "+
					"understood, tested and shipped without what is above", p.ImportPath, imported)
			case floor(to) == floor(from):
				t.Errorf("%s imports %s: functions never import each other; they talk by events, so that each can be deployed, scaled and "+
					"replaced alone. What two of them need lives in shared/", p.ImportPath, imported)
			}
		}
	}
}

func TestFunctionsDoNotKnowEachOtherInTestsEither(t *testing.T) {
	for _, p := range list(t, "1", "./functions/...") {
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if to := room(imported); strings.HasPrefix(to, "functions/") && to != room(p.ImportPath) {
				t.Errorf("a test of %s imports %s: functions never import each other, tests included; a test of two of them belongs to simulator/",
					p.ImportPath, imported)
			}
		}
	}
}

// TestOnlyTheSimulatorLinksTheEmbeddedCloud is about what is shipped: what tests link is their own affair.
func TestOnlyTheSimulatorLinksTheEmbeddedCloud(t *testing.T) {
	for _, p := range list(t, "1", "./shared/...", "./functions/...", "./eventing/...") {
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "github.com/duckdb/") || strings.HasPrefix(dep, "github.com/fsouza/fake-gcs-server") {
				t.Errorf("%s depends on %s: only simulator/ may link the embedded cloud; in an image it would be 50 MB of C++ and a fake "+
					"that someone may one day write to instead of the real thing", p.ImportPath, dep)
			}
		}
	}
}

// mains are the binaries that become images.
func mains(t *testing.T) []pkg {
	t.Helper()
	var mains []pkg
	for _, p := range list(t, "1", "./functions/...", "./eventing/...") {
		if p.Name == "main" {
			mains = append(mains, p)
		}
	}
	var names []string
	for _, p := range mains {
		names = append(names, filepath.Base(p.ImportPath))
	}
	for _, want := range []string{"broker-ingress", "validate", "hot-write", "cold-archive"} {
		if !slices.Contains(names, want) {
			t.Errorf("no binary %s among %v: this test looks in the wrong place", want, names)
		}
	}
	return mains
}

// cgoInStd are the packages of the standard library that use cgo where it is enabled and do without where it is not.
var cgoInStd = []string{"net", "os/user", "runtime/cgo", "crypto/internal/sysrand", "plugin"}

func TestImagesNeedNoCgo(t *testing.T) {
	paths := []string{"-deps"}
	for _, p := range mains(t) {
		paths = append(paths, p.ImportPath)
	}
	for _, p := range list(t, "1", paths...) {
		if len(p.CgoFiles) > 0 && !p.Standard {
			t.Errorf("%s has cgo files and is linked by a stage: images are built with CGO_ENABLED=0, for every platform from any, and have no "+
				"libc", p.ImportPath)
		}
		if len(p.CgoFiles) > 0 && p.Standard && !slices.Contains(cgoInStd, p.ImportPath) {
			t.Errorf("%s of the standard library has cgo files and is not known to do without", p.ImportPath)
		}
	}
	list(t, "0", paths...) // fails where something exists only with cgo
}

func TestServingBinariesDoNotLinkKubernetes(t *testing.T) {
	for _, p := range mains(t) {
		name := filepath.Base(p.ImportPath)
		// The plan reads Knative's objects, and the controller watches them: they have reason to.
		if name == "plan" || strings.HasSuffix(name, "controller") {
			continue
		}
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "k8s.io/") || strings.HasPrefix(dep, "sigs.k8s.io/") || strings.HasPrefix(dep, "knative.dev/") {
				t.Errorf("%s depends on %s: a binary on the data path links nothing of Kubernetes, which costs tens of megabytes and the 100 ms "+
					"in which a stage has to be ready", p.ImportPath, dep)
				break
			}
		}
	}
}

func TestProductionCodeLinksNoTestingPackage(t *testing.T) {
	// What is for tests, in the standard library and elsewhere.
	forTests := func(dep string) bool {
		return dep == "testing" || strings.HasPrefix(dep, "testing/") || dep == "net/http/httptest" ||
			strings.HasPrefix(dep, "github.com/google/go-cmp/") || strings.HasPrefix(dep, "github.com/stretchr/testify")
	}
	for _, p := range list(t, "1", "./...") {
		if !inProduction(p.ImportPath) {
			continue
		}
		for _, imported := range p.Imports {
			if forTests(imported) || room(imported) != "" && !inProduction(imported) {
				t.Errorf("%s imports %s outside of its tests: that registers test flags and ships code that nobody reviewed for production",
					p.ImportPath, imported)
			}
		}
	}
}
