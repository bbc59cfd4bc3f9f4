package pubsub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	// maxPullBytes ends an answer to a pull, far below the receive limit of the clients.
	maxPullBytes = 4 << 20
	// maxStreamedMessages bounds one answer on a stream.
	maxStreamedMessages = 1_000
	// pullWait is how long a Pull waits for the first message before it answers with none.
	pullWait = 30 * time.Second
)

// Pull answers with messages as soon as there are any, or with none after a while.
func (s *Server) Pull(ctx context.Context, req *pubsubpb.PullRequest) (*pubsubpb.PullResponse, error) {
	if req.GetMaxMessages() <= 0 {
		return nil, status.Errorf(codes.InvalidArgument, "max_messages is %d, want more than 0", req.GetMaxMessages())
	}
	sub, err := s.subscriptionForPull(req.GetSubscription())
	if err != nil {
		return nil, err
	}
	p := newPuller(0, 0)
	sub.addPuller(p)
	defer sub.removePuller(p)
	wait := time.NewTimer(pullWait)
	defer wait.Stop()
	for {
		messages, err := sub.pull(int(req.GetMaxMessages()), p, 0)
		if err != nil {
			return nil, err
		}
		if len(messages) > 0 || req.GetReturnImmediately() { //nolint:staticcheck // deprecated, but clients still send it
			return &pubsubpb.PullResponse{ReceivedMessages: messages}, nil
		}
		select {
		case <-p.wake:
		case <-wait.C:
			return &pubsubpb.PullResponse{}, nil
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-s.ctx.Done():
			return nil, errClosed
		}
	}
}

// StreamingPull sends messages as they come, within the flow control of the stream, and takes acks and deadlines on it.
func (s *Server) StreamingPull(stream pubsubpb.Subscriber_StreamingPullServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	sub, err := s.subscriptionForPull(first.GetSubscription())
	if err != nil {
		return err
	}
	var deadline atomic.Int32
	if err := sub.streamRequest(first, &deadline, true); err != nil {
		return err
	}
	p := newPuller(first.GetMaxOutstandingMessages(), first.GetMaxOutstandingBytes())
	sub.addPuller(p)
	defer sub.removePuller(p)

	received := make(chan error, 1) // the end of the requests
	pings := make(chan struct{}, 1)
	s.background(func(context.Context) {
		for {
			req, err := stream.Recv()
			if err == nil {
				err = sub.streamRequest(req, &deadline, false)
			}
			if err != nil {
				received <- err
				return
			}
			if len(req.GetAckIds()) == 0 && len(req.GetModifyDeadlineAckIds()) == 0 {
				select {
				case pings <- struct{}{}:
				default:
				}
			}
		}
	})
	// The first answer tells the client the properties of the subscription.
	pending := true
	for {
		messages, err := sub.pull(maxStreamedMessages, p, time.Duration(deadline.Load())*time.Second)
		if err != nil {
			return err
		}
		if len(messages) > 0 || pending {
			pending = false
			if err := stream.Send(sub.streamResponse(messages)); err != nil {
				return err
			}
			if len(messages) > 0 {
				continue
			}
		}
		select {
		case <-p.wake:
		case <-pings:
			pending = true // clients of protocol version 1 close a stream that does not answer their pings
		case err := <-received:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-s.ctx.Done():
			return errClosed
		}
	}
}

func (s *subscription) streamResponse(messages []*pubsubpb.ReceivedMessage) *pubsubpb.StreamingPullResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &pubsubpb.StreamingPullResponse{
		ReceivedMessages: messages,
		SubscriptionProperties: &pubsubpb.StreamingPullResponse_SubscriptionProperties{
			ExactlyOnceDeliveryEnabled: s.pb.GetEnableExactlyOnceDelivery(),
			MessageOrderingEnabled:     s.pb.GetEnableMessageOrdering(),
		},
	}
}

