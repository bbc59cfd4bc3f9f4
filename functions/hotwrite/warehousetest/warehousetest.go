// Package warehousetest is the conformance suite of hotwrite.Warehouse.
package warehousetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/robofleet/robofleet/functions/hotwrite"
)

// Columns are what a Row is loaded from, for a query that a Reader makes.
const Columns = "event_id, seq, time, lat_deg, charging, fault_code, extra"

// Row is a part of a row, one column of each type. BigQuery's client loads it.
type Row struct {
	EventID   string              `bigquery:"event_id"`
	Seq       int64               `bigquery:"seq"`
	Time      time.Time           `bigquery:"time"`
	LatDeg    float64             `bigquery:"lat_deg"`
	Charging  bool                `bigquery:"charging"`
	FaultCode bigquery.NullString `bigquery:"fault_code"`
	Extra     bigquery.NullJSON   `bigquery:"extra"`
}

// Reader returns all rows that queries see, in any order.
type Reader func(ctx context.Context) ([]Row, error)

// Run holds the warehouses that open returns to the promises of hotwrite.Warehouse. Each has an empty table, which is read
// by its Reader.
func Run(t *testing.T, open func(t *testing.T) (hotwrite.Warehouse, Reader)) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, w hotwrite.Warehouse, read Reader)
	}{
		{"RowsAreVisibleOnceAppended", rowsAreVisibleOnceAppended},
		{"RefusedRowsAreNamedAndNothingIsWritten", refusedRowsAreNamed},
		{"ConcurrentAppendsAreAllWrittenOnce", concurrentAppends},
		{"NoRowsIsASuccess", noRows},
		{"AppendEndsWithItsContext", appendEndsWithItsContext},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, read := open(t)
			test.run(t, w, read)
		})
	}
}

func rowsAreVisibleOnceAppended(t *testing.T, w hotwrite.Warehouse, read Reader) {
	want := []Row{
		{
			EventID: "R-1/b1/1", Seq: 1, Time: time.Date(2026, 11, 23, 11, 19, 3, 250e6, time.UTC), LatDeg: -52.52, Charging: true,
			FaultCode: bigquery.NullString{StringVal: "MOTOR_STALL", Valid: true},
			Extra:     bigquery.NullJSON{JSONVal: `{"payload":{"kg":[1,2]}}`, Valid: true},
		},
		{EventID: "R-ü/b1/2", Seq: 1<<53 - 1, Time: time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)},
		{EventID: "R-3/b1/3", Seq: -1, Time: time.Date(9999, 12, 31, 23, 59, 59, 999999e3, time.UTC)},
	}
	for i, row := range want {
		if err := w.Append(t.Context(), [][]byte{Encode(t, row)}); err != nil {
			t.Fatalf("append: %v", err)
		}
		expect(t, read, want[:i+1])
	}
}

func refusedRowsAreNamed(t *testing.T, w hotwrite.Warehouse, read Reader) {
	before := numbered("before", 2)
	if err := w.Append(t.Context(), encodeAll(t, before)); err != nil {
		t.Fatalf("append: %v", err)
	}
	rows := encodeAll(t, numbered("beside", 5))
	rows[1] = nil // no column at all, of which some are required
	notJSON := numbered("bad", 1)[0]
	notJSON.Extra = bigquery.NullJSON{JSONVal: `{"kg":`, Valid: true}
	rows[3] = Encode(t, notJSON)

	err := w.Append(t.Context(), rows)
	refused, ok := errors.AsType[*hotwrite.RowsError](err)
	if !ok {
		t.Fatalf("append of bad rows = %v, want a RowsError", err)
	}
	var got []int
	for i, message := range refused.Rows {
		if message == "" {
			t.Errorf("row %d is refused without a message", i)
		}
		got = append(got, i)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]int{1, 3}, got); diff != "" {
		t.Errorf("rows refused (-want +got):\n%s", diff)
	}
	expect(t, read, before)

	if err := w.Append(t.Context(), [][]byte{rows[0], rows[2], rows[4]}); err != nil {
		t.Fatalf("append of the other rows: %v", err)
	}
	all := numbered("beside", 5)
	expect(t, read, append(before, all[0], all[2], all[4]))
}

func concurrentAppends(t *testing.T, w hotwrite.Warehouse, read Reader) {
	const writers, appends, rows = 8, 5, 20
	var want []Row
	var wg sync.WaitGroup
	for i := range writers {
		var batches [appends][][]byte
		for j := range appends {
			batch := numbered(fmt.Sprintf("w%d/a%d", i, j), rows)
			want = append(want, batch...)
			batches[j] = encodeAll(t, batch)
		}
		wg.Go(func() {
			for _, batch := range batches {
				if err := w.Append(t.Context(), batch); err != nil {
					t.Errorf("append: %v", err)
				}
			}
		})
	}
	wg.Wait()
	expect(t, read, want)
}

