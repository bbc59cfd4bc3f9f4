package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestReady(t *testing.T) {
	c := newCluster(t, twoBrokers+service+triggerYAML("t", toWorker+toDead))
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	broker, trigger := c.broker(t, "main"), c.trigger(t, "t")
	wantConditions(t, "the Broker", map[string]string{
		"Ready": "True", "TopicReady": "True", "IngressReady": "True", "Addressable": "True", "DeadLetterSinkResolved": "True",
	}, &broker.Status)
	wantConditions(t, "the Trigger", map[string]string{
		"Ready": "True", "BrokerReady": "True", "SubscriptionReady": "True", "DependencyReady": "True", "SubscriberResolved": "True",
		"DeadLetterSinkResolved": "True", "OIDCIdentityCreated": "True",
	}, &trigger.Status)
	for what, pair := range map[string][2]string{
		"the Broker's address":   {"http://broker-ingress.robofleet.svc.cluster.local/ns/main", broker.Status.Address.URL.String()},
		"the subscriber":         {"https://worker.ns.example.com", trigger.Status.SubscriberURI.String()},
		"the dead-letter sink":   {"http://broker-ingress.robofleet.svc.cluster.local/ns/dead", trigger.Status.DeadLetterSinkURI.String()},
		"the Broker's observed":  {"3", fmt.Sprint(broker.Status.ObservedGeneration)},
		"the Trigger's observed": {"2", fmt.Sprint(trigger.Status.ObservedGeneration)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", what, pair[1], pair[0])
		}
	}
	if diff := cmp.Diff(map[string]bool{"ns-main": true, "buried": true}, c.server.Topics(t, project)); diff != "" {
		t.Errorf("topics (-want +got):\n%s", diff)
	}
	told := strings.Join(c.told(), "\n")
	for _, want := range []string{"Normal Created topic ns-main", "Normal Created subscription ns-t-", "Normal Ready Trigger is ready", "Normal Ready Broker is ready"} {
		if !strings.Contains(told, want) {
			t.Errorf("events lack %q:\n%s", want, told)
		}
	}
}

func TestAPassThatFindsEverythingInPlaceWritesNothing(t *testing.T) {
	c := newCluster(t, twoBrokers+service+triggerYAML("t", toWorker+toDead)+triggerYAML("broken", toWorker+", filters: [{suffix: {type: x}}]"))
	c.settle(t)
	for range 3 {
		if err := c.pass(t); err != nil {
			t.Fatal(err)
		}
	}
	if writes := c.server.Written(); len(writes) > 0 {
		t.Errorf("writes to Pub/Sub: %q, want none", writes)
	}
	if n := c.writes.Load(); n > 0 {
		t.Errorf("%d writes to the cluster, want none", n)
	}
	if told := c.told(); len(told) > 0 {
		t.Errorf("events %q, want none", told)
	}
}

func TestWhatIsWrongWithATriggerIsInItsConditionsAndHarmsNoOther(t *testing.T) {
	const ok = "True"
	tests := []struct {
		name string
		// input
		spec string
		// expectations: of the conditions that can be other than True
		broker, subscription, subscriber, sink string
		message                                string // of Ready
	}{
		{
			name: "a filter that Pub/Sub cannot express", spec: toWorker + ", filters: [{suffix: {type: x}}]",
			broker: ok, subscription: "False FilterDialectUnsupported", subscriber: "Unknown NotResolved", sink: ok,
			message: "use exact or prefix",
		},
		{
			name: "no such subscriber", spec: "subscriber: {ref: {apiVersion: v1, kind: Service, name: nobody}}",
			broker: ok, subscription: "Unknown NotPlanned", subscriber: "False SubscriberNotResolved", sink: ok,
			message: "Service ns/nobody (v1) does not exist: create it",
		},
		{
			name: "a subscriber without an address", spec: "subscriber: {ref: {apiVersion: v1, kind: ConfigMap, name: settings}}",
			broker: ok, subscription: "Unknown NotPlanned", subscriber: "False SubscriberNotResolved", sink: ok,
			message: "ConfigMap ns/settings (v1) has no address",
		},
		{
			name: "a subscriber without TLS", spec: "subscriber: {uri: 'http://example.com/%41'}",
			broker: ok, subscription: "Unknown NotPlanned", subscriber: "False SubscriberNotHTTPS", sink: ok,
			message: "http://example.com/%41",
		},
		{
			name: "a dead-letter sink that is no Broker", spec: toWorker + ", delivery: {retry: 10, deadLetterSink: {uri: 'https://example.com'}}",
			broker: ok, subscription: "Unknown NotPlanned", subscriber: "Unknown NotResolved", sink: "False DeadLetterSinkUnsupported",
			message: "name a Broker of class PubSub",
		},
		{
			name: "retry and timeout out of range", spec: toWorker + ", delivery: {retry: 2, timeout: PT1S, deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: dead}}}",
			broker: ok, subscription: "False RetryOutOfRange", subscriber: "Unknown NotResolved", sink: "Unknown NotResolved",
			message: "write retry: 4 to 99; spec.delivery.timeout is PT1S",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			settings := "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: ns}\n"
			c := newCluster(t, twoBrokers+service+settings+triggerYAML("t", test.spec)+triggerYAML("other", toWorker))
			if err := c.pass(t); err != nil {
				t.Fatal(err)
			}
			trigger := c.trigger(t, "t")
			got := conditions(&trigger.Status)
			for condition, want := range map[string]string{
				"BrokerReady": test.broker, "SubscriptionReady": test.subscription, "SubscriberResolved": test.subscriber, "DeadLetterSinkResolved": test.sink,
			} {
				if got[condition] != want {
					t.Errorf("%s is %q, want %q", condition, got[condition], want)
				}
			}
			if !strings.HasPrefix(got["Ready"], "False ") || !strings.Contains(message(&trigger.Status), test.message) {
				t.Errorf("Ready is %q with message %q, want False and %q", got["Ready"], message(&trigger.Status), test.message)
			}
			if other := c.trigger(t, "other"); !other.Status.IsReady() {
				t.Errorf("the other Trigger is harmed: %v", conditions(&other.Status))
			}
		})
	}
}

