package function

import (
	"bytes"
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

// decode finds the events in a request. It knows, in this order: structured mode, batched mode, binary mode, a wrapped push,
// and a bare body. A request that looks like a CloudEvent and is broken is taken for a bare body, so that a handler can
// quarantine it; only a sender that is not Pub/Sub is told that it is wrong.
func decode(r *http.Request, body []byte, truncated bool) ([]delivered, error) {
	d := unwrappedDelivery(r)
	if truncated {
		d.Truncated, d.Size = true, max(r.ContentLength, 0)
	}
	e, err := decodeOne(r, d, body)
	switch {
	case err == nil:
		return []delivered{{e, d}}, nil
	case errors.Is(err, errBatched):
		events, err := decodeBatch(body)
		if err == nil {
			all := make([]delivered, len(events))
			for i := range events {
				own := *d // handlers see what is said of their event alone
				all[i] = delivered{events[i], &own}
			}
			return all, nil
		}
		if !d.FromPubSub() {
			return nil, WithKind(Permanent, err)
		}
	case !errors.Is(err, event.ErrNotCloudEvent) && !d.FromPubSub():
		return nil, WithKind(Permanent, err)
	case !d.FromPubSub():
		if w, ok := unwrap(r, body, truncated); ok {
			return []delivered{w}, nil
		}
	}
	d.Bare = true
	return []delivered{{bareEvent(d, first(r.Header, "Content-Type"), body), d}}, nil
}

var errBatched = errors.New("batched mode")

// decodeOne decodes one CloudEvent in structured or binary mode; its error is errBatched for batched mode and wraps
// event.ErrNotCloudEvent if nothing says that this is a CloudEvent.
func decodeOne(r *http.Request, d *Delivery, body []byte) (cloudevents.Event, error) {
	switch mediaType(first(r.Header, "Content-Type")) {
	case cloudevents.ApplicationCloudEventsJSON:
		var e cloudevents.Event
		if err := json.Unmarshal(body, &e); err != nil {
			return e, fmt.Errorf("decode structured CloudEvent: %w", err)
		}
		return e, e.Validate()
	case cloudevents.ApplicationCloudEventsBatchJSON:
		return cloudevents.Event{}, errBatched
	}
	return event.FromAttributes(headerAttributes(r.Header, d.FromPubSub()), body)
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
				name = strings.ToLower(key)
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

func decodeBatch(body []byte) ([]cloudevents.Event, error) {
	var events []cloudevents.Event
	if err := json.Unmarshal(body, &events); err != nil {
		return nil, fmt.Errorf("decode batch of CloudEvents: %w", err)
	}
	for i := range events {
		if err := events[i].Validate(); err != nil {
			return nil, fmt.Errorf("event %d of the batch: %w", i, err)
		}
	}
	return events, nil
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
func unwrap(r *http.Request, body []byte, truncated bool) (w delivered, ok bool) {
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
	contentType := ""
	lower := func(yield func(name, value string) bool) {
		for name, value := range m.Attributes {
			if !yield(strings.ToLower(name), value) {
				return
			}
		}
	}
	lower(func(name, value string) bool {
		if name == event.AttributeContentType {
			contentType = value
		}
		return true
	})
	var e cloudevents.Event
	var err error
	if mediaType(contentType) == cloudevents.ApplicationCloudEventsJSON {
		if err = json.Unmarshal(m.Data, &e); err == nil {
			err = e.Validate()
		}
	} else {
		e, err = event.FromAttributes(lower, m.Data)
	}
	if err != nil {
		d.Bare = true
		e = bareEvent(d, contentType, m.Data)
	}
	return delivered{e, d}, true
}

// bareEvent makes the event of a message that is no CloudEvent, or no sound one.
func bareEvent(d *Delivery, contentType string, body []byte) cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetType(TypeMessagePublished)
	e.SetTime(d.PublishTime)
	if d.FromPubSub() {
		e.SetID(d.MessageID)
		e.SetSource("//pubsub.googleapis.com/" + d.Subscription)
	} else {
		e.SetID(uuid.NewString())
		e.SetSource("//robofleet.dev/http")
	}
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	e.SetDataContentType(contentType)
	e.DataEncoded = body
	return e
}

// mediaType returns a content type without its parameters, in lower case. The common one costs nothing.
func mediaType(contentType string) string {
	if contentType == "" || contentType == event.ContentType {
		return contentType
	}
	mt, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return ""
	}
	return mt
}
