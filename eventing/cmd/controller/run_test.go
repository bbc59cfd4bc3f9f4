package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sethvargo/go-envconfig"
)

func TestRefusesAnIncompleteEnvironment(t *testing.T) {
	complete := map[string]string{"PUBSUB_PROJECT_ID": "p", "OWNER": "here", "POD_NAMESPACE": "robofleet"}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("nonsense: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", kubeconfig) // read by Kubernetes' own client; with the rest complete, this is what fails
	tests := []struct {
		name, key, value, message string
	}{
		{"no project", "PUBSUB_PROJECT_ID", "", "PUBSUB_PROJECT_ID"},
		{"no owner", "OWNER", "", "OWNER"},
		{"an owner that is no label", "OWNER", "Here", "OWNER"},
		{"a way in without TLS", "PUSH_ENDPOINT", "http://{name}.{namespace}.example.com", "PUSH_ENDPOINT"},
		{"a pause that is none", "RESYNC", "soon", "Resync"},
		{"no cluster", "RESYNC", "1m", "find the cluster"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			env := map[string]string{test.key: test.value}
			for key, value := range complete {
				if _, set := env[key]; !set {
					env[key] = value
				}
			}
			err := run(t.Context(), envconfig.MapLookuper(env), slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), test.message) {
				t.Errorf("error %v, want one about %s", err, test.message)
			}
		})
	}
}
