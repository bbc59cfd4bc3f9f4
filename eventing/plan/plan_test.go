package plan

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"sigs.k8s.io/yaml"

	"github.com/robofleet/robofleet/eventing"
)

// settings resolves every Knative Service to https://<name>.example.com.
func settings() Settings {
	return Settings{
		Project:            "robofleet-test",
		Owner:              "robofleet",
		PushServiceAccount: "push@robofleet-test.iam.gserviceaccount.com",
		Resolve: func(ref duckv1.KReference) (string, error) {
			if ref.Kind != "Service" || ref.Name == "nowhere" {
				return "", fmt.Errorf("%s %s/%s is not there", ref.Kind, ref.Namespace, ref.Name)
			}
			return "https://" + ref.Name + ".example.com", nil
		},
	}
}

func decode(t testing.TB, text string) Objects {
	t.Helper()
	objects, err := Decode([]byte(text))
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	return objects
}

func TestManifestsOfThePlatform(t *testing.T) {
	objects, err := Load(eventing.Manifests)
	if err != nil {
		t.Fatal(err)
	}
	got, err := yaml.Marshal(Make(objects, settings()))
	if err != nil {
		t.Fatal(err)
	}
	const want = `
brokers:
- {namespace: robofleet, name: dead-letter, topic: robofleet-dead-letters, ingress: "http://broker-ingress.robofleet.svc/robofleet/dead-letter"}
- {namespace: robofleet, name: edge, topic: robofleet-telemetry, ingress: "http://broker-ingress.robofleet.svc/robofleet/edge"}
- {namespace: robofleet, name: fleet, topic: robofleet-events, ingress: "http://broker-ingress.robofleet.svc/robofleet/fleet"}
owner: robofleet
problems: []
project: robofleet-test
subscriptions:
- ackDeadline: 1m0s
  backoff: {min: 500ms, max: 10m0s}
  deadLetter: {topic: robofleet-dead-letters, attempts: 100}
  labels: {eventing-owner: robofleet, eventing-namespace: robofleet, eventing-trigger: cold-archive}
  name: robofleet-cold-archive-b0eba684
  push:
    endpoint: https://cold-archive.example.com
    audience: https://cold-archive.example.com
    serviceAccount: push@robofleet-test.iam.gserviceaccount.com
  retention: 168h0m0s
  topic: robofleet-events
- ackDeadline: 1m0s
  backoff: {min: 10s, max: 10m0s}
  labels: {eventing-owner: robofleet, eventing-namespace: robofleet, eventing-trigger: dead-letter-archive}
  name: robofleet-dead-letter-archive-0c0e22a8
  push:
    endpoint: https://cold-archive.example.com/dead-letter
    audience: https://cold-archive.example.com
    serviceAccount: push@robofleet-test.iam.gserviceaccount.com
  retention: 168h0m0s
  topic: robofleet-dead-letters
- ackDeadline: 1m0s
  backoff: {min: 500ms, max: 10m0s}
  deadLetter: {topic: robofleet-dead-letters, attempts: 100}
  filter: attributes.ce-type = "dev.robofleet.telemetry.validated.v1"
  labels: {eventing-owner: robofleet, eventing-namespace: robofleet, eventing-trigger: hot-write}
  name: robofleet-hot-write-84fed453
  push:
    endpoint: https://hot-write.example.com
    audience: https://hot-write.example.com
    serviceAccount: push@robofleet-test.iam.gserviceaccount.com
  retention: 168h0m0s
  topic: robofleet-events
- ackDeadline: 30s
  backoff: {min: 500ms, max: 10m0s}
  deadLetter: {topic: robofleet-dead-letters, attempts: 100}
  labels: {eventing-owner: robofleet, eventing-namespace: robofleet, eventing-trigger: validate}
  name: robofleet-validate-974ef724
  push:
    endpoint: https://validate.example.com
    audience: https://validate.example.com
    serviceAccount: push@robofleet-test.iam.gserviceaccount.com
  retention: 168h0m0s
  topic: robofleet-telemetry
topics:
- {name: robofleet-dead-letters, create: true, labels: {eventing-owner: robofleet, eventing-namespace: robofleet, eventing-broker: dead-letter}}
- {name: robofleet-events, create: true, labels: {eventing-owner: robofleet, eventing-namespace: robofleet, eventing-broker: fleet}}
- {name: robofleet-telemetry, create: true, labels: {eventing-owner: robofleet, eventing-namespace: robofleet, eventing-broker: edge}}
`
	if diff := cmp.Diff(tree(t, want), tree(t, string(got))); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

func tree(t testing.TB, text string) any {
	t.Helper()
	var content any
	if err := yaml.Unmarshal([]byte(text), &content); err != nil {
		t.Fatal(err)
	}
	return content
}

func TestOrderOfObjectsDoesNotMatter(t *testing.T) {
	objects, err := Load(eventing.Manifests)
	if err != nil {
		t.Fatal(err)
	}
	want := Make(objects, settings())
	var reversed Objects
	for _, broker := range objects.Brokers {
		reversed.Brokers = append([]*eventingv1.Broker{broker}, reversed.Brokers...)
	}
	for _, trigger := range objects.Triggers {
		reversed.Triggers = append([]*eventingv1.Trigger{trigger}, reversed.Triggers...)
	}
	if diff := cmp.Diff(want, Make(reversed, settings())); diff != "" {
		t.Errorf("plan of the same objects in another order (-want +got):\n%s", diff)
	}
}

const brokers = `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: main, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub}}
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: dead, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub}}
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: memory, namespace: ns, annotations: {eventing.knative.dev/broker.class: MTChannelBasedBroker}}
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: broken, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub, pubsub.eventing.robofleet.dev/topic: "a b"}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: archive, namespace: ns}
spec: {broker: dead, subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: archive}}}
---
`

// trigger is a Trigger "t" in namespace "ns" on Broker "main" with more lines in its spec.
func trigger(spec string) string {
	return brokers + `
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: ns}
spec:
  ` + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n"
}

const toStage = "broker: main\nsubscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: stage}}\n"

// outcome is what a plan says about Trigger "t": its subscription or why there is none.
func outcome(p Plan) (*Subscription, []Problem) {
	var problems []Problem
	for _, problem := range p.Problems {
		if problem.Kind == "Trigger" && problem.Name == "t" {
			problems = append(problems, problem)
		}
	}
	for _, s := range p.Subscriptions {
		if s.Labels[LabelTrigger] == "t" {
			return &s, problems
		}
	}
	return nil, problems
}

func reasons(problems []Problem) []Reason {
	var list []Reason
	for _, problem := range problems {
		list = append(list, problem.Reason)
	}
	return list
}

func TestTriggerPlacement(t *testing.T) {
	tests := []struct {
		name string
		// input
		spec     string
		settings func(*Settings)
		// expectations
		topic   string
		push    *Push
		reasons []Reason
	}{
		{
			name:  "a ref is resolved and pushed to with a token for its address",
			spec:  toStage,
			topic: "ns-main",
			push:  &Push{Endpoint: "https://stage.example.com", Audience: "https://stage.example.com", ServiceAccount: settings().PushServiceAccount},
		},
		{
			name:  "a relative uri is resolved against the ref",
			spec:  "broker: main\nsubscriber: {ref: {apiVersion: v1, kind: Service, name: stage}, uri: '/push?x=1'}",
			topic: "ns-main",
			push: &Push{Endpoint: "https://stage.example.com/push?x=1", Audience: "https://stage.example.com",
				ServiceAccount: settings().PushServiceAccount},
		},
		{
			name:  "an audience in the Trigger wins",
			spec:  "broker: main\nsubscriber: {uri: 'https://elsewhere.example.com/', audience: fleet}",
			topic: "ns-main",
			push:  &Push{Endpoint: "https://elsewhere.example.com/", Audience: "fleet", ServiceAccount: settings().PushServiceAccount},
		},
		{
			name:     "the audience rule is asked",
			spec:     toStage,
			settings: func(s *Settings) { s.Audience = func(endpoint string) string { return "for " + endpoint } },
			topic:    "ns-main",
			push: &Push{Endpoint: "https://stage.example.com", Audience: "for https://stage.example.com",
				ServiceAccount: settings().PushServiceAccount},
		},
		{
			name:     "without an identity there is no token",
			spec:     toStage,
			settings: func(s *Settings) { s.PushServiceAccount = "" },
			topic:    "ns-main",
			push:     &Push{Endpoint: "https://stage.example.com"},
		},
		{
			name:     "plain HTTP where it is allowed",
			spec:     "broker: main\nsubscriber: {uri: 'http://127.0.0.1:8081/'}",
			settings: func(s *Settings) { s.AllowHTTP, s.PushServiceAccount = true, "" },
			topic:    "ns-main",
			push:     &Push{Endpoint: "http://127.0.0.1:8081/"},
		},
		{
			name:  "brokerRef instead of broker",
			spec:  "brokerRef: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: main}\nsubscriber: {uri: 'https://a.example.com'}",
			topic: "ns-main",
			push:  &Push{Endpoint: "https://a.example.com", Audience: "https://a.example.com", ServiceAccount: settings().PushServiceAccount},
		},
		{name: "a Trigger of another class's Broker is ignored", spec: "broker: memory\nsubscriber: {uri: 'https://a.example.com'}"},
		{name: "plain HTTP", spec: "broker: main\nsubscriber: {uri: 'http://a.example.com'}", reasons: []Reason{ReasonSubscriberNotHTTPS}},
		{name: "no such Broker", spec: "broker: gone\nsubscriber: {uri: 'https://a.example.com'}", reasons: []Reason{ReasonBrokerNotFound}},
		{name: "a refused Broker", spec: "broker: broken\nsubscriber: {uri: 'https://a.example.com'}", reasons: []Reason{ReasonBrokerRefused}},
		{
			name:    "a Broker in another namespace",
			spec:    "brokerRef: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: main, namespace: other}\nsubscriber: {uri: 'https://a.example.com'}",
			reasons: []Reason{ReasonCrossNamespace},
		},
		{
			name:    "no such subscriber",
			spec:    "broker: main\nsubscriber: {ref: {apiVersion: v1, kind: Service, name: nowhere}}",
			reasons: []Reason{ReasonSubscriberUnresolved},
		},
		{name: "no subscriber", spec: "broker: main", reasons: []Reason{ReasonInvalid}},
		{
			name:    "a private certificate authority",
			spec:    "broker: main\nsubscriber: {uri: 'https://a.example.com', CACerts: PEM}",
			reasons: []Reason{ReasonInvalid}, // Knative refuses what is not PEM
		},
		{
			name: "every problem at once",
			spec: "broker: main\nsubscriber: {uri: 'http://a.example.com'}\nfilters: [{suffix: {type: .v1}}]\n" +
				"delivery: {timeout: PT1S, retry: 100, deadLetterSink: {uri: 'https://d.example.com'}}",
			reasons: []Reason{ReasonFilterDialect, ReasonRetry, ReasonTimeout, ReasonDeadLetterSink, ReasonSubscriberNotHTTPS},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			with := settings()
			if test.settings != nil {
				test.settings(&with)
			}
			p := Make(decode(t, trigger(test.spec)), with)
			got, problems := outcome(p)
			if diff := cmp.Diff(test.reasons, reasons(problems)); diff != "" {
				t.Errorf("reasons (-want +got):\n%s%v", diff, problems)
			}
			if (got != nil) != (test.push != nil) {
				t.Fatalf("subscription: %+v, want one: %t", got, test.push != nil)
			}
			if got == nil {
				return
			}
			if got.Topic != test.topic {
				t.Errorf("topic %q, want %q", got.Topic, test.topic)
			}
			if diff := cmp.Diff(test.push, got.Push); diff != "" {
				t.Errorf("push (-want +got):\n%s", diff)
			}
		})
	}
}

