package sink_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/sink"
)

const source = "//robofleet.dev/functions/test"

// broker answers with the statuses given, then 202, and records what it was sent.
type broker struct {
	*httptest.Server
	mu       sync.Mutex
	requests []request
	conns    int
}

type request struct {
	method, body string
	header       http.Header
}

func newBroker(t *testing.T, statuses ...int) *broker {
	b := &broker{}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read body: %v", err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.requests = append(b.requests, request{r.Method, string(body), r.Header})
		status := http.StatusAccepted
		if n := len(b.requests); n <= len(statuses) {
			status = statuses[n-1]
		}
		if status/100 == 3 {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
		if status != http.StatusNoContent {
			_, _ = io.WriteString(w, "the broker says so\n")
		}
	}))
	b.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.conns++
		}
	}
	b.Start()
	t.Cleanup(b.Close)
	return b
}

func (b *broker) seen() []request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests
}

func TestEmitSendsOneEventInBinaryMode(t *testing.T) {
	b := newBroker(t)
	if err := sink.NewHTTP(b.URL+"/robofleet/fleet", source).Emit(t.Context(), event.TypeTelemetryValidated, []byte(`[{"a":1}]`)); err != nil {
		t.Fatal(err)
	}
	requests := b.seen()
	if len(requests) != 1 {
		t.Fatalf("requests: got %d, want 1", len(requests))
	}
	got := requests[0]
	if got.method != http.MethodPost || got.body != `[{"a":1}]` {
		t.Errorf("got %s %s", got.method, got.body)
	}
	for key, want := range map[string]string{
		"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Type": event.TypeTelemetryValidated, "Ce-Source": source,
	} {
		if got := got.header.Values(key); !cmp.Equal(got, []string{want}) {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	if id := got.header.Get("Ce-Id"); id == "" {
		t.Error("no Ce-Id")
	}
	if _, err := time.Parse(time.RFC3339Nano, got.header.Get("Ce-Time")); err != nil {
		t.Errorf("Ce-Time: %v", err)
	}
}

func TestEmitDependsOnTheAnswer(t *testing.T) {
	for _, tt := range []struct {
		name     string
		statuses []int
		want     int // requests
		fails    bool
		kind     function.Kind
	}{
		{name: "200", statuses: []int{200}, want: 1},
		{name: "202", statuses: []int{202}, want: 1},
		{name: "204", statuses: []int{204}, want: 1},
		{name: "503 once", statuses: []int{503}, want: 2},
		{name: "500 then 429", statuses: []int{500, 429}, want: 3},
		{name: "503 for long", statuses: []int{503, 503, 503, 503}, want: 3, fails: true, kind: function.Transient},
		{name: "429 for long", statuses: []int{429, 429, 429, 429}, want: 3, fails: true, kind: function.Overloaded},
		{name: "400 is the event's fault", statuses: []int{400}, want: 1, fails: true, kind: function.Permanent},
		{name: "413 is the event's fault", statuses: []int{413}, want: 1, fails: true, kind: function.Permanent},
		{name: "401 is not", statuses: []int{401}, want: 1, fails: true, kind: function.Transient},
		{name: "404 is not", statuses: []int{404}, want: 1, fails: true, kind: function.Transient},
		{name: "redirect is not followed", statuses: []int{302}, want: 1, fails: true, kind: function.Transient},
		{name: "redirect of a POST is not followed", statuses: []int{307}, want: 1, fails: true, kind: function.Transient},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBroker(t, tt.statuses...)
			err := sink.NewHTTP(b.URL, source).Emit(t.Context(), event.TypeTelemetryValidated, []byte(`[]`))
			if (err != nil) != tt.fails {
				t.Fatalf("error: got %v, want one: %t", err, tt.fails)
			}
			if err != nil {
				if got := function.KindOf(err); got != tt.kind {
					t.Errorf("kind: got %d, want %d", got, tt.kind)
				}
				for _, part := range []string{event.TypeTelemetryValidated, b.URL, "the broker says so"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q does not name %q", err, part)
					}
				}
			}
			requests := b.seen()
			if len(requests) != tt.want {
				t.Errorf("requests: got %d, want %d", len(requests), tt.want)
			}
			for _, r := range requests {
				if got, want := r.header.Get("Ce-Id"), requests[0].header.Get("Ce-Id"); got != want {
					t.Errorf("id of a retry: got %q, want %q", got, want)
				}
			}
		})
	}
}

