package coldarchive_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/telemetry"
)

var published = time.Date(2026, 11, 23, 11, 19, 4, 0, time.UTC)

func quick() batch.Config {
	cfg := coldarchive.DefaultConfig()
	cfg.MaxWait = time.Millisecond
	return cfg
}

func newArchiver(t testing.TB, cfg batch.Config, store coldarchive.Store) *coldarchive.Archiver {
	t.Helper()
	a, err := coldarchive.New(cfg, store, "pod-1", prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func delivered(ctx context.Context) context.Context {
	return function.WithDelivery(ctx, &function.Delivery{MessageID: "m-1", PublishTime: published})
}

func newEvent(eventType, data string) cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetID("e-1")
	e.SetType(eventType)
	e.SetSource("//robofleet.dev/functions/validate")
	e.SetDataContentType("application/json")
	e.DataEncoded = []byte(data)
	return e
}

// at is an event of a batch with that time; "" is none.
func at(id, t string) string {
	if t != "" {
		t = fmt.Sprintf(`"time":%q,`, t)
	}
	return fmt.Sprintf(`{"specversion":"1.0","id":%q,"type":"dev.robofleet.telemetry.v1","source":"//s",%s"data":{"n":1.50}}`, id, t)
}

func handle(t *testing.T, a *coldarchive.Archiver, e cloudevents.Event) {
	t.Helper()
	if err := a.Handle(delivered(t.Context()), e); err != nil {
		t.Fatalf("Handle: %v", err)
	}
}

// lines returns the events of each object, by the folder that the object is in. It fails on names that are not laid out as
// documented, and on lines that are no CloudEvents.
func lines(t *testing.T, m *coldarchive.Memory) map[string][]string {
	t.Helper()
	layout := regexp.MustCompile(`^(telemetry|rejected|command|dead-letter|other)/dt=\d{4}-\d\d-\d\d/hour=\d\d/pod-1-\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{16}\.ndjson\.gz$`)
	got := make(map[string][]string)
	for name, content := range m.Objects() {
		if !layout.MatchString(name) {
			t.Errorf("name %q is not of the layout %v", name, layout)
		}
		kind, hour, ok := coldarchive.ParseName(name)
		if !ok {
			t.Errorf("ParseName(%q) is not ok", name)
		}
		folder := coldarchive.Prefix(kind, hour)
		err := coldarchive.Lines(bytes.NewReader(content), func(line []byte) error {
			var e cloudevents.Event
			if err := errors.Join(json.Unmarshal(line, &e), e.Validate()); err != nil {
				t.Errorf("%s: line is no CloudEvent: %v\n%s", name, err, line)
			}
			got[folder] = append(got[folder], string(line))
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		slices.Sort(got[folder])
	}
	return got
}

func TestEventsAreFiledByKindAndHour(t *testing.T) {
	m := &coldarchive.Memory{}
	a := newArchiver(t, quick(), m)
	first, late, zone, noTime := at("1", "2026-11-23T11:59:59.999Z"), at("2", "2026-10-24T00:00:00Z"), at("3", "2026-11-23T14:00:00+02:00"), at("4", "")
	handle(t, a, newEvent(event.TypeTelemetryValidated, "["+strings.Join([]string{first, late, zone, noTime}, ",")+"]"))
	handle(t, a, newEvent(event.TypeTelemetryRejected, "["+at("5", "2026-11-23T11:19:05Z")+"]"))
	command := newEvent(event.TypeCommandRequested, `{"do":"dock"}`)
	command.SetTime(time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC))
	handle(t, a, command)
	handle(t, a, newEvent("com.example.unknown", `{}`))
	want := map[string][]string{
		"telemetry/dt=2026-11-23/hour=11/": {first, noTime},
		"telemetry/dt=2026-10-24/hour=00/": {late},
		"telemetry/dt=2026-11-23/hour=12/": {zone},
		"rejected/dt=2026-11-23/hour=11/":  {at("5", "2026-11-23T11:19:05Z")},
		"command/dt=2026-11-23/hour=10/":   {structured(t, command)},
		"other/dt=2026-11-23/hour=11/":     {structured(t, newEvent("com.example.unknown", `{}`))},
	}
	if diff := cmp.Diff(want, lines(t, m)); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

func structured(t *testing.T, e cloudevents.Event) string {
	t.Helper()
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestObjectIsNamedAfterItsEarliestEvent(t *testing.T) {
	m := &coldarchive.Memory{}
	handle(t, newArchiver(t, quick(), m), newEvent(event.TypeTelemetryValidated,
		"["+at("1", "2026-11-23T11:19:03Z")+","+at("2", "2026-11-23T11:05:00.250Z")+","+at("3", "2026-11-23T11:30:00Z")+"]"))
	for name := range m.Objects() {
		if !strings.Contains(name, "/pod-1-20261123T110500.250Z-") {
			t.Errorf("name %q, want the time of the earliest event in it", name)
		}
	}
}

func TestEventsAreOnOneLineEach(t *testing.T) {
	m := &coldarchive.Memory{}
	event1 := at("1", "2026-11-23T11:19:03Z")
	spread := strings.ReplaceAll(strings.Replace(event1, "{", "{\r\n  ", 1), `,"`, ",\n\t\"")
	handle(t, newArchiver(t, quick(), m), newEvent(event.TypeTelemetryValidated, "[\n"+spread+"\n]"))
	if diff := cmp.Diff(map[string][]string{"telemetry/dt=2026-11-23/hour=11/": {event1}}, lines(t, m)); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

func TestWhatIsNoBatchIsKeptAsItCame(t *testing.T) {
	for _, tt := range []struct {
		name        string
		contentType string
		data        string
	}{
		{"not JSON", "application/json", `{"id":`},
		{"an array that breaks off", "application/json", "[" + at("1", "2026-11-23T11:19:03Z") + ","},
		{"an element that is no event", "application/json", `[{"id":"1"}]`},
		{"nothing", "application/json", ""},
		{"bytes", "application/octet-stream", "\x00\xff\n"},
		{"text", "text/plain", "line\nline"},
		{"no content type", "", "plain"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &coldarchive.Memory{}
			e := newEvent(event.TypeTelemetryValidated, tt.data)
			if e.SetDataContentType(tt.contentType); tt.contentType == "" {
				e.Context.(*cloudevents.EventContextV1).DataContentType = nil
			}
			handle(t, newArchiver(t, quick(), m), e)
			got := lines(t, m)["telemetry/dt=2026-11-23/hour=11/"]
			if len(got) != 1 {
				t.Fatalf("%d lines, want 1", len(got))
			}
			var kept cloudevents.Event
			if err := json.Unmarshal([]byte(got[0]), &kept); err != nil {
				t.Fatal(err)
			}
			if kept.ID() != "e-1" || string(kept.Data()) != tt.data {
				t.Errorf("kept %q with data %q, want e-1 with %q", kept.ID(), kept.Data(), tt.data)
			}
		})
	}
}

func TestTimeThatNoNameCanShowIsNotUsed(t *testing.T) {
	m := &coldarchive.Memory{}
	handle(t, newArchiver(t, quick(), m), newEvent(event.TypeTelemetryValidated, "["+at("1", "9999-12-31T23:59:59-12:00")+"]"))
	if got := lines(t, m)["telemetry/dt=2026-11-23/hour=11/"]; len(got) != 1 {
		t.Errorf("archive %v, want the event in the hour of its publication", lines(t, m))
	}
}

func TestDeadLettersAreKeptWithBodyAndAttributes(t *testing.T) {
	m := &coldarchive.Memory{}
	a := newArchiver(t, quick(), m)
	limits := function.Limits{MaxBodyBytes: 10 << 20, MaxInFlight: 10, MaxInFlightBytes: 64 << 20}
	h, err := function.NewHandler(a.Handle, limits, nil, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	defer server.Close()
	body := "\xff\x00 not for anyone\n"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+coldarchive.DeadLetterPath, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	attributes := map[string]string{
		"ce-specversion": "1.0", "ce-id": "batch-9", "ce-type": event.TypeTelemetryValidated, "ce-source": "//robofleet.dev/functions/validate",
		"content-type": "application/json", "cloudpubsubdeadlettersourcesubscription": "edge-validate",
	}
	for name, value := range attributes {
		req.Header.Set(name, value)
	}
	req.Header.Set("X-Goog-Pubsub-Message-Id", "m-1")
	req.Header.Set("X-Goog-Pubsub-Publish-Time", published.Format(time.RFC3339))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Fatalf("answer %s, want 204", res.Status)
	}
	got := lines(t, m)["dead-letter/dt=2026-11-23/hour=11/"]
	if len(got) != 1 {
		t.Fatalf("archive %v, want one dead letter", lines(t, m))
	}
	var e cloudevents.Event
	var kept telemetry.Rejection
	if err := json.Unmarshal([]byte(got[0]), &e); err != nil {
		t.Fatal(err)
	}
	if err := e.DataAs(&kept); err != nil {
		t.Fatal(err)
	}
	want := telemetry.Rejection{Reason: telemetry.ReasonUndeliverable, Message: kept.Message, Body: []byte(body), Attributes: attributes}
	if diff := cmp.Diff(want, kept); diff != "" {
		t.Errorf("dead letter (-want +got):\n%s", diff)
	}
	if e.ID() != "batch-9" || e.Type() != event.TypeDeadLetter {
		t.Errorf("event %q of type %s, want batch-9 of type %s", e.ID(), e.Type(), event.TypeDeadLetter)
	}
}

func TestObjectsAreReadableByGzip(t *testing.T) {
	gzip, err := exec.LookPath("gzip")
	if err != nil {
		t.Skip("gzip is not installed; the other tests read by compress/gzip's twin")
	}
	m := &coldarchive.Memory{}
	first, second := at("1", "2026-11-23T11:19:03Z"), at("2", "2026-11-23T11:19:04Z")
	handle(t, newArchiver(t, quick(), m), newEvent(event.TypeTelemetryValidated, "["+first+","+second+"]"))
	for _, content := range m.Objects() {
		zcat := exec.CommandContext(t.Context(), gzip, "-dc")
		zcat.Stdin = bytes.NewReader(content)
		out, err := zcat.Output()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first+"\n"+second+"\n", string(out)); diff != "" {
			t.Errorf("gzip -dc (-want +got):\n%s", diff)
		}
	}
}

// store is a Store that answers as a test says.
type store struct {
	coldarchive.Memory
	answer func(name string) error
}

func (s *store) Create(ctx context.Context, name string, content []byte) error {
	if err := s.answer(name); err != nil {
		return err
	}
	return s.Memory.Create(ctx, name, content)
}

func TestAckOnlyAfterAllObjectsExist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := &store{answer: func(name string) error {
			if strings.HasPrefix(name, "telemetry/dt=2026-10-24/") {
				<-release
			}
			return nil
		}}
		a := newArchiver(t, coldarchive.DefaultConfig(), s)
		done := make(chan error, 2)
		for _, events := range []string{at("1", "2026-11-23T11:19:03Z"), at("2", "2026-11-23T11:19:03Z") + "," + at("3", "2026-10-24T00:00:00Z")} {
			go func() {
				done <- a.Handle(delivered(t.Context()), newEvent(event.TypeTelemetryValidated, "["+events+"]"))
			}()
		}
		time.Sleep(time.Minute / 2) // of the bubble's clock: longer than any wait for company
		synctest.Wait()
		if n := len(s.Objects()); n != 1 || len(done) > 0 {
			t.Errorf("%d events acknowledged with %d of 2 objects written, want none with 1", len(done), n)
		}
		close(release)
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("Handle: %v", err)
			}
		}
	})
}

