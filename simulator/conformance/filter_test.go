package conformance_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/eventfilter"
	"knative.dev/eventing/pkg/eventfilter/attributes"
	"knative.dev/eventing/pkg/eventfilter/subscriptionsapi"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/robofleet/robofleet/eventing/plan"
)

func TestEachTriggerGetsWhatItsFilterWants(t *testing.T) {
	t.Parallel()
	events := map[string]http.Header{
		"created": binary("created", "Ce-Type", "order.created", "Ce-Source", "/shop/1", "Ce-Tenant", "a"),
		"paid":    binary("paid", "Ce-Type", "order.paid", "Ce-Source", "/shop/1", "Ce-Tenant", "b"),
		"parcel":  binary("parcel", "Ce-Type", "parcel.sent", "Ce-Source", "/shop/2", "Ce-Subject", "Zürich"),
		"quoted":  binary("quoted", "Ce-Type", `say "hi"`, "Ce-Source", "/shop/3", "Content-Type", "application/json"),
	}
	everything := []string{"created", "paid", "parcel", "quoted"}
	tests := []struct {
		name string // of the Trigger
		spec string
		want []string
	}{
		{"no-filter", "", everything},
		{"empty-filter", "filter: {}", everything},
		{"empty-attributes", "filter: {attributes: {}}", everything},
		{"empty-filters", "filters: []", everything},
		{"attributes-one", "filter: {attributes: {type: order.created}}", []string{"created"}},
		{"attributes-all-of-several", "filter: {attributes: {source: /shop/1, tenant: b}}", []string{"paid"}},
		{"attributes-several-not-all", "filter: {attributes: {source: /shop/2, tenant: b}}", nil},
		{"attributes-any-value", "filter: {attributes: {tenant: ''}}", []string{"created", "paid"}},
		{"attributes-case-counts", "filter: {attributes: {type: Order.created}}", nil},
		{"attributes-whole-values", "filter: {attributes: {type: order}}", nil},
		{"exact", "filters: [{exact: {subject: Zürich}}]", []string{"parcel"}},
		{"exact-extension", "filters: [{exact: {tenant: a}}]", []string{"created"}},
		{"exact-quoted", `filters: [{exact: {type: 'say "hi"'}}]`, []string{"quoted"}},
		{"exact-content-type", "filters: [{exact: {datacontenttype: application/json}}]", []string{"quoted"}},
		{"prefix", "filters: [{prefix: {type: order.}}]", []string{"created", "paid"}},
		{"all", "filters: [{all: [{prefix: {type: order.}}, {exact: {tenant: a}}]}]", []string{"created"}},
		{"any", "filters: [{any: [{exact: {tenant: a}}, {exact: {source: /shop/2}}]}]", []string{"created", "parcel"}},
		{"not", "filters: [{not: {prefix: {type: order.}}}]", []string{"parcel", "quoted"}},
		{"not-of-what-is-missing", "filters: [{not: {exact: {tenant: a}}}]", []string{"paid", "parcel", "quoted"}},
		{"several-filters-are-all", "filters: [{prefix: {type: order.}}, {not: {exact: {tenant: a}}}]", []string{"paid"}},
		{"nested", "filters: [{any: [{all: [{exact: {source: /shop/1}}, {not: {exact: {tenant: b}}}]}, {prefix: {type: say}}]}]", []string{"created", "quoted"}},
		{"filters-replace-filter", "filter: {attributes: {type: parcel.sent}}\n, filters: [{exact: {tenant: a}}]", []string{"created"}},
	}
	s := start(t)
	sub := s.subscribe(nil)
	manifests := []string{broker("b")}
	for _, test := range tests {
		var spec []string
		if test.spec != "" {
			spec = append(spec, test.spec)
		}
		manifests = append(manifests, trigger(test.name, "b", sub.url+"/"+test.name, spec...))
	}
	p := s.apply(manifests...)
	for _, id := range slices.Sorted(maps.Keys(events)) {
		s.send("b", events[id], nil)
	}
	for _, test := range tests {
		s.settled(p, test.name)
		var got []string
		for _, d := range sub.deliveries() {
			if d.path == "/"+test.name {
				got = append(got, d.id())
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: events (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestNamesThatAreNoAttributesAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, name := range []string{"TYPE", "Type", "tyPe", "my type", "my_type", "my-type", "typé", "🤖", "type!", "{type}", ""} {
		for _, spec := range []string{"filter: {attributes: {%q: x}}", "filters: [{exact: {%q: x}}]", "filters: [{prefix: {%q: x}}]"} {
			p := s.plan(broker("b"), trigger("t", "b", "https://example.com", fmt.Sprintf(spec, name)))
			if len(p.Problems) != 1 || p.Problems[0].Reason != plan.ReasonInvalid || len(p.Subscriptions) != 0 {
				t.Errorf(spec+": problems %+v, want one, %s", name, p.Problems, plan.ReasonInvalid)
			}
		}
	}
}

func TestTriggersOfOneSubscriberEachDeliver(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	p := s.apply(broker("b"), trigger("t1", "b", sub.url), trigger("t2", "b", sub.url, "filter: {attributes: {type: test}}"))
	s.send("b", binary("1"), nil)
	s.settled(p, "t1")
	s.settled(p, "t2")
	subscriptions := map[string]int{}
	for _, d := range sub.deliveries() {
		subscriptions[d.header.Get("X-Goog-Pubsub-Subscription-Name")]++
	}
	path := "projects/" + project + "/subscriptions/"
	want := map[string]int{path + subscriptionOf(t, p, "t1").Name: 1, path + subscriptionOf(t, p, "t2").Name: 1}
	if diff := cmp.Diff(want, subscriptions); diff != "" {
		t.Errorf("deliveries by subscription (-want +got):\n%s", diff)
	}
}

func TestAFailingTriggerHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	s := start(t)
	good := s.subscribe(nil)
	bad := s.subscribe(func(w http.ResponseWriter, _ delivery, _ int) { w.WriteHeader(http.StatusServiceUnavailable) })
	p := s.apply(broker("b"), trigger("good", "b", good.url), trigger("bad", "b", bad.url))
	for i := range 20 {
		s.send("b", binary(strconv.Itoa(i)), nil)
	}
	if stats := s.settled(p, "good"); stats.Delivered != 20 || s.stats(p, "bad").Backlog != 20 {
		t.Errorf("the good one has %+v, the bad one %+v, want 20 delivered and 20 kept", stats, s.stats(p, "bad"))
	}
}

func TestEventsGoToTheTriggersOfTheirBrokerOnly(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	p := s.apply(broker("b1"), broker("b2"), trigger("t1", "b1", sub.url+"/1"), trigger("t2", "b2", sub.url+"/2"))
	s.send("b1", binary("1"), nil)
	s.send("b2", binary("2"), nil)
	s.settled(p, "t1")
	s.settled(p, "t2")
	got := map[string]string{}
	for _, d := range sub.deliveries() {
		got[d.path] += d.id()
	}
	if diff := cmp.Diff(map[string]string{"/1": "1", "/2": "2"}, got); diff != "" {
		t.Errorf("events by Trigger (-want +got):\n%s", diff)
	}
}

// TestFiltersMeanWhatKnativeMeans sends random events through the ingress to subscriptions with the filters of random Triggers,
// and compares what each gets with what Knative's own filters pass.
func TestFiltersMeanWhatKnativeMeans(t *testing.T) {
	t.Parallel()
	const triggers, sent = 250, 120
	random := rand.New(rand.NewPCG(7, 11))
	s := start(t)
	s.apply(broker("b"))

	objects, err := plan.Decode([]byte(broker("b")))
	if err != nil {
		t.Fatal(err)
	}
	specs := map[string]*eventingv1.TriggerSpec{}
	address, err := apis.ParseURL("https://example.com")
	if err != nil {
		t.Fatal(err)
	}
	for i := range triggers {
		spec := randomSpec(random)
		spec.Broker, spec.Subscriber = "b", duckv1.Destination{URI: address}
		name := "t" + strconv.Itoa(i)
		specs[name] = spec
		objects.Triggers = append(objects.Triggers, &eventingv1.Trigger{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Spec: *spec})
	}
	p := plan.Make(objects, s.settings)
	for _, problem := range p.Problems {
		if problem.Reason != plan.ReasonFilterTooLong {
			t.Fatal(problem)
		}
		delete(specs, problem.Name)
	}
	if len(specs) < triggers/2 {
		t.Fatalf("only %d of %d Triggers have a short filter: the test says little", len(specs), triggers)
	}
	// As the plan says, but to be pulled, which gives the set of what passed in one call.
	admin := s.client.SubscriptionAdminClient
	for name := range specs {
		if _, err := admin.CreateSubscription(t.Context(), &pubsubpb.Subscription{
			Name: pullName(name), Topic: "projects/" + project + "/topics/ns-b", Filter: subscriptionOf(t, p, name).Filter,
		}); err != nil {
			t.Fatalf("filter %s: %v", subscriptionOf(t, p, name).Filter, err)
		}
	}

	events := map[string]cloudevents.Event{}
	for i := range sent {
		e := randomEvent(random, strconv.Itoa(i))
		events[e.ID()] = e
		s.sendAnyMode(random, e)
	}

	passed := 0
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		want := map[string]bool{}
		for id, e := range events {
			if knativePasses(t, specs[name], e) {
				want[id] = true
			}
		}
		passed += len(want)
		got := map[string]bool{}
		if s.pubsub.Stats().Subscriptions[pullName(name)].Backlog > 0 { // a pull of nothing would wait
			res, err := admin.Pull(t.Context(), &pubsubpb.PullRequest{Subscription: pullName(name), MaxMessages: 2 * sent})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range res.GetReceivedMessages() {
				got[m.GetMessage().GetAttributes()["ce-id"]] = true
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			spec, _ := json.Marshal(specs[name]) // for the message only
			t.Fatalf("Trigger %s\nfilter %s\nevents (-Knative +Pub/Sub):\n%s", spec, subscriptionOf(t, p, name).Filter, diff)
		}
	}
	t.Logf("%d Triggers × %d events: %d passed", len(specs), sent, passed)
}

func pullName(trigger string) string { return "projects/" + project + "/subscriptions/pull-" + trigger }

// sendAnyMode sends in binary or structured mode. What is not in ASCII goes structured: in headers it would have to be
// percent-encoded, and Knative's filters compare the encoded text then.
func (s *system) sendAnyMode(random *rand.Rand, e cloudevents.Event) {
	s.Helper()
	header := binary(e.ID(), "Ce-Type", e.Type(), "Ce-Source", e.Source(), "Content-Type", e.DataContentType())
	if e.Subject() != "" {
		header.Set("Ce-Subject", e.Subject())
	}
	if e.DataContentType() == "" {
		header.Del("Content-Type")
	}
	for name, value := range e.Extensions() {
		header.Set("Ce-"+name, fmt.Sprint(value))
	}
	ascii := !strings.ContainsFunc(fmt.Sprint(header), func(r rune) bool { return r > '~' })
	if ascii && random.IntN(2) == 0 {
		s.send("b", header, nil)
		return
	}
	body, err := json.Marshal(e)
	if err != nil {
		s.Fatal(err)
	}
	s.send("b", contentType(structuredMode), body)
}

// knativePasses asks Knative's own filters. Only all and any are combined here: Knative's reorder their list in the background
// without a lock (v0.50, all_filter.go), which the race detector reports.
func knativePasses(t *testing.T, spec *eventingv1.TriggerSpec, e cloudevents.Event) bool {
	t.Helper()
	if len(spec.Filters) > 0 {
		return knativePassesAll(t, spec.Filters, e)
	}
	return attributes.NewAttributesFilter(spec.Filter.Attributes).Filter(t.Context(), e) != eventfilter.FailFilter
}

func knativePassesAll(t *testing.T, filters []eventingv1.SubscriptionsAPIFilter, e cloudevents.Event) bool {
	t.Helper()
	for _, filter := range filters {
		if !knativePassesOne(t, filter, e) {
			return false
		}
	}
	return true
}

func knativePassesOne(t *testing.T, filter eventingv1.SubscriptionsAPIFilter, e cloudevents.Event) bool {
	t.Helper()
	var f eventfilter.Filter
	var err error
	switch {
	case len(filter.All) > 0:
		return knativePassesAll(t, filter.All, e)
	case len(filter.Any) > 0:
		return slices.ContainsFunc(filter.Any, func(f eventingv1.SubscriptionsAPIFilter) bool { return knativePassesOne(t, f, e) })
	case filter.Not != nil:
		return !knativePassesOne(t, *filter.Not, e)
	case len(filter.Exact) > 0:
		f, err = subscriptionsapi.NewExactFilter(filter.Exact)
	default:
		f, err = subscriptionsapi.NewPrefixFilter(filter.Prefix)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f.Filter(t.Context(), e) == eventfilter.PassFilter
}

// Few names and values that overlap, so that filters pass about as often as they fail; many that need quotes.
var (
	someNames  = []string{"type", "source", "subject", "tenant", "datacontenttype", "specversion"}
	someValues = []string{"a", "ab", "abc", "b", "1.0", `b"`, `b\`, `\"`, "b c", "é", "北京", "AND", "(x)", "hasPrefix(attributes.ce-type, \"a\")"}
)

func pick(random *rand.Rand, from []string) string { return from[random.IntN(len(from))] }

func randomEvent(random *rand.Rand, id string) cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetID(id)
	e.SetType(pick(random, someValues))
	e.SetSource(pick(random, []string{"a", "ab", "abc", "b"})) // a URI reference holds few of the others
	if random.IntN(2) == 0 {
		e.SetSubject(pick(random, someValues))
	}
	if random.IntN(2) == 0 {
		e.SetExtension("tenant", pick(random, someValues))
	}
	if random.IntN(2) == 0 {
		e.SetDataContentType(pick(random, []string{"a", "ab", "b"}))
	}
	return e
}

func randomSpec(random *rand.Rand) *eventingv1.TriggerSpec {
	if random.IntN(4) > 0 {
		return &eventingv1.TriggerSpec{Filters: randomFilters(random, 2)}
	}
	filter := map[string]string{}
	for range random.IntN(3) {
		filter[pick(random, someNames)] = pick(random, append([]string{""}, someValues...)) // "" is any value
	}
	return &eventingv1.TriggerSpec{Filter: &eventingv1.TriggerFilter{Attributes: filter}}
}

func randomFilters(random *rand.Rand, depth int) []eventingv1.SubscriptionsAPIFilter {
	filters := make([]eventingv1.SubscriptionsAPIFilter, 1+random.IntN(3))
	for i := range filters {
		filters[i] = randomFilter(random, depth)
	}
	return filters
}

func randomFilter(random *rand.Rand, depth int) eventingv1.SubscriptionsAPIFilter {
	dialects := 5
	if depth == 0 {
		dialects = 2
	}
	leaf := map[string]string{pick(random, someNames): pick(random, someValues)}
	switch random.IntN(dialects) {
	case 0:
		return eventingv1.SubscriptionsAPIFilter{Exact: leaf}
	case 1:
		return eventingv1.SubscriptionsAPIFilter{Prefix: leaf}
	case 2:
		return eventingv1.SubscriptionsAPIFilter{All: randomFilters(random, depth-1)}
	case 3:
		return eventingv1.SubscriptionsAPIFilter{Any: randomFilters(random, depth-1)}
	default:
		inner := randomFilter(random, depth-1)
		return eventingv1.SubscriptionsAPIFilter{Not: &inner}
	}
}