func TestAMissingBrokerIsReportedUntilItComes(t *testing.T) {
	c := newCluster(t, service+triggerYAML("t", toWorker))
	c.settle(t)
	trigger := c.trigger(t, "t")
	if got := conditions(&trigger.Status)["BrokerReady"]; got != "False BrokerNotFound" {
		t.Errorf("BrokerReady is %q, want False BrokerNotFound", got)
	}
	if len(trigger.Finalizers) > 0 {
		t.Errorf("finalizers %q on a Trigger that may be another class's", trigger.Finalizers)
	}
	broker := decode(t, strings.Split(twoBrokers, "\n---")[0])
	if err := c.Client.Create(t.Context(), broker); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	if trigger := c.trigger(t, "t"); !trigger.Status.IsReady() {
		t.Errorf("after the Broker came: %v", conditions(&trigger.Status))
	}
}

func TestARefusedBrokerSaysWhyAndItsTriggersToo(t *testing.T) {
	text := strings.Replace(twoBrokers, "pubsub.eventing.robofleet.dev/topic: buried", "pubsub.eventing.robofleet.dev/topic: google-x", 1)
	c := newCluster(t, text+service+strings.Replace(triggerYAML("t", toWorker), "broker: main", "broker: dead", 1))
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	broker, trigger := c.broker(t, "dead"), c.trigger(t, "t")
	wantConditions(t, "the Broker", map[string]string{
		"Ready": "False TopicNameInvalid", "TopicReady": "False TopicNameInvalid", "IngressReady": "Unknown TopicNameInvalid",
		"Addressable": "False TopicNameInvalid", "DeadLetterSinkResolved": "True",
	}, &broker.Status)
	if broker.Status.Address != nil {
		t.Errorf("address %v of a Broker that has none", broker.Status.Address)
	}
	if got := conditions(&trigger.Status)["BrokerReady"]; got != "False BrokerRefused" {
		t.Errorf("BrokerReady is %q, want False BrokerRefused", got)
	}
}

func TestOtherClassesAreLeftAlone(t *testing.T) {
	c := newCluster(t, strings.ReplaceAll(twoBrokers, ": PubSub", ": MTChannelBasedBroker")+service+triggerYAML("t", toWorker))
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	if n := c.writes.Load(); n != 1 { // the empty list for broker-ingress
		t.Errorf("%d writes to the cluster, want that of the ConfigMap", n)
	}
	if writes := c.server.Written(); len(writes) > 0 {
		t.Errorf("writes to Pub/Sub: %q, want none", writes)
	}
}

