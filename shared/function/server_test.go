package function_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sethvargo/go-envconfig"

	"github.com/robofleet/robofleet/shared/function"
)

// load reads a Config from env, which must be sound.
func load(t *testing.T, env map[string]string) function.Config {
	t.Helper()
	var cfg function.Config
	if err := function.Load(t.Context(), envconfig.MapLookuper(env), &cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestLoadHasTheDefaultsOfAContainer(t *testing.T) {
	want := function.Config{
		Server: function.Server{Port: 8080, MetricsPort: 9090, ShutdownTimeout: 25 * time.Second},
		Limits: function.Limits{MaxBodyBytes: 1 << 20, MaxInFlight: 3000, MaxInFlightBytes: 64 << 20},
		Push:   function.Identity{Issuer: "https://accounts.google.com", JWKSURL: "https://www.googleapis.com/oauth2/v3/certs"},
	}
	if diff := cmp.Diff(want, load(t, nil)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoadTakesTheEnvironmentOverTheStagesOwnDefaults(t *testing.T) {
	type config struct {
		function.Config
		Window time.Duration `env:"WINDOW, default=1s"`
		Bucket string        `env:"BUCKET"`
	}
	cfg := config{Window: 20 * time.Millisecond, Bucket: "own"}
	cfg.Limits = function.PlatformLimits()
	cfg.Port = 1234
	env := envconfig.MapLookuper(map[string]string{
		"PORT": "4321", "MAX_BODY_BYTES": "5", "PUSH_AUDIENCE": "https://x/", "PUSH_SERVICE_ACCOUNTS": "a@x, b@x", "ROBOFLEET_LOCAL": "1",
		"METRICS_PORT": "0", "BUCKET": "theirs",
	})
	if err := function.Load(t.Context(), env, &cfg); err != nil {
		t.Fatal(err)
	}
	want := config{Window: 20 * time.Millisecond, Bucket: "theirs"}
	want.Server = function.Server{Port: 4321, ShutdownTimeout: 25 * time.Second}
	want.Limits = function.Limits{MaxBodyBytes: 5, MaxInFlight: 3000, MaxInFlightBytes: 64 << 20}
	want.Push = function.Identity{
		Audience: "https://x/", ServiceAccounts: []string{"a@x", "b@x"},
		Issuer: "https://accounts.google.com", JWKSURL: "https://www.googleapis.com/oauth2/v3/certs",
	}
	want.Local = true
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoadNamesTheWrongVariable(t *testing.T) {
	var cfg function.Config
	err := function.Load(t.Context(), envconfig.MapLookuper(map[string]string{"PORT": "http"}), &cfg)
	if err == nil || !strings.Contains(err.Error(), "Port") {
		t.Errorf("got %v, want an error about the port", err)
	}
}

func TestWhatALaptopIs(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want bool
	}{
		{"container", nil, false},
		{"said so", map[string]string{"ROBOFLEET_LOCAL": "1"}, true},
		{"said no", map[string]string{"ROBOFLEET_LOCAL": "0"}, false},
		{"functions framework", map[string]string{"FUNCTION_TARGET": "validate"}, true},
		{"functions framework on Knative", map[string]string{"FUNCTION_TARGET": "validate", "K_SERVICE": "validate"}, false},
		{"functions framework with a push identity", map[string]string{"FUNCTION_TARGET": "validate", "PUSH_AUDIENCE": "https://x/"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := load(t, tt.env).Laptop(); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
}

func TestAStageRefusesToStartWrong(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"no audience", nil, "PUSH_AUDIENCE is not set"},
		{"no service accounts", map[string]string{"PUSH_AUDIENCE": "https://x/"}, "PUSH_SERVICE_ACCOUNTS is not set"},
		{
			"half an identity on a laptop", map[string]string{"ROBOFLEET_LOCAL": "1", "PUSH_AUDIENCE": "https://x/"},
			"PUSH_SERVICE_ACCOUNTS is not set",
		},
		{"functions framework on Knative", map[string]string{"FUNCTION_TARGET": "test", "K_SERVICE": "test"}, "PUSH_AUDIENCE is not set"},
		{"no room for a request", map[string]string{"ROBOFLEET_LOCAL": "1", "MAX_IN_FLIGHT": "-1"}, "must be positive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := load(t, tt.env)
			err := function.Run(t.Context(), cfg, function.Stage{Name: "test", Handler: (&recorder{}).handle}, prometheus.NewRegistry(), quiet())
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "test: ") {
				t.Errorf("got %v, want one that names the stage and %q", err, tt.want)
			}
		})
	}
}

// addresses is a log that passes on where a stage says it serves.
type addresses struct {
	slog.Handler
	found chan string
}

func (a addresses) Enabled(context.Context, slog.Level) bool { return true }

func (a addresses) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(attr slog.Attr) bool {
		if attr.Key == "addr" {
			a.found <- attr.Value.String()
		}
		return true
	})
	return nil
}

// running is a stage that Run serves.
type running struct {
	url  string
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, cfg function.Config, s function.Stage) running {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(stop)
	log := addresses{slog.DiscardHandler, make(chan string, 1)}
	r := running{stop: stop, done: make(chan error, 1)}
	cfg.Port = 0
	go func() { r.done <- function.Run(ctx, cfg, s, prometheus.NewRegistry(), slog.New(log)) }()
	select {
	case addr := <-log.found:
		r.url = "http://" + addr
	case err := <-r.done:
		t.Fatal(err)
	}
	return r
}

func laptop(t *testing.T) function.Config {
	return load(t, map[string]string{"ROBOFLEET_LOCAL": "1", "METRICS_PORT": "0"})
}

func get(t *testing.T, url string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(body)}
}

