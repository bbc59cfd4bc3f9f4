package robots

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"cloud.google.com/go/pubsub/v2"
	pubsubapi "cloud.google.com/go/pubsub/v2/apiv1"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Publisher takes the messages of a fleet.
type Publisher interface {
	// Publish queues a message; it blocks while too many are under way. It calls report exactly once for each message, from
	// any goroutine: with nil when the message is durably stored, with an error when it was given up because ctx ended or
	// because it was refused for good (ErrRefused). Until then it tries again. Messages may be stored in another order.
	Publish(ctx context.Context, m *Message, report func(*Message, error))
	// Flush returns when every message has been reported. It does not hold longer than the contexts of the messages, by more
	// than a moment. No message may be published meanwhile.
	Flush()
}

// ErrRefused is wrapped by the error of a message that no retry can help: a topic that does not exist, or no permission.
var ErrRefused = errors.New("refused for good")

// How PubSub publishes.
const (
	// Each message waits at most this long for others to share a request with; robots notice neither.
	batchDelay    = 10 * time.Millisecond
	batchMessages = 100
	batchBytes    = 1e6

	// Under way at once, at most. Pub/Sub confirms within 100 ms or so, so 5,000 messages keep up with 50,000 per second.
	mostMessages = 5000
	mostBytes    = 64 << 20

	// The client repeats a request that failed, in these steps, for this long; then the message is queued anew. The client's
	// own default waits up to 60 s between attempts, too long when Pub/Sub was away for a moment.
	requestTimeout = 10 * time.Second
	firstBackoff   = 50 * time.Millisecond
	longestBackoff = time.Second
)

// PubSub publishes to a Pub/Sub topic with Google's client.
type PubSub struct {
	client *pubsub.Client
	topic  *pubsub.Publisher
	log    *slog.Logger

	slots    chan struct{} // one is taken by each message under way
	attempts chan attempt  // in the order of publishing; has room for all slots, so that sending never blocks
	closed   chan struct{} // ends collect

	collector sync.WaitGroup

	failing atomic.Bool // the last result was an error
	retries atomic.Int64
}

// attempt is a message under way.
type attempt struct {
	ctx     context.Context
	message *Message
	result  *pubsub.PublishResult
	tries   int
	report  func(*Message, error)
}

// NewPubSub connects to a topic, given by its id or as "projects/<project>/topics/<topic>". PUBSUB_EMULATOR_HOST makes it
// one of an emulator; otherwise the credentials are the application default ones. It does not ask whether the topic exists,
// because a robot has permission to publish and for nothing else. Close releases it.
func NewPubSub(ctx context.Context, project, topic string, log *slog.Logger, opts ...option.ClientOption) (*PubSub, error) {
	if topic == "" {
		return nil, errors.New("pubsub: no topic")
	}
	retry := gax.WithRetry(func() gax.Retryer {
		return gax.OnCodes([]codes.Code{
			codes.Aborted, codes.DeadlineExceeded, codes.Internal, codes.ResourceExhausted, codes.Unavailable, codes.Unknown,
		}, gax.Backoff{Initial: firstBackoff, Max: longestBackoff, Multiplier: 2})
	})
	client, err := pubsub.NewClientWithConfig(ctx, project, &pubsub.ClientConfig{
		TopicAdminCallOptions: &pubsubapi.TopicAdminCallOptions{Publish: []gax.CallOption{retry}},
	}, opts...)
	if err != nil {
		return nil, fmt.Errorf("pubsub: connect to project %q: %w", project, err)
	}
	p := &PubSub{
		client:   client,
		topic:    client.Publisher(topic),
		log:      log,
		slots:    make(chan struct{}, mostMessages),
		attempts: make(chan attempt, mostMessages),
		closed:   make(chan struct{}),
	}
	p.topic.PublishSettings = pubsub.PublishSettings{
		DelayThreshold: batchDelay,
		CountThreshold: batchMessages,
		ByteThreshold:  batchBytes,
		Timeout:        requestTimeout,
		FlowControlSettings: pubsub.FlowControlSettings{
			MaxOutstandingMessages: mostMessages,
			MaxOutstandingBytes:    mostBytes,
			LimitExceededBehavior:  pubsub.FlowControlBlock,
		},
	}
	p.collector.Go(p.collect)
	return p, nil
}

// Publish implements Publisher.
func (p *PubSub) Publish(ctx context.Context, m *Message, report func(*Message, error)) {
	select {
	case p.slots <- struct{}{}:
		p.try(attempt{ctx: ctx, message: m, report: report})
	case <-ctx.Done():
		report(m, fmt.Errorf("wait for a slot to publish: %w", context.Cause(ctx)))
	}
}

// try hands a message to the client.
func (p *PubSub) try(a attempt) {
	a.tries++
	a.result = p.topic.Publish(a.ctx, &pubsub.Message{Data: a.message.Data, Attributes: a.message.Attributes})
	p.attempts <- a
}

// collect waits for the results, in the order of publishing. One goroutine does for all messages: the client confirms a
// batch at a time, so when the first is known, those behind it mostly are too.
func (p *PubSub) collect() {
	for {
		select {
		case a := <-p.attempts:
			_, err := a.result.Get(a.ctx)
			p.settle(a, err)
		case <-p.closed:
			return
		}
	}
}

// settle reports the result of an attempt, or plans the next attempt.
func (p *PubSub) settle(a attempt, err error) {
	switch {
	case err == nil:
		if p.failing.Load() && p.failing.CompareAndSwap(true, false) {
			p.log.Info("publishing again", "topic", p.topic.String(), "retries", p.retries.Load())
		}
	case a.ctx.Err() != nil:
		err = fmt.Errorf("publish to %s: %w", p.topic, context.Cause(a.ctx))
	case refused(err):
		err = fmt.Errorf("publish to %s: %w: %w", p.topic, ErrRefused, err)
	default:
		p.retries.Add(1)
		if p.failing.CompareAndSwap(false, true) {
			p.log.Warn("publish failed, trying again until it succeeds", "topic", p.topic.String(), "error", err)
		}
		time.AfterFunc(backoff(a.tries), func() { p.try(a) })
		return
	}
	a.report(a.message, err)
	<-p.slots
}

// refused says whether an error stays the same however often the message is sent.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument:
		return true
	default:
		return false
	}
}

// backoff is how long to wait after so many tries.
func backoff(tries int) time.Duration {
	return min(longestBackoff, firstBackoff<<min(tries-1, 10))
}

// Retries is how often a message was queued anew, after the client's own retries had failed.
func (p *PubSub) Retries() int64 { return p.retries.Load() }

// Flush implements Publisher.
func (p *PubSub) Flush() {
	for range cap(p.slots) { // holding all slots means that no message is under way
		p.slots <- struct{}{}
	}
	for range cap(p.slots) {
		<-p.slots
	}
}

// Close releases the connection. Messages that are under way are given up without a report, so Flush comes first.
func (p *PubSub) Close() error {
	// The connection goes first: after a Flush nothing needs it, unless a message was given up whose request is still being
	// made; then this ends the request, for which Stop would wait.
	err := p.client.Close()
	p.topic.Stop()
	close(p.closed)
	p.collector.Wait()
	if err != nil {
		return fmt.Errorf("close Pub/Sub client: %w", err)
	}
	return nil
}