func TestOneObjectThatFailsNacksAllThatSharedItsBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := errors.New("out of reach")
		fail := true
		s := &store{answer: func(name string) error {
			if fail && strings.HasPrefix(name, "telemetry/dt=2026-10-24/") {
				return out
			}
			return nil
		}}
		a := newArchiver(t, coldarchive.DefaultConfig(), s)
		all := func() (errs []error) {
			done := make(chan error, 2)
			for _, e := range []string{at("1", "2026-11-23T11:19:03Z"), at("2", "2026-10-24T00:00:00Z")} {
				go func() { done <- a.Handle(delivered(t.Context()), newEvent(event.TypeTelemetryValidated, "["+e+"]")) }()
			}
			return []error{<-done, <-done}
		}
		for _, err := range all() {
			if !errors.Is(err, out) || function.KindOf(err) != function.Transient {
				t.Errorf("Handle = %v of kind %v, want %v of kind Transient", err, function.KindOf(err), out)
			}
		}
		fail = false
		for _, err := range all() {
			if err != nil {
				t.Errorf("Handle of the second delivery: %v", err)
			}
		}
		// What was written at the first attempt has the same content, so the same name.
		if n := len(s.Objects()); n != 2 {
			t.Errorf("%d objects, want 2", n)
		}
	})
}

func TestFullBatcherIsOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := coldarchive.DefaultConfig()
		cfg.MaxPending = 1
		a := newArchiver(t, cfg, &coldarchive.Memory{})
		first := make(chan error, 1)
		go func() { first <- a.Handle(delivered(t.Context()), newEvent(event.TypeCommandRequested, `{}`)) }()
		synctest.Wait()
		err := a.Handle(delivered(t.Context()), newEvent(event.TypeCommandRequested, `{}`))
		if function.KindOf(err) != function.Overloaded {
			t.Errorf("Handle over the bound = %v, want an error of kind Overloaded", err)
		}
		if err := <-first; err != nil {
			t.Errorf("Handle of what was taken on = %v, want nil", err)
		}
	})
}

func TestEventThatWasCutOffIsNotAcknowledged(t *testing.T) {
	m := &coldarchive.Memory{}
	ctx := function.WithDelivery(t.Context(), &function.Delivery{MessageID: "m", Truncated: true, PublishTime: published})
	if err := newArchiver(t, quick(), m).Handle(ctx, newEvent(event.TypeTelemetryValidated, "[]")); err == nil {
		t.Error("Handle = nil: what was cut off is lost")
	}
}

func TestEmptyBatchIsAcknowledgedWithoutAnObject(t *testing.T) {
	m := &coldarchive.Memory{}
	handle(t, newArchiver(t, quick(), m), newEvent(event.TypeTelemetryValidated, "[]"))
	if n := len(m.Objects()); n > 0 {
		t.Errorf("%d objects, want none", n)
	}
}

