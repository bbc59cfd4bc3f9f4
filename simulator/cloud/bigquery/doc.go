// Package bigquery is the embedded BigQuery: datasets, tables, views and queries over the REST API, and the Storage Write API over gRPC,
// both as Google's client libraries speak them, in front of DuckDB.
//
// It serves one project. Data is one DuckDB file, or nothing but memory. A row is durable and visible to queries when its append is
// answered, and survives kill -9.
//
// # What there is
//
// REST, below /bigquery/v2/ or the root: datasets and tables (insert, get, list, patch, update, delete), tabledata.list, jobs.query,
// jobs.insert of query jobs (dry runs included), jobs.get, list and cancel, jobs.getQueryResults, projects.list. Tables have columns of
// all types but GEOGRAPHY, BIGNUMERIC, INTERVAL and RANGE; partitioning, clustering and what else describes a table is kept and returned,
// and changes nothing. Jobs and their results are kept in memory, the newest thousand.
//
// Storage Write API: the default stream, and committed streams with offsets, which end with the server. A request with a bad row is
// refused as a whole, with the bad rows in row_errors.
//
// # GoogleSQL
//
// A statement (SELECT, INSERT, UPDATE or DELETE) is translated token by token; see the templates and rules in functions.go. What is not
// translated reaches DuckDB as it is, and what DuckDB refuses is a 400 invalidQuery with its message. Known differences:
//
//   - Not supported: scripts, DDL in SQL, MERGE, INFORMATION_SCHEMA, pseudo-columns (_PARTITIONTIME), wildcard tables, time travel, SELECT
//     AS STRUCT, user-defined functions, the pipe syntax, the operator ^, weeks that begin on Sunday, formats that are not literals,
//     aliases of UNNEST left out when its elements are structs, and arrays as tables by their path alone (FROM t, t.tags).
//   - Names of tables and datasets are not case-sensitive, unlike in BigQuery.
//   - Division of floats by zero is infinite or NULL where BigQuery fails; SAFE_DIVIDE is NULL in both.
//   - GREATEST and LEAST pass over NULLs; in BigQuery one NULL makes the result NULL.
//   - Arithmetic between literals is in 32 bits: 60*60*24*365*100 overflows, and fails. With a column in it, it is in 64.
//   - CAST(FLOAT64 AS STRING) writes 1.0 where BigQuery writes 1. CAST between STRING and BYTES follows DuckDB's escapes.
//   - CAST(FLOAT64 AS INT64) rounds a half to the even number, BigQuery away from zero.
//   - LIKE knows no escape character.
//   - An OFFSET or ORDINAL beyond the array is NULL, as with SAFE_OFFSET; BigQuery fails.
//   - APPROX_QUANTILES is exact. JSON keeps its spelling: BigQuery sorts and trims it.
//   - A column whose expression has no alias is named f0_, f1_ and so on as in BigQuery, except where DuckDB's own name for it is a plain
//     identifier (CURRENT_DATE without parentheses, for example).
package bigquery
