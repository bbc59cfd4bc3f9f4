package conformance_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	document = "../../docs/conformance.md"
	root     = "../.." // of the module
)

// testName is a test in the document: of this package, or with the folder of another one, "eventing/controller.TestReady".
var testName = regexp.MustCompile("`(?:([a-z/]+)\\.)?(Test[A-Za-z0-9]+)`")

// TestTheTableNamesEveryTest keeps the document and the tests in step: each row has a verdict and tests that exist, or says why
// it has none, and each test of this package stands in a row.
func TestTheTableNamesEveryTest(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	own := testsIn(t, ".")
	others := map[string]map[string]bool{} // by folder
	named := map[string]bool{t.Name(): true}
	rows := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-") || strings.TrimSpace(cells[0]) == "Knative expects" {
			continue
		}
		rows++
		if len(cells) != 3 {
			t.Errorf("%d cells, want 3: %s", len(cells), line)
			continue
		}
		expectation, verdict, tests := strings.TrimSpace(cells[0]), strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2])
		word, why, _ := strings.Cut(verdict, ":")
		switch {
		case !slices.Contains([]string{"holds", "differs", "cannot"}, word):
			t.Errorf("%s: the verdict begins with %q, want holds, differs or cannot", expectation, word)
		case word != "holds" && strings.TrimSpace(why) == "":
			t.Errorf("%s: %s without a reason", expectation, word)
		}
		found := testName.FindAllStringSubmatch(tests, -1)
		if len(found) == 0 && !strings.HasPrefix(tests, "none: ") {
			t.Errorf("%s: no test, and no reason why", expectation)
		}
		for _, match := range found {
			folder, name := match[1], match[2]
			existing := own
			if folder == "" {
				named[name] = true
			} else {
				if others[folder] == nil {
					others[folder] = testsIn(t, filepath.Join(root, folder))
				}
				existing = others[folder]
			}
			if !existing[name] {
				t.Errorf("%s: there is no test %s in %s", expectation, name, folder)
			}
		}
	}
	if rows == 0 {
		t.Fatalf("%s has no table", document)
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		if !named[name] {
			t.Errorf("%s does not stand in %s", name, document)
		}
	}
}

// testsIn are the names of the tests of a folder.
func testsIn(t *testing.T, folder string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range parsed.Decls {
			if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				tests[f.Name.Name] = true
			}
		}
	}
	return tests
}
