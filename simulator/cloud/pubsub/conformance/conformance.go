// Package conformance holds what every Pub/Sub service must do for the platform, as tests that run through the real
// client library. One suite serves the embedded server, Google's emulator as far as that goes, and anything to come.
package conformance

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Capabilities says what a service does beyond the common ground. A test of what it does not do is skipped.
type Capabilities struct {
	BinaryUnwrappedPush bool // pushes an unwrapped payload that is not UTF-8 unchanged
	DeadLetters         bool // dead-letters messages, with attributes that tell their source
	Detach              bool // detaches subscriptions
	Filters             bool // applies subscription filters
	Limits              bool // enforces the limits of names, messages and settings
	OrderedRedelivery   bool // redelivers what follows a nacked message of an ordering key
	PushConcurrency     bool // has more than two pushes in flight
	PushHeaderSafety    bool // no attribute can replace a header of the sender
	StreamFlowControl   bool // keeps to max_outstanding_messages
}

// Env is the service under test.
type Env struct {
	// Addr is the host:port of the plaintext gRPC service. It is used alone: the suite makes its own project per test.
	Addr string
	Can  Capabilities
}

// deadline bounds every wait of the suite.
const deadline = 30 * time.Second

// Run runs the suite.
func Run(t *testing.T, env Env) {
	conn, err := grpc.NewClient(env.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	for i, tt := range []struct {
		name string
		can  bool
		test func(*fixture)
	}{
		{"TopicLifecycle", true, testTopicLifecycle},
		{"SubscriptionLifecycle", true, testSubscriptionLifecycle},
		{"UpdateChangesOnlyTheMaskedFields", true, testUpdate},
		{"LimitsAreEnforced", env.Can.Limits, testLimits},
		{"MessageArrivesAsPublished", true, testMessageArrives},
		{"OnlyLaterMessagesReachASubscription", true, testOnlyLaterMessages},
		{"EverySubscriptionGetsEveryMessage", true, testFanOut},
		{"AckedMessageIsGone", true, testAck},
		{"NackedMessageComesBack", true, testNack},
		{"MissedDeadlineBringsTheMessageBack", true, testMissedDeadline},
		{"StreamDeliversEverything", true, testStream},
		{"StreamKeepsToItsFlowControl", env.Can.StreamFlowControl, testStreamFlowControl},
		{"FilterSelects", env.Can.Filters, testFilter},
		{"OrderingKeyKeepsOrder", true, testOrder},
		{"NackOfAnOrderedMessageBringsBackTheFollowing", env.Can.OrderedRedelivery, testOrderedRedelivery},
		{"ExhaustedMessageIsDeadLettered", env.Can.DeadLetters, testDeadLetter},
		{"DeadLetterTellsItsSource", env.Can.DeadLetters, testDeadLetterMetadata},
		{"WrappedPush", true, testWrappedPush},
		{"UnwrappedPushWithMetadata", true, testUnwrappedPush},
		{"UnwrappedPushKeepsBinaryPayload", env.Can.BinaryUnwrappedPush, testBinaryPush},
		{"AttributeCannotReplaceSenderHeader", env.Can.PushHeaderSafety, testHeaderSafety},
		{"PushIsRetriedUntilAcked", true, testPushRetry},
		{"ManyPushesAreInFlight", env.Can.PushConcurrency, testPushConcurrency},
		{"PushSubscriptionCanTurnToPull", true, testModifyPushConfig},
		{"SeekToTimeReplays", true, testSeekTime},
		{"SeekToFutureDropsTheBacklog", true, testSeekFuture},
		{"SeekToSnapshotRestoresTheBacklog", true, testSnapshot},
		{"DetachedSubscriptionRefusesPull", env.Can.Detach, testDetach},
		{"BacklogSurvivesItsTopic", true, testDeleteTopic},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.can {
				t.Skip("the service is known not to do this")
			}
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			project := fmt.Sprintf("p%02d-%d", i, time.Now().UnixNano())
			c, err := pubsub.NewClient(ctx, project, option.WithGRPCConn(conn))
			if err != nil {
				t.Fatal(err)
			}
			// The client is not closed: that would close the connection of all.
			tt.test(&fixture{T: t, ctx: ctx, env: env, project: "projects/" + project, c: c})
		})
	}
}

// fixture is one test with a project of its own.
type fixture struct {
	*testing.T
	ctx     context.Context
	env     Env
	project string
	c       *pubsub.Client
}

func (f *fixture) topicName(id string) string        { return f.project + "/topics/" + id }
func (f *fixture) subscriptionName(id string) string { return f.project + "/subscriptions/" + id }

func (f *fixture) topic(id string) string {
	f.Helper()
	t, err := f.c.TopicAdminClient.CreateTopic(f.ctx, &pubsubpb.Topic{Name: f.topicName(id)})
	if err != nil {
		f.Fatalf("create topic: %v", err)
	}
	return t.GetName()
}

