package function

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Delivery is how an event reached the handler: what Pub/Sub says of the message that carried it, if one did.
type Delivery struct {
	// MessageID is Pub/Sub's id of the message, or "" if the sender is not a Pub/Sub push subscription.
	MessageID string
	// Subscription is the full name of the push subscription.
	Subscription string
	// PublishTime is when Pub/Sub took the message; without Pub/Sub it is when the request arrived.
	PublishTime time.Time
	// Attempt counts deliveries of the message from 1, where the subscription has a dead-letter policy; else 0.
	Attempt int
	// Path is the path of the request URL. Triggers that share a stage tell it by their path what they send.
	Path string
	// Bare says that the message was no CloudEvent and that its event was made up from the message.
	Bare bool
	// Truncated says that the event's data is only the beginning of a body over the limit, whose size was Size bytes
	// (0: unknown).
	Truncated bool
	Size      int64

	header     http.Header       // of a push without wrapping, attributes among them
	attributes map[string]string // of a wrapped push
}

// FromPubSub says whether a push subscription delivered the event.
func (d *Delivery) FromPubSub() bool { return d.MessageID != "" }

// Attributes returns the attributes of the message as it arrived, with names in lower case where they came as headers.
// Names that are headers of the transport's are left out: a push without wrapping mixes the two, and a message should read
// the same however it was pushed.
func (d *Delivery) Attributes() map[string]string {
	attrs := make(map[string]string)
	for name, value := range d.attributes {
		if !isTransportHeader(strings.ToLower(name)) {
			attrs[name] = value
		}
	}
	for key, values := range d.header {
		name := strings.ToLower(key)
		if !isTransportHeader(name) {
			attrs[name] = strings.Join(values, ", ")
		}
	}
	return attrs
}

// isTransportHeader says whether a header belongs to the request and not to the event: those that HTTP clients, proxies,
// Google's front ends, Knative's queue-proxy and Pub/Sub itself set. Authorization is among them so that no token of the
// push identity is ever stored.
func isTransportHeader(name string) bool {
	switch name {
	case "accept", "accept-encoding", "authorization", "connection", "content-length", "cookie", "forwarded", "from", "host",
		"te", "trailer", "transfer-encoding", "upgrade", "user-agent", "via", "x-cloud-trace-context", "x-request-id":
		return true
	}
	for _, prefix := range []string{"x-goog-", "x-forwarded-", "x-envoy-", "x-b3-", "k-", "knative-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

type deliveryKey struct{}

// DeliveryFrom returns the delivery of the event that the handler was called with. Outside of a handler it returns an
// empty Delivery with the current time, so that handlers can be called by tests directly.
func DeliveryFrom(ctx context.Context) *Delivery {
	if d, ok := ctx.Value(deliveryKey{}).(*Delivery); ok {
		return d
	}
	return &Delivery{PublishTime: time.Now()}
}

// WithDelivery returns a context for calling a handler as if d had delivered the event.
func WithDelivery(ctx context.Context, d *Delivery) context.Context {
	return context.WithValue(ctx, deliveryKey{}, d)
}

// The headers of a push without wrapping, in the form that net/http gives them
// (https://cloud.google.com/pubsub/docs/payload-unwrapping).
const (
	headerMessageID    = "X-Goog-Pubsub-Message-Id"
	headerPublishTime  = "X-Goog-Pubsub-Publish-Time"
	headerSubscription = "X-Goog-Pubsub-Subscription-Name"
	headerAttempt      = "X-Goog-Pubsub-Delivery-Attempt"
)

// unwrappedDelivery reads the metadata that Pub/Sub writes into the headers of a push without wrapping.
func unwrappedDelivery(r *http.Request) *Delivery {
	d := &Delivery{Path: r.URL.Path, header: r.Header}
	d.MessageID = first(r.Header, headerMessageID)
	if d.MessageID != "" {
		d.Subscription = first(r.Header, headerSubscription)
		if len(r.Header[headerPublishTime]) == 1 { // twice: a publisher has an attribute of that name, and either may be its
			d.PublishTime, _ = time.Parse(time.RFC3339Nano, first(r.Header, headerPublishTime))
		}
		if n := first(r.Header, headerAttempt); n != "" { // of an empty string Atoi would make an error, for every request
			d.Attempt, _ = strconv.Atoi(n)
		}
	}
	if d.PublishTime.IsZero() {
		d.PublishTime = time.Now()
	}
	return d
}

// first is Header.Get for a key that is in canonical form already.
func first(h http.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}
