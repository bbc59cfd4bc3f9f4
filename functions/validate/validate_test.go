package validate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/robofleet/robofleet/functions/validate"
	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/telemetry"
)

var published = time.Date(2026, 11, 23, 11, 19, 4, 0, time.UTC)

// reading returns the JSON of a good reading, as robots spell it: with spaces, and numbers that need not be canonical.
func reading(robot string, seq int) string {
	return fmt.Sprintf(`{"robot_id": %q, "boot_id": "b1", "seq": %d, "time": "2026-11-23T11:19:03.250Z",`+
		` "position": {"lat_deg": 52.520, "lon_deg": 13.4e0, "heading_deg": 90, "speed_mps": 1.5, "accuracy_m": 2},`+
		` "battery": {"percent": 81.5, "charging": false}, "status": "delivering", "payload_kg": 3.20}`, robot, seq)
}

// recorder is a Sink that keeps what it is sent.
type recorder struct {
	answer func() error // what Emit returns; nil is success

	mu     sync.Mutex
	events []emitted
}

type emitted struct {
	Type string
	Data []byte
}

func (r *recorder) Emit(_ context.Context, eventType string, data []byte) error {
	if r.answer != nil {
		if err := r.answer(); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, emitted{eventType, append([]byte(nil), data...)})
	return nil
}

func (r *recorder) batches() []emitted {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]emitted(nil), r.events...)
}

// inner returns the events in all batches of a type, as the CloudEvents SDK understands them.
func (r *recorder) inner(t testing.TB, eventType string) []cloudevents.Event {
	t.Helper()
	var all []cloudevents.Event
	for _, b := range r.batches() {
		if b.Type != eventType {
			continue
		}
		var events []cloudevents.Event
		if err := json.Unmarshal(b.Data, &events); err != nil {
			t.Fatalf("batch is no JSON array of CloudEvents: %v\n%s", err, b.Data)
		}
		for _, e := range events {
			if err := e.Validate(); err != nil {
				t.Errorf("event %q in a batch of %s: %v", e.ID(), eventType, err)
			}
		}
		all = append(all, events...)
	}
	return all
}

func (r *recorder) rejections(t testing.TB) []telemetry.Rejection {
	t.Helper()
	var all []telemetry.Rejection
	for _, e := range r.inner(t, event.TypeTelemetryRejected) {
		var rejection telemetry.Rejection
		if err := e.DataAs(&rejection); err != nil {
			t.Fatalf("rejection %q: %v", e.ID(), err)
		}
		all = append(all, rejection)
	}
	return all
}

func quick() validate.Config {
	cfg := validate.DefaultConfig()
	cfg.Readings.MaxWait, cfg.Rejections.MaxWait = time.Millisecond, time.Millisecond
	return cfg
}

