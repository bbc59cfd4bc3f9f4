package event

import (
	"errors"
	"fmt"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
)

// AttributePrefix stands before the name of a CloudEvents attribute among the attributes of a message.
const AttributePrefix = "ce-"

// AttributeContentType is the message attribute that holds the data content type.
const AttributeContentType = "content-type"

// ErrNotCloudEvent says that a message has no attribute ce-specversion, so was not meant as a CloudEvent.
var ErrNotCloudEvent = errors.New("not a CloudEvent: no attribute ce-specversion")

// Attributes returns the message attributes of e in binary mode. The payload of the message is e.Data().
func Attributes(e cloudevents.Event) map[string]string {
	ext := e.Extensions()
	attrs := make(map[string]string, 8+len(ext))
	set := func(name, value string) {
		if value != "" {
			attrs[AttributePrefix+name] = value
		}
	}
	set("specversion", e.SpecVersion())
	set("id", e.ID())
	set("source", e.Source())
	set("type", e.Type())
	set("subject", e.Subject())
	set("dataschema", e.DataSchema())
	if t := e.Time(); !t.IsZero() {
		set("time", t.UTC().Format(time.RFC3339Nano))
	}
	for name, value := range ext {
		// The SDK holds extensions in canonical Go types only, all of which have a string form.
		if s, err := types.Format(value); err == nil {
			set(name, s)
		}
	}
	if ct := e.DataContentType(); ct != "" {
		attrs[AttributeContentType] = ct
	}
	return attrs
}

// FromAttributes makes the CloudEvent of a message in binary mode. attrs calls its argument for each attribute of the
// message, in any order, with the name in lower case. Attributes without the prefix "ce-" are ignored, content-type
// aside. The error is ErrNotCloudEvent, or says what is wrong with the one that was tried.
func FromAttributes(attrs func(yield func(name, value string) bool), data []byte) (cloudevents.Event, error) {
	ec := &event.EventContextV1{}
	version := ""
	var bad error
	note := func(name, value string, err error) {
		if err != nil && bad == nil {
			bad = fmt.Errorf("ce-%s %.100q: %w", name, value, err)
		}
	}
	attrs(func(key, value string) bool {
		if key == AttributeContentType {
			ec.DataContentType = &value
			return true
		}
		name, ok := strings.CutPrefix(key, AttributePrefix)
		if !ok {
			return true
		}
		switch name {
		case "specversion":
			if version != "" && version != value {
				note(name, value, errors.New("given twice"))
			}
			version = value
		case "id":
			if ec.ID != "" && ec.ID != value {
				note(name, value, errors.New("given twice"))
			}
			ec.ID = value
		case "source":
			ref := types.ParseURIRef(value)
			if ref == nil {
				note(name, value, errors.New("not a URI reference"))
				return true
			}
			ec.Source = *ref
		case "type":
			ec.Type = value
		case "subject":
			ec.Subject = &value
		case "time":
			t, err := types.ParseTimestamp(value)
			note(name, value, err)
			ec.Time = t
		case "dataschema":
			ec.DataSchema = types.ParseURI(value)
		default:
			if !isAttributeName(name) {
				note(name, value, errors.New("names have lower-case letters and digits only"))
				return true
			}
			if ec.Extensions == nil {
				ec.Extensions = make(map[string]any, 4)
			}
			ec.Extensions[name] = value
		}
		return true
	})
	switch {
	case version == "":
		return cloudevents.Event{}, ErrNotCloudEvent
	case bad != nil:
		return cloudevents.Event{}, bad
	case version != cloudevents.VersionV1:
		return cloudevents.Event{}, fmt.Errorf("ce-specversion %.20q: only 1.0 is known", version)
	case ec.ID == "":
		return cloudevents.Event{}, errors.New("no attribute ce-id")
	case ec.Type == "":
		return cloudevents.Event{}, errors.New("no attribute ce-type")
	case ec.Source.String() == "":
		return cloudevents.Event{}, errors.New("no attribute ce-source")
	}
	return cloudevents.Event{Context: ec, DataEncoded: data}, nil
}

// isAttributeName says whether name is the name of a CloudEvents attribute: the specification allows a-z and 0-9.
func isAttributeName(name string) bool {
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
