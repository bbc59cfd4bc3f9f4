package bigquery

import (
	"fmt"
	"math/big"
	"strings"
	"unsafe"

	duckdb "github.com/duckdb/duckdb-go/v2/mapping"
	bq "google.golang.org/api/bigquery/v2"
)

// rowBatch collects rows for one table, as chunks of DuckDB vectors, and appends them in one go. It must be closed.
type rowBatch struct {
	appender duckdb.Appender
	types    []duckdb.LogicalType
	chunk    duckdb.DataChunk
	columns  []column
	rows     int  // in the chunk
	refused  bool // a row was bad: nothing is appended, and the rest is decoded for its errors only
}

// newRowBatch begins a batch within a transaction of conn: closing it without flush adds nothing.
func newRowBatch(conn *connection, engine, dataset, table string, fields []*bq.TableFieldSchema) (*rowBatch, error) {
	b := &rowBatch{}
	if duckdb.AppenderCreateExt(conn.handle, engine, dataset, table, &b.appender) == duckdb.StateError {
		err := &engineError{text: duckdb.AppenderError(b.appender)}
		duckdb.AppenderDestroy(&b.appender)
		return nil, err
	}
	n := int(duckdb.AppenderColumnCount(b.appender))
	if n != len(fields) {
		duckdb.AppenderDestroy(&b.appender)
		return nil, fmt.Errorf("the table has %d columns where its schema has %d", n, len(fields))
	}
	for i := range n {
		b.types = append(b.types, duckdb.AppenderColumnType(b.appender, duckdb.IdxT(i)))
	}
	b.chunk = duckdb.CreateDataChunk(b.types)
	b.columns = newColumns(fields)
	b.attach()
	return b, nil
}

func (b *rowBatch) attach() {
	for i := range b.columns {
		b.columns[i].attach(duckdb.DataChunkGetVector(b.chunk, duckdb.IdxT(i)))
	}
	b.rows = 0
}

// next returns the index in the columns' vectors at which the next row is to be written, after making room.
func (b *rowBatch) next() (int, error) {
	if b.rows == vectorSize {
		if err := b.append(); err != nil {
			return 0, err
		}
	}
	return b.rows, nil
}

// vectorSize is the number of rows of a data chunk (STANDARD_VECTOR_SIZE of DuckDB's builds).
const vectorSize = 2048

// append hands the chunk's rows to DuckDB and empties it.
func (b *rowBatch) append() error {
	if b.rows == 0 {
		return nil
	}
	for i := range b.columns {
		b.columns[i].finish()
	}
	duckdb.DataChunkSetSize(b.chunk, duckdb.IdxT(b.rows))
	if !b.refused && duckdb.AppendDataChunk(b.appender, b.chunk) == duckdb.StateError {
		return &engineError{text: duckdb.AppenderError(b.appender)}
	}
	duckdb.DataChunkReset(b.chunk)
	b.attach()
	return nil
}

// flush writes all rows of the batch into the table, as part of the connection's transaction.
func (b *rowBatch) flush() error {
	if err := b.append(); err != nil {
		return err
	}
	if duckdb.AppenderFlush(b.appender) == duckdb.StateError {
		return &engineError{text: duckdb.AppenderError(b.appender)}
	}
	return nil
}

func (b *rowBatch) close() {
	// Destroying an appender flushes it, so what was not flushed must go before. Both report only errors of rows that are dropped here.
	duckdb.AppenderClear(b.appender)
	duckdb.AppenderDestroy(&b.appender)
	duckdb.DestroyDataChunk(&b.chunk)
	for i := range b.types {
		duckdb.DestroyLogicalType(&b.types[i])
	}
}

// column writes one vector of a chunk.
type column struct {
	field    *bq.TableFieldSchema
	vector   duckdb.Vector
	data     unsafe.Pointer
	validity unsafe.Pointer
	fields   []column // of a RECORD
	element  *column  // of a REPEATED field
	elements int      // of a REPEATED field: written so far in this chunk
	capacity int      // of a REPEATED field: room in the element's vector
	written  int      // 1 + the last row that has got a value; 0: none
}

func newColumns(fields []*bq.TableFieldSchema) []column {
	out := make([]column, len(fields))
	for i, f := range fields {
		out[i] = newColumn(f, f.Mode == "REPEATED")
	}
	return out
}

