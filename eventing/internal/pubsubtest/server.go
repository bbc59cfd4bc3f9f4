// Package pubsubtest is Google's Pub/Sub fake with what the tests of this folder need besides: snapshots, a record of the
// writes, and failures on demand.
package pubsubtest

import (
	"context"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Server is the fake behind a gRPC server of its own.
type Server struct {
	*pstest.GServer
	Addr string

	mu        sync.Mutex
	writes    []string         // "Method resource-id"
	failing   map[string]error // by method
	snapshots map[string]*pubsubpb.Snapshot
}

// CreateSnapshot takes one of nothing: it exists, and can be sought to.
func (s *Server) CreateSnapshot(_ context.Context, r *pubsubpb.CreateSnapshotRequest) (*pubsubpb.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshots[r.Name] = &pubsubpb.Snapshot{Name: r.Name, Labels: r.Labels}
	return s.snapshots[r.Name], nil
}

// ListSnapshots lists them all.
func (s *Server) ListSnapshots(context.Context, *pubsubpb.ListSnapshotsRequest) (*pubsubpb.ListSnapshotsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := &pubsubpb.ListSnapshotsResponse{}
	for _, snapshot := range s.snapshots {
		answer.Snapshots = append(answer.Snapshots, snapshot)
	}
	return answer, nil
}

// DeleteSnapshot deletes one.
func (s *Server) DeleteSnapshot(_ context.Context, r *pubsubpb.DeleteSnapshotRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.snapshots, r.Snapshot)
	return &emptypb.Empty{}, nil
}

// Seek finds the snapshot and does nothing.
func (s *Server) Seek(_ context.Context, r *pubsubpb.SeekRequest) (*pubsubpb.SeekResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshots[r.GetSnapshot()] == nil {
		return nil, status.Errorf(codes.NotFound, "snapshot %q", r.GetSnapshot())
	}
	return &pubsubpb.SeekResponse{}, nil
}

func (s *Server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
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

// Written returns the writes since the last call.
func (s *Server) Written() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	writes := s.writes
	s.writes = nil
	return writes
}

// Fail makes every call of a method fail, and no other. nil: none fails any more.
func (s *Server) Fail(method string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = map[string]error{method: err}
	if err == nil {
		s.failing = nil
	}
}

// Start runs a server until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	fake := pstest.NewServer()
	s := &Server{GServer: &fake.GServer, snapshots: map[string]*pubsubpb.Snapshot{}}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = listener.Addr().String()
	g := grpc.NewServer(grpc.UnaryInterceptor(s.intercept))
	pubsubpb.RegisterPublisherServer(g, s)
	pubsubpb.RegisterSubscriberServer(g, s)
	go func() { _ = g.Serve(listener) }() // ends by Stop
	t.Cleanup(func() {
		g.Stop()
		_ = fake.Close()
	})
	return s
}

// Client connects to the server until the test ends.
func (s *Server) Client(t testing.TB, project string) *pubsub.Client {
	t.Helper()
	client, err := pubsub.NewClient(t.Context(), project, option.WithEndpoint(s.Addr), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// Subscriptions returns the ids of those that exist.
func (s *Server) Subscriptions(t testing.TB, project string) map[string]bool {
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

// Topics returns the ids of those that exist.
func (s *Server) Topics(t testing.TB, project string) map[string]bool {
	t.Helper()
	list, err := s.ListTopics(t.Context(), &pubsubpb.ListTopicsRequest{Project: "projects/" + project})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, topic := range list.Topics {
		names[id(topic.Name)] = true
	}
	return names
}

// PutSnapshot adds a snapshot.
func (s *Server) PutSnapshot(snapshot *pubsubpb.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshots[snapshot.Name] = snapshot
}

// Snapshots returns the ids of those that exist, sorted.
func (s *Server) Snapshots() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for name := range maps.Keys(s.snapshots) {
		ids = append(ids, id(name))
	}
	slices.Sort(ids)
	return ids
}

// ForgetSnapshots deletes all of them.
func (s *Server) ForgetSnapshots() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.snapshots)
}

func id(resource string) string { return resource[strings.LastIndexByte(resource, '/')+1:] }
