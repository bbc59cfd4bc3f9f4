package pubsub

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// deletedTopic is what a subscription shows as its topic once that is gone; its backlog stays deliverable.
const deletedTopic = "_deleted-topic_"

// topic is a topic. The sequencer alone changes it; pb is replaced, never changed, under Server.mu.
type topic struct {
	id            uint64
	pb            *pubsubpb.Topic
	subscriptions []*subscription // attached ones
	snapshots     int             // of this topic
	published     atomic.Int64
	// retained are messages kept beyond their acks: for seeks to a time, and for snapshots, which keep what follows them.
	retained queue[*message]
}

func loadTopic(value []byte) (*topic, error) {
	t := &topic{pb: new(pubsubpb.Topic)}
	numbers, err := unmarshalRecord(value, t.pb, 1)
	if err != nil {
		return nil, err
	}
	t.id = numbers[0]
	return t, nil
}

func (t *topic) record(pb *pubsubpb.Topic) (record, error) {
	value, err := marshalRecord(pb, t.id)
	return record{bucketTopics, []byte(pb.GetName()), value}, err
}

// retention is how long acked messages are kept for the topic or one of its subscriptions.
func (t *topic) retention() time.Duration {
	longest := t.pb.GetMessageRetentionDuration().AsDuration()
	for _, sub := range t.subscriptions {
		if sub.pb.GetRetainAckedMessages() {
			longest = max(longest, sub.pb.GetMessageRetentionDuration().AsDuration())
		}
	}
	return longest
}

func (t *topic) retains() bool { return t.snapshots > 0 || t.retention() > 0 }

// trim lets go of retained messages that no seek can ask for any more.
func (s *Server) trim(t *topic, now time.Time) {
	since := now.Add(-t.retention())
	first := uint64(1<<64 - 1) // the first message that a snapshot keeps
	for _, snap := range s.snapshots {
		if snap.topicID == t.id {
			first = min(first, snap.seq+1)
		}
	}
	for t.retained.len() > 0 {
		m := *t.retained.at(0)
		if m.seq >= first || m.published.After(since) {
			return
		}
		t.retained.popFront()
		s.store.release(m, 0)
	}
}

// CreateTopic creates a topic.
func (s *Server) CreateTopic(ctx context.Context, pb *pubsubpb.Topic) (*pubsubpb.Topic, error) {
	pb = proto.CloneOf(pb)
	pb.State, pb.SatisfiesPzs, pb.Tags = pubsubpb.Topic_ACTIVE, false, nil
	if err := checkTopic(pb); err != nil {
		return nil, err
	}
	err := s.administer(ctx, func(c *change) (func(), error) {
		if s.topics[pb.GetName()] != nil {
			return nil, alreadyExists(pb.GetName())
		}
		t := &topic{id: s.nextID(), pb: pb}
		r, err := t.record(pb)
		c.puts = append(c.puts, r)
		return func() { s.topics[pb.GetName()] = t }, err
	})
	return pb, err
}

// UpdateTopic changes the fields of a topic that the mask names: labels, message_retention_duration,
// message_storage_policy and kms_key_name (the last two are kept and shown, nothing more).
func (s *Server) UpdateTopic(ctx context.Context, req *pubsubpb.UpdateTopicRequest) (*pubsubpb.Topic, error) {
	from := req.GetTopic()
	if err := checkMask(req.GetUpdateMask(), from); err != nil {
		return nil, err
	}
	var pb *pubsubpb.Topic
	err := s.administer(ctx, func(c *change) (func(), error) {
		t := s.topics[from.GetName()]
		if t == nil {
			return nil, notFound(from.GetName())
		}
		pb = proto.CloneOf(t.pb)
		for _, path := range req.GetUpdateMask().GetPaths() {
			switch path {
			case "labels":
				pb.Labels = from.GetLabels()
			case "message_retention_duration":
				pb.MessageRetentionDuration = from.GetMessageRetentionDuration()
			case "message_storage_policy":
				pb.MessageStoragePolicy = from.GetMessageStoragePolicy()
			case "kms_key_name":
				pb.KmsKeyName = from.GetKmsKeyName()
			default:
				return nil, status.Errorf(codes.InvalidArgument, "the field %q of a topic cannot be updated", path)
			}
		}
		if err := checkTopic(pb); err != nil {
			return nil, err
		}
		r, err := t.record(pb)
		c.puts = append(c.puts, r)
		return func() { t.pb = pb }, err
	})
	return pb, err
}

// GetTopic returns a topic.
func (s *Server) GetTopic(_ context.Context, req *pubsubpb.GetTopicRequest) (*pubsubpb.Topic, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.topics[req.GetTopic()]
	if t == nil {
		return nil, notFound(req.GetTopic())
	}
	return t.pb, nil
}

// ListTopics lists the topics of a project by name.
func (s *Server) ListTopics(_ context.Context, req *pubsubpb.ListTopicsRequest) (*pubsubpb.ListTopicsResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names, next, err := page(s.topics, req.GetProject()+"/topics/", req.GetPageSize(), req.GetPageToken())
	res := &pubsubpb.ListTopicsResponse{NextPageToken: next}
	for _, name := range names {
		res.Topics = append(res.Topics, s.topics[name].pb)
	}
	return res, err
}

