package apply

import (
	"context"
	"maps"
	"net"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/robofleet/robofleet/eventing"
	"github.com/robofleet/robofleet/eventing/plan"
)

const project = "robofleet-test"

// server is Google's Pub/Sub fake with snapshots, which it has not, over gRPC. It records the writes and can fail them.
type server struct {
	*pstest.GServer

	mu        sync.Mutex
	writes    []string         // "Method resource-id"
	failing   map[string]error // by method
	snapshots map[string]*pubsubpb.Snapshot
}

func (s *server) CreateSnapshot(_ context.Context, r *pubsubpb.CreateSnapshotRequest) (*pubsubpb.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshots[r.Name] = &pubsubpb.Snapshot{Name: r.Name, Labels: r.Labels}
	return s.snapshots[r.Name], nil
}

func (s *server) ListSnapshots(context.Context, *pubsubpb.ListSnapshotsRequest) (*pubsubpb.ListSnapshotsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := &pubsubpb.ListSnapshotsResponse{}
	for _, snapshot := range s.snapshots {
		answer.Snapshots = append(answer.Snapshots, snapshot)
	}
	return answer, nil
}

func (s *server) DeleteSnapshot(_ context.Context, r *pubsubpb.DeleteSnapshotRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.snapshots, r.Snapshot)
	return &emptypb.Empty{}, nil
}

func (s *server) Seek(_ context.Context, r *pubsubpb.SeekRequest) (*pubsubpb.SeekResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshots[r.GetSnapshot()] == nil {
		return nil, status.Errorf(codes.NotFound, "snapshot %q", r.GetSnapshot())
	}
	return &pubsubpb.SeekResponse{}, nil
}