// streamRequest carries out one request of a stream.
func (s *subscription) streamRequest(req *pubsubpb.StreamingPullRequest, deadline *atomic.Int32, first bool) error {
	if !first && (req.GetSubscription() != "" || req.GetMaxOutstandingMessages() != 0 || req.GetMaxOutstandingBytes() != 0) {
		return status.Error(codes.InvalidArgument, "subscription and flow control can be set on the first request of a stream only")
	}
	if d := req.GetStreamAckDeadlineSeconds(); d != 0 || first {
		if d < minAckDeadline || d > maxAckDeadline {
			return status.Errorf(codes.InvalidArgument, "stream_ack_deadline_seconds is %d, want %d to %d", d, minAckDeadline, maxAckDeadline)
		}
		deadline.Store(d)
	}
	seconds, ids := req.GetModifyDeadlineSeconds(), req.GetModifyDeadlineAckIds()
	if len(seconds) != len(ids) {
		return status.Errorf(codes.InvalidArgument, "%d modify_deadline_seconds for %d modify_deadline_ack_ids", len(seconds), len(ids))
	}
	if len(ids) > 0 {
		if _, err := s.modifyDeadlines(ids, func(i int) int32 { return seconds[i] }); err != nil {
			return err
		}
	}
	if len(req.GetAckIds()) > 0 {
		if _, err := s.acknowledge(req.GetAckIds()); err != nil {
			return err
		}
	}
	return nil
}

// Acknowledge ends the delivery of messages.
func (s *Server) Acknowledge(_ context.Context, req *pubsubpb.AcknowledgeRequest) (*emptypb.Empty, error) {
	if len(req.GetAckIds()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "ack_ids is empty")
	}
	sub, err := s.subscription(req.GetSubscription())
	if err != nil {
		return nil, err
	}
	late, err := sub.acknowledge(req.GetAckIds())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, sub.lateError(late)
}

// ModifyAckDeadline gives messages more time, or with 0 seconds gives them back (a nack).
func (s *Server) ModifyAckDeadline(_ context.Context, req *pubsubpb.ModifyAckDeadlineRequest) (*emptypb.Empty, error) {
	if len(req.GetAckIds()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "ack_ids is empty")
	}
	sub, err := s.subscription(req.GetSubscription())
	if err != nil {
		return nil, err
	}
	late, err := sub.modifyDeadlines(req.GetAckIds(), func(int) int32 { return req.GetAckDeadlineSeconds() })
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, sub.lateError(late)
}

// lateError reports ack ids whose lease has ended, which matters to exactly-once delivery only. The client library reads
// the metadata of the ErrorInfo: ack id → reason.
func (s *subscription) lateError(ids []string) error {
	s.mu.Lock()
	exactlyOnce := s.pb.GetEnableExactlyOnceDelivery()
	s.mu.Unlock()
	if len(ids) == 0 || !exactlyOnce {
		return nil
	}
	info := &errdetails.ErrorInfo{Reason: "PERMANENT_FAILURE_INVALID_ACK_ID", Domain: "pubsub.googleapis.com", Metadata: map[string]string{}}
	for _, id := range ids {
		info.Metadata[id] = "PERMANENT_FAILURE_INVALID_ACK_ID"
	}
	st := status.New(codes.FailedPrecondition, "some ack ids have expired")
	if detailed, err := st.WithDetails(info); err == nil {
		st = detailed
	}
	return st.Err()
}

// acknowledge acks messages and returns the ack ids that came too late.
func (s *subscription) acknowledge(ids []string) (late []string, err error) {
	parsed, err := s.parseAckIDs(ids)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, id := range parsed {
		e := s.backlog[id.seq]
		current := e != nil && e.state == stateLeased && e.lease == id.lease
		if !current {
			late = append(late, ids[i])
		}
		// An ack that comes late still counts where nothing forbids it: the message has been handled.
		if current || e != nil && id.lease > e.born && !s.pb.GetEnableExactlyOnceDelivery() {
			s.ack(e)
		}
	}
	s.dispatch()
	return late, nil
}

