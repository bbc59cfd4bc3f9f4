package plan

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cloud.google.com/go/pubsub/v2/pstest"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/eventfilter"
	"knative.dev/eventing/pkg/eventfilter/attributes"
	"knative.dev/eventing/pkg/eventfilter/subscriptionsapi"
)

func TestFilter(t *testing.T) {
	tests := []struct {
		name string
		// input
		spec string
		// expectations
		filter string
		reason Reason
	}{
		{name: "no filter takes everything", spec: "", filter: ""},
		{name: "an empty filter takes everything", spec: "filter: {}", filter: ""},
		{name: "one attribute", spec: "filter: {attributes: {type: a.v1}}", filter: `attributes.ce-type = "a.v1"`},
		{
			name:   "several attributes, in alphabetical order",
			spec:   "filter: {attributes: {type: a, source: b, myext: c}}",
			filter: `attributes.ce-myext = "c" AND attributes.ce-source = "b" AND attributes.ce-type = "a"`,
		},
		{
			name:   "an empty value is any value",
			spec:   "filter: {attributes: {myext: '', type: a}}",
			filter: `attributes:ce-myext AND attributes.ce-myext != "" AND attributes.ce-type = "a"`,
		},
		{name: "the content type has an attribute of its own", spec: "filter: {attributes: {datacontenttype: text/plain}}", filter: `attributes.content-type = "text/plain"`},
		{name: "filters replace filter", spec: "filter: {attributes: {type: a}}\nfilters: [{exact: {type: b}}]", filter: `attributes.ce-type = "b"`},
		{name: "an empty list of filters does not", spec: "filter: {attributes: {type: a}}\nfilters: []", filter: `attributes.ce-type = "a"`},
		{name: "a list is all of them", spec: "filters: [{exact: {type: a}}, {prefix: {source: b}}]", filter: `attributes.ce-type = "a" AND hasPrefix(attributes.ce-source, "b")`},
		{
			name:   "any inside all",
			spec:   "filters: [{any: [{exact: {type: a}}, {exact: {type: b}}]}, {exact: {source: c}}]",
			filter: `(attributes.ce-type = "a" OR attributes.ce-type = "b") AND attributes.ce-source = "c"`,
		},
		{
			name:   "all inside any",
			spec:   "filters: [{any: [{all: [{exact: {type: a}}, {exact: {source: c}}]}, {exact: {type: b}}]}]",
			filter: `(attributes.ce-type = "a" AND attributes.ce-source = "c") OR attributes.ce-type = "b"`,
		},
		{name: "not of one", spec: "filters: [{not: {exact: {type: a}}}]", filter: `NOT attributes.ce-type = "a"`},
		{
			name:   "not of several",
			spec:   "filters: [{not: {any: [{exact: {type: a}}, {exact: {type: b}}]}}]",
			filter: `NOT (attributes.ce-type = "a" OR attributes.ce-type = "b")`,
		},
		{name: "not of not", spec: "filters: [{not: {not: {exact: {type: a}}}}]", filter: `NOT (NOT attributes.ce-type = "a")`},
		{name: "quotes and backslashes are escaped", spec: `filters: [{exact: {type: 'a"b\c'}}]`, filter: `attributes.ce-type = "a\"b\\c"`},
		{name: "letters beyond ASCII are kept", spec: "filters: [{exact: {type: é}}]", filter: `attributes.ce-type = "é"`},
		{name: "exactly 256 bytes", spec: "filter: {attributes: {type: " + strings.Repeat("a", 256-23) + "}}", filter: `attributes.ce-type = "` + strings.Repeat("a", 256-23) + `"`},

		{name: "257 bytes", spec: "filter: {attributes: {type: " + strings.Repeat("a", 257-23) + "}}", reason: ReasonFilterTooLong},
		{name: "suffix", spec: "filters: [{suffix: {type: .v1}}]", reason: ReasonFilterDialect},
		{name: "suffix deep inside", spec: "filters: [{any: [{exact: {type: a}}, {not: {all: [{suffix: {type: .v1}}]}}]}]", reason: ReasonFilterDialect},
		{name: "CE SQL", spec: `filters: [{cesql: "type = 'a'"}]`, reason: ReasonFilterDialect},
		{name: "broken CE SQL", spec: `filters: [{cesql: "type ="}]`, reason: ReasonInvalid},
		{name: "two dialects at once", spec: "filters: [{exact: {type: a}, prefix: {type: a}}]", reason: ReasonInvalid},
		{name: "no dialect", spec: "filters: [{}]", reason: ReasonInvalid},
		{name: "an attribute name that CloudEvents does not allow", spec: "filter: {attributes: {My-Ext: a}}", reason: ReasonInvalid},
		{name: "time", spec: "filters: [{prefix: {time: '2026-'}}]", reason: ReasonFilterAttribute},
		{name: "an attribute that Knative derives", spec: "filter: {attributes: {datamediatype: text/plain}}", reason: ReasonFilterAttribute},
		{name: "an exact empty value", spec: "filters: [{exact: {type: ''}}]", reason: ReasonFilterValue},
		{name: "a control character", spec: `filters: [{exact: {type: "a\nb"}}]`, reason: ReasonFilterValue},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, problems := outcome(Make(decode(t, trigger(toStage+test.spec)), settings()))
			if test.reason != "" {
				if got != nil || len(problems) != 1 || problems[0].Reason != test.reason {
					t.Fatalf("subscription %+v, problems %v, want %s", got, problems, test.reason)
				}
				return
			}
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			if got.Filter != test.filter {
				t.Errorf("filter %s\nwant   %s", got.Filter, test.filter)
			}
		})
	}
}