func TestStoppingAnswersWhatIsUnderWay(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2c %t", h2c), func(t *testing.T) {
			h, called, release := blocked()
			flushed := make(chan struct{})
			r := start(t, laptop(t), function.Stage{Name: "test", Handler: h, Flush: func() { close(flushed) }})
			client := newClient(t, h2c)
			answers := make(chan answer, 1)
			go func() { answers <- post(t, client, r.url, headers(attrs()), strings.NewReader(reading)) }()
			<-called
			r.stop()
			<-flushed
			waitRefused(t, strings.TrimPrefix(r.url, "http://"))
			select {
			case err := <-r.done:
				t.Fatalf("the stage ended (%v) before its request was answered", err)
			default:
			}
			close(release)
			if got := <-answers; got.status != 204 {
				t.Errorf("request under way: got %d, want 204", got.status)
			}
			if err := <-r.done; err != nil {
				t.Errorf("the stage ended with %v", err)
			}
		})
	}
}

// waitRefused returns when addr takes no connection any more.
func waitRefused(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return
		}
		_ = c.Close()
	}
	t.Fatal("connections are still taken")
}

func TestStoppingEndsAfterTheShutdownTimeout(t *testing.T) {
	h, called, release := blocked()
	defer close(release)
	cfg := laptop(t)
	cfg.ShutdownTimeout = time.Millisecond
	r := start(t, cfg, function.Stage{Name: "test", Handler: h})
	answered := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url, strings.NewReader(reading))
		if err != nil {
			answered <- nil
			return
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = res.Body.Close()
		}
		answered <- err
	}()
	<-called
	r.stop()
	if err := <-r.done; !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "drain") {
		t.Errorf("got %v, want a drain that took too long", err)
	}
	if err := <-answered; err == nil {
		t.Error("the request under way was answered, though it was not handled")
	}
}

func TestATakenPortIsOneClearError(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	taken := l.Addr().(*net.TCPAddr).Port
	for _, tt := range []struct {
		name              string
		port, metricsPort int
	}{{"main", taken, 0}, {"metrics", 0, taken}} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := laptop(t)
			cfg.Port, cfg.MetricsPort = tt.port, tt.metricsPort
			err := function.Run(t.Context(), cfg, function.Stage{Name: "test", Handler: (&recorder{}).handle}, prometheus.NewRegistry(), quiet())
			if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), strconv.Itoa(taken)) {
				t.Errorf("got %v, want one line that names the port", err)
			}
		})
	}
}

func TestWithoutAPushIdentityOnlyTheMachineItselfIsServed(t *testing.T) {
	r := start(t, laptop(t), function.Stage{Name: "test", Handler: (&recorder{}).handle})
	if !strings.HasPrefix(r.url, "http://127.0.0.1:") {
		t.Errorf("serving on %s", r.url)
	}
	cfg := laptop(t)
	cfg.Host = "0.0.0.0" // said by whoever said ROBOFLEET_LOCAL, so it is meant
	if r := start(t, cfg, function.Stage{Name: "test", Handler: (&recorder{}).handle}); strings.HasPrefix(r.url, "http://127.0.0.1:") {
		t.Errorf("with HOST: serving on %s", r.url)
	}
}