// ListTopicSubscriptions lists the names of the subscriptions attached to a topic.
func (s *Server) ListTopicSubscriptions(
	_ context.Context, req *pubsubpb.ListTopicSubscriptionsRequest,
) (*pubsubpb.ListTopicSubscriptionsResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.topics[req.GetTopic()]
	if t == nil {
		return nil, notFound(req.GetTopic())
	}
	all := map[string]bool{}
	for _, sub := range t.subscriptions {
		all[sub.name] = true
	}
	names, next, err := page(all, "", req.GetPageSize(), req.GetPageToken())
	return &pubsubpb.ListTopicSubscriptionsResponse{Subscriptions: names, NextPageToken: next}, err
}

// ListTopicSnapshots lists the names of the snapshots of a topic.
func (s *Server) ListTopicSnapshots(
	_ context.Context, req *pubsubpb.ListTopicSnapshotsRequest,
) (*pubsubpb.ListTopicSnapshotsResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.topics[req.GetTopic()]
	if t == nil {
		return nil, notFound(req.GetTopic())
	}
	all := map[string]bool{}
	for name, snap := range s.snapshots {
		if snap.topicID == t.id {
			all[name] = true
		}
	}
	names, next, err := page(all, "", req.GetPageSize(), req.GetPageToken())
	return &pubsubpb.ListTopicSnapshotsResponse{Snapshots: names, NextPageToken: next}, err
}

// DeleteTopic deletes a topic. Its subscriptions stay, with their backlog and no topic.
func (s *Server) DeleteTopic(ctx context.Context, req *pubsubpb.DeleteTopicRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.administer(ctx, func(c *change) (func(), error) {
		t := s.topics[req.GetTopic()]
		if t == nil {
			return nil, notFound(req.GetTopic())
		}
		c.deletes = append(c.deletes, record{bucket: bucketTopics, key: []byte(req.GetTopic())})
		orphaned := map[*subscription]*pubsubpb.Subscription{}
		for _, sub := range t.subscriptions {
			pb := proto.CloneOf(sub.pb)
			pb.Topic = deletedTopic
			r, err := sub.record(pb)
			if err != nil {
				return nil, err
			}
			c.puts = append(c.puts, r)
			orphaned[sub] = pb
		}
		return func() {
			delete(s.topics, req.GetTopic())
			for sub, pb := range orphaned {
				sub.setPB(pb)
			}
			for t.retained.len() > 0 {
				s.store.release(t.retained.popFront(), 0)
			}
		}, nil
	})
}

// DetachSubscription takes a subscription off its topic for good and drops its backlog.
func (s *Server) DetachSubscription(
	ctx context.Context, req *pubsubpb.DetachSubscriptionRequest,
) (*pubsubpb.DetachSubscriptionResponse, error) {
	return &pubsubpb.DetachSubscriptionResponse{}, s.administer(ctx, func(c *change) (func(), error) {
		sub := s.subscriptions[req.GetSubscription()]
		if sub == nil {
			return nil, notFound(req.GetSubscription())
		}
		pb := proto.CloneOf(sub.pb)
		pb.Detached = true
		r, err := sub.record(pb)
		c.puts = append(c.puts, r)
		return func() {
			s.detach(sub)
			sub.setPB(pb)
			sub.clear(status.Error(codes.FailedPrecondition, "the subscription is detached from its topic"))
		}, err
	})
}

// detach removes a subscription from its topic's list.
func (s *Server) detach(sub *subscription) {
	if t := s.topics[sub.pb.GetTopic()]; t != nil {
		t.subscriptions = slices.DeleteFunc(slices.Clone(t.subscriptions), func(x *subscription) bool { return x == sub })
	}
}

// Publish stores messages and answers with their ids once they are committed.
func (s *Server) Publish(ctx context.Context, req *pubsubpb.PublishRequest) (*pubsubpb.PublishResponse, error) {
	if s.faults.publishRefused() {
		return nil, status.Error(codes.Unavailable, "publishing is refused by an injected fault")
	}
	if err := checkPublish(req); err != nil {
		return nil, err
	}
	op := &operation{topic: req.GetTopic(), messages: req.GetMessages()}
	if err := s.do(ctx, op); err != nil {
		return nil, err
	}
	return &pubsubpb.PublishResponse{MessageIds: op.ids}, nil
}

func checkTopic(pb *pubsubpb.Topic) error {
	if err := checkName(pb.GetName(), "topics"); err != nil {
		return err
	}
	if err := checkRetention("message_retention_duration", pb.GetMessageRetentionDuration()); err != nil {
		return err
	}
	switch {
	case pb.GetSchemaSettings() != nil:
		return status.Error(codes.InvalidArgument, "schema_settings are not supported here")
	case pb.GetIngestionDataSourceSettings() != nil:
		return status.Error(codes.InvalidArgument, "ingestion_data_source_settings are not supported here")
	case len(pb.GetMessageTransforms()) > 0:
		return status.Error(codes.InvalidArgument, "message_transforms are not supported here")
	}
	return nil
}

func checkRetention(field string, d *durationpb.Duration) error {
	if d == nil {
		return nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < minRetention || d.AsDuration() > maxRetention {
		return status.Errorf(codes.InvalidArgument, "%s must be between %s and %s, got %s", field, minRetention, maxRetention, d.AsDuration())
	}
	return nil
}
