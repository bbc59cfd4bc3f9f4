package function_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
)

var limits = function.Limits{MaxBodyBytes: 1 << 20, MaxInFlight: 100, MaxInFlightBytes: 64 << 20}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newHandler(t testing.TB, h function.Handler, l function.Limits, identity *function.Identity) http.Handler {
	t.Helper()
	hh, err := function.NewHandler(h, l, identity, http.DefaultClient, prometheus.NewRegistry(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	return hh
}

// newServer serves h by HTTP/1.1 and by HTTP/2 without TLS.
func newServer(t testing.TB, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func newClient(t testing.TB, h2c bool) *http.Client {
	var p http.Protocols
	p.SetHTTP1(!h2c)
	p.SetUnencryptedHTTP2(h2c)
	transport := &http.Transport{Protocols: &p, MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// answer is what a client sees of a response.
type answer struct {
	status int
	header http.Header
	body   string
}

func post(t testing.TB, c *http.Client, url string, header http.Header, body io.Reader) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header.Clone()
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(text)}
}

func postText(t testing.TB, url string, header http.Header, body string) answer {
	t.Helper()
	return post(t, http.DefaultClient, url, header, bytes.NewBufferString(body))
}

// seen is what a handler sees of an event.
type seen struct {
	Event        map[string]string // attributes; an id and a time that nobody gave are left out
	Data         string
	MessageID    string
	Subscription string
	Published    string
	Attempt      int
	Path         string
	Bare         bool
	Truncated    bool
	Size         int64
	Attributes   map[string]string
}

// recorder is a handler that keeps what it sees.
type recorder struct {
	mu  sync.Mutex
	all []seen
}

func (r *recorder) handle(ctx context.Context, e cloudevents.Event) error {
	d := function.DeliveryFrom(ctx)
	s := seen{
		Event: event.Attributes(e), Data: string(e.Data()), MessageID: d.MessageID, Subscription: d.Subscription, Attempt: d.Attempt,
		Path: d.Path, Bare: d.Bare, Truncated: d.Truncated, Size: d.Size, Attributes: d.Attributes(),
	}
	if d.FromPubSub() {
		s.Published = d.PublishTime.UTC().Format(time.RFC3339Nano)
	} else if d.Bare {
		if uuid.Validate(e.ID()) == nil {
			delete(s.Event, "ce-id")
		}
		if time.Since(e.Time()) < time.Minute {
			delete(s.Event, "ce-time")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, s)
	return nil
}

// take returns what was seen since the last call.
func (r *recorder) take() []seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// newRequest is a POST request as net/http hands it to a handler, with header keys in canonical form.
func newRequest(key1, value1, key2, value2, key3, value3, path string, body []byte) *http.Request {
	r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/", bytes.NewReader(body))
	r.URL.Path = path
	for _, kv := range [][2]string{{key1, value1}, {key2, value2}, {key3, value3}} {
		r.Header.Add(kv[0], kv[1])
	}
	return r
}

func newResponse() *httptest.ResponseRecorder { return httptest.NewRecorder() }
