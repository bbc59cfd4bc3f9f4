// Package ingress is the address of the Brokers of class PubSub: CloudEvents come in over HTTP and go to a topic.
//
// Arrives: POST /<namespace>/<broker> with one CloudEvent in binary or structured mode, or several in batch mode.
//
// Leaves: one Pub/Sub message per event, in binary mode (attributes ce-* and content-type in lower case, the data as the
// payload), and 202 once Pub/Sub has confirmed every one of them. Nothing is kept here: a process that dies owes the
// sender nothing but an answer.
//
// Retried: transient failures by the Pub/Sub client, for PUBLISH_TIMEOUT; then the sender is told to (503, or 429 when too
// much is in flight, both with Retry-After). A batch that was published in part is answered so too: the sender repeats
// all of it, and the events' ids tell.
//
// Dead-lettered: nothing. What can never be published is refused: 404 no such Broker, 400 not a CloudEvent, 413 too large.
//
// There is no authentication here: inside a cluster, network policy says who may send.
package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Topic is where the events of a Broker go. [Publishers] makes one of a Pub/Sub publisher.
type Topic interface {
	ID() string
	Publish(ctx context.Context, message *pubsub.Message) Result
}

// Result is what becomes of a message: Get waits until it is durable, or says why it is not.
type Result interface {
	Get(ctx context.Context) (serverID string, err error)
}

// Limits bound what is in memory at once.
type Limits struct {
	// MaxBodyBytes is the largest request. Pub/Sub's largest message is 10 MB.
	MaxBodyBytes int64 `env:"MAX_BODY_BYTES, default=10000000"`
	// MaxInFlight is how many requests may wait for Pub/Sub at a time. At 5,000 a second and 200 ms for a slow
	// confirmation 1,000 wait.
	MaxInFlight int64 `env:"MAX_IN_FLIGHT, default=2000"`
	// MaxInFlightBytes is how many bytes of bodies these may have together. A body is in memory up to three times: as it
	// came, in a bundle of the client, and on its way.
	MaxInFlightBytes int64 `env:"MAX_IN_FLIGHT_BYTES, default=50000000"`
}

// retryAfter is in seconds: what is in flight is gone by then, or Pub/Sub is down and it does not matter.
const retryAfter = "1"

// Handler answers the requests of all Brokers.
type Handler struct {
	topics  atomic.Pointer[map[string]Topic] // by path: "/<namespace>/<broker>"
	limits  Limits
	metrics *metrics
	log     *slog.Logger

	inFlight      atomic.Int64
	inFlightBytes atomic.Int64
}

// NewHandler serves the Brokers that are the keys of topics, "<namespace>/<broker>". Its metrics are registered with reg.
func NewHandler(topics map[string]Topic, limits Limits, reg prometheus.Registerer, log *slog.Logger) (*Handler, error) {
	if limits.MaxBodyBytes <= 0 || limits.MaxInFlight <= 0 || limits.MaxInFlightBytes < limits.MaxBodyBytes {
		return nil, errors.New("MAX_BODY_BYTES and MAX_IN_FLIGHT must be positive, and MAX_IN_FLIGHT_BYTES at least MAX_BODY_BYTES")
	}
	h := &Handler{limits: limits, log: log}
	h.Serve(topics)
	var err error
	h.metrics, err = newMetrics(reg, &h.inFlight)
	return h, err
}

// Serve replaces the Brokers that are served. Requests under way end with those that they began with.
func (h *Handler) Serve(topics map[string]Topic) {
	byPath := make(map[string]Topic, len(topics))
	for broker, topic := range topics {
		byPath["/"+broker] = topic
	}
	h.topics.Store(&byPath)
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == BrokersPath && r.Method == http.MethodGet {
		h.list(w)
		return
	}
	start := time.Now()
	topic := (*h.topics.Load())[r.URL.Path]
	err := h.serve(r, topic)
	code := http.StatusAccepted
	if err != nil {
		code = h.refuse(w, r, err)
	} else {
		w.WriteHeader(code)
	}
	broker := ""
	if topic != nil {
		broker = r.URL.Path[1:] // else anybody could make a time series by asking for it
	}
	h.metrics.observe(broker, code, time.Since(start))
}

// list answers with the Brokers that are served.
func (h *Handler) list(w http.ResponseWriter) {
	brokers := map[string]string{}
	for path, topic := range *h.topics.Load() {
		brokers[path[1:]] = topic.ID()
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, FormatBrokers(brokers)) // whoever asked is gone if it fails
}