// subscription creates a subscription to the topic "topic", or to the one that pb names.
func (f *fixture) subscription(id string, pb *pubsubpb.Subscription) string {
	f.Helper()
	pb.Name = f.subscriptionName(id)
	if pb.GetTopic() == "" {
		pb.Topic = f.topicName("topic")
	}
	s, err := f.c.SubscriptionAdminClient.CreateSubscription(f.ctx, pb)
	if err != nil {
		f.Fatalf("create subscription: %v", err)
	}
	return s.GetName()
}

func (f *fixture) publish(topic string, messages ...*pubsubpb.PubsubMessage) []string {
	f.Helper()
	res, err := f.c.TopicAdminClient.Publish(f.ctx, &pubsubpb.PublishRequest{Topic: topic, Messages: messages})
	if err != nil {
		f.Fatalf("publish: %v", err)
	}
	return res.GetMessageIds()
}

func text(data string) *pubsubpb.PubsubMessage { return &pubsubpb.PubsubMessage{Data: []byte(data)} }

// pull pulls until it has n messages.
func (f *fixture) pull(subscription string, n int) []*pubsubpb.ReceivedMessage {
	f.Helper()
	var got []*pubsubpb.ReceivedMessage
	for len(got) < n {
		res, err := f.c.SubscriptionAdminClient.Pull(f.ctx, &pubsubpb.PullRequest{Subscription: subscription, MaxMessages: int32(n - len(got))})
		if err != nil {
			f.Fatalf("pull after %d of %d messages: %v", len(got), n, err)
		}
		got = append(got, res.GetReceivedMessages()...)
	}
	return got
}

// wantEmpty checks that nothing can be pulled right now.
func (f *fixture) wantEmpty(subscription string) {
	f.Helper()
	res, err := f.c.SubscriptionAdminClient.Pull(f.ctx, &pubsubpb.PullRequest{
		Subscription: subscription, MaxMessages: 10, ReturnImmediately: true, //nolint:staticcheck // the way to ask without waiting
	})
	if err != nil {
		f.Fatalf("pull: %v", err)
	}
	if got := data(res.GetReceivedMessages()); len(got) > 0 {
		f.Errorf("pulled %q, want nothing", got)
	}
}

func (f *fixture) ack(subscription string, messages ...*pubsubpb.ReceivedMessage) {
	f.Helper()
	req := &pubsubpb.AcknowledgeRequest{Subscription: subscription, AckIds: ackIDs(messages)}
	if err := f.c.SubscriptionAdminClient.Acknowledge(f.ctx, req); err != nil {
		f.Fatalf("acknowledge: %v", err)
	}
}

// modifyDeadline sets a new deadline; 0 is a nack.
func (f *fixture) modifyDeadline(subscription string, seconds int32, messages ...*pubsubpb.ReceivedMessage) {
	f.Helper()
	req := &pubsubpb.ModifyAckDeadlineRequest{Subscription: subscription, AckIds: ackIDs(messages), AckDeadlineSeconds: seconds}
	if err := f.c.SubscriptionAdminClient.ModifyAckDeadline(f.ctx, req); err != nil {
		f.Fatalf("modify ack deadline: %v", err)
	}
}

func ackIDs(messages []*pubsubpb.ReceivedMessage) []string {
	var ids []string
	for _, m := range messages {
		ids = append(ids, m.GetAckId())
	}
	return ids
}

func data(messages []*pubsubpb.ReceivedMessage) []string {
	var got []string
	for _, m := range messages {
		got = append(got, string(m.GetMessage().GetData()))
	}
	return got
}

func (f *fixture) wantCode(what string, err error, want codes.Code) {
	f.Helper()
	if got := status.Code(err); got != want {
		f.Errorf("%s: %v, want code %s", what, err, want)
	}
}

func (f *fixture) wantDiff(what string, want, got any) {
	f.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		f.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// eventually polls until the condition holds.
func (f *fixture) eventually(what string, holds func() bool) {
	f.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-f.ctx.Done():
			f.Fatalf("still not so at the deadline: %s", what)
		}
	}
}

func testTopicLifecycle(f *fixture) {
	name := f.topic("topic")
	admin := f.c.TopicAdminClient
	_, err := admin.CreateTopic(f.ctx, &pubsubpb.Topic{Name: name})
	f.wantCode("create it again", err, codes.AlreadyExists)
	_, err = admin.CreateTopic(f.ctx, &pubsubpb.Topic{Name: "topic"})
	f.wantCode("create with a malformed name", err, codes.InvalidArgument)
	got, err := admin.GetTopic(f.ctx, &pubsubpb.GetTopicRequest{Topic: name})
	f.wantCode("get", err, codes.OK)
	f.wantDiff("name", name, got.GetName())

	f.topic("another")
	var names []string
	for topic, err := range admin.ListTopics(f.ctx, &pubsubpb.ListTopicsRequest{Project: f.project, PageSize: 1}).All() {
		if err != nil {
			f.Fatalf("list: %v", err)
		}
		names = append(names, topic.GetName())
	}
	f.wantDiff("topics", []string{f.topicName("another"), name}, names)

	f.wantCode("delete", admin.DeleteTopic(f.ctx, &pubsubpb.DeleteTopicRequest{Topic: name}), codes.OK)
	f.wantCode("delete again", admin.DeleteTopic(f.ctx, &pubsubpb.DeleteTopicRequest{Topic: name}), codes.NotFound)
	_, err = admin.GetTopic(f.ctx, &pubsubpb.GetTopicRequest{Topic: name})
	f.wantCode("get after delete", err, codes.NotFound)
	_, err = admin.Publish(f.ctx, &pubsubpb.PublishRequest{Topic: name, Messages: []*pubsubpb.PubsubMessage{text("x")}})
	f.wantCode("publish after delete", err, codes.NotFound)
}

