package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Handler processes one event. It returns nil only when the event's effect is durable, because nil is the acknowledgement
// after which nobody has the event any more. The Kind of its error decides the answer. It may keep the event's data.
type Handler func(ctx context.Context, e cloudevents.Event) error

// Limits bound what a stage takes on.
type Limits struct {
	// MaxBodyBytes is the size over which a message is cut off; the handler learns of it by Delivery.Truncated.
	MaxBodyBytes int64 `env:"MAX_BODY_BYTES, default=1048576"`
	// MaxInFlight is the number of requests at a time over which further ones are answered 429. It must not be below the
	// containerConcurrency of the Knative Service. Pub/Sub keeps about 3,000 pushes outstanding to a slow endpoint.
	MaxInFlight int `env:"MAX_IN_FLIGHT, default=3000"`
	// MaxInFlightBytes is the same for the sizes of their bodies.
	MaxInFlightBytes int64 `env:"MAX_IN_FLIGHT_BYTES, default=67108864"`
}

// PlatformLimits are the limits of a stage that gets the platform's own events: they may be as large as a message of Pub/Sub
// can be, and none is ever cut off.
func PlatformLimits() Limits { return Limits{MaxBodyBytes: 10 << 20} }

// maxWrappedBytes is the most that a wrapped push can be long: Pub/Sub's largest message (10 MB) in base64, and its
// attributes (100 of at most 1,280 bytes).
const maxWrappedBytes = 14 << 20

// httpHandler is the way of a request to the handler and of its outcome to the answer.
type httpHandler struct {
	handler  Handler
	limits   Limits
	verifier *verifier // nil: pushes are not checked, on a laptop
	metrics  *metrics
	log      *slog.Logger
	inFlight atomic.Int64
	bytes    atomic.Int64 // of the bodies in flight
}

// NewHandler returns the http.Handler of a stage. identity says whose pushes are accepted; nil accepts everybody's, for a
// laptop. client fetches the issuer's keys. Metrics are registered with reg.
func NewHandler(
	h Handler, limits Limits, identity *Identity, client *http.Client, reg prometheus.Registerer, log *slog.Logger,
) (http.Handler, error) {
	hh := &httpHandler{handler: h, limits: limits, log: log}
	if limits.MaxBodyBytes <= 0 || limits.MaxInFlight <= 0 || limits.MaxInFlightBytes <= 0 {
		return nil, errors.New("MAX_BODY_BYTES, MAX_IN_FLIGHT and MAX_IN_FLIGHT_BYTES must be positive")
	}
	if identity != nil {
		if err := identity.validate(); err != nil {
			return nil, err
		}
		hh.verifier = newVerifier(*identity, client)
	}
	var err error
	if hh.metrics, err = newMetrics(reg, &hh.inFlight); err != nil {
		return nil, err
	}
	return hh, nil
}

func (h *httpHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	status := h.serve(w, r)
	h.metrics.observe(status, time.Since(start))
}

