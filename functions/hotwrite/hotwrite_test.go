package hotwrite_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/functions/hotwrite/warehousetest"
	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/telemetry"
)

func TestMemoryConforms(t *testing.T) {
	warehousetest.Run(t, func(t *testing.T) (hotwrite.Warehouse, warehousetest.Reader) {
		m := &hotwrite.Memory{Refuse: refuse}
		return m, func(context.Context) ([]warehousetest.Row, error) { return decodeAll(m.Rows()) }
	})
}

func refuse(row []byte) string {
	if _, err := warehousetest.Decode(row); err != nil {
		return err.Error()
	}
	return ""
}

func decodeAll(raw [][]byte) ([]warehousetest.Row, error) {
	rows := make([]warehousetest.Row, len(raw))
	for i, row := range raw {
		var err error
		if rows[i], err = warehousetest.Decode(row); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// recorder is a Sink that keeps what it is sent.
type recorder struct {
	err error

	mu     sync.Mutex
	events []cloudevents.Event // those in the batches
}

func (r *recorder) Emit(_ context.Context, eventType string, data []byte) error {
	if r.err != nil {
		return r.err
	}
	var events []cloudevents.Event
	if err := json.Unmarshal(data, &events); err != nil {
		return fmt.Errorf("batch of %s: %w", eventType, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, events...)
	return nil
}

type rejected struct {
	ID, Body string
	Reason   telemetry.Reason
}

func (r *recorder) rejections(t *testing.T) []rejected {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []rejected
	for _, e := range r.events {
		var data telemetry.Rejection
		if err := e.DataAs(&data); err != nil {
			t.Fatalf("rejection %q: %v", e.ID(), err)
		}
		if e.Type() != event.TypeTelemetryRejected || data.Message == "" {
			t.Errorf("rejection %q is a %s with message %q", e.ID(), e.Type(), data.Message)
		}
		all = append(all, rejected{e.ID(), string(data.Body), data.Reason})
	}
	return all
}

func quick() batch.Config {
	cfg := hotwrite.DefaultConfig()
	cfg.MaxWait = time.Millisecond
	return cfg
}

func newWriter(t testing.TB, cfg batch.Config, w hotwrite.Warehouse, sink *recorder) *hotwrite.Writer {
	t.Helper()
	h, err := hotwrite.New(cfg, w, sink, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// one is an event of a batch as validate makes it.
func one(robot string, seq int64) string {
	measured := time.Date(2026, 11, 23, 11, 19, 3, 0, time.UTC)
	data := fmt.Sprintf(`{"robot_id":%q,"boot_id":"b1","seq":%d,"time":"2026-11-23T11:19:03Z",`+
		`"position":{"lat_deg":52.5,"lon_deg":13.4,"heading_deg":90,"speed_mps":1.5,"accuracy_m":2},`+
		`"battery":{"percent":81.5,"charging":false},"status":"delivering"}`, robot, seq)
	return string(event.AppendReading(nil, event.Reading{
		RobotID: robot, BootID: "b1", Seq: seq, Time: measured, Published: measured.Add(time.Second), Data: []byte(data),
	}))
}

func batchOf(events ...string) cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetID("batch-1")
	e.SetType(event.TypeTelemetryValidated)
	e.SetSource("//robofleet.dev/functions/validate")
	e.DataEncoded = []byte("[" + strings.Join(events, ",") + "]")
	return e
}

func ids(t *testing.T, m *hotwrite.Memory) []string {
	t.Helper()
	rows, err := decodeAll(m.Rows())
	if err != nil {
		t.Fatalf("a row that BigQuery would refuse: %v", err)
	}
	var all []string
	for _, row := range rows {
		all = append(all, row.EventID)
	}
	return all
}

func TestReadingsBecomeRows(t *testing.T) {
	m, sink := &hotwrite.Memory{}, &recorder{}
	h := newWriter(t, quick(), m, sink)
	if err := h.Handle(t.Context(), batchOf(one("R-1", 1), one("R-1", 2), one("R-2", 1))); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"R-1/b1/1", "R-1/b1/2", "R-2/b1/1"}, ids(t, m)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	if got := sink.rejections(t); got != nil {
		t.Errorf("refused: %v, want nothing", got)
	}
}

func TestRowsNeverShareMemory(t *testing.T) {
	m := &hotwrite.Memory{}
	h := newWriter(t, quick(), m, &recorder{})
	var events []string
	for i := range int64(1000) { // of many sizes, so that the rows of a batch need more than one allocation
		e := strings.Replace(one("R-1", i+1), `"status"`, fmt.Sprintf(`"x":%q,"status"`, strings.Repeat("é", int(i%97)*int(i%13))), 1)
		events = append(events, e)
	}
	if err := h.Handle(t.Context(), batchOf(events...)); err != nil {
		t.Fatal(err)
	}
	rows, err := decodeAll(m.Rows())
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range rows {
		want := fmt.Sprintf(`{"x":%q}`, strings.Repeat("é", i%97*(i%13)))
		if row.Seq != int64(i+1) || row.Extra.JSONVal != want {
			t.Fatalf("row %d: seq %d, extra %q, want %q", i, row.Seq, row.Extra, want)
		}
	}
}

func TestRefusedRowIsQuarantinedAndItsNeighboursAreWritten(t *testing.T) {
	m := &hotwrite.Memory{Refuse: func(row []byte) string {
		if bytes.Contains(row, []byte("R-BAD")) {
			return "FIELDS_ERROR: no"
		}
		return ""
	}}
	sink := &recorder{}
	h := newWriter(t, quick(), m, sink)
	bad1, bad2 := one("R-BAD", 1), one("R-BAD", 2)
	if err := h.Handle(t.Context(), batchOf(one("R-1", 1), bad1, one("R-1", 2), bad2)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"R-1/b1/1", "R-1/b1/2"}, ids(t, m)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	want := []rejected{{"R-BAD/b1/1", bad1, telemetry.ReasonUnstorable}, {"R-BAD/b1/2", bad2, telemetry.ReasonUnstorable}}
	if diff := cmp.Diff(want, sink.rejections(t)); diff != "" {
		t.Errorf("quarantined (-want +got):\n%s", diff)
	}
}

func TestUndecodableEventIsQuarantinedAndItsNeighboursAreWritten(t *testing.T) {
	m, sink := &hotwrite.Memory{}, &recorder{}
	h := newWriter(t, quick(), m, sink)
	noReading := `{"specversion":"1.0","id":"x","type":"dev.robofleet.telemetry.v1","source":"//s","data":{"robot_id":1}}`
	noData := `{"specversion":"1.0","id":"y","type":"dev.robofleet.telemetry.v1","source":"//s"}`
	if err := h.Handle(t.Context(), batchOf(noReading, one("R-1", 1), noData)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"R-1/b1/1"}, ids(t, m)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	want := []rejected{{"x", noReading, telemetry.ReasonUnstorable}, {"y", noData, telemetry.ReasonUnstorable}}
	if diff := cmp.Diff(want, sink.rejections(t)); diff != "" {
		t.Errorf("quarantined (-want +got):\n%s", diff)
	}
}

func TestWhatIsNoBatchIsQuarantinedWhole(t *testing.T) {
	for name, data := range map[string]string{
		"not JSON": "\x00", "not an array": one("R-1", 1), "breaks off": "[" + one("R-1", 1) + `,{"id":`, "an element without id": `[{"type":"t"}]`,
	} {
		t.Run(name, func(t *testing.T) {
			m, sink := &hotwrite.Memory{}, &recorder{}
			e := batchOf()
			e.DataEncoded = []byte(data)
			if err := newWriter(t, quick(), m, sink).Handle(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]rejected{{"batch-1", data, telemetry.ReasonUnstorable}}, sink.rejections(t)); diff != "" {
				t.Errorf("quarantined (-want +got):\n%s", diff)
			}
			if got := ids(t, m); got != nil {
				t.Errorf("rows: %v, want none, as the whole is quarantined", got)
			}
		})
	}
}

func TestNothingIsAcknowledgedThatIsNotStored(t *testing.T) {
	out := errors.New("out of reach")
	permanent := function.WithKind(function.Permanent, out)
	bad := `{"specversion":"1.0","id":"x","type":"dev.robofleet.telemetry.v1","source":"//s","data":{}}`
	for _, tt := range []struct {
		name      string
		warehouse hotwrite.Warehouse
		sink      *recorder
		event     cloudevents.Event
	}{
		{"warehouse fails", failing{out}, &recorder{}, batchOf(one("R-1", 1))},
		{"warehouse names rows that it was not given", failing{&hotwrite.RowsError{Rows: map[int]string{9: "no"}}}, &recorder{}, batchOf(one("R-1", 1))},
		{"warehouse names no rows", failing{&hotwrite.RowsError{}}, &recorder{}, batchOf(one("R-1", 1))},
		{"quarantine of an event fails", &hotwrite.Memory{}, &recorder{err: permanent}, batchOf(bad)},
		{"quarantine of a row fails", &hotwrite.Memory{Refuse: func([]byte) string { return "no" }}, &recorder{err: permanent}, batchOf(one("R-1", 1))},
		{"quarantine of a batch fails", &hotwrite.Memory{}, &recorder{err: permanent}, batchOf("1")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := newWriter(t, quick(), tt.warehouse, tt.sink).Handle(t.Context(), tt.event)
			if err == nil || function.KindOf(err) != function.Transient {
				t.Errorf("Handle = %v of kind %v, want an error of kind Transient", err, function.KindOf(err))
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Append(context.Context, [][]byte) error { return f.err }

func TestEventOfAnotherTypeIsPermanentlyWrong(t *testing.T) {
	e := batchOf(one("R-1", 1))
	e.SetType(event.TypeTelemetryRejected)
	if err := newWriter(t, quick(), &hotwrite.Memory{}, &recorder{}).Handle(t.Context(), e); function.KindOf(err) != function.Permanent {
		t.Errorf("Handle = %v, want an error of kind Permanent", err)
	}
}

func TestEventThatWasCutOffIsNotAcknowledged(t *testing.T) {
	m, sink := &hotwrite.Memory{}, &recorder{}
	ctx := function.WithDelivery(t.Context(), &function.Delivery{MessageID: "m", Truncated: true, PublishTime: time.Now()})
	if err := newWriter(t, quick(), m, sink).Handle(ctx, batchOf(one("R-1", 1))); err == nil {
		t.Error("Handle = nil: the readings that were cut off are lost")
	}
}

func TestConcurrentEventsShareAnAppendAndWaitForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &gated{release: make(chan struct{})}
		h := newWriter(t, hotwrite.DefaultConfig(), w, &recorder{})
		done := make(chan error, 10)
		for i := range int64(10) {
			go func() { done <- h.Handle(t.Context(), batchOf(one("R-1", i+1))) }()
		}
		time.Sleep(time.Second) // of the bubble's clock: longer than any wait for company
		synctest.Wait()
		if len(done) > 0 {
			t.Errorf("%d events acknowledged before their rows were written", len(done))
		}
		close(w.release)
		for range 10 {
			if err := <-done; err != nil {
				t.Errorf("Handle: %v", err)
			}
		}
		if diff := cmp.Diff([]int{10}, w.appends); diff != "" {
			t.Errorf("rows of each append (-want +got):\n%s", diff)
		}
	})
}

// gated is a Warehouse that answers once it is released.
type gated struct {
	release chan struct{}
	appends []int
}

func (g *gated) Append(_ context.Context, rows [][]byte) error {
	g.appends = append(g.appends, len(rows))
	<-g.release
	return nil
}

func TestFullBatcherIsOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := hotwrite.DefaultConfig()
		cfg.MaxPending = 1
		w := &gated{release: make(chan struct{})}
		h := newWriter(t, cfg, w, &recorder{})
		first := make(chan error, 1)
		go func() { first <- h.Handle(t.Context(), batchOf(one("R-1", 1))) }()
		synctest.Wait()
		if err := h.Handle(t.Context(), batchOf(one("R-1", 2))); function.KindOf(err) != function.Overloaded {
			t.Errorf("Handle over the bound = %v, want an error of kind Overloaded", err)
		}
		close(w.release)
		if err := <-first; err != nil {
			t.Errorf("Handle of what was taken on = %v, want nil", err)
		}
	})
}