func TestEventsHaveIDsOfTheirOwn(t *testing.T) {
	b := newBroker(t)
	s := sink.NewHTTP(b.URL, source)
	for range 2 {
		if err := s.Emit(t.Context(), event.TypeTelemetryValidated, []byte(`[]`)); err != nil {
			t.Fatal(err)
		}
	}
	if r := b.seen(); r[0].header.Get("Ce-Id") == r[1].header.Get("Ce-Id") {
		t.Error("two events with one id")
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	b := newBroker(t, 503)
	s := sink.NewHTTP(b.URL, source)
	for range 10 {
		if err := s.Emit(t.Context(), event.TypeTelemetryValidated, []byte(`[]`)); err != nil {
			t.Fatal(err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conns != 1 {
		t.Errorf("connections for 11 requests: got %d, want 1", b.conns)
	}
}

// dropFirst closes the first connections that it accepts without a word, as a sink does that restarts.
type dropFirst struct {
	net.Listener
	left int
}

func (d *dropFirst) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil || d.left == 0 {
			return c, err
		}
		d.left--
		_ = c.Close()
	}
}

func TestEmitOutlastsABrokenConnection(t *testing.T) {
	answered := make(chan struct{}, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		answered <- struct{}{}
	}))
	server.Listener = &dropFirst{server.Listener, 2}
	server.Start()
	defer server.Close()
	if err := sink.NewHTTP(server.URL, source).Emit(t.Context(), event.TypeTelemetryValidated, []byte(`[]`)); err != nil {
		t.Fatal(err)
	}
	<-answered
}

func TestConnectionRefusedIsTransient(t *testing.T) {
	b := newBroker(t)
	b.Close()
	err := sink.NewHTTP(b.URL, source).Emit(t.Context(), event.TypeTelemetryValidated, []byte(`[]`))
	if err == nil || function.KindOf(err) != function.Transient {
		t.Errorf("got %v, want a Transient error", err)
	}
}

func TestEmitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	arrived := make(chan struct{})
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived) // a second request would panic here, which the server reports
		<-hang
	}))
	defer server.Close()
	defer close(hang)
	go func() {
		<-arrived
		cancel()
	}()
	err := sink.NewHTTP(server.URL, source).Emit(ctx, event.TypeTelemetryValidated, []byte(`[]`))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestNewTakesTheEnvironmentAtItsWord(t *testing.T) {
	for _, tt := range []struct {
		name   string
		url    string
		laptop bool
		want   string // part of the error
	}{
		{name: "sink", url: "http://broker-ingress.robofleet.svc/robofleet/fleet"},
		{name: "sink on a laptop", url: "http://localhost:8085", laptop: true},
		{name: "none on a laptop", laptop: true},
		{name: "none", want: "K_SINK is not set"},
		{name: "no URL", url: "broker-ingress", want: `K_SINK "broker-ingress" is not the URL`},
		{name: "no host", url: "http:///robofleet", want: "is not the URL"},
		{name: "not HTTP", url: "grpc://broker", want: "is not the URL"},
		{name: "malformed", url: "http://%zz", want: "K_SINK: parse"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := sink.New(sink.Config{URL: tt.url}, source, tt.laptop, io.Discard)
			switch {
			case tt.want == "" && (err != nil || s == nil):
				t.Errorf("got %v, %v", s, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestPrinterWritesALineForEachEvent(t *testing.T) {
	var out bytes.Buffer
	batch := []byte(`[ {"specversion":"1.0","id":"1","type":"a","source":"s","data":{"x":1}} , {"specversion":"1.0","id":"2","type":"b","source":"s"} ]`)
	if err := sink.NewPrinter(&out).Emit(t.Context(), event.TypeTelemetryValidated, batch); err != nil {
		t.Fatal(err)
	}
	want := `{"specversion":"1.0","id":"1","type":"a","source":"s","data":{"x":1}}` + "\n" +
		`{"specversion":"1.0","id":"2","type":"b","source":"s"}` + "\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := sink.NewPrinter(&out).Emit(t.Context(), event.TypeTelemetryValidated, []byte(`{}`)); !errors.Is(err, event.ErrBatch) {
		t.Errorf("not a batch: got %v, want ErrBatch", err)
	}
}
