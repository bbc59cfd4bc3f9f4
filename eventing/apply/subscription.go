package apply

import (
	"maps"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/robofleet/robofleet/eventing/plan"
)

// proto is the planned subscription in the words of the API.
func (a *applier) proto(want plan.Subscription) *pubsubpb.Subscription {
	s := &pubsubpb.Subscription{
		Name:                     a.path("subscriptions", want.Name),
		Topic:                    a.path("topics", want.Topic),
		Filter:                   want.Filter,
		AckDeadlineSeconds:       int32(want.AckDeadline.Seconds()),
		MessageRetentionDuration: durationpb.New(want.Retention.Duration),
		// Present and empty is "never"; absent would be Pub/Sub's default, which deletes it after 31 idle days.
		ExpirationPolicy: &pubsubpb.ExpirationPolicy{},
		Labels:           maps.Clone(want.Labels),
	}
	if want.Push != nil {
		s.PushConfig = &pubsubpb.PushConfig{
			PushEndpoint: want.Push.Endpoint,
			Wrapper:      &pubsubpb.PushConfig_NoWrapper_{NoWrapper: &pubsubpb.PushConfig_NoWrapper{WriteMetadata: true}},
		}
		if want.Push.ServiceAccount != "" {
			s.PushConfig.AuthenticationMethod = &pubsubpb.PushConfig_OidcToken_{OidcToken: &pubsubpb.PushConfig_OidcToken{
				ServiceAccountEmail: want.Push.ServiceAccount, Audience: want.Push.Audience,
			}}
		}
	}
	if want.Backoff != nil {
		s.RetryPolicy = &pubsubpb.RetryPolicy{
			MinimumBackoff: durationpb.New(want.Backoff.Min.Duration), MaximumBackoff: durationpb.New(want.Backoff.Max.Duration),
		}
	}
	if want.DeadLetter != nil {
		s.DeadLetterPolicy = &pubsubpb.DeadLetterPolicy{
			DeadLetterTopic: a.path("topics", want.DeadLetter.Topic), MaxDeliveryAttempts: int32(want.DeadLetter.Attempts),
		}
	}
	return s
}

// drift compares what exists with what shall be and returns the fields to update, with their new values. Topic and
// filter are not among them: they are in the name.
func drift(existing, want *pubsubpb.Subscription) (*pubsubpb.Subscription, []string) {
	var fields []string
	if existing.AckDeadlineSeconds != want.AckDeadlineSeconds {
		fields = append(fields, "ack_deadline_seconds")
	}
	if !proto.Equal(existing.DeadLetterPolicy, want.DeadLetterPolicy) {
		fields = append(fields, "dead_letter_policy")
	}
	if existing.ExpirationPolicy == nil || existing.ExpirationPolicy.Ttl != nil {
		fields = append(fields, "expiration_policy")
	}
	labels, differ := overlay(existing.Labels, want.Labels)
	if want.Labels = labels; differ {
		fields = append(fields, "labels")
	}
	if !proto.Equal(existing.MessageRetentionDuration, want.MessageRetentionDuration) {
		fields = append(fields, "message_retention_duration")
	}
	if !samePush(existing.PushConfig, want.PushConfig) {
		fields = append(fields, "push_config")
	}
	if !proto.Equal(existing.RetryPolicy, want.RetryPolicy) {
		fields = append(fields, "retry_policy")
	}
	return want, fields
}

// samePush compares what the plan says about a push. The server adds things of its own to a push_config, such as the
// attribute x-goog-version.
func samePush(existing, want *pubsubpb.PushConfig) bool {
	if existing.GetPushEndpoint() == "" && want.GetPushEndpoint() == "" {
		return true // pulled; an absent and an empty push_config are the same
	}
	return existing.GetPushEndpoint() == want.GetPushEndpoint() &&
		proto.Equal(existing.GetOidcToken(), want.GetOidcToken()) &&
		proto.Equal(existing.GetNoWrapper(), want.GetNoWrapper())
}

// overlay sets our labels among other people's.
func overlay(existing, ours map[string]string) (labels map[string]string, differ bool) {
	if holds(existing, ours) {
		return existing, false
	}
	labels = maps.Clone(existing)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, ours)
	return labels, true
}