// FuzzFilter holds every translation to what Pub/Sub asks of a filter, whatever the filters are.
func FuzzFilter(f *testing.F) {
	for _, seed := range []string{
		`[{"exact":{"type":"a"}}]`,
		`[{"prefix":{"source":"//robofleet.dev/robots/"}},{"not":{"any":[{"exact":{"type":"a\"\\"}},{"exact":{"datacontenttype":"b"}}]}}]`,
		`[{"all":[{"exact":{"a":"b","c":"d"}},{"suffix":{"e":"f"}}]}]`,
		`[{"cesql":"TRUE"}]`,
		`[{}]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var filters []eventingv1.SubscriptionsAPIFilter
		if json.Unmarshal(text, &filters) != nil {
			return
		}
		trigger := &eventingv1.Trigger{Spec: eventingv1.TriggerSpec{Filters: filters}}
		for _, filter := range filters {
			if eventingv1.ValidateSubscriptionAPIFilter(t.Context(), &filter) != nil {
				return
			}
		}
		filter, refused := filterOf(&trigger.Spec)
		if refused != nil {
			if refused.reason == "" || refused.message == "" {
				t.Fatalf("refused without a reason: %+v", refused)
			}
			return
		}
		if len(filters) == 0 {
			if filter != "" {
				t.Fatalf("no filters gave %q", filter)
			}
			return
		}
		if len(filter) > maxFilterBytes {
			t.Errorf("a filter of %d bytes", len(filter))
		}
		if err := pstest.ValidateFilter(filter); err != nil {
			t.Errorf("Pub/Sub cannot parse %s: %v", filter, err)
		}
	})
}

// TestFilterMeansWhatKnativeMeans compares, on random filters and events, Knative's own filters with an evaluation of
// the Pub/Sub filter by the rules of its documentation.
func TestFilterMeansWhatKnativeMeans(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	events := make([]cloudevents.Event, 40)
	for i := range events {
		events[i] = randomEvent(random)
	}
	for range 500 {
		trigger := randomTrigger(random)
		filter, refused := filterOf(&trigger.Spec)
		if refused != nil {
			if refused.reason != ReasonFilterTooLong {
				t.Fatalf("%+v: %s", trigger.Spec, refused.message)
			}
			continue
		}
		for _, event := range events {
			want := knativePasses(t, &trigger.Spec, event)
			got := evaluate(t, filter, messageAttributes(event))
			if got != want {
				t.Fatalf("event %v\nfilter %s\npasses: %t, in Knative: %t", messageAttributes(event), filter, got, want)
			}
		}
	}
}

// knativePasses asks Knative's own filters. Its filters for all and any are not used: they reorder their list in the
// background without a lock (knative.dev/eventing v0.50, all_filter.go), which the race detector reports.
func knativePasses(t *testing.T, spec *eventingv1.TriggerSpec, event cloudevents.Event) bool {
	t.Helper()
	if len(spec.Filters) == 0 {
		return attributes.NewAttributesFilter(spec.Filter.Attributes).Filter(t.Context(), event) == eventfilter.PassFilter
	}
	return knativePassesAll(t, spec.Filters, event)
}

func knativePassesAll(t *testing.T, filters []eventingv1.SubscriptionsAPIFilter, event cloudevents.Event) bool {
	t.Helper()
	return !slices.ContainsFunc(filters, func(f eventingv1.SubscriptionsAPIFilter) bool { return !knativePassesOne(t, f, event) })
}

func knativePassesOne(t *testing.T, filter eventingv1.SubscriptionsAPIFilter, event cloudevents.Event) bool {
	t.Helper()
	var leaf eventfilter.Filter
	var err error
	switch {
	case len(filter.All) > 0:
		return knativePassesAll(t, filter.All, event)
	case len(filter.Any) > 0:
		return slices.ContainsFunc(filter.Any, func(f eventingv1.SubscriptionsAPIFilter) bool { return knativePassesOne(t, f, event) })
	case filter.Not != nil:
		return !knativePassesOne(t, *filter.Not, event)
	case len(filter.Exact) > 0:
		leaf, err = subscriptionsapi.NewExactFilter(filter.Exact)
	default:
		leaf, err = subscriptionsapi.NewPrefixFilter(filter.Prefix)
	}
	if err != nil {
		t.Fatal(err)
	}
	return leaf.Filter(t.Context(), event) == eventfilter.PassFilter
}

var (
	randomNames  = []string{"type", "source", "subject", "myext", "datacontenttype"}
	randomValues = []string{"a", "ab", "abc", "b", `b"`, `b\`, "b c", "é", "AND", "(x)"}
)

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

func randomEvent(random *rand.Rand) cloudevents.Event {
	event := cloudevents.NewEvent()
	event.SetID("1")
	event.SetType(pick(random, randomValues))
	event.SetSource("a")
	if random.IntN(2) == 0 {
		event.SetSubject(pick(random, randomValues))
	}
	if random.IntN(2) == 0 {
		event.SetExtension("myext", pick(random, randomValues))
	}
	if random.IntN(2) == 0 {
		event.SetDataContentType(pick(random, randomValues))
	}
	return event
}

// messageAttributes is how the event travels in Pub/Sub.
func messageAttributes(event cloudevents.Event) map[string]string {
	message := map[string]string{"ce-id": event.ID(), "ce-source": event.Source(), "ce-specversion": "1.0", "ce-type": event.Type()}
	if event.Subject() != "" {
		message["ce-subject"] = event.Subject()
	}
	if event.DataContentType() != "" {
		message["content-type"] = event.DataContentType()
	}
	for name, value := range event.Extensions() {
		message["ce-"+name] = fmt.Sprint(value)
	}
	return message
}

func randomTrigger(random *rand.Rand) *eventingv1.Trigger {
	if random.IntN(4) == 0 {
		attributes := map[string]string{}
		for range 1 + random.IntN(3) {
			attributes[pick(random, randomNames)] = pick(random, append(randomValues, ""))
		}
		return &eventingv1.Trigger{Spec: eventingv1.TriggerSpec{Filter: &eventingv1.TriggerFilter{Attributes: attributes}}}
	}
	return &eventingv1.Trigger{Spec: eventingv1.TriggerSpec{Filters: randomFilters(random, 2)}}
}

func randomFilters(random *rand.Rand, depth int) []eventingv1.SubscriptionsAPIFilter {
	filters := make([]eventingv1.SubscriptionsAPIFilter, 1+random.IntN(2))
	for i := range filters {
		filters[i] = randomFilter(random, depth)
	}
	return filters
}

func randomFilter(random *rand.Rand, depth int) eventingv1.SubscriptionsAPIFilter {
	choices := 5
	if depth == 0 {
		choices = 2
	}
	switch random.IntN(choices) {
	case 0:
		return eventingv1.SubscriptionsAPIFilter{Exact: map[string]string{pick(random, randomNames): pick(random, randomValues)}}
	case 1:
		return eventingv1.SubscriptionsAPIFilter{Prefix: map[string]string{pick(random, randomNames): pick(random, randomValues)}}
	case 2:
		return eventingv1.SubscriptionsAPIFilter{All: randomFilters(random, depth-1)}
	case 3:
		return eventingv1.SubscriptionsAPIFilter{Any: randomFilters(random, depth-1)}
	default:
		inner := randomFilter(random, depth-1)
		return eventingv1.SubscriptionsAPIFilter{Not: &inner}
	}
}
