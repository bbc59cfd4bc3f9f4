package bigquery

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	bq "google.golang.org/api/bigquery/v2"
)

// catalog holds the datasets, tables and views of the one project: as resources of the API, stored beside the data in a schema whose
// name no dataset can have, and changed in the same transaction as DuckDB's own objects. A dataset is a schema of DuckDB.
type catalog struct {
	db       *database
	project  string
	location string
	engine   string // DuckDB's name of the database
	logger   *slog.Logger

	changing sync.Mutex // serializes changes
	mu       sync.RWMutex
	datasets map[string]*dataset
}

type dataset struct {
	resource *bq.Dataset
	tables   map[string]*table
}

// table is a table or a view. It is never changed: a change puts a new one in its place.
type table struct {
	resource *bq.Table
	name     string // for DuckDB: "database"."dataset"."table"
}

func (t *table) isView() bool { return t.resource.View != nil }

const catalogSchema = `"robofleet-catalog"`

// reservedDatasets are DuckDB's own schemas.
var reservedDatasets = []string{"main", "information_schema", "pg_catalog"}

// loadCatalog reads the catalog, and creates it in a new database.
func loadCatalog(ctx context.Context, db *database, project, location string, logger *slog.Logger) (*catalog, error) {
	c := &catalog{db: db, project: project, location: location, logger: logger, datasets: map[string]*dataset{}}
	conn, err := db.acquire()
	if err != nil {
		return nil, err
	}
	defer db.release(conn)
	// Every session computes with UTC, as BigQuery does; DuckDB would use the machine's time zone.
	for _, text := range []string{
		"SET GLOBAL TimeZone = 'UTC'",
		"SET GLOBAL default_null_order = 'nulls_first_on_asc_last_on_desc'", // BigQuery's order too
		"CREATE SCHEMA IF NOT EXISTS " + catalogSchema,
		"CREATE TABLE IF NOT EXISTS " + catalogSchema + ".resources (dataset_id VARCHAR, table_id VARCHAR, resource VARCHAR)",
	} {
		if err := conn.exec(ctx, text); err != nil {
			return nil, fmt.Errorf("create the catalog: %w", err)
		}
	}
	names, err := conn.strings(ctx, "SELECT current_database()")
	if err != nil {
		return nil, err
	}
	c.engine = names[0][0]
	// Datasets have an empty table_id and come before their tables.
	resources, err := conn.strings(ctx, "SELECT dataset_id, table_id, resource FROM "+catalogSchema+".resources ORDER BY 1, 2")
	if err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	for _, row := range resources {
		datasetID, tableID, text := row[0], row[1], []byte(row[2])
		if tableID == "" {
			d := &dataset{resource: &bq.Dataset{}, tables: map[string]*table{}}
			if err := json.Unmarshal(text, d.resource); err != nil {
				return nil, fmt.Errorf("read dataset %s of the catalog: %w", datasetID, err)
			}
			c.datasets[datasetID] = d
			continue
		}
		t := &table{resource: &bq.Table{}, name: c.engineName(datasetID, tableID)}
		if err := json.Unmarshal(text, t.resource); err != nil {
			return nil, fmt.Errorf("read table %s.%s of the catalog: %w", datasetID, tableID, err)
		}
		if d := c.datasets[datasetID]; d != nil {
			d.tables[tableID] = t
		}
	}
	return c, nil
}

// strings runs a query whose columns are all VARCHAR.
func (c *connection) strings(ctx context.Context, text string) ([][]string, error) {
	s, err := c.prepare(text)
	if err != nil {
		return nil, err
	}
	defer s.close()
	schema, err := s.schema()
	if err != nil {
		return nil, err
	}
	r, err := s.run(ctx)
	if err != nil {
		return nil, err
	}
	defer r.close()
	all, err := r.readAll(schema, maxResultBytes)
	if err != nil {
		return nil, err
	}
	out := make([][]string, 0, all.len())
	for _, row := range all.slice(0, all.len()) {
		var decoded struct {
			F []struct{ V string }
		}
		if err := json.Unmarshal(row, &decoded); err != nil {
			return nil, fmt.Errorf("read an encoded row: %w", err)
		}
		values := make([]string, len(decoded.F))
		for i, f := range decoded.F {
			values[i] = f.V
		}
		out = append(out, values)
	}
	return out, nil
}

func (c *catalog) engineName(parts ...string) string {
	name := quoteName(c.engine)
	for _, p := range parts {
		name += "." + quoteName(p)
	}
	return name
}

