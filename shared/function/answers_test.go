package function_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/robofleet/robofleet/shared/function"
)

func TestKindOfErrorDecidesTheAnswer(t *testing.T) {
	cause := errors.New("cause")
	for _, tt := range []struct {
		name       string
		err        error
		status     int
		retryAfter string
	}{
		{name: "none", status: 204},
		{name: "no kind", err: cause, status: 503, retryAfter: "1"},
		{name: "transient", err: function.WithKind(function.Transient, cause), status: 503, retryAfter: "1"},
		{name: "overloaded", err: function.WithKind(function.Overloaded, cause), status: 429, retryAfter: "1"},
		{name: "permanent", err: function.WithKind(function.Permanent, cause), status: 400},
		{name: "denied", err: function.WithKind(function.Denied, cause), status: 403},
		{name: "wrapped", err: fmt.Errorf("write: %w", function.WithKind(function.Overloaded, cause)), status: 429, retryAfter: "1"},
		{
			name: "the outermost kind", err: function.WithKind(function.Transient, function.WithKind(function.Permanent, cause)),
			status: 503, retryAfter: "1",
		},
		{name: "kind of nil", err: function.WithKind(function.Permanent, nil), status: 204},
		{name: "context", err: context.DeadlineExceeded, status: 503, retryAfter: "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := func(context.Context, cloudevents.Event) error { return tt.err }
			got := postText(t, newServer(t, newHandler(t, h, limits, nil)).URL, headers(attrs()), reading)
			if got.status != tt.status || got.header.Get("Retry-After") != tt.retryAfter {
				t.Errorf("got %d, Retry-After %q, want %d, %q", got.status, got.header.Get("Retry-After"), tt.status, tt.retryAfter)
			}
			if tt.err != nil && !strings.Contains(got.body, tt.err.Error()) {
				t.Errorf("body: got %q, want the error", got.body)
			}
		})
	}
}

// byID returns a handler whose error depends on the event's id.
func byID(errs map[string]error) function.Handler {
	return func(_ context.Context, e cloudevents.Event) error { return errs[e.ID()] }
}

func TestABatchHasOneAnswer(t *testing.T) {
	permanent := function.WithKind(function.Permanent, errors.New("permanent"))
	overloaded := function.WithKind(function.Overloaded, errors.New("overloaded"))
	for _, tt := range []struct {
		name   string
		errs   map[string]error
		status int
	}{
		{"all good", nil, 204},
		{"one may pass later", map[string]error{"2": errors.New("down")}, 503},
		{"one never", map[string]error{"3": permanent}, 400},
		{"one never, one later", map[string]error{"1": permanent, "2": overloaded}, 429},
		{"one later, one never", map[string]error{"1": overloaded, "2": permanent}, 429},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := newServer(t, newHandler(t, byID(tt.errs), limits, nil))
			body := "[" + structured("1") + "," + structured("2") + "," + structured("3") + "]"
			if got := postText(t, server.URL, headers(batched), body); got.status != tt.status {
				t.Errorf("status: got %d, want %d", got.status, tt.status)
			}
		})
	}
}

func TestEventsOfABatchShareAGroupCommit(t *testing.T) {
	var all sync.WaitGroup
	all.Add(2)
	h := func(context.Context, cloudevents.Event) error {
		all.Done()
		all.Wait() // for ever, if one event were handled after the other
		return nil
	}
	server := newServer(t, newHandler(t, h, limits, nil))
	if got := postText(t, server.URL, headers(batched), "["+structured("1")+","+structured("2")+"]"); got.status != 204 {
		t.Errorf("status: got %d, want 204", got.status)
	}
}

