package bigquery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"cloud.google.com/go/bigquery/storage/managedwriter"
	"cloud.google.com/go/bigquery/storage/managedwriter/adapt"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	local "github.com/robofleet/robofleet/simulator/cloud/bigquery"
)

const project = "robofleet-local"

// start serves an empty BigQuery in memory.
func start(t testing.TB) *local.Server { return startIn(t, "") }

func startIn(t testing.TB, dir string) *local.Server {
	t.Helper()
	server, err := local.Start(t.Context(), local.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return server
}

func client(t testing.TB, server *local.Server) *bigquery.Client {
	t.Helper()
	return clientAt(t, server.RESTEndpoint())
}

func clientAt(t testing.TB, endpoint string) *bigquery.Client {
	t.Helper()
	c, err := bigquery.NewClient(t.Context(), project, option.WithEndpoint(endpoint), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func writeClient(t testing.TB, server *local.Server) *managedwriter.Client {
	t.Helper()
	return writeClientAt(t, server.GRPCAddr())
}

func writeClientAt(t testing.TB, addr string) *managedwriter.Client {
	t.Helper()
	c, err := managedwriter.NewClient(t.Context(), project, option.WithEndpoint(addr), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// readings is a schema with every type and mode.
var readings = bigquery.Schema{
	{Name: "event_id", Type: bigquery.StringFieldType, Required: true},
	{Name: "seq", Type: bigquery.IntegerFieldType},
	{Name: "time", Type: bigquery.TimestampFieldType},
	{Name: "speed", Type: bigquery.FloatFieldType},
	{Name: "charging", Type: bigquery.BooleanFieldType},
	{Name: "raw", Type: bigquery.BytesFieldType},
	{Name: "extra", Type: bigquery.JSONFieldType},
	{Name: "cost", Type: bigquery.NumericFieldType},
	{Name: "day", Type: bigquery.DateFieldType},
	{Name: "local_time", Type: bigquery.DateTimeFieldType},
	{Name: "clock", Type: bigquery.TimeFieldType},
	{Name: "tags", Type: bigquery.StringFieldType, Repeated: true},
	{Name: "position", Type: bigquery.RecordFieldType, Schema: bigquery.Schema{
		{Name: "lat", Type: bigquery.FloatFieldType},
		{Name: "lon", Type: bigquery.FloatFieldType},
	}},
	{Name: "faults", Type: bigquery.RecordFieldType, Repeated: true, Schema: bigquery.Schema{
		{Name: "code", Type: bigquery.StringFieldType},
		{Name: "counts", Type: bigquery.IntegerFieldType, Repeated: true},
	}},
}

func createTable(t testing.TB, c *bigquery.Client, dataset, table string, schema bigquery.Schema) {
	t.Helper()
	ctx := t.Context()
	if err := c.Dataset(dataset).Create(ctx, nil); err != nil && !hasStatus(err, http.StatusConflict) {
		t.Fatal(err)
	}
	if err := c.Dataset(dataset).Table(table).Create(ctx, &bigquery.TableMetadata{Schema: schema}); err != nil {
		t.Fatal(err)
	}
}

func hasStatus(err error, code int) bool {
	e, ok := errors.AsType[*googleapi.Error](err)
	return ok && e.Code == code
}

// descriptorOf is the proto2 message that the client library derives from a schema.
func descriptorOf(t testing.TB, schema bigquery.Schema) (protoreflect.MessageDescriptor, *descriptorpb.DescriptorProto) {
	t.Helper()
	s, err := adapt.BQSchemaToStorageTableSchema(schema)
	if err != nil {
		t.Fatal(err)
	}
	d, err := adapt.StorageSchemaToProto2Descriptor(s, "row")
	if err != nil {
		t.Fatal(err)
	}
	m := d.(protoreflect.MessageDescriptor)
	p, err := adapt.NormalizeDescriptor(m)
	if err != nil {
		t.Fatal(err)
	}
	return m, p
}

// openStream opens a stream to the table's default stream, as a stage of the platform does.
func openStream(t testing.TB, c *managedwriter.Client, dataset, table string, descriptor *descriptorpb.DescriptorProto, opts ...managedwriter.WriterOption) *managedwriter.ManagedStream {
	t.Helper()
	stream, err := c.NewManagedStream(t.Context(), append([]managedwriter.WriterOption{
		managedwriter.WithDestinationTable(managedwriter.TableParentFromParts(project, dataset, table)),
		managedwriter.WithType(managedwriter.DefaultStream),
		managedwriter.WithSchemaDescriptor(descriptor),
		managedwriter.EnableWriteRetries(true),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Close() })
	return stream
}

// encode makes rows of messages given as JSON-like maps.
func encode(t testing.TB, m protoreflect.MessageDescriptor, rows ...map[string]any) [][]byte {
	t.Helper()
	var out [][]byte
	for _, row := range rows {
		b, err := proto.Marshal(message(m, row))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

func message(m protoreflect.MessageDescriptor, row map[string]any) *dynamicpb.Message {
	out := dynamicpb.NewMessage(m)
	for name, value := range row {
		f := m.Fields().ByName(protoreflect.Name(name))
		if list, ok := value.([]any); ok {
			l := out.Mutable(f).List()
			for _, v := range list {
				l.Append(protoValue(f, v))
			}
			continue
		}
		out.Set(f, protoValue(f, value))
	}
	return out
}

func protoValue(f protoreflect.FieldDescriptor, v any) protoreflect.Value {
	if nested, ok := v.(map[string]any); ok {
		return protoreflect.ValueOfMessage(message(f.Message(), nested))
	}
	return protoreflect.ValueOf(v)
}

func appendAll(t testing.TB, stream *managedwriter.ManagedStream, rows [][]byte) {
	t.Helper()
	result, err := stream.AppendRows(t.Context(), rows)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := result.GetResult(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// query returns all rows, each value printed with %v.
func query(t testing.TB, c *bigquery.Client, sql string, parameters ...bigquery.QueryParameter) [][]bigquery.Value {
	t.Helper()
	rows, err := tryQuery(t.Context(), c, sql, parameters...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return rows
}

func tryQuery(ctx context.Context, c *bigquery.Client, sql string, parameters ...bigquery.QueryParameter) ([][]bigquery.Value, error) {
	q := c.Query(sql)
	q.Parameters = parameters
	it, err := q.Read(ctx)
	if err != nil {
		return nil, err
	}
	return readAll(it)
}

func readAll(it *bigquery.RowIterator) ([][]bigquery.Value, error) {
	var rows [][]bigquery.Value
	for {
		var row []bigquery.Value
		err := it.Next(&row)
		if errors.Is(err, iterator.Done) {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
}

func text(rows [][]bigquery.Value) []string {
	var out []string
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, v := range row {
			cells[i] = fmt.Sprintf("%v", v)
		}
		out = append(out, strings.Join(cells, "|"))
	}
	return out
}

func TestAppendedRowsAreVisibleWithEveryType(t *testing.T) {
	server := start(t)
	c := client(t, server)
	createTable(t, c, "fleet", "readings", readings)
	m, d := descriptorOf(t, readings)
	stream := openStream(t, writeClient(t, server), "fleet", "readings", d)
	at := time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC)
	appendAll(t, stream, encode(t, m,
		map[string]any{
			"event_id": "R-1/a/1", "seq": int64(7), "time": at.UnixMicro(), "speed": 1.5, "charging": true, "raw": []byte{0, 255},
			"extra": `{"a": [1, "b"]}`, "cost": []byte{0x00, 0xca, 0x9a, 0x3b}, "day": int32(20780),
			"local_time": int64(2026)<<46 | 11<<42 | 23<<37 | 13<<32 | 14<<26 | 15<<20 | 16, "clock": int64(13)<<32 | 14<<26 | 15<<20 | 16,
			"tags": []any{"x", "a tag that is longer than twelve bytes"}, "position": map[string]any{"lat": 48.1, "lon": 11.5},
			"faults": []any{map[string]any{"code": "E1", "counts": []any{int64(1), int64(2)}}, map[string]any{"code": "E2"}},
		},
		map[string]any{"event_id": "R-1/a/2"},
	))
	got := text(query(t, c, "SELECT * FROM fleet.readings ORDER BY event_id"))
	want := []string{
		`R-1/a/1|7|2026-11-23 12:00:00.123456 +0000 UTC|1.5|true|[0 255]|{"a": [1, "b"]}|1/1|2026-11-23|2026-11-23T13:14:15.000016000|` +
			`13:14:15.000016000|[x a tag that is longer than twelve bytes]|[48.1 11.5]|[[E1 [1 2]] [E2 []]]`,
		`R-1/a/2|<nil>|<nil>|<nil>|<nil>|<nil>|<nil>|<nil>|<nil>|<nil>|<nil>|[]|<nil>|[]`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	listed, err := readAll(c.Dataset("fleet").Table("readings").Read(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, text(listed)); diff != "" {
		t.Errorf("tabledata.list (-want +got):\n%s", diff)
	}
}

func TestLongArraysAndManyChunksSurvive(t *testing.T) {
	server := start(t)
	c := client(t, server)
	schema := bigquery.Schema{{Name: "n", Type: bigquery.IntegerFieldType}, {Name: "list", Type: bigquery.IntegerFieldType, Repeated: true},
		{Name: "records", Type: bigquery.RecordFieldType, Repeated: true, Schema: bigquery.Schema{{Name: "s", Type: bigquery.StringFieldType}}}}
	createTable(t, c, "d", "t", schema)
	m, d := descriptorOf(t, schema)
	stream := openStream(t, writeClient(t, server), "d", "t", d)
	var rows []map[string]any
	for i := range 5000 {
		row := map[string]any{"n": int64(i)}
		var list, records []any
		for j := range i % 7 {
			list = append(list, int64(i*10+j))
			records = append(records, map[string]any{"s": fmt.Sprintf("a rather long text %d/%d", i, j)})
		}
		row["list"], row["records"] = list, records
		rows = append(rows, row)
	}
	appendAll(t, stream, encode(t, m, rows...))
	got := text(query(t, c, `SELECT COUNT(*), SUM(ARRAY_LENGTH(list)), SUM(n), COUNTIF(list[SAFE_OFFSET(5)] = n*10+5),
		COUNTIF(records[SAFE_OFFSET(5)].s = CONCAT('a rather long text ', CAST(n AS STRING), '/5')) FROM d.t`))
	if diff := cmp.Diff([]string{"5000|14995|12497500|714|714"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBadRowIsNamedAndNothingOfItsRequestIsWritten(t *testing.T) {
	server := start(t)
	c := client(t, server)
	createTable(t, c, "fleet", "readings", readings)
	m, d := descriptorOf(t, readings)
	for _, f := range d.Field { // a writer that does not know that the field is required
		f.Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum().Enum()
		if f.GetName() == "tags" || f.GetName() == "faults" {
			f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		}
	}
	stream := openStream(t, writeClient(t, server), "fleet", "readings", d)
	tests := []struct {
		name string
		row  map[string]any
		want string
	}{
		{"required field missing", map[string]any{"seq": int64(1)}, "event_id is required"},
		{"JSON malformed", map[string]any{"event_id": "x", "extra": "{"}, "extra is not valid JSON"},
		{"timestamp out of range", map[string]any{"event_id": "x", "time": int64(1) << 62}, "TIMESTAMP value is out of range"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			good := map[string]any{"event_id": "good"}
			var rows [][]byte
			for _, row := range []map[string]any{good, test.row, good} {
				b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(message(m, row))
				if err != nil {
					t.Fatal(err)
				}
				rows = append(rows, b)
			}
			result, err := stream.AppendRows(t.Context(), rows)
			if err != nil {
				t.Fatal(err)
			}
			response, err := result.FullResponse(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			if len(response.GetRowErrors()) != 1 || response.GetRowErrors()[0].GetIndex() != 1 ||
				!strings.Contains(response.GetRowErrors()[0].GetMessage(), test.want) {
				t.Errorf("row errors: %v, want one at index 1 that contains %q", response.GetRowErrors(), test.want)
			}
			if got := text(query(t, c, "SELECT COUNT(*) FROM fleet.readings")); got[0] != "0" {
				t.Errorf("%s rows are in the table", got[0])
			}
		})
	}
	appendAll(t, stream, encode(t, m, map[string]any{"event_id": "good"})) // the connection goes on
}

func TestFieldsWithoutPresenceHaveTheirDefault(t *testing.T) {
	server := start(t)
	c := client(t, server)
	schema := bigquery.Schema{{Name: "n", Type: bigquery.IntegerFieldType}, {Name: "s", Type: bigquery.StringFieldType},
		{Name: "b", Type: bigquery.BooleanFieldType}, {Name: "maybe", Type: bigquery.IntegerFieldType}, {Name: "e", Type: bigquery.StringFieldType}}
	createTable(t, c, "d", "t", schema)
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("p3.proto"), Syntax: proto.String("proto3"), Package: proto.String("p3"),
		EnumType: []*descriptorpb.EnumDescriptorProto{{Name: proto.String("E"), Value: []*descriptorpb.EnumValueDescriptorProto{
			{Name: proto.String("ZERO"), Number: proto.Int32(0)}, {Name: proto.String("ONE"), Number: proto.Int32(1)}}}},
		MessageType: []*descriptorpb.DescriptorProto{{
			Name: proto.String("Row"),
			Field: []*descriptorpb.FieldDescriptorProto{
				{Name: proto.String("n"), Number: proto.Int32(1), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_INT32.Enum()},
				{Name: proto.String("s"), Number: proto.Int32(2), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum()},
				{Name: proto.String("b"), Number: proto.Int32(3), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_BOOL.Enum()},
				{Name: proto.String("maybe"), Number: proto.Int32(4), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_SINT64.Enum(),
					Proto3Optional: proto.Bool(true), OneofIndex: proto.Int32(0)},
				{Name: proto.String("e"), Number: proto.Int32(2000), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_ENUM.Enum(), TypeName: proto.String(".p3.E")},
			},
			OneofDecl: []*descriptorpb.OneofDescriptorProto{{Name: proto.String("_maybe")}},
		}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := file.Messages().Get(0)
	d, err := adapt.NormalizeDescriptor(m)
	if err != nil {
		t.Fatal(err)
	}
	stream := openStream(t, writeClient(t, server), "d", "t", d)
	appendAll(t, stream, encode(t, m, map[string]any{}, map[string]any{"n": int32(-5), "s": "x", "b": true, "maybe": int64(-6), "e": protoreflect.EnumNumber(1)}))
	got := text(query(t, c, "SELECT * FROM d.t ORDER BY n"))
	if diff := cmp.Diff([]string{"-5|x|true|-6|ONE", "0||false|<nil>|ZERO"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUnknownFieldOfTheWriterIsASchemaMismatch(t *testing.T) {
	server := start(t)
	c := client(t, server)
	createTable(t, c, "d", "t", bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}})
	wider := bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}, {Name: "b", Type: bigquery.IntegerFieldType}}
	m, d := descriptorOf(t, wider)
	stream := openStream(t, writeClient(t, server), "d", "t", d)
	rows := encode(t, m, map[string]any{"a": int64(1), "b": int64(2)})
	result, err := stream.AppendRows(t.Context(), rows)
	if err != nil {
		t.Fatal(err)
	}
	_, err = result.GetResult(t.Context())
	var codes []storagepb.StorageError_StorageErrorCode
	for _, detail := range status.Convert(err).Details() {
		if e, ok := detail.(*storagepb.StorageError); ok {
			codes = append(codes, e.GetCode())
		}
	}
	if !slices.Equal(codes, []storagepb.StorageError_StorageErrorCode{storagepb.StorageError_SCHEMA_MISMATCH_EXTRA_FIELDS}) ||
		!strings.Contains(err.Error(), "extra fields: 'b'") {
		t.Fatalf("got %v, want an error that names the extra field", err)
	}

	// Once the table has the column, the same connection writes, and learns of the schema.
	table := c.Dataset("d").Table("t")
	if _, err := table.Update(t.Context(), bigquery.TableMetadataToUpdate{Schema: wider}, ""); err != nil {
		t.Fatal(err)
	}
	appendAll(t, stream, rows)
	if diff := cmp.Diff([]string{"1|2"}, text(query(t, c, "SELECT * FROM d.t"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestResourcesAreManagedAsTheClientExpects(t *testing.T) {
	server := start(t)
	c := client(t, server)
	ctx := t.Context()
	dataset := c.Dataset("fleet")
	if _, err := dataset.Metadata(ctx); !hasStatus(err, http.StatusNotFound) {
		t.Errorf("missing dataset: got %v, want 404", err)
	}
	if err := dataset.Create(ctx, &bigquery.DatasetMetadata{Description: "d", Labels: map[string]string{"a": "1"}}); err != nil {
		t.Fatal(err)
	}
	if err := dataset.Create(ctx, nil); !hasStatus(err, http.StatusConflict) {
		t.Errorf("second create: got %v, want 409", err)
	}
	var update bigquery.DatasetMetadataToUpdate
	update.SetLabel("b", "2")
	update.DeleteLabel("a")
	md, err := dataset.Update(ctx, update, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"b": "2"}, md.Labels); diff != "" || md.Description != "d" {
		t.Errorf("labels (-want +got):\n%s description %q", diff, md.Description)
	}
	if _, err := dataset.Update(ctx, update, "stale"); !hasStatus(err, http.StatusPreconditionFailed) {
		t.Errorf("update with a stale etag: got %v, want 412", err)
	}

	table := dataset.Table("readings")
	want := &bigquery.TableMetadata{
		Schema:           readings,
		Description:      "rows",
		TimePartitioning: &bigquery.TimePartitioning{Type: bigquery.DayPartitioningType, Field: "time"},
		Clustering:       &bigquery.Clustering{Fields: []string{"event_id"}},
	}
	if err := table.Create(ctx, want); err != nil {
		t.Fatal(err)
	}
	if err := table.Create(ctx, want); !hasStatus(err, http.StatusConflict) {
		t.Errorf("second create: got %v, want 409", err)
	}
	got, err := table.Metadata(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]any{want.Schema, want.Description, want.TimePartitioning, want.Clustering, bigquery.RegularTable},
		[]any{got.Schema, got.Description, got.TimePartitioning, got.Clustering, got.Type}); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	view := dataset.Table("recent")
	if err := view.Create(ctx, &bigquery.TableMetadata{ViewQuery: "SELECT * EXCEPT (raw) FROM `robofleet-local.fleet.readings`"}); err != nil {
		t.Fatal(err)
	}
	if vm, err := view.Metadata(ctx); err != nil || vm.Type != bigquery.ViewTable || len(vm.Schema) != len(readings)-1 {
		t.Errorf("view: %+v, %v", vm, err)
	}
	var names []string
	it := dataset.Tables(ctx)
	it.PageInfo().MaxSize = 1
	for {
		found, err := it.Next()
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found.TableID)
	}
	if diff := cmp.Diff([]string{"readings", "recent"}, names); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
	if err := dataset.Delete(ctx); !hasStatus(err, http.StatusBadRequest) {
		t.Errorf("delete of a dataset in use: got %v, want 400", err)
	}
	if err := view.Delete(ctx); err != nil {
		t.Error(err)
	}
	if err := dataset.DeleteWithContents(ctx); err != nil {
		t.Error(err)
	}
	if _, err := table.Metadata(ctx); !hasStatus(err, http.StatusNotFound) {
		t.Errorf("deleted table: got %v, want 404", err)
	}
}

func TestSchemaGrowsAsBigQueryAllows(t *testing.T) {
	server := start(t)
	c := client(t, server)
	table := c.Dataset("d").Table("t")
	nested := func(names ...string) bigquery.Schema {
		var s bigquery.Schema
		for _, n := range names {
			s = append(s, &bigquery.FieldSchema{Name: n, Type: bigquery.StringFieldType})
		}
		return s
	}
	createTable(t, c, "d", "t", bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType, Required: true},
		{Name: "r", Type: bigquery.RecordFieldType, Schema: nested("x")}})
	if err := c.Dataset("d").Table("v").Create(t.Context(), &bigquery.TableMetadata{ViewQuery: "SELECT * FROM d.t"}); err != nil {
		t.Fatal(err)
	}
	query(t, c, "INSERT INTO d.t (a, r) VALUES (1, STRUCT('one' AS x))")
	grown := bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType},
		{Name: "r", Type: bigquery.RecordFieldType, Schema: nested("x", "y")}, {Name: "b", Type: bigquery.StringFieldType, Repeated: true}}
	if _, err := table.Update(t.Context(), bigquery.TableMetadataToUpdate{Schema: grown}, ""); err != nil {
		t.Fatal(err)
	}
	query(t, c, "INSERT INTO d.t (a, r, b) VALUES (NULL, STRUCT('two' AS x, 'why' AS y), ['p', 'q'])")
	if diff := cmp.Diff([]string{"<nil>|[two why]|[p q]", "1|[one <nil>]|[]"}, text(query(t, c, "SELECT * FROM d.v ORDER BY a"))); diff != "" {
		t.Errorf("view over the grown table (-want +got):\n%s", diff)
	}
	for name, schema := range map[string]bigquery.Schema{
		"type changed":   {{Name: "a", Type: bigquery.StringFieldType}, grown[1], grown[2]},
		"column removed": grown[:2],
		"required added": append(slices.Clone(grown), &bigquery.FieldSchema{Name: "c", Type: bigquery.StringFieldType, Required: true}),
	} {
		if _, err := table.Update(t.Context(), bigquery.TableMetadataToUpdate{Schema: schema}, ""); !hasStatus(err, http.StatusBadRequest) {
			t.Errorf("%s: got %v, want 400", name, err)
		}
	}
}
