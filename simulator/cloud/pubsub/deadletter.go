package pubsub

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
)

// The attributes that a dead-lettered message carries beside its own
// (https://cloud.google.com/pubsub/docs/handling-failures#dead_letter_topic).
const (
	attributeDeliveryCount       = "CloudPubSubDeadLetterSourceDeliveryCount"
	attributeSourceSubscription  = "CloudPubSubDeadLetterSourceSubscription"
	attributeSourceProject       = "CloudPubSubDeadLetterSourceSubscriptionProject"
	attributeSourcePublishTime   = "CloudPubSubDeadLetterSourceTopicPublishTime"
	deadLetterRetryDelay         = 10 * time.Second
	deadLetterTimeFormat         = "2006-01-02T15:04:05.000-07:00"
	deadLetterAttributesReserved = 4
)

// forward publishes a message to the dead-letter topic and then acks it. While that topic is missing the message stays
// where it is and is delivered again.
func (s *subscription) forward(ctx context.Context, e *entry, topic string) {
	pb, err := s.store().payload(e.m)
	if err == nil {
		err = s.server.do(ctx, &operation{topic: topic, messages: []*pubsubpb.PubsubMessage{s.deadLetter(pb, e.failures)}})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.state != stateForwarding {
		return // a seek came between
	}
	if err != nil {
		s.server.log.Warn("forward to dead-letter topic", "subscription", s.name, "topic", topic, "message", e.m.seq, "error", err)
		s.retry(e, time.Now(), max(s.retryDelay(e.failures), deadLetterRetryDelay))
		s.dispatch()
		return
	}
	s.stats.deadLettered++
	s.drop(e)
	s.settle(e)
	s.dispatch()
}

func (s *subscription) deadLetter(pb *pubsubpb.PubsubMessage, deliveries int32) *pubsubpb.PubsubMessage {
	attributes := make(map[string]string, len(pb.GetAttributes())+deadLetterAttributesReserved)
	maps.Copy(attributes, pb.GetAttributes())
	attributes[attributeDeliveryCount] = strconv.Itoa(int(deliveries))
	attributes[attributeSourceSubscription] = lastPart(s.name)
	attributes[attributeSourceProject] = strings.Split(s.name, "/")[1] // projects/{project}/subscriptions/{id}
	attributes[attributeSourcePublishTime] = pb.GetPublishTime().AsTime().Format(deadLetterTimeFormat)
	return &pubsubpb.PubsubMessage{Data: pb.GetData(), Attributes: attributes, OrderingKey: pb.GetOrderingKey()}
}
