package bigquery

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	bq "google.golang.org/api/bigquery/v2"
	"google.golang.org/protobuf/types/descriptorpb"
)

func fuzzTranslator() *translator {
	value := "it's"
	return &translator{
		project:        "p",
		defaultDataset: "d",
		resolve: func(dataset, table string) (string, error) {
			if table == "missing" {
				return "", notFound("Table", "%s.%s", dataset, table)
			}
			return quoteName(dataset) + "." + quoteName(table), nil
		},
		parameters: []*queryParameter{{Name: "p", ParameterType: &bq.QueryParameterType{Type: "STRING"}, ParameterValue: &parameterValue{Value: &value}}},
	}
}

// FuzzTranslate holds the translator to its promises for any input: it ends, it does not panic, it refuses with an error for clients, and
// what it writes is a single statement as DuckDB's lexer sees it, whatever the literals contain.
func FuzzTranslate(f *testing.F) {
	for _, seed := range []string{
		"SELECT 1", "SELECT * EXCEPT (a) FROM `p.d.t` AS x, UNNEST(x.l) AS y WITH OFFSET o WHERE s = 'it\\'s' AND t > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY);",
		"SELECT ARRAY<STRUCT<a INT64, b ARRAY<STRING>>>[(1, ['x'])][OFFSET(0)].a, 1 >> 2, a<b", "SELECT @p, ?, r'''x''', b\"\\xff\", 1.5e3, .5, 0xF, -a.b",
		"WITH a AS (SELECT 1) SELECT * FROM a JOIN p-1.d.t USING (x) -- c", "SELECT SAFE_CAST(a AS NUMERIC(10, 2)), CAST(x AS STRING FORMAT 'y')",
		"SELECT EXTRACT(DAYOFWEEK FROM t AT TIME ZONE 'UTC'), FORMAT_TIMESTAMP('%F %E3S', t), APPROX_QUANTILES(x, 100)[OFFSET(95)]",
		"DELETE d.t WHERE a IN UNNEST([1])", "INSERT d.missing (a) VALUES (STRUCT(a AS b, c).b)", "MERGE d.t USING d.s ON a = b WHEN MATCHED THEN DELETE",
		"SELECT ARRAY_AGG(DISTINCT a IGNORE NULLS ORDER BY b LIMIT 3), SAFE.F(1), x['y'], x[SAFE_ORDINAL(1)]", "SELECT '", "`", "((((", "/*", "SELECT '\\U0010FFFF\\0'",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		out, err := fuzzTranslator().statement(query)
		if err != nil {
			if _, ok := errors.AsType[*apiError](err); !ok {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		if !utf8.ValidString(out) {
			t.Fatalf("%q became invalid UTF-8: %q", query, out)
		}
		if rest := outsideLiterals(t, out); strings.Contains(rest, ";") {
			t.Fatalf("%q became several statements: %s", query, out)
		}
	})
}

// outsideLiterals removes DuckDB's string literals and quoted names from s, and fails if one is left open.
func outsideLiterals(t *testing.T, s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		quote := s[i]
		if quote != '\'' && quote != '"' {
			b.WriteByte(quote)
			continue
		}
		end := strings.IndexByte(s[i+1:], quote)
		if end < 0 {
			t.Fatalf("unclosed %c: %s", quote, s)
		}
		i += 1 + end // a doubled quote opens the next literal at once
	}
	return b.String()
}

// fuzzDescriptor describes a message with the fields of FuzzDecodeRow's table.
func fuzzDescriptor() *descriptorpb.DescriptorProto {
	field := func(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type, repeated bool) *descriptorpb.FieldDescriptorProto {
		label := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL
		if repeated {
			label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED
		}
		return &descriptorpb.FieldDescriptorProto{Name: &name, Number: &number, Type: &kind, Label: &label}
	}
	record := field("r", 5, descriptorpb.FieldDescriptorProto_TYPE_MESSAGE, true)
	record.TypeName = new("Record")
	return &descriptorpb.DescriptorProto{
		Name: new("Row"),
		Field: []*descriptorpb.FieldDescriptorProto{
			field("a", 1, descriptorpb.FieldDescriptorProto_TYPE_INT64, false),
			field("s", 2, descriptorpb.FieldDescriptorProto_TYPE_STRING, false),
			field("t", 3, descriptorpb.FieldDescriptorProto_TYPE_SINT64, false),
			field("l", 4, descriptorpb.FieldDescriptorProto_TYPE_DOUBLE, true),
			record,
		},
		NestedType: []*descriptorpb.DescriptorProto{{
			Name: new("Record"),
			Field: []*descriptorpb.FieldDescriptorProto{
				field("j", 1, descriptorpb.FieldDescriptorProto_TYPE_STRING, false),
				field("n", 2, descriptorpb.FieldDescriptorProto_TYPE_STRING, false),
			},
		}},
	}
}

// FuzzDecodeRow feeds any bytes as a row: they are refused, or DuckDB takes what they become.
func FuzzDecodeRow(f *testing.F) {
	fields := []*bq.TableFieldSchema{
		{Name: "a", Type: "INTEGER"}, {Name: "s", Type: "STRING"}, {Name: "t", Type: "TIMESTAMP"}, {Name: "l", Type: "FLOAT", Mode: "REPEATED"},
		{Name: "r", Type: "RECORD", Mode: "REPEATED", Fields: []*bq.TableFieldSchema{{Name: "j", Type: "JSON"}, {Name: "n", Type: "NUMERIC"}}},
	}
	db, err := openDatabase("", map[string]string{"threads": "1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := db.close(); err != nil {
			f.Error(err)
		}
	})
	conn, err := db.acquire()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { db.release(conn) })
	if err := normalizeFields(fields, ""); err != nil {
		f.Fatal(err)
	}
	columns := make([]string, len(fields))
	for i, field := range fields {
		columns[i] = columnDDL(field)
	}
	if err := conn.exec(f.Context(), "CREATE TABLE t ("+strings.Join(columns, ", ")+")"); err != nil {
		f.Fatal(err)
	}
	plan, err := planRows(fuzzDescriptor(), fields)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add([]byte("\x08\x01\x12\x03abc\x18\x80\x01\x22\x08\x00\x00\x00\x00\x00\x00\xf0\x3f\x2a\x09\x0a\x02{}\x12\x031.5"))
	f.Fuzz(func(t *testing.T, row []byte) {
		batch, err := newRowBatch(conn, "memory", "main", "t", fields)
		if err != nil {
			t.Fatal(err)
		}
		defer batch.close()
		for range 3 { // the same row again must be taken or refused again
			at, err := batch.next()
			if err != nil {
				t.Fatal(err)
			}
			if err := plan.decode(row, batch.columns, at); err != nil {
				return
			}
			batch.rows++
		}
		if err := batch.flush(); err != nil {
			t.Fatalf("%x was taken and cannot be written: %v", row, err)
		}
	})
}
