package bigquery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	bq "google.golang.org/api/bigquery/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	duckdb "github.com/duckdb/duckdb-go/v2/mapping"
)

// maxAppendBytes is the limit of one AppendRows request (https://cloud.google.com/bigquery/quotas#write-api-limits).
const maxAppendBytes = 10 << 20

// writeServer is the Storage Write API: the default stream, and committed streams with offsets.
type writeServer struct {
	storagepb.UnimplementedBigQueryWriteServer
	catalog *catalog
	faults  *Faults

	mu      sync.Mutex
	streams map[string]*writeStream // committed streams by name; they do not outlive the server
}

// writeStream is a committed stream.
type writeStream struct {
	mu        sync.Mutex
	created   time.Time
	next      int64 // offset of the next row
	finalized bool
}

// streamName is projects/P/datasets/D/tables/T, then /streams/S or /_default or nothing.
var streamName = regexp.MustCompile(`^projects/([^/]+)/datasets/([^/]+)/tables/([^/]+?)(?:/streams/([^/]+)|/(_default))?$`)

// target is what a stream's name says.
type target struct {
	dataset, table, stream string
}

func (s *writeServer) target(name string) (target, error) {
	m := streamName.FindStringSubmatch(name)
	if m == nil {
		return target{}, status.Errorf(codes.InvalidArgument, "invalid stream name %q", name)
	}
	if m[1] != s.catalog.project {
		return target{}, status.Errorf(codes.NotFound, "Requested entity was not found. Entity: projects/%s", m[1])
	}
	return target{m[2], m[3], m[4] + m[5]}, nil
}

// table looks up the table of a target, which must not be a view.
func (s *writeServer) table(t target) (*table, error) {
	found, err := s.catalog.table(t.dataset, t.table)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "Requested entity was not found. Entity: projects/%s/datasets/%s/tables/%s",
			s.catalog.project, t.dataset, t.table)
	}
	if found.isView() {
		return nil, status.Errorf(codes.InvalidArgument, "%s is a view: only tables can be appended to", found.resource.Id)
	}
	return found, nil
}

func (s *writeServer) stream(name string) (*writeStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.streams[name]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "Requested entity was not found. Entity: %s", name)
	}
	return w, nil
}