func testSubscriptionLifecycle(f *fixture) {
	topic := f.topic("topic")
	name := f.subscription("sub", &pubsubpb.Subscription{})
	admin := f.c.SubscriptionAdminClient
	_, err := admin.CreateSubscription(f.ctx, &pubsubpb.Subscription{Name: name, Topic: topic})
	f.wantCode("create it again", err, codes.AlreadyExists)
	_, err = admin.CreateSubscription(f.ctx, &pubsubpb.Subscription{Name: f.subscriptionName("other"), Topic: f.topicName("missing")})
	f.wantCode("create for a missing topic", err, codes.NotFound)
	got, err := admin.GetSubscription(f.ctx, &pubsubpb.GetSubscriptionRequest{Subscription: name})
	f.wantCode("get", err, codes.OK)
	f.wantDiff("topic", topic, got.GetTopic())
	f.wantDiff("default ack deadline", int32(10), got.GetAckDeadlineSeconds())
	f.wantDiff("default retention", 7*24*time.Hour, got.GetMessageRetentionDuration().AsDuration())

	var names []string
	for sub, err := range admin.ListSubscriptions(f.ctx, &pubsubpb.ListSubscriptionsRequest{Project: f.project}).All() {
		if err != nil {
			f.Fatalf("list: %v", err)
		}
		names = append(names, sub.GetName())
	}
	f.wantDiff("subscriptions", []string{name}, names)
	names = nil
	req := &pubsubpb.ListTopicSubscriptionsRequest{Topic: topic}
	for sub, err := range f.c.TopicAdminClient.ListTopicSubscriptions(f.ctx, req).All() {
		if err != nil {
			f.Fatalf("list of topic: %v", err)
		}
		names = append(names, sub)
	}
	f.wantDiff("subscriptions of topic", []string{name}, names)

	del := &pubsubpb.DeleteSubscriptionRequest{Subscription: name}
	f.wantCode("delete", admin.DeleteSubscription(f.ctx, del), codes.OK)
	f.wantCode("delete again", admin.DeleteSubscription(f.ctx, del), codes.NotFound)
}

func testUpdate(f *fixture) {
	f.topic("topic")
	name := f.subscription("sub", &pubsubpb.Subscription{Labels: map[string]string{"stage": "validate"}})
	change := &pubsubpb.Subscription{
		Name: name, AckDeadlineSeconds: 45, Labels: map[string]string{"ignored": "yes"},
		RetryPolicy: &pubsubpb.RetryPolicy{MinimumBackoff: durationpb.New(time.Second), MaximumBackoff: durationpb.New(time.Minute)},
	}
	update := func(paths ...string) error {
		_, err := f.c.SubscriptionAdminClient.UpdateSubscription(f.ctx, &pubsubpb.UpdateSubscriptionRequest{
			Subscription: change, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
		})
		return err
	}
	f.wantCode("update", update("ack_deadline_seconds", "retry_policy"), codes.OK)
	got, err := f.c.SubscriptionAdminClient.GetSubscription(f.ctx, &pubsubpb.GetSubscriptionRequest{Subscription: name})
	f.wantCode("get", err, codes.OK)
	f.wantDiff("ack deadline", int32(45), got.GetAckDeadlineSeconds())
	f.wantDiff("minimum back-off", time.Second, got.GetRetryPolicy().GetMinimumBackoff().AsDuration())
	f.wantDiff("labels", map[string]string{"stage": "validate"}, got.GetLabels())
	f.wantCode("update without a mask", update(), codes.InvalidArgument)
	f.wantCode("update of an unknown field", update("nonsense"), codes.InvalidArgument)
	f.wantCode("update of the filter", update("filter"), codes.InvalidArgument)
}