func noRows(t *testing.T, w hotwrite.Warehouse, read Reader) {
	for _, rows := range [][][]byte{nil, {}} {
		if err := w.Append(t.Context(), rows); err != nil {
			t.Errorf("append of no rows: %v", err)
		}
	}
	expect(t, read, nil)
}

func appendEndsWithItsContext(t *testing.T, w hotwrite.Warehouse, _ Reader) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Append(ctx, encodeAll(t, numbered("late", 1))); !errors.Is(err, context.Canceled) {
		t.Errorf("append with an ended context = %v, want %v", err, context.Canceled)
	}
}

func expect(t *testing.T, read Reader, want []Row) {
	t.Helper()
	got, err := read(t.Context())
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	byID := func(a, b Row) int {
		switch {
		case a.EventID < b.EventID:
			return -1
		case a.EventID > b.EventID:
			return 1
		}
		return 0
	}
	want = slices.SortedFunc(slices.Values(want), byID)
	slices.SortFunc(got, byID)
	for i := range got {
		got[i].Extra = compact(got[i].Extra) // a warehouse may spell JSON as it likes
	}
	if len(got) == 0 && len(want) == 0 {
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows that a query sees (-want +got):\n%s", diff)
	}
}

func compact(j bigquery.NullJSON) bigquery.NullJSON {
	var v any
	if j.Valid && json.Unmarshal([]byte(j.JSONVal), &v) == nil {
		if text, err := json.Marshal(v); err == nil {
			j.JSONVal = string(text)
		}
	}
	return j
}

func numbered(prefix string, n int) []Row {
	rows := make([]Row, n)
	for i := range rows {
		rows[i] = Row{EventID: fmt.Sprintf("%s/%02d", prefix, i), Seq: int64(i), Time: time.Date(2026, 11, 23, 0, 0, i, 0, time.UTC)}
	}
	return rows
}

func encodeAll(t *testing.T, rows []Row) [][]byte {
	t.Helper()
	raw := make([][]byte, len(rows))
	for i, row := range rows {
		raw[i] = Encode(t, row)
	}
	return raw
}

// Encode returns row as a protocol buffer message of hotwrite.Descriptor; required columns that a Row has not are zero.
func Encode(t testing.TB, row Row) []byte {
	t.Helper()
	_, md, err := hotwrite.Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	m := dynamicpb.NewMessage(md)
	set := func(name string, value any) {
		m.Set(md.Fields().ByName(protoreflect.Name(name)), protoreflect.ValueOf(value))
	}
	for i := range md.Fields().Len() {
		if f := md.Fields().Get(i); f.Cardinality() == protoreflect.Required {
			m.Set(f, f.Default())
		}
	}
	set("event_id", row.EventID)
	set("seq", row.Seq)
	set("time", row.Time.UnixMicro())
	set("lat_deg", row.LatDeg)
	set("charging", row.Charging)
	if row.FaultCode.Valid {
		set("fault_code", row.FaultCode.StringVal)
	}
	if row.Extra.Valid {
		set("extra", row.Extra.JSONVal)
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Decode is the reverse of Encode. Its error says what a warehouse would say of a row that it refuses.
func Decode(raw []byte) (Row, error) {
	_, md, err := hotwrite.Descriptor()
	if err != nil {
		return Row{}, err
	}
	m := dynamicpb.NewMessage(md)
	if err := proto.Unmarshal(raw, m); err != nil {
		return Row{}, err
	}
	field := func(name string) protoreflect.FieldDescriptor { return md.Fields().ByName(protoreflect.Name(name)) }
	get := func(name string) protoreflect.Value { return m.Get(field(name)) }
	row := Row{
		EventID: get("event_id").String(), Seq: get("seq").Int(), Time: time.UnixMicro(get("time").Int()).UTC(),
		LatDeg: get("lat_deg").Float(), Charging: get("charging").Bool(),
		FaultCode: bigquery.NullString{StringVal: get("fault_code").String(), Valid: m.Has(field("fault_code"))},
		Extra:     bigquery.NullJSON{JSONVal: get("extra").String(), Valid: m.Has(field("extra"))},
	}
	if row.Extra.Valid && !json.Valid([]byte(row.Extra.JSONVal)) {
		return Row{}, errors.New("column extra is not JSON")
	}
	return row, nil
}
