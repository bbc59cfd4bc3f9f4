package autoscale

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// docs/autoscaling.md says which number each Service has; a number that is changed in one place only is a trap.
func TestDocumentationHasTheNumbersOfTheManifests(t *testing.T) {
	text, err := os.ReadFile("../../docs/autoscaling.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{} // cells by the name in the first one
	for row := range strings.Lines(string(text)) {
		cells := strings.Split(row, "|")
		if len(cells) == 7 && strings.HasPrefix(cells[1], " `") {
			rows[strings.Trim(cells[1], " `")] = cells[2:5]
		}
	}
	services, err := LoadServices("../../knative/base", nil)
	if err != nil {
		t.Fatal(err)
	}
	column := map[string]int{"validate": 0, "hot-write": 1, "cold-archive": 2}
	cell := func(name, service string) string {
		cells, ok := rows[name]
		if !ok {
			return "no row"
		}
		return strings.TrimSpace(cells[column[service]])
	}
	for _, s := range services {
		if _, ok := column[s.Name]; !ok {
			continue
		}
		for name, want := range s.Annotations {
			name = strings.TrimPrefix(name, annotationPrefix)
			if got := cell(name, s.Name); got != want {
				t.Errorf("%s of %s: the page says %q, the manifest %q", name, s.Name, got, want)
			}
		}
		if got, want := cell("containerConcurrency", s.Name), strconv.FormatInt(s.ContainerConcurrency, 10); got != want {
			t.Errorf("containerConcurrency of %s: the page says %q, the manifest %q", s.Name, got, want)
		}
		for name := range rows {
			if _, ok := s.Annotations[annotationPrefix+name]; !ok && name != "containerConcurrency" && cell(name, s.Name) != "–" {
				t.Errorf("%s of %s: the page says %q, the manifest has none", name, s.Name, cell(name, s.Name))
			}
		}
	}
}