func testLimits(f *fixture) {
	topic := f.topic("topic")
	for _, tt := range []struct {
		name string
		m    *pubsubpb.PubsubMessage
	}{
		{"empty message", &pubsubpb.PubsubMessage{}},
		{"long attribute key", &pubsubpb.PubsubMessage{Attributes: map[string]string{strings.Repeat("k", 257): ""}}},
		{"empty attribute key", &pubsubpb.PubsubMessage{Attributes: map[string]string{"": "v"}}},
		{"reserved attribute key", &pubsubpb.PubsubMessage{Attributes: map[string]string{"googclient": ""}}},
		{"long attribute value", &pubsubpb.PubsubMessage{Attributes: map[string]string{"k": strings.Repeat("v", 1025)}}},
		{"long ordering key", &pubsubpb.PubsubMessage{Data: []byte("x"), OrderingKey: strings.Repeat("k", 1025)}},
		{"large message", &pubsubpb.PubsubMessage{Data: make([]byte, 10_000_001)}},
	} {
		_, err := f.c.TopicAdminClient.Publish(f.ctx, &pubsubpb.PublishRequest{Topic: topic, Messages: []*pubsubpb.PubsubMessage{tt.m}})
		f.wantCode(tt.name, err, codes.InvalidArgument)
	}
	_, err := f.c.TopicAdminClient.Publish(f.ctx, &pubsubpb.PublishRequest{
		Topic: topic, Messages: []*pubsubpb.PubsubMessage{{Data: make([]byte, 9_900_000)}},
	})
	f.wantCode("message within the limit", err, codes.OK)

	backoff := func(lowest, highest time.Duration) *pubsubpb.RetryPolicy {
		return &pubsubpb.RetryPolicy{MinimumBackoff: durationpb.New(lowest), MaximumBackoff: durationpb.New(highest)}
	}
	for _, tt := range []struct {
		name string
		s    *pubsubpb.Subscription
	}{
		{"short name", &pubsubpb.Subscription{Name: f.subscriptionName("ab")}},
		{"reserved name", &pubsubpb.Subscription{Name: f.subscriptionName("googsub")}},
		{"short ack deadline", &pubsubpb.Subscription{AckDeadlineSeconds: 9}},
		{"long ack deadline", &pubsubpb.Subscription{AckDeadlineSeconds: 601}},
		{"short retention", &pubsubpb.Subscription{MessageRetentionDuration: durationpb.New(time.Minute)}},
		{"few delivery attempts", &pubsubpb.Subscription{DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: topic, MaxDeliveryAttempts: 4}}},
		{"many delivery attempts", &pubsubpb.Subscription{DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: topic, MaxDeliveryAttempts: 101}}},
		{"long back-off", &pubsubpb.Subscription{RetryPolicy: backoff(0, 601*time.Second)}},
		{"back-off upside down", &pubsubpb.Subscription{RetryPolicy: backoff(2*time.Second, time.Second)}},
		{"malformed endpoint", &pubsubpb.Subscription{PushConfig: &pubsubpb.PushConfig{PushEndpoint: "localhost:80"}}},
		{"long filter", &pubsubpb.Subscription{Filter: `attributes.k = "` + strings.Repeat("v", 256) + `"`}},
		{"malformed filter", &pubsubpb.Subscription{Filter: `attributes.k LIKE "v"`}},
	} {
		if tt.s.Name == "" {
			tt.s.Name = f.subscriptionName("limits")
		}
		tt.s.Topic = topic
		_, err := f.c.SubscriptionAdminClient.CreateSubscription(f.ctx, tt.s)
		f.wantCode(tt.name, err, codes.InvalidArgument)
	}
}

func testMessageArrives(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	before := time.Now().Add(-time.Second)
	attributes := map[string]string{"ce-id": "R-1/b/1", "content-type": "application/json", "empty": ""}
	ids := f.publish(topic,
		&pubsubpb.PubsubMessage{Data: []byte{0, 0xff, '\n'}, Attributes: attributes, OrderingKey: "R-1"},
		&pubsubpb.PubsubMessage{Attributes: map[string]string{"only": "attributes"}},
	)
	if len(ids) != 2 || ids[0] == "" || ids[0] == ids[1] {
		f.Fatalf("message ids = %q, want two different ones", ids)
	}
	byID := map[string]*pubsubpb.PubsubMessage{}
	for _, m := range f.pull(sub, 2) {
		byID[m.GetMessage().GetMessageId()] = m.GetMessage()
		if at := m.GetMessage().GetPublishTime().AsTime(); at.Before(before) || at.After(time.Now().Add(time.Second)) {
			f.Errorf("publish time = %s, want about now", at)
		}
		f.wantDiff("delivery attempt without a dead-letter policy", int32(0), m.GetDeliveryAttempt())
	}
	f.wantDiff("data", []byte{0, 0xff, '\n'}, byID[ids[0]].GetData())
	f.wantDiff("attributes", attributes, byID[ids[0]].GetAttributes())
	f.wantDiff("ordering key", "R-1", byID[ids[0]].GetOrderingKey())
	f.wantDiff("attributes alone", map[string]string{"only": "attributes"}, byID[ids[1]].GetAttributes())
}

func testOnlyLaterMessages(f *fixture) {
	topic := f.topic("topic")
	f.publish(topic, text("before"))
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	f.publish(topic, text("after"))
	got := f.pull(sub, 1)
	f.wantDiff("messages", []string{"after"}, data(got))
	f.ack(sub, got...)
	f.wantEmpty(sub)
}

func testFanOut(f *fixture) {
	topic := f.topic("topic")
	a, b := f.subscription("sub-a", &pubsubpb.Subscription{}), f.subscription("sub-b", &pubsubpb.Subscription{})
	f.publish(topic, text("x"))
	for _, sub := range []string{a, b} {
		got := f.pull(sub, 1)
		f.wantDiff(sub, []string{"x"}, data(got))
		f.ack(sub, got...)
	}
}

