package bigquery_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/civil"
	"github.com/google/go-cmp/cmp"
)

// rows returns the rows of a result, one per line, values separated by "|".
func rowsOf(t *testing.T, c *bigquery.Client, sql string, parameters ...bigquery.QueryParameter) string {
	t.Helper()
	return strings.Join(text(query(t, c, sql, parameters...)), "\n")
}

func TestGoogleSQLMeansWhatItMeansInBigQuery(t *testing.T) {
	server := start(t)
	c := client(t, server)
	createTable(t, c, "fleet", "r", bigquery.Schema{
		{Name: "robot", Type: bigquery.StringFieldType}, {Name: "seq", Type: bigquery.IntegerFieldType}, {Name: "t", Type: bigquery.TimestampFieldType},
		{Name: "v", Type: bigquery.FloatFieldType}, {Name: "j", Type: bigquery.JSONFieldType}, {Name: "column", Type: bigquery.StringFieldType},
		{Name: "tags", Type: bigquery.StringFieldType, Repeated: true}})
	query(t, c, `INSERT INTO fleet.r VALUES
		('a', 1, TIMESTAMP '2026-11-23 10:00:00 UTC', 1.5, JSON '{"x": {"y": 5}, "s": "text", "l": [1, 2]}', 'c1', ['p', 'q']),
		('a', 2, TIMESTAMP "2026-11-23T10:00:01.250Z", 2.5, NULL, 'c2', []),
		('a', 2, TIMESTAMP '2026-11-23 10:00:02+00', 3.5, NULL, 'c3', ['r']),
		('b', 9, TIMESTAMP '2026-11-23 11:59:59.999999', NULL, NULL, NULL, NULL)`)
	tests := []struct{ name, sql, want string }{
		{"literals of strings", `SELECT 'it\'s', "double \"quoted\"", r'raw\n', 'tab\tquote\'\x41\u00e9', '''triple 'quoted' ''', "semi;colon -- #"`,
			"it's|double \"quoted\"|raw\\n|tab\tquote'Aé|triple 'quoted' |semi;colon -- #"},
		{"literals of bytes", `SELECT b'\x00\xff', TO_HEX(B"ab"), TO_HEX(br'\n')`, "[0 255]|6162|5c6e"},
		{"literals of numbers", `SELECT 1.5, .5, 1e3, 0xFF, 2.0 * 3, 1/2, 7 - 2.5`, "1.5|0.5|1000|255|6|0.5|4.5"},
		{"comments", "SELECT 1 -- one\n, 2 # two\n, /* three */ 3", "1|2|3"},
		{"table in backticks", "SELECT COUNT(*) FROM `robofleet-local.fleet.r`", "4"},
		{"table in part backticks", "SELECT COUNT(*) FROM `robofleet-local`.fleet.`r` AS x", "4"},
		{"table with a bare project", "SELECT COUNT(*) FROM robofleet-local.fleet.r", "4"},
		{"columns by table and alias", "SELECT r.robot, r.`column` FROM fleet.r WHERE r.seq = 1", "a|c1"},
		{"column that DuckDB reserves", "SELECT column FROM fleet.r WHERE seq = 1 ORDER BY column", "c1"},
		{"comma join and aliases", "SELECT COUNT(*) FROM fleet.r a, fleet.r AS b WHERE a.seq = b.seq", "6"},
		{"join using", "SELECT COUNT(*) FROM fleet.r JOIN fleet.r AS s USING (robot, seq)", "6"},
		{"subquery and WITH", "WITH s AS (SELECT robot, MAX(seq) AS m FROM fleet.r GROUP BY robot) SELECT robot, m FROM s ORDER BY robot", "a|2\nb|9"},
		{"QUALIFY keeps one of each", "SELECT robot, seq, v FROM fleet.r WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY robot, seq ORDER BY t) = 1 ORDER BY robot, seq", "a|1|1.5\na|2|2.5\nb|9|<nil>"},
		{"EXCEPT and REPLACE", "SELECT * EXCEPT (t, v, j, column, tags) REPLACE (seq + 1 AS seq) FROM fleet.r ORDER BY seq LIMIT 1", "a|2"},
		{"set operations", "SELECT 1 UNION ALL SELECT 1 EXCEPT DISTINCT SELECT 2 ORDER BY 1", "1"},
		{"gaps by LAG", `SELECT seq, seq - LAG(seq) OVER (PARTITION BY robot ORDER BY seq) AS step FROM fleet.r WHERE robot = "a" ORDER BY seq, step`, "1|<nil>\n2|0\n2|1"},
		{"aggregates", "SELECT COUNT(*), COUNT(DISTINCT robot), COUNTIF(v > 2), SUM(seq), AVG(v), MIN(t) < MAX(t), ANY_VALUE(robot) IS NOT NULL FROM fleet.r", "4|2|2|14|2.5|true|true"},
		{"logical aggregates", "SELECT LOGICAL_AND(seq > 0), LOGICAL_OR(seq > 100), STRING_AGG(DISTINCT robot, '+' ORDER BY robot), APPROX_COUNT_DISTINCT(robot) FROM fleet.r", "true|false|a+b|2"},
		{"NULLs sort first", "SELECT v FROM fleet.r ORDER BY v", "<nil>\n1.5\n2.5\n3.5"},
		{"NULLs sort last descending", "SELECT v FROM fleet.r ORDER BY v DESC LIMIT 1", "3.5"},
		{"ARRAY_AGG", "SELECT ARRAY_AGG(seq ORDER BY t DESC LIMIT 2), ARRAY_AGG(v IGNORE NULLS ORDER BY v), ARRAY_AGG(DISTINCT robot ORDER BY robot)[OFFSET(1)] FROM fleet.r", "[9 2]|[1.5 2.5 3.5]|b"},
		{"APPROX_QUANTILES", "SELECT APPROX_QUANTILES(x, 4), APPROX_QUANTILES(x, 100)[OFFSET(95)], APPROX_QUANTILES(x, 2)[SAFE_ORDINAL(2)] FROM UNNEST(GENERATE_ARRAY(0, 100)) AS x", "[0 25 50 75 100]|95|50"},
		{"percentile over a window", "SELECT DISTINCT PERCENTILE_CONT(v, 0.5) OVER () FROM fleet.r", "2.5"},
		{"arrays", "SELECT [1, 2, 3][OFFSET(0)], [1, 2][ORDINAL(2)], [1, 2][SAFE_OFFSET(9)], [5, 6][1], ARRAY_LENGTH([]), ARRAY<INT64>[1, 2], ARRAY(SELECT seq FROM fleet.r WHERE robot = 'a' ORDER BY seq)", "1|2|<nil>|6|0|[1 2]|[1 2 2]"},
		{"arrays as sets", "SELECT 2 IN UNNEST([1, 2]), 3 NOT IN UNNEST([1, 2]), ARRAY_TO_STRING(ARRAY_CONCAT(['a'], ['b'], ['c']), '-'), ARRAY_TO_STRING(ARRAY_REVERSE(['a', 'b']), ',')", "true|true|a-b-c|b,a"},
		{"UNNEST of a column", "SELECT robot, tag FROM fleet.r, UNNEST(tags) AS tag ORDER BY tag", "a|p\na|q\na|r"},
		{"UNNEST with offset", "SELECT tag, i FROM fleet.r CROSS JOIN UNNEST(tags) AS tag WITH OFFSET AS i ORDER BY tag", "p|0\nq|1\nr|0"},
		{"UNNEST of structs", "SELECT s.a + s.b FROM UNNEST([STRUCT(1 AS a, 2 AS b), STRUCT(3 AS a, 4 AS b)]) AS s ORDER BY 1", "3\n7"},
		{"structs", "SELECT STRUCT(robot, seq AS n), STRUCT(1 AS x).x, STRUCT<a INT64, b ARRAY<STRING>>(1, ['z']).b[OFFSET(0)] FROM fleet.r WHERE seq = 1", "[a 1]|1|z"},
		{"casts", "SELECT CAST('12' AS INT64), CAST(1 AS STRING), SAFE_CAST('x' AS INT64), SAFE_CAST('1.5' AS FLOAT64), CAST('true' AS BOOL), CAST(5 AS NUMERIC), CAST([1] AS ARRAY<FLOAT64>)", "12|1|<nil>|1.5|true|5/1|[1]"},
		{"null handling", "SELECT IF(1 > 2, 'y', 'n'), IFNULL(NULL, 3), COALESCE(NULL, NULL, 4), NULLIF(1, 1), CONCAT('a', NULL), CONCAT('a', 'b', 'c')", "n|3|4|<nil>|<nil>|abc"},
		{"arithmetic", "SELECT SAFE_DIVIDE(1, 0), SAFE_DIVIDE(1, 4), DIV(7, 2), MOD(7, 2), POW(2, 3), ROUND(2.567, 1), LOG(1), LOG(8, 2), ABS(-1), 1 << 4 >> 2, 5 & 3 | 8", "<nil>|0.25|3|1|8|2.6|0|3|1|4|9"},
		{"strings", "SELECT STARTS_WITH('abc', 'ab'), ENDS_WITH('abc', 'bc'), UPPER('a'), LENGTH('äb'), SUBSTR('hello', 2, 3), SPLIT('a,b'), REPLACE('aa', 'a', 'b'), STRPOS('abc', 'c'), TRIM(' x '), LPAD('7', 3, '0'), FORMAT('%05d %s', 42, 'x')",
			"true|true|A|2|ell|[a b]|bb|3|x|007|00042 x"},
		{"regular expressions", `SELECT REGEXP_CONTAINS('R-017', r'^R-\d+$'), REGEXP_EXTRACT('R-017', r'R-(\d+)'), REGEXP_EXTRACT('abc', r'\d'), REGEXP_REPLACE('a1b2', r'\d', '')`, "true|017|<nil>|ab"},
		{"JSON", "SELECT JSON_VALUE(j, '$.x.y'), JSON_VALUE(j, '$.s'), JSON_QUERY(j, '$.x'), INT64(j.x.y), TO_JSON_STRING(STRUCT(1 AS a, 'b' AS c)), JSON_VALUE(PARSE_JSON('[7]'), '$[0]'), ARRAY_LENGTH(JSON_QUERY_ARRAY(j, '$.l')), JSON_VALUE(j.s), JSON_VALUE(j, '$.x'), JSON_VALUE(j, '$.none'), STRING(j.s) FROM fleet.r WHERE seq = 1",
			`5|text|{"y":5}|5|{"a":1,"c":"b"}|7|2|text|<nil>|<nil>|text`},
		{"timestamps", "SELECT TIMESTAMP_ADD(t, INTERVAL 90 MINUTE), TIMESTAMP_SUB(t, INTERVAL 1 DAY), TIMESTAMP_TRUNC(t, HOUR), TIMESTAMP_TRUNC(t, DAY, 'America/New_York'), DATE(t), UNIX_MICROS(t), UNIX_SECONDS(t) FROM fleet.r WHERE seq = 9",
			"2026-11-23 13:29:59.999999 +0000 UTC|2026-11-22 11:59:59.999999 +0000 UTC|2026-11-23 11:00:00 +0000 UTC|2026-11-23 05:00:00 +0000 UTC|2026-11-23|1795435199999999|1795435199"},
		{"whole units between timestamps", "SELECT TIMESTAMP_DIFF(MAX(t), MIN(t), HOUR), TIMESTAMP_DIFF(MIN(t), MAX(t), MINUTE), TIMESTAMP_DIFF(MAX(t), MIN(t), MILLISECOND) FROM fleet.r", "1|-119|7199999"},
		{"boundaries between dates", "SELECT DATE_DIFF(DATE '2026-03-01', DATE '2026-02-28', DAY), DATE_DIFF(DATE '2027-01-01', DATE '2026-12-31', YEAR), DATE_ADD(DATE '2026-01-31', INTERVAL 1 MONTH), DATE_TRUNC(DATE '2026-11-23', MONTH)", "1|1|2026-02-28|2026-11-01"},
		{"made from epochs", "SELECT TIMESTAMP_MICROS(1), TIMESTAMP_MILLIS(1500), TIMESTAMP_SECONDS(60), TIMESTAMP('2026-01-01'), DATE(2026, 2, 3), DATETIME(TIMESTAMP '2026-01-01 01:02:03 UTC')",
			"1970-01-01 00:00:00.000001 +0000 UTC|1970-01-01 00:00:01.5 +0000 UTC|1970-01-01 00:01:00 +0000 UTC|2026-01-01 00:00:00 +0000 UTC|2026-02-03|2026-01-01T01:02:03"},
		{"parts of times", "SELECT EXTRACT(HOUR FROM t), EXTRACT(DAYOFWEEK FROM t), EXTRACT(MILLISECOND FROM t), EXTRACT(DATE FROM t), EXTRACT(ISOWEEK FROM t), EXTRACT(HOUR FROM t AT TIME ZONE 'Asia/Tokyo') FROM fleet.r WHERE v = 2.5", "10|2|250|2026-11-23|48|19"},
		{"formatted times", "SELECT FORMAT_TIMESTAMP('%Y-%m-%dT%H:%M:%E3SZ', t), FORMAT_TIMESTAMP('%F %T %Z', t), FORMAT_DATE('%d/%m/%Y', DATE(t)), PARSE_TIMESTAMP('%Y%m%d %H%M', '20261123 0815') FROM fleet.r WHERE v = 2.5",
			"2026-11-23T10:00:01.250Z|2026-11-23 10:00:01 UTC|23/11/2026|2026-11-23 08:15:00 +0000 UTC"},
		{"current time", "SELECT CURRENT_TIMESTAMP() > TIMESTAMP '2026-01-01', TIMESTAMP_DIFF(CURRENT_TIMESTAMP(), CURRENT_TIMESTAMP, HOUR), CURRENT_DATE() >= DATE '2026-01-01'", "true|0|true"},
		{"ranges of times", "SELECT ARRAY_LENGTH(GENERATE_TIMESTAMP_ARRAY(TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-02', INTERVAL 6 HOUR)), GENERATE_DATE_ARRAY(DATE '2026-01-01', DATE '2026-01-03')[OFFSET(2)], GENERATE_ARRAY(1, 10, 4)", "5|2026-01-03|[1 5 9]"},
		{"INTERVAL of an expression", "SELECT TIMESTAMP '2026-01-01' + INTERVAL seq * 2 DAY FROM fleet.r WHERE seq = 1", "2026-01-03 00:00:00 +0000 UTC"},
		{"SAFE prefix", "SELECT SAFE.PARSE_DATE('%F', 'x'), SAFE.SUBSTR('abc', 2)", "<nil>|bc"},
		{"CASE, LIKE, BETWEEN, IN", "SELECT CASE robot WHEN 'a' THEN 1 ELSE 2 END, robot LIKE 'a%', seq BETWEEN 1 AND 2, seq IN (1, 5), robot IS DISTINCT FROM 'b' FROM fleet.r WHERE seq = 1", "1|true|true|true|true"},
		{"grouping by position and HAVING", "SELECT robot, COUNT(*) AS n FROM fleet.r GROUP BY 1 HAVING n > 1 ORDER BY 2", "a|3"},
		{"window frames", "SELECT SUM(seq) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM fleet.r WHERE robot = 'a' WINDOW w AS (PARTITION BY robot ORDER BY t) ORDER BY t", "1\n3\n5"},
		{"scalar subquery and EXISTS", "SELECT (SELECT MAX(seq) FROM fleet.r), EXISTS(SELECT 1 FROM fleet.r WHERE seq = 9), NOT EXISTS (SELECT 1 FROM fleet.r WHERE seq = 8)", "9|true|true"},
		{"ROLLUP", "SELECT robot, SUM(seq) FROM fleet.r GROUP BY ROLLUP(robot) ORDER BY 2", "a|5\nb|9\n<nil>|14"},
		{"hash", "SELECT TO_HEX(MD5('a')), TO_HEX(SHA256('a')) = '', FROM_BASE64('AAE=')", "0cc175b9c0f1b6a831c399e269772661|false|[0 1]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, rowsOf(t, c, test.sql)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.sql, diff)
			}
		})
	}
}

