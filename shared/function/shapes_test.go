package function_test

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/function"
)

const (
	subscription = "projects/p/subscriptions/edge-validate"
	reading      = `{"robot_id":"R-1","boot_id":"b","seq":7}`
	published    = "2026-11-01T12:00:00.123Z"
)

// attrs are those of a sound event, by name.
func attrs(pairs ...string) map[string]string {
	m := map[string]string{
		"ce-specversion": "1.0", "ce-id": "R-1/b/7", "ce-source": "//robofleet.dev/robots/R-1", "ce-type": "dev.robofleet.telemetry.v1",
		"content-type": "application/json",
	}
	for i := 0; i < len(pairs); i += 2 {
		if m[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
			delete(m, pairs[i])
		}
	}
	return m
}

func headers(attributes ...map[string]string) http.Header {
	h := http.Header{}
	for _, m := range attributes {
		for name, value := range m {
			h.Add(name, value)
		}
	}
	return h
}

// metadata are the headers that Pub/Sub writes on a push without wrapping.
func metadata() map[string]string {
	return map[string]string{
		"x-goog-pubsub-message-id": "4711", "x-goog-pubsub-subscription-name": subscription,
		"x-goog-pubsub-publish-time": published, "x-goog-pubsub-delivery-attempt": "2",
		"user-agent": "CloudPubSub-Google", "from": "noreply@google.com", "accept-encoding": "gzip, deflate, br",
	}
}

func wrapped(attributes map[string]string, data string) string {
	type message struct {
		Data        []byte            `json:"data"`
		Attributes  map[string]string `json:"attributes,omitempty"`
		MessageID   string            `json:"messageId"`
		MessageID2  string            `json:"message_id"`
		PublishTime string            `json:"publishTime"`
	}
	b, err := json.Marshal(map[string]any{
		"message":      message{[]byte(data), attributes, "4711", "4711", published},
		"subscription": subscription, "deliveryAttempt": 2,
	})
	if err != nil {
		panic(err) // strings always have a JSON form
	}
	return string(b)
}

func structured(id string) string {
	return `{"specversion":"1.0","id":"` + id + `","source":"//robofleet.dev/robots/R-1","type":"dev.robofleet.telemetry.v1",` +
		`"datacontenttype":"application/json","data":` + reading + `}`
}

var (
	cloudEvent = map[string]string{"content-type": "application/cloudevents+json"}
	batched    = map[string]string{"content-type": "application/cloudevents-batch+json; charset=UTF-8"}
	plainJSON  = map[string]string{"content-type": "application/json"}
)

// bare is the event that is made up for a message of Pub/Sub.
func bare(contentType string) map[string]string {
	return map[string]string{
		"ce-specversion": "1.0", "ce-id": "4711", "ce-source": "//pubsub.googleapis.com/" + subscription, "ce-time": published,
		"ce-type": function.TypeMessagePublished, "content-type": contentType,
	}
}

// bareHTTP is the event that is made up for a request of somebody else.
func bareHTTP(contentType string) map[string]string {
	return map[string]string{
		"ce-specversion": "1.0", "ce-source": "//robofleet.dev/http", "ce-type": function.TypeMessagePublished, "content-type": contentType,
	}
}

// pushed is what a handler sees of an event that Pub/Sub delivered.
func pushed(s seen) seen {
	s.MessageID, s.Subscription, s.Published, s.Attempt = "4711", subscription, published, 2
	return s
}