// CreateWriteStream creates a stream of type COMMITTED.
func (s *writeServer) CreateWriteStream(_ context.Context, r *storagepb.CreateWriteStreamRequest) (*storagepb.WriteStream, error) {
	t, err := s.target(r.GetParent())
	if err != nil {
		return nil, err
	}
	found, err := s.table(t)
	if err != nil {
		return nil, err
	}
	if r.GetWriteStream().GetType() != storagepb.WriteStream_COMMITTED {
		return nil, status.Error(codes.Unimplemented, "only COMMITTED streams and the default stream are supported by the local BigQuery")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &writeStream{created: time.Now()}
	name := fmt.Sprintf("%s/streams/%d-%d", r.GetParent(), w.created.UnixNano(), len(s.streams))
	s.streams[name] = w
	return streamResource(name, w.created, found, true), nil
}

// GetWriteStream describes a stream.
func (s *writeServer) GetWriteStream(_ context.Context, r *storagepb.GetWriteStreamRequest) (*storagepb.WriteStream, error) {
	t, err := s.target(r.GetName())
	if err != nil {
		return nil, err
	}
	found, err := s.table(t)
	if err != nil {
		return nil, err
	}
	created := time.UnixMilli(found.resource.CreationTime)
	if t.stream != "_default" {
		w, err := s.stream(r.GetName())
		if err != nil {
			return nil, err
		}
		created = w.created
	}
	return streamResource(r.GetName(), created, found, r.GetView() == storagepb.WriteStreamView_FULL), nil
}

func streamResource(name string, created time.Time, t *table, full bool) *storagepb.WriteStream {
	out := &storagepb.WriteStream{
		Name:       name,
		Type:       storagepb.WriteStream_COMMITTED,
		WriteMode:  storagepb.WriteStream_INSERT,
		CreateTime: timestamppb.New(created),
		CommitTime: timestamppb.New(created),
		Location:   strings.ToLower(t.resource.Location),
	}
	if full {
		out.TableSchema = storageSchema(t.resource.Schema)
	}
	return out
}

// storageTypes are the Storage API's names of the column types.
var storageTypes = map[string]storagepb.TableFieldSchema_Type{
	"STRING": storagepb.TableFieldSchema_STRING, "BYTES": storagepb.TableFieldSchema_BYTES, "INTEGER": storagepb.TableFieldSchema_INT64,
	"FLOAT": storagepb.TableFieldSchema_DOUBLE, "BOOLEAN": storagepb.TableFieldSchema_BOOL, "TIMESTAMP": storagepb.TableFieldSchema_TIMESTAMP,
	"DATE": storagepb.TableFieldSchema_DATE, "TIME": storagepb.TableFieldSchema_TIME, "DATETIME": storagepb.TableFieldSchema_DATETIME,
	"NUMERIC": storagepb.TableFieldSchema_NUMERIC, "JSON": storagepb.TableFieldSchema_JSON, "RECORD": storagepb.TableFieldSchema_STRUCT,
}

func storageSchema(schema *bq.TableSchema) *storagepb.TableSchema {
	out := &storagepb.TableSchema{}
	for _, f := range schema.Fields {
		out.Fields = append(out.Fields, storageField(f))
	}
	return out
}

func storageField(f *bq.TableFieldSchema) *storagepb.TableFieldSchema {
	out := &storagepb.TableFieldSchema{
		Name:        f.Name,
		Type:        storageTypes[f.Type],
		Mode:        storagepb.TableFieldSchema_Mode(storagepb.TableFieldSchema_Mode_value[f.Mode]),
		Description: f.Description,
	}
	for _, child := range f.Fields {
		out.Fields = append(out.Fields, storageField(child))
	}
	return out
}

// FinalizeWriteStream ends a stream: it takes no more rows.
func (s *writeServer) FinalizeWriteStream(_ context.Context, r *storagepb.FinalizeWriteStreamRequest) (*storagepb.FinalizeWriteStreamResponse, error) {
	w, err := s.stream(r.GetName())
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finalized = true
	return &storagepb.FinalizeWriteStreamResponse{RowCount: w.next}, nil
}

// writer is the state of one AppendRows connection: what its requests may leave out because an earlier one said it.
type writer struct {
	server     *writeServer
	name       string
	target     target
	descriptor *descriptorpb.DescriptorProto

	planned *table // for which plan was made
	plan    *messagePlan
	schema  *bq.TableSchema // that the client knows of
}

// AppendRows appends the rows of each request and answers in order. Requests wait in the transport while one is written.
//
// An error that concerns one request is in its response, and the connection lives on; an error that concerns the stream or the table
// ends the call.
func (s *writeServer) AppendRows(conn storagepb.BigQueryWrite_AppendRowsServer) error {
	w := &writer{server: s}
	for {
		request, err := conn.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fault := s.faults.next(request)
		if err := fault.before(conn.Context()); err != nil {
			return err
		}
		response, err := w.append(conn.Context(), request, fault)
		if err != nil {
			return err
		}
		if err := fault.after(); err != nil {
			return err
		}
		if err := conn.Send(response); err != nil {
			return err
		}
	}
}

// adopt takes over what the request says about the stream and its schema.
func (w *writer) adopt(r *storagepb.AppendRowsRequest) error {
	if name := r.GetWriteStream(); name != "" && name != w.name {
		t, err := w.server.target(name)
		if err != nil {
			return err
		}
		if t.stream == "" {
			return status.Errorf(codes.InvalidArgument, "invalid stream name %q", name)
		}
		w.name, w.target, w.planned, w.schema = name, t, nil, nil
	}
	if w.name == "" {
		return status.Error(codes.InvalidArgument, "the first request of a connection must name its stream")
	}
	if d := r.GetProtoRows().GetWriterSchema().GetProtoDescriptor(); d != nil && (w.descriptor == nil || !proto.Equal(d, w.descriptor)) {
		w.descriptor, w.planned = d, nil
	}
	return nil
}

// append writes the rows of one request. What is wrong with the request alone is in the response.
func (w *writer) append(ctx context.Context, r *storagepb.AppendRowsRequest, fault *fault) (*storagepb.AppendRowsResponse, error) {
	if err := w.adopt(r); err != nil {
		return nil, err
	}
	t, err := w.server.table(w.target)
	if err != nil {
		return nil, err
	}
	if r.GetProtoRows() == nil {
		return w.refusal(status.New(codes.InvalidArgument, "only rows as protocol buffers are supported by the local BigQuery")), nil
	}
	if size := proto.Size(r); size > maxAppendBytes {
		return w.refusal(status.Newf(codes.InvalidArgument, "AppendRows request too large: %d limit %d", size, maxAppendBytes)), nil
	}
	if w.descriptor == nil {
		return nil, status.Error(codes.InvalidArgument, "the first request of a connection must have a writer schema")
	}
	if w.planned != t {
		plan, err := planRows(w.descriptor, t.resource.Schema.Fields)
		if err != nil {
			return w.refusal(schemaMismatch(err, t)), nil
		}
		w.plan, w.planned = plan, t
	}
	offset, response, err := w.write(ctx, t, r, fault)
	if err != nil {
		return nil, err
	}
	if response != nil {
		return response, nil
	}
	out := &storagepb.AppendRowsResponse{
		Response:    &storagepb.AppendRowsResponse_AppendResult_{AppendResult: &storagepb.AppendRowsResponse_AppendResult{Offset: offset}},
		WriteStream: w.name,
	}
	// A client that began with an older schema learns once that there is a newer one.
	if w.schema != nil && w.schema != t.resource.Schema && !sameFields(w.schema.Fields, t.resource.Schema.Fields) {
		out.UpdatedSchema = storageSchema(t.resource.Schema)
	}
	w.schema = t.resource.Schema
	return out, nil
}

// refusal is a response that says what is wrong with a request.
func (w *writer) refusal(s *status.Status) *storagepb.AppendRowsResponse {
	return &storagepb.AppendRowsResponse{
		Response:    &storagepb.AppendRowsResponse_Error{Error: s.Proto()},
		WriteStream: w.name,
	}
}

func schemaMismatch(err error, t *table) *status.Status {
	s := status.New(codes.InvalidArgument, err.Error())
	if _, extra := errors.AsType[*extraFieldError](err); extra {
		return withStorageError(s, storagepb.StorageError_SCHEMA_MISMATCH_EXTRA_FIELDS, t.resource.Id)
	}
	return s
}

// withStorageError adds the detail by which clients tell errors apart.
func withStorageError(s *status.Status, code storagepb.StorageError_StorageErrorCode, entity string) *status.Status {
	detailed, err := s.WithDetails(&storagepb.StorageError{Code: code, Entity: entity, ErrorMessage: s.Message()})
	if err != nil {
		return s // cannot happen: the detail is a message, and the status is not OK
	}
	return detailed
}

// write appends the rows in one transaction. A refused request has a response, and nothing of it is written.
func (w *writer) write(ctx context.Context, t *table, r *storagepb.AppendRowsRequest, fault *fault) (*wrapperspb.Int64Value, *storagepb.AppendRowsResponse, error) {
	rows := r.GetProtoRows().GetRows().GetSerializedRows()
	var stream *writeStream
	if w.target.stream == "_default" {
		if r.GetOffset() != nil {
			return nil, w.refusal(status.New(codes.InvalidArgument, "the default stream takes no offsets")), nil
		}
	} else {
		var err error
		if stream, err = w.server.stream(w.name); err != nil {
			return nil, nil, err
		}
		stream.mu.Lock() // until the rows are written: the offset must be that of this request
		defer stream.mu.Unlock()
		if refused := stream.check(w.name, r.GetOffset()); refused != nil {
			return nil, w.refusal(refused), nil
		}
	}
	rowErrors, err := w.server.catalog.appendRows(ctx, t, w.plan, rows, fault.refuses)
	switch {
	case err != nil:
		return nil, w.refusal(appendStatus(ctx, err, t)), nil
	case len(rowErrors) > 0:
		s := status.Newf(codes.InvalidArgument, "Errors found while processing rows. Please refer to the row_errors field for details. "+
			"The list may not be complete because of the size limitations. Entity: %s", w.name)
		response := w.refusal(withStorageError(s, storagepb.StorageError_STORAGE_ERROR_CODE_UNSPECIFIED, w.name))
		response.RowErrors = rowErrors
		return nil, response, nil
	case stream == nil:
		return nil, nil, nil
	}
	offset := stream.next
	stream.next += int64(len(rows))
	return wrapperspb.Int64(offset), nil, nil
}

// check compares the offset that a request expects with the stream's; nil: the rows may be written.
func (w *writeStream) check(name string, offset *wrapperspb.Int64Value) *status.Status {
	switch {
	case w.finalized:
		return withStorageError(status.Newf(codes.InvalidArgument, "the stream is finalized: %s", name), storagepb.StorageError_STREAM_FINALIZED, name)
	case offset == nil || offset.GetValue() == w.next:
		return nil
	case offset.GetValue() < w.next:
		return withStorageError(status.Newf(codes.AlreadyExists, "the offset is within stream, expected offset %d, received %d", w.next, offset.GetValue()),
			storagepb.StorageError_OFFSET_ALREADY_EXISTS, name)
	default:
		return withStorageError(status.Newf(codes.OutOfRange, "the offset is beyond stream, expected offset %d, received %d", w.next, offset.GetValue()),
			storagepb.StorageError_OFFSET_OUT_OF_RANGE, name)
	}
}

// appendStatus gives a failed write its code: what a retry may mend is transient.
func appendStatus(ctx context.Context, err error, t *table) *status.Status {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err())
	}
	e, ok := errors.AsType[*engineError](err)
	switch {
	case errors.Is(err, errClosed):
		return status.New(codes.Unavailable, err.Error())
	case ok && e.kind == duckdb.ErrorTypeOutOfMemory:
		return status.Newf(codes.ResourceExhausted, "append to %s: %v", t.resource.Id, err)
	case ok && (e.kind == duckdb.ErrorTypeTransaction || e.kind == duckdb.ErrorTypeCatalog):
		// The table was changed or dropped meanwhile.
		return status.Newf(codes.Aborted, "append to %s: %v", t.resource.Id, err)
	default:
		return status.Newf(codes.Internal, "append to %s: %v", t.resource.Id, err)
	}
}

