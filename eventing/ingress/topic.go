package ingress

import (
	"context"
	"time"

	"cloud.google.com/go/pubsub/v2"
)

// Publishing is how events are handed to Pub/Sub.
type Publishing struct {
	// Delay is how long an event waits for others to share its publish call. It is short: Brokers between stages carry few
	// and large events, for which waiting is all latency.
	Delay time.Duration `env:"PUBLISH_DELAY, default=2ms"`
	// Timeout is how long the client retries before the sender is told to: below the ack deadlines of the stages, which
	// send while their own sender waits.
	Timeout time.Duration `env:"PUBLISH_TIMEOUT, default=10s"`
}

// Open returns the topic of each Broker, both by name, and a function that publishes what is bundled and ends them.
func Open(client *pubsub.Client, brokers map[string]string, publishing Publishing) (topics map[string]Topic, stop func()) {
	topics = make(map[string]Topic, len(brokers))
	var publishers []*pubsub.Publisher
	for broker, topic := range brokers {
		publisher := client.Publisher(topic)
		publisher.PublishSettings.DelayThreshold = publishing.Delay
		publisher.PublishSettings.Timeout = publishing.Timeout
		// The limits of the handler hold: a limit here would block without telling anybody.
		publisher.PublishSettings.FlowControlSettings.LimitExceededBehavior = pubsub.FlowControlIgnore
		publishers = append(publishers, publisher)
		topics[broker] = pubsubTopic{publisher}
	}
	return topics, func() {
		for _, publisher := range publishers {
			publisher.Stop()
		}
	}
}

type pubsubTopic struct{ publisher *pubsub.Publisher }

func (t pubsubTopic) Publish(ctx context.Context, message *pubsub.Message) Result {
	return t.publisher.Publish(ctx, message)
}
