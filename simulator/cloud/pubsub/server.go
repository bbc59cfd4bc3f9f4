package pubsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// flushDelay is how long an ack may wait for the next transaction. What is lost with the process is delivered again.
	flushDelay = 100 * time.Millisecond
	// housekeepingPeriod is how often messages and snapshots past their retention are looked for.
	housekeepingPeriod = time.Minute
	// maxBatchMessages bounds one transaction.
	maxBatchMessages = 4_000
	// maxRequestBytes is a little more than the documented limit of a request, so that a limit of our own reports it.
	maxRequestBytes = maxPublishBytes + 4<<20
)

// TokenSource mints the OpenID Connect tokens of authenticated pushes; *issuer.Issuer is one. The server caches what it
// returns and asks again well before expires.
type TokenSource interface {
	IDToken(email, audience string) (token string, expires time.Time, err error)
}

// Config configures a Server. Its zero value is an in-memory server on a free port of the loopback interface.
type Config struct {
	// Addr is the TCP address of the gRPC service. Default "127.0.0.1:0".
	Addr string
	// Dir is the folder of the data file. Empty: nothing survives the process.
	Dir string
	// Fsync makes a publish survive the crash of the machine as well as of the process, at the price of the disk's
	// latency per transaction.
	Fsync bool
	// Tokens mints the tokens of push subscriptions with an oidc_token; without it such subscriptions are refused.
	Tokens TokenSource
	// Transport sends the pushes. Default: an own HTTP/1.1 client with a pool of kept-alive connections.
	Transport http.RoundTripper
	// MaxPushWindow bounds the outstanding pushes of a subscription, however healthy its endpoint. Production has no such
	// bound, but here each push is a socket at both ends of one machine. Default 3000, which is where production keeps
	// endpoints that are slow.
	MaxPushWindow int
	// Logger gets failures that no caller sees. Default: slog.Default().
	Logger *slog.Logger
}

// Server is a running Pub/Sub service.
type Server struct {
	pubsubpb.UnimplementedPublisherServer
	pubsubpb.UnimplementedSubscriberServer

	log    *slog.Logger
	store  *store
	faults *Faults
	pusher *pusher
	ops    chan *operation
	// maxWindow is Config.MaxPushWindow.
	maxWindow int

	// ctx ends when the server closes; running counts the goroutines that must end before the store closes.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	grpc     *grpc.Server
	listener net.Listener
	close    sync.Once
	closeErr error

	// mu guards the maps. The sequencer alone writes them, so it reads them without mu.
	mu            sync.RWMutex
	topics        map[string]*topic
	subscriptions map[string]*subscription
	snapshots     map[string]*snapshot

	lastSeq, lastID uint64 // owned by the sequencer
}

// Start opens the data of an earlier run, if any, and serves. It fails with one clear error when the address is taken or
// the data file is corrupt, unreadable or held by another process. The end of ctx closes the server as Close does.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s, err := newServer(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start Pub/Sub: %w", err)
	}
	addr := cfg.Addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	s.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start Pub/Sub: %w", err), s.Close())
	}
	s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxSendMsgSize(maxRequestBytes),
		grpc.WaitForHandlers(true),
		// Clients in other languages ping more often than the default of gRPC allows, which would cost them the connection.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}))
	pubsubpb.RegisterPublisherServer(s.grpc, s)
	pubsubpb.RegisterSubscriberServer(s.grpc, s)
	go func() {
		if err := s.grpc.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			s.log.Error("serve Pub/Sub", "error", err)
		}
	}()
	context.AfterFunc(ctx, func() {
		if err := s.Close(); err != nil {
			s.log.Error("close Pub/Sub", "error", err)
		}
	})
	return s, nil
}