func TestEventsOfABatchAreCutOffEachByItself(t *testing.T) {
	var r recorder
	l := limits
	l.MaxBodyBytes = 64
	server := newServer(t, newHandler(t, r.handle, l, nil))
	long := `{"specversion":"1.0","id":"1","source":"s","type":"t","data":"` + strings.Repeat("x", 100) + `"}`
	short := `{"specversion":"1.0","id":"2","source":"s","type":"t","data":"y"}`
	if got := postText(t, server.URL, headers(batched), "["+long+","+short+"]"); got.status != 204 {
		t.Fatalf("status: got %d (%s), want 204", got.status, got.body)
	}
	for _, s := range r.take() {
		if want := s.Event["ce-id"] == "1"; s.Truncated != want || len(s.Data) > 64 {
			t.Errorf("event %s: truncated %t, %d bytes", s.Event["ce-id"], s.Truncated, len(s.Data))
		}
	}
}

func TestAPanicIsAnsweredAndTheServerLives(t *testing.T) {
	for _, shape := range []struct {
		name   string
		header http.Header
		body   string
	}{
		{"one event", headers(attrs("ce-id", "bad")), reading},
		{"batch", headers(batched), "[" + structured("good") + "," + structured("bad") + "]"},
	} {
		t.Run(shape.name, func(t *testing.T) {
			h := func(_ context.Context, e cloudevents.Event) error {
				if e.ID() == "bad" {
					panic("at the disco")
				}
				return nil
			}
			server := newServer(t, newHandler(t, h, limits, nil))
			got := postText(t, server.URL, shape.header, shape.body)
			if got.status != 500 || strings.Contains(got.body, "disco") {
				t.Errorf("got %d %q, want 500 without the panic's text", got.status, got.body)
			}
			if got := postText(t, server.URL, headers(attrs()), reading); got.status != 204 {
				t.Errorf("status after the panic: got %d, want 204", got.status)
			}
		})
	}
}

// blocked returns a handler that reports each call and waits until release is closed.
func blocked() (h function.Handler, called, release chan struct{}) {
	called, release = make(chan struct{}), make(chan struct{})
	return func(context.Context, cloudevents.Event) error {
		called <- struct{}{}
		<-release
		return nil
	}, called, release
}

func TestRequestsOverTheLimitsAreShed(t *testing.T) {
	two, bytes := limits, limits
	two.MaxInFlight = 2
	bytes.MaxInFlightBytes = int64(2 * len(reading))
	for _, tt := range []struct {
		name   string
		limits function.Limits
	}{{"requests", two}, {"bytes", bytes}} {
		t.Run(tt.name, func(t *testing.T) {
			h, called, release := blocked()
			server := newServer(t, newHandler(t, h, tt.limits, nil))
			answers := make(chan answer, 3)
			send := func() { answers <- postText(t, server.URL, headers(attrs()), reading) }
			go send()
			<-called
			go send()
			<-called
			got := postText(t, server.URL, headers(attrs()), reading)
			if got.status != 429 || got.header.Get("Retry-After") == "" {
				t.Errorf("third: got %d, Retry-After %q, want 429 with one", got.status, got.header.Get("Retry-After"))
			}
			close(release)
			for range 2 {
				if got := <-answers; got.status != 204 {
					t.Errorf("under way: got %d, want 204", got.status)
				}
			}
			go send()
			<-called
			if got := <-answers; got.status != 204 {
				t.Errorf("afterwards: got %d, want 204", got.status)
			}
		})
	}
}

func TestOneLargeMessageMayGoAlone(t *testing.T) {
	var r recorder
	l := limits
	l.MaxInFlightBytes = 10
	if got := postText(t, newServer(t, newHandler(t, r.handle, l, nil)).URL, headers(attrs()), reading); got.status != 204 {
		t.Errorf("got %d (%s), want 204: it would never get through", got.status, got.body)
	}
}

func TestOnlyPostsAreEvents(t *testing.T) {
	var r recorder
	server := newServer(t, newHandler(t, r.handle, limits, nil))
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete} {
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "POST" {
			t.Errorf("%s: got %d, Allow %q", method, res.StatusCode, res.Header.Get("Allow"))
		}
	}
	if got := r.take(); len(got) > 0 {
		t.Errorf("the handler was called: %v", got)
	}
}

