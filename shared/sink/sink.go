// Package sink sends a stage's events on to its sink: the address that Knative's SinkBinding puts into K_SINK, a Broker's
// ingress as a rule.
//
// Arrives: an event type, and the batch of events that is its data. Leaves: one CloudEvent in binary mode by HTTP POST; Emit
// returns nil once the sink has answered 2xx, which a Broker does when the event is durable. Retried: here, briefly, what a
// restart of the sink explains (no connection, 429, 5xx), with the same event id; beyond that it is up to the caller, whose
// own sender tries again. Dead-lettered: nothing.
package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
)

// Sink takes events. The id of the event is made by the Sink; what is in the batch has ids of its own.
type Sink interface {
	// Emit sends one event of that type with data, JSON, and returns nil once the sink holds it durably.
	Emit(ctx context.Context, eventType string, data []byte) error
}

// Config is where events go.
type Config struct {
	URL string `env:"K_SINK"`
}

// New returns the sink at cfg's URL, or if it has none and laptop is set, one that prints to out. source becomes the
// events' source.
func New(cfg Config, source string, laptop bool, out io.Writer) (Sink, error) {
	switch {
	case cfg.URL != "":
		u, err := url.Parse(cfg.URL)
		if err != nil {
			return nil, fmt.Errorf("K_SINK: %w", err)
		}
		if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return nil, fmt.Errorf("K_SINK %q is not the URL of an HTTP sink", cfg.URL)
		}
		return NewHTTP(cfg.URL, source), nil
	case laptop:
		return NewPrinter(out), nil
	}
	return nil, errors.New("K_SINK is not set: there is nowhere to send events to (a SinkBinding sets it)")
}

// HTTP is a sink that is reached by HTTP.
type HTTP struct {
	url    string
	source string
	client *http.Client
}

// NewHTTP returns the sink at address, a URL.
func NewHTTP(address, source string) *HTTP {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64 // every write under way keeps its connection
	t.DisableCompression = true
	return &HTTP{url: address, source: source, client: &http.Client{
		Transport: t,
		// A redirected POST can become a GET, whose 200 would be taken for the sink's word that it holds the event.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// attempts and pause span the restart of a sink on the same node; a longer outage is left to the caller's sender, which
// keeps the events in a durable place meanwhile.
const (
	attempts = 3
	pause    = 100 * time.Millisecond
)

// Emit implements Sink.
func (s *HTTP) Emit(ctx context.Context, eventType string, data []byte) error {
	id := uuid.NewString()
	for attempt := 1; ; attempt++ {
		retry, err := s.post(ctx, id, eventType, data)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("emit %s to %s: %w", eventType, s.url, err)
		if attempt == attempts || !retry {
			return err
		}
		select {
		case <-time.After(pause * time.Duration(attempt)):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// post sends the event once. retry says whether a restart of the sink explains err.
func (s *HTTP) post(ctx context.Context, id, eventType string, data []byte) (retry bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(data))
	if err != nil {
		return false, function.WithKind(function.Permanent, err)
	}
	req.Header = http.Header{
		"Content-Type":   {event.ContentType},
		"Ce-Specversion": {"1.0"},
		"Ce-Id":          {id},
		"Ce-Source":      {s.source},
		"Ce-Type":        {eventType},
		"Ce-Time":        {time.Now().UTC().Format(time.RFC3339Nano)},
	}
	res, err := s.client.Do(req)
	if err != nil {
		return true, err
	}
	// The body is read so that the connection can be used again; what it says matters only beside an error.
	body, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	_ = res.Body.Close()
	switch status := res.StatusCode; {
	case status/100 == 2:
		return false, nil
	case status == http.StatusTooManyRequests:
		return true, function.WithKind(function.Overloaded, answer(res, body))
	case status == http.StatusBadRequest, status == http.StatusRequestEntityTooLarge:
		return false, function.WithKind(function.Permanent, answer(res, body))
	default:
		// The rest of 3xx and 4xx is a sink that is set up wrongly, no fault of the event: it keeps until that is mended.
		return status >= http.StatusInternalServerError, answer(res, body)
	}
}

func answer(res *http.Response, body []byte) error {
	return fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(body)))
}

// Printer is a sink for laptops: it prints each event of a batch on a line of its own.
type Printer struct {
	mu  sync.Mutex
	out io.Writer
}

// NewPrinter returns a Printer to out.
func NewPrinter(out io.Writer) *Printer { return &Printer{out: out} }

// Emit implements Sink.
func (p *Printer) Emit(_ context.Context, _ string, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return event.Split(data, func(e event.Element) error {
		_, err := fmt.Fprintf(p.out, "%s\n", e.Raw)
		return err
	})
}
