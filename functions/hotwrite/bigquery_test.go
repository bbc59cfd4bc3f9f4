package hotwrite_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/functions/hotwrite/warehousetest"
)

const stream = "projects/p/datasets/d/tables/telemetry/streams/_default"

// storageWrite is a small BigQuery Storage Write API: one table, in memory.
type storageWrite struct {
	storagepb.UnimplementedBigQueryWriteServer

	mu      sync.Mutex
	rows    [][]byte
	opened  int     // calls of GetWriteStream
	faults  []fault // what happens to the next appends, one each
	openErr error   // of GetWriteStream
}

type fault int

const (
	unavailable      fault = iota // the answer says UNAVAILABLE, and nothing is written
	reset                         // the stream breaks, and nothing is written
	resetAfterCommit              // the rows are written, and the stream breaks before the answer
	silence                       // there is never an answer
)

func (s *storageWrite) GetWriteStream(_ context.Context, r *storagepb.GetWriteStreamRequest) (*storagepb.WriteStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	if s.openErr != nil {
		return nil, s.openErr
	}
	if r.GetName() != stream {
		return nil, status.Errorf(codes.NotFound, "stream %s", r.GetName())
	}
	return &storagepb.WriteStream{Name: stream, Type: storagepb.WriteStream_COMMITTED, Location: "EU"}, nil
}

func (s *storageWrite) AppendRows(client storagepb.BigQueryWrite_AppendRowsServer) error {
	for {
		r, err := client.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		response, err := s.append(client.Context(), r)
		if err != nil {
			return err
		}
		if err := client.Send(response); err != nil {
			return err
		}
	}
}

func (s *storageWrite) append(ctx context.Context, r *storagepb.AppendRowsRequest) (*storagepb.AppendRowsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := fault(-1)
	if len(s.faults) > 0 {
		next, s.faults = s.faults[0], s.faults[1:]
	}
	switch next {
	case unavailable:
		return refusal(codes.Unavailable, "try again", nil), nil
	case reset:
		return nil, status.Error(codes.Unavailable, "the server is being restarted")
	case silence:
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return nil, ctx.Err()
	}
	rows := r.GetProtoRows().GetRows().GetSerializedRows()
	if len(rows) == 0 {
		return refusal(codes.InvalidArgument, "no rows", nil), nil
	}
	var refused []*storagepb.RowError
	for i, row := range rows {
		if _, err := warehousetest.Decode(row); err != nil {
			refused = append(refused, &storagepb.RowError{Index: int64(i), Code: storagepb.RowError_FIELDS_ERROR, Message: err.Error()})
		}
	}
	if len(refused) > 0 {
		return refusal(codes.InvalidArgument, "errors found while processing rows", refused), nil
	}
	s.rows = append(s.rows, rows...)
	if next == resetAfterCommit {
		return nil, status.Error(codes.Unavailable, "the server is being restarted")
	}
	return &storagepb.AppendRowsResponse{Response: &storagepb.AppendRowsResponse_AppendResult_{
		AppendResult: &storagepb.AppendRowsResponse_AppendResult{},
	}}, nil
}

func refusal(code codes.Code, message string, rows []*storagepb.RowError) *storagepb.AppendRowsResponse {
	return &storagepb.AppendRowsResponse{
		Response:  &storagepb.AppendRowsResponse_Error{Error: &rpcstatus.Status{Code: int32(code), Message: message}},
		RowErrors: rows,
	}
}

func (s *storageWrite) read(context.Context) ([]warehousetest.Row, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return decodeAll(s.rows)
}

// listen returns a listener on a port of its own.
func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (s *storageWrite) serve(t *testing.T, l net.Listener) {
	t.Helper()
	server := grpc.NewServer()
	storagepb.RegisterBigQueryWriteServer(server, s)
	go func() { _ = server.Serve(l) }() // it ends by Stop
	t.Cleanup(server.Stop)
}

func connect(t *testing.T, addr string) *hotwrite.BigQuery {
	t.Helper()
	b, err := hotwrite.NewBigQuery(t.Context(), hotwrite.BigQueryConfig{Project: "p", Dataset: "d", StorageEndpoint: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() }) // it reports the cancellation of what is under way
	return b
}

