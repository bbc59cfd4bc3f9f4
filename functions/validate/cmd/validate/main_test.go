package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"

	"github.com/robofleet/robofleet/shared/event"
)

const reading = `{"robot_id":"R-1","boot_id":"b1","seq":1,"time":"2026-11-23T11:19:03Z",` +
	`"position":{"lat_deg":52.5,"lon_deg":13.4,"heading_deg":90,"speed_mps":1.5,"accuracy_m":2},` +
	`"battery":{"percent":81.5,"charging":false},"status":"idle"}`

// TestProcessServesAndDrains runs the process as a container runs it: requests in, a Broker's ingress out, SIGTERM.
func TestProcessServesAndDrains(t *testing.T) {
	type request struct {
		eventType string
		data      string
	}
	broker := make(chan request, 10)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		broker <- request{r.Header.Get("Ce-Type"), string(body)}
		w.WriteHeader(http.StatusAccepted)
	}))
	defer sink.Close()

	port, metricsPort := freePort(t), freePort(t)
	ctx, terminate := context.WithCancel(t.Context())
	defer terminate()
	stopped := make(chan error, 1)
	go func() {
		stopped <- run(ctx, envconfig.MapLookuper(map[string]string{
			"HOST": "127.0.0.1", "PORT": port, "METRICS_PORT": metricsPort, "ROBOFLEET_LOCAL": "1", "K_SINK": sink.URL,
			"READINGS_MAX_WAIT": "1h", // so that only the drain can end the wait for company
		}))
	}()
	metrics := "http://127.0.0.1:" + metricsPort
	eventually(t, "the stage serves", func() bool { return get("http://127.0.0.1:"+port+"/healthz") != "" })

	answered := make(chan error, 1)
	go func() {
		req, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:"+port, strings.NewReader(reading))
		if err != nil {
			answered <- err
			return
		}
		req.Header.Set("X-Goog-Pubsub-Message-Id", "m-1")
		req.Header.Set("X-Goog-Pubsub-Publish-Time", "2026-11-23T11:19:04Z")
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode != http.StatusNoContent {
				err = fmt.Errorf("answer %s, want 204", res.Status)
			}
		}
		answered <- err
	}()
	eventually(t, "the request is under way", func() bool {
		return strings.Contains(get(metrics), `robofleet_function_in_flight_requests{function="validate"} 1`)
	})
	terminate()

	if err := <-answered; err != nil {
		t.Errorf("request under way at SIGTERM: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("run = %v, want nil", err)
	}
	got := <-broker
	if got.eventType != event.TypeTelemetryValidated || !strings.Contains(got.data, `"id":"R-1/b1/1"`) {
		t.Errorf("the Broker got %s %s, want the reading", got.eventType, got.data)
	}
}

func TestRunRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"no sink", map[string]string{}, "K_SINK"},
		{"no push identity", map[string]string{"K_SINK": "http://broker.test"}, "PUSH_AUDIENCE"},
		{"a limit of nothing", map[string]string{"K_SINK": "http://broker.test", "READINGS_MAX_ITEMS": "-1"}, "MAX_ITEMS"},
		{"a number that is none", map[string]string{"PORT": "http"}, "Port"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), envconfig.MapLookuper(tt.env))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("run = %v, want an error that names %s", err, tt.want)
			}
		})
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// get returns what url answers with 200, or "".
func get(url string) string {
	res, err := http.Get(url)
	if err != nil {
		return ""
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return ""
	}
	return res.Status + string(body)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after 10 s: %s", what)
		}
	}
}
