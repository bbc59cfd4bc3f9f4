package ingress

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"cloud.google.com/go/pubsub/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/robofleet/robofleet/shared/event"
)

// Pub/Sub's limits of a message (https://cloud.google.com/pubsub/quotas#resource_limits).
const (
	maxAttributes     = 100
	maxAttributeKey   = 256
	maxAttributeValue = 1024
)

// The content types that say that the body holds the events' attributes too (CloudEvents HTTP binding 1.0.2, 3.2 and 3.3).
const (
	structuredMode = "application/cloudevents+json"
	batchMode      = "application/cloudevents-batch+json"
)

// decode returns the messages of a request: one in binary and structured mode, any number in batch mode.
func decode(header http.Header, body []byte) ([]*pubsub.Message, error) {
	contentType := header.Get("Content-Type")
	if !strings.HasPrefix(strings.ToLower(contentType), "application/cloudevents") {
		message, err := binaryMode(header, body)
		if err != nil {
			return nil, err
		}
		return []*pubsub.Message{message}, nil
	}
	mode, parameters, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, fmt.Errorf("content-type %.100q: %w", contentType, err)
	}
	if charset := parameters["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
		return nil, fmt.Errorf("content-type %.100q: the charset must be UTF-8", contentType)
	}
	switch mode {
	case structuredMode:
		message, err := structured(body)
		if err != nil {
			return nil, err
		}
		return []*pubsub.Message{message}, nil
	case batchMode:
		return batch(body)
	default:
		return nil, fmt.Errorf("content-type %.100q: want %s, %s, or the type of the data with ce-* headers", contentType, structuredMode, batchMode)
	}
}

// binaryMode takes the ce-* headers as they are: Pub/Sub writes them as headers again when it pushes, so whatever a header
// can hold comes out as it went in. Other headers are dropped: they are about this request, not about the event.
func binaryMode(header http.Header, body []byte) (*pubsub.Message, error) {
	attributes := make(map[string]string, 8)
	for name, values := range header {
		key, ok := attributeKey(name)
		if !ok {
			continue
		}
		if len(values) != 1 {
			return nil, fmt.Errorf("header %s is there %d times", name, len(values))
		}
		attributes[key] = values[0]
	}
	return check(&pubsub.Message{Data: body, Attributes: attributes})
}

// attributeKey is the message attribute of an HTTP header in its canonical spelling.
func attributeKey(header string) (string, bool) {
	switch header { // the common ones, for which nothing is allocated
	case "Ce-Id":
		return "ce-id", true
	case "Ce-Source":
		return "ce-source", true
	case "Ce-Specversion":
		return "ce-specversion", true
	case "Ce-Time":
		return "ce-time", true
	case "Ce-Type":
		return "ce-type", true
	case "Content-Type":
		return event.AttributeContentType, true
	}
	if strings.HasPrefix(header, "Ce-") {
		return strings.ToLower(header), true
	}
	return "", false
}

func structured(body []byte) (*pubsub.Message, error) {
	var e cloudevents.Event
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, fmt.Errorf("decode a structured CloudEvent: %w", err)
	}
	attributes := event.Attributes(e)
	if len(e.Data()) > 0 && attributes[event.AttributeContentType] == "" && !e.DataBase64 {
		// Inside JSON the type of the data defaults to JSON (CloudEvents JSON format 1.0.2, 3.1); outside it must be said.
		attributes[event.AttributeContentType] = event.ContentType
	}
	return check(&pubsub.Message{Data: e.Data(), Attributes: attributes})
}

func batch(body []byte) ([]*pubsub.Message, error) {
	var elements []json.RawMessage
	if err := json.Unmarshal(body, &elements); err != nil {
		return nil, fmt.Errorf("decode a batch of CloudEvents: %w", err)
	}
	messages := make([]*pubsub.Message, len(elements))
	for i, element := range elements {
		var err error
		if messages[i], err = structured(element); err != nil {
			return nil, fmt.Errorf("event %d of the batch: %w", i, err)
		}
	}
	return messages, nil
}

// check refuses what is not a CloudEvent 1.0 and what Pub/Sub would refuse, which would fail its whole batch.
func check(message *pubsub.Message) (*pubsub.Message, error) {
	attributes := message.Attributes
	if len(attributes) > maxAttributes {
		return nil, fmt.Errorf("%d attributes, of at most %d", len(attributes), maxAttributes)
	}
	for key, value := range attributes {
		switch {
		case len(key) > maxAttributeKey:
			return nil, fmt.Errorf("attribute %.50s…: a name of %d bytes, of at most %d", key, len(key), maxAttributeKey)
		case len(value) > maxAttributeValue:
			return nil, fmt.Errorf("attribute %s: a value of %d bytes, of at most %d", key, len(value), maxAttributeValue)
		case !utf8.ValidString(value):
			return nil, fmt.Errorf("attribute %s: not UTF-8", key)
		}
	}
	_, err := event.FromAttributes(func(yield func(name, value string) bool) {
		for name, value := range attributes {
			if !yield(name, value) {
				return
			}
		}
	}, nil)
	if errors.Is(err, event.ErrNotCloudEvent) {
		return nil, errors.New("not a CloudEvent: no header ce-specversion, and the content type is not that of a structured one")
	}
	return message, err
}