func testAck(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	f.publish(topic, text("a"), text("b"))
	got := f.pull(sub, 2)
	f.ack(sub, got...)
	f.ack(sub, got...) // acking twice is no error
	f.wantEmpty(sub)
	err := f.c.SubscriptionAdminClient.Acknowledge(f.ctx, &pubsubpb.AcknowledgeRequest{Subscription: sub, AckIds: []string{"nonsense"}})
	f.wantCode("malformed ack id", err, codes.InvalidArgument)
}

func testNack(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	id := f.publish(topic, text("x"))[0]
	f.modifyDeadline(sub, 0, f.pull(sub, 1)...)
	again := f.pull(sub, 1)
	f.wantDiff("message id", id, again[0].GetMessage().GetMessageId())
	f.ack(sub, again...)
	f.wantEmpty(sub)
}

func testMissedDeadline(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	f.publish(topic, text("x"))
	f.modifyDeadline(sub, 1, f.pull(sub, 1)...)
	f.ack(sub, f.pull(sub, 1)...)
}

func testStream(f *fixture) {
	const n = 2_000
	f.topic("topic")
	f.subscription("sub", &pubsubpb.Subscription{})
	publisher := f.c.Publisher("topic")
	defer publisher.Stop()
	want := map[string]bool{}
	var results []*pubsub.PublishResult
	for i := range n {
		data := fmt.Sprintf("m%d", i)
		want[data] = true
		results = append(results, publisher.Publish(f.ctx, &pubsub.Message{Data: []byte(data)}))
	}
	for _, r := range results {
		if _, err := r.Get(f.ctx); err != nil {
			f.Fatalf("publish: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	var mu sync.Mutex
	got := map[string]bool{}
	err := f.c.Subscriber("sub").Receive(ctx, func(_ context.Context, m *pubsub.Message) {
		mu.Lock()
		defer mu.Unlock()
		if got[string(m.Data)] = true; len(got) == n {
			cancel()
		}
		m.Ack()
	})
	if err != nil {
		f.Fatalf("receive: %v", err)
	}
	f.wantDiff("messages", want, got)
}

func testStreamFlowControl(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	stream, err := f.c.SubscriptionAdminClient.StreamingPull(f.ctx)
	if err != nil {
		f.Fatal(err)
	}
	if err := stream.Send(&pubsubpb.StreamingPullRequest{Subscription: sub, StreamAckDeadlineSeconds: 10, MaxOutstandingMessages: 2}); err != nil {
		f.Fatal(err)
	}
	f.publish(topic, text("a"), text("b"), text("c"))
	receive := func(n int) []*pubsubpb.ReceivedMessage {
		var got []*pubsubpb.ReceivedMessage
		for len(got) < n {
			res, err := stream.Recv()
			if err != nil {
				f.Fatalf("receive: %v", err)
			}
			got = append(got, res.GetReceivedMessages()...)
		}
		return got
	}
	got := receive(2)
	if len(got) != 2 {
		f.Fatalf("got %d messages outstanding, want 2", len(got))
	}
	if err := stream.Send(&pubsubpb.StreamingPullRequest{AckIds: ackIDs(got)}); err != nil {
		f.Fatal(err)
	}
	got = append(got, receive(1)...)
	if len(got) != 3 {
		f.Errorf("got %d messages, want 3", len(got))
	}
}

func testFilter(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{Filter: `hasPrefix(attributes.type, "telemetry.") AND NOT attributes:test`})
	f.publish(topic,
		&pubsubpb.PubsubMessage{Data: []byte("other"), Attributes: map[string]string{"type": "command"}},
		&pubsubpb.PubsubMessage{Data: []byte("test"), Attributes: map[string]string{"type": "telemetry.v1", "test": ""}},
		&pubsubpb.PubsubMessage{Data: []byte("match"), Attributes: map[string]string{"type": "telemetry.v1"}},
	)
	got := f.pull(sub, 1)
	f.wantDiff("messages", []string{"match"}, data(got))
	f.ack(sub, got...)
	f.wantEmpty(sub)
}

func testOrder(f *fixture) {
	const keys, each = 5, 50
	topic := f.topic("topic")
	f.subscription("sub", &pubsubpb.Subscription{EnableMessageOrdering: true})
	want := map[string][]string{}
	for i := range each {
		for k := range keys {
			key, value := fmt.Sprintf("k%d", k), fmt.Sprintf("%d", i)
			want[key] = append(want[key], value)
			f.publish(topic, &pubsubpb.PubsubMessage{Data: []byte(value), OrderingKey: key})
		}
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	var mu sync.Mutex
	got, n := map[string][]string{}, 0
	err := f.c.Subscriber("sub").Receive(ctx, func(_ context.Context, m *pubsub.Message) {
		mu.Lock()
		defer mu.Unlock()
		got[m.OrderingKey] = append(got[m.OrderingKey], string(m.Data))
		if n++; n == keys*each {
			cancel()
		}
		m.Ack()
	})
	if err != nil {
		f.Fatalf("receive: %v", err)
	}
	f.wantDiff("messages by key", want, got)
}

func testOrderedRedelivery(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{EnableMessageOrdering: true})
	for _, value := range []string{"1", "2", "3"} {
		f.publish(topic, &pubsubpb.PubsubMessage{Data: []byte(value), OrderingKey: "k"})
	}
	got := f.pull(sub, 3)
	f.wantDiff("first delivery", []string{"1", "2", "3"}, data(got))
	f.ack(sub, got[0], got[2])
	f.modifyDeadline(sub, 0, got[1])
	got = f.pull(sub, 2)
	f.wantDiff("second delivery", []string{"2", "3"}, data(got))
	f.ack(sub, got...)
	f.wantEmpty(sub)
}

// exhaust nacks a message of a subscription until its five delivery attempts are used up.
func (f *fixture) exhaust(sub string) {
	f.Helper()
	for range 5 {
		f.modifyDeadline(sub, 0, f.pull(sub, 1)...)
	}
}

// deadLetters makes a topic with a subscription "dead", and the policy that points to it.
func (f *fixture) deadLetters() (sub string, policy *pubsubpb.DeadLetterPolicy) {
	f.Helper()
	topic := f.topic("dead-letters")
	return f.subscription("dead", &pubsubpb.Subscription{Topic: topic}),
		&pubsubpb.DeadLetterPolicy{DeadLetterTopic: topic, MaxDeliveryAttempts: 5}
}

func testDeadLetter(f *fixture) {
	topic := f.topic("topic")
	dead, policy := f.deadLetters()
	sub := f.subscription("sub", &pubsubpb.Subscription{DeadLetterPolicy: policy})
	f.publish(topic, &pubsubpb.PubsubMessage{Data: []byte("poison"), Attributes: map[string]string{"k": "v"}})
	f.exhaust(sub)
	got := f.pull(dead, 1)
	f.wantDiff("dead letters", []string{"poison"}, data(got))
	f.wantDiff("own attribute", "v", got[0].GetMessage().GetAttributes()["k"])
	f.wantEmpty(sub)
}

func testDeadLetterMetadata(f *fixture) {
	topic := f.topic("topic")
	dead, policy := f.deadLetters()
	sub := f.subscription("sub", &pubsubpb.Subscription{DeadLetterPolicy: policy})
	f.publish(topic, text("poison"))
	for attempt := range int32(5) {
		got := f.pull(sub, 1)
		f.wantDiff("delivery attempt", attempt+1, got[0].GetDeliveryAttempt())
		f.modifyDeadline(sub, 0, got...)
	}
	attributes := f.pull(dead, 1)[0].GetMessage().GetAttributes()
	if _, err := time.Parse(time.RFC3339, attributes["CloudPubSubDeadLetterSourceTopicPublishTime"]); err != nil {
		f.Errorf("publish time: %v", err)
	}
	delete(attributes, "CloudPubSubDeadLetterSourceTopicPublishTime")
	f.wantDiff("attributes", map[string]string{
		"CloudPubSubDeadLetterSourceDeliveryCount":       "5",
		"CloudPubSubDeadLetterSourceSubscription":        "sub",
		"CloudPubSubDeadLetterSourceSubscriptionProject": strings.TrimPrefix(f.project, "projects/"),
	}, attributes)
}

// push is one request that an endpoint got.
type push struct {
	header http.Header
	host   string
	body   string
}

// endpoint is a push endpoint that answers by a function and keeps what it got.
type endpoint struct {
	url string
	mu  sync.Mutex
	got []push
}

func (f *fixture) endpoint(answer func(n int, p push) int) *endpoint {
	e := &endpoint{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		p := push{r.Header, r.Host, string(body)}
		e.mu.Lock()
		e.got = append(e.got, p)
		n := len(e.got)
		e.mu.Unlock()
		w.WriteHeader(answer(n, p))
	}))
	f.Cleanup(srv.Close)
	e.url = srv.URL
	return e
}