// FuzzHandle holds that whatever arrives is kept, as lines of JSON.
func FuzzHandle(f *testing.F) {
	f.Add(event.TypeTelemetryValidated, "application/json", []byte("["+at("1", "2026-11-23T11:19:03Z")+"]"))
	f.Add(event.TypeTelemetryRejected, "application/json", []byte(`[{"id":`))
	f.Add(event.TypeCommandRequested, "text/plain", []byte("\xff\n"))
	f.Add("x", "", []byte{})
	f.Add(event.TypeTelemetryRejected, "application/json", []byte(`[{"id":"0","type":"0"}]`))
	f.Fuzz(func(t *testing.T, eventType, contentType string, data []byte) {
		e := newEvent(eventType, string(data))
		if e.SetDataContentType(contentType); e.Validate() != nil {
			t.Skip("no CloudEvent: the HTTP handler does not pass it on")
		}
		cfg := quick()
		cfg.MaxItems = 1 // nothing waits
		m := &coldarchive.Memory{}
		handle(t, newArchiver(t, cfg, m), e)
		n := 0
		for name, content := range m.Objects() {
			err := coldarchive.Lines(bytes.NewReader(content), func(line []byte) error {
				n++
				if !json.Valid(line) {
					t.Errorf("%s: line %q is not JSON", name, line)
				}
				return nil
			})
			if _, _, ok := coldarchive.ParseName(name); err != nil || !ok {
				t.Errorf("%s: %v, name ok: %t", name, err, ok)
			}
		}
		want := 0
		if eventType != event.TypeTelemetryValidated && eventType != event.TypeTelemetryRejected ||
			event.Split(data, func(event.Element) error { want++; return nil }) != nil {
			want = 1 // the whole
		}
		if n != want {
			t.Errorf("%d lines, want %d", n, want)
		}
	})
}