func TestExpressionsWithoutAliasAreNamedAsInBigQuery(t *testing.T) {
	c := client(t, start(t))
	it, err := c.Query("SELECT 1, 2 AS b, COUNT(*), 'x'").Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(it); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range it.Schema {
		got = append(got, f.Name+" "+string(f.Type))
	}
	if diff := cmp.Diff([]string{"f0_ INTEGER", "b INTEGER", "f1_ INTEGER", "f2_ STRING"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParametersHaveTheirTypes(t *testing.T) {
	c := client(t, start(t))
	at := time.Date(2026, 11, 23, 1, 2, 3, 456789000, time.UTC)
	type point struct {
		X int64
		S string
	}
	tests := []struct {
		name  string
		value any
		want  string
	}{
		{"int", 7, "7"},
		{"float", 2.5, "2.5"},
		{"string", `it's "x" \n @p ?`, `it's "x" \n @p ?`},
		{"empty string", "", ""},
		{"null string", bigquery.NullString{}, "<nil>"},
		{"null int", bigquery.NullInt64{}, "<nil>"},
		{"bool", true, "true"},
		{"bytes", []byte{0, 1, 255}, "[0 1 255]"},
		{"timestamp", at, at.String()},
		{"date", civil.DateOf(at), "2026-11-23"},
		{"datetime", civil.DateTimeOf(at), "2026-11-23T01:02:03.456789000"},
		{"numeric", big.NewRat(5, 4), "5/4"},
		{"array", []string{"a", "b'"}, "[a b']"},
		{"struct", point{1, "s"}, "[1 s]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := rowsOf(t, c, "SELECT @p", bigquery.QueryParameter{Name: "p", Value: test.value}); got != test.want {
				t.Errorf("named: got %s, want %s", got, test.want)
			}
			if got := rowsOf(t, c, "SELECT ?, ?", bigquery.QueryParameter{Value: test.value}, bigquery.QueryParameter{Value: "z"}); got != test.want+"|z" {
				t.Errorf("positional: got %s, want %s|z", got, test.want)
			}
		})
	}
}

func TestQueriesThatCannotRunSayWhy(t *testing.T) {
	server := start(t)
	c := client(t, server)
	createTable(t, c, "fleet", "r", bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}})
	tests := []struct {
		name, sql string
		status    int
		reason    string
		message   string
	}{
		{"syntax", "SELEC 1", http.StatusBadRequest, "invalidQuery", "syntax error"},
		{"unknown column", "SELECT b FROM fleet.r", http.StatusBadRequest, "invalidQuery", `"b"`},
		{"unknown table", "SELECT * FROM fleet.nope", http.StatusNotFound, "notFound", "Table robofleet-local:fleet.nope"},
		{"unknown dataset", "SELECT * FROM nope.r", http.StatusNotFound, "notFound", "Dataset robofleet-local:nope"},
		{"other project", "SELECT * FROM `other.fleet.r`", http.StatusNotFound, "notFound", "Project other"},
		{"no dataset", "SELECT * FROM r", http.StatusBadRequest, "invalidQuery", "must be qualified"},
		{"the catalog's own tables", "SELECT * FROM `robofleet-catalog`.resources", http.StatusNotFound, "notFound", "Dataset"},
		{"files of this machine", "SELECT * FROM read_csv('/etc/passwd')", http.StatusBadRequest, "invalidQuery", "disabled"},
		{"several statements", "SELECT 1; SELECT 2", http.StatusBadRequest, "invalidQuery", "several statements"},
		{"statement that changes the engine", "SET threads = 8", http.StatusBadRequest, "invalidQuery", "only SELECT"},
		{"copying out", "COPY fleet.r TO '/tmp/x'", http.StatusBadRequest, "invalidQuery", ""},
		{"function that does not exist", "SELECT ST_DISTANCE(1, 2)", http.StatusBadRequest, "invalidQuery", "st_distance"},
		{"unsupported operator", "SELECT 1 ^ 2", http.StatusBadRequest, "invalidQuery", "operator ^"},
		{"missing parameter", "SELECT @x", http.StatusBadRequest, "invalidQuery", "'x' not found"},
		{"fails while it runs", "SELECT CAST(CONCAT('x', CAST(a AS STRING)) AS INT64) FROM UNNEST([1]) AS a", http.StatusBadRequest, "invalidQuery", "x1"},
		{"unclosed string", "SELECT 'x", http.StatusBadRequest, "invalidQuery", "unclosed"},
		{"nested too deeply", "SELECT " + strings.Repeat("(", 300) + "1" + strings.Repeat(")", 300), http.StatusBadRequest, "invalidQuery", "deeply"},
		{"empty", " -- nothing", http.StatusBadRequest, "invalidQuery", "empty"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := tryQuery(t.Context(), c, test.sql)
			if !hasStatus(err, test.status) || !strings.Contains(err.Error(), test.reason) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(test.message)) {
				t.Errorf("got %v\nwant %d %s with %q", err, test.status, test.reason, test.message)
			}
		})
	}
}

