package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/telemetry"
)

var (
	measured  = time.Date(2026, 11, 1, 12, 0, 0, 120_000_000, time.UTC)
	published = measured.Add(340 * time.Millisecond)
)

func reading(seq int64) event.Reading {
	return event.Reading{
		RobotID: "R-000017", BootID: "b1", Seq: seq, Time: measured, Published: published,
		Data: []byte(`{"robot_id":"R-000017","seq":` + fmt.Sprint(seq) + `}`),
	}
}

func batchOf(elements ...[]byte) []byte {
	return slices.Concat([]byte("["), bytes.Join(elements, []byte(",")), []byte("]"))
}

// collect returns copies of what Split passes on.
func collect(batch []byte) ([]event.Element, error) {
	var all []event.Element
	err := event.Split(batch, func(e event.Element) error {
		e.Raw, e.ID, e.Type, e.Data = bytes.Clone(e.Raw), bytes.Clone(e.ID), bytes.Clone(e.Type), bytes.Clone(e.Data)
		all = append(all, e)
		return nil
	})
	return all, err
}

func TestAppendReadingMakesACloudEvent(t *testing.T) {
	r := reading(7)
	r.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	line := event.AppendReading(nil, r)
	if bytes.ContainsRune(line, '\n') {
		t.Errorf("not one line: %q", line)
	}
	var e cloudevents.Event
	if err := e.UnmarshalJSON(line); err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	want := map[string]string{
		"ce-specversion": "1.0", "ce-type": event.TypeTelemetry, "ce-id": event.ReadingID("R-000017", "b1", 7),
		"ce-source": event.RobotSource("R-000017"), "ce-time": "2026-11-01T12:00:00.12Z", "content-type": "application/json",
		"ce-partitionkey": "R-000017", "ce-publishtime": "2026-11-01T12:00:00.46Z", "ce-traceparent": r.TraceParent,
	}
	if diff := cmp.Diff(want, event.Attributes(e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !bytes.Equal(e.Data(), r.Data) {
		t.Errorf("data: got %s, want %s", e.Data(), r.Data)
	}
}

func TestSplitGivesBackWhatAppendReadingWrote(t *testing.T) {
	var lines [][]byte
	var want []event.Element
	for seq := range int64(3) {
		line := event.AppendReading(nil, reading(seq))
		lines = append(lines, line)
		want = append(want, event.Element{
			Raw: line, ID: []byte(event.ReadingID("R-000017", "b1", seq)), Type: []byte(event.TypeTelemetry),
			Time: measured, Published: published, Data: reading(seq).Data,
		})
	}
	got, err := collect(batchOf(lines...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAppendRejectedKeepsTheOriginal(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		want := event.Rejected{
			Type: event.TypeTelemetryRejected, ID: randomText(r), Source: "//robofleet.dev/robots/R-1", Time: measured, Published: published,
			Rejection: telemetry.Rejection{
				Reason: telemetry.ReasonMalformed, Message: randomText(r), Body: []byte(randomText(r) + "\x00\xff\n"),
				Truncated: true, Size: 1 << 30,
				Attributes: map[string]string{"ce-id": randomText(r), randomText(r): "\n"},
			},
		}
		line, err := event.AppendRejected([]byte("before"), want)
		if err != nil {
			t.Fatal(err)
		}
		line, found := bytes.CutPrefix(line, []byte("before"))
		if !found || bytes.ContainsRune(line, '\n') {
			t.Fatalf("not appended on one line: %q", line)
		}
		var e cloudevents.Event
		if err := e.UnmarshalJSON(line); err != nil {
			t.Fatal(err)
		}
		if err := e.Validate(); err != nil {
			t.Error(err)
		}
		elements, err := collect(batchOf(line))
		if err != nil {
			t.Fatal(err)
		}
		el := elements[0]
		got := event.Rejected{Type: string(el.Type), ID: string(el.ID), Source: e.Source(), Time: el.Time, Published: el.Published}
		if err := json.Unmarshal(el.Data, &got.Rejection); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if e.Extensions()["reason"] != string(telemetry.ReasonMalformed) {
			t.Errorf("extension reason: got %v", e.Extensions()["reason"])
		}
	}
}

func TestSplitOfForms(t *testing.T) {
	for _, tt := range []struct {
		name  string
		batch string
		want  []string // ids
		fails bool
	}{
		{name: "none", batch: "[]"},
		{name: "none, with space", batch: " \n[ \t\r\n ] \n"},
		{name: "white space", batch: "\t[ \n{ \"id\" : \"1\" ,\r\n \"type\"\t:\"t\" }\n , {\"type\":\"t\",\"id\":\"2\"}\n]\n", want: []string{"1", "2"}},
		{name: "escapes", batch: `[{"\u0069d":"a\u002fb\"\\ü","type":"t"}]`, want: []string{`a/b"\ü`}},
		{name: "data before the rest", batch: `[{"data":{"id":"no","type":[]},"id":"1","type":"t"}]`, want: []string{"1"}},
		{name: "nothing", batch: "", fails: true},
		{name: "null", batch: "null", fails: true},
		{name: "object", batch: `{"id":"1","type":"t"}`, fails: true},
		{name: "not closed", batch: `[{"id":"1","type":"t"}`, want: []string{"1"}, fails: true},
		{name: "cut off", batch: `[{"id":"1","type":"t"},{"id":"2"`, want: []string{"1"}, fails: true},
		{name: "comma at the end", batch: `[{"id":"1","type":"t"},]`, want: []string{"1"}, fails: true},
		{name: "no comma", batch: `[{"id":"1","type":"t"} {"id":"2","type":"t"}]`, want: []string{"1"}, fails: true},
		{name: "two arrays", batch: `[][]`, fails: true},
		{name: "rubbish behind", batch: `[]x`, fails: true},
		{name: "number", batch: `[1]`, fails: true},
		{name: "null element", batch: `[null]`, fails: true},
		{name: "no id", batch: `[{"type":"t"}]`, fails: true},
		{name: "empty id", batch: `[{"id":"","type":"t"}]`, fails: true},
		{name: "no type", batch: `[{"id":"1"}]`, fails: true},
		{name: "id a number", batch: `[{"id":1,"type":"t"}]`, fails: true},
		{name: "time a number", batch: `[{"id":"1","type":"t","time":1}]`, fails: true},
		{name: "time malformed", batch: `[{"id":"1","type":"t","time":"yesterday"}]`, fails: true},
		{name: "publishtime malformed", batch: `[{"id":"1","type":"t","publishtime":""}]`, fails: true},
		{name: "data malformed", batch: `[{"id":"1","type":"t","data":{]}]`, fails: true},
		{name: "string not closed", batch: `[{"id":"1","type":"t`, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			elements, err := collect([]byte(tt.batch))
			if errors.Is(err, event.ErrBatch) != tt.fails || (err == nil) == tt.fails {
				t.Errorf("error: got %v, want ErrBatch: %t", err, tt.fails)
			}
			var got []string
			for _, e := range elements {
				got = append(got, string(e.ID))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSplitEndsWithTheErrorOfItsFunction(t *testing.T) {
	stop := errors.New("stop")
	calls := 0
	err := event.Split([]byte(`[{"id":"1","type":"t"},{"id":"2","type":"t"}]`), func(event.Element) error {
		calls++
		return stop
	})
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("got %v after %d calls, want the function's own error after 1", err, calls)
	}
}

// The stages keep elements until their group commit, so what Split hands out must not change while it goes on. This holds
// as long as jx decodes a string with escapes into memory of its own when it reads from bytes.
func TestElementsStayValid(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var lines [][]byte
	var ids, types []string
	var times []time.Time
	for i := range 500 {
		id, typ := randomText(r), randomText(r)
		at := measured.Add(time.Duration(i) * time.Nanosecond)
		line, err := json.Marshal(map[string]any{
			"id": id, "type": typ, "time": at, "publishtime": at.Add(time.Hour), "data": map[string]string{"id": typ}, "zz": randomText(r),
		})
		if err != nil {
			t.Fatal(err)
		}
		lines, ids, types, times = append(lines, line), append(ids, id), append(types, typ), append(times, at)
	}
	batch := batchOf(lines...)
	before := bytes.Clone(batch)
	var kept []event.Element
	check := func(i int, e event.Element) {
		t.Helper()
		if string(e.ID) != ids[i] || string(e.Type) != types[i] || !e.Time.Equal(times[i]) || !e.Published.Equal(times[i].Add(time.Hour)) {
			t.Fatalf("element %d: got %q %q %s %s", i, e.ID, e.Type, e.Time, e.Published)
		}
		if !bytes.Equal(e.Raw, lines[i]) {
			t.Fatalf("element %d: raw %s", i, e.Raw)
		}
	}
	err := event.Split(batch, func(e event.Element) error {
		if _, err := event.Parse([]byte(`{"id":"\u0041nother","type":"\u0041nother one, quite long"}`)); err != nil {
			return err
		}
		if _, err := collect([]byte(`[{"id":"\n","type":"\t"}]`)); err != nil {
			return err
		}
		kept = append(kept, e)
		for i, e := range kept[max(0, len(kept)-3):] {
			check(max(0, len(kept)-3)+i, e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range kept {
		check(i, e)
	}
	if !bytes.Equal(batch, before) {
		t.Error("Split has changed the batch")
	}
}

func TestParseTakesOneEvent(t *testing.T) {
	e, err := event.Parse(event.AppendReading(nil, reading(1)))
	if err != nil || string(e.ID) != "R-000017/b1/1" {
		t.Errorf("got %q, %v", e.ID, err)
	}
	for _, raw := range []string{"", "[]", "null", `{"id":"1","type":"t"}x`, `{"id":"1","type":"t"} {}`, `{"id":"1"`} {
		if _, err := event.Parse([]byte(raw)); err == nil {
			t.Errorf("%q: no error", raw)
		}
	}
}

// FuzzSplit holds that Split accepts nothing that encoding/json refuses, and that it finds what encoding/json finds.
func FuzzSplit(f *testing.F) {
	f.Add(batchOf(event.AppendReading(nil, reading(1)), event.AppendReading(nil, reading(2))))
	f.Add([]byte(" [ ] "))
	f.Add([]byte(`[{"id":"\ud83e\udd16","type":"\/","time":"2026-11-01T12:00:00+01:00","data":null}]x`))
	f.Add([]byte(`[{"id":"1","type":"t","data":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}]`))
	f.Fuzz(func(t *testing.T, batch []byte) {
		got, err := collect(batch)
		if err != nil {
			if !errors.Is(err, event.ErrBatch) {
				t.Errorf("got %v, want ErrBatch", err)
			}
			return
		}
		var want []json.RawMessage
		if err := json.Unmarshal(batch, &want); err != nil {
			t.Fatalf("encoding/json refuses what Split accepts: %v", err)
		}
		if len(got) != len(want) {
			t.Fatalf("elements: got %d, want %d", len(got), len(want))
		}
		for i, e := range got {
			if !bytes.Equal(e.Raw, bytes.Trim(want[i], " \t\r\n")) {
				t.Errorf("element %d: got %s, want %s", i, e.Raw, want[i])
			}
			if e.Data != nil && !json.Valid(e.Data) {
				t.Errorf("element %d: data %q", i, e.Data)
			}
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	var lines [][]byte
	for seq := range int64(100) {
		lines = append(lines, event.AppendReading(nil, reading(seq)))
	}
	batch := batchOf(lines...)
	b.ReportAllocs()
	b.SetBytes(int64(len(batch)))
	for b.Loop() {
		if err := event.Split(batch, func(event.Element) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