func (e *endpoint) pushes() []push {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]push(nil), e.got...)
}

func noContent(int, push) int { return http.StatusNoContent }

func unwrapped(url string) *pubsubpb.PushConfig {
	return &pubsubpb.PushConfig{
		PushEndpoint: url,
		Wrapper:      &pubsubpb.PushConfig_NoWrapper_{NoWrapper: &pubsubpb.PushConfig_NoWrapper{WriteMetadata: true}},
	}
}

func (f *fixture) firstPush(e *endpoint) push {
	f.Helper()
	f.eventually("a push arrives", func() bool { return len(e.pushes()) > 0 })
	return e.pushes()[0]
}

func testWrappedPush(f *fixture) {
	topic := f.topic("topic")
	e := f.endpoint(noContent)
	sub := f.subscription("sub", &pubsubpb.Subscription{PushConfig: &pubsubpb.PushConfig{PushEndpoint: e.url}})
	id := f.publish(topic, &pubsubpb.PubsubMessage{Data: []byte{0, 0xff}, Attributes: map[string]string{"k": "v"}})[0]
	p := f.firstPush(e)
	got := decodeWrapped(f.T, p.body)
	if got.Message.PublishTime.IsZero() {
		f.Errorf("no publishTime in %s", p.body)
	}
	got.Message.PublishTime = time.Time{}
	f.wantDiff("body", wrapped{
		Message:      wrappedMessage{Attributes: map[string]string{"k": "v"}, Data: []byte{0, 0xff}, MessageID: id, MessageIDOld: id},
		Subscription: sub,
	}, got)
	if ct := p.header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		f.Errorf("Content-Type = %q, want application/json", ct)
	}
}

