package event

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

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
	var version, source, when, schema string
	var bad error
	note := func(name, value string, err error) {
		if bad == nil {
			bad = attributeError(name, value, err)
		}
	}
	attrs(func(key, value string) bool {
		if value == "" {
			return true // as good as absent
		}
		if key == AttributeContentType {
			contentType := value // a copy: the address of value itself would cost each attribute an allocation
			ec.DataContentType = &contentType
			return true
		}
		name, ok := strings.CutPrefix(key, AttributePrefix)
		if !ok {
			return true
		}
		if err := checkString(value); err != nil {
			note(name, value, err)
			return true
		}
		var before string // the value of an attribute of the same name, which an HTTP request can have
		switch name {
		case "specversion":
			before, version = version, value
		case "id":
			before, ec.ID = ec.ID, value
		case "source":
			before, source = source, value
		case "type":
			before, ec.Type = ec.Type, value
		case "subject":
			before = ec.GetSubject()
			subject := value
			ec.Subject = &subject
		case "time":
			before, when = when, value
		case "dataschema":
			before, schema = schema, value
		case "data", "data_base64", "datacontenttype":
			// As extensions they would stand twice in the JSON form of the event (CloudEvents' JSON format, section 3.1).
			note(name, value, errors.New("not a name for an extension"))
		default:
			if !isAttributeName(name) {
				note(name, value, errors.New("names have lower-case letters and digits only"))
				return true
			}
			if ec.Extensions == nil {
				ec.Extensions = make(map[string]any, 4)
			}
			before, _ = ec.Extensions[name].(string)
			ec.Extensions[name] = value
		}
		if before != "" && before != value {
			note(name, value, errors.New("given twice"))
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
	case source == "":
		return cloudevents.Event{}, errors.New("no attribute ce-source")
	}
	ref := types.ParseURIRef(source)
	if ref == nil {
		return cloudevents.Event{}, attributeError("source", source, errors.New("not a URI reference"))
	}
	ec.Source = *ref
	if schema != "" {
		ec.DataSchema = types.ParseURI(schema)
		if ec.DataSchema == nil || !ec.DataSchema.IsAbs() {
			return cloudevents.Event{}, attributeError("dataschema", schema, errors.New("not an absolute URI"))
		}
	}
	if when != "" {
		t, err := types.ParseTime(when)
		if err != nil {
			return cloudevents.Event{}, attributeError("time", when, err)
		}
		// The first and the last hours have, in UTC, years that RFC 3339 cannot write: the next stage could not read them.
		if y := t.UTC().Year(); y < 0 || y > 9999 {
			return cloudevents.Event{}, attributeError("time", when, errors.New("in UTC beyond the years 0 to 9999"))
		}
		ec.Time = &types.Timestamp{Time: t}
	}
	return cloudevents.Event{Context: ec, DataEncoded: data}, nil
}

func attributeError(name, value string, err error) error {
	return fmt.Errorf("ce-%.40s %.100q: %w", name, value, err)
}

// checkString says why value cannot be that of an attribute: it must be UTF-8, not blank, and have no control characters
// (CloudEvents, section 3.1, type String), which could not go into a header either.
func checkString(value string) error {
	blank, ascii := true, true
	for i := range len(value) {
		switch c := value[i]; {
		case c < ' ' || c == 0x7f:
			return errors.New("a control character")
		case c >= utf8.RuneSelf:
			ascii, blank = false, false
		case c != ' ':
			blank = false
		}
	}
	if blank {
		return errors.New("blank")
	}
	if ascii {
		return nil
	}
	if !utf8.ValidString(value) {
		return errors.New("not UTF-8")
	}
	for _, r := range value {
		if r <= 0x9f && r >= 0x80 {
			return errors.New("a control character")
		}
	}
	return nil
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
