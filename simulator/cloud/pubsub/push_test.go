package pubsub_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	client "cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/robofleet/robofleet/simulator/cloud/issuer"
	"github.com/robofleet/robofleet/simulator/cloud/pubsub"
)

// TestPushCarriesATokenThatVerifies goes the way of a stage: discovery, key set, signature, claims.
func TestPushCarriesATokenThatVerifies(t *testing.T) {
	const email = "pusher@robofleet-local.iam.gserviceaccount.com"
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var iss *issuer.Issuer
	issuing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { iss.ServeHTTP(w, r) }))
	defer issuing.Close()
	iss, err := issuer.New(issuer.Config{URL: issuing.URL})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := pubsub.Start(context.Background(), pubsub.Config{Tokens: iss})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}()
	tokens := make(chan string, 2)
	stage := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		tokens <- strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	}))
	defer stage.Close()
	conn, err := grpc.NewClient(srv.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.NewClient(ctx, "p", option.WithGRPCConn(conn))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	topic := "projects/p/topics/topic"
	if _, err := c.TopicAdminClient.CreateTopic(ctx, &pubsubpb.Topic{Name: topic}); err != nil {
		t.Fatal(err)
	}
	for id, audience := range map[string]string{"default-audience": "", "own-audience": "validate"} {
		if _, err := c.SubscriptionAdminClient.CreateSubscription(ctx, &pubsubpb.Subscription{
			Name: "projects/p/subscriptions/" + id, Topic: topic,
			PushConfig: &pubsubpb.PushConfig{
				PushEndpoint: stage.URL + "/validate",
				AuthenticationMethod: &pubsubpb.PushConfig_OidcToken_{OidcToken: &pubsubpb.PushConfig_OidcToken{
					ServiceAccountEmail: email, Audience: audience,
				}},
			},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Publisher("topic").Publish(ctx, &client.Message{Data: []byte("x")}).Get(ctx); err != nil {
		t.Fatal(err)
	}
	provider, err := oidc.NewProvider(ctx, issuing.URL)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for range 2 {
		select {
		case token := <-tokens:
			verified, err := provider.Verifier(&oidc.Config{SkipClientIDCheck: true}).Verify(ctx, token)
			if err != nil {
				t.Fatal(err)
			}
			got[verified.Audience[0]] = true
			var claims issuer.Claims
			if err := verified.Claims(&claims); err != nil {
				t.Fatal(err)
			}
			if claims.Email != email || !claims.EmailVerified {
				t.Errorf("email %q, verified %t, want %q, true", claims.Email, claims.EmailVerified, email)
			}
		case <-ctx.Done():
			t.Fatal("no push came")
		}
	}
	if diff := cmp.Diff(map[string]bool{stage.URL + "/validate": true, "validate": true}, got); diff != "" {
		t.Errorf("audiences (-want +got):\n%s", diff)
	}
}