func (s *server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := path.Base(info.FullMethod)
	s.mu.Lock()
	err := s.failing[method]
	if err == nil && !strings.HasPrefix(method, "List") && !strings.HasPrefix(method, "Get") {
		s.writes = append(s.writes, method+" "+resource(request))
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

// resource is what a request writes, without the parts of a snapshot's name that vary.
func resource(request any) string {
	switch r := request.(type) {
	case *pubsubpb.UpdateTopicRequest:
		return id(r.Topic.Name)
	case *pubsubpb.UpdateSubscriptionRequest:
		return id(r.Subscription.Name) + " " + strings.Join(r.UpdateMask.Paths, ",")
	case *pubsubpb.SeekRequest:
		return id(r.Subscription)
	case *pubsubpb.CreateSnapshotRequest:
		return id(r.Subscription)
	case *pubsubpb.DeleteSubscriptionRequest:
		return id(r.Subscription)
	case *pubsubpb.DeleteTopicRequest:
		return id(r.Topic)
	case *pubsubpb.DeleteSnapshotRequest:
		return id(r.Snapshot)
	case interface{ GetName() string }:
		return id(r.GetName())
	default:
		return ""
	}
}

// written returns the writes since the last call.
func (s *server) written() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	writes := s.writes
	s.writes = nil
	return writes
}

func (s *server) fail(method string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = map[string]error{method: err}
	if err == nil {
		s.failing = nil
	}
}

func start(t *testing.T) (*server, *pubsub.Client) {
	t.Helper()
	fake := pstest.NewServer()
	s := &server{GServer: &fake.GServer, snapshots: map[string]*pubsubpb.Snapshot{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.UnaryInterceptor(s.intercept))
	pubsubpb.RegisterPublisherServer(g, s)
	pubsubpb.RegisterSubscriberServer(g, s)
	go func() { _ = g.Serve(listener) }() // ends by Stop
	client, err := pubsub.NewClient(t.Context(), project, option.WithEndpoint(listener.Addr().String()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		g.Stop()
		_ = fake.Close()
	})
	return s, client
}

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
	if diff := cmp.Diff(want, server.written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}

	report := apply(t, client, p, Options{Prune: true})
	if writes := server.written(); len(writes) > 0 || len(report.Actions) > 0 {
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
			server.written()

			report := apply(t, client, p, Options{Prune: true})
			if test.updated == nil {
				if writes := server.written(); len(writes) > 0 {
					t.Errorf("writes %q, want none", writes)
				}
				return
			}
			if diff := cmp.Diff([]string{"UpdateSubscription " + name + " " + strings.Join(test.updated, ",")}, server.written()); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]Action{{Verb: Update, Kind: "subscription", Name: name, Fields: test.updated}}, report.Actions); diff != "" {
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
	if writes := server.written(); len(writes) > 0 {
		t.Errorf("writes %q in a dry run", writes)
	}
	done := apply(t, client, p, Options{Prune: true})
	if diff := cmp.Diff(done, dry); diff != "" || len(done.Actions) == 0 {
		t.Errorf("report of the dry run (-done +dry):\n%s", diff)
	}
	server.written()

	q := small(t, "type: b")
	dry = apply(t, client, q, Options{DryRun: true, Prune: true})
	if writes := server.written(); len(writes) > 0 {
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
	server.written()

	report := apply(t, client, after, Options{})
	want := []string{
		"CreateSnapshot " + old, // first: it keeps what is published from here on
		"CreateSubscription " + replacement,
		"Seek " + replacement,
		"DeleteSubscription " + old,
		"UpdateSubscription " + replacement + " labels",
	}
	if diff := cmp.Diff(want, server.written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Action{{Verb: Replace, Kind: "subscription", Name: replacement, Detail: old}}, report.Actions); diff != "" {
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
			server.fail(method, status.Error(codes.PermissionDenied, "no"))
			if _, err := Apply(t.Context(), client, after, Options{Prune: true}); err == nil || !strings.Contains(err.Error(), "roles/pubsub.editor") {
				t.Fatalf("error %v, want one that names the role", err)
			}
			sought := false
			for _, write := range server.written() {
				sought = sought || write == "Seek "+replacement
				if write == "DeleteSubscription "+old && !sought {
					t.Error("the old subscription was deleted with its backlog")
				}
			}
			server.fail(method, nil)
			report := apply(t, client, after, Options{Prune: true})

			subscriptions := server.names(t)
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

func (s *server) names(t *testing.T) map[string]bool {
	t.Helper()
	list, err := s.ListSubscriptions(t.Context(), &pubsubpb.ListSubscriptionsRequest{Project: "projects/" + project})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, s := range list.Subscriptions {
		names[id(s.Name)] = true
	}
	return names
}

func TestAHandoverWhoseSnapshotIsGoneStops(t *testing.T) {
	server, client := start(t)
	before, after := small(t, "type: a"), small(t, "type: b")
	apply(t, client, before, Options{})
	server.fail("Seek", status.Error(codes.PermissionDenied, "no"))
	if _, err := Apply(t.Context(), client, after, Options{}); err == nil {
		t.Fatal("no error from a failing seek")
	}
	server.fail("Seek", nil)
	server.mu.Lock()
	clear(server.snapshots)
	server.mu.Unlock()
	_, err := Apply(t.Context(), client, after, Options{Prune: true})
	if err == nil || !strings.Contains(err.Error(), "let the predecessor deliver its backlog") {
		t.Errorf("error %v, want one that says what to do", err)
	}
	if names := server.names(t); len(names) != 2 {
		t.Errorf("subscriptions %v, want both", names)
	}
}

func TestSnapshotsOfOldHandoversAreDeleted(t *testing.T) {
	server, client := start(t)
	snapshot := func(name, created string) {
		server.snapshots["projects/"+project+"/snapshots/"+name] = &pubsubpb.Snapshot{
			Name:   "projects/" + project + "/snapshots/" + name,
			Labels: map[string]string{plan.LabelOwner: "robofleet", labelCreated: created},
		}
	}
	snapshot("old", "1700000000")
	snapshot("new", "99999999999")
	snapshot("by-hand", "")
	apply(t, client, small(t, "type: a"), Options{})
	got := map[string]bool{}
	for name := range maps.Keys(server.snapshots) {
		got[id(name)] = true
	}
	if diff := cmp.Diff(map[string]bool{"new": true, "by-hand": true}, got); diff != "" {
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
	server.written()
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
	if diff := cmp.Diff([]string{"CreateSubscription " + p.Subscriptions[0].Name}, server.written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}

	// Nothing is planned any more: what is ours goes, and the adopted topic stays.
	none := p
	none.Topics, none.Subscriptions = nil, nil
	apply(t, client, none, Options{Prune: true})
	if diff := cmp.Diff([]string{"DeleteSubscription " + p.Subscriptions[0].Name}, server.written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
}

func TestAForeignSubscriptionOfTheSameNameIsAnError(t *testing.T) {
	server, client := start(t)
	p := small(t, "type: a")
	apply(t, client, p, Options{})
	p.Owner = "somebody-else"
	p.Topics = nil
	server.written()
	_, err := Apply(t.Context(), client, p, Options{Prune: true})
	if err == nil || !strings.Contains(err.Error(), "not ours to change") {
		t.Errorf("error %v, want that it is not ours", err)
	}
	if writes := server.written(); len(writes) > 0 {
		t.Errorf("writes %q, want none", writes)
	}
}

func TestPrune(t *testing.T) {
	server, client := start(t)
	p := small(t, "type: a")
	apply(t, client, p, Options{})
	server.written()

	empty := plan.Plan{Project: p.Project, Owner: p.Owner}
	if report := apply(t, client, empty, Options{}); len(report.Actions) > 0 {
		t.Errorf("without Prune: %+v, want nothing", report)
	}
	refused := empty
	refused.Problems = []plan.Problem{{Kind: "Trigger", Namespace: "ns", Name: "t"}, {Kind: "Broker", Namespace: "ns", Name: "b"}}
	report := apply(t, client, refused, Options{Prune: true})
	if len(report.Actions) != 2 || report.Actions[0].Verb != Keep || report.Actions[1].Verb != Keep || len(server.written()) > 0 {
		t.Errorf("report %+v, want that what has a problem is kept", report)
	}
	apply(t, client, empty, Options{Prune: true})
	if diff := cmp.Diff([]string{"DeleteSubscription " + p.Subscriptions[0].Name, "DeleteTopic ns-b"}, server.written()); diff != "" {
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
	server.fail("CreateTopic", status.Error(codes.PermissionDenied, "no"))
	if _, err := Apply(t.Context(), client, p, Options{}); err == nil || strings.Count(err.Error(), "create topic") != 3 {
		t.Errorf("error %v, want one for each topic", err)
	}
}
