package conformance_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/eventing/ingress"
	"github.com/robofleet/robofleet/eventing/plan"
)

// codeOf reads the status that a delivery's path asks for.
func codeOf(d delivery) int {
	code, err := strconv.Atoi(strings.TrimPrefix(d.path, "/"))
	if err != nil {
		return http.StatusNotFound
	}
	return code
}

// finally answers with a status as the final one, which net/http does not do for 1xx.
func finally(w http.ResponseWriter, code int) {
	if code >= http.StatusOK {
		w.WriteHeader(code)
		return
	}
	cut(w, func(conn net.Conn) { _, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\n\r\n", code, http.StatusText(code)) })
}

// cut ends a connection, after last words if there are any.
func cut(w http.ResponseWriter, last func(net.Conn)) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if last != nil {
		last(conn)
	}
	_ = conn.Close()
}

// perCode makes a Trigger for each status, with a path of its own.
func perCode(sub *subscriber, codes []int) []string {
	manifests := []string{broker("b")}
	for _, code := range codes {
		manifests = append(manifests, trigger(triggerOf(code), "b", fmt.Sprintf("%s/%d", sub.url, code)))
	}
	return manifests
}

func triggerOf(code int) string { return "t" + strconv.Itoa(code) }

func TestSuccessEndsTheDelivery(t *testing.T) {
	t.Parallel()
	codes := []int{102, 200, 201, 202, 204}
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, d delivery, _ int) { finally(w, codeOf(d)) })
	p := s.apply(perCode(sub, codes)...)
	s.send("b", binary("1"), nil)
	for _, code := range codes {
		if stats := s.settled(p, triggerOf(code)); stats.Delivered != 1 || stats.Acked != 1 || stats.Nacked != 0 {
			t.Errorf("%d: %+v, want delivered once and acked", code, stats)
		}
	}
	if n := len(sub.deliveries()); n != len(codes) {
		t.Errorf("%d deliveries, want %d", n, len(codes))
	}
}

func TestEveryOtherAnswerIsRetried(t *testing.T) {
	t.Parallel()
	codes := []int{
		203, 205, 206, 207, 299, // Knative takes any 2xx for success
		300, 301, 302, 304, 307, 308, // and no redirect is followed
		400, 401, 403, 405, 410, 413, 415, 422, // that Knative does not retry
		404, 408, 409, 429, 500, 501, 502, 503, 504, 599, // that Knative retries too
	}
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, d delivery, nth int) {
		if nth > 1 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Location", "/elsewhere")
		finally(w, codeOf(d))
	})
	p := s.apply(perCode(sub, codes)...)
	s.send("b", binary("1"), []byte("x"))
	for _, code := range codes {
		if stats := s.settled(p, triggerOf(code)); stats.Delivered != 2 || stats.Acked != 1 || stats.Nacked != 1 {
			t.Errorf("%d: %+v, want delivered again and acked", code, stats)
		}
	}
	for _, d := range sub.deliveries() {
		if d.path == "/elsewhere" {
			t.Error("a redirect was followed")
		}
	}
}

func TestALostConnectionIsRetried(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, _ delivery, nth int) {
		if nth == 1 {
			cut(w, nil)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	p := s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("1"), nil)
	if stats := s.settled(p, "t"); stats.Delivered != 2 {
		t.Errorf("%+v, want delivered twice", stats)
	}
}

// impatient gives up on a push long before its deadline, and notes how long it had.
type impatient struct {
	mu   sync.Mutex
	left []time.Duration
}

func (i *impatient) RoundTrip(r *http.Request) (*http.Response, error) {
	deadline, _ := r.Context().Deadline()
	i.mu.Lock()
	i.left = append(i.left, time.Until(deadline))
	i.mu.Unlock()
	ctx, cancel := context.WithDeadline(r.Context(), deadline.Add(-timeout+200*time.Millisecond))
	defer cancel()
	return http.DefaultTransport.RoundTrip(r.WithContext(ctx))
}

// timeout is another than Pub/Sub's default, 10 s.
const timeout = 100 * time.Second