func newValidator(t testing.TB, cfg validate.Config, sink *recorder) *validate.Validator {
	t.Helper()
	v, err := validate.New(cfg, sink, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// serve returns the address of the stage, behind the HTTP handler that it has in production.
func serve(t testing.TB, v *validate.Validator, limits function.Limits) string {
	t.Helper()
	h, err := function.NewHandler(v.Handle, limits, nil, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

var limits = function.Limits{MaxBodyBytes: 1 << 20, MaxInFlight: 1000, MaxInFlightBytes: 64 << 20}

// pushed are the headers of a push without wrapping.
func pushed(attributes map[string]string) http.Header {
	h := http.Header{
		"X-Goog-Pubsub-Message-Id":        {"m-1"},
		"X-Goog-Pubsub-Subscription-Name": {"projects/p/subscriptions/s"},
		"X-Goog-Pubsub-Publish-Time":      {published.Format(time.RFC3339Nano)},
	}
	for name, value := range attributes {
		h.Set(name, value)
	}
	return h
}

var fromRobot = map[string]string{
	"ce-specversion": "1.0", "ce-id": "anything", "ce-type": event.TypeTelemetry, "ce-source": "//robofleet.dev/robots/R-1",
	"content-type": "application/json", "ce-traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}

func post(t testing.TB, url string, header http.Header, body string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestGoodReadingLeavesAsValidatedEvent(t *testing.T) {
	sink := &recorder{}
	url := serve(t, newValidator(t, quick(), sink), limits)
	body := reading("R-1", 7)
	if status, answer := post(t, url, pushed(fromRobot), body); status != http.StatusNoContent {
		t.Fatalf("answer %d %s, want 204", status, answer)
	}
	events := sink.inner(t, event.TypeTelemetryValidated)
	if len(events) != 1 {
		t.Fatalf("%d events left, want 1", len(events))
	}
	e := events[0]
	got := map[string]any{
		"id": e.ID(), "source": e.Source(), "type": e.Type(), "time": e.Time(), "datacontenttype": e.DataContentType(),
		"data": string(e.Data()), "extensions": e.Extensions(),
	}
	want := map[string]any{
		"id": "R-1/b1/7", "source": "//robofleet.dev/robots/R-1", "type": event.TypeTelemetry,
		"time": time.Date(2026, 11, 23, 11, 19, 3, 250e6, time.UTC), "datacontenttype": "application/json",
		"data": body,
		"extensions": map[string]any{
			"partitionkey": "R-1", "publishtime": "2026-11-23T11:19:04Z",
			"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

func TestEveryShapeOfMessageIsTaken(t *testing.T) {
	body := reading("R-1", 1)
	wrapped, err := json.Marshal(map[string]any{
		"message":      map[string]any{"data": []byte(body), "messageId": "m-1", "publishTime": published},
		"subscription": "projects/p/subscriptions/s",
	})
	if err != nil {
		t.Fatal(err)
	}
	structured := `{"specversion":"1.0","id":"x","type":"` + event.TypeTelemetry + `","source":"//r","data":` + body + `}`
	now := strings.Replace(body, "2026-11-23T11:19:03.250Z", time.Now().UTC().Format(time.RFC3339), 1) // judged by the time of arrival
	for _, tt := range []struct {
		name   string
		header http.Header
		body   string
	}{
		{"binary CloudEvent", pushed(fromRobot), body},
		{"structured CloudEvent", pushed(map[string]string{"content-type": "application/cloudevents+json"}), structured},
		{"plain JSON", pushed(nil), body},
		{"wrapped push", http.Header{"Content-Type": {"application/json"}}, string(wrapped)},
		{"curl", http.Header{"Content-Type": {"application/json"}}, now},
		{"spread over lines", pushed(fromRobot), strings.ReplaceAll(body, ", ", ",\r\n\t")},
		{"a trace context that is none", pushed(map[string]string{"ce-traceparent": `00-","injected":"` + strings.Repeat("0", 39)}), body},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sink := &recorder{}
			url := serve(t, newValidator(t, quick(), sink), limits)
			if status, answer := post(t, url, tt.header, tt.body); status != http.StatusNoContent {
				t.Fatalf("answer %d %s, want 204", status, answer)
			}
			events := sink.inner(t, event.TypeTelemetryValidated)
			if len(events) != 1 || events[0].ID() != "R-1/b1/1" || strings.ContainsAny(string(events[0].Data()), "\r\n") {
				t.Errorf("left: %v, want the reading R-1/b1/1 on one line", events)
			}
			if r := sink.rejections(t); len(r) > 0 {
				t.Errorf("refused: %+v, want nothing", r)
			}
		})
	}
}

func TestArrayIsJudgedReadingByReading(t *testing.T) {
	sink := &recorder{}
	url := serve(t, newValidator(t, quick(), sink), limits)
	bad := `{"robot_id": "R-1"}`
	body := "[" + strings.Join([]string{reading("R-1", 1), bad, reading("R-1", 2), `17`, reading("R-1", 3)}, " ,\n ") + "]"
	if status, answer := post(t, url, pushed(fromRobot), body); status != http.StatusNoContent {
		t.Fatalf("answer %d %s, want 204", status, answer)
	}
	var good []string
	for _, e := range sink.inner(t, event.TypeTelemetryValidated) {
		good = append(good, e.ID())
	}
	if diff := cmp.Diff([]string{"R-1/b1/1", "R-1/b1/2", "R-1/b1/3"}, good); diff != "" {
		t.Errorf("good readings (-want +got):\n%s", diff)
	}
	type refused struct{ ID, Body string }
	var got []refused
	rejections := sink.rejections(t)
	for i, e := range sink.inner(t, event.TypeTelemetryRejected) {
		got = append(got, refused{e.ID(), string(rejections[i].Body)})
	}
	if diff := cmp.Diff([]refused{{"m-1#0", bad}, {"m-1#1", "17"}}, got); diff != "" {
		t.Errorf("refused readings (-want +got):\n%s", diff)
	}
}

func TestBadReadingIsQuarantinedWithReasonBytesAndAttributes(t *testing.T) {
	good := reading("R-1", 1)
	set := func(old, replacement string) string { return strings.Replace(good, old, replacement, 1) }
	for _, tt := range []struct {
		name string
		body string
		want telemetry.Reason
	}{
		{"not JSON", `{"robot_id"`, telemetry.ReasonMalformed},
		{"not UTF-8", "\xff\xfe\x00binary", telemetry.ReasonMalformed},
		{"empty", "", telemetry.ReasonMalformed},
		{"empty array", " [ ] ", telemetry.ReasonMalformed},
		{"array that breaks off", "[" + good + ",", telemetry.ReasonMalformed},
		{"wrong type", set(`"seq": 1`, `"seq": "1"`), telemetry.ReasonWrongType},
		{"missing field", set(`"boot_id": "b1", `, ""), telemetry.ReasonMissingField},
		{"out of range", set(`52.520`, `91`), telemetry.ReasonOutOfRange},
		{"too old", set("2026-11-23", "2026-10-01"), telemetry.ReasonTooOld},
		{"in the future", set("T11:", "T13:"), telemetry.ReasonInFuture},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sink := &recorder{}
			url := serve(t, newValidator(t, quick(), sink), limits)
			if status, answer := post(t, url, pushed(fromRobot), tt.body); status != http.StatusNoContent {
				t.Fatalf("answer %d %s, want 204: a nack would bring the same bytes again", status, answer)
			}
			got := sink.rejections(t)
			if len(got) != 1 {
				t.Fatalf("%d rejections, want 1", len(got))
			}
			if got[0].Message == "" {
				t.Error("no message for a person")
			}
			want := telemetry.Rejection{Reason: tt.want, Message: got[0].Message, Body: []byte(tt.body), Attributes: fromRobot}
			if diff := cmp.Diff(want, got[0], cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("rejection (-want +got):\n%s", diff)
			}
			e := sink.inner(t, event.TypeTelemetryRejected)[0]
			if e.ID() != "m-1" || e.Source() != validate.Source || e.Extensions()["reason"] != string(tt.want) {
				t.Errorf("event %s, want id m-1, source %s, reason %s", e, validate.Source, tt.want)
			}
			if len(sink.inner(t, event.TypeTelemetryValidated)) > 0 {
				t.Error("something was passed on as good")
			}
		})
	}
}

func TestBodyOverTheLimitIsKeptUpToIt(t *testing.T) {
	sink := &recorder{}
	small := limits
	small.MaxBodyBytes = 100
	url := serve(t, newValidator(t, quick(), sink), small)
	body := reading("R-1", 1)
	if status, answer := post(t, url, pushed(fromRobot), body); status != http.StatusNoContent {
		t.Fatalf("answer %d %s, want 204", status, answer)
	}
	got := sink.rejections(t)
	want := []telemetry.Rejection{{
		Reason: telemetry.ReasonBodyTooLarge, Message: "found more than 100 bytes, which is all that is kept",
		Body: []byte(body[:100]), Truncated: true, Size: int64(len(body)), Attributes: fromRobot,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rejections (-want +got):\n%s", diff)
	}
}

func TestManyRefusedReadingsStayBounded(t *testing.T) {
	sink := &recorder{}
	url := serve(t, newValidator(t, quick(), sink), limits)
	attributes := map[string]string{"site": strings.Repeat("x", 1024), "note": strings.Repeat("y", 1024)}
	body := "[" + strings.Repeat("0,", telemetry.MaxReadings-1) + "0]"
	if status, answer := post(t, url, pushed(attributes), body); status != http.StatusNoContent {
		t.Fatalf("answer %d %s, want 204", status, answer)
	}
	rejections := sink.rejections(t)
	if len(rejections) != telemetry.MaxReadings {
		t.Fatalf("%d rejections, want %d", len(rejections), telemetry.MaxReadings)
	}
	if len(rejections[0].Attributes) != 2 || rejections[1].Attributes != nil {
		t.Error("large attributes: want them with the first rejection only")
	}
	total := 0
	for _, b := range sink.batches() {
		total += len(b.Data)
		if len(b.Data) > 9<<20 {
			t.Errorf("an event of %d bytes, more than Pub/Sub takes", len(b.Data))
		}
	}
	if limit := 8 << 20; total > limit {
		t.Errorf("%d bytes made of a message of %d, want at most %d", total, len(body), limit)
	}
}

func TestLargeArrayLeavesInEventsThatPubSubTakes(t *testing.T) {
	sink := &recorder{}
	large := limits
	large.MaxBodyBytes = 10 << 20
	url := serve(t, newValidator(t, quick(), sink), large)
	var readings []string
	for i := range telemetry.MaxReadings {
		readings = append(readings, reading("R-1", i+1))
	}
	if status, answer := post(t, url, pushed(fromRobot), "["+strings.Join(readings, ",")+"]"); status != http.StatusNoContent {
		t.Fatalf("answer %d %s, want 204", status, answer)
	}
	if got := len(sink.inner(t, event.TypeTelemetryValidated)); got != len(readings) {
		t.Errorf("%d readings left, want %d", got, len(readings))
	}
	for _, b := range sink.batches() {
		if len(b.Data) > 9<<20 {
			t.Errorf("an event of %d bytes, more than Pub/Sub takes", len(b.Data))
		}
	}
}

// delivered is the context of a handler that Pub/Sub called.
func delivered(ctx context.Context) context.Context {
	return function.WithDelivery(ctx, &function.Delivery{MessageID: "m-1", PublishTime: published})
}

func message(body string) cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetID("anything")
	e.SetType(event.TypeTelemetry)
	e.SetSource("//robofleet.dev/robots/R-1")
	e.DataEncoded = []byte(body)
	return e
}

func TestAckOnlyAfterSinkAnswered(t *testing.T) {
	for name, body := range map[string]string{"good": reading("R-1", 1), "bad": "{}"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan error)
				v := newValidator(t, validate.DefaultConfig(), &recorder{answer: func() error { return <-release }})
				done := make(chan error, 1)
				go func() { done <- v.Handle(delivered(t.Context()), message(body)) }()
				time.Sleep(time.Second) // of the bubble's clock: longer than any wait for company
				synctest.Wait()
				select {
				case err := <-done:
					t.Fatalf("Handle returned %v before the sink answered", err)
				default:
				}
				release <- nil
				if err := <-done; err != nil {
					t.Errorf("Handle = %v after the sink answered, want nil", err)
				}
			})
		})
	}
}

