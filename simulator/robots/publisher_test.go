package robots

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// faults on the way to Pub/Sub: each publish request asks the function; nil lets it through.
type publishFault func(*pubsubpb.PublishRequest) error

// React implements pstest.Reactor.
func (f publishFault) React(req any) (bool, any, error) {
	err := f(req.(*pubsubpb.PublishRequest))
	return err != nil, &pubsubpb.PublishResponse{}, err
}

// newTestPubSub connects to a fake Pub/Sub that has the topic "telemetry".
func newTestPubSub(t *testing.T, topic string, fault publishFault) (*PubSub, *pstest.Server) {
	t.Helper()
	var reactors []pstest.ServerReactorOption
	if fault != nil {
		reactors = append(reactors, pstest.ServerReactorOption{FuncName: "Publish", Reactor: fault})
	}
	server := pstest.NewServer(reactors...)
	t.Cleanup(func() { _ = server.Close() }) // a fake: nothing is lost
	if _, err := server.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: "projects/p/topics/telemetry"}); err != nil {
		t.Fatal(err)
	}
	p, err := NewPubSub(t.Context(), "p", topic, slog.New(slog.DiscardHandler),
		option.WithEndpoint(server.Addr), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p, server
}

// publishAll publishes n messages and returns the error reported for each.
func publishAll(ctx context.Context, p *PubSub, n int) []error {
	var mu sync.Mutex
	errs := make([]error, n)
	for i := range n {
		p.Publish(ctx, &Message{Data: []byte(strconv.Itoa(i))}, func(_ *Message, err error) {
			mu.Lock()
			defer mu.Unlock()
			errs[i] = err
		})
	}
	p.Flush()
	return errs
}

func TestEveryMessageIsConfirmedOnce(t *testing.T) {
	p, server := newTestPubSub(t, "telemetry", nil)
	var reports atomic.Int64
	const n = 12_345 // more than may be under way at once
	for i := range n {
		p.Publish(t.Context(), &Message{Data: []byte(strconv.Itoa(i)), Attributes: map[string]string{"k": "v"}}, func(_ *Message, err error) {
			if err != nil {
				t.Errorf("message %d: %v", i, err)
			}
			reports.Add(1)
		})
	}
	p.Flush()
	if got := reports.Load(); got != n {
		t.Errorf("%d reports, want %d", got, n)
	}
	stored := map[string]bool{}
	for _, m := range server.Messages() {
		stored[string(m.Data)] = true
	}
	if len(stored) != n {
		t.Errorf("%d messages stored, want %d", len(stored), n)
	}
}

func TestFailedPublishIsTriedUntilItSucceeds(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.Canceled, codes.FailedPrecondition} {
		t.Run(code.String(), func(t *testing.T) {
			var calls atomic.Int64
			p, server := newTestPubSub(t, "telemetry", func(*pubsubpb.PublishRequest) error {
				if calls.Add(1)%3 != 0 {
					return status.Error(code, "injected")
				}
				return nil
			})
			for i, err := range publishAll(t.Context(), p, 250) {
				if err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
			}
			if got := len(server.Messages()); got != 250 {
				t.Errorf("%d messages stored, want 250", got)
			}
			if retried := p.Retries() > 0; retried != (code != codes.Unavailable) {
				t.Errorf("%d retries beyond the client's own", p.Retries())
			}
		})
	}
}

func TestMissingTopicIsRefusedForGood(t *testing.T) {
	p, _ := newTestPubSub(t, "other", nil)
	for i, err := range publishAll(t.Context(), p, 10) {
		if !errors.Is(err, ErrRefused) {
			t.Fatalf("message %d: %v, want %v", i, err, ErrRefused)
		}
	}
}

func TestUnconfirmedIsReportedWhenTheContextEnds(t *testing.T) {
	p, _ := newTestPubSub(t, "telemetry", func(*pubsubpb.PublishRequest) error {
		return status.Error(codes.Unavailable, "injected")
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.Publish(ctx, &Message{Data: []byte("x")}, func(_ *Message, err error) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("reported %v, want %v", err, context.Canceled)
		}
	})
	cancel()
	p.Flush()
	p.Publish(ctx, &Message{Data: []byte("y")}, func(_ *Message, err error) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: reported %v, want %v", err, context.Canceled)
		}
	})
	p.Flush()
}

func TestFleetLosesNothingOnTheWayToPubSub(t *testing.T) {
	var calls atomic.Int64
	p, server := newTestPubSub(t, "telemetry", func(*pubsubpb.PublishRequest) error {
		if calls.Add(1)%4 == 0 {
			return status.Error(codes.Unavailable, "injected")
		}
		return nil
	})
	cfg := testConfig(200)
	cfg.Rate, cfg.Duration, cfg.BadRatio = 10, time.Second, 0.02
	cfg.OfflineEvery, cfg.RebootEvery = time.Second, time.Second
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Run(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	stored := map[string]int{}
	for _, m := range server.Messages() {
		stored[m.Attributes["ce-id"]]++
	}
	known := 0
	for boot := range f.Manifest().Boots() {
		for seq := range boot.Good() {
			id := readingRef{&bootRecord{robotID: boot.RobotID, bootID: boot.BootID}, seq}.id()
			if stored[id] == 0 {
				t.Errorf("%s is lost", id)
			}
			known++
		}
	}
	for bad := range f.Manifest().Bad() {
		if stored[bad.ID] == 0 {
			t.Errorf("%s is lost", bad.ID)
		}
		known++
	}
	if len(stored) != known {
		t.Errorf("%d ids stored, %d in the manifest", len(stored), known)
	}
	if left := slices.Collect(f.Manifest().Unconfirmed()); len(left) > 0 {
		t.Errorf("unconfirmed: %v", left)
	}
}
