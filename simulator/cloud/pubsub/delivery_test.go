package pubsub

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	topicName = "projects/p/topics/topic"
	subName   = "projects/p/subscriptions/sub"
	deadName  = "projects/p/topics/dead"
)

// bed is a server without a listener; in a synctest bubble its clock is the bubble's.
type bed struct {
	*testing.T
	*Server
}

func newBed(t *testing.T, cfg Config) bed {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := newServer(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return bed{t, s}
}

func (b bed) topic(name string) {
	b.Helper()
	if _, err := b.CreateTopic(context.Background(), &pubsubpb.Topic{Name: name}); err != nil {
		b.Fatal(err)
	}
}

func (b bed) subscribe(pb *pubsubpb.Subscription) *subscription {
	b.Helper()
	if b.topics[topicName] == nil {
		b.topic(topicName)
	}
	if pb.Name == "" {
		pb.Name = subName
	}
	if pb.Topic == "" {
		pb.Topic = topicName
	}
	if _, err := b.CreateSubscription(context.Background(), pb); err != nil {
		b.Fatal(err)
	}
	return b.subscriptions[pb.Name]
}

func (b bed) publish(messages ...string) []string {
	b.Helper()
	req := &pubsubpb.PublishRequest{Topic: topicName}
	for _, m := range messages {
		req.Messages = append(req.Messages, &pubsubpb.PubsubMessage{Data: []byte(m)})
	}
	res, err := b.Publish(context.Background(), req)
	if err != nil {
		b.Fatal(err)
	}
	return res.GetMessageIds()
}

func (b bed) pull(name string, n int32) []*pubsubpb.ReceivedMessage {
	b.Helper()
	res, err := b.Pull(context.Background(), &pubsubpb.PullRequest{Subscription: name, MaxMessages: n, ReturnImmediately: true}) //nolint:staticcheck // no wait wanted
	if err != nil {
		b.Fatal(err)
	}
	return res.GetReceivedMessages()
}

func payloads(messages []*pubsubpb.ReceivedMessage) []string {
	var got []string
	for _, m := range messages {
		got = append(got, string(m.GetMessage().GetData()))
	}
	return got
}

func (b bed) ack(name string, messages ...*pubsubpb.ReceivedMessage) error {
	req := &pubsubpb.AcknowledgeRequest{Subscription: name}
	for _, m := range messages {
		req.AckIds = append(req.AckIds, m.GetAckId())
	}
	_, err := b.Acknowledge(context.Background(), req)
	return err
}

func (b bed) want(what string, want, got any) {
	b.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		b.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// endpoint is a push endpoint in the bubble: it answers by a function and notes when each push came.
type endpoint struct {
	answer func(n int, r *http.Request) (int, error)

	mu    sync.Mutex
	start time.Time
	at    []time.Duration
	ids   []string
}

func newEndpoint(answer func(n int, r *http.Request) (int, error)) *endpoint {
	return &endpoint{answer: answer, start: time.Now()}
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	e.mu.Lock()
	e.at = append(e.at, time.Since(e.start))
	e.ids = append(e.ids, r.Header.Get("X-Goog-Pubsub-Message-Id"))
	n := len(e.at)
	e.mu.Unlock()
	code, err := e.answer(n, r)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Body: http.NoBody}, nil
}

func (e *endpoint) times() []time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.at)
}

func pushTo(url string) *pubsubpb.PushConfig {
	return &pubsubpb.PushConfig{
		PushEndpoint: url,
		Wrapper:      &pubsubpb.PushConfig_NoWrapper_{NoWrapper: &pubsubpb.PushConfig_NoWrapper{WriteMetadata: true}},
	}
}

func answering(code int) func(int, *http.Request) (int, error) {
	return func(int, *http.Request) (int, error) { return code, nil }
}

func TestRetryPolicyBacksOffEachMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(answering(http.StatusInternalServerError))
		b := newBed(t, Config{Transport: e})
		b.subscribe(&pubsubpb.Subscription{
			PushConfig:  pushTo("http://stage/"),
			RetryPolicy: &pubsubpb.RetryPolicy{MinimumBackoff: durationpb.New(10 * time.Second), MaximumBackoff: durationpb.New(40 * time.Second)},
		})
		b.publish("x")
		time.Sleep(111 * time.Second)
		s := time.Second
		b.want("pushes", []time.Duration{0, 10 * s, 30 * s, 70 * s, 110 * s}, e.times())
	})
}

func TestPushNacksBackOffTheWholeSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(func(n int, _ *http.Request) (int, error) {
			if n <= 3 {
				return http.StatusServiceUnavailable, nil
			}
			return http.StatusNoContent, nil
		})
		b := newBed(t, Config{Transport: e})
		b.subscribe(&pubsubpb.Subscription{PushConfig: pushTo("http://stage/")})
		b.publish("failing")
		synctest.Wait()
		b.publish("bystander")
		time.Sleep(10 * time.Second)
		ms := time.Millisecond
		// Both come at the end of the first back-off of 100 ms; each of their nacks is one failure of the subscription.
		b.want("pushes", []time.Duration{0, 100 * ms, 100 * ms, 300 * ms, 300 * ms}, e.times())
		b.want("backlog", 0, b.Stats().Subscriptions[subName].Backlog)
	})
}

func TestPushWindowStartsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		e := newEndpoint(func(int, *http.Request) (int, error) { <-release; return http.StatusOK, nil })
		b := newBed(t, Config{Transport: e})
		b.subscribe(&pubsubpb.Subscription{PushConfig: pushTo("http://stage/")})
		b.publish(make100()...)
		synctest.Wait()
		b.want("outstanding pushes", startWindow, b.Stats().Subscriptions[subName].Outstanding)
		for range startWindow {
			release <- struct{}{}
		}
		synctest.Wait()
		if got := b.Stats().Subscriptions[subName].Outstanding; got <= startWindow {
			t.Errorf("outstanding pushes after a round of acks = %d, want more than %d", got, startWindow)
		}
		close(release)
		synctest.Wait()
		b.want("backlog", 0, b.Stats().Subscriptions[subName].Backlog)
	})
}

func make100() []string {
	var messages []string
	for i := range 100 {
		messages = append(messages, strconv.Itoa(i))
	}
	return messages
}

func TestAckDeadlineIsTheTimeoutOfAPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(func(n int, r *http.Request) (int, error) {
			if n == 1 {
				<-r.Context().Done()
				return 0, r.Context().Err()
			}
			return http.StatusOK, nil
		})
		b := newBed(t, Config{Transport: e})
		b.subscribe(&pubsubpb.Subscription{PushConfig: pushTo("http://stage/"), AckDeadlineSeconds: 20})
		b.publish("x")
		time.Sleep(time.Minute)
		b.want("pushes", []time.Duration{0, 20*time.Second + minPushBackoff}, e.times())
	})
}

func TestOnlyTheDocumentedCodesAck(t *testing.T) {
	acking := []int{102, 200, 201, 202, 204}
	for code := 100; code < 600; code++ {
		if got, want := acks(code), slices.Contains(acking, code); got != want {
			t.Errorf("acks(%d) = %t, want %t", code, got, want)
		}
	}
}

func TestOrderedPushHasOneMessagePerKeyInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		e := newEndpoint(func(int, *http.Request) (int, error) { <-release; return http.StatusOK, nil })
		b := newBed(t, Config{Transport: e})
		b.subscribe(&pubsubpb.Subscription{PushConfig: pushTo("http://stage/"), EnableMessageOrdering: true})
		req := &pubsubpb.PublishRequest{Topic: topicName}
		for _, key := range []string{"a", "a", "b", "a"} {
			req.Messages = append(req.Messages, &pubsubpb.PubsubMessage{Data: []byte("x"), OrderingKey: key})
		}
		res, err := b.Publish(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.want("outstanding pushes", 2, b.Stats().Subscriptions[subName].Outstanding)
		close(release)
		synctest.Wait()
		var ofA []string
		for _, id := range e.ids {
			if id != res.GetMessageIds()[2] {
				ofA = append(ofA, id)
			}
		}
		b.want("order of key a", []string{res.MessageIds[0], res.MessageIds[1], res.MessageIds[3]}, ofA)
	})
}

func TestExhaustedPushIsDeadLettered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts []string
		e := newEndpoint(func(_ int, r *http.Request) (int, error) {
			attempts = append(attempts, r.Header.Get("X-Goog-Pubsub-Delivery-Attempt"))
			return http.StatusInternalServerError, nil
		})
		b := newBed(t, Config{Transport: e})
		b.topic(deadName)
		b.subscribe(&pubsubpb.Subscription{
			PushConfig: pushTo("http://stage/"), DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: deadName},
		})
		b.subscribe(&pubsubpb.Subscription{Name: subName + "-dead", Topic: deadName})
		b.publish("poison")
		time.Sleep(time.Minute)
		synctest.Wait()
		b.want("attempts", []string{"1", "2", "3", "4", "5"}, attempts)
		b.want("dead letters", []string{"poison"}, payloads(b.pull(subName+"-dead", 10)))
		b.want("counted", int64(1), b.Stats().Subscriptions[subName].DeadLettered)
		b.want("backlog", 0, b.Stats().Subscriptions[subName].Backlog)
	})
}