func TestSinkFailureIsTransient(t *testing.T) {
	for name, err := range map[string]error{
		"no connection":                   errors.New("connection refused"),
		"sink finds fault with the batch": function.WithKind(function.Permanent, errors.New("400 Bad Request")),
	} {
		for kind, body := range map[string]string{"good": reading("R-1", 1), "bad": "{}"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				v := newValidator(t, quick(), &recorder{answer: func() error { return err }})
				got := v.Handle(delivered(t.Context()), message(body))
				if !errors.Is(got, err) || function.KindOf(got) != function.Transient {
					t.Errorf("Handle = %v of kind %v, want %v of kind %v", got, function.KindOf(got), err, function.Transient)
				}
			})
		}
	}
}

func TestFullBatcherIsOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		cfg := quick()
		cfg.Readings.MaxPending = 1
		v := newValidator(t, cfg, &recorder{answer: func() error { <-release; return nil }})
		first := make(chan error, 1)
		go func() { first <- v.Handle(delivered(t.Context()), message(reading("R-1", 1))) }()
		synctest.Wait()
		if err := v.Handle(delivered(t.Context()), message(reading("R-1", 2))); function.KindOf(err) != function.Overloaded {
			t.Errorf("Handle over the bound = %v, want an error of kind Overloaded", err)
		}
		close(release)
		if err := <-first; err != nil {
			t.Errorf("Handle of what was taken on = %v, want nil", err)
		}
	})
}

func TestConcurrentMessagesShareAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &recorder{}
		v := newValidator(t, validate.DefaultConfig(), sink)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := v.Handle(delivered(t.Context()), message(reading("R-1", i+1))); err != nil {
					t.Errorf("Handle: %v", err)
				}
			})
		}
		wg.Wait()
		if batches, readings := len(sink.batches()), len(sink.inner(t, event.TypeTelemetryValidated)); batches != 1 || readings != 100 {
			t.Errorf("%d events with %d readings, want 1 with 100", batches, readings)
		}
	})
}

func TestFlushEndsWaitingForCompany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := validate.DefaultConfig()
		cfg.Readings.MaxWait, cfg.Rejections.MaxWait = 24*time.Hour, 24*time.Hour
		v := newValidator(t, cfg, &recorder{})
		start := time.Now()
		var wg sync.WaitGroup
		for _, body := range []string{reading("R-1", 1), "{}"} {
			wg.Go(func() {
				if err := v.Handle(delivered(t.Context()), message(body)); err != nil {
					t.Errorf("Handle: %v", err)
				}
			})
		}
		synctest.Wait()
		v.Flush()
		wg.Wait()
		if waited := time.Since(start); waited > 0 {
			t.Errorf("answered %v after Flush, want at once", waited)
		}
	})
}

