package conformance_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/robofleet/robofleet/eventing/plan"
)

func TestADeletedTriggerGetsNothingMore(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	stays := []string{broker("b"), trigger("stays", "b", sub.url+"/stays")}
	p := s.apply(append(stays, trigger("goes", "b", sub.url+"/goes"))...)
	s.send("b", binary("1"), nil)
	s.settled(p, "stays")
	s.settled(p, "goes")
	p = s.apply(stays...)
	s.send("b", binary("2"), nil)
	s.settled(p, "stays")
	got := map[string]string{}
	for _, d := range sub.deliveries() {
		got[d.path] += d.id()
	}
	if diff := cmp.Diff(map[string]string{"/stays": "12", "/goes": "1"}, got); diff != "" {
		t.Errorf("events by Trigger (-want +got):\n%s", diff)
	}
	if n := len(s.pubsub.Stats().Subscriptions); n != 1 {
		t.Errorf("%d subscriptions are left, want one", n)
	}
}

func TestADeletedTriggerIsNotRetried(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, _ delivery, _ int) { w.WriteHeader(http.StatusServiceUnavailable) })
	s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("1"), nil)
	s.next(sub, 2)
	s.apply(broker("b"))
	if stats := s.pubsub.Stats(); len(stats.Subscriptions) != 0 {
		t.Errorf("subscriptions %v, want none: what is not there retries nothing", stats.Subscriptions)
	}
}

func TestANewTriggerGetsWhatComesFromThenOn(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	s.apply(broker("b"))
	s.send("b", binary("before"), nil)
	p := s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("after"), nil)
	s.settled(p, "t")
	if diff := cmp.Diff(map[string]int{"after": 1}, sub.ids()); diff != "" {
		t.Errorf("deliveries by event (-want +got):\n%s", diff)
	}
}

func TestATriggerBeforeItsBrokerIsRefusedUntilItComes(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	early := trigger("t", "b", sub.url)
	if p := s.plan(early); len(p.Problems) != 1 || p.Problems[0].Reason != plan.ReasonBrokerNotFound {
		t.Fatalf("problems %+v, want that the Broker is missing", p.Problems)
	}
	s.apply(early, broker("b"))
	s.send("b", binary("1"), nil)
	s.next(sub, 1)
}

func TestAnotherSubscriberGetsWhatTheFirstDidNotTake(t *testing.T) {
	t.Parallel()
	s := start(t)
	broken := s.subscribe(func(w http.ResponseWriter, _ delivery, _ int) { w.WriteHeader(http.StatusServiceUnavailable) })
	sub := s.subscribe(nil)
	s.apply(broker("b"), trigger("t", "b", broken.url))
	s.send("b", binary("1"), nil)
	s.next(broken, 1)
	p := s.apply(broker("b"), trigger("t", "b", sub.url))
	s.settled(p, "t")
	if id := s.next(sub, 1).id(); id != "1" {
		t.Errorf("delivered %q, want 1", id)
	}
}

func TestASubscriberIsResolvedByReferenceAndRelativeAddress(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	s.settings.Resolve = func(ref duckv1.KReference) (string, error) {
		if ref.Kind != "Service" || ref.Name != "stage" || ref.Namespace != namespace {
			return "", fmt.Errorf("no %s %s/%s", ref.Kind, ref.Namespace, ref.Name)
		}
		return sub.url, nil
	}
	const reference = `---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: %s, namespace: ns}
spec: {broker: b, subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: stage}, uri: %q}}
`
	p := s.apply(broker("b"), fmt.Sprintf(reference, "root", "/"), fmt.Sprintf(reference, "relative", "/update?x=y"))
	s.send("b", binary("1"), nil)
	s.settled(p, "root")
	s.settled(p, "relative")
	paths := map[string]int{}
	for _, d := range sub.deliveries() {
		paths[d.path]++
	}
	if diff := cmp.Diff(map[string]int{"/": 1, "/update?x=y": 1}, paths); diff != "" {
		t.Errorf("deliveries by path (-want +got):\n%s", diff)
	}
}

