package bigquery

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unsafe"

	duckdb "github.com/duckdb/duckdb-go/v2/mapping"
	bq "google.golang.org/api/bigquery/v2"
)

// rows are rows of a result as BigQuery's REST API writes them: {"f":[{"v":"1"},{"v":null}]}, one after the other, without separators.
// TIMESTAMP is in microseconds since 1970 (formatOptions.useInt64Timestamp).
type rows struct {
	text []byte
	ends []int // of each row, in text
}

func (r *rows) len() int { return len(r.ends) }

// slice returns the JSON of rows from to to (exclusive), each on its own.
func (r *rows) slice(from, to int) []json.RawMessage {
	out := make([]json.RawMessage, 0, to-from)
	for i := from; i < to; i++ {
		begin := 0
		if i > 0 {
			begin = r.ends[i-1]
		}
		out = append(out, r.text[begin:r.ends[i]])
	}
	return out
}

// readAll encodes all rows of the result. More than limit bytes is errTooLarge.
func (r *result) readAll(schema []*bq.TableFieldSchema, limit int) (*rows, error) {
	out := &rows{}
	columns := make([]reader, len(schema))
	for i := range columns {
		t := duckdb.ColumnLogicalType(&r.handle, duckdb.IdxT(i))
		columns[i] = newReader(t)
		duckdb.DestroyLogicalType(&t)
	}
	for {
		chunk := duckdb.FetchChunk(r.handle)
		if chunk.Ptr == nil {
			return out, nil
		}
		for i := range columns {
			columns[i].attach(duckdb.DataChunkGetVector(chunk, duckdb.IdxT(i)))
		}
		for row := range int(duckdb.DataChunkGetSize(chunk)) {
			out.text = appendRecord(out.text, columns, row)
			out.ends = append(out.ends, len(out.text))
		}
		duckdb.DestroyDataChunk(&chunk)
		if len(out.text) > limit {
			return nil, errTooLarge
		}
	}
}

// errTooLarge says that a result does not fit in what the server keeps for a job.
var errTooLarge = errors.New("response too large to return: select fewer rows or columns")