func TestDMLChangesRowsAndCountsThem(t *testing.T) {
	c := client(t, start(t))
	createTable(t, c, "d", "t", bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}, {Name: "b", Type: bigquery.StringFieldType}})
	for _, step := range []struct {
		sql  string
		want int64
	}{
		{"INSERT d.t (a, b) VALUES (1, 'x'), (2, 'y'), (3, 'z')", 3},
		{"UPDATE d.t SET b = 'w' WHERE a > 1", 2},
		{"DELETE d.t WHERE a = 3", 1},
		{"DELETE FROM d.t WHERE a = 99", 0},
	} {
		job, err := c.Query(step.sql).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		status, err := job.Wait(t.Context())
		if err != nil || status.Err() != nil {
			t.Fatal(step.sql, err, status.Err())
		}
		if got := status.Statistics.Details.(*bigquery.QueryStatistics).NumDMLAffectedRows; got != step.want {
			t.Errorf("%s: %d rows affected, want %d", step.sql, got, step.want)
		}
	}
	if got := rowsOf(t, c, "SELECT * FROM d.t ORDER BY a"); got != "1|x\n2|w" {
		t.Error(got)
	}
}

func TestJobsAreReadInPages(t *testing.T) {
	c := client(t, start(t))
	q := c.Query("SELECT x, REPEAT('y', 100) FROM UNNEST(GENERATE_ARRAY(1, 250000)) AS x ORDER BY x")
	q.JobID = "the-job"
	job, err := q.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Run(t.Context()); !hasStatus(err, http.StatusConflict) {
		t.Errorf("a job of the same id: got %v, want 409", err)
	}
	it, err := job.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rows, err := readAll(it)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 250000 || rows[249999][0] != int64(250000) || it.TotalRows != 250000 {
		t.Errorf("%d rows of %d", len(rows), it.TotalRows)
	}
	it, err = job.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	it.PageInfo().MaxSize = 7
	it.StartIndex = 249990
	if rows, err := readAll(it); err != nil || len(rows) != 10 || rows[0][0] != int64(249991) {
		t.Errorf("from row 249990 in pages of 7: %d rows, %v", len(rows), err)
	}
	if got, err := c.JobFromID(t.Context(), "the-job"); err != nil || !got.LastStatus().Done() {
		t.Errorf("job: %v, %v", got, err)
	}
	if _, err := c.JobFromID(t.Context(), "no-job"); !hasStatus(err, http.StatusNotFound) {
		t.Errorf("unknown job: got %v, want 404", err)
	}
}

