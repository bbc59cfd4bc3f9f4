package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/sethvargo/go-envconfig"
)

func TestServesUntilItIsStopped(t *testing.T) {
	const brokers = "robofleet/fleet=robofleet-events,robofleet/edge=robofleet-telemetry"
	file := filepath.Join(t.TempDir(), "brokers")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(brokers, ",", "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("Brokers by environment", func(t *testing.T) { serve(t, "BROKERS", brokers) })
	t.Run("Brokers by file", func(t *testing.T) { serve(t, "BROKERS_FILE", file) })
}

// serve runs the command with one more variable, sends events to it, and stops it.
func serve(t *testing.T, key, value string) {
	t.Helper()
	server := pstest.NewServer()
	t.Cleanup(func() { _ = server.Close() })
	t.Setenv("PUBSUB_EMULATOR_HOST", server.Addr) // read by the Pub/Sub client itself
	for _, topic := range []string{"robofleet-events", "robofleet-telemetry"} {
		if _, err := server.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: "projects/p/topics/" + topic}); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, envconfig.MapLookuper(map[string]string{
			"HOST": "127.0.0.1", "PORT": fmt.Sprint(port), "METRICS_PORT": "0", "PUBSUB_PROJECT_ID": "p",
			key: value,
		}), slog.New(slog.DiscardHandler))
	}()

	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	deadline := time.Now().Add(10 * time.Second)
	for {
		response, err := http.Get(base + "/brokers")
		if err == nil {
			served, _ := io.ReadAll(response.Body) // short, and then there is another look
			_ = response.Body.Close()
			if strings.Count(string(served), "\n") == 2 {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not serve: %v", err)
		}
	}
	for broker, want := range map[string]int{"fleet": http.StatusAccepted, "edge": http.StatusAccepted, "other": http.StatusNotFound} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/robofleet/"+broker, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header = http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"s"}, "Ce-Type": {"t"}}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("Broker %s: answer %s, want %d", broker, response.Status, want)
		}
	}
	if n := len(server.Messages()); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}

	stop()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().(*net.TCPAddr).Port
}

func TestRefusesAnIncompleteEnvironment(t *testing.T) {
	tests := []struct {
		name    string
		env     map[string]string
		message string
	}{
		{"no project", map[string]string{"BROKERS": "a/b=c"}, "PUBSUB_PROJECT_ID"},
		{"no Brokers", map[string]string{"PUBSUB_PROJECT_ID": "p"}, "BROKERS"},
		{"Brokers twice", map[string]string{"PUBSUB_PROJECT_ID": "p", "BROKERS": "a/b=c", "BROKERS_FILE": "x"}, "BROKERS_FILE"},
		{"Brokers without topics", map[string]string{"PUBSUB_PROJECT_ID": "p", "BROKERS": "a/b"}, "BROKERS"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := run(t.Context(), envconfig.MapLookuper(test.env), slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(strings.ToUpper(err.Error()), test.message) {
				t.Errorf("error %v, want one about %s", err, test.message)
			}
		})
	}
}
