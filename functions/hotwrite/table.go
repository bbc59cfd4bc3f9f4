package hotwrite

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/bigquery/storage/managedwriter/adapt"
	"google.golang.org/api/googleapi"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Table is the name of the table in its dataset.
const Table = "telemetry"

//go:embed schema/telemetry.json
var schemaJSON []byte

//go:embed views/*.sql
var views embed.FS

// Schema returns the columns of the table. The file it comes from is also what Terraform makes the table of.
func Schema() (bigquery.Schema, error) {
	s, err := bigquery.SchemaFromJSON(schemaJSON)
	if err != nil {
		return nil, fmt.Errorf("schema/telemetry.json: %w", err)
	}
	return s, nil
}

// Descriptor describes a row as a protocol buffer message: as the Storage Write API wants it, and for decoding.
func Descriptor() (*descriptorpb.DescriptorProto, protoreflect.MessageDescriptor, error) {
	columns, err := Schema()
	if err != nil {
		return nil, nil, err
	}
	ts, err := adapt.BQSchemaToStorageTableSchema(columns)
	if err != nil {
		return nil, nil, fmt.Errorf("convert schema: %w", err)
	}
	d, err := adapt.StorageSchemaToProto2Descriptor(ts, "Row")
	if err != nil {
		return nil, nil, fmt.Errorf("make a descriptor of the schema: %w", err)
	}
	md, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil, nil, fmt.Errorf("descriptor of the schema is a %T, want a message", d)
	}
	dp, err := adapt.NormalizeDescriptor(md)
	if err != nil {
		return nil, nil, fmt.Errorf("normalise descriptor: %w", err)
	}
	return dp, md, nil
}

// Views returns the SQL of each view over a dataset's table, by the name of the view.
func Views(dataset string) (map[string]string, error) {
	files, err := fs.Glob(views, "views/*.sql")
	if err != nil {
		return nil, err
	}
	sql := make(map[string]string, len(files))
	for _, file := range files {
		text, err := views.ReadFile(file)
		if err != nil {
			return nil, err
		}
		sql[strings.TrimSuffix(path.Base(file), ".sql")] = strings.ReplaceAll(string(text), "${DATASET}", dataset)
	}
	return sql, nil
}

// retention is how long the hot table keeps a reading; the archive keeps it longer.
const retention = 90 * 24 * time.Hour

// CreateTables makes the dataset, the table and the views where they do not exist, and brings the views up to date. It is for
// local platforms and tests; on Google Cloud, Terraform does it from the same files.
func CreateTables(ctx context.Context, client *bigquery.Client, dataset string) error {
	ds := client.Dataset(dataset)
	if err := ds.Create(ctx, &bigquery.DatasetMetadata{}); err != nil && !exists(err) {
		return fmt.Errorf("create dataset %s: %w", dataset, err)
	}
	columns, err := Schema()
	if err != nil {
		return err
	}
	err = ds.Table(Table).Create(ctx, &bigquery.TableMetadata{
		Schema:           columns,
		TimePartitioning: &bigquery.TimePartitioning{Type: bigquery.DayPartitioningType, Field: "ingest_time", Expiration: retention},
		Clustering:       &bigquery.Clustering{Fields: []string{"robot_id"}},
	})
	if err != nil && !exists(err) {
		return fmt.Errorf("create table %s: %w", Table, err)
	}
	queries, err := Views(dataset)
	if err != nil {
		return err
	}
	for name, sql := range queries {
		err := ds.Table(name).Create(ctx, &bigquery.TableMetadata{ViewQuery: sql})
		if exists(err) {
			_, err = ds.Table(name).Update(ctx, bigquery.TableMetadataToUpdate{ViewQuery: sql}, "")
		}
		if err != nil {
			return fmt.Errorf("create view %s: %w", name, err)
		}
	}
	return nil
}

func exists(err error) bool {
	e, ok := errors.AsType[*googleapi.Error](err)
	return ok && e.Code == http.StatusConflict
}
