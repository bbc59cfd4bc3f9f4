package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/robofleet/robofleet/simulator/autoscale"
)

// manifests are two Services that scale quickly.
const manifests = `
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: validate}
spec:
  template:
    metadata:
      annotations: {autoscaling.knative.dev/target: "40", autoscaling.knative.dev/window: 10s}
    spec:
      containers: [{image: validate}]
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hot-write}
spec:
  template:
    spec:
      containers: [{image: hot-write}]
`

func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(append([]string{"--manifests", "-"}, args...), strings.NewReader(manifests), &out)
	return out.String(), err
}

func TestTextShowsEveryStage(t *testing.T) {
	got, err := execute(t, "--profile", "burst:500:10s", "--parameters")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"validate: burst:500:10s, 260 s", "hot-write: burst", "5,000, 5,000, 0", "pod-hours", "█", "eventing/triggers"} {
		if !strings.Contains(got, want) {
			t.Errorf("the output does not say %q:\n%s", want, got)
		}
	}
}

func TestSetComparesTwoSettings(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "pictures")
	got, err := execute(t, "--profile", "burst:2000:20s", "--stage", "validate", "--set", "validate.target=10", "--out", folder, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var report autoscale.Report
	if err := json.Unmarshal([]byte(got), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Runs) != 2 {
		t.Fatalf("runs: got %d, want 2", len(report.Runs))
	}
	before, after := report.Runs[0].Results[0].Totals.MaxReady, report.Runs[1].Results[0].Totals.MaxReady
	if after <= before {
		t.Errorf("pods with a quarter of the target: got %d, want more than %d", after, before)
	}
	picture, err := os.ReadFile(filepath.Join(folder, "validate.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(picture, []byte("validate.target=10")) {
		t.Error("the picture does not name the change")
	}
}

func TestObservedStatesTheError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pods.csv")
	if err := os.WriteFile(file, []byte("seconds,pods_wanted,pods_ready\n0,0,0\n11,1,0\n13,1,1\n60,0,0\n70,0,0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := execute(t, "--profile", "burst:500:10s", "--stage", "validate", "--observed", file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"predicted against observed, over 70 s", "mean absolute error", "ready, observed"} {
		if !strings.Contains(got, want) {
			t.Errorf("the output does not say %q:\n%s", want, got)
		}
	}
}

func TestClusterConfiguration(t *testing.T) {
	write := func(text string) string {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	config := write("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config-autoscaler}\ndata: {enable-scale-to-zero: \"false\"}\n")
	got, err := execute(t, "--profile", "burst:100:10s", "--stage", "validate", "--cluster", config)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got, ", never\n") {
		t.Errorf("the service goes to zero although the cluster forbids it:\n%s", got)
	}
	for _, text := range []string{
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config-autoscaler}\ndata: {stable-window: 1s}\n",
		"[",
	} {
		if _, err := execute(t, "--profile", "zero:10s", "--cluster", write(text)); err == nil {
			t.Errorf("with the configuration %q: got no error", text)
		}
	}
}

func TestWrongUseIsOneClearLine(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown flag", []string{"--speed", "1"}, "speed"},
		{"argument", []string{"validate"}, `unexpected argument "validate"`},
		{"profile", []string{"--profile", "wave:1"}, "want steady, burst, zero or day"},
		{"cloud", []string{"--cloud", "aws"}, "want google or embedded"},
		{"output", []string{"-o", "yaml"}, "want text or json"},
		{"setting", []string{"--set", "validate.targets=1"}, `"targets" is none of`},
		{"stage", []string{"--stage", "control"}, "no model"},
		{"observed without a stage", []string{"--observed", "x.csv"}, "name it with --stage"},
		{"observed that is not there", []string{"--observed", "/nowhere/x.csv", "--stage", "validate"}, "/nowhere/x.csv"},
		{"manifests that are not there", []string{"--manifests", "/nowhere"}, "/nowhere"},
		{"push window", []string{"--push-window", "0"}, "push window"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := execute(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got error %v, want one line with %q", err, tt.want)
			}
			if out != "" {
				t.Errorf("output: got %q, want none", out)
			}
		})
	}
}

func TestHelpListsTheFlags(t *testing.T) {
	out, err := execute(t, "--help")
	if !errors.Is(err, flag.ErrHelp) || !strings.Contains(out, "-profile") {
		t.Errorf("help: got error %v and %q", err, out)
	}
}