func testUnwrappedPush(f *fixture) {
	topic := f.topic("topic")
	e := f.endpoint(noContent)
	sub := f.subscription("sub", &pubsubpb.Subscription{PushConfig: unwrapped(e.url)})
	id := f.publish(topic, &pubsubpb.PubsubMessage{
		Data: []byte(`{"seq":1}`), Attributes: map[string]string{"ce-id": "R-1/b/1", "ce-type": "telemetry"},
	})[0]
	p := f.firstPush(e)
	f.wantDiff("body", `{"seq":1}`, p.body)
	for name, want := range map[string]string{
		"ce-id": "R-1/b/1", "ce-type": "telemetry",
		"x-goog-pubsub-message-id": id, "x-goog-pubsub-subscription-name": sub,
	} {
		f.wantDiff(name, []string{want}, p.header.Values(name))
	}
	if _, err := time.Parse(time.RFC3339, p.header.Get("x-goog-pubsub-publish-time")); err != nil {
		f.Errorf("x-goog-pubsub-publish-time: %v", err)
	}
}

func testBinaryPush(f *fixture) {
	topic := f.topic("topic")
	e := f.endpoint(noContent)
	f.subscription("sub", &pubsubpb.Subscription{PushConfig: unwrapped(e.url)})
	want := string([]byte{0x1f, 0x8b, 0, 0xff, '\r', '\n', 0xc3, 0x28})
	f.publish(topic, text(want))
	f.wantDiff("body", want, f.firstPush(e).body)
}

func testHeaderSafety(f *fixture) {
	topic := f.topic("topic")
	e := f.endpoint(noContent)
	sub := f.subscription("sub", &pubsubpb.Subscription{PushConfig: unwrapped(e.url)})
	id := f.publish(topic, &pubsubpb.PubsubMessage{Data: []byte("data"), Attributes: map[string]string{
		"authorization": "Bearer forged", "Host": "elsewhere", "content-length": "1", "Transfer-Encoding": "chunked",
		"connection": "close", "X-Goog-Pubsub-Message-Id": "forged", "x-goog-pubsub-subscription-name": "forged",
		"x-goog-pubsub-delivery-attempt": "7", "injected": "a\r\nInjected-Too: b", "bad name": "x", "line\nbreak": "x", "kept": "yes",
	}})[0]
	p := f.firstPush(e)
	f.wantDiff("body", "data", p.body)
	f.wantDiff("host", strings.TrimPrefix(e.url, "http://"), p.host)
	for name, want := range map[string][]string{
		"Authorization": nil, "Injected": nil, "Injected-Too": nil, "Connection": nil, "Kept": {"yes"},
		"X-Goog-Pubsub-Message-Id": {id}, "X-Goog-Pubsub-Subscription-Name": {sub}, "X-Goog-Pubsub-Delivery-Attempt": nil,
	} {
		f.wantDiff(name, want, p.header[name])
	}
}

func testPushRetry(f *fixture) {
	topic := f.topic("topic")
	answers := []int{http.StatusInternalServerError, http.StatusBadRequest, http.StatusCreated}
	e := f.endpoint(func(n int, _ push) int { return answers[min(n, len(answers))-1] })
	f.subscription("sub", &pubsubpb.Subscription{PushConfig: unwrapped(e.url)})
	id := f.publish(topic, text("x"))[0]
	f.eventually("three pushes", func() bool { return len(e.pushes()) >= len(answers) })
	for _, p := range e.pushes() {
		f.wantDiff("message id", id, p.header.Get("x-goog-pubsub-message-id"))
	}
}

func testPushConcurrency(f *fixture) {
	const n = 8
	topic := f.topic("topic")
	var arrived sync.WaitGroup
	arrived.Add(n)
	e := f.endpoint(func(int, push) int {
		arrived.Done()
		arrived.Wait() // no push is answered before all have come
		return http.StatusNoContent
	})
	f.subscription("sub", &pubsubpb.Subscription{PushConfig: unwrapped(e.url)})
	for range n {
		f.publish(topic, text("x"))
	}
	done := make(chan struct{})
	go func() { arrived.Wait(); close(done) }()
	select {
	case <-done:
	case <-f.ctx.Done():
		f.Errorf("%d pushes in flight, want %d", len(e.pushes()), n)
	}
}

