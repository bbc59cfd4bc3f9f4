package function

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/uuid"

	"github.com/robofleet/robofleet/shared/event"
)

// TypeMessagePublished is the type of an event made up from a message that is no CloudEvent. It is the type that Google's
// own eventing gives to such messages (https://github.com/googleapis/google-cloudevents).
const TypeMessagePublished = "google.cloud.pubsub.topic.v1.messagePublished"

// delivered is one event and how it came.
type delivered struct {
	event    cloudevents.Event
	delivery *Delivery
}

// message is what a request carries, or the push that is wrapped in it, before it is known to be a CloudEvent.
type message struct {
	delivery    *Delivery
	contentType string
	attributes  func(yield func(name, value string) bool) // with names in lower case
	body        []byte
}

// decode finds the events in a request, of whose body all of size bytes were read unless it is truncated. It knows, in this
// order: structured mode, batched mode, binary mode, a wrapped push with any of these in it, and a bare body. A message of
// Pub/Sub that looks like a CloudEvent and is broken is taken for a bare one, so that a handler can quarantine it; only
// another sender is told that it is wrong.
func decode(r *http.Request, body []byte, truncated bool, size int64) ([]delivered, error) {
	d := unwrappedDelivery(r)
	if truncated {
		d.Truncated, d.Size = true, size
	}
	m := message{d, first(r.Header, "Content-Type"), headerAttributes(r.Header, d.FromPubSub()), body}
	events, err := m.events()
	if errors.Is(err, event.ErrNotCloudEvent) && !d.FromPubSub() {
		if w, ok := unwrap(r, body, truncated); ok {
			m = w
			events, err = m.events()
		}
	}
	switch {
	case err == nil:
		return events, nil
	case errors.Is(err, event.ErrNotCloudEvent), m.delivery.FromPubSub():
		m.delivery.Bare = true
		return []delivered{{m.bare(), m.delivery}}, nil
	case truncated:
		return nil, WithKind(Permanent, fmt.Errorf("only the first %d bytes were read: %w", len(body), err))
	}
	return nil, WithKind(Permanent, err)
}

// events decodes the CloudEvents of m; its error wraps event.ErrNotCloudEvent if nothing says that m is one.
func (m message) events() ([]delivered, error) {
	switch mediaType(m.contentType) {
	case cloudevents.ApplicationCloudEventsJSON:
		var e cloudevents.Event
		if err := json.Unmarshal(m.body, &e); err != nil {
			return nil, fmt.Errorf("decode structured CloudEvent: %w", err)
		}
		if err := e.Validate(); err != nil {
			return nil, fmt.Errorf("structured CloudEvent: %w", err)
		}
		return []delivered{{e, m.delivery}}, nil
	case cloudevents.ApplicationCloudEventsBatchJSON:
		var events []cloudevents.Event
		if err := json.Unmarshal(m.body, &events); err != nil {
			return nil, fmt.Errorf("decode batch of CloudEvents: %w", err)
		}
		all := make([]delivered, len(events))
		for i, e := range events {
			if err := e.Validate(); err != nil {
				return nil, fmt.Errorf("event %d of the batch: %w", i, err)
			}
			own := *m.delivery // handlers see what is said of their event alone
			all[i] = delivered{e, &own}
		}
		return all, nil
	}
	e, err := event.FromAttributes(m.attributes, m.body)
	if err != nil {
		return nil, err
	}
	return []delivered{{e, m.delivery}}, nil
}

// lowered spares the headers of every event an allocation.
var lowered = map[string]string{
	"Ce-Id": "ce-id", "Ce-Partitionkey": "ce-partitionkey", "Ce-Source": "ce-source", "Ce-Specversion": "ce-specversion",
	"Ce-Time": "ce-time", "Ce-Traceparent": "ce-traceparent", "Ce-Type": "ce-type",
}

// headerAttributes walks the attributes of an event in binary mode. Only senders other than Pub/Sub encode the values as
// CloudEvents' HTTP binding asks (section 3.1.3.2, percent encoding); Pub/Sub writes a message's attributes as they are.
func headerAttributes(h http.Header, verbatim bool) func(func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		for key, values := range h {
			var name string
			switch {
			case key == "Content-Type":
				name = event.AttributeContentType
			case len(key) > 3 && key[0] == 'C' && key[1] == 'e' && key[2] == '-':
				if name = lowered[key]; name == "" {
					name = strings.ToLower(key)
				}
			default:
				continue
			}
			for _, v := range values {
				if !verbatim && strings.IndexByte(v, '%') >= 0 {
					if dec, err := url.PathUnescape(v); err == nil {
						v = dec
					}
				}
				if !yield(name, v) {
					return
				}
			}
		}
	}
}

// push is the body of a wrapped push (https://cloud.google.com/pubsub/docs/push#receive_push).
type push struct {
	Message *struct {
		Data        []byte            `json:"data"`
		Attributes  map[string]string `json:"attributes"`
		MessageID   string            `json:"messageId"`
		PublishTime time.Time         `json:"publishTime"`
	} `json:"message"`
	Subscription    string `json:"subscription"`
	DeliveryAttempt int    `json:"deliveryAttempt"`
}

// unwrap takes the message out of a wrapped push; ok is false if body is not one.
func unwrap(r *http.Request, body []byte, truncated bool) (w message, ok bool) {
	if truncated || !bytes.Contains(body, []byte(`"message"`)) || !bytes.Contains(body, []byte(`"subscription"`)) {
		return w, false
	}
	var p push
	if json.Unmarshal(body, &p) != nil || p.Message == nil || p.Message.MessageID == "" || p.Subscription == "" {
		return w, false
	}
	m := p.Message
	d := &Delivery{
		MessageID: m.MessageID, Subscription: p.Subscription, PublishTime: m.PublishTime, Attempt: p.DeliveryAttempt,
		Path: r.URL.Path, attributes: m.Attributes,
	}
	if d.PublishTime.IsZero() {
		d.PublishTime = time.Now()
	}
	w = message{delivery: d, body: m.Data}
	w.attributes = func(yield func(name, value string) bool) {
		for name, value := range m.Attributes {
			if !yield(strings.ToLower(name), value) {
				return
			}
		}
	}
	for name, value := range w.attributes {
		if name == event.AttributeContentType {
			w.contentType = value
		}
	}
	return w, true
}

// bare makes the event of a message that is no CloudEvent, or no sound one.
func (m message) bare() cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetType(TypeMessagePublished)
	e.SetTime(m.delivery.PublishTime)
	if m.delivery.FromPubSub() {
		e.SetID(m.delivery.MessageID)
		e.SetSource("//pubsub.googleapis.com/" + m.delivery.Subscription)
	} else {
		e.SetID(uuid.NewString())
		e.SetSource("//robofleet.dev/http")
	}
	e.SetDataContentType(cmp.Or(m.contentType, "application/octet-stream"))
	e.DataEncoded = m.body
	return e
}

// mediaType returns a content type without its parameters, in lower case. The common one costs nothing.
func mediaType(contentType string) string {
	if contentType == "" || contentType == event.ContentType {
		return contentType
	}
	mt, _, err := mime.ParseMediaType(contentType)
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		return ""
	}
	return mt
}
