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

// Publishers are the open topics. They are not for concurrent use; the Topics that they give are.
type Publishers struct {
	client     *pubsub.Client
	publishing Publishing
	open       map[string]*pubsub.Publisher // by the topic's id
}

// NewPublishers returns none yet.
func NewPublishers(client *pubsub.Client, publishing Publishing) *Publishers {
	return &Publishers{client: client, publishing: publishing, open: map[string]*pubsub.Publisher{}}
}

// Topics returns the topic of each Broker; brokers maps "<namespace>/<broker>" to its id.
func (p *Publishers) Topics(brokers map[string]string) map[string]Topic {
	topics := make(map[string]Topic, len(brokers))
	for broker, topic := range brokers {
		if p.open[topic] == nil {
			publisher := p.client.Publisher(topic)
			publisher.PublishSettings.DelayThreshold = p.publishing.Delay
			publisher.PublishSettings.Timeout = p.publishing.Timeout
			// The limits of the handler hold: a limit here would block without telling anybody.
			publisher.PublishSettings.FlowControlSettings.LimitExceededBehavior = pubsub.FlowControlIgnore
			p.open[topic] = publisher
		}
		topics[broker] = pubsubTopic{p.open[topic]}
	}
	return topics
}

// StopExcept publishes what is bundled for the topics that none of brokers has, and ends them. An event that comes to one
// nevertheless fails as if Pub/Sub were down.
func (p *Publishers) StopExcept(brokers map[string]string) {
	wanted := make(map[string]bool, len(brokers))
	for _, topic := range brokers {
		wanted[topic] = true
	}
	for topic, publisher := range p.open {
		if !wanted[topic] {
			publisher.Stop()
			delete(p.open, topic)
		}
	}
}

type pubsubTopic struct{ publisher *pubsub.Publisher }

func (t pubsubTopic) ID() string { return t.publisher.ID() }

func (t pubsubTopic) Publish(ctx context.Context, message *pubsub.Message) Result {
	return t.publisher.Publish(ctx, message)
}
