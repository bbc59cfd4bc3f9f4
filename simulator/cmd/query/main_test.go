package main

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cloud.google.com/go/bigquery"
	"google.golang.org/api/option"

	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/simulator/cloud"
	embedded "github.com/robofleet/robofleet/simulator/cloud/bigquery"
	"github.com/robofleet/robofleet/simulator/platform"
)

// data is a folder with the tables of a platform that does not run.
func data(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s, err := embedded.Start(t.Context(), embedded.Config{
		Dir: platform.BigQueryDir(dir), Project: cloud.Project, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	client, err := bigquery.NewClient(t.Context(), cloud.Project, option.WithEndpoint(s.RESTEndpoint()), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	if err := hotwrite.CreateTables(t.Context(), client, platform.Dataset); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ask(t *testing.T, dir string, sql ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), append([]string{"--data", dir}, sql...), &out, io.Discard)
	return out.String(), err
}

const count = "SELECT COUNT(*) AS readings FROM robofleet.telemetry_unique"

func expectAnswer(t *testing.T, dir string) {
	t.Helper()
	got, err := ask(t, dir, count)
	if err != nil {
		t.Fatal(err)
	}
	if want := "readings\n0\n"; got != want {
		t.Errorf("answer = %q, want %q", got, want)
	}
}

func TestQueryOpensTheFolderOfAPlatformThatDoesNotRun(t *testing.T) {
	dir := data(t)
	expectAnswer(t, dir)
	expectAnswer(t, dir) // the first has let go of it
}

func TestQueryDoesNotBelieveTheEndpointsOfAPlatformThatWasKilled(t *testing.T) {
	dir := data(t)
	for _, name := range []string{"lock", "endpoints.json"} { // nobody holds the lock
		if err := os.WriteFile(filepath.Join(dir, name), []byte(`{"bigquery":"http://127.0.0.1:1"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	expectAnswer(t, dir)
}

func TestQueryAsksAPlatformThatRuns(t *testing.T) {
	dir := t.TempDir()
	p, err := platform.Start(t.Context(), platform.Config{Dir: dir, ModuleDir: filepath.Join("..", "..", ".."), Out: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	expectAnswer(t, dir) // whose data nobody else could open
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	expectAnswer(t, dir)
}

func TestQueryPrintsEveryTypeOfValue(t *testing.T) {
	got, err := ask(t, data(t), `SELECT NULL AS nothing, 1.50 AS fraction, TIMESTAMP '2026-11-23 11:19:03.250+00' AS at, 'ü' AS text`)
	if err != nil {
		t.Fatal(err)
	}
	want := "nothing  fraction  at                       text\nNULL     1.5       2026-11-23 11:19:03.250  ü\n"
	if got != want {
		t.Errorf("answer:\n%s\nwant:\n%s", got, want)
	}
}

func TestMistakesAreOneLine(t *testing.T) {
	dir := data(t)
	for _, test := range []struct {
		name, dir, sql, want string
	}{
		{"no query", dir, "  ", "no query"},
		{"not SQL", dir, "SELEC 1", "SELEC"},
		{"no such table", dir, "SELECT 1 FROM robofleet.nothing", "nothing"},
		{"no such column", dir, "SELECT nothing FROM robofleet.telemetry", "nothing"},
		{"no data yet", t.TempDir(), "SELECT 1", "make run makes some"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ask(t, test.dir, test.sql)
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %q, want one line with %q", err, test.want)
			}
		})
	}
}