func TestDryRunChecksAndRunsNothing(t *testing.T) {
	c := client(t, start(t))
	createTable(t, c, "d", "t", bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}})
	dry := func(sql string) (*bigquery.Job, error) {
		q := c.Query(sql)
		q.DryRun = true
		return q.Run(t.Context())
	}
	job, err := dry("SELECT a AS x FROM d.t")
	if err != nil {
		t.Fatal(err)
	}
	if schema := job.LastStatus().Statistics.Details.(*bigquery.QueryStatistics).Schema; len(schema) != 1 || schema[0].Name != "x" {
		t.Errorf("schema %v", schema)
	}
	if _, err := dry("INSERT d.t (a) VALUES (1)"); err != nil {
		t.Error(err)
	}
	if _, err := dry("SELECT b FROM d.t"); !hasStatus(err, http.StatusBadRequest) {
		t.Errorf("got %v, want 400", err)
	}
	if got := rowsOf(t, c, "SELECT COUNT(*) FROM d.t"); got != "0" {
		t.Errorf("the dry run has written %s rows", got)
	}
}

func TestDefaultDatasetCompletesTableNames(t *testing.T) {
	c := client(t, start(t))
	createTable(t, c, "d", "t", bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}})
	q := c.Query("WITH u AS (SELECT COUNT(*) AS n FROM t) SELECT n FROM u")
	q.DefaultProjectID, q.DefaultDatasetID = project, "d"
	it, err := q.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if rows, err := readAll(it); err != nil || fmt.Sprint(rows) != "[[0]]" {
		t.Error(rows, err)
	}
}