func TestDeletedObjectsTakeAlongWhatWasMadeForThem(t *testing.T) {
	c := newCluster(t, twoBrokers+service+triggerYAML("t", toWorker)+triggerYAML("u", toWorker))
	c.settle(t)
	remove := func(object client.Object) {
		t.Helper()
		if err := c.Client.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	gone := func(object client.Object) bool {
		t.Helper()
		return apierrors.IsNotFound(c.Client.Get(t.Context(), client.ObjectKeyFromObject(object), object))
	}

	trigger := c.trigger(t, "t")
	remove(trigger)
	c.server.Fail("DeleteSubscription", status.Error(codes.PermissionDenied, "no"))
	if err := c.pass(t); err == nil || !strings.Contains(err.Error(), "roles/pubsub.editor") {
		t.Errorf("error %v, want one that names the role", err)
	}
	if gone(trigger) {
		t.Error("the Trigger went and its subscription stayed")
	}
	c.server.Fail("DeleteSubscription", nil)
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	if !gone(trigger) {
		t.Error("the Trigger stayed when its subscription was gone")
	}
	if n := len(c.server.Subscriptions(t, project)); n != 1 {
		t.Errorf("%d subscriptions are left, want that of the other Trigger", n)
	}

	// A Broker goes, and its topic stays for as long as a Trigger has a backlog from it.
	broker := c.broker(t, "main")
	remove(broker)
	c.told()
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	if !gone(broker) || !c.server.Topics(t, project)["ns-main"] {
		t.Errorf("Broker gone: %v, topics %v; want that the Broker goes and its topic is kept", gone(broker), c.server.Topics(t, project))
	}
	if told := strings.Join(c.told(), "\n"); !strings.Contains(told, "Warning Kept topic ns-main is kept: it still has subscriptions") {
		t.Errorf("events do not tell that the topic is kept:\n%s", told)
	}
	if got := conditions(&c.trigger(t, "u").Status)["BrokerReady"]; got != "False BrokerNotFound" {
		t.Errorf("BrokerReady of the other Trigger is %q, want False BrokerNotFound", got)
	}
	remove(c.trigger(t, "u"))
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	if topics := c.server.Topics(t, project); topics["ns-main"] || !topics["buried"] {
		t.Errorf("topics %v, want that ns-main went with its last Trigger", topics)
	}
}

func TestAnAdoptedTopicIsUsedAndNeverDeleted(t *testing.T) {
	c := newCluster(t, twoBrokers)
	if _, err := c.server.CreateTopic(t.Context(), &pubsubpb.Topic{Name: "projects/" + project + "/topics/buried"}); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	if err := c.Client.Delete(t.Context(), c.broker(t, "dead")); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	if !c.server.Topics(t, project)["buried"] {
		t.Error("somebody else's topic was deleted")
	}
}

func TestAnOrphanIsNotDeletedUnlessItsTriggerWas(t *testing.T) {
	c := newCluster(t, twoBrokers+service+triggerYAML("t", toWorker))
	c.settle(t)
	// As after a restore of the cluster from an old backup: the Trigger is not there, and was not deleted either.
	trigger := c.trigger(t, "t")
	trigger.Finalizers = nil
	if err := c.Client.Update(t.Context(), trigger); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Delete(t.Context(), trigger); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	if n := len(c.server.Subscriptions(t, project)); n != 1 {
		t.Errorf("%d subscriptions, want that the backlog is kept", n)
	}
}

func TestDriftIsRepaired(t *testing.T) {
	c := newCluster(t, twoBrokers+service+triggerYAML("t", toWorker))
	c.settle(t)
	before := c.server.Subscriptions(t, project)
	var name string
	for name = range before {
		if _, err := c.server.DeleteSubscription(t.Context(), &pubsubpb.DeleteSubscriptionRequest{
			Subscription: "projects/" + project + "/subscriptions/" + name,
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.server.DeleteTopic(t.Context(), &pubsubpb.DeleteTopicRequest{Topic: "projects/" + project + "/topics/buried"}); err != nil {
		t.Fatal(err)
	}
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"CreateTopic buried", "CreateSubscription " + name}, c.server.Written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
}

func TestAChangedFilterIsHandedOver(t *testing.T) {
	c := newCluster(t, twoBrokers+service+triggerYAML("t", toWorker))
	c.settle(t)
	trigger := c.trigger(t, "t")
	trigger.Spec.Filter = &eventingv1.TriggerFilter{Attributes: map[string]string{"type": "x"}}
	if err := c.Client.Update(t.Context(), trigger); err != nil {
		t.Fatal(err)
	}
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	var calls []string
	for _, write := range c.server.Written() {
		calls = append(calls, strings.Fields(write)[0])
	}
	if diff := cmp.Diff([]string{"CreateSnapshot", "CreateSubscription", "Seek", "DeleteSubscription", "UpdateSubscription"}, calls); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if told := strings.Join(c.told(), "\n"); !strings.Contains(told, "Normal Replaced subscription ns-t-") {
		t.Errorf("events do not tell of it:\n%s", told)
	}
}

func TestFailuresOfPubSub(t *testing.T) {
	tests := []struct {
		name string
		// input
		method string
		err    error
		// expectations
		topic, subscription string
		message             string
	}{
		{
			name: "no permission to create subscriptions", method: "CreateSubscription", err: status.Error(codes.PermissionDenied, "no"),
			topic: "True", subscription: "False PermissionDenied", message: "roles/pubsub.editor",
		},
		{
			name: "no permission to create topics", method: "CreateTopic", err: status.Error(codes.PermissionDenied, "no"),
			topic: "False PermissionDenied", subscription: "False NotFound", message: "roles/pubsub.editor",
		},
		{
			name: "no permission to look", method: "ListTopics", err: status.Error(codes.PermissionDenied, "no"),
			topic: "False PermissionDenied", subscription: "False PermissionDenied", message: "roles/pubsub.editor",
		},
		{
			name: "an outage", method: "ListSubscriptions", err: status.Error(codes.Unavailable, "down"),
			topic: "Unknown PubSubUnavailable", subscription: "Unknown PubSubUnavailable", message: "did not answer in time",
		},
		{
			name: "over quota", method: "CreateSubscription", err: status.Error(codes.ResourceExhausted, "slow down"),
			topic: "True", subscription: "Unknown QuotaExceeded", message: "slow down",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, twoBrokers+service+triggerYAML("t", toWorker))
			c.Settings.CallTimeout = 300 * time.Millisecond // the client retries an outage for as long
			c.server.Fail(test.method, test.err)
			if err := c.pass(t); err == nil {
				t.Error("no error, and so no other pass soon")
			}
			broker, trigger := c.broker(t, "main"), c.trigger(t, "t")
			if got := conditions(&broker.Status)["TopicReady"]; got != test.topic {
				t.Errorf("TopicReady is %q, want %q", got, test.topic)
			}
			if got := conditions(&trigger.Status)["SubscriptionReady"]; got != test.subscription {
				t.Errorf("SubscriptionReady is %q, want %q", got, test.subscription)
			}
			if all := message(&trigger.Status) + message(&broker.Status); !strings.Contains(all, test.message) {
				t.Errorf("messages %q, want %q in one", all, test.message)
			}

			c.server.Fail(test.method, nil)
			if err := c.pass(t); err != nil {
				t.Fatalf("when it is over: %v", err)
			}
			if trigger := c.trigger(t, "t"); !trigger.Status.IsReady() {
				t.Errorf("when it is over: %v", conditions(&trigger.Status))
			}
		})
	}
}

func TestATriggerWhoseFinalizerIsRefusedIsNotSubscribed(t *testing.T) {
	c := newCluster(t, twoBrokers+service+triggerYAML("t", toWorker)+triggerYAML("u", toWorker))
	c.Client = refusing{c.Client}
	if err := c.pass(t); err == nil || !strings.Contains(err.Error(), "webhook") {
		t.Errorf("error %v, want that of the webhook", err)
	}
	if got := conditions(&c.trigger(t, "t").Status)["SubscriptionReady"]; got != "False FinalizerRefused" {
		t.Errorf("SubscriptionReady is %q, want False FinalizerRefused", got)
	}
	if trigger := c.trigger(t, "u"); !trigger.Status.IsReady() {
		t.Errorf("the other Trigger is harmed: %v", conditions(&trigger.Status))
	}
}

// refusing is a cluster whose webhook refuses every change of Trigger t.
type refusing struct{ client.Client }

func (r refusing) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.PatchOption) error {
	if object.GetName() == "t" {
		return errors.New("admission webhook denied the request")
	}
	return r.Client.Patch(ctx, object, patch, options...)
}