func start(t *testing.T, s *storageWrite) *hotwrite.BigQuery {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	s.serve(t, l)
	return connect(t, l.Addr().String())
}

func row(t *testing.T, id string) []byte {
	t.Helper()
	return warehousetest.Encode(t, warehousetest.Row{EventID: id})
}

func TestBigQueryConforms(t *testing.T) {
	warehousetest.Run(t, func(t *testing.T) (hotwrite.Warehouse, warehousetest.Reader) {
		s := &storageWrite{}
		return start(t, s), s.read
	})
}

func TestBigQueryWritesDespite(t *testing.T) {
	for _, tt := range []struct {
		name   string
		faults []fault
		copies int // of the row: an append whose answer is lost is written again
	}{
		{"UNAVAILABLE", []fault{unavailable}, 1},
		{"a stream that breaks", []fault{reset}, 1},
		{"an answer that is lost", []fault{resetAfterCommit}, 2},
		{"two failures in a row", []fault{reset, unavailable}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // the library pauses for up to a second before it tries again
			s := &storageWrite{faults: tt.faults}
			b := start(t, s)
			if err := b.Append(t.Context(), [][]byte{row(t, "R-1/b1/1")}); err != nil {
				t.Fatal(err)
			}
			rows, err := s.read(t.Context())
			if err != nil || len(rows) != tt.copies {
				t.Errorf("%d rows, %v, want %d", len(rows), err, tt.copies)
			}
		})
	}
}

func TestBigQueryThatFailsForLongIsAnErrorAndRecovers(t *testing.T) {
	t.Parallel()
	s := &storageWrite{faults: []fault{unavailable, unavailable, unavailable, unavailable}}
	b := start(t, s)
	err := b.Append(t.Context(), [][]byte{row(t, "R-1/b1/1")})
	if _, refused := errors.AsType[*hotwrite.RowsError](err); err == nil || refused {
		t.Errorf("append = %v, want an error that is not the rows'", err)
	}
	if err := b.Append(t.Context(), [][]byte{row(t, "R-1/b1/1")}); err != nil {
		t.Errorf("append once BigQuery is back: %v", err)
	}
}

func TestBigQueryMayComeUpLater(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b := connect(t, addr) // returns although nobody listens
	appended := make(chan error, 1)
	go func() { appended <- b.Append(t.Context(), [][]byte{row(t, "R-1/b1/1")}) }()
	s := &storageWrite{}
	s.serve(t, listen(t, addr))
	if err := <-appended; err != nil {
		t.Errorf("append: %v", err)
	}
}

func TestBigQueryOutOfReachEndsWithTheContext(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := connect(t, addr).Append(ctx, [][]byte{row(t, "R-1/b1/1")}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("append = %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestBigQueryThatIsSilentEndsWithTheContext(t *testing.T) {
	t.Parallel()
	b := start(t, &storageWrite{faults: []fault{silence}})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := b.Append(ctx, [][]byte{row(t, "R-1/b1/1")}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("append = %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestBigQueryAsksForTheTableAgainAfterItWasRefused(t *testing.T) {
	s := &storageWrite{openErr: status.Error(codes.PermissionDenied, "not yet")}
	b := start(t, s)
	if err := b.Append(t.Context(), [][]byte{row(t, "R-1/b1/1")}); err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("append = %v, want the refusal", err)
	}
	s.mu.Lock()
	s.openErr = nil
	s.mu.Unlock()
	if err := b.Append(t.Context(), [][]byte{row(t, "R-1/b1/1")}); err != nil {
		t.Errorf("append once it is allowed: %v", err)
	}
}

func TestBigQueryOpensOneStreamForAllAppends(t *testing.T) {
	s := &storageWrite{}
	b := start(t, s)
	for range 3 {
		if err := b.Append(t.Context(), [][]byte{row(t, "R-1/b1/1")}); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff(1, s.opened); diff != "" {
		t.Errorf("times that BigQuery was asked for the table (-want +got):\n%s", diff)
	}
}

func TestBigQueryClosesWhileOutOfReach(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b := connect(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Append(ctx, [][]byte{row(t, "R-1/b1/1")}); err == nil {
		t.Error("append without a server succeeded")
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}
