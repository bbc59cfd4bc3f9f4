package event_test

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/event"
)

func sound() map[string]string {
	return map[string]string{
		"ce-specversion": "1.0", "ce-id": "R-1/b/7", "ce-source": "//robofleet.dev/robots/R-1", "ce-type": event.TypeTelemetry,
	}
}

// with returns a sound message with the attributes changed; an empty value takes one away.
func with(pairs ...string) map[string]string {
	attrs := sound()
	for i := 0; i < len(pairs); i += 2 {
		if attrs[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
			delete(attrs, pairs[i])
		}
	}
	return attrs
}

func TestAttributesComeBackAsTheyWere(t *testing.T) {
	for _, tt := range []struct {
		name  string
		attrs map[string]string
	}{
		{"required ones", sound()},
		{"all", with("ce-subject", "x", "ce-time", "2026-11-01T12:00:00.123456789Z", "ce-dataschema", "https://robofleet.dev/s",
			"content-type", "application/json", "ce-partitionkey", "R-1", "ce-traceparent", "00-a-b-01")},
		{"not ASCII", with("ce-subject", "Zürich 🤖", "ce-place", "北京")},
		{"per cent sign", with("ce-subject", "100%25 %zz")},
		{"content type with parameters", with("content-type", "text/plain; charset=utf-8")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := []byte("data")
			e, err := event.FromAttributes(maps.All(tt.attrs), data)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Validate(); err != nil {
				t.Errorf("the SDK finds the event invalid: %v", err)
			}
			if diff := cmp.Diff(tt.attrs, event.Attributes(e)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !bytes.Equal(e.Data(), data) {
				t.Errorf("data: got %q", e.Data())
			}
		})
	}
}