func TestARefusedTriggerLeavesTheOthersUnharmed(t *testing.T) {
	p := Make(decode(t, trigger("broker: gone\nsubscriber: {uri: 'https://a.example.com'}")), settings())
	if len(p.Subscriptions) != 1 || p.Subscriptions[0].Labels[LabelTrigger] != "archive" {
		t.Errorf("subscriptions %+v, want that of archive", p.Subscriptions)
	}
	want := "Trigger ns/t: BrokerNotFound: there is no Broker ns/gone: create it, or correct spec.broker"
	var problem error = p.Problems[1]
	if p.Problems[0].Kind != "Broker" || problem.Error() != want {
		t.Errorf("problems %v, want the broken Broker's and %q", p.Problems, want)
	}
}

func TestBrokers(t *testing.T) {
	broker := func(name, annotations, spec string) string {
		return "---\napiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {name: " + name +
			", namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub" + annotations + "}}\nspec: {" + spec + "}\n"
	}
	tests := []struct {
		name string
		// input
		yaml string
		// expectations
		topics  []Topic
		reasons []Reason
	}{
		{
			name:   "a topic of its own",
			yaml:   broker("b", "", ""),
			topics: []Topic{{Name: "ns-b", Create: true, Labels: brokerLabels("robofleet", "ns", "b")}},
		},
		{
			name:   "a named topic",
			yaml:   broker("b", ", pubsub.eventing.robofleet.dev/topic: telemetry", ""),
			topics: []Topic{{Name: "telemetry", Create: true, Labels: brokerLabels("robofleet", "ns", "b")}},
		},
		{
			name:   "a topic that must be there",
			yaml:   broker("b", ", pubsub.eventing.robofleet.dev/topic: telemetry, pubsub.eventing.robofleet.dev/create-topic: 'false'", ""),
			topics: []Topic{{Name: "telemetry", Labels: brokerLabels("robofleet", "ns", "b")}},
		},
		{
			name:   "a name with dots has a label without",
			yaml:   broker("b.c", "", ""),
			topics: []Topic{{Name: "ns-b.c", Create: true, Labels: map[string]string{LabelOwner: "robofleet", LabelNamespace: "ns", LabelBroker: "b_c-" + shortHash("b.c")}}},
		},
		{name: "a reserved topic", yaml: broker("b", ", pubsub.eventing.robofleet.dev/topic: google-x", ""), reasons: []Reason{ReasonTopicName}},
		{name: "an unknown choice", yaml: broker("b", ", pubsub.eventing.robofleet.dev/create-topic: maybe", ""), reasons: []Reason{ReasonAnnotation}},
		{name: "a name that Kubernetes refuses", yaml: broker("B_c", "", ""), reasons: []Reason{ReasonInvalid}},
		{
			name:    "two Brokers on one topic",
			yaml:    broker("b", "", "") + broker("c", ", pubsub.eventing.robofleet.dev/topic: ns-b", ""),
			topics:  []Topic{{Name: "ns-b", Create: true, Labels: brokerLabels("robofleet", "ns", "b")}},
			reasons: []Reason{ReasonTopicConflict},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := Make(decode(t, test.yaml), settings())
			if diff := cmp.Diff(test.topics, p.Topics, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("topics (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.reasons, reasons(p.Problems)); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheOlderOfTwoBrokersKeepsTheTopic(t *testing.T) {
	objects := decode(t, `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: a, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub, pubsub.eventing.robofleet.dev/topic: ns-b}}
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: b, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub}}
`)
	objects.Brokers[0].CreationTimestamp = metav1.NewTime(time.Unix(2_000, 0))
	objects.Brokers[1].CreationTimestamp = metav1.NewTime(time.Unix(1_000, 0))
	p := Make(objects, settings())
	if len(p.Brokers) != 1 || p.Brokers[0].Name != "b" {
		t.Errorf("Brokers %+v, want the older one, b", p.Brokers)
	}
	if len(p.Problems) != 1 || p.Problems[0].Name != "a" || p.Problems[0].Reason != ReasonTopicConflict {
		t.Errorf("problems %+v, want that a may not have the topic", p.Problems)
	}
}

func TestDeadLettersThatNoTriggerTakesAreHeld(t *testing.T) {
	text := strings.Replace(trigger(toStage+"delivery: {retry: 10, deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: dead}}}"),
		"{broker: dead,", "{broker: dead, filter: {attributes: {type: x}},", 1)
	var held []string
	for _, s := range Make(decode(t, text), settings()).Subscriptions {
		if s.Labels[LabelRole] == RoleHold {
			held = append(held, s.Topic)
			if s.Push != nil || s.Filter != "" || s.DeadLetter != nil {
				t.Errorf("the holding subscription is %+v, want one that is pulled and takes everything", s)
			}
		}
	}
	if diff := cmp.Diff([]string{"ns-dead"}, held); diff != "" {
		t.Errorf("topics held (-want +got):\n%s", diff)
	}
}

func TestNameChangesWithWhatCannotBeChanged(t *testing.T) {
	base := subscriptionName("ns", "t", "topic", "")
	if again := subscriptionName("ns", "t", "topic", ""); again != base {
		t.Errorf("the same Trigger gave %s and %s", base, again)
	}
	for _, other := range []string{
		subscriptionName("ns", "t", "topic", `attributes.ce-type = "a"`),
		subscriptionName("ns", "t", "other", ""),
		subscriptionName("n", "s-t", "topic", ""),
	} {
		if other == base {
			t.Errorf("two different subscriptions are both %s", base)
		}
	}
	if long := subscriptionName("ns", strings.Repeat("a", 253), "topic", ""); len(long) > 255 {
		t.Errorf("a name of %d bytes, want at most 255", len(long))
	}
	if name := subscriptionName("google", "t", "topic", ""); strings.HasPrefix(name, "goog") {
		t.Errorf("name %s begins with goog", name)
	}
	if name := subscriptionName("1ns", "t", "topic", ""); name[0] == '1' {
		t.Errorf("name %s begins with a digit", name)
	}
}

func TestResolverErrorReachesThePerson(t *testing.T) {
	with := settings()
	with.Resolve = func(duckv1.KReference) (string, error) { return "", errors.New("Service ns/stage is not ready") }
	_, problems := outcome(Make(decode(t, trigger(toStage)), with))
	if len(problems) != 1 || problems[0].Message != "spec.subscriber: Service ns/stage is not ready" {
		t.Errorf("problems %v, want the resolver's words", problems)
	}
}