func TestMissingDeadLetterTopicKeepsTheMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(answering(http.StatusInternalServerError))
		b := newBed(t, Config{Transport: e})
		b.topic(deadName)
		b.subscribe(&pubsubpb.Subscription{
			PushConfig: pushTo("http://stage/"), DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: deadName},
		})
		if _, err := b.DeleteTopic(context.Background(), &pubsubpb.DeleteTopicRequest{Topic: deadName}); err != nil {
			t.Fatal(err)
		}
		b.publish("poison")
		time.Sleep(time.Minute)
		b.want("backlog", 1, b.Stats().Subscriptions[subName].Backlog)
		if got := len(e.times()); got <= 5 {
			t.Errorf("pushes = %d, want more than the five of the policy", got)
		}
	})
}

func TestLeaseEndsAtTheAckDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Config{})
		b.subscribe(&pubsubpb.Subscription{AckDeadlineSeconds: 30})
		b.publish("x")
		first := b.pull(subName, 1)
		time.Sleep(30*time.Second - time.Nanosecond)
		b.want("within the deadline", []string(nil), payloads(b.pull(subName, 1)))
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		b.want("after the deadline", []string{"x"}, payloads(b.pull(subName, 1)))
		if err := b.ack(subName, first...); err != nil {
			t.Fatal(err)
		}
		b.want("backlog after a late ack", 0, b.Stats().Subscriptions[subName].Backlog)
	})
}

func TestExactlyOnceRefusesLateAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Config{})
		b.subscribe(&pubsubpb.Subscription{EnableExactlyOnceDelivery: true})
		b.publish("x")
		first := b.pull(subName, 1)
		time.Sleep(11 * time.Second)
		if got := status.Code(b.ack(subName, first...)); got != codes.FailedPrecondition {
			t.Errorf("late ack: code %s, want FailedPrecondition", got)
		}
		b.want("backlog", 1, b.Stats().Subscriptions[subName].Backlog)
		if err := b.ack(subName, b.pull(subName, 1)...); err != nil {
			t.Errorf("ack in time: %v", err)
		}
		b.want("backlog", 0, b.Stats().Subscriptions[subName].Backlog)
	})
}

func TestMessagePastItsRetentionIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Config{})
		b.subscribe(&pubsubpb.Subscription{MessageRetentionDuration: durationpb.New(10 * time.Minute)})
		b.publish("old", "leased")
		b.pull(subName, 1)
		time.Sleep(5 * time.Minute)
		b.publish("young")
		time.Sleep(7 * time.Minute)
		b.want("backlog", []string{"young"}, payloads(b.pull(subName, 10)))
	})
}

func TestTokenIsCachedAndRenewedEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := &countingTokens{}
		var got []string
		e := newEndpoint(func(_ int, r *http.Request) (int, error) {
			got = append(got, r.Header.Get("Authorization"))
			return http.StatusOK, nil
		})
		b := newBed(t, Config{Transport: e, Tokens: tokens})
		cfg := pushTo("http://stage/path")
		cfg.AuthenticationMethod = &pubsubpb.PushConfig_OidcToken_{OidcToken: &pubsubpb.PushConfig_OidcToken{ServiceAccountEmail: "a@p"}}
		b.subscribe(&pubsubpb.Subscription{PushConfig: cfg})
		for _, pause := range []time.Duration{0, time.Minute, 50 * time.Minute} {
			time.Sleep(pause)
			b.publish("x")
			synctest.Wait()
		}
		one := "Bearer 1 for a@p at http://stage/path"
		b.want("tokens", []string{one, one, "Bearer 2 for a@p at http://stage/path"}, got)
	})
}

type countingTokens struct{ n int }

func (c *countingTokens) IDToken(email, audience string) (string, time.Time, error) {
	c.n++
	return strconv.Itoa(c.n) + " for " + email + " at " + audience, time.Now().Add(time.Hour), nil
}

func TestTokenWithoutAnIssuerIsRefused(t *testing.T) {
	b := newBed(t, Config{})
	b.topic(topicName)
	cfg := pushTo("http://stage/")
	cfg.AuthenticationMethod = &pubsubpb.PushConfig_OidcToken_{OidcToken: &pubsubpb.PushConfig_OidcToken{ServiceAccountEmail: "a@p"}}
	_, err := b.CreateSubscription(context.Background(), &pubsubpb.Subscription{Name: subName, Topic: topicName, PushConfig: cfg})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("create = %v, want FailedPrecondition", err)
	}
}

func TestInjectedFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(answering(http.StatusOK))
		b := newBed(t, Config{Transport: e})
		b.subscribe(&pubsubpb.Subscription{PushConfig: pushTo("http://stage/")})
		f := b.Faults()

		f.Set(FaultPlan{Duplicate: 1})
		b.publish("twice")
		synctest.Wait()
		b.want("pushes of a duplicated message", 2, len(e.times()))

		f.Set(FaultPlan{LoseAck: 1})
		b.publish("lost")
		synctest.Wait()
		f.Set(FaultPlan{})
		time.Sleep(time.Second)
		b.want("pushes of a message with a lost ack", 4, len(e.times()))

		f.Set(FaultPlan{Delay: 1, DelayMax: time.Minute})
		b.publish("late")
		synctest.Wait()
		b.want("pushes while delayed", 4, len(e.times()))
		time.Sleep(time.Minute)
		b.want("pushes after the delay", 5, len(e.times()))

		f.Set(FaultPlan{RefusePublish: 1})
		req := &pubsubpb.PublishRequest{Topic: topicName, Messages: []*pubsubpb.PubsubMessage{{Data: []byte("x")}}}
		_, err := b.Publish(context.Background(), req)
		b.want("code of a refused publish", codes.Unavailable, status.Code(err))
		f.Set(FaultPlan{})
		f.RefusePublish(time.Second)
		_, err = b.Publish(context.Background(), req)
		b.want("code while refusing", codes.Unavailable, status.Code(err))
		time.Sleep(time.Second)
		_, err = b.Publish(context.Background(), req)
		b.want("error after refusing", error(nil), err)

		synctest.Wait()
		f.CollapsePushWindows()
		b.want("collapsed window", 1, b.Stats().Subscriptions[subName].PushWindow)
	})
}

func TestFaultsRepeatWithTheirSeed(t *testing.T) {
	decisions := func(seed uint64) (got []bool) {
		f := &Faults{}
		f.Set(FaultPlan{Seed: seed, Duplicate: 0.3})
		for range 1000 {
			got = append(got, f.duplicate())
		}
		return got
	}
	one, again, other := decisions(1), decisions(1), decisions(2)
	if !slices.Equal(one, again) {
		t.Error("the same seed made other decisions")
	}
	if slices.Equal(one, other) {
		t.Error("another seed made the same decisions")
	}
	hits := 0
	for _, hit := range one {
		if hit {
			hits++
		}
	}
	if hits < 250 || hits > 350 {
		t.Errorf("%d of 1000 decisions hit, want about 300", hits)
	}
}

func TestReorderKeepsEveryMessage(t *testing.T) {
	b := newBed(t, Config{})
	b.subscribe(&pubsubpb.Subscription{})
	b.Faults().Set(FaultPlan{Reorder: 0.5})
	want := make100()
	b.publish(want...)
	got := payloads(b.pull(subName, 100))
	if slices.Equal(got, want) {
		t.Error("nothing was reordered")
	}
	slices.Sort(got)
	slices.Sort(want)
	b.want("messages", want, got)
}

func TestStatsCountTheBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Config{})
		b.subscribe(&pubsubpb.Subscription{})
		b.publish("a", "b", "c")
		time.Sleep(5 * time.Second)
		got := b.pull(subName, 2)
		if err := b.ack(subName, got[0]); err != nil {
			t.Fatal(err)
		}
		b.want("stats", Stats{
			Topics: map[string]TopicStats{topicName: {Published: 3}},
			Subscriptions: map[string]SubscriptionStats{subName: {
				Topic: topicName, Backlog: 2, Outstanding: 1, OldestUnackedAge: 5 * time.Second, Delivered: 2, Acked: 1,
			}},
		}, b.Stats())
	})
}

func TestClosedServerRefusesWork(t *testing.T) {
	b := newBed(t, Config{})
	b.subscribe(&pubsubpb.Subscription{})
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	_, err := b.Publish(context.Background(), &pubsubpb.PublishRequest{
		Topic: topicName, Messages: []*pubsubpb.PubsubMessage{{Data: []byte("x")}},
	})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("publish = %v, want Unavailable", err)
	}
}

func FuzzAckID(f *testing.F) {
	f.Add("1.2.3")
	f.Add("")
	f.Add("1..")
	f.Add("zzzzzzzzzzzzzz.1.1")
	f.Fuzz(func(t *testing.T, id string) {
		parsed, err := parseAckID(id, 1)
		if err != nil {
			return
		}
		again, err := parseAckID((&subscription{id: 1}).ackID(&entry{m: &message{seq: parsed.seq}, lease: parsed.lease}), 1)
		if err != nil || again != parsed {
			t.Errorf("%q parses to %v, which formats to %v, %v", id, parsed, again, err)
		}
	})
}
