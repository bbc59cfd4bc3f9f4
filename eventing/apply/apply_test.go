package apply

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/robofleet/robofleet/eventing"
	"github.com/robofleet/robofleet/eventing/internal/pubsubtest"
	"github.com/robofleet/robofleet/eventing/plan"
)

const project = "robofleet-test"

func start(t *testing.T) (*pubsubtest.Server, *pubsub.Client) {
	t.Helper()
	server := pubsubtest.Start(t)
	return server, server.Client(t, project)
}

// withoutLabels leaves the labels of actions out of a comparison: they are those of the plan.
var withoutLabels = cmpopts.IgnoreFields(Action{}, "Labels")

func settings() plan.Settings {
	return plan.Settings{
		Project: project, Owner: "robofleet", PushServiceAccount: "push@robofleet-test.iam.gserviceaccount.com",
		Resolve: func(ref duckv1.KReference) (string, error) { return "https://" + ref.Name + ".example.com", nil },
	}
}

func platform(t *testing.T) plan.Objects {
	t.Helper()
	objects, err := plan.Load(eventing.Manifests)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// small is a plan of one Broker and one Trigger with filter attributes.
func small(t *testing.T, attributes string) plan.Plan {
	t.Helper()
	objects, err := plan.Decode([]byte(`
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: b, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: ns}
spec: {broker: b, filter: {attributes: {` + attributes + `}}, subscriber: {uri: 'https://a.example.com'}}
`))
	if err != nil {
		t.Fatal(err)
	}
	p := plan.Make(objects, settings())
	if len(p.Problems) > 0 {
		t.Fatal(p.Problems)
	}
	return p
}

func apply(t *testing.T, client *pubsub.Client, p plan.Plan, options Options) Report {
	t.Helper()
	report, err := Apply(t.Context(), client, p, options)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return report
}

func get(t *testing.T, client *pubsub.Client, name string) *pubsubpb.Subscription {
	t.Helper()
	s, err := client.SubscriptionAdminClient.GetSubscription(t.Context(), &pubsubpb.GetSubscriptionRequest{
		Subscription: "projects/" + project + "/subscriptions/" + name,
	})
	if err != nil {
		t.Fatalf("GetSubscription: %v", err)
	}
	return s
}

func TestApplyCreatesThePlanAndASecondTimeWritesNothing(t *testing.T) {
	server, client := start(t)
	p := plan.Make(platform(t), settings())
	apply(t, client, p, Options{Prune: true})
	want := []string{
		"CreateTopic robofleet-dead-letters",
		"CreateTopic robofleet-events",
		"CreateTopic robofleet-telemetry",
		"CreateSubscription robofleet-dead-letter-archive-0c0e22a8", // before anything is forwarded to it
		"CreateSubscription robofleet-cold-archive-b0eba684",
		"CreateSubscription robofleet-hot-write-84fed453",
		"CreateSubscription robofleet-validate-974ef724",
	}
	if diff := cmp.Diff(want, server.Written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}

	report := apply(t, client, p, Options{Prune: true})
	if writes := server.Written(); len(writes) > 0 || len(report.Actions) > 0 {
		t.Errorf("a second time: writes %q, report %+v, want nothing", writes, report)
	}
}

func TestSubscriptionIsWhatTheTriggerSays(t *testing.T) {
	_, client := start(t)
	apply(t, client, plan.Make(platform(t), settings()), Options{})
	want := &pubsubpb.Subscription{
		Name:  "projects/robofleet-test/subscriptions/robofleet-hot-write-84fed453",
		Topic: "projects/robofleet-test/topics/robofleet-events",
		PushConfig: &pubsubpb.PushConfig{
			PushEndpoint: "https://hot-write.example.com",
			AuthenticationMethod: &pubsubpb.PushConfig_OidcToken_{OidcToken: &pubsubpb.PushConfig_OidcToken{
				ServiceAccountEmail: "push@robofleet-test.iam.gserviceaccount.com", Audience: "https://hot-write.example.com",
			}},
			Wrapper: &pubsubpb.PushConfig_NoWrapper_{NoWrapper: &pubsubpb.PushConfig_NoWrapper{WriteMetadata: true}},
		},
		AckDeadlineSeconds:       60,
		MessageRetentionDuration: durationpb.New(7 * 24 * time.Hour),
		ExpirationPolicy:         &pubsubpb.ExpirationPolicy{},
		Filter:                   `attributes.ce-type = "dev.robofleet.telemetry.validated.v1"`,
		DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{
			DeadLetterTopic: "projects/robofleet-test/topics/robofleet-dead-letters", MaxDeliveryAttempts: 100,
		},
		RetryPolicy: &pubsubpb.RetryPolicy{
			MinimumBackoff: durationpb.New(500 * time.Millisecond), MaximumBackoff: durationpb.New(600 * time.Second),
		},
		Labels: map[string]string{"eventing-owner": "robofleet", "eventing-namespace": "robofleet", "eventing-trigger": "hot-write"},
	}
	got := get(t, client, "robofleet-hot-write-84fed453")
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&pubsubpb.Subscription{}, "state")); diff != "" {
		t.Errorf("subscription (-want +got):\n%s", diff)
	}
}