func newColumn(f *bq.TableFieldSchema, repeated bool) column {
	c := column{field: f}
	switch {
	case repeated:
		element := newColumn(f, false)
		c.element = &element
	case f.Type == "RECORD":
		c.fields = newColumns(f.Fields)
	}
	return c
}

// attach makes c write vector v, from its first row.
func (c *column) attach(v duckdb.Vector) {
	c.refresh(v)
	c.restart()
}

// restart forgets what has been written.
func (c *column) restart() {
	c.written, c.elements, c.capacity = 0, 0, vectorSize
	if c.element != nil {
		c.element.restart()
	}
	for i := range c.fields {
		c.fields[i].restart()
	}
}

// refresh finds the vector's memory, which moves when a list grows.
func (c *column) refresh(v duckdb.Vector) {
	duckdb.VectorEnsureValidityWritable(v)
	c.vector, c.data, c.validity = v, duckdb.VectorGetData(v), duckdb.VectorGetValidity(v)
	if c.element != nil {
		c.element.refresh(duckdb.ListVectorGetChild(v))
		return
	}
	for i := range c.fields {
		c.fields[i].refresh(duckdb.StructVectorGetChild(v, duckdb.IdxT(i)))
	}
}

// finish tells DuckDB how long the lists' vectors are.
func (c *column) finish() {
	if c.element != nil {
		duckdb.ListVectorSetSize(c.vector, duckdb.IdxT(c.elements))
		c.element.finish()
	}
	for i := range c.fields {
		c.fields[i].finish()
	}
}

// setValue writes a value of the column's type in DuckDB.
func setValue[T any](c *column, row int, v T) {
	*slot[T](c.data, row) = v
	c.written = row + 1
}

func (c *column) setBytes(row int, b []byte) {
	duckdb.VectorAssignStringElementLen(c.vector, duckdb.IdxT(row), b)
	c.written = row + 1
}

// setAbsent writes what a row has that does not mention the field: NULL, or an empty array. A REQUIRED field must not be absent.
func (c *column) setAbsent(row int) error {
	if c.field.Mode == "REQUIRED" {
		return fmt.Errorf("field %s is required and has no value", c.field.Name)
	}
	c.setNull(row)
	return nil
}

func (c *column) setNull(row int) {
	if c.element != nil {
		setValue(c, row, listEntry{offset: uint64(c.elements)})
		return
	}
	*slot[uint64](c.validity, row/64) &^= 1 << (row % 64)
	for i := range c.fields {
		c.fields[i].setNull(row)
	}
}

// appendElement adds an element to the array of row, and returns its index in the element's vector. The elements of a row need not be
// added at once, but before those of the next.
func (c *column) appendElement(row int) (int, error) {
	if c.written != row+1 {
		setValue(c, row, listEntry{offset: uint64(c.elements)})
	}
	if c.elements == c.capacity {
		c.capacity *= 2
		if duckdb.ListVectorReserve(c.vector, duckdb.IdxT(c.capacity)) == duckdb.StateError {
			return 0, fmt.Errorf("field %s: no memory for its elements", c.field.Name)
		}
		c.refresh(c.vector)
	}
	slot[listEntry](c.data, row).length++
	c.elements++
	return c.elements - 1, nil
}

// The ranges of BigQuery's types (https://cloud.google.com/bigquery/docs/reference/standard-sql/data-types).
const (
	minTimestampMicros = -62_135_596_800_000_000 // 0001-01-01 00:00:00
	maxTimestampMicros = 253_402_300_799_999_999 // 9999-12-31 23:59:59.999999
	minDateDays        = -719_162
	maxDateDays        = 2_932_896
)

// maxNumeric is the greatest NUMERIC, without its point: 38 digits, of which 9 follow the point.
var maxNumeric = new(big.Int).Sub(new(big.Int).Exp(big.NewInt(10), big.NewInt(38), nil), big.NewInt(1))

// parseNumeric reads a decimal with at most nine digits after its point.
func parseNumeric(s string) (*big.Int, error) {
	const scale = 9
	r, ok := new(big.Rat).SetString(s)
	if !ok || strings.ContainsAny(s, "/_xXpPbBoO") || len(s) > 100 {
		return nil, fmt.Errorf("invalid NUMERIC value: %q", s)
	}
	r.Mul(r, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(scale), nil)))
	if !r.IsInt() || r.Num().CmpAbs(maxNumeric) > 0 {
		return nil, fmt.Errorf("invalid NUMERIC value: %q has more than 29 digits before its point or 9 after it", s)
	}
	return r.Num(), nil
}
