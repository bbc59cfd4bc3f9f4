package pubsub_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	client "cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/robofleet/robofleet/simulator/cloud/issuer"
	"github.com/robofleet/robofleet/simulator/cloud/pubsub"
)

// BenchmarkPublishPushAck measures the whole way of a message: publish by the client library, commit, push with a token
// to a bare HTTP handler, ack. The CPU time is that of the process, so of the client library and the handler too.
func BenchmarkPublishPushAck(b *testing.B) {
	for _, bb := range []struct {
		name string
		disk bool
		rate int // messages/s, 0: as fast as they go
	}{
		{"InMemory", false, 0},
		{"OnDisk", true, 0},
		{"OnDiskAt5000PerSecond", true, 5_000},
	} {
		b.Run(bb.name, func(b *testing.B) {
			dir := ""
			if bb.disk {
				dir = b.TempDir()
			}
			var got atomic.Int64
			done := make(chan struct{})
			publisher := benchBed(b, dir, func() {
				if got.Add(1) == int64(b.N) {
					close(done)
				}
			})
			data := make([]byte, 400)
			before := cpuTime(b)
			start := time.Now()
			b.ResetTimer()
			for i := range b.N {
				if bb.rate > 0 && i%50 == 0 {
					time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(bb.rate))))
				}
				publisher.Publish(context.Background(), &client.Message{Data: data, Attributes: map[string]string{
					"ce-id": "R-000017/boot/123456", "ce-source": "//robofleet.dev/robots/R-000017", "ce-specversion": "1.0",
					"ce-type": "dev.robofleet.telemetry.v1", "ce-time": "2026-11-23T11:00:00Z", "ce-partitionkey": "R-000017",
					"content-type": "application/json",
				}})
			}
			<-done
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/event")
		})
	}
}

// benchBed starts a server with a topic, a push subscription and its handler, and returns a publisher.
func benchBed(b *testing.B, dir string, pushed func()) *client.Publisher {
	iss, err := issuer.New(issuer.Config{URL: "http://issuer.invalid"})
	if err != nil {
		b.Fatal(err)
	}
	srv, err := pubsub.Start(context.Background(), pubsub.Config{Dir: dir, Tokens: iss})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := srv.Close(); err != nil {
			b.Error(err)
		}
	})
	stage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
		pushed()
	}))
	b.Cleanup(stage.Close)
	conn, err := grpc.NewClient(srv.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	c, err := client.NewClient(b.Context(), "p", option.WithGRPCConn(conn))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	topic := "projects/p/topics/bench"
	if _, err := c.TopicAdminClient.CreateTopic(b.Context(), &pubsubpb.Topic{Name: topic}); err != nil {
		b.Fatal(err)
	}
	if _, err := c.SubscriptionAdminClient.CreateSubscription(b.Context(), &pubsubpb.Subscription{
		Name: "projects/p/subscriptions/bench", Topic: topic,
		PushConfig: &pubsubpb.PushConfig{
			PushEndpoint: stage.URL,
			Wrapper:      &pubsubpb.PushConfig_NoWrapper_{NoWrapper: &pubsubpb.PushConfig_NoWrapper{WriteMetadata: true}},
			AuthenticationMethod: &pubsubpb.PushConfig_OidcToken_{OidcToken: &pubsubpb.PushConfig_OidcToken{
				ServiceAccountEmail: "pusher@p.iam.gserviceaccount.com",
			}},
		},
	}); err != nil {
		b.Fatal(err)
	}
	return c.Publisher("bench")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