// freePort returns a port that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func TestHealthAndMetrics(t *testing.T) {
	cfg := laptop(t)
	cfg.MetricsPort = freePort(t)
	r := start(t, cfg, function.Stage{Name: "test", Handler: byID(map[string]error{"bad": errors.New("down")})})
	if got := get(t, r.url+"/healthz"); got.status != 200 {
		t.Errorf("GET /healthz: got %d, want 200", got.status)
	}
	for _, id := range []string{"1", "2", "bad"} {
		postText(t, r.url, headers(attrs("ce-id", id)), reading)
	}
	got := get(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", cfg.MetricsPort))
	if got.status != 200 {
		t.Fatalf("metrics: got %d", got.status)
	}
	for _, line := range []string{
		`robofleet_function_requests_total{code="204",function="test"} 2`,
		`robofleet_function_requests_total{code="503",function="test"} 1`,
		`robofleet_function_request_seconds_count{function="test"} 3`,
		`robofleet_function_in_flight_requests{function="test"} 0`,
		`go_goroutines `, `process_resident_memory_bytes `,
	} {
		if !strings.Contains(got.body, line) {
			t.Errorf("metrics lack %q", line)
		}
	}
}

func TestLogLinesAreOnesThatCloudLoggingReads(t *testing.T) {
	cmd := child(t, "log")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got []map[string]any
	for line := range bytes.Lines(out) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		delete(m, "time")
		got = append(got, m)
	}
	want := []map[string]any{
		{"severity": "INFO", "message": "one", "function": "test", "n": 1.0},
		{"severity": "WARNING", "message": "two", "function": "test", "level": "full"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMain also is the process that tests start to have one of their own: TEST_CHILD says what it does.
func TestMain(m *testing.M) {
	switch os.Getenv("TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "log":
		log := function.NewLogger("test")
		log.Info("one", "n", 1)
		log.Warn("two", "level", "full")
	case "stage":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		var cfg function.Config
		err := function.Load(ctx, envconfig.OsLookuper(), &cfg)
		if err == nil {
			h := func(_ context.Context, e cloudevents.Event) error {
				_, err := fmt.Println(e.ID())
				return err
			}
			err = function.Run(ctx, cfg, function.Stage{Name: "test", Handler: h}, prometheus.NewRegistry(), quiet())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func child(t *testing.T, what string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append([]string{"TEST_CHILD=" + what, "PATH=" + os.Getenv("PATH")}, env...)
	return cmd
}

func TestTheFunctionsFrameworkServesAStage(t *testing.T) {
	addr := "127.0.0.1:" + strconv.Itoa(freePort(t))
	cmd := child(t, "stage", "FUNCTION_TARGET=test", "PORT="+strings.TrimPrefix(addr, "127.0.0.1:"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			_ = c.Close()
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("the stage ended: %v: %s", err, stderr.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %s", stderr.String())
		}
	}
	for _, tt := range []struct {
		name   string
		header http.Header
		body   string
		status int
	}{
		{"binary", headers(attrs("ce-id", "binary")), reading, 204},
		{"structured", headers(cloudEvent), structured("structured"), 204},
		{"wrapped", headers(plainJSON), wrapped(attrs("ce-id", "wrapped"), reading), 204},
		{"bare in a push", headers(metadata(), plainJSON), reading, 204},
		{"broken", headers(attrs("ce-id", "")), reading, 400},
	} {
		if got := postText(t, "http://"+addr+"/", tt.header, tt.body); got.status != tt.status {
			t.Errorf("%s: got %d (%s), want %d", tt.name, got.status, got.body, tt.status)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the stage ended with %v: %s", err, stderr.String())
	}
	if diff := cmp.Diff("binary\nstructured\nwrapped\n4711\n", stdout.String()); diff != "" {
		t.Errorf("handled (-want +got):\n%s", diff)
	}
}

func TestTheFunctionsFrameworkNamesAnUnknownTarget(t *testing.T) {
	out, err := child(t, "stage", "FUNCTION_TARGET=hot-write", "PORT=0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), `"hot-write"`) || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
		t.Errorf("got %v: %s; want one line that names the target", err, out)
	}
}