func TestAttributesOfExtensionsOfAllTypes(t *testing.T) {
	e := cloudevents.NewEvent()
	e.SetID("1")
	e.SetType("t")
	e.SetSource("s")
	e.SetTime(time.Date(2026, 11, 1, 13, 0, 0, 5, time.FixedZone("", 3600)))
	e.SetExtension("text", "a b")
	e.SetExtension("number", 7)
	e.SetExtension("flag", true)
	e.SetExtension("bytes", []byte("abc"))
	e.SetExtension("at", time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC))
	want := map[string]string{
		"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-time": "2026-11-01T12:00:00.000000005Z",
		"ce-text": "a b", "ce-number": "7", "ce-flag": "true", "ce-bytes": "YWJj", "ce-at": "2026-11-01T12:00:00Z",
	}
	if diff := cmp.Diff(want, event.Attributes(e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAttributesOfOthersAreIgnored(t *testing.T) {
	e, err := event.FromAttributes(maps.All(with("authorization", "Bearer x", "robot", "R-1", "cex", "1", "ce-subject", "x")), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(with("ce-subject", "x"), event.Attributes(e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnEmptyAttributeIsAsGoodAsAbsent(t *testing.T) {
	attrs := sound()
	for _, name := range []string{"ce-subject", "ce-time", "ce-dataschema", "ce-partitionkey", "content-type"} {
		attrs[name] = ""
	}
	e, err := event.FromAttributes(maps.All(attrs), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Errorf("the SDK finds the event invalid: %v", err)
	}
	if diff := cmp.Diff(sound(), event.Attributes(e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFromAttributesSaysWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name  string
		attrs map[string]string
		want  string
	}{
		{"no id", with("ce-id", ""), "no attribute ce-id"},
		{"no type", with("ce-type", ""), "no attribute ce-type"},
		{"no source", with("ce-source", ""), "no attribute ce-source"},
		{"blank id", with("ce-id", "  "), `ce-id "  ": blank`},
		{"version 0.3", with("ce-specversion", "0.3"), `ce-specversion "0.3": only 1.0 is known`},
		{"source", with("ce-source", "http://%zz"), "ce-source"},
		{"dataschema", with("ce-dataschema", "http://%zz"), "ce-dataschema"},
		{"relative dataschema", with("ce-dataschema", "/schema"), "not an absolute URI"},
		{"time", with("ce-time", "yesterday"), "ce-time"},
		{"time after the year 9999 in UTC", with("ce-time", "9999-12-31T23:59:59-01:00"), "beyond the years"},
		{"time before the year 0 in UTC", with("ce-time", "0000-01-01T00:00:00+01:00"), "beyond the years"},
		{"name with a dash", with("ce-robot-id", "1"), "ce-robot-id"},
		{"name in upper case", with("ce-Robot", "1"), "ce-Robot"},
		{"no name", with("ce-", "1"), "ce-"},
		{"name data", with("ce-data", "{}"), "not a name for an extension"},
		{"name data_base64", with("ce-data_base64", "e30="), "not a name for an extension"},
		{"name datacontenttype", with("ce-datacontenttype", "text/plain"), "not a name for an extension"},
		{"line break", with("ce-subject", "a\nce-id: b"), "control character"},
		{"delete", with("ce-subject", "\x7f"), "control character"},
		{"C1 control", with("ce-subject", "\u0085"), "control character"},
		{"not UTF-8", with("ce-partitionkey", "\xff"), "not UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := event.FromAttributes(maps.All(tt.attrs), nil)
			if err == nil || errors.Is(err, event.ErrNotCloudEvent) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestWithoutSpecversionItIsNoCloudEvent(t *testing.T) {
	for _, attrs := range []map[string]string{nil, {"content-type": "application/json"}, with("ce-specversion", ""), {"ce-robot-id": "\xff"}} {
		if _, err := event.FromAttributes(maps.All(attrs), nil); !errors.Is(err, event.ErrNotCloudEvent) {
			t.Errorf("%v: got %v, want ErrNotCloudEvent", attrs, err)
		}
	}
}

func TestAnAttributeGivenTwiceIsRefused(t *testing.T) {
	first := with("ce-subject", "s", "ce-time", "2026-11-01T12:00:00Z", "ce-dataschema", "https://robofleet.dev/s", "ce-partitionkey", "R-1")
	for name, value := range first {
		second := map[string]string{
			"ce-specversion": "0.3", "ce-time": "2026-11-01T12:00:01Z", "ce-dataschema": "https://robofleet.dev/t",
		}[name]
		if second == "" {
			second = value + "2"
		}
		t.Run(name, func(t *testing.T) {
			twice := func(again string) error {
				_, err := event.FromAttributes(func(yield func(name, value string) bool) {
					for n, v := range first {
						if !yield(n, v) {
							return
						}
					}
					yield(name, again)
				}, nil)
				return err
			}
			if err := twice(second); err == nil || !strings.Contains(err.Error(), "given twice") {
				t.Errorf("other value: got %v", err)
			}
			if err := twice(value); err != nil {
				t.Errorf("same value: got %v", err)
			}
		})
	}
}

// FuzzFromAttributes holds that whatever is accepted is a sound event whose attributes make the same event again.
func FuzzFromAttributes(f *testing.F) {
	f.Add("1.0", "1", "s", "t", "subject", "2026-11-01T12:00:00Z", "http://x/y", "partitionkey", "R-1", "application/json")
	f.Add("1.0", "ä%20", "//robofleet.dev/robots/R-1", "t", "\x80", "0000-01-01T00:00:00+01:00", "x:", "data", "{}", "text/plain")
	f.Add("0.3", " ", "http://ä/ ?#", "", "", "9999-12-31T23:59:60-01:00", "%", "", "\n", "")
	f.Fuzz(func(t *testing.T, version, id, source, typ, subject, at, schema, name, value, contentType string) {
		attrs := map[string]string{
			"ce-specversion": version, "ce-id": id, "ce-source": source, "ce-type": typ, "ce-subject": subject, "ce-time": at,
			"ce-dataschema": schema, "content-type": contentType,
		}
		if _, taken := attrs["ce-"+name]; !taken {
			attrs["ce-"+name] = value
		}
		e, err := event.FromAttributes(maps.All(attrs), []byte("data"))
		if err != nil {
			return
		}
		e.SetDataContentType("application/octet-stream") // a wrong content type is let through: it is about the data
		if err := e.Validate(); err != nil {
			t.Fatalf("%v: invalid: %v", attrs, err)
		}
		text, err := e.MarshalJSON()
		if err != nil {
			t.Fatalf("%v: %v", attrs, err)
		}
		var decoded cloudevents.Event
		if err := decoded.UnmarshalJSON(text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		want := event.Attributes(e)
		if diff := cmp.Diff(want, event.Attributes(decoded)); diff != "" {
			t.Errorf("through JSON (-want +got):\n%s", diff)
		}
		again, err := event.FromAttributes(maps.All(want), e.Data())
		if err != nil {
			t.Fatalf("%v: %v", want, err)
		}
		if diff := cmp.Diff(want, event.Attributes(again)); diff != "" {
			t.Errorf("through attributes (-want +got):\n%s", diff)
		}
	})
}

func BenchmarkFromAttributes(b *testing.B) {
	attrs := with("ce-time", "2026-11-01T12:00:00.123Z", "content-type", "application/json", "ce-partitionkey", "R-1",
		"ce-traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	data := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := event.FromAttributes(maps.All(attrs), data); err != nil {
			b.Fatal(err)
		}
	}
}

// randomText returns text that needs every kind of JSON escape now and then.
func randomText(r *rand.Rand) string {
	alphabet := []rune("abcXYZ019-_./\\\"' äß北🤖\u2028<>&")
	n := 1 + r.IntN(40)
	s := make([]rune, n)
	for i := range s {
		s[i] = alphabet[r.IntN(len(alphabet))]
	}
	return "x" + string(s)
}
