//go:build unix

package robots

import (
	"context"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// nullPubSub is a Pub/Sub that confirms everything and stores nothing, so that benchmarks measure the client.
type nullPubSub struct {
	pubsubpb.UnimplementedPublisherServer
}

func (nullPubSub) Publish(_ context.Context, req *pubsubpb.PublishRequest) (*pubsubpb.PublishResponse, error) {
	return &pubsubpb.PublishResponse{MessageIds: make([]string, len(req.Messages))}, nil
}

// BenchmarkPublish is a fleet without pacing in front of Google's client, over a real connection to a server in the same
// process: the most that can be published, client and decoding server together.
func BenchmarkPublish(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	pubsubpb.RegisterPublisherServer(server, nullPubSub{})
	go func() { _ = server.Serve(listener) }() // ends with Stop
	defer server.Stop()
	p, err := NewPubSub(b.Context(), "p", "telemetry", slog.New(slog.DiscardHandler),
		option.WithEndpoint(listener.Addr().String()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	}()
	s := startedShard(b)
	report := func(m *Message, err error) {
		if err != nil {
			b.Error(err)
		}
		s.fleet.manifest.confirm(m)
	}
	send := func(m *Message) {
		s.fleet.handOver(m)
		p.Publish(b.Context(), m, report)
	}
	before := cpuTime(b)
	b.ReportAllocs()
	b.ResetTimer()
	for n := int64(0); s.made < int64(b.N); n++ {
		if err := s.tick(n, send); err != nil {
			b.Fatal(err)
		}
	}
	p.Flush()
	b.ReportMetric(float64(s.made)/b.Elapsed().Seconds(), "readings/s")
	b.ReportMetric(float64(cpuTime(b)-before)/float64(s.made), "cpu-ns/reading")
}

// cpuTime is what the process has used of the processors.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
