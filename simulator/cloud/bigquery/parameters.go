package bigquery

import (
	"fmt"
	"strings"

	bq "google.golang.org/api/bigquery/v2"
)

// queryParameter is a parameter of a query. The client library's own type cannot tell the empty string from NULL.
type queryParameter struct {
	Name           string                 `json:"name,omitempty"`
	ParameterType  *bq.QueryParameterType `json:"parameterType,omitempty"`
	ParameterValue *parameterValue        `json:"parameterValue,omitempty"`
}

// parameterValue is a scalar, an array or a struct by its type; without a value it is NULL.
type parameterValue struct {
	Value        *string                    `json:"value,omitempty"`
	ArrayValues  []*parameterValue          `json:"arrayValues,omitempty"`
	StructValues map[string]*parameterValue `json:"structValues,omitempty"`
}

// parameter writes a query parameter, named or (with an empty name) the next positional one, as a literal of its type.
func (t *translator) parameter(name string) (string, error) {
	if name == "" {
		if t.positional >= len(t.parameters) {
			return "", fmt.Errorf("query parameter number %d is not defined", t.positional+1)
		}
		t.positional++
		return parameterLiteral(t.parameters[t.positional-1])
	}
	for _, p := range t.parameters {
		if p != nil && strings.EqualFold(p.Name, name) {
			return parameterLiteral(p)
		}
	}
	return "", fmt.Errorf("query parameter '%s' not found", name)
}

func parameterLiteral(p *queryParameter) (string, error) {
	if p == nil || p.ParameterType == nil {
		return "", fmt.Errorf("a query parameter has no type")
	}
	text, err := valueLiteral(p.ParameterType, p.ParameterValue)
	if err != nil {
		return "", fmt.Errorf("query parameter '%s': %w", p.Name, err)
	}
	return text, nil
}

// parameterType is DuckDB's type of a query parameter.
func parameterType(t *bq.QueryParameterType) (string, error) {
	if t == nil {
		return "", fmt.Errorf("its type is incomplete")
	}
	switch kind := strings.ToUpper(t.Type); kind {
	case "ARRAY":
		elem, err := parameterType(t.ArrayType)
		return elem + "[]", err
	case "STRUCT":
		fields := make([]string, len(t.StructTypes))
		for i, f := range t.StructTypes {
			typeName, err := parameterType(f.Type)
			if err != nil {
				return "", err
			}
			fields[i] = quoteName(f.Name) + " " + typeName
		}
		return "STRUCT(" + strings.Join(fields, ", ") + ")", nil
	default:
		engine, ok := engineType[columnType[kind]]
		if !ok {
			return "", fmt.Errorf("type %q is not supported by the local BigQuery", t.Type)
		}
		return engine, nil
	}
}

// valueLiteral writes a value as an expression of its type.
func valueLiteral(t *bq.QueryParameterType, v *parameterValue) (string, error) {
	typeName, err := parameterType(t)
	if err != nil {
		return "", err
	}
	null := "CAST(NULL AS " + typeName + ")"
	if v == nil {
		return null, nil
	}
	switch strings.ToUpper(t.Type) {
	case "ARRAY":
		items := make([]string, len(v.ArrayValues))
		for i, item := range v.ArrayValues {
			if items[i], err = valueLiteral(t.ArrayType, item); err != nil {
				return "", err
			}
		}
		return "CAST([" + strings.Join(items, ", ") + "] AS " + typeName + ")", nil
	case "STRUCT":
		if v.StructValues == nil {
			return null, nil
		}
		fields := make([]string, len(t.StructTypes))
		for i, f := range t.StructTypes {
			text, err := valueLiteral(f.Type, v.StructValues[f.Name])
			if err != nil {
				return "", err
			}
			fields[i] = quoteName(f.Name) + " := " + text
		}
		return "struct_pack(" + strings.Join(fields, ", ") + ")", nil
	}
	if v.Value == nil {
		return null, nil
	}
	text := quoteString(*v.Value)
	switch columnType[strings.ToUpper(t.Type)] {
	case "STRING":
		return text, nil
	case "BYTES":
		return "from_base64(" + text + ")", nil
	}
	return "CAST(" + text + " AS " + typeName + ")", nil
}
