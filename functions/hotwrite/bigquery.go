package hotwrite

import (
	"context"
	"fmt"
	"sync"

	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"cloud.google.com/go/bigquery/storage/managedwriter"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
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
	open   func() (*managedwriter.ManagedStream, error)

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
	var opts []option.ClientOption
	if cfg.StorageEndpoint != "" {
		opts = append(opts, option.WithEndpoint(cfg.StorageEndpoint), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	}
	client, err := managedwriter.NewClient(ctx, cfg.Project, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to BigQuery: %w", err)
	}
	b := &BigQuery{client: client}
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
			b.mu.Lock()
			b.opening = nil // the next append tries again
			b.mu.Unlock()
		}
		close(o.done)
	}()
	return o
}

// Append implements Warehouse.
func (b *BigQuery) Append(ctx context.Context, rows [][]byte) error {
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
		return fmt.Errorf("append %d rows: %w", len(rows), err)
	}
	response, err := result.FullResponse(ctx)
	if refused := response.GetRowErrors(); len(refused) > 0 {
		return rowsError(refused)
	}
	if err != nil {
		return fmt.Errorf("append %d rows: %w", len(rows), err)
	}
	return nil
}

func rowsError(refused []*storagepb.RowError) *RowsError {
	e := &RowsError{Rows: make(map[int]string, len(refused))}
	for _, r := range refused {
		e.Rows[int(r.GetIndex())] = fmt.Sprintf("%s: %s", r.GetCode(), r.GetMessage())
	}
	return e
}

// Close ends the connection. Appends under way fail.
func (b *BigQuery) Close() error { return b.client.Close() }
