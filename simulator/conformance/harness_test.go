package conformance_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	pubsubclient "cloud.google.com/go/pubsub/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/robofleet/robofleet/eventing/apply"
	"github.com/robofleet/robofleet/eventing/ingress"
	"github.com/robofleet/robofleet/eventing/plan"
	"github.com/robofleet/robofleet/simulator/cloud/issuer"
	"github.com/robofleet/robofleet/simulator/cloud/pubsub"
)

const (
	project        = "conformance"
	namespace      = "ns"
	serviceAccount = "push@conformance.iam.gserviceaccount.com"
)

// patience bounds every wait for something that must come. A test that passes never uses it up.
const patience = 30 * time.Second

// roomy are limits that no test reaches but the one about them. A body just over the largest is still one that net/http reads to
// its end before it answers (256 KiB), so that the answer cannot get lost with the connection.
var roomy = ingress.Limits{MaxBodyBytes: 200_000, MaxInFlight: 1000, MaxInFlightBytes: 1 << 28}

// tokens is one issuer for all tests, because a key takes long to make.
var tokens = sync.OnceValues(func() (*issuer.Issuer, error) {
	var iss *issuer.Issuer
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { iss.ServeHTTP(w, r) }))
	iss, err := issuer.New(issuer.Config{URL: server.URL})
	return iss, err
})

// system is a whole installation of the Broker class.
type system struct {
	*testing.T
	pubsub     *pubsub.Server
	client     *pubsubclient.Client
	publishers *ingress.Publishers
	handler    *ingress.Handler
	metrics    *prometheus.Registry
	url        string // of the ingress
	settings   plan.Settings
}

func start(t *testing.T) *system {
	t.Helper()
	return startWith(t, ingress.Publishing{Delay: time.Millisecond, Timeout: patience}, nil)
}