// newServer makes a server that works but does not listen.
func newServer(ctx context.Context, cfg Config) (*Server, error) {
	st, err := openStore(cfg.Dir, cfg.Fsync)
	if err != nil {
		return nil, err
	}
	s := &Server{
		log: cfg.Logger, store: st, ops: make(chan *operation, 256),
		topics: map[string]*topic{}, subscriptions: map[string]*subscription{}, snapshots: map[string]*snapshot{},
		// The first id is a time in microseconds: 16 digits as in production, and new even if the data was deleted.
		lastSeq: uint64(time.Now().UnixMicro()),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.maxWindow = cfg.MaxPushWindow
	if s.maxWindow <= 0 {
		s.maxWindow = steadyWindow
	}
	s.faults = &Faults{server: s}
	s.pusher = newPusher(cfg)
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.load(); err != nil {
		s.cancel()
		return nil, errors.Join(err, st.close())
	}
	s.background(func(context.Context) { s.sequence() })
	for _, sub := range s.subscriptions {
		sub.mu.Lock()
		sub.dispatch()
		sub.mu.Unlock()
	}
	return s, nil
}

// Addr returns the address of the gRPC service, host:port, as PUBSUB_EMULATOR_HOST takes it.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Faults returns the fault injection of the server.
func (s *Server) Faults() *Faults { return s.faults }

// Shutdown stops new deliveries, waits until the outstanding pushes are answered or ctx ends, and closes.
func (s *Server) Shutdown(ctx context.Context) error {
	for _, sub := range s.allSubscriptions() {
		sub.pause()
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for s.pusher.active.Load() > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return s.Close()
}

// Close stops the server at once: outstanding pushes are cut off and will be made again, committed messages and acks are
// on file. It may be called more than once.
func (s *Server) Close() error {
	s.close.Do(func() {
		for _, sub := range s.allSubscriptions() {
			sub.pause()
		}
		s.cancel()
		if s.grpc != nil {
			s.grpc.Stop()
		}
		s.pusher.close()
		s.running.Wait()
		s.closeErr = s.store.close()
	})
	return s.closeErr
}

// background runs f in a goroutine that Close waits for. f must end when its context does.
func (s *Server) background(f func(ctx context.Context)) {
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		f(s.ctx)
	}()
}

// operation is work for the sequencer: messages to publish, or a change of the resources.
type operation struct {
	topic    string
	messages []*pubsubpb.PubsubMessage
	admin    func(*change) (apply func(), err error)

	ids  []string
	err  error
	done chan struct{}
}

// do has the sequencer carry out an operation and waits for it.
func (s *Server) do(ctx context.Context, op *operation) error {
	op.done = make(chan struct{})
	select {
	case s.ops <- op:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-s.ctx.Done():
		return errClosed
	}
	// Once handed over the operation will be carried out: the caller must hear its outcome.
	select {
	case <-op.done:
		return op.err
	case <-s.ctx.Done():
		return errClosed
	}
}

var errClosed = status.Error(codes.Unavailable, "the server is shutting down")

// administer runs f in the sequencer. f checks, and fills in what to write; apply makes it visible once it is written.
func (s *Server) administer(ctx context.Context, f func(c *change) (apply func(), err error)) error {
	return s.do(ctx, &operation{admin: f})
}

// sequence is the one writer: it gives messages their sequence numbers, commits what has gathered while the last
// transaction was written, and hands it on. So a subscription sees its messages in order, and creating a subscription
// falls exactly between two messages.
func (s *Server) sequence() {
	flush := time.NewTimer(0)
	flush.Stop()
	housekeeping := time.NewTicker(housekeepingPeriod)
	defer housekeeping.Stop()
	var batch []*operation
	for {
		select {
		case <-s.ctx.Done():
			if err := s.store.write(&change{}); err != nil {
				s.log.Error("write the last acks", "error", err)
			}
			return
		case <-s.store.wake:
			flush.Reset(flushDelay)
			continue
		case <-flush.C:
			if err := s.store.write(&change{}); err != nil {
				s.log.Error("write acks", "error", err)
				flush.Reset(time.Second)
			}
			continue
		case now := <-housekeeping.C:
			s.housekeep(now)
			continue
		case op := <-s.ops:
			batch = append(batch[:0], op)
		}
		for n := len(batch[0].messages); n < maxBatchMessages && len(s.ops) > 0; n += len(batch[len(batch)-1].messages) {
			batch = append(batch, <-s.ops)
		}
		for rest := batch; len(rest) > 0; {
			n := 0
			for n < len(rest) && rest[n].admin == nil {
				n++
			}
			if n > 0 {
				s.commit(rest[:n])
			} else {
				n = 1
				rest[0].err = s.change(rest[0])
			}
			for _, op := range rest[:n] {
				close(op.done)
			}
			rest = rest[n:]
		}
		clear(batch)
	}
}

func (s *Server) change(op *operation) error {
	var c change
	apply, err := op.admin(&c)
	if err != nil {
		return err
	}
	if err := s.store.write(&c); err != nil {
		s.log.Error("write change", "error", err)
		return status.Error(codes.Unavailable, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	apply()
	return nil
}

// commit publishes the messages of several operations in one transaction.
func (s *Server) commit(ops []*operation) {
	now := time.Now()
	published := timestamppb.New(now)
	var c change
	var kept []*message
	touched := map[*subscription]bool{}
	for _, op := range ops {
		t := s.topics[op.topic]
		if t == nil {
			op.err = notFound(op.topic)
			continue
		}
		op.ids = make([]string, len(op.messages))
		retains := t.retains()
		for i, pb := range op.messages {
			s.lastSeq++
			op.ids[i] = strconv.FormatUint(s.lastSeq, 10)
			pb.MessageId, pb.PublishTime = op.ids[i], published
			m := newMessage(s.lastSeq, t.id, pb)
			for _, sub := range t.subscriptions {
				if sub.filter == nil || sub.filter(pb.GetAttributes()) {
					m.holders.Add(1)
					sub.incoming = append(sub.incoming, m)
					touched[sub] = true
				}
			}
			if retains {
				m.holders.Add(1)
				t.retained.pushBack(m)
			}
			if m.holders.Load() > 0 { // otherwise nobody will ever want it
				c.messages = append(c.messages, m)
				kept = append(kept, m)
			}
		}
		t.published.Add(int64(len(op.messages)))
	}
	err := s.store.write(&c)
	if err != nil {
		s.log.Error("write messages", "error", err)
		s.uncommit(ops, kept, err)
	}
	for _, m := range kept {
		if err == nil {
			s.store.keep(m)
		}
	}
	for sub := range touched {
		if err == nil {
			sub.enqueue(sub.incoming, now)
		}
		clear(sub.incoming)
		sub.incoming = sub.incoming[:0]
	}
}

// uncommit takes back what commit prepared for messages that could not be written.
func (s *Server) uncommit(ops []*operation, messages []*message, err error) {
	failed := make(map[uint64]bool, len(messages))
	for _, m := range messages {
		failed[m.seq] = true
	}
	for _, t := range s.topics {
		for t.retained.len() > 0 && failed[(*t.retained.at(t.retained.len() - 1)).seq] {
			t.retained.popBack()
		}
	}
	for _, op := range ops {
		if op.err == nil {
			op.ids, op.err = nil, status.Error(codes.Unavailable, err.Error())
		}
	}
}

// housekeep drops what is past its retention.
func (s *Server) housekeep(now time.Time) {
	c := &change{}
	s.mu.Lock()
	for name, snap := range s.snapshots {
		if now.After(snap.pb.GetExpireTime().AsTime()) {
			c.deletes = append(c.deletes, record{bucket: bucketSnapshots, key: []byte(name)})
			s.removeSnapshot(snap)
		}
	}
	s.mu.Unlock()
	for _, sub := range s.subscriptions {
		sub.expire(now)
	}
	for _, t := range s.topics {
		s.trim(t, now)
	}
	if err := s.store.write(c); err != nil {
		s.log.Error("write housekeeping", "error", err)
	}
}

// load brings back the state of the earlier run.
func (s *Server) load() error {
	topicsByID := map[uint64]*topic{}
	subscriptionsByTopic := map[uint64][]*subscription{}
	held := map[uint64]*message{}
	var orphans []*message
	lastSeq, err := s.store.read(
		func(name string, value []byte) error {
			t, err := loadTopic(value)
			if err != nil {
				return fmt.Errorf("topic %s: %w", name, err)
			}
			s.topics[name], topicsByID[t.id] = t, t
			s.lastID = max(s.lastID, t.id)
			return nil
		},
		func(name string, value []byte) error {
			sub, err := s.loadSubscription(value)
			if err != nil {
				return fmt.Errorf("subscription %s: %w", name, err)
			}
			s.subscriptions[name] = sub
			s.lastID = max(s.lastID, sub.id, sub.topicID)
			subscriptionsByTopic[sub.topicID] = append(subscriptionsByTopic[sub.topicID], sub)
			if t := topicsByID[sub.topicID]; t != nil && !sub.pb.GetDetached() {
				t.subscriptions = append(t.subscriptions, sub)
			}
			return nil
		},
		func(name string, value []byte) error {
			snap, err := loadSnapshot(value, held)
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", name, err)
			}
			s.snapshots[name] = snap
			if t := topicsByID[snap.topicID]; t != nil {
				t.snapshots++
			}
			return nil
		},
		func(m *message, ackedBy func(uint64) bool) error {
			for _, sub := range subscriptionsByTopic[m.topic] {
				if !sub.pb.GetDetached() && m.seq > sub.start && sub.matches(m) && !ackedBy(sub.id) {
					m.holders.Add(1)
					sub.settle(sub.add(m))
				}
			}
			if t := topicsByID[m.topic]; t != nil {
				m.holders.Add(1)
				t.retained.pushBack(m) // trim drops what nobody retains
			}
			s.store.keep(m)
			held[m.seq] = m
			return nil
		})
	if err != nil {
		return err
	}
	s.lastSeq = max(s.lastSeq, lastSeq)
	for _, m := range held {
		if m.holders.Load() == 0 { // the process ended between the last ack and its transaction
			m.holders.Add(1)
			orphans = append(orphans, m)
		}
	}
	for _, m := range orphans {
		s.store.release(m, 0)
	}
	for _, t := range s.topics {
		s.trim(t, time.Now())
	}
	return nil
}

func (s *Server) allSubscriptions() []*subscription {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.subscriptions))
}

func (s *Server) nextID() uint64 {
	s.lastID++
	return s.lastID
}

func notFound(name string) error {
	return status.Errorf(codes.NotFound, "Resource not found (resource=%s).", lastPart(name))
}

func alreadyExists(name string) error {
	return status.Errorf(codes.AlreadyExists, "Resource already exists in the project (resource=%s).", lastPart(name))
}