// serve takes one request from its first header to the confirmation of its last event.
func (h *Handler) serve(r *http.Request, topic Topic) error {
	switch {
	case topic == nil:
		return refusal{http.StatusNotFound, fmt.Errorf("no Broker at %.200q: the path is /<namespace>/<broker>", r.URL.Path)}
	case r.Method != http.MethodPost:
		return refusal{http.StatusMethodNotAllowed, errors.New("events are sent by POST")}
	}

	size, err := h.admit(r)
	defer h.release(size)
	if err != nil {
		return err
	}
	body, err := h.read(r)
	if err != nil {
		return err
	}
	messages, err := decode(r.Header, body)
	if err != nil {
		return refusal{http.StatusBadRequest, err}
	}
	return publish(r.Context(), topic, messages)
}

// admit counts a request, and the bytes it may have, against the limits. They are released in any case.
func (h *Handler) admit(r *http.Request) (size int64, err error) {
	size = r.ContentLength
	if size < 0 || size > h.limits.MaxBodyBytes {
		size = h.limits.MaxBodyBytes // as much as will be read
	}
	requests, total := h.inFlight.Add(1), h.inFlightBytes.Add(size)
	switch {
	case requests > h.limits.MaxInFlight:
		return size, refusal{http.StatusTooManyRequests, fmt.Errorf("more than %d requests wait for Pub/Sub", h.limits.MaxInFlight)}
	case total > h.limits.MaxInFlightBytes:
		return size, refusal{http.StatusTooManyRequests, fmt.Errorf("more than %d bytes wait for Pub/Sub", h.limits.MaxInFlightBytes)}
	}
	return size, nil
}

func (h *Handler) release(size int64) {
	h.inFlight.Add(-1)
	h.inFlightBytes.Add(-size)
}

func (h *Handler) read(r *http.Request) ([]byte, error) {
	limit := h.limits.MaxBodyBytes
	tooLarge := refusal{http.StatusRequestEntityTooLarge, fmt.Errorf("more than %d bytes", limit)}
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	var body []byte
	var err error
	if r.ContentLength >= 0 {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, body)
	} else {
		body, err = io.ReadAll(io.LimitReader(r.Body, limit+1))
	}
	switch {
	case err != nil:
		return nil, refusal{http.StatusBadRequest, fmt.Errorf("read the body: %w", err)}
	case int64(len(body)) > limit:
		return nil, tooLarge
	}
	return body, nil
}

// publish hands all messages to the client, which bundles them with those of other requests, and waits for all.
func publish(ctx context.Context, topic Topic, messages []*pubsub.Message) error {
	if len(messages) == 1 {
		_, err := topic.Publish(ctx, messages[0]).Get(ctx)
		return err
	}
	results := make([]Result, len(messages))
	for i, message := range messages {
		results[i] = topic.Publish(ctx, message)
	}
	var errs []error
	for _, result := range results {
		if _, err := result.Get(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d events were not published: %w", len(errs), len(messages), errs[0])
	}
	return nil
}

// refusal is an error with its HTTP status.
type refusal struct {
	code int
	err  error
}

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

// statusOf is the answer to an error: that of a refusal, or else what the failure of a publish means for the sender.
func statusOf(err error) int {
	if r, ok := errors.AsType[refusal](err); ok {
		return r.code
	}
	if errors.Is(err, pubsub.ErrOversizedMessage) {
		return http.StatusRequestEntityTooLarge
	}
	switch status.Code(rootOf(err)) {
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	default:
		// A topic that is missing or forbidden too: that is for the operator to mend, and the event is none the worse for it.
		return http.StatusServiceUnavailable
	}
}

// rootOf finds the error that carries a gRPC status.
func rootOf(err error) error {
	if s, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		return s
	}
	return err
}

// refuse answers with what is wrong and returns the status.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) int {
	code := statusOf(err)
	switch code {
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", retryAfter)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", retryAfter)
		if r.Context().Err() == nil { // a sender that went away is no failure of ours
			h.log.ErrorContext(r.Context(), "events not published", "path", r.URL.Path, "error", err)
		}
	}
	http.Error(w, err.Error(), code)
	return code
}

// metrics count the answers.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer, inFlight *atomic.Int64) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "robofleet_broker_ingress_requests_total",
			Help: "Requests answered, by Broker (namespace/name) and HTTP status. 202 says that Pub/Sub has confirmed the events.",
		}, []string{"broker", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "robofleet_broker_ingress_request_seconds",
			Help:    "Time from the arrival of a request to its answer, the confirmation of Pub/Sub included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"broker"}),
	}
	gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "robofleet_broker_ingress_in_flight_requests",
		Help: "Requests that wait for Pub/Sub.",
	}, func() float64 { return float64(inFlight.Load()) })
	for _, collector := range []prometheus.Collector{m.requests, m.seconds, gauge} {
		if err := reg.Register(collector); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) observe(broker string, code int, took time.Duration) {
	m.requests.WithLabelValues(broker, strconv.Itoa(code)).Inc()
	m.seconds.WithLabelValues(broker).Observe(took.Seconds())
}