// startWith wires the ingress as eventing/cmd/broker-ingress does. Pushes go by transport; nil is Pub/Sub's own.
func startWith(t *testing.T, publishing ingress.Publishing, transport http.RoundTripper) *system {
	t.Helper()
	iss, err := tokens()
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	server, err := pubsub.Start(context.Background(), pubsub.Config{Tokens: iss, Transport: transport, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	client, err := pubsubclient.NewClient(context.Background(), project, option.WithEndpoint(server.Addr()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	s := &system{T: t, pubsub: server, client: client, metrics: prometheus.NewRegistry()}
	s.publishers = ingress.NewPublishers(client, publishing)
	s.handler, err = ingress.NewHandler(nil, roomy, s.metrics, quiet)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.handler)
	t.Cleanup(func() {
		web.Close()
		s.publishers.StopExcept(nil)
		_ = client.Close() // the server goes next
	})
	s.url = web.URL
	s.settings = plan.Settings{
		Project: project, Owner: "conformance", PushServiceAccount: serviceAccount, AllowHTTP: true,
		Resolve: func(ref duckv1.KReference) (string, error) { return "", fmt.Errorf("no %s %s", ref.Kind, ref.Name) },
		Ingress: func(namespace, broker string) string { return s.url + "/" + namespace + "/" + broker },
	}
	return s
}

// plan translates manifests.
func (s *system) plan(manifests ...string) plan.Plan {
	s.Helper()
	objects, err := plan.Decode([]byte(strings.Join(manifests, "")))
	if err != nil {
		s.Fatal(err)
	}
	return plan.Make(objects, s.settings)
}

// apply makes the installation what manifests say, nothing more and nothing less.
func (s *system) apply(manifests ...string) plan.Plan {
	s.Helper()
	p := s.plan(manifests...)
	for _, problem := range p.Problems {
		s.Fatal(problem)
	}
	if _, err := apply.Apply(s.Context(), s.client, p, apply.Options{Prune: true}); err != nil {
		s.Fatal(err)
	}
	topics := p.IngressTopics()
	s.handler.Serve(s.publishers.Topics(topics))
	s.publishers.StopExcept(topics)
	return p
}

// broker is the manifest of a Broker; spec is YAML between braces.
func broker(name string, spec ...string) string {
	return fmt.Sprintf(`---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: %s, namespace: %s, annotations: {eventing.knative.dev/broker.class: %s}}
spec: {%s}
`, name, namespace, plan.BrokerClass, strings.Join(spec, ", "))
}

// trigger is the manifest of a Trigger that sends to an address; spec is more YAML between braces.
func trigger(name, broker, subscriber string, spec ...string) string {
	return fmt.Sprintf(`---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: %s, namespace: %s}
spec: {%s}
`, name, namespace, strings.Join(append([]string{"broker: " + broker, "subscriber: {uri: '" + subscriber + "'}"}, spec...), ", "))
}

// stats are the numbers of the one subscription of a Trigger.
func (s *system) stats(p plan.Plan, trigger string) pubsub.SubscriptionStats {
	s.Helper()
	return s.pubsub.Stats().Subscriptions["projects/"+project+"/subscriptions/"+subscriptionOf(s.T, p, trigger).Name]
}

func subscriptionOf(t *testing.T, p plan.Plan, trigger string) plan.Subscription {
	t.Helper()
	labels := plan.Ref{Kind: "Trigger", Namespace: namespace, Name: trigger}
	for _, subscription := range p.Subscriptions {
		if labels.Made(subscription.Labels) {
			return subscription
		}
	}
	t.Fatalf("no subscription of Trigger %s in the plan", trigger)
	return plan.Subscription{}
}

// settled waits until all of a Trigger's events are acked, and returns its numbers. Whatever is acked is never delivered again,
// so that from then on nothing more can come.
func (s *system) settled(p plan.Plan, trigger string) pubsub.SubscriptionStats {
	s.Helper()
	var stats pubsub.SubscriptionStats
	s.eventually("Trigger "+trigger+" has delivered everything", func() bool {
		stats = s.stats(p, trigger)
		return stats.Backlog == 0
	})
	return stats
}

func (s *system) published(broker string) int64 {
	return s.pubsub.Stats().Topics["projects/"+project+"/topics/"+namespace+"-"+broker].Published
}

// eventually polls until something holds.
func (s *system) eventually(what string, holds func() bool) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			s.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// answer is what the ingress said.
type answer struct {
	code   int
	header http.Header
	body   string
}

func (s *system) do(method, path string, header http.Header, body []byte) answer {
	s.Helper()
	a, err := request(s.Context(), method, s.url+path, header, body)
	if err != nil {
		s.Fatal(err)
	}
	return a
}

// request may be called from any goroutine.
func request(ctx context.Context, method, url string, header http.Header, body []byte) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Header = header.Clone()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(text)}, err
}

// send has a Broker accept an event.
func (s *system) send(broker string, header http.Header, body []byte) {
	s.Helper()
	if a := s.do(http.MethodPost, "/"+namespace+"/"+broker, header, body); a.code != http.StatusAccepted {
		s.Fatalf("the ingress answered %d %s", a.code, a.body)
	}
}

// binary are the headers of an event in binary mode, with more of them in pairs.
func binary(id string, more ...string) http.Header {
	header := http.Header{
		"Ce-Specversion": {"1.0"}, "Ce-Id": {id}, "Ce-Source": {"/conformance"}, "Ce-Type": {"test"}, "Content-Type": {"text/plain"},
	}
	for i := 0; i < len(more); i += 2 {
		header.Set(more[i], more[i+1])
	}
	return header
}

// delivery is one push, as its subscriber got it.
type delivery struct {
	ctx    context.Context // ends with the sender's interest in the answer
	at     time.Time
	path   string // and query
	header http.Header
	body   []byte
}

func (d delivery) id() string { return d.header.Get("Ce-Id") }

// event are the headers that say what the event is, without those that say how it came.
func (d delivery) event() http.Header {
	event := maps.Clone(d.header)
	maps.DeleteFunc(event, func(name string, _ []string) bool { return !strings.HasPrefix(name, "Ce-") && name != "Content-Type" })
	return event
}

// parse reads the delivery with the CloudEvents SDK, as a subscriber may.
func (d delivery) parse(t *testing.T) cloudevents.Event {
	t.Helper()
	e, err := cloudevents.NewEventFromHTTPRequest(&http.Request{Header: d.header, Body: io.NopCloser(bytes.NewReader(d.body))})
	if err != nil {
		t.Fatalf("the delivery is not a CloudEvent: %v", err)
	}
	if err := e.Validate(); err != nil {
		t.Fatalf("the delivery breaks the CloudEvents specification: %v", err)
	}
	return *e
}

// subscriber is an HTTP server that notes what it gets.
type subscriber struct {
	url string

	mu     sync.Mutex
	got    []delivery
	answer func(w http.ResponseWriter, d delivery, nth int)
}

// subscribe starts a subscriber that answers 204, or as answer says; nth counts the deliveries of the same event to the same
// path from 1.
func (s *system) subscribe(answer func(w http.ResponseWriter, d delivery, nth int)) *subscriber {
	s.Helper()
	sub := &subscriber{answer: answer}
	server := httptest.NewServer(sub)
	s.Cleanup(func() {
		_ = s.pubsub.Close() // first, or the subscriber would wait for pushes to end
		server.Close()
	})
	sub.url = server.URL
	return sub
}

// statuses answers the first deliveries of each event with codes, one after the other, and the rest with 204.
func statuses(codes ...int) func(http.ResponseWriter, delivery, int) {
	return func(w http.ResponseWriter, _ delivery, nth int) {
		code := http.StatusNoContent
		if nth <= len(codes) {
			code = codes[nth-1]
		}
		w.WriteHeader(code)
	}
}

func (sub *subscriber) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d := delivery{ctx: r.Context(), at: time.Now(), path: r.URL.RequestURI(), header: r.Header}
	var err error
	if d.body, err = io.ReadAll(r.Body); err != nil || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusBadRequest) // a push that was cut off, or none
		return
	}
	sub.mu.Lock()
	nth := 1
	for _, earlier := range sub.got {
		if earlier.id() == d.id() && earlier.path == d.path {
			nth++
		}
	}
	sub.got = append(sub.got, d)
	answer := sub.answer
	sub.mu.Unlock()
	if answer == nil {
		answer = statuses()
	}
	answer(w, d, nth)
}

// answerWith changes the answers.
func (sub *subscriber) answerWith(answer func(w http.ResponseWriter, d delivery, nth int)) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.answer = answer
}

func (sub *subscriber) deliveries() []delivery {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	return append([]delivery(nil), sub.got...)
}

// ids counts the deliveries of each event.
func (sub *subscriber) ids() map[string]int {
	ids := map[string]int{}
	for _, d := range sub.deliveries() {
		ids[d.id()]++
	}
	return ids
}

// next waits until there are n deliveries and returns the last of these.
func (s *system) next(sub *subscriber, n int) delivery {
	s.Helper()
	var got []delivery
	s.eventually(fmt.Sprintf("%d deliveries", n), func() bool {
		got = sub.deliveries()
		return len(got) >= n
	})
	return got[n-1]
}

func hostOf(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