func TestDriftIsUpdatedFieldByField(t *testing.T) {
	tests := []struct {
		name string
		// input: what somebody did to the subscription
		fields []string
		change func(*pubsubpb.Subscription)
		// expectations
		updated []string // nil: nothing is written
	}{
		{"ack deadline", []string{"ack_deadline_seconds"}, func(s *pubsubpb.Subscription) { s.AckDeadlineSeconds = 11 }, []string{"ack_deadline_seconds"}},
		{"dead letters", []string{"dead_letter_policy"}, func(s *pubsubpb.Subscription) { s.DeadLetterPolicy = nil }, []string{"dead_letter_policy"}},
		{
			"expiration", []string{"expiration_policy"},
			func(s *pubsubpb.Subscription) {
				s.ExpirationPolicy = &pubsubpb.ExpirationPolicy{Ttl: durationpb.New(31 * 24 * time.Hour)}
			},
			[]string{"expiration_policy"},
		},
		{
			"retention", []string{"message_retention_duration"},
			func(s *pubsubpb.Subscription) { s.MessageRetentionDuration = durationpb.New(time.Hour) }, []string{"message_retention_duration"},
		},
		{
			"endpoint and backoff", []string{"push_config", "retry_policy"},
			func(s *pubsubpb.Subscription) { s.PushConfig, s.RetryPolicy = &pubsubpb.PushConfig{}, nil },
			[]string{"push_config", "retry_policy"},
		},
		{"a label of ours", []string{"labels"}, func(s *pubsubpb.Subscription) { delete(s.Labels, plan.LabelTrigger) }, []string{"labels"}},
		{"a label of somebody else", []string{"labels"}, func(s *pubsubpb.Subscription) { s.Labels["cost-center"] = "7" }, nil},
		{
			"what the server adds to a push_config", []string{"push_config"},
			func(s *pubsubpb.Subscription) {
				s.PushConfig.Attributes = map[string]string{"x-goog-version": "v1"}
			}, nil,
		},
	}
	const name = "robofleet-hot-write-84fed453"
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server, client := start(t)
			p := plan.Make(platform(t), settings())
			apply(t, client, p, Options{})
			want := get(t, client, name)
			changed := get(t, client, name)
			test.change(changed)
			if _, err := server.UpdateSubscription(t.Context(), &pubsubpb.UpdateSubscriptionRequest{
				Subscription: changed, UpdateMask: &fieldmaskpb.FieldMask{Paths: test.fields},
			}); err != nil {
				t.Fatal(err)
			}
			server.Written()

			report := apply(t, client, p, Options{Prune: true})
			if test.updated == nil {
				if writes := server.Written(); len(writes) > 0 {
					t.Errorf("writes %q, want none", writes)
				}
				return
			}
			if diff := cmp.Diff([]string{"UpdateSubscription " + name + " " + strings.Join(test.updated, ",")}, server.Written()); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]Action{{Verb: Update, Kind: "subscription", Name: name, Fields: test.updated}}, report.Actions, withoutLabels); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, get(t, client, name), protocmp.Transform()); diff != "" {
				t.Errorf("subscription (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDryRunReportsAndWritesNothing(t *testing.T) {
	server, client := start(t)
	p := small(t, "type: a")
	dry := apply(t, client, p, Options{DryRun: true, Prune: true})
	if writes := server.Written(); len(writes) > 0 {
		t.Errorf("writes %q in a dry run", writes)
	}
	done := apply(t, client, p, Options{Prune: true})
	if diff := cmp.Diff(done, dry); diff != "" || len(done.Actions) == 0 {
		t.Errorf("report of the dry run (-done +dry):\n%s", diff)
	}
	server.Written()

	q := small(t, "type: b")
	dry = apply(t, client, q, Options{DryRun: true, Prune: true})
	if writes := server.Written(); len(writes) > 0 {
		t.Errorf("writes %q in a dry run", writes)
	}
	if diff := cmp.Diff(apply(t, client, q, Options{Prune: true}), dry); diff != "" {
		t.Errorf("report of the dry run of a replacement (-done +dry):\n%s", diff)
	}
}

func TestAChangedFilterHandsTheBacklogOver(t *testing.T) {
	server, client := start(t)
	before, after := small(t, "type: a"), small(t, "type: b")
	old, replacement := before.Subscriptions[0].Name, after.Subscriptions[0].Name
	apply(t, client, before, Options{})
	server.Written()

	report := apply(t, client, after, Options{})
	want := []string{
		"CreateSnapshot " + old, // first: it keeps what is published from here on
		"CreateSubscription " + replacement,
		"Seek " + replacement,
		"DeleteSubscription " + old,
		"UpdateSubscription " + replacement + " labels",
	}
	if diff := cmp.Diff(want, server.Written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Action{{Verb: Replace, Kind: "subscription", Name: replacement, Detail: old}}, report.Actions, withoutLabels); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if got := get(t, client, replacement); got.Labels[labelHandover] != "" || got.Filter != `attributes.ce-type = "b"` {
		t.Errorf("the replacement is %v", got)
	}
	if again := apply(t, client, after, Options{Prune: true}); len(again.Actions) > 0 {
		t.Errorf("a second time did %+v, want nothing", again)
	}
}

func TestAnInterruptedHandoverIsContinued(t *testing.T) {
	for _, method := range []string{"CreateSnapshot", "CreateSubscription", "Seek", "DeleteSubscription", "UpdateSubscription"} {
		t.Run(method, func(t *testing.T) {
			server, client := start(t)
			before, after := small(t, "type: a"), small(t, "type: b")
			old, replacement := before.Subscriptions[0].Name, after.Subscriptions[0].Name
			apply(t, client, before, Options{})
			server.Fail(method, status.Error(codes.PermissionDenied, "no"))
			if _, err := Apply(t.Context(), client, after, Options{Prune: true}); err == nil || !strings.Contains(err.Error(), "roles/pubsub.editor") {
				t.Fatalf("error %v, want one that names the role", err)
			}
			sought := false
			for _, write := range server.Written() {
				sought = sought || write == "Seek "+replacement
				if write == "DeleteSubscription "+old && !sought {
					t.Error("the old subscription was deleted with its backlog")
				}
			}
			server.Fail(method, nil)
			report := apply(t, client, after, Options{Prune: true})

			subscriptions := server.Subscriptions(t, project)
			if method == "CreateSnapshot" {
				// Nothing could be handed over: both deliver, until a person deletes the old one.
				if diff := cmp.Diff(map[string]bool{old: true, replacement: true}, subscriptions); diff != "" {
					t.Errorf("subscriptions (-want +got):\n%s", diff)
				}
				if len(report.Actions) != 1 || report.Actions[0].Verb != Keep {
					t.Errorf("report %+v, want that the old one is kept", report)
				}
				return
			}
			if diff := cmp.Diff(map[string]bool{replacement: true}, subscriptions); diff != "" {
				t.Errorf("subscriptions (-want +got):\n%s", diff)
			}
			if label := get(t, client, replacement).Labels[labelHandover]; label != "" {
				t.Errorf("the replacement still waits for snapshot %s", label)
			}
		})
	}
}

func TestAHandoverWhoseSnapshotIsGoneStops(t *testing.T) {
	server, client := start(t)
	before, after := small(t, "type: a"), small(t, "type: b")
	apply(t, client, before, Options{})
	server.Fail("Seek", status.Error(codes.PermissionDenied, "no"))
	if _, err := Apply(t.Context(), client, after, Options{}); err == nil {
		t.Fatal("no error from a failing seek")
	}
	server.Fail("Seek", nil)
	server.ForgetSnapshots()
	_, err := Apply(t.Context(), client, after, Options{Prune: true})
	if err == nil || !strings.Contains(err.Error(), "let the predecessor deliver its backlog") {
		t.Errorf("error %v, want one that says what to do", err)
	}
	if names := server.Subscriptions(t, project); len(names) != 2 {
		t.Errorf("subscriptions %v, want both", names)
	}
}

func TestSnapshotsOfOldHandoversAreDeleted(t *testing.T) {
	server, client := start(t)
	snapshot := func(name, created string) {
		server.PutSnapshot(&pubsubpb.Snapshot{
			Name:   "projects/" + project + "/snapshots/" + name,
			Labels: map[string]string{plan.LabelOwner: "robofleet", labelCreated: created},
		})
	}
	snapshot("old", "1700000000")
	snapshot("new", "99999999999")
	snapshot("by-hand", "")
	apply(t, client, small(t, "type: a"), Options{})
	if diff := cmp.Diff([]string{"by-hand", "new"}, server.Snapshots()); diff != "" {
		t.Errorf("snapshots (-want +got):\n%s", diff)
	}
}

func TestHeldDeadLettersGoToTheFirstTriggerThatTakesThem(t *testing.T) {
	server, client := start(t)
	objects := platform(t)
	without := objects
	without.Triggers = nil
	for _, trigger := range objects.Triggers {
		if trigger.Name != "dead-letter-archive" {
			without.Triggers = append(without.Triggers, trigger)
		}
	}
	apply(t, client, plan.Make(without, settings()), Options{})
	server.Written()
	report := apply(t, client, plan.Make(objects, settings()), Options{Prune: true})
	if len(report.Actions) != 1 || report.Actions[0].Verb != Replace || !strings.HasPrefix(report.Actions[0].Detail, "robofleet-dead-letters-hold-") {
		t.Errorf("report %+v, want that dead-letter-archive replaces the holding subscription", report)
	}
}

func TestOnlyOursIsTouched(t *testing.T) {
	server, client := start(t)
	ctx := t.Context()
	topic := func(name string, labels map[string]string) {
		if _, err := server.CreateTopic(ctx, &pubsubpb.Topic{Name: "projects/" + project + "/topics/" + name, Labels: labels}); err != nil {
			t.Fatal(err)
		}
	}
	subscription := func(name string, labels map[string]string) {
		if _, err := server.CreateSubscription(ctx, &pubsubpb.Subscription{
			Name: "projects/" + project + "/subscriptions/" + name, Topic: "projects/" + project + "/topics/foreign", AckDeadlineSeconds: 10, Labels: labels,
		}); err != nil {
			t.Fatal(err)
		}
	}
	p := small(t, "type: a")
	topic("foreign", nil)
	topic("ns-b", map[string]string{"team": "x"}) // adopted
	subscription("foreign", nil)
	subscription("other-installation", map[string]string{plan.LabelOwner: "staging"})
	apply(t, client, p, Options{Prune: true})
	if diff := cmp.Diff([]string{"CreateSubscription " + p.Subscriptions[0].Name}, server.Written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}

	// Nothing is planned any more: what is ours goes, and the adopted topic stays.
	none := p
	none.Topics, none.Subscriptions = nil, nil
	apply(t, client, none, Options{Prune: true})
	if diff := cmp.Diff([]string{"DeleteSubscription " + p.Subscriptions[0].Name}, server.Written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
}

func TestAForeignSubscriptionOfTheSameNameIsAnError(t *testing.T) {
	server, client := start(t)
	p := small(t, "type: a")
	apply(t, client, p, Options{})
	p.Owner = "somebody-else"
	p.Topics = nil
	server.Written()
	_, err := Apply(t.Context(), client, p, Options{Prune: true})
	if err == nil || !strings.Contains(err.Error(), "not ours to change") {
		t.Errorf("error %v, want that it is not ours", err)
	}
	if writes := server.Written(); len(writes) > 0 {
		t.Errorf("writes %q, want none", writes)
	}
}

func TestPrune(t *testing.T) {
	server, client := start(t)
	p := small(t, "type: a")
	apply(t, client, p, Options{})
	server.Written()

	empty := plan.Plan{Project: p.Project, Owner: p.Owner}
	if report := apply(t, client, empty, Options{}); len(report.Actions) > 0 {
		t.Errorf("without Prune: %+v, want nothing", report)
	}
	refused := empty
	refused.Problems = []plan.Problem{{Kind: "Trigger", Namespace: "ns", Name: "t"}, {Kind: "Broker", Namespace: "ns", Name: "b"}}
	report := apply(t, client, refused, Options{Prune: true})
	if len(report.Actions) != 2 || report.Actions[0].Verb != Keep || report.Actions[1].Verb != Keep || len(server.Written()) > 0 {
		t.Errorf("report %+v, want that what has a problem is kept", report)
	}
	apply(t, client, empty, Options{Prune: true})
	if diff := cmp.Diff([]string{"DeleteSubscription " + p.Subscriptions[0].Name, "DeleteTopic ns-b"}, server.Written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
}

func TestATopicThatIsNotOursToCreateMustBeThere(t *testing.T) {
	_, client := start(t)
	p := small(t, "type: a")
	p.Topics[0].Create = false
	_, err := Apply(t.Context(), client, p, Options{})
	if err == nil || !strings.Contains(err.Error(), "topic ns-b does not exist") {
		t.Errorf("error %v, want that the topic is missing", err)
	}
}

func TestErrorsOfOneTriggerDoNotStopTheOthers(t *testing.T) {
	server, client := start(t)
	p := plan.Make(platform(t), settings())
	server.Fail("CreateTopic", status.Error(codes.PermissionDenied, "no"))
	if _, err := Apply(t.Context(), client, p, Options{}); err == nil || strings.Count(err.Error(), "create topic") != 3 {
		t.Errorf("error %v, want one for each topic", err)
	}
}

func TestOnlyWhatWasMadeForADeletedObjectGoes(t *testing.T) {
	server, client := start(t)
	p := plan.Make(platform(t), settings())
	apply(t, client, p, Options{})
	server.Written()

	without := p
	without.Subscriptions = nil
	without.Topics = nil
	deleted := []plan.Ref{
		{Kind: "Trigger", Namespace: "robofleet", Name: "validate"},
		{Kind: "Broker", Namespace: "robofleet", Name: "edge"},
		{Kind: "Broker", Namespace: "robofleet", Name: "fleet"},
	}
	report := apply(t, client, without, Options{Deleted: deleted})
	if diff := cmp.Diff([]string{"DeleteSubscription robofleet-validate-974ef724", "DeleteTopic robofleet-telemetry"}, server.Written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	want := Action{Verb: Keep, Kind: "topic", Name: "robofleet-events", Detail: "it still has subscriptions"}
	if !slices.ContainsFunc(report.Actions, func(a Action) bool { return cmp.Equal(want, a, withoutLabels) }) {
		t.Errorf("report %+v, want that %+v", report.Actions, want)
	}
}

func TestASubscriptionThatLostItsTopicGetsASuccessor(t *testing.T) {
	server, client := start(t)
	p := small(t, "type: a")
	name := p.Subscriptions[0].Name
	for n := 2; n <= 3; n++ {
		apply(t, client, p, Options{Prune: true})
		if _, err := server.DeleteTopic(t.Context(), &pubsubpb.DeleteTopicRequest{Topic: "projects/" + project + "/topics/ns-b"}); err != nil {
			t.Fatal(err)
		}
		server.Written()
		report := apply(t, client, p, Options{Prune: true})
		successor := fmt.Sprintf("%s-%d", name, n)
		if diff := cmp.Diff([]string{"CreateTopic ns-b", "CreateSubscription " + successor}, server.Written()); diff != "" {
			t.Errorf("writes (-want +got):\n%s", diff)
		}
		if last := report.Actions[len(report.Actions)-1]; last.Verb != Keep {
			t.Errorf("report %+v, want that the old one is kept", report)
		}
		if got := get(t, client, successor); got.Topic != "projects/"+project+"/topics/ns-b" {
			t.Errorf("the successor has the topic %s", got.Topic)
		}
	}
	apply(t, client, p, Options{Prune: true})
	if writes := server.Written(); len(writes) > 0 {
		t.Errorf("once more: writes %q, want none", writes)
	}
	p.Subscriptions, p.Topics = nil, nil
	apply(t, client, p, Options{Deleted: []plan.Ref{{Kind: "Trigger", Namespace: "ns", Name: "t"}}})
	if left := server.Subscriptions(t, project); len(left) > 0 {
		t.Errorf("%v are left of a deleted Trigger", left)
	}
}

func TestAFailureNamesTheObjectThatItHarms(t *testing.T) {
	server, client := start(t)
	p := plan.Make(platform(t), settings())
	server.Fail("CreateSubscription", status.Error(codes.PermissionDenied, "no"))
	report, err := Apply(t.Context(), client, p, Options{Parallel: 4})
	if err == nil {
		t.Fatal("no error")
	}
	var harmed []string
	for _, failure := range report.Failures {
		for _, trigger := range platform(t).Triggers {
			if ref := (plan.Ref{Kind: "Trigger", Namespace: trigger.Namespace, Name: trigger.Name}); ref.Made(failure.Labels) {
				harmed = append(harmed, ref.String())
			}
		}
	}
	want := []string{"Trigger robofleet/dead-letter-archive", "Trigger robofleet/cold-archive", "Trigger robofleet/hot-write", "Trigger robofleet/validate"}
	if diff := cmp.Diff(want, harmed); diff != "" {
		t.Errorf("harmed (-want +got):\n%s", diff)
	}
}

func TestWritesAtATimeAreReportedInOrder(t *testing.T) {
	_, one := start(t)
	_, many := start(t)
	p := plan.Make(platform(t), settings())
	if diff := cmp.Diff(apply(t, one, p, Options{}), apply(t, many, p, Options{Parallel: 8})); diff != "" {
		t.Errorf("report (-one at a time +eight):\n%s", diff)
	}
}
