package conformance_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/simulator/cloud/pubsub"
)

// everyByte is data that is no text in any encoding.
func everyByte() []byte {
	data := make([]byte, 0, 512)
	for i := range 512 {
		data = append(data, byte(i))
	}
	return data
}

func TestBinaryEventsArriveByteForByte(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1024)
	tests := []struct {
		name   string
		header http.Header
		body   []byte
	}{
		{"every attribute of the specification", binary("1", "Ce-Subject", "s/1", "Ce-Time", "2026-11-01T12:00:00.123456789Z",
			"Ce-Dataschema", "https://example.com/schema#1", "Content-Type", "application/json"), []byte(`{"a": 1 }`)},
		{"a time with an offset", binary("1", "Ce-Time", "2026-11-01T12:00:00+05:30"), nil},
		{"extensions", binary("1", "Ce-Partitionkey", "R-1", "Ce-Number", "007", "Ce-Flag", "TRUE", "Ce-A1b2", `"quoted"\`), []byte("x")},
		{"a source that is a URN", binary("1", "Ce-Source", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66"), []byte("x")},
		{"attributes not in ASCII, percent-encoded as HTTP asks", binary("1", "Ce-Subject", "Z%C3%BCrich%20%E5%8C%97%E4%BA%AC"), []byte("x")},
		{"attributes not in ASCII, as they are", binary("1", "Ce-Subject", "Zürich 北京 🤖"), []byte("x")},
		{"an attribute of the greatest length", binary("1", "Ce-Subject", long), []byte("x")},
		{"text not in ASCII", binary("1", "Content-Type", "text/plain; charset=utf-8"), []byte("Zürich 北京 🤖\r\n")},
		{"data that is no text", binary("1", "Content-Type", "application/octet-stream"), everyByte()},
		{"JSON with its spaces", binary("1", "Content-Type", "application/json"), []byte("{ \"b\" : 1,\n\t\"a\":1.0e3 }\n")},
		{"much data", binary("1", "Content-Type", "application/x-much"), bytes.Repeat(everyByte(), 300)},
		{"no data", binary("1"), nil},
	}
	s := start(t)
	sub := s.subscribe(nil)
	s.apply(broker("b"), trigger("t", "b", sub.url))
	for i, test := range tests {
		s.send("b", test.header, test.body)
		d := s.next(sub, i+1)
		if diff := cmp.Diff(test.header, d.event()); diff != "" {
			t.Errorf("%s: attributes (-want +got):\n%s", test.name, diff)
		}
		if !bytes.Equal(test.body, d.body) {
			t.Errorf("%s: the data changed: %d bytes, want %d", test.name, len(d.body), len(test.body))
		}
	}
}

func TestStructuredEventsArriveInBinaryMode(t *testing.T) {
	t.Parallel()
	const required = `"specversion":"1.0","id":"1","source":"/conformance","type":"test"`
	jsonData := contentTypeOf("application/json")
	tests := []struct {
		name   string
		event  string
		header http.Header
		body   string
	}{
		{"JSON data, byte for byte", `{` + required + `,"data":{ "b" : 1, "a":1.0e3 }}`, jsonData, `{ "b" : 1, "a":1.0e3 }`},
		{"JSON data that is a string", `{` + required + `,"data":"Zürich"}`, jsonData, `"Zürich"`},
		{"text", `{` + required + `,"datacontenttype":"text/plain","data":"Zürich \ud83e\udd16"}`, contentTypeOf("text/plain"), "Zürich 🤖"},
		{"binary data", `{` + required + `,"datacontenttype":"image/png","data_base64":"iVBORw0KGgo="}`, contentTypeOf("image/png"), "\x89PNG\r\n\x1a\n"},
		{"no data", `{` + required + `}`, contentTypeOf(""), ""},
		{"extensions of every type, as their canonical text", `{` + required + `,"flag":true,"number":-7,"text":"x"}`,
			contentTypeOf("", "Ce-Flag", "true", "Ce-Number", "-7", "Ce-Text", "x"), ""},
		{"not in ASCII, as it is", `{` + required + `,"subject":"Zürich 北京"}`, contentTypeOf("", "Ce-Subject", "Zürich 北京"), ""},
		{"the time, the same instant in UTC", `{` + required + `,"time":"2026-11-01T12:00:00+05:30"}`, contentTypeOf("", "Ce-Time", "2026-11-01T06:30:00Z"), ""},
	}
	s := start(t)
	sub := s.subscribe(nil)
	s.apply(broker("b"), trigger("t", "b", sub.url))
	for i, test := range tests {
		s.send("b", contentType(structuredMode), []byte(test.event))
		d := s.next(sub, i+1)
		if diff := cmp.Diff(test.header, d.event()); diff != "" {
			t.Errorf("%s: attributes (-want +got):\n%s", test.name, diff)
		}
		if string(d.body) != test.body {
			t.Errorf("%s: data %q, want %q", test.name, d.body, test.body)
		}
	}
}

// contentTypeOf are the headers of event 1 whose data has a type, or none.
func contentTypeOf(dataType string, more ...string) http.Header {
	header := binary("1", more...)
	if header.Set("Content-Type", dataType); dataType == "" {
		header.Del("Content-Type")
	}
	return header
}

func TestDeliveriesAreCloudEvents(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("1", "Ce-Subject", "s", "Ce-Time", "2026-11-01T12:00:00Z", "Ce-Myext", "x"), []byte("hello"))
	e := s.next(sub, 1).parse(t)
	got := []string{e.SpecVersion(), e.ID(), e.Source(), e.Type(), e.Subject(), e.Time().UTC().Format(time.RFC3339), e.DataContentType(), fmt.Sprint(e.Extensions()["myext"]), string(e.Data())}
	want := []string{"1.0", "1", "/conformance", "test", "s", "2026-11-01T12:00:00Z", "text/plain", "x", "hello"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the event as the CloudEvents SDK reads it (-want +got):\n%s", diff)
	}
}

func TestTheTracingExtensionIsKept(t *testing.T) {
	t.Parallel()
	const parent, state = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=opaque,other=1"
	s := start(t)
	sub := s.subscribe(statuses(http.StatusInternalServerError))
	s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("1", "Ce-Traceparent", parent, "Ce-Tracestate", state), nil)
	s.next(sub, 2) // the first attempt and the retry
	for _, d := range sub.deliveries() {
		if d.header.Get("Ce-Traceparent") != parent || d.header.Get("Ce-Tracestate") != state {
			t.Errorf("traceparent %q, tracestate %q: changed on the way", d.header.Get("Ce-Traceparent"), d.header.Get("Ce-Tracestate"))
		}
	}
}

func TestEveryPushProvesWhoSendsIt(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	s.apply(broker("b"), trigger("t", "b", sub.url+"/path"))
	s.send("b", binary("1"), nil)
	token, found := strings.CutPrefix(s.next(sub, 1).header.Get("Authorization"), "Bearer ")
	if !found {
		t.Fatal("the push has no token")
	}
	iss, err := tokens()
	if err != nil {
		t.Fatal(err)
	}
	provider, err := oidc.NewProvider(t.Context(), iss.URL())
	if err != nil {
		t.Fatal(err)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: "http://" + hostOf(t, sub.url)}).Verify(t.Context(), token)
	if err != nil {
		t.Fatalf("the token of the push: %v", err)
	}
	var claims struct {
		Email    string `json:"email"`
		Verified bool   `json:"email_verified"`
	}
	if err := verified.Claims(&claims); err != nil || claims.Email != serviceAccount || !claims.Verified {
		t.Errorf("claims %+v, error %v, want the verified e-mail address %s", claims, err, serviceAccount)
	}
}

func TestASenderCannotPassForSomebodyElse(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("1", "Authorization", "Bearer forged", "X-Goog-Pubsub-Message-Id", "forged", "X-Custom", "x"), nil)
	header := s.next(sub, 1).header
	if header.Get("Authorization") == "Bearer forged" || header.Get("X-Goog-Pubsub-Message-Id") == "forged" || header.Get("X-Custom") != "" {
		t.Errorf("headers of the sender's request came through: %v", header)
	}
}

func TestASubscriberMayHaveAPathAndAQuery(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	s.apply(broker("b"), trigger("t", "b", sub.url+"/a/b%20c?d=e"))
	s.send("b", binary("1"), nil)
	if path := s.next(sub, 1).path; path != "/a/b%20c?d=e" {
		t.Errorf("delivered to %s", path)
	}
}

func TestEventsArriveAtLeastOnceWhateverPubSubDoes(t *testing.T) {
	t.Parallel()
	const events = 300
	s := start(t)
	sub := s.subscribe(nil)
	p := s.apply(broker("b"), trigger("t", "b", sub.url))
	s.pubsub.Faults().Set(pubsub.FaultPlan{
		Seed: 1, Duplicate: 0.2, Delay: 0.2, DelayMax: 20 * time.Millisecond, Reorder: 0.5, LoseAck: 0.01, RefusePublish: 0.02,
	})
	for i := range events {
		s.send("b", binary(strconv.Itoa(i)), nil)
	}
	s.settled(p, "t")
	got := sub.ids()
	for i := range events {
		if got[strconv.Itoa(i)] == 0 {
			t.Errorf("event %d was lost", i)
		}
	}
	if n := len(sub.deliveries()); len(got) != events || n <= events {
		t.Errorf("%d deliveries of %d events, want some more than once, or the faults did nothing", n, len(got))
	}
}

func TestRepliesAreDiscarded(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(func(w http.ResponseWriter, _ delivery, _ int) {
		for name, values := range binary("reply") {
			w.Header()[name] = values
		}
		_, _ = io.WriteString(w, "reply") // 200
	})
	p := s.apply(broker("b"), trigger("t", "b", sub.url))
	s.send("b", binary("1"), nil)
	stats := s.settled(p, "t")
	if got := s.published("b"); got != 1 || stats.Delivered != 1 || stats.Acked != 1 {
		t.Errorf("%d events published and %+v, want event 1 delivered once and no other", got, stats)
	}
	if prefer := s.next(sub, 1).header.Get("Prefer"); prefer != "" {
		t.Errorf("Prefer: %s, which promises that a reply is read", prefer)
	}
}

func TestASubscriberRepliesByTheIngress(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	sub.answerWith(func(w http.ResponseWriter, d delivery, _ int) {
		if d.header.Get("Ce-Type") != "test" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		// What a subscriber with a SinkBinding does: it answers once the Broker has accepted.
		a, err := request(s.Context(), http.MethodPost, s.url+"/ns/b", binary("reply-to-"+d.id(), "Ce-Type", "reply"), nil)
		if err != nil || a.code != http.StatusAccepted {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	asked, answered := "filter: {attributes: {type: test}}", "filter: {attributes: {type: reply}}"
	p := s.apply(broker("b"), trigger("asked", "b", sub.url, asked), trigger("answered", "b", sub.url, answered))
	s.send("b", binary("1"), nil)
	s.settled(p, "asked")
	s.settled(p, "answered")
	if diff := cmp.Diff(map[string]int{"1": 1, "reply-to-1": 1}, sub.ids()); diff != "" {
		t.Errorf("deliveries by event (-want +got):\n%s", diff)
	}
}