// serve answers r and returns the status it answered with.
func (h *httpHandler) serve(w http.ResponseWriter, r *http.Request) int {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "events are sent by POST", http.StatusMethodNotAllowed)
		return http.StatusMethodNotAllowed
	}
	defer h.inFlight.Add(-1)
	if h.inFlight.Add(1) > int64(h.limits.MaxInFlight) {
		return h.refuse(w, r, WithKind(Overloaded, fmt.Errorf("more than %d requests at a time", h.limits.MaxInFlight)))
	}
	if h.verifier != nil {
		if err := h.verifier.verify(r.Context(), r.Header["Authorization"]); err != nil {
			return h.refuse(w, r, err)
		}
	}
	limit := h.bodyLimit(r)
	size := limit
	if r.ContentLength >= 0 {
		size = min(r.ContentLength, limit)
	}
	defer h.bytes.Add(-size)
	if total := h.bytes.Add(size); total > h.limits.MaxInFlightBytes && total > size { // a large one may go alone
		return h.refuse(w, r, WithKind(Overloaded, fmt.Errorf("more than %d bytes at a time", h.limits.MaxInFlightBytes)))
	}
	body, truncated, bodySize, err := read(r, limit)
	if err != nil {
		// The sender went away or stalled; it will not see the answer, and Pub/Sub sends the message again.
		return h.refuse(w, r, WithKind(Permanent, fmt.Errorf("read body: %w", err)))
	}
	events, err := decode(r, body, truncated, bodySize)
	if err != nil {
		return h.refuse(w, r, err)
	}
	if err := h.handleAll(r.Context(), events); err != nil {
		return h.refuse(w, r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return http.StatusNoContent
}

// handleAll calls the handler for each event. The events of a batch are handled at the same time, so that they can share a
// group commit, and the sender gets one answer for all.
func (h *httpHandler) handleAll(ctx context.Context, events []delivered) error {
	if len(events) == 1 {
		return h.handle(ctx, events[0])
	}
	errs := make([]error, len(events))
	var g errgroup.Group
	g.SetLimit(64)
	for i, e := range events {
		g.Go(func() error {
			errs[i] = h.handle(ctx, e)
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	// One event that may succeed later makes it worth to send the batch again, whatever is wrong with the others.
	retriable := slices.IndexFunc(errs, func(err error) bool { return err != nil && KindOf(err) != Permanent })
	if retriable >= 0 {
		return errs[retriable]
	}
	return errors.Join(errs...)
}

func (h *httpHandler) handle(ctx context.Context, d delivered) (err error) {
	defer func() {
		if p := recover(); p != nil {
			h.log.ErrorContext(ctx, "handler panicked", "event", d.event.ID(), "panic", p, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	if size, limit := int64(len(d.event.DataEncoded)), h.limits.MaxBodyBytes; size > limit {
		if !d.delivery.Truncated { // else its size is known better
			d.delivery.Truncated, d.delivery.Size = true, size
		}
		d.event.DataEncoded = d.event.DataEncoded[:limit:limit]
	}
	return h.handler(WithDelivery(ctx, d.delivery), d.event)
}

var errPanic = errors.New("the handler panicked")

// bodyLimit is how much of the body of r is read. A push that may be wrapped is read to the size a wrapped message can have:
// cut off in the middle, its message could not be taken out.
func (h *httpHandler) bodyLimit(r *http.Request) int64 {
	if first(r.Header, headerMessageID) == "" && first(r.Header, "Ce-Specversion") == "" {
		return max(h.limits.MaxBodyBytes, maxWrappedBytes)
	}
	return h.limits.MaxBodyBytes
}

// read returns the body of r up to the limit, whether that cut it off, and the size of the whole (0: unknown).
func read(r *http.Request, limit int64) (body []byte, truncated bool, size int64, err error) {
	if n := r.ContentLength; n >= 0 && n <= limit {
		body = make([]byte, n)
		_, err = io.ReadFull(r.Body, body)
		return body, false, n, err
	}
	body, err = io.ReadAll(io.LimitReader(r.Body, limit+1))
	size = int64(len(body))
	if err != nil || size <= limit {
		return body, false, size, err
	}
	// The rest is read too, as far as a message can reach: a sender whose connection is closed while it writes may never see
	// the answer, and would send the same again for ever.
	rest, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxWrappedBytes))
	switch {
	case r.ContentLength > 0:
		size = r.ContentLength
	case rest < maxWrappedBytes:
		size += rest
	default:
		size = 0
	}
	return body[:limit:limit], true, size, err
}

// refuse answers with what is wrong and returns the status.
func (h *httpHandler) refuse(w http.ResponseWriter, r *http.Request, err error) int {
	kind := KindOf(err)
	status := kind.status()
	if errors.Is(err, errPanic) {
		status = http.StatusInternalServerError
	}
	switch kind {
	case Transient, Overloaded:
		w.Header().Set("Retry-After", retryAfter)
	case unauthenticated:
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if kind != Overloaded { // a line for each request is what an overloaded stage needs least; the metric tells
		h.log.WarnContext(r.Context(), "event not acknowledged", "status", status, "error", err,
			"message_id", first(r.Header, headerMessageID), "ce_id", first(r.Header, "Ce-Id"))
	}
	http.Error(w, err.Error(), status)
	return status
}

// retryAfter is in seconds. Pub/Sub ignores it and backs off by itself; others should wait about as long.
const retryAfter = "1"

// metrics are what every stage tells of its requests.
type metrics struct {
	requests *prometheus.CounterVec
	byStatus [600]atomic.Pointer[prometheus.Counter]
	seconds  prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, inFlight *atomic.Int64) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "robofleet_function_requests_total",
			Help: "Requests answered, by HTTP status. Only 204 acknowledges.",
		}, []string{"code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "robofleet_function_request_seconds",
			Help:    "Time from the arrival of a request to its answer, group commits included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
	}
	gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "robofleet_function_in_flight_requests",
		Help: "Requests that have arrived and are not answered yet.",
	}, func() float64 { return float64(inFlight.Load()) })
	for _, c := range []prometheus.Collector{m.requests, m.seconds, gauge} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) observe(status int, d time.Duration) {
	m.seconds.Observe(d.Seconds())
	if status < 0 || status >= len(m.byStatus) {
		return
	}
	c := m.byStatus[status].Load()
	if c == nil { // the lookup by label costs as much as the histogram: do it once per status
		counter := m.requests.WithLabelValues(strconv.Itoa(status))
		c = &counter
		m.byStatus[status].Store(c)
	}
	(*c).Inc()
}