// dataset returns the dataset's resource.
func (c *catalog) dataset(id string) (*bq.Dataset, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	d, ok := c.datasets[id]
	if !ok {
		return nil, notFound("Dataset", "%s:%s", c.project, id)
	}
	return d.resource, nil
}

func (c *catalog) table(datasetID, tableID string) (*table, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	d, ok := c.datasets[datasetID]
	if !ok {
		return nil, notFound("Dataset", "%s:%s", c.project, datasetID)
	}
	t, ok := d.tables[tableID]
	if !ok {
		return nil, notFound("Table", "%s:%s.%s", c.project, datasetID, tableID)
	}
	return t, nil
}

// listDatasets returns all datasets by id.
func (c *catalog) listDatasets() []*bq.Dataset {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []*bq.Dataset
	for _, id := range slices.Sorted(maps.Keys(c.datasets)) {
		out = append(out, c.datasets[id].resource)
	}
	return out
}

// listTables returns the tables and views of a dataset by id.
func (c *catalog) listTables(datasetID string) ([]*bq.Table, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	d, ok := c.datasets[datasetID]
	if !ok {
		return nil, notFound("Dataset", "%s:%s", c.project, datasetID)
	}
	var out []*bq.Table
	for _, id := range slices.Sorted(maps.Keys(d.tables)) {
		out = append(out, d.tables[id].resource)
	}
	return out, nil
}

// change runs do alone, on a connection of its own and in a transaction.
func (c *catalog) change(ctx context.Context, do func(*connection) error) error {
	conn, err := c.db.acquire()
	if err != nil {
		return err
	}
	defer c.db.release(conn)
	return conn.transact(ctx, func() error { return do(conn) })
}

// store replaces the stored resource of a dataset or table; nil removes it.
//
// The resource is a pointer, so that nil is told from an empty resource.
func store[T any](ctx context.Context, conn *connection, datasetID, tableID string, resource *T) error {
	err := conn.exec(ctx, fmt.Sprintf("DELETE FROM %s.resources WHERE dataset_id = %s AND table_id = %s",
		catalogSchema, quoteString(datasetID), quoteString(tableID)))
	if err != nil || resource == nil {
		return err
	}
	text, err := json.Marshal(resource)
	if err != nil {
		return fmt.Errorf("encode the resource %s.%s: %w", datasetID, tableID, err)
	}
	return conn.exec(ctx, fmt.Sprintf("INSERT INTO %s.resources VALUES (%s, %s, %s)",
		catalogSchema, quoteString(datasetID), quoteString(tableID), quoteString(string(text))))
}

// etag changes with every change of a resource.
func etag(resource any) string {
	h := fnv.New64a()
	_ = json.NewEncoder(h).Encode(resource) // a resource always has a JSON form, and a hash takes all that is written
	return strconv.FormatUint(h.Sum64(), 36)
}

