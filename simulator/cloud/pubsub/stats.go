package pubsub

import (
	"time"
)

// Stats is a view of the server at one moment. Counters start at 0 with the process.
type Stats struct {
	Topics        map[string]TopicStats        // by full name
	Subscriptions map[string]SubscriptionStats // by full name
}

// TopicStats counts what a topic got.
type TopicStats struct {
	Published int64 // messages
}

// SubscriptionStats counts what became of the messages of a subscription.
type SubscriptionStats struct {
	Topic            string // full name, or "_deleted-topic_"
	Push             bool
	Backlog          int           // messages not acked, the outstanding ones among them
	Outstanding      int           // messages with a subscriber
	OldestUnackedAge time.Duration // since publish; 0 without a backlog
	PushWindow       int           // pushes that may be outstanding; 0 for pull
	PushBackoff      time.Duration // the present back-off; 0 when there is none

	Delivered    int64 // deliveries begun
	Acked        int64
	Nacked       int64 // nacks, missed deadlines and failed pushes
	Expired      int64 // missed deadlines among Nacked
	DeadLettered int64 // forwarded to the dead-letter topic
}

// counters are the counters of a subscription, guarded by its mu.
type counters struct {
	delivered, acked, nacked, expired, deadLettered int64
}

// Stats returns the present numbers.
func (s *Server) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	stats := Stats{Topics: map[string]TopicStats{}, Subscriptions: map[string]SubscriptionStats{}}
	for name, t := range s.topics {
		stats.Topics[name] = TopicStats{Published: t.published.Load()}
	}
	now := time.Now()
	for name, sub := range s.subscriptions {
		stats.Subscriptions[name] = sub.snapshotStats(now)
	}
	return stats
}

func (s *subscription) snapshotStats(now time.Time) SubscriptionStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := SubscriptionStats{
		Topic: s.pb.GetTopic(), Push: s.push != nil, Backlog: len(s.backlog), Outstanding: s.outstanding,
		Delivered: s.stats.delivered, Acked: s.stats.acked, Nacked: s.stats.nacked, Expired: s.stats.expired,
		DeadLettered: s.stats.deadLettered,
	}
	if s.order.len() > 0 { // its head is never gone: drop takes those off
		stats.OldestUnackedAge = now.Sub((*s.order.at(0)).m.published)
	}
	if s.push != nil {
		stats.PushWindow, stats.PushBackoff = s.window.limit, s.window.delay
	}
	return stats
}
