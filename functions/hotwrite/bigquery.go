package hotwrite

import (
	"context"
	"fmt"
	"sync"
	"time"

	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"cloud.google.com/go/bigquery/storage/managedwriter"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// BigQueryConfig says which table rows go to.
type BigQueryConfig struct {
	Project string `env:"GOOGLE_CLOUD_PROJECT, required"`
	Dataset string `env:"BIGQUERY_DATASET, default=robofleet"`
	// StorageEndpoint is the host:port of a Storage Write API without TLS and credentials, as a local platform has it; ""
	// is Google's.
	StorageEndpoint string `env:"BIGQUERY_STORAGE_ENDPOINT"`
}

// BigQuery is the Warehouse of production: the table's default stream of the Storage Write API. Rows are committed when an
// append is answered. The stream does not deduplicate: what Pub/Sub delivers twice is stored twice, and the views keep one.
type BigQuery struct {
	client *managedwriter.Client
	cancel context.CancelFunc
	open   func() (*managedwriter.ManagedStream, error)
	sent   sync.WaitGroup // appends that the client library has not done with

	mu      sync.Mutex
	opening *opening
}

// opening is an attempt to open the stream, which all who need it wait for.
type opening struct {
	done   chan struct{}
	stream *managedwriter.ManagedStream
	err    error
}

// NewBigQuery returns the table as a Warehouse. It does not wait for BigQuery: a stage serves at once, and nacks what it
// cannot write. ctx bounds the life of the connection.
func NewBigQuery(ctx context.Context, cfg BigQueryConfig) (*BigQuery, error) {
	descriptor, _, err := Descriptor()
	if err != nil {
		return nil, err
	}
	// gRPC's own pause between attempts to connect grows to two minutes, and the backlog with it.
	reconnect := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 10 * time.Second}
	reconnect.Backoff.MaxDelay = 5 * time.Second
	opts := []option.ClientOption{option.WithGRPCDialOption(grpc.WithConnectParams(reconnect))}
	if cfg.StorageEndpoint != "" {
		opts = append(opts, option.WithEndpoint(cfg.StorageEndpoint), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	}
	ctx, cancel := context.WithCancel(ctx)
	client, err := managedwriter.NewClient(ctx, cfg.Project, opts...)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connect to BigQuery: %w", err)
	}
	b := &BigQuery{client: client, cancel: cancel}
	b.open = func() (*managedwriter.ManagedStream, error) {
		stream, err := client.NewManagedStream(ctx,
			managedwriter.WithType(managedwriter.DefaultStream),
			managedwriter.WithDestinationTable(managedwriter.TableParentFromParts(cfg.Project, cfg.Dataset, Table)),
			managedwriter.WithSchemaDescriptor(descriptor),
			managedwriter.EnableWriteRetries(true),
		)
		if err != nil {
			return nil, fmt.Errorf("open the default stream of %s.%s: %w", cfg.Dataset, Table, err)
		}
		return stream, nil
	}
	b.attempt() // so that the first append finds it open
	return b, nil
}

// attempt returns the attempt to open the stream that is under way or has succeeded, or starts one: opening asks BigQuery
// where the table is, which takes as long as BigQuery is out of reach.
func (b *BigQuery) attempt() *opening {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opening != nil {
		return b.opening
	}
	o := &opening{done: make(chan struct{})}
	b.opening = o
	go func() {
		o.stream, o.err = b.open()
		if o.err != nil {
			b.abandon(o)
		}
		close(o.done)
	}()
	return o
}

// Append implements Warehouse.
func (b *BigQuery) Append(ctx context.Context, rows [][]byte) error {
	if len(rows) == 0 {
		return nil // BigQuery calls an append of nothing invalid
	}
	o := b.attempt()
	select {
	case <-o.done:
	case <-ctx.Done():
		return fmt.Errorf("append %d rows: BigQuery is out of reach: %w", len(rows), ctx.Err())
	}
	if o.err != nil {
		return o.err
	}
	result, err := o.stream.AppendRows(ctx, rows)
	if err != nil {
		if ctx.Err() == nil {
			b.abandon(o)
		}
		return fmt.Errorf("append %d rows: %w", len(rows), err)
	}
	b.sent.Go(func() { <-result.Ready() }) // which may be long after ctx has ended
	response, err := result.FullResponse(ctx)
	if refused := response.GetRowErrors(); len(refused) > 0 {
		return rowsError(refused)
	}
	if err != nil {
		return fmt.Errorf("append %d rows: %w", len(rows), err)
	}
	return nil
}

// abandon makes the next append open another stream. One that could not connect for a reason that the client library does
// not retry, an expired credential for example, stays broken for good. It is not closed: the library goes on retrying what
// is under way on a closed stream for ever.
func (b *BigQuery) abandon(o *opening) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opening == o {
		b.opening = nil
	}
}

func rowsError(refused []*storagepb.RowError) *RowsError {
	e := &RowsError{Rows: make(map[int]string, len(refused))}
	for _, r := range refused {
		e.Rows[int(r.GetIndex())] = fmt.Sprintf("%s: %s", r.GetCode(), r.GetMessage())
	}
	return e
}

// Close ends the connection. Appends under way fail; none may begin.
func (b *BigQuery) Close() error {
	// The client waits for an attempt to open the stream, which may take minutes, and in version 1.86 it panics on an append
	// that is tried again after the client was closed. So both are ended first.
	b.cancel()
	b.sent.Wait()
	return b.client.Close()
}
