package bigquery

import (
	"math"
	"math/big"
	"unsafe"
)

// The memory of DuckDB's vectors, as duckdb.h documents it for duckdb_vector_get_data and duckdb_vector_get_validity: an array of one of
// the types below, or of plain integers and floats, and a mask of one bit per row that is set when the row is not NULL. It belongs to
// DuckDB, is not moved by Go, and is valid as long as its chunk.

// slot is element i of the array at p. The caller stays within the chunk's rows.
func slot[T any](p unsafe.Pointer, i int) *T {
	var zero T
	return (*T)(unsafe.Add(p, i*int(unsafe.Sizeof(zero))))
}

// stringValue is a VARCHAR or BLOB. Up to twelve bytes are in the value itself: the prefix and, in place of the pointer, the rest.
type stringValue struct {
	length  uint32
	prefix  [4]byte
	pointer *byte
}

func (s *stringValue) bytes() []byte {
	if s.length <= 12 {
		return (*[12]byte)(unsafe.Pointer(&s.prefix))[:s.length] //nolint:gosec // the value has twelve bytes from its prefix on
	}
	return unsafe.Slice(s.pointer, s.length) //nolint:gosec // DuckDB says how long its string is
}

// listEntry says which elements of a list's child vector are those of a row.
type listEntry struct{ offset, length uint64 }

// int128 is a HUGEINT or the digits of a wide DECIMAL, in two's complement.
type int128 struct {
	low  uint64
	high int64
}

func (i int128) big() *big.Int {
	v := new(big.Int).Lsh(big.NewInt(i.high), 64)
	return v.Add(v, new(big.Int).SetUint64(i.low))
}

// int128Of is v, which fits.
func int128Of(v *big.Int) int128 {
	low := new(big.Int).And(v, new(big.Int).SetUint64(math.MaxUint64))
	return int128{low: low.Uint64(), high: new(big.Int).Rsh(v, 64).Int64()}
}

// interval is an INTERVAL.
type interval struct {
	months, days int32
	micros       int64
}
