package plan

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDelivery(t *testing.T) {
	const sink = "deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: dead}}"
	backoff := func(least time.Duration) *Backoff {
		return &Backoff{Min: seconds(least), Max: seconds(600 * time.Second)}
	}
	tests := []struct {
		name string
		// input
		delivery string
		// expectations
		ackDeadline time.Duration
		backoff     *Backoff
		deadLetter  *DeadLetter
		reasons     []Reason
	}{
		{name: "nothing said", delivery: "", ackDeadline: 10 * time.Second},
		{name: "timeout", delivery: "timeout: PT30S", ackDeadline: 30 * time.Second},
		{name: "shortest timeout", delivery: "timeout: PT10S", ackDeadline: 10 * time.Second},
		{name: "longest timeout", delivery: "timeout: PT10M", ackDeadline: 600 * time.Second},
		{name: "timeout too short", delivery: "timeout: PT9S", reasons: []Reason{ReasonTimeout}},
		{name: "timeout too long", delivery: "timeout: PT601S", reasons: []Reason{ReasonTimeout}},
		{name: "timeout of a broken second", delivery: "timeout: PT10.5S", reasons: []Reason{ReasonTimeout}},
		{name: "timeout of a month", delivery: "timeout: P1M", reasons: []Reason{ReasonTimeout}},
		{name: "timeout that is not ISO 8601", delivery: "timeout: 30s", reasons: []Reason{ReasonInvalid}},

		{name: "fewest retries", delivery: "{retry: 4, " + sink + "}", ackDeadline: 10 * time.Second, deadLetter: &DeadLetter{Topic: "ns-dead", Attempts: 5}},
		{name: "most retries", delivery: "{retry: 99, " + sink + "}", ackDeadline: 10 * time.Second, deadLetter: &DeadLetter{Topic: "ns-dead", Attempts: 100}},
		{name: "too few retries", delivery: "{retry: 3, " + sink + "}", reasons: []Reason{ReasonRetry}},
		{name: "too many retries", delivery: "{retry: 100, " + sink + "}", reasons: []Reason{ReasonRetry}},
		{name: "more retries than fit", delivery: "{retry: 2147483647, " + sink + "}", reasons: []Reason{ReasonRetry}},
		{name: "negative retries", delivery: "{retry: -1, " + sink + "}", reasons: []Reason{ReasonInvalid}},
		{name: "a sink without retry", delivery: sink, reasons: []Reason{ReasonRetry}},
		{name: "retry without a sink", delivery: "retry: 10", reasons: []Reason{ReasonRetryWithoutSink}},

		{name: "backoff", delivery: "{backoffPolicy: exponential, backoffDelay: PT0.5S}", ackDeadline: 10 * time.Second, backoff: backoff(500 * time.Millisecond)},
		{name: "no backoff", delivery: "{backoffPolicy: exponential, backoffDelay: PT0S}", ackDeadline: 10 * time.Second, backoff: backoff(0)},
		{name: "longest backoff", delivery: "{backoffPolicy: exponential, backoffDelay: PT10M}", ackDeadline: 10 * time.Second, backoff: backoff(600 * time.Second)},
		{name: "backoff too long", delivery: "{backoffPolicy: exponential, backoffDelay: PT11M}", reasons: []Reason{ReasonBackoff}},
		{name: "backoff negative", delivery: "{backoffPolicy: exponential, backoffDelay: -PT1S}", reasons: []Reason{ReasonBackoff}},
		{name: "backoff finer than Knative reads", delivery: "{backoffPolicy: exponential, backoffDelay: PT0.25S}", reasons: []Reason{ReasonBackoff}},
		{name: "linear backoff", delivery: "{backoffPolicy: linear, backoffDelay: PT1S}", reasons: []Reason{ReasonBackoffPolicy}},
		{name: "a delay without a policy", delivery: "backoffDelay: PT1S", reasons: []Reason{ReasonBackoffPolicy}},
		{name: "a policy without a delay", delivery: "backoffPolicy: exponential", reasons: []Reason{ReasonBackoffPolicy}},

		{name: "Retry-After opted out", delivery: "retryAfterMax: PT0S", ackDeadline: 10 * time.Second},
		{name: "Retry-After", delivery: "retryAfterMax: PT5S", reasons: []Reason{ReasonRetryAfter}},
		{name: "binary mode", delivery: "format: binary", ackDeadline: 10 * time.Second},
		{name: "structured mode", delivery: "format: json", reasons: []Reason{ReasonFormat}},

		{name: "a sink that is an address", delivery: "{retry: 9, deadLetterSink: {uri: 'https://a.example.com'}}", reasons: []Reason{ReasonDeadLetterSink}},
		{
			name:     "a sink that is a Service",
			delivery: "{retry: 9, deadLetterSink: {ref: {apiVersion: v1, kind: Service, name: dead}}}", reasons: []Reason{ReasonDeadLetterSink},
		},
		{
			name:     "a sink of another class",
			delivery: "{retry: 9, deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: memory}}}", reasons: []Reason{ReasonDeadLetterSink},
		},
		{
			name:     "a sink that is refused",
			delivery: "{retry: 9, deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: broken}}}", reasons: []Reason{ReasonDeadLetterSink},
		},
		{
			name:     "a sink that is not there",
			delivery: "{retry: 9, deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: gone}}}", reasons: []Reason{ReasonDeadLetterSink},
		},
		{
			name:     "a sink that is the source",
			delivery: "{retry: 9, deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: main}}}", reasons: []Reason{ReasonDeadLetterLoop},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			delivery := test.delivery
			if delivery != "" && delivery[0] != '{' {
				delivery = "{" + delivery + "}"
			}
			spec := toStage
			if delivery != "" {
				spec += "delivery: " + delivery
			}
			got, problems := outcome(Make(decode(t, trigger(spec)), settings()))
			if diff := cmp.Diff(test.reasons, reasons(problems)); diff != "" {
				t.Errorf("reasons (-want +got):\n%s%v", diff, problems)
			}
			if (got != nil) != (test.reasons == nil) {
				t.Fatalf("subscription %+v with reasons %v", got, problems)
			}
			if got == nil {
				return
			}
			if got.AckDeadline.Duration != test.ackDeadline {
				t.Errorf("ack deadline %s, want %s", got.AckDeadline.Duration, test.ackDeadline)
			}
			if diff := cmp.Diff(test.backoff, got.Backoff); diff != "" {
				t.Errorf("backoff (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.deadLetter, got.DeadLetter); diff != "" {
				t.Errorf("dead letter (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeliveryOfTheBrokerHoldsUnlessTheTriggerSays(t *testing.T) {
	const broker = `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: main, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub}}
spec: {delivery: {timeout: PT40S, backoffPolicy: exponential, backoffDelay: PT5S}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: ns}
spec:
  broker: main
  subscriber: {uri: 'https://a.example.com'}
`
	got, problems := outcome(Make(decode(t, broker), settings()))
	if len(problems) > 0 || got.AckDeadline.Duration != 40*time.Second || got.Backoff.Min.Duration != 5*time.Second {
		t.Errorf("subscription %+v, problems %v, want the Broker's delivery", got, problems)
	}
	got, problems = outcome(Make(decode(t, broker+"  delivery: {timeout: PT20S}\n"), settings()))
	if len(problems) > 0 || got.AckDeadline.Duration != 20*time.Second || got.Backoff != nil {
		t.Errorf("subscription %+v, problems %v, want the Trigger's delivery as a whole", got, problems)
	}
}

func TestWhatTheClusterWritesIntoABrokerIsNotTheUsers(t *testing.T) {
	const broker = `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: main, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub}}
spec:
  config: {apiVersion: v1, kind: ConfigMap, name: config-br-default-channel, namespace: knative-eventing}
  delivery: {retry: 10, backoffPolicy: exponential, backoffDelay: PT0.2S}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: ns}
spec: {broker: main, subscriber: {uri: 'https://a.example.com'}}
`
	got, problems := outcome(Make(decode(t, broker), settings()))
	if len(problems) > 0 || got.Backoff != nil || got.DeadLetter != nil {
		t.Errorf("subscription %+v, problems %v, want one without a delivery", got, problems)
	}
}
