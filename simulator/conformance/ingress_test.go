package conformance_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/eventing/ingress"
	"github.com/robofleet/robofleet/simulator/cloud/pubsub"
)

const (
	structuredMode = "application/cloudevents+json"
	batchMode      = "application/cloudevents-batch+json"
)

func contentType(value string) http.Header { return http.Header{"Content-Type": {value}} }

func TestEveryContentModeIsAcceptedAndDelivered(t *testing.T) {
	t.Parallel()
	const one = `{"specversion":"1.0","id":"1","source":"/conformance","type":"test","datacontenttype":"text/plain","data":"hello"}`
	const two = `{"specversion":"1.0","id":"2","source":"/conformance","type":"test","datacontenttype":"text/plain","data":"hello"}`
	tests := []struct {
		name   string
		header http.Header
		body   string
		ids    map[string]int
	}{
		{"binary", binary("1"), "hello", map[string]int{"1": 1}},
		{"structured", contentType(structuredMode), one, map[string]int{"1": 1}},
		{"structured, with a charset", contentType(structuredMode + "; charset=UTF-8"), one, map[string]int{"1": 1}},
		{"batched", contentType(batchMode), "[" + one + "," + two + "]", map[string]int{"1": 1, "2": 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			sub := s.subscribe(nil)
			p := s.apply(broker("b"), trigger("t", "b", sub.url))
			s.send("b", test.header, []byte(test.body))
			s.settled(p, "t")
			if diff := cmp.Diff(test.ids, sub.ids()); diff != "" {
				t.Errorf("deliveries by event (-want +got):\n%s", diff)
			}
			for _, d := range sub.deliveries() {
				if diff := cmp.Diff(binary(d.id()), d.event()); diff != "" || string(d.body) != "hello" {
					t.Errorf("delivered %q with (-want +got):\n%s", d.body, diff)
				}
			}
		})
	}
}

func TestOnlyVersion1IsAccepted(t *testing.T) {
	t.Parallel()
	s := start(t)
	sub := s.subscribe(nil)
	p := s.apply(broker("b"), trigger("t", "b", sub.url))
	for _, version := range []string{"0.3", "0.2", "1.1", "2.0", "19"} {
		a := s.do(http.MethodPost, "/ns/b", binary("1", "Ce-Specversion", version), []byte("x"))
		if a.code != http.StatusBadRequest {
			t.Errorf("binary, version %s: answer %d, want 400", version, a.code)
		}
		body := `{"specversion":"` + version + `","id":"1","source":"/conformance","type":"test"}`
		if a = s.do(http.MethodPost, "/ns/b", contentType(structuredMode), []byte(body)); a.code != http.StatusBadRequest {
			t.Errorf("structured, version %s: answer %d, want 400", version, a.code)
		}
	}
	s.send("b", binary("2"), nil)
	s.settled(p, "t")
	if got := sub.deliveries(); len(got) != 1 || got[0].header.Get("Ce-Specversion") != "1.0" {
		t.Errorf("delivered %v, want event 2 alone, of version 1.0", got)
	}
}

func TestWhatIsNoCloudEventIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.apply(broker("b"))
	without := func(name string) http.Header {
		header := binary("1")
		header.Del(name)
		return header
	}
	tests := []struct {
		name   string
		header http.Header
		body   string
	}{
		{"no event at all", contentType("application/json"), `{"a":1}`},
		{"nothing", http.Header{}, ""},
		{"no id", without("Ce-Id"), "x"},
		{"no source", without("Ce-Source"), "x"},
		{"no type", without("Ce-Type"), "x"},
		{"no version", without("Ce-Specversion"), "x"},
		{"a time that is none", binary("1", "Ce-Time", "yesterday"), "x"},
		{"a schema that is no URI", binary("1", "Ce-Dataschema", "::"), "x"},
		{"an extension that has no such name", binary("1", "Ce-My-Extension", "x"), "x"},
		{"structured, not JSON", contentType(structuredMode), "<event/>"},
		{"structured, no id", contentType(structuredMode), `{"specversion":"1.0","source":"s","type":"t"}`},
		{"a batch with a bad event", contentType(batchMode), `[{"specversion":"1.0","id":"1","source":"s","type":"t"},{}]`},
	}
	for _, test := range tests {
		if a := s.do(http.MethodPost, "/ns/b", test.header, []byte(test.body)); a.code != http.StatusBadRequest || a.body == "" {
			t.Errorf("%s: answer %d %q, want 400 and why", test.name, a.code, a.body)
		}
	}
	if n := s.published("b"); n != 0 {
		t.Errorf("%d events were published, want none", n)
	}
}

