package bigquery

import (
	"fmt"
	"strings"

	bq "google.golang.org/api/bigquery/v2"
)

// columnType maps BigQuery's names of a type (the schema's and GoogleSQL's) to the one used in schemas.
var columnType = map[string]string{
	"STRING": "STRING", "BYTES": "BYTES", "INTEGER": "INTEGER", "INT64": "INTEGER", "FLOAT": "FLOAT", "FLOAT64": "FLOAT",
	"BOOLEAN": "BOOLEAN", "BOOL": "BOOLEAN", "TIMESTAMP": "TIMESTAMP", "DATE": "DATE", "TIME": "TIME", "DATETIME": "DATETIME",
	"NUMERIC": "NUMERIC", "DECIMAL": "NUMERIC", "JSON": "JSON", "RECORD": "RECORD", "STRUCT": "RECORD",
}

// engineType is DuckDB's type for a column type other than RECORD. TIMESTAMP is a point in time, DATETIME a civil time.
var engineType = map[string]string{
	"STRING": "VARCHAR", "BYTES": "BLOB", "INTEGER": "BIGINT", "FLOAT": "DOUBLE", "BOOLEAN": "BOOLEAN", "TIMESTAMP": "TIMESTAMPTZ",
	"DATE": "DATE", "TIME": "TIME", "DATETIME": "TIMESTAMP", "NUMERIC": "DECIMAL(38,9)", "JSON": "JSON",
}

// normalizeFields checks a schema and brings it into the form in which the API returns it: types and modes in upper case, one name each.
func normalizeFields(fields []*bq.TableFieldSchema, path string) error {
	seen := make(map[string]bool, len(fields))
	for _, f := range fields {
		if f == nil || !isIdentifier(f.Name) || len(f.Name) > 300 {
			name := ""
			if f != nil {
				name = f.Name
			}
			return fmt.Errorf("invalid field name %q: letters, digits and underscores, at most 300, not starting with a digit", path+name)
		}
		if key := strings.ToLower(f.Name); seen[key] {
			return fmt.Errorf("duplicate field name %q", path+f.Name)
		} else {
			seen[key] = true
		}
		t, ok := columnType[strings.ToUpper(f.Type)]
		if !ok {
			return fmt.Errorf("field %q: type %q is not supported by the local BigQuery", path+f.Name, f.Type)
		}
		f.Type = t
		switch mode := strings.ToUpper(f.Mode); mode {
		case "":
			f.Mode = "NULLABLE"
		case "NULLABLE", "REQUIRED", "REPEATED":
			f.Mode = mode
		default:
			return fmt.Errorf("field %q: unknown mode %q", path+f.Name, f.Mode)
		}
		if (t == "RECORD") != (len(f.Fields) > 0) {
			return fmt.Errorf("field %q: a RECORD has fields, and nothing else does", path+f.Name)
		}
		if err := normalizeFields(f.Fields, path+f.Name+"."); err != nil {
			return err
		}
	}
	return nil
}

// typeDDL is the type of a normalized field in DuckDB's DDL.
func typeDDL(f *bq.TableFieldSchema) string {
	t := engineType[f.Type]
	if f.Type == "RECORD" {
		parts := make([]string, len(f.Fields))
		for i, child := range f.Fields {
			parts[i] = quoteName(child.Name) + " " + typeDDL(child)
		}
		t = "STRUCT(" + strings.Join(parts, ", ") + ")"
	}
	if f.Mode == "REPEATED" {
		t += "[]"
	}
	return t
}

// columnDDL is a normalized top-level field as a column in DuckDB's DDL. REQUIRED within a RECORD is checked on append only: DuckDB
// has no such constraint.
func columnDDL(f *bq.TableFieldSchema) string {
	ddl := quoteName(f.Name) + " " + typeDDL(f)
	if f.Mode == "REQUIRED" {
		ddl += " NOT NULL"
	}
	return ddl
}

// schemaChange returns the statements that bring a table from the old schema to the new one. Like BigQuery it allows new columns and new
// fields of records, NULLABLE or REPEATED and at the end, and relaxing REQUIRED; anything else is an error.
func schemaChange(table string, before, after []*bq.TableFieldSchema) ([]string, error) {
	var ddl []string
	if err := fieldsChange(&ddl, table, "", before, after); err != nil {
		return nil, fmt.Errorf("provided schema does not match the table: %w", err)
	}
	return ddl, nil
}

func fieldsChange(ddl *[]string, table, path string, before, after []*bq.TableFieldSchema) error {
	for i, old := range before {
		if i >= len(after) || !strings.EqualFold(after[i].Name, old.Name) {
			return fmt.Errorf("field %s%s is missing or has moved", displayPath(path), old.Name)
		}
		name, column := displayPath(path)+old.Name, path+quoteName(old.Name)
		switch now := after[i]; {
		case now.Type != old.Type:
			return fmt.Errorf("field %s has changed type from %s to %s", name, old.Type, now.Type)
		case now.Mode != old.Mode && (old.Mode != "REQUIRED" || now.Mode != "NULLABLE"):
			return fmt.Errorf("field %s has changed mode from %s to %s", name, old.Mode, now.Mode)
		case now.Mode != old.Mode && path == "":
			*ddl = append(*ddl, "ALTER TABLE "+table+" ALTER COLUMN "+column+" DROP NOT NULL")
		case old.Mode == "REPEATED" && old.Type == "RECORD" && len(now.Fields) != len(old.Fields):
			return fmt.Errorf("field %s: adding fields to a repeated record is not supported by the local BigQuery", name)
		}
		if err := fieldsChange(ddl, table, column+".", old.Fields, after[i].Fields); err != nil {
			return err
		}
	}
	for _, f := range after[len(before):] {
		if f.Mode == "REQUIRED" {
			return fmt.Errorf("new field %s%s cannot be REQUIRED", displayPath(path), f.Name)
		}
		*ddl = append(*ddl, "ALTER TABLE "+table+" ADD COLUMN "+path+quoteName(f.Name)+" "+typeDDL(f))
	}
	return nil
}

func displayPath(path string) string { return strings.ReplaceAll(path, `"`, "") }

// quoteName writes an identifier for DuckDB.
func quoteName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// quoteString writes a string literal for DuckDB, whose literals know no escapes and cannot hold NUL.
func quoteString(s string) string {
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.IndexByte(s, 0) < 0 {
		return quoted
	}
	return "(" + strings.ReplaceAll(quoted, "\x00", "'||chr(0)||'") + ")"
}