// TestShapes is the conformance table of everything that can be sent to a stage.
func TestShapes(t *testing.T) {
	const unicode = "Zürich 北京 100%25"
	big := strings.Repeat("x", int(limits.MaxBodyBytes)+10)
	for _, tt := range []struct {
		name   string
		header http.Header
		body   string
		status int // 204 unless said
		want   []seen
	}{
		// CloudEvents from anybody.
		{
			name: "binary", header: headers(attrs("ce-subject", "s", "ce-partitionkey", "R-1")), body: reading,
			want: []seen{{Event: attrs("ce-subject", "s", "ce-partitionkey", "R-1"), Data: reading,
				Attributes: attrs("ce-subject", "s", "ce-partitionkey", "R-1")}},
		},
		{
			name: "binary without data", header: headers(attrs("content-type", "")),
			want: []seen{{Event: attrs("content-type", ""), Attributes: attrs("content-type", "")}},
		},
		{
			name: "binary, percent encoded", header: headers(attrs("ce-subject", "Z%C3%BCrich%20%E5%8C%97%E4%BA%AC%20100%2525")), body: reading,
			want: []seen{{Event: attrs("ce-subject", unicode), Data: reading,
				Attributes: attrs("ce-subject", "Z%C3%BCrich%20%E5%8C%97%E4%BA%AC%20100%2525")}},
		},
		{
			name: "binary, not encoded though it should be", header: headers(attrs("ce-subject", "Zürich 100%")), body: reading,
			want: []seen{{Event: attrs("ce-subject", "Zürich 100%"), Data: reading, Attributes: attrs("ce-subject", "Zürich 100%")}},
		},
		{
			name: "structured", header: headers(cloudEvent), body: structured("1"),
			want: []seen{{Event: attrs("ce-id", "1"), Data: reading, Attributes: cloudEvent}},
		},
		{
			name: "structured, content type in capitals", header: http.Header{"Content-Type": {"Application/CloudEvents+JSON; charset=utf-8"}},
			body: structured("1"),
			want: []seen{{Event: attrs("ce-id", "1"), Data: reading,
				Attributes: map[string]string{"content-type": "Application/CloudEvents+JSON; charset=utf-8"}}},
		},
		{
			name: "batched", header: headers(batched), body: "[" + structured("1") + "," + structured("2") + "]",
			want: []seen{{Event: attrs("ce-id", "1"), Data: reading, Attributes: batched},
				{Event: attrs("ce-id", "2"), Data: reading, Attributes: batched}},
		},
		{name: "batched, none", header: headers(batched), body: "[]"},
		// Pub/Sub, wrapped.
		{
			name: "wrapped CloudEvent", header: headers(plainJSON), body: wrapped(attrs("ce-subject", unicode), reading),
			want: []seen{pushed(seen{Event: attrs("ce-subject", unicode), Data: reading, Attributes: attrs("ce-subject", unicode)})},
		},
		{
			name: "wrapped CloudEvent with names in capitals", header: headers(plainJSON),
			body: wrapped(map[string]string{"CE-SpecVersion": "1.0", "CE-Id": "1", "Ce-Source": "s", "ce-Type": "t"}, reading),
			want: []seen{pushed(seen{
				Event: map[string]string{"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}, Data: reading,
				Attributes: map[string]string{"CE-SpecVersion": "1.0", "CE-Id": "1", "Ce-Source": "s", "ce-Type": "t"},
			})},
		},
		{
			name: "wrapped without a content type", body: wrapped(attrs(), reading),
			want: []seen{pushed(seen{Event: attrs(), Data: reading, Attributes: attrs()})},
		},
		{
			name: "wrapped structured CloudEvent", header: headers(plainJSON), body: wrapped(cloudEvent, structured("1")),
			want: []seen{pushed(seen{Event: attrs("ce-id", "1"), Data: reading, Attributes: cloudEvent})},
		},
		{
			name: "wrapped batch", header: headers(plainJSON), body: wrapped(batched, "["+structured("1")+","+structured("2")+"]"),
			want: []seen{pushed(seen{Event: attrs("ce-id", "1"), Data: reading, Attributes: batched}),
				pushed(seen{Event: attrs("ce-id", "2"), Data: reading, Attributes: batched})},
		},
		{
			name: "wrapped bare", header: headers(plainJSON), body: wrapped(map[string]string{"robot": "R-1"}, reading),
			want: []seen{pushed(seen{Event: bare("application/octet-stream"), Data: reading, Bare: true,
				Attributes: map[string]string{"robot": "R-1"}})},
		},
		{
			name: "wrapped without attributes and data", header: headers(plainJSON), body: wrapped(nil, ""),
			want: []seen{pushed(seen{Event: bare("application/octet-stream"), Bare: true, Attributes: map[string]string{}})},
		},
		{
			name: "wrapped broken CloudEvent", header: headers(plainJSON), body: wrapped(attrs("ce-id", ""), reading),
			want: []seen{pushed(seen{Event: bare("application/json"), Data: reading, Bare: true, Attributes: attrs("ce-id", "")})},
		},
		{
			name: "wrapped broken structured CloudEvent", header: headers(plainJSON), body: wrapped(cloudEvent, structured("")),
			want: []seen{pushed(seen{Event: bare("application/cloudevents+json"), Data: structured(""), Bare: true, Attributes: cloudEvent})},
		},
		{
			name: "wrapped broken batch", header: headers(plainJSON), body: wrapped(batched, "[null]"),
			want: []seen{pushed(seen{Event: bare(batched["content-type"]), Data: "[null]", Bare: true, Attributes: batched})},
		},
		{
			name: "wrapped over the limit", header: headers(plainJSON), body: wrapped(attrs(), big),
			want: []seen{pushed(seen{Event: attrs(), Data: big[:limits.MaxBodyBytes], Truncated: true, Size: int64(len(big)), Attributes: attrs()})},
		},
		{
			name: "wrapped with names of the transport", header: headers(plainJSON),
			body: wrapped(attrs("authorization", "Bearer robot", "Host", "h", "x-goog-pubsub-message-id", "0815"), reading),
			want: []seen{pushed(seen{Event: attrs(), Data: reading, Attributes: attrs()})},
		},
		// Pub/Sub, unwrapped.
		{
			name: "unwrapped CloudEvent", header: headers(metadata(), attrs("ce-subject", unicode)), body: reading,
			want: []seen{pushed(seen{Event: attrs("ce-subject", unicode), Data: reading, Attributes: attrs("ce-subject", unicode)})},
		},
		{
			name: "unwrapped structured CloudEvent", header: headers(metadata(), cloudEvent), body: structured("1"),
			want: []seen{pushed(seen{Event: attrs("ce-id", "1"), Data: reading, Attributes: cloudEvent})},
		},
		{
			name: "unwrapped batch", header: headers(metadata(), batched), body: "[" + structured("1") + "," + structured("2") + "]",
			want: []seen{pushed(seen{Event: attrs("ce-id", "1"), Data: reading, Attributes: batched}),
				pushed(seen{Event: attrs("ce-id", "2"), Data: reading, Attributes: batched})},
		},
		{
			name: "unwrapped bare JSON", header: headers(metadata(), map[string]string{"robot": "R-1"}), body: reading,
			want: []seen{pushed(seen{Event: bare("application/octet-stream"), Data: reading, Bare: true,
				Attributes: map[string]string{"robot": "R-1"}})},
		},
		{
			name: "unwrapped without data", header: headers(metadata()),
			want: []seen{pushed(seen{Event: bare("application/octet-stream"), Bare: true, Attributes: map[string]string{}})},
		},
		{
			name: "unwrapped with a message that looks wrapped", header: headers(metadata(), plainJSON), body: wrapped(attrs(), reading),
			want: []seen{pushed(seen{Event: bare("application/json"), Data: wrapped(attrs(), reading), Bare: true, Attributes: plainJSON})},
		},
		{
			name: "unwrapped, id missing", header: headers(metadata(), attrs("ce-id", "")), body: reading,
			want: []seen{pushed(seen{Event: bare("application/json"), Data: reading, Bare: true, Attributes: attrs("ce-id", "")})},
		},
		{
			name: "unwrapped, id twice", header: headers(metadata(), attrs(), map[string]string{"ce-id": "2"}), body: reading,
			want: []seen{pushed(seen{Event: bare("application/json"), Data: reading, Bare: true, Attributes: attrs("ce-id", "R-1/b/7, 2")})},
		},
		{
			name: "unwrapped, not UTF-8", header: headers(metadata(), attrs("ce-subject", "\xff")), body: reading,
			want: []seen{pushed(seen{Event: bare("application/json"), Data: reading, Bare: true, Attributes: attrs("ce-subject", "\xff")})},
		},
		{
			name: "unwrapped broken structured CloudEvent", header: headers(metadata(), cloudEvent), body: "{",
			want: []seen{pushed(seen{Event: bare("application/cloudevents+json"), Data: "{", Bare: true, Attributes: cloudEvent})},
		},
		{
			name: "unwrapped null as structured CloudEvent", header: headers(metadata(), cloudEvent), body: "null",
			want: []seen{pushed(seen{Event: bare("application/cloudevents+json"), Data: "null", Bare: true, Attributes: cloudEvent})},
		},
		{
			name: "unwrapped broken batch", header: headers(metadata(), batched), body: "[" + structured("1") + "," + structured("") + "]",
			want: []seen{pushed(seen{Event: bare(batched["content-type"]), Data: "[" + structured("1") + "," + structured("") + "]", Bare: true,
				Attributes: batched})},
		},
		{
			name: "unwrapped over the limit", header: headers(metadata(), attrs()), body: big,
			want: []seen{pushed(seen{Event: attrs(), Data: big[:limits.MaxBodyBytes], Truncated: true, Size: int64(len(big)), Attributes: attrs()})},
		},
		{
			name: "unwrapped bare over the limit", header: headers(metadata()), body: big,
			want: []seen{pushed(seen{Event: bare("application/octet-stream"), Data: big[:limits.MaxBodyBytes], Bare: true, Truncated: true,
				Size: int64(len(big)), Attributes: map[string]string{}})},
		},
		{
			name: "unwrapped at the limit", header: headers(metadata(), attrs()), body: big[:limits.MaxBodyBytes],
			want: []seen{pushed(seen{Event: attrs(), Data: big[:limits.MaxBodyBytes], Attributes: attrs()})},
		},
		{
			name: "unwrapped with names of the transport",
			header: headers(metadata(), attrs(), map[string]string{
				"authorization": "Bearer robot", "x-goog-iap-jwt-assertion": "x", "x-forwarded-for": "1.2.3.4", "cookie": "a=b",
			}),
			body: reading,
			want: []seen{pushed(seen{Event: attrs(), Data: reading, Attributes: attrs()})},
		},
		// Somebody with curl.
		{
			name: "bare JSON", header: headers(plainJSON), body: reading,
			want: []seen{{Event: bareHTTP("application/json"), Data: reading, Bare: true, Attributes: plainJSON}},
		},
		{
			name: "bare without a content type", body: reading,
			want: []seen{{Event: bareHTTP("application/octet-stream"), Data: reading, Bare: true, Attributes: map[string]string{}}},
		},
		{
			name: "nothing at all",
			want: []seen{{Event: bareHTTP("application/octet-stream"), Bare: true, Attributes: map[string]string{}}},
		},
		{
			name: "JSON that is not quite a wrapped push", header: headers(plainJSON), body: `{"message":{"data":"e30="},"subscription":"s"}`,
			want: []seen{{Event: bareHTTP("application/json"), Data: `{"message":{"data":"e30="},"subscription":"s"}`, Bare: true,
				Attributes: plainJSON}},
		},
		{
			name: "bare over the limit", header: headers(plainJSON), body: big,
			want: []seen{{Event: bareHTTP("application/json"), Data: big[:limits.MaxBodyBytes], Bare: true, Truncated: true, Size: int64(len(big)),
				Attributes: plainJSON}},
		},
		{
			name: "bare over what can be wrapped", header: headers(plainJSON), body: strings.Repeat(big, 15),
			want: []seen{{Event: bareHTTP("application/json"), Data: big[:limits.MaxBodyBytes], Bare: true, Truncated: true,
				Size: int64(len(big)) * 15, Attributes: plainJSON}},
		},
		{
			name: "binary over the limit", header: headers(attrs()), body: big,
			want: []seen{{Event: attrs(), Data: big[:limits.MaxBodyBytes], Truncated: true, Size: int64(len(big)), Attributes: attrs()}},
		},
		// Broken CloudEvents, from anybody but Pub/Sub.
		{name: "binary, id missing", header: headers(attrs("ce-id", "")), body: reading, status: 400},
		{name: "binary, id twice", header: headers(attrs(), map[string]string{"ce-id": "2"}), body: reading, status: 400},
		{name: "binary, version 0.3", header: headers(attrs("ce-specversion", "0.3")), body: reading, status: 400},
		{name: "binary, bad time", header: headers(attrs("ce-time", "now")), body: reading, status: 400},
		{name: "binary, encoded line break", header: headers(attrs("ce-subject", "a%0Ab")), body: reading, status: 400},
		{name: "binary, encoded bytes that are not UTF-8", header: headers(attrs("ce-subject", "%FF")), body: reading, status: 400},
		{name: "structured, malformed", header: headers(cloudEvent), body: "{", status: 400},
		{name: "structured, empty", header: headers(cloudEvent), status: 400},
		{name: "structured, null", header: headers(cloudEvent), body: "null", status: 400},
		{name: "structured, no id", header: headers(cloudEvent), body: structured(""), status: 400},
		{name: "structured, over the limit", header: headers(cloudEvent), body: strings.Repeat(big, 15), status: 400},
		{name: "batched, malformed", header: headers(batched), body: "[", status: 400},
		{name: "batched, one without id", header: headers(batched), body: "[" + structured("1") + "," + structured("") + "]", status: 400},
		{name: "batched, null", header: headers(batched), body: "[null]", status: 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r recorder
			server := newServer(t, newHandler(t, r.handle, limits, nil))
			for _, transport := range []struct {
				name         string
				h2c, chunked bool
			}{
				{name: "HTTP/1.1"}, {name: "HTTP/1.1 chunked", chunked: true},
				{name: "h2c", h2c: true}, {name: "h2c without length", h2c: true, chunked: true},
			} {
				t.Run(transport.name, func(t *testing.T) {
					var body io.Reader = bytes.NewBufferString(tt.body)
					if transport.chunked {
						body = io.MultiReader(body) // hides the length
					}
					header := tt.header.Clone()
					if header == nil {
						header = http.Header{}
					}
					if header.Get("User-Agent") == "" {
						header.Set("User-Agent", "curl/8")
					}
					got := post(t, newClient(t, transport.h2c), server.URL+"/path", header, body)
					want := tt.status
					if want == 0 {
						want = http.StatusNoContent
					}
					if got.status != want {
						t.Fatalf("status: got %d (%s), want %d", got.status, got.body, want)
					}
					all := r.take()
					slices.SortFunc(all, func(a, b seen) int { return strings.Compare(a.Event["ce-id"], b.Event["ce-id"]) })
					wants := slices.Clone(tt.want)
					for i := range wants {
						wants[i].Path = "/path"
						wants[i].Event = maps.Clone(wants[i].Event)
					}
					if diff := cmp.Diff(wants, all); diff != "" {
						t.Errorf("the handler saw (-want +got):\n%.2000s", diff)
					}
				})
			}
		})
	}
}