func testModifyPushConfig(f *fixture) {
	topic := f.topic("topic")
	e := f.endpoint(noContent)
	sub := f.subscription("sub", &pubsubpb.Subscription{PushConfig: unwrapped(e.url)})
	f.publish(topic, text("pushed"))
	f.firstPush(e)
	err := f.c.SubscriptionAdminClient.ModifyPushConfig(f.ctx, &pubsubpb.ModifyPushConfigRequest{
		Subscription: sub, PushConfig: &pubsubpb.PushConfig{},
	})
	f.wantCode("modify push config", err, codes.OK)
	f.publish(topic, text("pulled"))
	got := f.pull(sub, 1)
	f.wantDiff("pulled", []string{"pulled"}, data(got))
	f.ack(sub, got...)
}

func (f *fixture) seek(req *pubsubpb.SeekRequest) {
	f.Helper()
	if _, err := f.c.SubscriptionAdminClient.Seek(f.ctx, req); err != nil {
		f.Fatalf("seek: %v", err)
	}
}

func testSeekTime(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{RetainAckedMessages: true})
	f.publish(topic, text("old"))
	first := f.pull(sub, 1)
	f.ack(sub, first...)
	f.eventually("the clock has gone on", func() bool { return time.Since(first[0].GetMessage().GetPublishTime().AsTime()) > 50*time.Millisecond })
	f.publish(topic, text("new"))
	second := f.pull(sub, 1)
	f.ack(sub, second...)
	f.seek(&pubsubpb.SeekRequest{Subscription: sub, Target: &pubsubpb.SeekRequest_Time{Time: second[0].GetMessage().GetPublishTime()}})
	got := f.pull(sub, 1)
	f.wantDiff("replayed", []string{"new"}, data(got))
	f.seek(&pubsubpb.SeekRequest{Subscription: sub, Target: &pubsubpb.SeekRequest_Time{Time: first[0].GetMessage().GetPublishTime()}})
	got = f.pull(sub, 2)
	f.ack(sub, got...)
	f.wantDiff("replayed from the start", map[string]bool{"old": true, "new": true}, map[string]bool{data(got)[0]: true, data(got)[1]: true})
}

func testSeekFuture(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	f.publish(topic, text("a"), text("b"))
	f.pull(sub, 1)
	f.seek(&pubsubpb.SeekRequest{Subscription: sub, Target: &pubsubpb.SeekRequest_Time{Time: timestamppb.New(time.Now().Add(time.Hour))}})
	f.wantEmpty(sub)
}

func testSnapshot(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	f.publish(topic, text("acked before"))
	f.ack(sub, f.pull(sub, 1)...)
	f.publish(topic, text("backlog"))
	admin := f.c.SubscriptionAdminClient
	name := f.project + "/snapshots/snap"
	_, err := admin.CreateSnapshot(f.ctx, &pubsubpb.CreateSnapshotRequest{Name: name, Subscription: sub})
	f.wantCode("create", err, codes.OK)
	f.publish(topic, text("later"))
	f.ack(sub, f.pull(sub, 2)...)
	f.wantEmpty(sub)
	f.seek(&pubsubpb.SeekRequest{Subscription: sub, Target: &pubsubpb.SeekRequest_Snapshot{Snapshot: name}})
	got := map[string]bool{}
	for _, d := range data(f.pull(sub, 2)) {
		got[d] = true
	}
	f.wantDiff("restored", map[string]bool{"backlog": true, "later": true}, got)
	f.wantCode("delete", admin.DeleteSnapshot(f.ctx, &pubsubpb.DeleteSnapshotRequest{Snapshot: name}), codes.OK)
	f.wantCode("delete again", admin.DeleteSnapshot(f.ctx, &pubsubpb.DeleteSnapshotRequest{Snapshot: name}), codes.NotFound)
}

func testDetach(f *fixture) {
	f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	_, err := f.c.TopicAdminClient.DetachSubscription(f.ctx, &pubsubpb.DetachSubscriptionRequest{Subscription: sub})
	f.wantCode("detach", err, codes.OK)
	got, err := f.c.SubscriptionAdminClient.GetSubscription(f.ctx, &pubsubpb.GetSubscriptionRequest{Subscription: sub})
	f.wantCode("get", err, codes.OK)
	f.wantDiff("detached", true, got.GetDetached())
	_, err = f.c.SubscriptionAdminClient.Pull(f.ctx, &pubsubpb.PullRequest{Subscription: sub, MaxMessages: 1})
	f.wantCode("pull", err, codes.FailedPrecondition)
}

func testDeleteTopic(f *fixture) {
	topic := f.topic("topic")
	sub := f.subscription("sub", &pubsubpb.Subscription{})
	f.publish(topic, text("x"))
	f.wantCode("delete topic", f.c.TopicAdminClient.DeleteTopic(f.ctx, &pubsubpb.DeleteTopicRequest{Topic: topic}), codes.OK)
	got, err := f.c.SubscriptionAdminClient.GetSubscription(f.ctx, &pubsubpb.GetSubscriptionRequest{Subscription: sub})
	f.wantCode("get", err, codes.OK)
	f.wantDiff("topic", "_deleted-topic_", got.GetTopic())
	f.wantDiff("backlog", []string{"x"}, data(f.pull(sub, 1)))
}