// schema is the result's schema in BigQuery's terms. A column without a name that BigQuery would accept is an expression without an
// alias: it is named f0_, f1_, … as in BigQuery.
func (s *statement) schema() ([]*bq.TableFieldSchema, error) {
	n := int(duckdb.PreparedStatementColumnCount(s.handle))
	fields := make([]*bq.TableFieldSchema, 0, n)
	unnamed := 0
	for i := range n {
		name := duckdb.PreparedStatementColumnName(s.handle, duckdb.IdxT(i))
		if !isIdentifier(name) {
			name = "f" + strconv.Itoa(unnamed) + "_"
			unnamed++
		}
		t := duckdb.PreparedStatementColumnLogicalType(s.handle, duckdb.IdxT(i))
		f, err := fieldOf(name, t)
		duckdb.DestroyLogicalType(&t)
		if err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	return fields, nil
}

// isIdentifier says whether s is a name that BigQuery accepts for a column without quotes.
func isIdentifier(s string) bool {
	for i, c := range []byte(s) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// fieldOf describes a DuckDB type as a column of a BigQuery result.
func fieldOf(name string, t duckdb.LogicalType) (*bq.TableFieldSchema, error) {
	f := &bq.TableFieldSchema{Name: name, Mode: "NULLABLE"}
	switch id := duckdb.GetTypeId(t); id {
	case duckdb.TypeBoolean:
		f.Type = "BOOLEAN"
	case duckdb.TypeTinyInt, duckdb.TypeSmallInt, duckdb.TypeInteger, duckdb.TypeBigInt, duckdb.TypeHugeInt,
		duckdb.TypeUTinyInt, duckdb.TypeUSmallInt, duckdb.TypeUInteger, duckdb.TypeUBigInt, duckdb.TypeUHugeInt, duckdb.TypeSQLNull:
		f.Type = "INTEGER" // SUM(INT64) is a HUGEINT in DuckDB, and the literal NULL an INT64 in BigQuery
	case duckdb.TypeFloat, duckdb.TypeDouble:
		f.Type = "FLOAT"
	case duckdb.TypeDecimal:
		f.Type = "NUMERIC"
	case duckdb.TypeVarchar:
		f.Type = "STRING"
		if duckdb.LogicalTypeGetAlias(t) == "JSON" {
			f.Type = "JSON"
		}
	case duckdb.TypeBlob:
		f.Type = "BYTES"
	case duckdb.TypeDate:
		f.Type = "DATE"
	case duckdb.TypeTime:
		f.Type = "TIME"
	case duckdb.TypeTimestamp, duckdb.TypeTimestampS, duckdb.TypeTimestampMS, duckdb.TypeTimestampNS:
		f.Type = "DATETIME"
	case duckdb.TypeTimestampTZ:
		f.Type = "TIMESTAMP"
	case duckdb.TypeInterval:
		f.Type = "INTERVAL"
	case duckdb.TypeUUID:
		f.Type = "STRING"
	case duckdb.TypeList:
		child := duckdb.ListTypeChildType(t)
		defer duckdb.DestroyLogicalType(&child)
		elem, err := fieldOf(name, child)
		if err != nil {
			return nil, err
		}
		if elem.Mode == "REPEATED" {
			return nil, fmt.Errorf("column %s is an array of arrays, which BigQuery does not have", name)
		}
		elem.Mode = "REPEATED"
		return elem, nil
	case duckdb.TypeStruct:
		f.Type = "RECORD"
		for i := range int(duckdb.StructTypeChildCount(t)) {
			childName := duckdb.StructTypeChildName(t, duckdb.IdxT(i))
			if childName == "" {
				childName = "_field_" + strconv.Itoa(i+1)
			}
			childType := duckdb.StructTypeChildType(t, duckdb.IdxT(i))
			child, err := fieldOf(childName, childType)
			duckdb.DestroyLogicalType(&childType)
			if err != nil {
				return nil, err
			}
			f.Fields = append(f.Fields, child)
		}
	default:
		return nil, fmt.Errorf("column %s has DuckDB's type %d, which has no equal in BigQuery", name, id)
	}
	return f, nil
}

// reader reads one vector of a data chunk.
type reader struct {
	kind     duckdb.Type
	physical duckdb.Type // of a DECIMAL
	scale    int         // of a DECIMAL
	children []reader
	data     unsafe.Pointer
	validity unsafe.Pointer // nil: no row is NULL
}

func newReader(t duckdb.LogicalType) reader {
	r := reader{kind: duckdb.GetTypeId(t)}
	switch r.kind {
	case duckdb.TypeDecimal:
		r.physical, r.scale = duckdb.DecimalInternalType(t), int(duckdb.DecimalScale(t))
	case duckdb.TypeList:
		child := duckdb.ListTypeChildType(t)
		r.children = []reader{newReader(child)}
		duckdb.DestroyLogicalType(&child)
	case duckdb.TypeStruct:
		for i := range int(duckdb.StructTypeChildCount(t)) {
			child := duckdb.StructTypeChildType(t, duckdb.IdxT(i))
			r.children = append(r.children, newReader(child))
			duckdb.DestroyLogicalType(&child)
		}
	}
	return r
}

// attach makes r read vector v, until v's chunk is destroyed.
func (r *reader) attach(v duckdb.Vector) {
	r.data, r.validity = duckdb.VectorGetData(v), duckdb.VectorGetValidity(v)
	switch r.kind {
	case duckdb.TypeList:
		r.children[0].attach(duckdb.ListVectorGetChild(v))
	case duckdb.TypeStruct:
		for i := range r.children {
			r.children[i].attach(duckdb.StructVectorGetChild(v, duckdb.IdxT(i)))
		}
	}
}

func at[T any](r *reader, row int) T { return *slot[T](r.data, row) }

func (r *reader) null(row int) bool {
	return r.validity != nil && *slot[uint64](r.validity, row/64)>>(row%64)&1 == 0
}

// bytes are the bytes of a VARCHAR or BLOB, valid until the chunk is destroyed.
func (r *reader) bytes(row int) []byte { return slot[stringValue](r.data, row).bytes() }

func appendRecord(dst []byte, columns []reader, row int) []byte {
	dst = append(dst, `{"f":[`...)
	for i := range columns {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"v":`...)
		dst = columns[i].appendValue(dst, row)
		dst = append(dst, '}')
	}
	return append(dst, `]}`...)
}

// appendValue appends the value as the REST API writes it: every scalar is a JSON string.
func (r *reader) appendValue(dst []byte, row int) []byte {
	if r.null(row) {
		if r.kind == duckdb.TypeList {
			return append(dst, `[]`...) // a NULL array is returned as an empty one
		}
		return append(dst, `null`...)
	}
	switch r.kind {
	case duckdb.TypeList:
		e := at[listEntry](r, row)
		dst = append(dst, '[')
		for i := range int(e.length) {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, `{"v":`...)
			dst = r.children[0].appendValue(dst, int(e.offset)+i)
			dst = append(dst, '}')
		}
		return append(dst, ']')
	case duckdb.TypeStruct:
		return appendRecord(dst, r.children, row)
	case duckdb.TypeVarchar:
		return appendQuoted(dst, r.bytes(row))
	}
	dst = append(dst, '"')
	dst = r.appendScalar(dst, row)
	return append(dst, '"')
}

// appendScalar appends the text of a value that needs no JSON escapes.
func (r *reader) appendScalar(dst []byte, row int) []byte {
	switch r.kind {
	case duckdb.TypeBoolean:
		return strconv.AppendBool(dst, at[bool](r, row))
	case duckdb.TypeTinyInt:
		return strconv.AppendInt(dst, int64(at[int8](r, row)), 10)
	case duckdb.TypeSmallInt:
		return strconv.AppendInt(dst, int64(at[int16](r, row)), 10)
	case duckdb.TypeInteger:
		return strconv.AppendInt(dst, int64(at[int32](r, row)), 10)
	case duckdb.TypeBigInt, duckdb.TypeTimestampTZ:
		return strconv.AppendInt(dst, at[int64](r, row), 10)
	case duckdb.TypeUTinyInt:
		return strconv.AppendUint(dst, uint64(at[uint8](r, row)), 10)
	case duckdb.TypeUSmallInt:
		return strconv.AppendUint(dst, uint64(at[uint16](r, row)), 10)
	case duckdb.TypeUInteger:
		return strconv.AppendUint(dst, uint64(at[uint32](r, row)), 10)
	case duckdb.TypeUBigInt:
		return strconv.AppendUint(dst, at[uint64](r, row), 10)
	case duckdb.TypeHugeInt:
		return at[int128](r, row).big().Append(dst, 10)
	case duckdb.TypeUHugeInt:
		u := at[[2]uint64](r, row)
		v := new(big.Int).Lsh(new(big.Int).SetUint64(u[1]), 64)
		return v.Add(v, new(big.Int).SetUint64(u[0])).Append(dst, 10)
	case duckdb.TypeFloat:
		return appendFloat(dst, float64(at[float32](r, row)), 32)
	case duckdb.TypeDouble:
		return appendFloat(dst, at[float64](r, row), 64)
	case duckdb.TypeDecimal:
		return append(dst, decimalText(r.unscaled(row), r.scale)...)
	case duckdb.TypeBlob:
		return base64.StdEncoding.AppendEncode(dst, r.bytes(row))
	case duckdb.TypeDate:
		return time.Unix(int64(at[int32](r, row))*86400, 0).UTC().AppendFormat(dst, time.DateOnly)
	case duckdb.TypeTime:
		return time.UnixMicro(at[int64](r, row)).UTC().AppendFormat(dst, "15:04:05.999999")
	case duckdb.TypeTimestamp:
		return appendDateTime(dst, time.UnixMicro(at[int64](r, row)))
	case duckdb.TypeTimestampS:
		return appendDateTime(dst, time.Unix(at[int64](r, row), 0))
	case duckdb.TypeTimestampMS:
		return appendDateTime(dst, time.UnixMilli(at[int64](r, row)))
	case duckdb.TypeTimestampNS:
		return appendDateTime(dst, time.Unix(0, at[int64](r, row)))
	case duckdb.TypeInterval:
		return append(dst, intervalText(at[interval](r, row))...)
	case duckdb.TypeUUID:
		return appendUUID(dst, at[int128](r, row))
	}
	return dst // fieldOf has refused every other type
}

func (r *reader) unscaled(row int) *big.Int {
	switch r.physical {
	case duckdb.TypeSmallInt:
		return big.NewInt(int64(at[int16](r, row)))
	case duckdb.TypeInteger:
		return big.NewInt(int64(at[int32](r, row)))
	case duckdb.TypeBigInt:
		return big.NewInt(at[int64](r, row))
	default:
		return at[int128](r, row).big()
	}
}

// decimalText writes unscaled / 10^scale without trailing zeros, as BigQuery writes NUMERIC.
func decimalText(unscaled *big.Int, scale int) string {
	s := unscaled.String()
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	if len(s) <= scale {
		s = strings.Repeat("0", scale+1-len(s)) + s
	}
	whole, fraction := s[:len(s)-scale], strings.TrimRight(s[len(s)-scale:], "0")
	if fraction == "" {
		return sign + whole
	}
	return sign + whole + "." + fraction
}

// appendFloat writes whole numbers with ".0", as BigQuery does, and the others as short as they read back equal.
func appendFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	case f == math.Trunc(f) && math.Abs(f) < 1e15:
		return strconv.AppendFloat(dst, f, 'f', 1, bits)
	}
	return strconv.AppendFloat(dst, f, 'g', -1, bits)
}

func appendDateTime(dst []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(dst, "2006-01-02T15:04:05.999999")
}

// intervalText writes [sign]Y-M [sign]D [sign]H:M:S[.F], BigQuery's canonical form of INTERVAL.
func intervalText(i interval) string {
	sign := func(negative bool) string {
		if negative {
			return "-"
		}
		return ""
	}
	months, micros := i.months, i.micros
	if months < 0 {
		months = -months
	}
	if micros < 0 {
		micros = -micros
	}
	s := fmt.Sprintf("%s%d-%d %d %s%d:%d:%d", sign(i.months < 0), months/12, months%12, i.days,
		sign(i.micros < 0), micros/3_600_000_000, micros/60_000_000%60, micros/1_000_000%60)
	if f := micros % 1_000_000; f != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%06d", f), "0")
	}
	return s
}

// appendUUID writes a UUID, which DuckDB keeps as an int128 with the first bit flipped.
func appendUUID(dst []byte, u int128) []byte {
	var b [16]byte
	high := uint64(u.high) ^ 1<<63
	for i := range 8 {
		b[i], b[8+i] = byte(high>>(56-8*i)), byte(u.low>>(56-8*i))
	}
	for i, part := range [][]byte{b[:4], b[4:6], b[6:8], b[8:10], b[10:]} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, part)
	}
	return dst
}

// appendQuoted appends s as a JSON string.
func appendQuoted(dst, s []byte) []byte {
	for _, c := range s {
		if c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			quoted, err := json.Marshal(string(s))
			if err != nil { // cannot happen: a string always has a JSON form
				return append(dst, `null`...)
			}
			return append(dst, quoted...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// withFloatTimestamps rewrites a row for clients that do not ask for useInt64Timestamp: TIMESTAMP in seconds, as a decimal.
func withFloatTimestamps(row json.RawMessage, fields []*bq.TableFieldSchema) (json.RawMessage, error) {
	var value any
	if err := json.Unmarshal(row, &value); err != nil {
		return nil, fmt.Errorf("read an encoded row: %w", err)
	}
	return json.Marshal(floatRecord(value, fields))
}

func floatRecord(record any, fields []*bq.TableFieldSchema) any {
	cells, _ := record.(map[string]any)["f"].([]any)
	for i, c := range cells {
		cell := c.(map[string]any)
		cell["v"] = floatValue(cell["v"], fields[i])
	}
	return record
}

func floatValue(value any, f *bq.TableFieldSchema) any {
	switch v := value.(type) {
	case []any:
		for _, c := range v {
			cell := c.(map[string]any)
			cell["v"] = floatValue(cell["v"], f)
		}
	case map[string]any:
		return floatRecord(v, f.Fields)
	case string:
		if f.Type == "TIMESTAMP" {
			micros, ok := new(big.Int).SetString(v, 10)
			if ok {
				return decimalText(micros, 6)
			}
		}
	}
	return value
}