// TestManyTriggers holds the promise of 500 Triggers within a minute far from its limit; Pub/Sub itself adds its own time,
// 0.1 to 1 s for each of the writes, PARALLEL of them at once.
func TestManyTriggers(t *testing.T) {
	const n = 500
	var text strings.Builder
	text.WriteString(twoBrokers + service)
	for i := range n {
		text.WriteString(triggerYAML(fmt.Sprintf("t%03d", i), toWorker+fmt.Sprintf(", filter: {attributes: {type: t%03d}}", i)+toDead))
	}
	c := newCluster(t, text.String())
	c.Settings.Parallel, c.Settings.CallTimeout = 10, time.Minute
	start := time.Now()
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	first := time.Since(start)
	if written := len(c.server.Written()); written != n+3 { // two topics, and the subscription that holds the dead letters
		t.Errorf("%d writes, want %d", written, n+3)
	}
	for i := range n {
		if trigger := c.trigger(t, fmt.Sprintf("t%03d", i)); !trigger.Status.IsReady() {
			t.Fatalf("Trigger %d: %v", i, conditions(&trigger.Status))
		}
	}
	c.told()
	start = time.Now()
	if err := c.pass(t); err != nil {
		t.Fatal(err)
	}
	if written := c.server.Written(); len(written) > 0 {
		t.Errorf("a second pass writes %d times, want never", len(written))
	}
	t.Logf("%d Triggers: first pass %v, second %v", n, first.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
}