// TestAChangedFilterLosesNothingWhileEventsFlow changes a Trigger's filter again and again, with a subscriber that is down part
// of the time and events coming in all the time. Whatever passes every filter must arrive.
func TestAChangedFilterLosesNothingWhileEventsFlow(t *testing.T) {
	t.Parallel()
	filters := []string{
		"filters: [{exact: {type: wanted}}]",
		"filters: [{prefix: {type: wanted}}]",
		"filters: [{any: [{exact: {type: wanted}}, {exact: {type: other}}]}]",
		"filters: [{not: {exact: {type: other}}}]",
		"filter: {attributes: {type: wanted, source: /conformance}}",
	}
	s := start(t)
	sub := s.subscribe(nil)
	apply := func(filter string) plan.Plan {
		return s.apply(broker("b"), trigger("t", "b", sub.url, filter))
	}
	p := apply(filters[0])

	type outcome struct {
		accepted int
		err      error
	}
	sender := make(chan outcome, 1)
	progress := make(chan struct{}, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		defer close(progress) // nobody waits for a sender that failed
		for n := 0; ; n++ {
			if ctx.Err() != nil {
				sender <- outcome{accepted: n}
				return
			}
			for _, kind := range []string{"wanted", "other"} {
				a, err := request(t.Context(), http.MethodPost, s.url+"/ns/b", binary(kind+strconv.Itoa(n), "Ce-Type", kind), nil)
				if err == nil && a.code != http.StatusAccepted {
					err = fmt.Errorf("answer %d %s", a.code, a.body)
				}
				if err != nil {
					sender <- outcome{n, err}
					return
				}
			}
			select {
			case progress <- struct{}{}:
			default:
			}
		}
	}()
	flow := func(n int) {
		for range n {
			<-progress
		}
	}
	down := func(w http.ResponseWriter, _ delivery, _ int) { w.WriteHeader(http.StatusServiceUnavailable) }
	for _, filter := range filters[1:] {
		flow(10)
		sub.answerWith(down)
		flow(10) // a backlog to hand over
		p = apply(filter)
		flow(10)
		sub.answerWith(nil)
	}
	stop()
	sent := <-sender
	if sent.err != nil {
		t.Fatal(sent.err)
	}
	s.settled(p, "t")
	got := sub.ids()
	for i := range sent.accepted {
		if got["wanted"+strconv.Itoa(i)] == 0 {
			t.Errorf("event %d of %d was lost", i, sent.accepted)
		}
	}
	if count := len(s.pubsub.Stats().Subscriptions); count != 1 {
		t.Errorf("%d subscriptions are left, want that of the last filter", count)
	}
	t.Logf("%d wanted events during %d changes of the filter", sent.accepted, len(filters)-1)
}

// TestAChangedFilterJudgesTheBacklogToo is as Knative's own Brokers do it, which filter when they deliver.
func TestAChangedFilterJudgesTheBacklogToo(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, _ delivery, _ int) { w.WriteHeader(http.StatusServiceUnavailable) })
	s.apply(broker("b"), trigger("t", "b", sub.url, "filters: [{prefix: {type: a}}]"))
	s.send("b", binary("1", "Ce-Type", "a1"), nil)
	s.send("b", binary("2", "Ce-Type", "a2"), nil)
	s.next(sub, 2)
	p := s.apply(broker("b"), trigger("t", "b", sub.url, "filters: [{exact: {type: a2}}]"))
	before := sub.ids()["1"]
	sub.answerWith(nil)
	s.settled(p, "t")
	if got := sub.ids(); got["1"] > before+1 || got["2"] < 1 { // one push of event 1 may have been under way
		t.Errorf("deliveries by event %v, want event 2 alone after the change", got)
	}
	if stats := s.stats(p, "t"); stats.Acked != 1 {
		t.Errorf("%+v, want event 2 acked alone", stats)
	}
}

func TestAChangedDeliverySpecKeepsTheBacklog(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, _ delivery, _ int) { w.WriteHeader(http.StatusServiceUnavailable) })
	s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("1"), nil)
	s.next(sub, 1)
	p := s.apply(broker("b"), broker("dead"), trigger("t", "b", sub.url, "delivery: {timeout: PT20S, retry: 99, "+deadLetters+"}"))
	sub.answerWith(nil)
	if stats := s.settled(p, "t"); stats.Acked != 1 {
		t.Errorf("%+v, want the event acked", stats)
	}
}