// maxRowErrors bounds the row errors of one response.
const maxRowErrors = 100

// appendRows writes rows to the table in one transaction. When a row is bad nothing is written, and the bad rows are returned. refuse,
// which may be nil, says why a row that is good shall be bad.
func (c *catalog) appendRows(ctx context.Context, t *table, plan *messagePlan, rows [][]byte, refuse func([]byte) error) ([]*storagepb.RowError, error) {
	conn, err := c.db.acquire()
	if err != nil {
		return nil, err
	}
	defer c.db.release(conn)
	var rowErrors []*storagepb.RowError
	ref := t.resource.TableReference
	err = conn.transact(ctx, func() error {
		batch, err := newRowBatch(conn, c.engine, ref.DatasetId, ref.TableId, t.resource.Schema.Fields)
		if err != nil {
			return err
		}
		defer batch.close()
		for i, row := range rows {
			at, err := batch.next()
			if err != nil {
				return err
			}
			err = plan.decode(row, batch.columns, at)
			if err == nil && refuse != nil {
				err = refuse(row)
			}
			batch.rows++
			if err != nil {
				batch.refused = true
				if len(rowErrors) < maxRowErrors {
					rowErrors = append(rowErrors, &storagepb.RowError{
						Index: int64(i), Code: storagepb.RowError_FIELDS_ERROR, Message: err.Error(),
					})
				}
			}
		}
		if batch.refused {
			return errRefused
		}
		return batch.flush()
	})
	if errors.Is(err, errRefused) {
		err = nil
	}
	return rowErrors, err
}

// errRefused rolls back the transaction of a request with bad rows.
var errRefused = errors.New("the request has bad rows")