// modifyDeadlines extends leases, or ends them when the new deadline is 0.
func (s *subscription) modifyDeadlines(ids []string, seconds func(i int) int32) (late []string, err error) {
	parsed, err := s.parseAckIDs(ids)
	if err != nil {
		return nil, err
	}
	for i := range ids {
		if d := seconds(i); d < 0 || d > maxAckDeadline {
			return nil, status.Errorf(codes.InvalidArgument, "the ack deadline is %d s, want 0 to %d", d, maxAckDeadline)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for i, id := range parsed {
		e := s.backlog[id.seq]
		if e == nil || e.state != stateLeased || e.lease != id.lease {
			late = append(late, ids[i])
			continue
		}
		if d := seconds(i); d > 0 {
			s.extend(e, now.Add(time.Duration(d)*time.Second))
		} else {
			s.fail(e, now)
		}
	}
	s.dispatch()
	return late, nil
}

// ackID names one lease of one message.
type ackID struct{ seq, lease uint64 }

func (s *subscription) ackID(e *entry) string {
	b := make([]byte, 0, 40)
	b = strconv.AppendUint(b, s.id, 36)
	b = append(b, '.')
	b = strconv.AppendUint(b, e.m.seq, 36)
	b = append(b, '.')
	return string(strconv.AppendUint(b, e.lease, 36))
}

func (s *subscription) parseAckIDs(ids []string) ([]ackID, error) {
	parsed := make([]ackID, len(ids))
	for i, id := range ids {
		var err error
		if parsed[i], err = parseAckID(id, s.id); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	return parsed, nil
}

func parseAckID(id string, subscription uint64) (ackID, error) {
	of, rest, _ := strings.Cut(id, ".")
	seq, lease, _ := strings.Cut(rest, ".")
	owner, err1 := strconv.ParseUint(of, 36, 64)
	var parsed ackID
	var err2, err3 error
	parsed.seq, err2 = strconv.ParseUint(seq, 36, 64)
	parsed.lease, err3 = strconv.ParseUint(lease, 36, 64)
	if err1 != nil || err2 != nil || err3 != nil || owner != subscription {
		return ackID{}, fmt.Errorf("%.80q is not an ack id of this subscription", id)
	}
	return parsed, nil
}

func (s *Server) subscription(name string) (*subscription, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sub := s.subscriptions[name]
	if sub == nil {
		return nil, notFound(name)
	}
	return sub, nil
}

func (s *Server) subscriptionForPull(name string) (*subscription, error) {
	sub, err := s.subscription(name)
	if err != nil {
		return nil, err
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	return sub, sub.pullable()
}

func (s *subscription) pullable() error {
	switch {
	case s.closed && s.reason != nil:
		return s.reason
	case s.closed:
		return status.Error(codes.FailedPrecondition, "the subscription is detached from its topic")
	case s.push != nil:
		return status.Error(codes.FailedPrecondition, "This method is not supported for this subscription type.")
	}
	return nil
}

func (s *subscription) addPuller(p *puller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pullers = append(s.pullers, p)
}

// pull takes what is ready for a puller; lease 0 stands for the deadline of the subscription. With nothing to take the
// puller is idle: p.wake tells it to look again.
func (s *subscription) pull(n int, p *puller, lease time.Duration) ([]*pubsubpb.ReceivedMessage, error) {
	s.mu.Lock()
	if err := s.pullable(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	if lease == 0 {
		lease = time.Duration(s.pb.GetAckDeadlineSeconds()) * time.Second
	}
	entries := s.take(n, p, time.Now(), lease)
	p.idle = len(entries) == 0
	received := make([]*pubsubpb.ReceivedMessage, len(entries))
	for i, e := range entries {
		received[i] = &pubsubpb.ReceivedMessage{AckId: s.ackID(e)}
		if s.pb.GetDeadLetterPolicy() != nil {
			received[i].DeliveryAttempt = e.failures + 1
		}
	}
	s.dispatch() // sets the timer, and wakes the next puller for what is left
	s.mu.Unlock()

	for i, e := range entries {
		pb, err := s.store().payload(e.m)
		if err != nil {
			s.server.log.Error("pull", "subscription", s.name, "error", err)
			return nil, status.Error(codes.Internal, err.Error())
		}
		received[i].Message = pb
		if s.server.faults.duplicate() {
			received = append(received, received[i])
		}
	}
	return received, nil
}
