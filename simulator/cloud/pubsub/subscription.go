package pubsub

import (
	"context"
	"slices"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// subscription is a subscription and its backlog.
type subscription struct {
	server  *Server
	name    string
	id      uint64
	topicID uint64
	filter  filter

	// Owned by the sequencer.
	start    uint64     // messages up to this sequence number are not its business
	incoming []*message // of the transaction being written

	mu     sync.Mutex
	pb     *pubsubpb.Subscription // replaced, never changed, under Server.mu and mu
	push   *pushTarget            // nil: pull
	paused bool                   // the server is closing
	closed bool                   // deleted or detached
	reason error                  // for the pullers of a closed subscription
	window window

	backlog     map[uint64]*entry // by sequence number
	order       queue[*entry]     // the backlog by age, with entries in it that are gone
	ready       queue[*entry]
	keys        map[string]*orderedKey
	readyKeys   queue[*orderedKey]
	due         dueHeap
	lease       uint64 // the last lease given
	outstanding int
	pullers     []*puller
	turn        int
	timer       *time.Timer
	armed       time.Time // when the timer goes off; zero: it does not
	stats       counters
}

func (s *Server) newSubscription(pb *pubsubpb.Subscription, id, topicID, start uint64) (*subscription, error) {
	f, err := parseFilter(pb.GetFilter())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	sub := &subscription{
		server: s, name: pb.GetName(), id: id, topicID: topicID, filter: f, start: start,
		window: newWindow(s.maxWindow), backlog: map[uint64]*entry{}, keys: map[string]*orderedKey{},
		closed: pb.GetDetached(),
	}
	sub.pb = pb
	sub.push, err = newPushTarget(pb)
	return sub, err
}

func (s *Server) loadSubscription(value []byte) (*subscription, error) {
	pb := new(pubsubpb.Subscription)
	numbers, err := unmarshalRecord(value, pb, 3)
	if err != nil {
		return nil, err
	}
	return s.newSubscription(pb, numbers[0], numbers[1], numbers[2])
}

func (s *subscription) record(pb *pubsubpb.Subscription) (record, error) {
	value, err := marshalRecord(pb, s.id, s.topicID, s.start)
	return record{bucketSubscriptions, []byte(s.name), value}, err
}

func (s *subscription) store() *store { return s.server.store }

func (s *subscription) matches(m *message) bool {
	return s.filter == nil || s.filter(m.pb.GetAttributes())
}

// setPB replaces the configuration, which has been checked.
func (s *subscription) setPB(pb *pubsubpb.Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.push, _ = newPushTarget(pb) // no error: pb has been checked
	s.pb = pb
	if s.push != nil {
		s.endPullers()
	}
	s.dispatch()
}

// pause stops deliveries until the process ends.
func (s *subscription) pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
	if s.timer != nil {
		s.timer.Stop()
	}
}

// clear closes the subscription and drops its backlog.
func (s *subscription) clear(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.reason, s.push = true, reason, nil
	if s.timer != nil {
		s.timer.Stop()
	}
	for _, e := range s.backlog {
		e.state = stateGone
		s.store().release(e.m, 0)
	}
	s.reset()
	s.endPullers()
}

// reset forgets the backlog.
func (s *subscription) reset() {
	for _, e := range s.due {
		if p := e.owner; p != nil {
			p.messages--
			p.bytes -= int64(e.m.size)
			e.owner = nil
		}
		e.heap = -1
	}
	clear(s.backlog)
	clear(s.keys)
	s.order, s.ready, s.readyKeys, s.due, s.outstanding = queue[*entry]{}, queue[*entry]{}, queue[*orderedKey]{}, nil, 0
}