// failingBody breaks off after its first bytes.
type failingBody struct{ sent bool }

func (f *failingBody) Read(p []byte) (int, error) {
	if f.sent {
		return 0, errors.New("the sender broke off")
	}
	f.sent = true
	return copy(p, "{"), nil
}

func TestABodyThatBreaksOffIsNoEvent(t *testing.T) {
	var r recorder
	server := newServer(t, newHandler(t, r.handle, limits, nil))
	for _, length := range []int64{-1, 100, limits.MaxBodyBytes + 100} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, &failingBody{})
		if err != nil {
			t.Fatal(err)
		}
		req.Header, req.ContentLength = headers(metadata(), attrs()), length
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
			if res.StatusCode/100 == 2 {
				t.Errorf("length %d: acknowledged by %d", length, res.StatusCode)
			}
		}
	}
	if got := r.take(); len(got) > 0 {
		t.Errorf("the handler was called: %v", got)
	}
}

func TestHandlersCanBeCalledWithoutHTTP(t *testing.T) {
	if d := function.DeliveryFrom(t.Context()); d.FromPubSub() || d.PublishTime.IsZero() || len(d.Attributes()) > 0 {
		t.Errorf("got %+v, want an empty delivery with a time", d)
	}
	d := &function.Delivery{MessageID: "1"}
	if got := function.DeliveryFrom(function.WithDelivery(t.Context(), d)); got != d {
		t.Errorf("got %+v, want %+v", got, d)
	}
}

// FuzzHTTP holds that no request breaks a stage: whatever is posted to a handler that returns nil is acknowledged or refused.
func FuzzHTTP(f *testing.F) {
	f.Add("Ce-Specversion", "1.0", "Ce-Id", "1", "Content-Type", "application/json", "/", []byte(reading))
	f.Add("X-Goog-Pubsub-Message-Id", "1", "Ce-Specversion", "0.3", "X-Goog-Pubsub-Publish-Time", "now", "/x", []byte("{"))
	f.Add("", "", "", "", "Content-Type", "application/json", "/", []byte(wrapped(attrs(), reading)))
	f.Add("", "", "", "", "Content-Type", "application/json", "/", []byte(wrapped(cloudEvent, structured("1"))))
	f.Add("Ce-Id", "%", "Ce-Time", "%F", "Content-Type", "application/cloudevents-batch+json", "/", []byte("["+structured("1")+",null]"))
	f.Add("Ce-Id", "a", "X-Goog-Pubsub-Message-Id", "1", "Content-Type", "application/cloudevents+json; x", "/",
		[]byte(`{"specversion":"1.0","data_base64":"%"}`))
	var r recorder
	h := newHandler(f, r.handle, function.Limits{MaxBodyBytes: 100, MaxInFlight: 10, MaxInFlightBytes: 1 << 30}, nil)
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2, key3, value3, path string, body []byte) {
		req := newRequest(key1, value1, key2, value2, key3, value3, path, body)
		w := newResponse()
		h.ServeHTTP(w, req)
		events := r.take()
		switch {
		case w.Code == 204:
		case w.Code == 400 && len(events) == 0 && req.Header.Get("X-Goog-Pubsub-Message-Id") == "":
		default:
			t.Errorf("got %d (%s) after %d events", w.Code, w.Body, len(events))
		}
		for _, e := range events {
			if e.Event["ce-id"] == "" && e.MessageID == "" && !e.Bare {
				t.Errorf("an event without id: %+v", e)
			}
			if len(e.Data) > 100 || (e.Truncated && len(e.Data) != 100) {
				t.Errorf("%d bytes of %d, truncated: %t", len(e.Data), len(body), e.Truncated)
			}
		}
	})
}
