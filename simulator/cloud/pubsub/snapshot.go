package pubsub

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// snapshot keeps the backlog that a subscription had when it was made, and all messages of the topic after it.
// The sequencer alone changes it; pb is replaced under Server.mu.
type snapshot struct {
	pb      *pubsubpb.Snapshot
	topicID uint64
	seq     uint64     // the last message before the snapshot
	unacked []*message // each counts the snapshot as a holder
}

func (n *snapshot) record(pb *pubsubpb.Snapshot) (record, error) {
	value := binary.BigEndian.AppendUint64(nil, n.topicID)
	value = binary.BigEndian.AppendUint64(value, n.seq)
	value = binary.BigEndian.AppendUint64(value, uint64(len(n.unacked)))
	for _, m := range n.unacked {
		value = binary.BigEndian.AppendUint64(value, m.seq)
	}
	value, err := proto.MarshalOptions{}.MarshalAppend(value, pb)
	return record{bucketSnapshots, []byte(pb.GetName()), value}, err
}

// loadSnapshot reads a snapshot and finds its messages among those held.
func loadSnapshot(value []byte, held map[uint64]*message) (*snapshot, error) {
	if len(value) < 24 || uint64(len(value)-24)/8 < binary.BigEndian.Uint64(value[16:]) {
		return nil, errors.New("record too short")
	}
	n := &snapshot{pb: new(pubsubpb.Snapshot), topicID: binary.BigEndian.Uint64(value), seq: binary.BigEndian.Uint64(value[8:])}
	count := int(binary.BigEndian.Uint64(value[16:]))
	value = value[24:]
	for i := range count {
		if m := held[binary.BigEndian.Uint64(value[8*i:])]; m != nil {
			m.holders.Add(1)
			n.unacked = append(n.unacked, m)
		}
	}
	return n, proto.Unmarshal(value[8*count:], n.pb)
}

// CreateSnapshot keeps the present backlog of a subscription for a later Seek.
func (s *Server) CreateSnapshot(ctx context.Context, req *pubsubpb.CreateSnapshotRequest) (*pubsubpb.Snapshot, error) {
	name := req.GetName()
	if name == "" {
		project, _, _ := strings.Cut(req.GetSubscription(), "/subscriptions/")
		name = project + "/snapshots/s-" + uuid.NewString()
	}
	if err := checkName(name, "snapshots"); err != nil {
		return nil, err
	}
	var pb *pubsubpb.Snapshot
	err := s.administer(ctx, func(c *change) (func(), error) {
		sub := s.subscriptions[req.GetSubscription()]
		switch {
		case sub == nil:
			return nil, notFound(req.GetSubscription())
		case s.snapshots[name] != nil:
			return nil, alreadyExists(name)
		case s.topics[sub.pb.GetTopic()] == nil || sub.pb.GetDetached():
			return nil, status.Error(codes.FailedPrecondition, "the subscription has no topic")
		}
		now := time.Now()
		n := &snapshot{topicID: sub.topicID, seq: s.lastSeq}
		oldest := now
		sub.mu.Lock()
		for _, e := range sub.backlog {
			e.m.holders.Add(1)
			n.unacked = append(n.unacked, e.m)
			if e.m.published.Before(oldest) {
				oldest = e.m.published
			}
		}
		sub.mu.Unlock()
		slices.SortFunc(n.unacked, bySequence)
		pb = &pubsubpb.Snapshot{
			Name: name, Topic: sub.pb.GetTopic(), Labels: req.GetLabels(), ExpireTime: timestamppb.New(oldest.Add(defaultRetention)),
		}
		n.pb = pb
		r, err := n.record(pb)
		if err == nil && pb.GetExpireTime().AsTime().Sub(now) < time.Hour {
			err = status.Error(codes.FailedPrecondition, "the snapshot would expire within an hour: the backlog is too old")
		}
		if err == nil {
			// Held messages must not go before the snapshot is on file, so the record is written here.
			err = s.store.write(&change{puts: []record{r}})
		}
		if err != nil {
			for _, m := range n.unacked {
				s.store.release(m, 0)
			}
			return nil, err
		}
		return func() {
			s.snapshots[name] = n
			s.topics[pb.GetTopic()].snapshots++
		}, nil
	})
	return pb, err
}

func bySequence(a, b *message) int {
	if a.seq < b.seq {
		return -1
	}
	return 1
}

// GetSnapshot returns a snapshot.
func (s *Server) GetSnapshot(_ context.Context, req *pubsubpb.GetSnapshotRequest) (*pubsubpb.Snapshot, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := s.snapshots[req.GetSnapshot()]
	if n == nil {
		return nil, notFound(req.GetSnapshot())
	}
	return n.pb, nil
}

// UpdateSnapshot changes the labels or the expire time of a snapshot.
func (s *Server) UpdateSnapshot(ctx context.Context, req *pubsubpb.UpdateSnapshotRequest) (*pubsubpb.Snapshot, error) {
	from := req.GetSnapshot()
	if err := checkMask(req.GetUpdateMask(), from); err != nil {
		return nil, err
	}
	var pb *pubsubpb.Snapshot
	err := s.administer(ctx, func(c *change) (func(), error) {
		n := s.snapshots[from.GetName()]
		if n == nil {
			return nil, notFound(from.GetName())
		}
		pb = proto.CloneOf(n.pb)
		for _, path := range req.GetUpdateMask().GetPaths() {
			switch path {
			case "labels":
				pb.Labels = from.GetLabels()
			case "expire_time":
				pb.ExpireTime = from.GetExpireTime()
			default:
				return nil, status.Errorf(codes.InvalidArgument, "the field %q of a snapshot cannot be updated", path)
			}
		}
		r, err := n.record(pb)
		c.puts = append(c.puts, r)
		return func() { n.pb = pb }, err
	})
	return pb, err
}

