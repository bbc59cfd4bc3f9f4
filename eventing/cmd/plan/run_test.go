package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cloud.google.com/go/pubsub/v2/pstest"
)

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}
}

func TestPrintsThePlanOfThePlatform(t *testing.T) {
	var table strings.Builder
	args := []string{"--project", "p", "--subscriber-url", "https://{name}.{namespace}.example.com"}
	if err := run(t.Context(), args, lookup(nil), &table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"robofleet/edge", "https://hot-write.robofleet.example.com", "robofleet-dead-letters after 100"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}

	var text strings.Builder
	if err := run(t.Context(), append(args, "-o", "json"), lookup(nil), &text); err != nil {
		t.Fatal(err)
	}
	var printed output
	if err := json.Unmarshal([]byte(text.String()), &printed); err != nil {
		t.Fatal(err)
	}
	if len(printed.Plan.Topics) != 3 || len(printed.Plan.Subscriptions) != 4 || printed.Report != nil {
		t.Errorf("JSON: %+v", printed)
	}
}

func TestRefusesWrongCommandLines(t *testing.T) {
	tests := []struct {
		name    string
		args    []string
		message string
	}{
		{"no project", nil, "--project is missing"},
		{"an argument", []string{"--project", "p", "x"}, `unexpected argument "x"`},
		{"an unknown format", []string{"--project", "p", "-o", "xml"}, "want table or json"},
		{"an address without a name", []string{"--project", "p", "--subscriber", "x"}, "want name=url"},
		{"prune without apply", []string{"--project", "p", "--prune"}, "go with --apply"},
		{"no such folder", []string{"--project", "p", "--manifests", "/does/not/exist"}, "load manifests"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := run(t.Context(), test.args, lookup(nil), &strings.Builder{})
			if err == nil || !strings.Contains(err.Error(), test.message) {
				t.Errorf("error %v, want one with %q", err, test.message)
			}
		})
	}
}

func TestProblemsAreShownAndFail(t *testing.T) {
	var table strings.Builder
	err := run(t.Context(), []string{"--subscriber", "validate=https://v.example.com"}, lookup(map[string]string{"PUBSUB_PROJECT_ID": "p"}), &table)
	if err == nil || err.Error() != "3 problems: see above" {
		t.Errorf("error %v, want 3 problems: two Services have no address, and three Triggers need them", err)
	}
	if !strings.Contains(table.String(), "SubscriberNotResolved") || !strings.Contains(table.String(), "https://v.example.com") {
		t.Errorf("the table lacks the problem or the good Trigger:\n%s", table.String())
	}
}

func TestApplies(t *testing.T) {
	server := pstest.NewServer()
	t.Cleanup(func() { _ = server.Close() })
	t.Setenv("PUBSUB_EMULATOR_HOST", server.Addr) // read by the Pub/Sub client itself
	folder := t.TempDir()
	const manifests = `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: b, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub}}
`
	if err := os.WriteFile(filepath.Join(folder, "broker.yaml"), []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"create  topic  ns-b", "everything is as planned"} {
		var table strings.Builder
		if err := run(t.Context(), []string{"--project", "p", "--manifests", folder, "--apply"}, lookup(nil), &table); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
}
