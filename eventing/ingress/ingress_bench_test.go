package ingress

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func topicOf(id string) *pubsubpb.Topic { return &pubsubpb.Topic{Name: "projects/p/topics/" + id} }

var body = bytes.Repeat([]byte("x"), 300) // as large as one reading

// BenchmarkDecode is the ingress' own work per event.
func BenchmarkDecode(b *testing.B) {
	header := binary("Ce-Time", "2026-11-01T00:00:00Z", "Ce-Partitionkey", "R-000017")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decode(header, body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIngress is the whole way, over HTTP into a Pub/Sub server that does nothing: 64 senders, one event per request.
// cpu-µs/event is the CPU time of the whole process, senders and server included.
func BenchmarkIngress(b *testing.B) {
	benchmarkHTTP(b, func() http.Handler {
		publishers := NewPublishers(discard(b), Publishing{Delay: 2 * time.Millisecond, Timeout: 10 * time.Second})
		topics := publishers.Topics(map[string]string{"robofleet/fleet": "t"})
		b.Cleanup(func() { publishers.StopExcept(nil) })
		return newHandler(b, topics["robofleet/fleet"], Limits{MaxBodyBytes: 10_000_000, MaxInFlight: 2000, MaxInFlightBytes: 50_000_000})
	})
}

// BenchmarkReference is a handler that reads the body and answers, with the same senders.
func BenchmarkReference(b *testing.B) {
	benchmarkHTTP(b, func() http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusAccepted)
		})
	})
}

func benchmarkHTTP(b *testing.B, handler func() http.Handler) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: handler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // ends by Close
	b.Cleanup(func() { _ = server.Close() })
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}
	url := "http://" + listener.Addr().String() + "/robofleet/fleet"
	header := binary("Ce-Time", "2026-11-01T00:00:00Z", "Ce-Partitionkey", "R-000017")

	b.SetParallelism(32) // times GOMAXPROCS
	start := cpuTime(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			request, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			request.Header = header
			response, err := client.Do(request)
			if err != nil {
				b.Error(err)
				return
			}
			_ = response.Body.Close()
			if response.StatusCode != http.StatusAccepted {
				b.Errorf("answer %s", response.Status)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime(b)-start).Microseconds())/float64(b.N), "cpu-µs/event")
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// discarding is a Pub/Sub server that confirms everything and keeps nothing, so that it costs next to nothing.
type discarding struct {
	pubsubpb.UnimplementedPublisherServer
}

func (discarding) Publish(_ context.Context, r *pubsubpb.PublishRequest) (*pubsubpb.PublishResponse, error) {
	ids := make([]string, len(r.Messages))
	for i := range ids {
		ids[i] = "1"
	}
	return &pubsubpb.PublishResponse{MessageIds: ids}, nil
}

func discard(b *testing.B) *pubsub.Client {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	pubsubpb.RegisterPublisherServer(server, discarding{})
	go func() { _ = server.Serve(listener) }() // ends by Stop
	client, err := pubsub.NewClient(context.Background(), "p", option.WithEndpoint(listener.Addr().String()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = client.Close()
		server.Stop()
	})
	return client
}