// endPullers has every puller look again whether it may go on.
func (s *subscription) endPullers() {
	for _, p := range s.pullers {
		p.idle = false
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// expire drops messages past the retention of the subscription.
func (s *subscription) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := now.Add(-s.pb.GetMessageRetentionDuration().AsDuration())
	for s.order.len() > 0 && (*s.order.at(0)).m.published.Before(oldest) {
		if e := *s.order.at(0); e.state != stateGone {
			s.remove(e) // takes it off the order too
		} else {
			s.order.popFront()
		}
	}
	s.dispatch()
}

// CreateSubscription creates a subscription to the messages that its topic gets from now on.
func (s *Server) CreateSubscription(ctx context.Context, pb *pubsubpb.Subscription) (*pubsubpb.Subscription, error) {
	pb = proto.CloneOf(pb)
	pb.State, pb.Detached, pb.TopicMessageRetentionDuration, pb.Tags = pubsubpb.Subscription_ACTIVE, false, nil, nil
	if pb.AckDeadlineSeconds == 0 {
		pb.AckDeadlineSeconds = minAckDeadline
	}
	if pb.MessageRetentionDuration == nil {
		pb.MessageRetentionDuration = durationpb.New(defaultRetention)
	}
	if pb.ExpirationPolicy == nil {
		pb.ExpirationPolicy = &pubsubpb.ExpirationPolicy{Ttl: durationpb.New(maxRetention)}
	}
	if err := checkName(pb.GetTopic(), "topics"); err != nil {
		return nil, err
	}
	if err := s.checkSubscription(pb); err != nil {
		return nil, err
	}
	err := s.administer(ctx, func(c *change) (func(), error) {
		t := s.topics[pb.GetTopic()]
		if t == nil {
			return nil, notFound(pb.GetTopic())
		}
		if s.subscriptions[pb.GetName()] != nil {
			return nil, alreadyExists(pb.GetName())
		}
		if dead := pb.GetDeadLetterPolicy(); dead != nil && s.topics[dead.GetDeadLetterTopic()] == nil {
			return nil, notFound(dead.GetDeadLetterTopic())
		}
		sub, err := s.newSubscription(pb, s.nextID(), t.id, s.lastSeq)
		if err != nil {
			return nil, err
		}
		r, err := sub.record(pb)
		c.puts = append(c.puts, r)
		return func() {
			s.subscriptions[pb.GetName()] = sub
			t.subscriptions = append(slices.Clip(t.subscriptions), sub)
		}, err
	})
	return s.shown(pb), err
}

// shown adds to a subscription what only answers show.
func (s *Server) shown(pb *pubsubpb.Subscription) *pubsubpb.Subscription {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.shownLocked(pb)
}

func (s *Server) shownLocked(pb *pubsubpb.Subscription) *pubsubpb.Subscription {
	t := s.topics[pb.GetTopic()]
	if t == nil || t.pb.GetMessageRetentionDuration() == nil {
		return pb
	}
	pb = proto.CloneOf(pb)
	pb.TopicMessageRetentionDuration = t.pb.GetMessageRetentionDuration()
	return pb
}

// GetSubscription returns a subscription.
func (s *Server) GetSubscription(_ context.Context, req *pubsubpb.GetSubscriptionRequest) (*pubsubpb.Subscription, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sub := s.subscriptions[req.GetSubscription()]
	if sub == nil {
		return nil, notFound(req.GetSubscription())
	}
	return s.shownLocked(sub.pb), nil
}

// UpdateSubscription changes the fields of a subscription that the mask names. Topic, filter and message ordering cannot
// be changed, as in production.
func (s *Server) UpdateSubscription(
	ctx context.Context, req *pubsubpb.UpdateSubscriptionRequest,
) (*pubsubpb.Subscription, error) {
	from := req.GetSubscription()
	if err := checkMask(req.GetUpdateMask(), from); err != nil {
		return nil, err
	}
	var pb *pubsubpb.Subscription
	err := s.administer(ctx, func(c *change) (func(), error) {
		sub := s.subscriptions[from.GetName()]
		if sub == nil {
			return nil, notFound(from.GetName())
		}
		pb = proto.CloneOf(sub.pb)
		for _, path := range req.GetUpdateMask().GetPaths() {
			switch path {
			case "ack_deadline_seconds":
				pb.AckDeadlineSeconds = max(from.GetAckDeadlineSeconds(), 0)
				if pb.AckDeadlineSeconds == 0 {
					pb.AckDeadlineSeconds = minAckDeadline
				}
			case "dead_letter_policy":
				pb.DeadLetterPolicy = proto.CloneOf(from.GetDeadLetterPolicy())
				if dead := pb.GetDeadLetterPolicy(); dead != nil && s.topics[dead.GetDeadLetterTopic()] == nil {
					return nil, notFound(dead.GetDeadLetterTopic())
				}
			case "enable_exactly_once_delivery":
				pb.EnableExactlyOnceDelivery = from.GetEnableExactlyOnceDelivery()
			case "expiration_policy":
				pb.ExpirationPolicy = from.GetExpirationPolicy()
			case "labels":
				pb.Labels = from.GetLabels()
			case "message_retention_duration":
				pb.MessageRetentionDuration = from.GetMessageRetentionDuration()
				if pb.MessageRetentionDuration == nil {
					pb.MessageRetentionDuration = durationpb.New(defaultRetention)
				}
			case "push_config":
				pb.PushConfig = from.GetPushConfig()
			case "retain_acked_messages":
				pb.RetainAckedMessages = from.GetRetainAckedMessages()
			case "retry_policy":
				pb.RetryPolicy = proto.CloneOf(from.GetRetryPolicy())
			default:
				return nil, status.Errorf(codes.InvalidArgument, "the field %q of a subscription cannot be updated", path)
			}
		}
		if err := s.checkSubscription(pb); err != nil {
			return nil, err
		}
		r, err := sub.record(pb)
		c.puts = append(c.puts, r)
		return func() { sub.setPB(pb) }, err
	})
	return s.shown(pb), err
}

// ModifyPushConfig changes the push endpoint, or with an empty one turns the subscription into one for pull.
func (s *Server) ModifyPushConfig(ctx context.Context, req *pubsubpb.ModifyPushConfigRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.administer(ctx, func(c *change) (func(), error) {
		sub := s.subscriptions[req.GetSubscription()]
		if sub == nil {
			return nil, notFound(req.GetSubscription())
		}
		pb := proto.CloneOf(sub.pb)
		pb.PushConfig = req.GetPushConfig()
		if err := s.checkSubscription(pb); err != nil {
			return nil, err
		}
		r, err := sub.record(pb)
		c.puts = append(c.puts, r)
		return func() { sub.setPB(pb) }, err
	})
}

// ListSubscriptions lists the subscriptions of a project by name.
func (s *Server) ListSubscriptions(
	_ context.Context, req *pubsubpb.ListSubscriptionsRequest,
) (*pubsubpb.ListSubscriptionsResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names, next, err := page(s.subscriptions, req.GetProject()+"/subscriptions/", req.GetPageSize(), req.GetPageToken())
	res := &pubsubpb.ListSubscriptionsResponse{NextPageToken: next}
	for _, name := range names {
		res.Subscriptions = append(res.Subscriptions, s.shownLocked(s.subscriptions[name].pb))
	}
	return res, err
}

// DeleteSubscription deletes a subscription and its backlog.
func (s *Server) DeleteSubscription(ctx context.Context, req *pubsubpb.DeleteSubscriptionRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.administer(ctx, func(c *change) (func(), error) {
		sub := s.subscriptions[req.GetSubscription()]
		if sub == nil {
			return nil, notFound(req.GetSubscription())
		}
		c.deletes = append(c.deletes, record{bucket: bucketSubscriptions, key: []byte(sub.name)})
		return func() {
			delete(s.subscriptions, sub.name)
			s.detach(sub)
			sub.clear(notFound(sub.name))
		}, nil
	})
}

// checkSubscription checks a configuration and fills in the defaults of its policies.
func (s *Server) checkSubscription(pb *pubsubpb.Subscription) error {
	invalid := func(format string, args ...any) error { return status.Errorf(codes.InvalidArgument, format, args...) }
	if err := checkName(pb.GetName(), "subscriptions"); err != nil {
		return err
	}
	if d := pb.GetAckDeadlineSeconds(); d < minAckDeadline || d > maxAckDeadline {
		return invalid("ack_deadline_seconds is %d, want %d to %d", d, minAckDeadline, maxAckDeadline)
	}
	if err := checkRetention("message_retention_duration", pb.GetMessageRetentionDuration()); err != nil {
		return err
	}
	if ttl := pb.GetExpirationPolicy().GetTtl(); ttl != nil && ttl.AsDuration() < 24*time.Hour {
		return invalid("expiration_policy.ttl is %s, want at least 24h", ttl.AsDuration())
	}
	if dead := pb.GetDeadLetterPolicy(); dead != nil {
		if dead.MaxDeliveryAttempts == 0 {
			dead.MaxDeliveryAttempts = minDeliveryAttempts
		}
		if n := dead.GetMaxDeliveryAttempts(); n < minDeliveryAttempts || n > maxDeliveryAttempts {
			return invalid("dead_letter_policy.max_delivery_attempts is %d, want %d to %d", n, minDeliveryAttempts, maxDeliveryAttempts)
		}
		if err := checkName(dead.GetDeadLetterTopic(), "topics"); err != nil {
			return err
		}
	}
	if retry := pb.GetRetryPolicy(); retry != nil {
		if retry.MinimumBackoff == nil {
			retry.MinimumBackoff = durationpb.New(defaultRetryBackoff)
		}
		if retry.MaximumBackoff == nil {
			retry.MaximumBackoff = durationpb.New(maxRetryBackoff)
		}
		lowest, highest := retry.GetMinimumBackoff().AsDuration(), retry.GetMaximumBackoff().AsDuration()
		if lowest < 0 || highest > maxRetryBackoff || lowest > highest {
			return invalid("retry_policy has back-offs from %s to %s, want 0s ≤ minimum ≤ maximum ≤ %s", lowest, highest, maxRetryBackoff)
		}
	}
	target, err := newPushTarget(pb)
	if err != nil {
		return err
	}
	switch {
	case target != nil && target.email != "" && s.pusher.tokens == nil:
		return status.Error(codes.FailedPrecondition, "push_config.oidc_token is set, but this server has no token issuer")
	case target != nil && pb.GetEnableExactlyOnceDelivery():
		return invalid("exactly-once delivery is for pull subscriptions only")
	case pb.GetBigqueryConfig() != nil, pb.GetCloudStorageConfig() != nil, pb.GetBigtableConfig() != nil:
		return invalid("export subscriptions (BigQuery, Cloud Storage, Bigtable) are not supported here")
	case len(pb.GetMessageTransforms()) > 0:
		return invalid("message_transforms are not supported here")
	}
	return nil
}
