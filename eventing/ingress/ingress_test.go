package ingress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// memory is a Topic that keeps what it is given and answers as it is told.
type memory struct {
	mu       sync.Mutex
	messages []*pubsub.Message
	answer   func(ctx context.Context, n int) error // n counts the messages from 1; nil: durable at once
}

type answered struct {
	answer func(context.Context, int) error
	n      int
}

func (a answered) Get(ctx context.Context) (string, error) {
	if a.answer == nil {
		return "1", nil
	}
	return "1", a.answer(ctx, a.n)
}

func (m *memory) ID() string { return "memory" }

func (m *memory) Publish(_ context.Context, message *pubsub.Message) Result {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.messages = append(m.messages, message)
	return answered{m.answer, len(m.messages)}
}

var roomy = Limits{MaxBodyBytes: 1000, MaxInFlight: 10, MaxInFlightBytes: 10_000}

func newHandler(t testing.TB, topic Topic, limits Limits) *Handler {
	t.Helper()
	h, err := NewHandler(map[string]Topic{"robofleet/fleet": topic}, limits, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func binary(extra ...string) http.Header {
	header := http.Header{
		"Content-Type": {"application/json"}, "Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"//robofleet.dev/test"}, "Ce-Type": {"a.v1"},
	}
	for i := 0; i < len(extra); i += 2 {
		header[extra[i]] = append(header[extra[i]], extra[i+1])
	}
	return header
}

func post(h http.Handler, path string, header http.Header, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header = header
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// attributes are those of the event that binary() makes, with more of them.
func attributes(extra ...string) map[string]string {
	m := map[string]string{
		"content-type": "application/json", "ce-specversion": "1.0", "ce-id": "1", "ce-source": "//robofleet.dev/test", "ce-type": "a.v1",
	}
	for i := 0; i < len(extra); i += 2 {
		m[extra[i]] = extra[i+1]
	}
	return m
}

func TestEventsBecomeMessages(t *testing.T) {
	type message struct {
		Data       string
		Attributes map[string]string
	}
	structuredEvent := func(rest string) string {
		return `{"specversion":"1.0","id":"1","source":"//robofleet.dev/test","type":"a.v1"` + rest + `}`
	}
	without := func(key string) map[string]string {
		m := attributes()
		delete(m, key)
		return m
	}
	tests := []struct {
		name string
		// input
		header http.Header
		body   string
		// expectations
		messages []message
	}{
		{"binary mode", binary(), `{"a":1}`, []message{{`{"a":1}`, attributes()}}},
		{"data that is not text", binary(), "\x00\xff", []message{{"\x00\xff", attributes()}}},
		{"no data", binary(), "", []message{{"", attributes()}}},
		{
			"extensions, in lower case, as they are",
			binary("Ce-Partitionkey", "R-1", "Ce-Subject", "a%20b é"), "x",
			[]message{{"x", attributes("ce-partitionkey", "R-1", "ce-subject", "a%20b é")}},
		},
		{
			"headers that are not about the event are dropped",
			binary("Authorization", "Bearer x", "User-Agent", "curl", "Cookie", "a=b"), "x",
			[]message{{"x", attributes()}},
		},
		{
			"structured mode",
			http.Header{"Content-Type": {"application/cloudevents+json; charset=UTF-8"}},
			structuredEvent(`,"datacontenttype":"application/json","partitionkey":"R-1","data":{"a": 1}`),
			[]message{{`{"a": 1}`, attributes("ce-partitionkey", "R-1")}},
		},
		{
			"structured mode with bytes",
			http.Header{"Content-Type": {"Application/CloudEvents+JSON"}},
			structuredEvent(`,"datacontenttype":"image/png","data_base64":"AP8="`),
			[]message{{"\x00\xff", attributes("content-type", "image/png")}},
		},
		{
			"structured mode without the type of the data",
			http.Header{"Content-Type": {"application/cloudevents+json"}}, structuredEvent(`,"data":[1]`),
			[]message{{`[1]`, attributes()}},
		},
		{
			"structured mode without data",
			http.Header{"Content-Type": {"application/cloudevents+json"}}, structuredEvent(""),
			[]message{{"", without("content-type")}},
		},
		{
			"batch mode",
			http.Header{"Content-Type": {"application/cloudevents-batch+json"}},
			"[" + structuredEvent(`,"data":1`) + "," + structuredEvent(`,"data":2`) + "]",
			[]message{{"1", attributes()}, {"2", attributes()}},
		},
		{"an empty batch", http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, "[]", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			topic := &memory{}
			w := post(newHandler(t, topic, roomy), "/robofleet/fleet", test.header, test.body)
			if w.Code != http.StatusAccepted || w.Body.Len() > 0 {
				t.Errorf("answer %d %q, want 202", w.Code, w.Body)
			}
			var got []message
			for _, m := range topic.messages {
				got = append(got, message{string(m.Data), m.Attributes})
			}
			if diff := cmp.Diff(test.messages, got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	many := binary()
	for i := range 100 {
		many[fmt.Sprintf("Ce-X%d", i)] = []string{"x"}
	}
	without := func(name string) http.Header {
		header := binary()
		delete(header, name)
		return header
	}
	structuredType := http.Header{"Content-Type": {"application/cloudevents+json"}}
	tests := []struct {
		name string
		// input
		path   string
		header http.Header
		body   string
		// expectations
		code int
	}{
		{"no such Broker", "/robofleet/nowhere", binary(), "x", http.StatusNotFound},
		{"no such namespace", "/fleet", binary(), "x", http.StatusNotFound},
		{"more path than a Broker has", "/robofleet/fleet/x", binary(), "x", http.StatusNotFound},
		{"no CloudEvent", "/robofleet/fleet", http.Header{"Content-Type": {"application/json"}}, "{}", http.StatusBadRequest},
		{"no id", "/robofleet/fleet", without("Ce-Id"), "x", http.StatusBadRequest},
		{"no source", "/robofleet/fleet", without("Ce-Source"), "x", http.StatusBadRequest},
		{"no type", "/robofleet/fleet", without("Ce-Type"), "x", http.StatusBadRequest},
		{"two ids", "/robofleet/fleet", binary("Ce-Id", "2"), "x", http.StatusBadRequest},
		{"a time that is none", "/robofleet/fleet", binary("Ce-Time", "now"), "x", http.StatusBadRequest},
		{"an attribute name that is none", "/robofleet/fleet", binary("Ce-My-Ext", "x"), "x", http.StatusBadRequest},
		{"too many attributes", "/robofleet/fleet", many, "x", http.StatusBadRequest},
		{"an attribute too long", "/robofleet/fleet", binary("Ce-Subject", strings.Repeat("x", 1025)), "x", http.StatusBadRequest},
		{"an attribute that is not UTF-8", "/robofleet/fleet", binary("Ce-Subject", "\xff"), "x", http.StatusBadRequest},
		{"structured, not JSON", "/robofleet/fleet", structuredType, "x", http.StatusBadRequest},
		{"structured, no event", "/robofleet/fleet", structuredType, "{}", http.StatusBadRequest},
		{"a batch that is not one", "/robofleet/fleet", http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, "{}", http.StatusBadRequest},
		{"a format that is not known", "/robofleet/fleet", http.Header{"Content-Type": {"application/cloudevents+avro"}}, "x", http.StatusBadRequest},
		{"a charset that is not UTF-8", "/robofleet/fleet", http.Header{"Content-Type": {"application/cloudevents+json; charset=latin1"}}, "{}", http.StatusBadRequest},
		{"too large", "/robofleet/fleet", binary(), strings.Repeat("x", 1001), http.StatusRequestEntityTooLarge},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			topic := &memory{}
			w := post(newHandler(t, topic, roomy), test.path, test.header, test.body)
			if w.Code != test.code || w.Body.Len() == 0 {
				t.Errorf("answer %d %q, want %d and why", w.Code, w.Body, test.code)
			}
			if len(topic.messages) > 0 {
				t.Errorf("published %d messages", len(topic.messages))
			}
		})
	}
}

func TestABodyOfUnknownLengthHasTheSameLimit(t *testing.T) {
	for size, code := range map[int]int{1000: http.StatusAccepted, 1001: http.StatusRequestEntityTooLarge} {
		r := httptest.NewRequest(http.MethodPost, "/robofleet/fleet", io.MultiReader(strings.NewReader(strings.Repeat("x", size))))
		r.Header = binary()
		w := httptest.NewRecorder()
		newHandler(t, &memory{}, roomy).ServeHTTP(w, r)
		if w.Code != code {
			t.Errorf("%d bytes: answer %d, want %d", size, w.Code, code)
		}
	}
}

func TestOnlyPost(t *testing.T) {
	w := httptest.NewRecorder()
	newHandler(t, &memory{}, roomy).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/robofleet/fleet", nil))
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != http.MethodPost {
		t.Errorf("answer %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
}

func TestNoAnswerBeforePubSubHasConfirmed(t *testing.T) {
	confirm := make(chan struct{})
	waiting := make(chan struct{})
	topic := &memory{answer: func(context.Context, int) error { close(waiting); <-confirm; return nil }}
	h := newHandler(t, topic, roomy)
	answer := make(chan int, 1)
	go func() { answer <- post(h, "/robofleet/fleet", binary(), "x").Code }()
	<-waiting
	select {
	case code := <-answer:
		t.Fatalf("answered %d before the confirmation", code)
	default:
	}
	close(confirm)
	if code := <-answer; code != http.StatusAccepted {
		t.Errorf("answer %d, want 202", code)
	}
}

func TestFailuresOfPubSub(t *testing.T) {
	tests := []struct {
		name string
		err  error
		code int
	}{
		{"unavailable", status.Error(codes.Unavailable, "x"), http.StatusServiceUnavailable},
		{"no such topic", status.Error(codes.NotFound, "x"), http.StatusServiceUnavailable},
		{"over quota", fmt.Errorf("publish: %w", status.Error(codes.ResourceExhausted, "x")), http.StatusTooManyRequests},
		{"too large with its attributes", pubsub.ErrOversizedMessage, http.StatusRequestEntityTooLarge},
		{"timeout", context.DeadlineExceeded, http.StatusServiceUnavailable},
		{"anything else", errors.New("x"), http.StatusServiceUnavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			topic := &memory{answer: func(context.Context, int) error { return test.err }}
			w := post(newHandler(t, topic, roomy), "/robofleet/fleet", binary(), "x")
			if w.Code != test.code {
				t.Errorf("answer %d, want %d", w.Code, test.code)
			}
			retry := test.code == http.StatusTooManyRequests || test.code == http.StatusServiceUnavailable
			if got := w.Header().Get("Retry-After"); (got != "") != retry {
				t.Errorf("Retry-After %q, want one: %t", got, retry)
			}
		})
	}
}

func TestABatchIsAcceptedOnlyAsAWhole(t *testing.T) {
	topic := &memory{answer: func(_ context.Context, n int) error {
		if n == 2 {
			return status.Error(codes.Unavailable, "x")
		}
		return nil
	}}
	const event = `{"specversion":"1.0","id":"1","source":"s","type":"t"}`
	w := post(newHandler(t, topic, roomy), "/robofleet/fleet", http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, "["+event+","+event+","+event+"]")
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "1 of 3 events") {
		t.Errorf("answer %d %q, want 503 for 1 of 3", w.Code, w.Body)
	}
}

func TestBackPressure(t *testing.T) {
	tests := []struct {
		name   string
		limits Limits
	}{
		{"requests", Limits{MaxBodyBytes: 10, MaxInFlight: 1, MaxInFlightBytes: 1000}},
		{"bytes", Limits{MaxBodyBytes: 10, MaxInFlight: 1000, MaxInFlightBytes: 15}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			confirm := make(chan struct{})
			waiting := make(chan struct{}, 1)
			topic := &memory{answer: func(context.Context, int) error { waiting <- struct{}{}; <-confirm; return nil }}
			h := newHandler(t, topic, test.limits)
			first := make(chan int, 1)
			go func() { first <- post(h, "/robofleet/fleet", binary(), "0123456789").Code }()
			<-waiting
			w := post(h, "/robofleet/fleet", binary(), "0123456789")
			if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
				t.Errorf("answer %d, Retry-After %q, want 429 and one", w.Code, w.Header().Get("Retry-After"))
			}
			close(confirm)
			if code := <-first; code != http.StatusAccepted {
				t.Errorf("the first got %d", code)
			}
			if w := post(h, "/robofleet/fleet", binary(), "0123456789"); w.Code != http.StatusAccepted {
				t.Errorf("answer %d once there is room again", w.Code)
			}
		})
	}
}

func TestUnusableLimitsAreRefused(t *testing.T) {
	for _, limits := range []Limits{{}, {MaxBodyBytes: 10, MaxInFlight: 1, MaxInFlightBytes: 9}} {
		if _, err := NewHandler(nil, limits, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("limits %+v were accepted", limits)
		}
	}
}

func connect(t testing.TB) (*pstest.Server, *pubsub.Client) {
	t.Helper()
	server := pstest.NewServer()
	client, err := pubsub.NewClient(context.Background(), "p", option.WithEndpoint(server.Addr), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	return server, client
}

func TestPublishesThroughTheClient(t *testing.T) {
	server, client := connect(t)
	publishers := NewPublishers(client, Publishing{Delay: time.Millisecond, Timeout: 5 * time.Second})
	topics := publishers.Topics(map[string]string{"robofleet/fleet": "robofleet-events"})
	defer publishers.StopExcept(nil)
	h := newHandler(t, topics["robofleet/fleet"], roomy)
	if w := post(h, "/robofleet/fleet", binary(), "x"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("answer %d where the topic is missing, want 503", w.Code)
	}
	if _, err := server.GServer.CreateTopic(t.Context(), topicOf("robofleet-events")); err != nil {
		t.Fatal(err)
	}
	if w := post(h, "/robofleet/fleet", binary(), "x"); w.Code != http.StatusAccepted {
		t.Fatalf("answer %d %s", w.Code, w.Body)
	}
	messages := server.Messages()
	if len(messages) != 1 {
		t.Fatalf("%d messages", len(messages))
	}
	if diff := cmp.Diff(attributes(), messages[0].Attributes); diff != "" || string(messages[0].Data) != "x" {
		t.Errorf("message %q with attributes (-want +got):\n%s", messages[0].Data, diff)
	}
}

// FuzzDecode holds that whatever is accepted is within the limits of Pub/Sub and a CloudEvent that decodes to itself.
func FuzzDecode(f *testing.F) {
	f.Add("application/json", "1", "2026-11-01T00:00:00Z", []byte(`{}`))
	f.Add("application/cloudevents+json", "", "", []byte(`{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"AA==","time":"2026-11-01T00:00:00Z"}`))
	f.Add("application/cloudevents-batch+json", "", "", []byte(`[{"specversion":"1.0","id":"1","source":"s","type":"t","data":{"a":"b"},"ext":true}]`))
	f.Add("application/cloudevents; charset=x", "", "", []byte(`[]`))
	f.Fuzz(func(t *testing.T, contentType, id, at string, body []byte) {
		header := http.Header{"Content-Type": {contentType}, "Ce-Specversion": {"1.0"}, "Ce-Source": {"s"}, "Ce-Type": {"t"}}
		if id != "" {
			header["Ce-Id"] = []string{id}
		}
		if at != "" {
			header["Ce-Time"] = []string{at}
		}
		messages, err := decode(header, body)
		if err != nil {
			return
		}
		for _, message := range messages {
			again := http.Header{}
			for key, value := range message.Attributes {
				if len(value) > maxAttributeValue {
					t.Errorf("attribute %s of %d bytes", key, len(value))
				}
				again.Set(key, value)
			}
			if strings.HasPrefix(strings.ToLower(message.Attributes["content-type"]), "application/cloudevents") {
				continue // an event whose data is events
			}
			back, err := decode(again, message.Data)
			if err != nil {
				t.Fatalf("%v cannot be decoded again: %v", message.Attributes, err)
			}
			if !bytes.Equal(back[0].Data, message.Data) || !cmp.Equal(back[0].Attributes, message.Attributes) {
				t.Errorf("message %v became %v", message, back[0])
			}
		}
	})
}