func (c *catalog) insertDataset(ctx context.Context, r *bq.Dataset) (*bq.Dataset, error) {
	c.changing.Lock()
	defer c.changing.Unlock()
	if r.DatasetReference == nil || !isIdentifier(strings.TrimLeft(r.DatasetReference.DatasetId, "0123456789")) {
		return nil, invalid("invalid dataset ID: it has letters, digits and underscores only")
	}
	id := r.DatasetReference.DatasetId
	if slices.Contains(reservedDatasets, strings.ToLower(id)) {
		return nil, invalid("dataset ID %q is reserved by the local BigQuery", id)
	}
	if _, err := c.dataset(id); err == nil {
		return nil, duplicate("Dataset", c.project+":"+id)
	}
	now := time.Now().UnixMilli()
	r.Kind, r.Id, r.DatasetReference.ProjectId = "bigquery#dataset", c.project+":"+id, c.project
	r.Location, r.CreationTime, r.LastModifiedTime = cmp.Or(r.Location, c.location), now, now
	r.Etag = etag(r)
	err := c.change(ctx, func(conn *connection) error {
		if err := conn.exec(ctx, "CREATE SCHEMA "+c.engineName(id)); err != nil {
			return fmt.Errorf("create dataset %s: %w", id, err)
		}
		return store(ctx, conn, id, "", r)
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.datasets[id] = &dataset{resource: r, tables: map[string]*table{}}
	c.mu.Unlock()
	return r, nil
}

// updateDataset replaces a dataset's resource by what edit makes of it.
func (c *catalog) updateDataset(ctx context.Context, id, ifMatch string, edit func(*bq.Dataset) (*bq.Dataset, error)) (*bq.Dataset, error) {
	c.changing.Lock()
	defer c.changing.Unlock()
	old, err := c.dataset(id)
	if err != nil {
		return nil, err
	}
	if ifMatch != "" && ifMatch != old.Etag {
		return nil, errPrecondition
	}
	r, err := edit(old)
	if err != nil {
		return nil, err
	}
	r.Kind, r.Id, r.DatasetReference, r.Location, r.CreationTime = old.Kind, old.Id, old.DatasetReference, old.Location, old.CreationTime
	r.LastModifiedTime = time.Now().UnixMilli()
	r.Etag = ""
	r.Etag = etag(r)
	err = c.change(ctx, func(conn *connection) error { return store(ctx, conn, id, "", r) })
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.datasets[id].resource = r
	c.mu.Unlock()
	return r, nil
}

// errPrecondition answers an If-Match that does not match.
var errPrecondition = &apiError{412, "conditionNotMet", "Precondition Failed: the resource has changed since it was read"}

// deleteDataset removes a dataset, and with contents its tables too.
func (c *catalog) deleteDataset(ctx context.Context, id string, contents bool) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	tables, err := c.listTables(id)
	if err != nil {
		return err
	}
	if len(tables) > 0 && !contents {
		return &apiError{400, "resourceInUse", fmt.Sprintf("Dataset %s:%s is still in use", c.project, id)}
	}
	err = c.change(ctx, func(conn *connection) error {
		if err := conn.exec(ctx, "DROP SCHEMA "+c.engineName(id)+" CASCADE"); err != nil {
			return fmt.Errorf("drop dataset %s: %w", id, err)
		}
		return conn.exec(ctx, "DELETE FROM "+catalogSchema+".resources WHERE dataset_id = "+quoteString(id))
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.datasets, id)
	c.mu.Unlock()
	return nil
}

func (c *catalog) insertTable(ctx context.Context, datasetID string, r *bq.Table) (*bq.Table, error) {
	c.changing.Lock()
	defer c.changing.Unlock()
	if _, err := c.dataset(datasetID); err != nil {
		return nil, err
	}
	if r.TableReference == nil || r.TableReference.TableId == "" || strings.ContainsAny(r.TableReference.TableId, "`\".$*\x00") {
		return nil, invalid("invalid table ID")
	}
	id := r.TableReference.TableId
	fullName := fmt.Sprintf("%s:%s.%s", c.project, datasetID, id)
	if _, err := c.table(datasetID, id); err == nil {
		return nil, duplicate("Table", fullName)
	}
	if r.MaterializedView != nil || r.ExternalDataConfiguration != nil || r.SnapshotDefinition != nil || r.CloneDefinition != nil {
		return nil, invalid("only tables and views are supported by the local BigQuery")
	}
	r.Kind, r.Id, r.Type, r.Location, r.CreationTime = "bigquery#table", fullName, "TABLE", c.location, time.Now().UnixMilli()
	r.TableReference = &bq.TableReference{ProjectId: c.project, DatasetId: datasetID, TableId: id}
	t := &table{resource: r, name: c.engineName(datasetID, id)}
	err := c.change(ctx, func(conn *connection) error {
		if err := c.define(ctx, conn, t); err != nil {
			return err
		}
		return c.save(ctx, conn, r)
	})
	if err != nil {
		return nil, err
	}
	c.put(t)
	return r, nil
}

// define creates the table or view in DuckDB.
func (c *catalog) define(ctx context.Context, conn *connection, t *table) error {
	r := t.resource
	if r.View != nil {
		return c.defineView(ctx, conn, t)
	}
	if r.Schema == nil || len(r.Schema.Fields) == 0 {
		return invalid("a table without columns is not supported by the local BigQuery")
	}
	if err := normalizeFields(r.Schema.Fields, ""); err != nil {
		return invalid("%v", err)
	}
	columns := make([]string, len(r.Schema.Fields))
	for i, f := range r.Schema.Fields {
		columns[i] = columnDDL(f)
	}
	if err := conn.exec(ctx, "CREATE TABLE "+t.name+" ("+strings.Join(columns, ", ")+")"); err != nil {
		return fmt.Errorf("create table %s: %w", r.Id, err)
	}
	return nil
}

// defineView creates or replaces the view in DuckDB and sets the schema of its resource.
func (c *catalog) defineView(ctx context.Context, conn *connection, t *table) error {
	r := t.resource
	if r.View.UseLegacySql {
		return invalid("legacy SQL is not supported by the local BigQuery: set useLegacySql to false")
	}
	query, err := c.translate(r.View.Query, nil, "")
	if err != nil {
		return err
	}
	s, err := conn.prepare(query)
	if err != nil {
		return invalidQuery("%v", err)
	}
	fields, err := s.schema()
	s.close()
	if err != nil {
		return invalidQuery("%v", err)
	}
	for i, f := range fields {
		if f.Name == "f"+strconv.Itoa(i)+"_" {
			return invalidQuery("CREATE VIEW has columns without a name: give each expression an alias")
		}
	}
	if err := conn.exec(ctx, "CREATE OR REPLACE VIEW "+t.name+" AS "+query); err != nil {
		return invalidQuery("%v", err)
	}
	r.Type, r.Schema = "VIEW", &bq.TableSchema{Fields: fields}
	return nil
}

// save stores a changed resource of a table or view.
func (c *catalog) save(ctx context.Context, conn *connection, r *bq.Table) error {
	r.LastModifiedTime = uint64(time.Now().UnixMilli())
	r.Etag = ""
	r.Etag = etag(r)
	return store(ctx, conn, r.TableReference.DatasetId, r.TableReference.TableId, r)
}

func (c *catalog) put(t *table) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ref := t.resource.TableReference
	c.datasets[ref.DatasetId].tables[ref.TableId] = t
}

// updateTable replaces a table's resource by what edit makes of it, and its columns or query where they have changed.
func (c *catalog) updateTable(ctx context.Context, datasetID, id, ifMatch string, edit func(*bq.Table) (*bq.Table, error)) (*bq.Table, error) {
	c.changing.Lock()
	defer c.changing.Unlock()
	current, err := c.table(datasetID, id)
	if err != nil {
		return nil, err
	}
	old := current.resource
	if ifMatch != "" && ifMatch != old.Etag {
		return nil, errPrecondition
	}
	r, err := edit(old)
	if err != nil {
		return nil, err
	}
	r.Kind, r.Id, r.TableReference, r.Type = old.Kind, old.Id, old.TableReference, old.Type
	r.Location, r.CreationTime = old.Location, old.CreationTime
	if (r.View == nil) != (old.View == nil) {
		return nil, invalid("a table cannot become a view, nor a view a table")
	}
	t := &table{resource: r, name: current.name}
	schemaChanged := false
	err = c.change(ctx, func(conn *connection) error {
		switch {
		case r.View != nil:
			if err := c.defineView(ctx, conn, t); err != nil {
				return err
			}
		case r.Schema == nil:
			r.Schema = old.Schema
		default:
			if err := normalizeFields(r.Schema.Fields, ""); err != nil {
				return invalid("%v", err)
			}
			ddl, err := schemaChange(t.name, old.Schema.Fields, r.Schema.Fields)
			if err != nil {
				return invalid("%v", err)
			}
			for _, text := range ddl {
				schemaChanged = true
				if err := conn.exec(ctx, text); err != nil {
					return fmt.Errorf("change table %s: %w", r.Id, err)
				}
			}
		}
		return c.save(ctx, conn, r)
	})
	if err != nil {
		return nil, err
	}
	c.put(t)
	if schemaChanged {
		c.refreshViews(ctx)
	}
	return r, nil
}

// refreshViews defines every view anew after a table has changed its columns: DuckDB refuses a view whose columns are not those of its
// definition, where BigQuery expands SELECT * at each query. A view that cannot be defined is left to fail when it is queried.
func (c *catalog) refreshViews(ctx context.Context) {
	c.mu.RLock()
	var views []*table
	for _, d := range c.datasets {
		for _, t := range d.tables {
			if t.isView() {
				views = append(views, t)
			}
		}
	}
	c.mu.RUnlock()
	// In order of creation, because a view may read one that is older than it.
	slices.SortFunc(views, func(a, b *table) int { return cmp.Compare(a.resource.CreationTime, b.resource.CreationTime) })
	for _, v := range views {
		r := *v.resource
		t := &table{resource: &r, name: v.name}
		err := c.change(ctx, func(conn *connection) error {
			if err := c.defineView(ctx, conn, t); err != nil {
				return err
			}
			return c.save(ctx, conn, &r)
		})
		if err != nil {
			c.logger.WarnContext(ctx, "view does not fit its changed table", "view", r.Id, "err", err)
			continue
		}
		c.put(t)
	}
}

func (c *catalog) deleteTable(ctx context.Context, datasetID, id string) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	t, err := c.table(datasetID, id)
	if err != nil {
		return err
	}
	kind := "TABLE"
	if t.isView() {
		kind = "VIEW"
	}
	err = c.change(ctx, func(conn *connection) error {
		if err := conn.exec(ctx, "DROP "+kind+" "+t.name); err != nil {
			return fmt.Errorf("drop %s: %w", t.resource.Id, err)
		}
		return store[bq.Table](ctx, conn, datasetID, id, nil)
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.datasets[datasetID].tables, id)
	c.mu.Unlock()
	return nil
}