// ListSnapshots lists the snapshots of a project by name.
func (s *Server) ListSnapshots(_ context.Context, req *pubsubpb.ListSnapshotsRequest) (*pubsubpb.ListSnapshotsResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names, next, err := page(s.snapshots, req.GetProject()+"/snapshots/", req.GetPageSize(), req.GetPageToken())
	res := &pubsubpb.ListSnapshotsResponse{NextPageToken: next}
	for _, name := range names {
		res.Snapshots = append(res.Snapshots, s.snapshots[name].pb)
	}
	return res, err
}

// DeleteSnapshot deletes a snapshot and the messages that only it kept.
func (s *Server) DeleteSnapshot(ctx context.Context, req *pubsubpb.DeleteSnapshotRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.administer(ctx, func(c *change) (func(), error) {
		n := s.snapshots[req.GetSnapshot()]
		if n == nil {
			return nil, notFound(req.GetSnapshot())
		}
		c.deletes = append(c.deletes, record{bucket: bucketSnapshots, key: []byte(req.GetSnapshot())})
		return func() { s.removeSnapshot(n) }, nil
	})
}

// removeSnapshot lets go of what a snapshot kept.
func (s *Server) removeSnapshot(n *snapshot) {
	delete(s.snapshots, n.pb.GetName())
	for _, m := range n.unacked {
		s.store.release(m, 0)
	}
	if t := s.topics[n.pb.GetTopic()]; t != nil && t.id == n.topicID {
		t.snapshots--
		s.trim(t, time.Now())
	}
}

// Seek sets the backlog of a subscription: to the messages published since a time, or to those of a snapshot and after
// it. What is delivered at that moment may be delivered again.
func (s *Server) Seek(ctx context.Context, req *pubsubpb.SeekRequest) (*pubsubpb.SeekResponse, error) {
	return &pubsubpb.SeekResponse{}, s.administer(ctx, func(*change) (func(), error) {
		sub := s.subscriptions[req.GetSubscription()]
		if sub == nil {
			return nil, notFound(req.GetSubscription())
		}
		if sub.pb.GetDetached() {
			return nil, status.Error(codes.FailedPrecondition, "the subscription is detached from its topic")
		}
		t := s.topics[sub.pb.GetTopic()]
		var unacked func(*message) bool
		var candidates []*message // beside the backlog
		var replayable bool
		switch target := req.GetTarget().(type) {
		case *pubsubpb.SeekRequest_Time:
			if err := target.Time.CheckValid(); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "time: %v", err)
			}
			since := target.Time.AsTime()
			unacked = func(m *message) bool { return !m.published.Before(since) }
			replayable = sub.pb.GetRetainAckedMessages() || t != nil && t.pb.GetMessageRetentionDuration() != nil
		case *pubsubpb.SeekRequest_Snapshot:
			n := s.snapshots[target.Snapshot]
			if n == nil {
				return nil, notFound(target.Snapshot)
			}
			if n.topicID != sub.topicID {
				return nil, status.Error(codes.FailedPrecondition, "the snapshot is of another topic")
			}
			kept := make(map[*message]bool, len(n.unacked))
			for _, m := range n.unacked {
				kept[m] = true
			}
			unacked = func(m *message) bool { return m.seq > n.seq || kept[m] }
			candidates, replayable = n.unacked, true
		default:
			return nil, status.Error(codes.InvalidArgument, "the request has no target")
		}
		if t != nil && replayable {
			for i := range t.retained.len() {
				candidates = append(candidates, *t.retained.at(i))
			}
		}
		return func() {}, s.seek(sub, candidates, unacked)
	})
}

// seek makes the backlog of a subscription those messages, of its backlog and the candidates, that are unacked.
func (s *Server) seek(sub *subscription, candidates []*message, unacked func(*message) bool) error {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	// First the acks that wait, lest they be written after the seek that revokes them.
	if err := s.store.write(&change{}); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	var c change
	var backlog []*message
	added := map[*message]bool{}
	start := sub.start
	for _, m := range candidates {
		if sub.backlog[m.seq] != nil || added[m] || !unacked(m) {
			continue
		}
		pb, err := s.store.payload(m)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if sub.filter != nil && !sub.filter(pb.GetAttributes()) {
			continue
		}
		added[m] = true
		backlog = append(backlog, m)
		c.unacks = append(c.unacks, ack{m, sub.id})
		start = min(start, m.seq-1)
	}
	if start != sub.start { // it now has messages from before it was created
		was := sub.start
		sub.start = start
		r, err := sub.record(sub.pb)
		if err != nil {
			sub.start = was
			return err
		}
		c.puts = append(c.puts, r)
	}
	if err := s.store.write(&c); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	for _, m := range backlog {
		m.holders.Add(1)
	}
	failures := map[uint64]int32{}
	for seq, e := range sub.backlog {
		e.state = stateGone
		if unacked(e.m) {
			backlog = append(backlog, e.m)
			failures[seq] = e.failures
		} else {
			s.store.release(e.m, sub.id)
		}
	}
	sub.reset()
	slices.SortFunc(backlog, bySequence)
	for _, m := range backlog {
		e := sub.add(m)
		e.failures = failures[m.seq]
		sub.settle(e)
	}
	sub.dispatch()
	if err := s.store.write(&change{}); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}