func TestNoAnswerInTimeIsRetried(t *testing.T) {
	t.Parallel()
	transport := &impatient{}
	s := startWith(t, ingress.Publishing{Delay: time.Millisecond, Timeout: patience}, transport)
	sub := s.subscribe(func(w http.ResponseWriter, d delivery, nth int) {
		if nth == 1 {
			<-d.ctx.Done() // until the sender gives up
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	p := s.apply(broker("b"), trigger("t", "b", sub.url, "delivery: {timeout: PT100S}"))
	s.send("b", binary("1"), nil)
	if stats := s.settled(p, "t"); stats.Nacked == 0 || stats.Acked != 1 {
		t.Errorf("%+v, want delivered again after the timeout", stats)
	}
	transport.mu.Lock()
	defer transport.mu.Unlock()
	for _, left := range transport.left {
		if left > timeout || left < timeout/2 {
			t.Errorf("a push had %v to be answered, want the timeout of the Trigger, %v", left, timeout)
		}
	}
}

// TestRetriesBackOff asserts lower bounds only: an attempt may always be late, and never early.
func TestRetriesBackOff(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(statuses(500, 503, 429))
	p := s.apply(broker("b"), trigger("t", "b", sub.url, "delivery: {backoffPolicy: exponential, backoffDelay: PT0.3S}"))
	s.send("b", binary("1"), nil)
	s.settled(p, "t")
	got := sub.deliveries()
	if len(got) != 4 {
		t.Fatalf("%d attempts, want 4", len(got))
	}
	for i, want := range []time.Duration{300 * time.Millisecond, 600 * time.Millisecond, 1200 * time.Millisecond} {
		if gap := got[i+1].at.Sub(got[i].at); gap < want {
			t.Errorf("attempt %d came after %v, want %v or more", i+2, gap, want)
		}
	}
}

func TestWithoutADeliverySpecAnEventIsRetriedUntilItIsTaken(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(statuses(500, 500, 500, 500))
	p := s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("1"), nil)
	if stats := s.settled(p, "t"); stats.Delivered != 5 || stats.Acked != 1 {
		t.Errorf("%+v, want 4 failures and then an ack", stats)
	}
	if got := subscriptionOf(t, p, "t"); got.DeadLetter != nil || got.Backoff != nil {
		t.Errorf("the plan has a delivery spec that nobody wrote: %+v", got)
	}
}

const deadLetters = "deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: dead}}"

func TestTheDeadLetterSinkGetsWhatFailsWithItsAttributes(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, d delivery, _ int) {
		if d.id() == "bad" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	dead := s.subscribe(nil)
	p := s.apply(broker("b"), broker("dead"),
		trigger("t", "b", sub.url, "delivery: {retry: 4, "+deadLetters+"}"), trigger("letters", "dead", dead.url))
	sent := binary("bad", "Ce-Subject", "Zürich", "Ce-Myext", "x", "Ce-Time", "2026-11-01T12:00:00+01:00", "Content-Type", "application/octet-stream")
	s.send("b", sent, everyByte())
	s.send("b", binary("good"), nil)

	letter := s.next(dead, 1)
	if diff := cmp.Diff(sent, letter.event()); diff != "" || string(letter.body) != string(everyByte()) {
		t.Errorf("the dead letter has %d bytes and (-want +got):\n%s", len(letter.body), diff)
	}
	letter.parse(t)
	for name, want := range map[string]string{
		"CloudPubSubDeadLetterSourceDeliveryCount": "5",
		"CloudPubSubDeadLetterSourceSubscription":  subscriptionOf(t, p, "t").Name,
	} {
		if got := letter.header.Get(name); got != want {
			t.Errorf("%s %q, want %q", name, got, want)
		}
	}
	if stats := s.settled(p, "t"); stats.DeadLettered != 1 || stats.Acked != 1 {
		t.Errorf("%+v, want one acked and one dead letter", stats)
	}
	s.settled(p, "letters")
	if diff := cmp.Diff(map[string]int{"bad": 5, "good": 1}, sub.ids()); diff != "" {
		t.Errorf("attempts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"bad": 1}, dead.ids()); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
}

func TestAnEventThatSucceedsAtTheLastAttemptIsNoDeadLetter(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(statuses(500, 500, 500, 500))
	p := s.apply(broker("b"), broker("dead"), trigger("t", "b", sub.url, "delivery: {retry: 4, "+deadLetters+"}"))
	s.send("b", binary("1"), nil)
	if stats := s.settled(p, "t"); stats.Delivered != 5 || stats.Acked != 1 || stats.DeadLettered != 0 || s.published("dead") != 0 {
		t.Errorf("%+v, want an ack at the fifth attempt", stats)
	}
}

func TestTheDeliverySpecOfATriggerReplacesThatOfItsBroker(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, _ delivery, _ int) { w.WriteHeader(http.StatusInternalServerError) })
	ofBroker, ofTrigger := s.subscribe(nil), s.subscribe(nil)
	sink := func(name string) string {
		return "deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: " + name + "}}"
	}
	p := s.apply(
		broker("b", "delivery: {retry: 4, "+sink("d1")+"}"), broker("d1"), broker("d2"),
		trigger("inherits", "b", sub.url+"/inherits"),
		trigger("replaces", "b", sub.url+"/replaces", "delivery: {retry: 5, "+sink("d2")+"}"),
		trigger("l1", "d1", ofBroker.url), trigger("l2", "d2", ofTrigger.url))
	s.send("b", binary("1"), nil)
	s.settled(p, "inherits")
	s.settled(p, "replaces")
	attempts := map[string]int{}
	for _, d := range sub.deliveries() {
		attempts[d.path]++
	}
	if diff := cmp.Diff(map[string]int{"/inherits": 5, "/replaces": 6}, attempts); diff != "" {
		t.Errorf("attempts (-want +got):\n%s", diff)
	}
	s.next(ofBroker, 1)
	s.next(ofTrigger, 1)
	s.settled(p, "l1")
	s.settled(p, "l2")
	if len(ofBroker.deliveries()) != 1 || len(ofTrigger.deliveries()) != 1 {
		t.Errorf("%d and %d dead letters, want one in each sink", len(ofBroker.deliveries()), len(ofTrigger.deliveries()))
	}
}

func TestDeadLettersThatNobodyTakesAreKept(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, _ delivery, _ int) { w.WriteHeader(http.StatusInternalServerError) })
	manifests := []string{broker("b"), broker("dead"), trigger("t", "b", sub.url, "delivery: {retry: 4, "+deadLetters+"}")}
	p := s.apply(manifests...)
	s.send("b", binary("1"), nil)
	s.settled(p, "t")
	late := s.subscribe(nil)
	s.apply(append(manifests, trigger("letters", "dead", late.url))...)
	if id := s.next(late, 1).id(); id != "1" {
		t.Errorf("the first Trigger of the dead-letter Broker got %q, want the event that failed before it came", id)
	}
}

func TestWhatPubSubCannotDeliverIsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	const address = "https://example.com"
	tests := []struct {
		name   string
		spec   string
		reason plan.Reason
	}{
		{"fewer than 4 retries", "delivery: {retry: 3, " + deadLetters + "}", plan.ReasonRetry},
		{"more than 99 retries", "delivery: {retry: 100, " + deadLetters + "}", plan.ReasonRetry},
		{"retries without a dead-letter sink", "delivery: {retry: 5}", plan.ReasonRetryWithoutSink},
		{"a dead-letter sink that is an address", "delivery: {retry: 5, deadLetterSink: {uri: '" + address + "'}}", plan.ReasonDeadLetterSink},
		{"dead letters to the Broker they come from", "delivery: {retry: 5, deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: b}}}", plan.ReasonDeadLetterLoop},
		{"linear backoff", "delivery: {backoffPolicy: linear, backoffDelay: PT1S}", plan.ReasonBackoffPolicy},
		{"a backoff over 10 minutes", "delivery: {backoffPolicy: exponential, backoffDelay: PT11M}", plan.ReasonBackoff},
		{"a timeout below 10 s", "delivery: {timeout: PT1S}", plan.ReasonTimeout},
		{"Retry-After", "delivery: {retryAfterMax: PT10S}", plan.ReasonRetryAfter},
		{"structured mode", "delivery: {format: json}", plan.ReasonFormat},
		{"the filter suffix", "filters: [{suffix: {type: x}}]", plan.ReasonFilterDialect},
		{"the filter cesql", "filters: [{cesql: \"type = 'x'\"}]", plan.ReasonFilterDialect},
		{"a filter on the time", "filters: [{exact: {time: '2026-11-01T12:00:00Z'}}]", plan.ReasonFilterAttribute},
		{"a filter over 256 bytes", "filters: [{prefix: {type: " + strings.Repeat("x", 300) + "}}]", plan.ReasonFilterTooLong},
		{"a Broker of another namespace", "brokerRef: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: b, namespace: other}", plan.ReasonCrossNamespace},
	}
	s := start(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := s.plan(broker("b"), broker("dead"), trigger("bad", "b", address, test.spec), trigger("good", "b", address))
			if len(p.Problems) != 1 || p.Problems[0].Name != "bad" || p.Problems[0].Reason != test.reason || p.Problems[0].Message == "" {
				t.Errorf("problems %+v, want Trigger bad alone, with %s", p.Problems, test.reason)
			}
			if len(p.Subscriptions) != 1 {
				t.Errorf("%d subscriptions, want that of Trigger good", len(p.Subscriptions))
			}
		})
	}
}