// FuzzHandle holds that whatever arrives becomes rows that BigQuery takes, or is quarantined.
func FuzzHandle(f *testing.F) {
	f.Add([]byte("[" + one("R-1", 1) + "," + one("R-2", 2) + "]"))
	f.Add([]byte("[]"))
	f.Add([]byte(`[{"id":"\u00e9","type":"t","data":` + strings.TrimSuffix(strings.SplitN(one("R-1", 1), `"data":`, 2)[1], "}") + `}]`))
	f.Add([]byte(`[{"id":"x","type":"t"},`))
	f.Add([]byte(`[{"id":"\t","type":"0"}]`))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg := quick()
		cfg.MaxItems = 1 // nothing waits
		m, sink := &hotwrite.Memory{Refuse: refuse}, &recorder{}
		e := batchOf()
		e.DataEncoded = data
		if err := newWriter(t, cfg, m, sink).Handle(t.Context(), e); err != nil {
			t.Fatalf("Handle: %v", err)
		}
		n := 0
		if err := event.Split(data, func(event.Element) error { n++; return nil }); err != nil {
			n = 1 // the whole
		}
		if got := len(m.Rows()) + len(sink.rejections(t)); got != n {
			t.Errorf("%d rows and rejections, want %d", got, n)
		}
	})
}