func TestOnlyPostIsAccepted(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.apply(broker("b"))
	for _, method := range []string{
		http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
	} {
		a := s.do(method, "/ns/b", binary("1"), nil)
		if a.code != http.StatusMethodNotAllowed || a.header.Get("Allow") != http.MethodPost {
			t.Errorf("%s: answer %d, Allow %q, want 405 and POST", method, a.code, a.header.Get("Allow"))
		}
	}
}

func TestAnUnknownBrokerIsNotFound(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.apply(broker("b"))
	for _, path := range []string{"/", "/ns", "/ns/other", "/other/b", "/ns/b/more"} {
		if a := s.do(http.MethodPost, path, binary("1"), nil); a.code != http.StatusNotFound {
			t.Errorf("%s: answer %d, want 404", path, a.code)
		}
	}
}

func TestWhatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.apply(broker("b"))
	body := bytes.Repeat([]byte("x"), int(roomy.MaxBodyBytes)+1)
	if a := s.do(http.MethodPost, "/ns/b", binary("1"), body); a.code != http.StatusRequestEntityTooLarge {
		t.Errorf("answer %d, want 413", a.code)
	}
	s.send("b", binary("1"), body[1:]) // to the byte
}

func TestAcceptedIsAnsweredOnlyOncePubSubHasConfirmed(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.apply(broker("b"))
	s.pubsub.Faults().Set(pubsub.FaultPlan{RefusePublish: 1})
	answers := make(chan answer, 1)
	ctx := t.Context()
	go func() {
		a, err := request(ctx, http.MethodPost, s.url+"/ns/b", binary("1"), nil)
		if err != nil {
			a.body = err.Error()
		}
		answers <- a
	}()
	s.eventually("the request waits", func() bool { return s.gauge("robofleet_broker_ingress_in_flight_requests") == 1 })
	select {
	case a := <-answers:
		t.Fatalf("answered %d while Pub/Sub refuses", a.code)
	default:
	}
	s.pubsub.Faults().Set(pubsub.FaultPlan{})
	if a := <-answers; a.code != http.StatusAccepted || s.published("b") != 1 {
		t.Errorf("answer %d %s with %d events published, want 202 with 1", a.code, a.body, s.published("b"))
	}
}

func TestWhatPubSubDoesNotTakeIsNotAccepted(t *testing.T) {
	t.Parallel()
	s := startWith(t, ingress.Publishing{Delay: time.Millisecond, Timeout: 100 * time.Millisecond}, nil)
	s.apply(broker("b"))
	s.pubsub.Faults().Set(pubsub.FaultPlan{RefusePublish: 1})
	a := s.do(http.MethodPost, "/ns/b", binary("1"), nil)
	if a.code != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
		t.Errorf("answer %d, Retry-After %q, want 503 and one", a.code, a.header.Get("Retry-After"))
	}
	if n := s.published("b"); n != 0 {
		t.Errorf("%d events were published, want none", n)
	}
}

func TestAnEventThatNoTriggerWantsIsAccepted(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.apply(broker("b"))
	s.send("b", binary("1"), nil)
}

func TestTheIngressCountsWhatItAcceptsAndRefuses(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.apply(broker("b"))
	s.send("b", binary("1"), nil)
	s.send("b", binary("2"), nil)
	s.do(http.MethodPost, "/ns/b", http.Header{}, nil)
	counts := map[string]float64{}
	families, err := s.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "robofleet_broker_ingress_requests_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			key, err := json.Marshal(labels)
			if err != nil {
				t.Fatal(err)
			}
			counts[string(key)] = metric.GetCounter().GetValue()
		}
	}
	want := map[string]float64{`{"broker":"ns/b","code":"202"}`: 2, `{"broker":"ns/b","code":"400"}`: 1}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// gauge reads a metric of the ingress that has no labels.
func (s *system) gauge(name string) float64 {
	s.Helper()
	families, err := s.metrics.Gather()
	if err != nil {
		s.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	s.Fatalf("no metric %s", name)
	return 0
}