func TestBadBodyFromCurlIsAnsweredNotQuarantined(t *testing.T) {
	sink := &recorder{}
	url := serve(t, newValidator(t, quick(), sink), limits)
	status, answer := post(t, url, http.Header{"Content-Type": {"application/json"}}, `{"robot_id": 7}`)
	if status != http.StatusBadRequest || !strings.Contains(answer, "robot_id") {
		t.Errorf("answer %d %q, want 400 and the field", status, answer)
	}
	if len(sink.batches()) > 0 {
		t.Errorf("left: %v, want nothing", sink.batches())
	}
}

func TestNewNamesTheLimitThatIsWrong(t *testing.T) {
	cfg := validate.DefaultConfig()
	cfg.Rejections.MaxItems = 0
	if _, err := validate.New(cfg, &recorder{}, prometheus.NewRegistry()); err == nil || !strings.Contains(err.Error(), "MAX_ITEMS") {
		t.Errorf("New = %v, want an error that names MAX_ITEMS", err)
	}
}

// FuzzHandle holds that every body is acknowledged, and that all it leaves are sound CloudEvents, at least one.
func FuzzHandle(f *testing.F) {
	f.Add([]byte(reading("R-1", 1)), "")
	f.Add([]byte("["+reading("R-1", 1)+",{},\n"+reading("R-2", 2)+"]"), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add([]byte("[]"), `00-","injected":"`+strings.Repeat("0", 39))
	f.Add([]byte{0xff, 0}, "\xff")
	f.Fuzz(func(t *testing.T, body []byte, trace string) {
		sink := &recorder{}
		cfg := quick()
		cfg.Readings.MaxItems, cfg.Rejections.MaxItems = 1, 1 // nothing waits
		v := newValidator(t, cfg, sink)
		e := message(string(body))
		if ec, ok := e.Context.(*cloudevents.EventContextV1); ok {
			ec.Extensions = map[string]any{event.ExtTraceParent: trace}
		}
		if err := v.Handle(delivered(t.Context()), e); err != nil {
			t.Fatalf("Handle: %v", err)
		}
		good, bad := sink.inner(t, event.TypeTelemetryValidated), sink.rejections(t)
		if len(good)+len(bad) == 0 {
			t.Error("acknowledged, and nothing left")
		}
		for _, e := range good {
			var r telemetry.Reading
			if err := telemetry.Decode(e.Data(), &r); err != nil || e.ID() != event.ReadingID(r.RobotID, r.BootID, r.Seq) {
				t.Errorf("passed on as good: id %q, data %s (%v)", e.ID(), e.Data(), err)
			}
		}
	})
}