func TestCancelledQueryStops(t *testing.T) {
	c := client(t, start(t))
	q := c.Query("SELECT COUNT(*) FROM UNNEST(GENERATE_ARRAY(1, 100000)) a, UNNEST(GENERATE_ARRAY(1, 100000)) b WHERE MOD(a * b, 7) = 3")
	job, err := q.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := job.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "cancelled") {
		t.Errorf("got %v, want an error that says that the job was cancelled", err)
	}
}

// TestPlainCallsAreAnsweredAsDocumented is for callers without Google's library, such as curl and bq --api.
func TestPlainCallsAreAnsweredAsDocumented(t *testing.T) {
	server := start(t)
	call := func(method, path, body string) (int, map[string]any) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, server.RESTEndpoint()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Close = true
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		var out map[string]any
		if err := json.NewDecoder(response.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, out
	}
	const queries = "/bigquery/v2/projects/robofleet-local/queries"
	status, got := call(http.MethodPost, queries, `{"query": "SELECT TIMESTAMP '2026-11-23 10:00:00.25' AS t, [1] AS l, STRUCT(NULL AS n, TRUE AS b) AS s, 2.0 AS f", "useLegacySql": false}`)
	if status != http.StatusOK || got["jobComplete"] != true || got["totalRows"] != "1" {
		t.Fatal(status, got)
	}
	want := []any{map[string]any{"f": []any{
		map[string]any{"v": "1795428000.25"},
		map[string]any{"v": []any{map[string]any{"v": "1"}}},
		map[string]any{"v": map[string]any{"f": []any{map[string]any{"v": nil}, map[string]any{"v": "true"}}}},
		map[string]any{"v": "2.0"},
	}}}
	if diff := cmp.Diff(want, got["rows"]); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	for _, test := range []struct {
		name, method, path, body string
		status                   int
		reason                   string
	}{
		{"unknown method", http.MethodGet, "/bigquery/v2/projects/robofleet-local/models", "", http.StatusNotFound, "notFound"},
		{"body is not JSON", http.MethodPost, queries, "{", http.StatusBadRequest, "parseError"},
		{"legacy SQL", http.MethodPost, queries, `{"query": "SELECT 1", "useLegacySql": true}`, http.StatusBadRequest, "invalid"},
		{"paging is not a number", http.MethodGet, "/bigquery/v2/projects/robofleet-local/datasets?maxResults=x", "", http.StatusBadRequest, "invalid"},
		{"other project", http.MethodGet, "/bigquery/v2/projects/other/datasets", "", http.StatusNotFound, "notFound"},
	} {
		status, got := call(test.method, test.path, test.body)
		e, _ := got["error"].(map[string]any)
		items, _ := e["errors"].([]any)
		if status != test.status || e["code"] != float64(test.status) || len(items) != 1 || items[0].(map[string]any)["reason"] != test.reason {
			t.Errorf("%s: got %d %v, want %d %s", test.name, status, got, test.status, test.reason)
		}
	}
}
