package bigquery

import (
	"fmt"
	"strconv"
	"strings"
)

// call is a function call being translated.
type call struct {
	t    *translator
	name string // in upper case
	args [][]token
}

// rule translates a call of certain functions.
type rule func(c *call) (string, error)

// call translates the call at the start of tokens, and says how many tokens it has.
func (t *translator) call(tokens []token) (string, int, error) {
	end, err := closing(tokens, 1)
	if err != nil {
		return "", 0, err
	}
	c := &call{t: t, name: strings.ToUpper(tokens[0].text), args: splitArgs(tokens[2:end])}
	if special := ruleOf(c.name); special != nil && tokens[0].kind == tokenName {
		text, err := special(c)
		return text, end + 1, err
	}
	if forms, ok := templates[c.name]; ok && tokens[0].kind == tokenName {
		text, err := c.fill(forms)
		return text, end + 1, err
	}
	// Everything else is called in DuckDB as it is written: functions that both have, and those that neither has.
	inner, err := t.walk(tokens[2:end], false)
	return tokens[0].text + "(" + inner + ")", end + 1, err
}

// splitArgs splits tokens at the commas outside brackets.
func splitArgs(tokens []token) [][]token {
	if len(tokens) == 0 {
		return nil
	}
	var args [][]token
	depth, begin := 0, 0
	for i, token := range tokens {
		switch {
		case token.is("(") || token.is("["):
			depth++
		case token.is(")") || token.is("]"):
			depth--
		case depth == 0 && token.is(","):
			args = append(args, tokens[begin:i])
			begin = i + 1
		}
	}
	return append(args, tokens[begin:])
}

// templates are DuckDB's forms of functions, by the number of arguments: $1 is the first argument, $* are all of them.
//
// What a template cannot say is a rule. Arguments are never repeated, or nested calls would grow exponentially.
var templates = map[string][]string{
	"IF":                       {"CASE WHEN $1 THEN $2 ELSE $3 END"},
	"SAFE_DIVIDE":              {"(($1) / nullif($2, 0))"},
	"IEEE_DIVIDE":              {"(CAST($1 AS DOUBLE) / ($2))"},
	"DIV":                      {"(($1) // ($2))"},
	"MOD":                      {"(($1) % ($2))"},
	"LOG":                      {"ln($1)", "(ln($1) / ln($2))"},
	"RAND":                     {"random()"},
	"GENERATE_UUID":            {"CAST(uuid() AS VARCHAR)"},
	"CURRENT_TIMESTAMP":        {"current_timestamp"},
	"CURRENT_DATE":             {"CAST(current_timestamp AS DATE)", "CAST(current_timestamp AT TIME ZONE $1 AS DATE)"},
	"CURRENT_DATETIME":         {"CAST(current_timestamp AS TIMESTAMP)", "(current_timestamp AT TIME ZONE $1)"},
	"CURRENT_TIME":             {"CAST(current_timestamp AS TIME)"},
	"TIMESTAMP":                {"CAST($1 AS TIMESTAMPTZ)", "(CAST($1 AS TIMESTAMP) AT TIME ZONE $2)"},
	"DATE":                     {"CAST($1 AS DATE)", "CAST(($1) AT TIME ZONE $2 AS DATE)", "make_date($1, $2, $3)"},
	"DATETIME":                 {"CAST($1 AS TIMESTAMP)", "(($1) AT TIME ZONE $2)", "make_timestamp($1, $2, $3, $4, $5, $6)"},
	"TIME":                     {"CAST($1 AS TIME)", "make_time($1, $2, $3)"},
	"TIMESTAMP_ADD":            {"(($1) + $2)"},
	"TIMESTAMP_SUB":            {"(($1) - $2)"},
	"DATETIME_ADD":             {"(($1) + $2)"},
	"DATETIME_SUB":             {"(($1) - $2)"},
	"DATE_ADD":                 {"CAST(($1) + $2 AS DATE)"},
	"DATE_SUB":                 {"CAST(($1) - $2 AS DATE)"},
	"UNIX_MICROS":              {"epoch_us($1)"},
	"UNIX_MILLIS":              {"CAST(floor(epoch_us($1) / 1000) AS BIGINT)"},
	"UNIX_SECONDS":             {"CAST(floor(epoch_us($1) / 1000000) AS BIGINT)"},
	"UNIX_DATE":                {"date_diff('day', DATE '1970-01-01', $1)"},
	"TIMESTAMP_MICROS":         {"make_timestamptz(CAST($1 AS BIGINT))"},
	"TIMESTAMP_MILLIS":         {"make_timestamptz(CAST($1 AS BIGINT) * 1000)"},
	"TIMESTAMP_SECONDS":        {"make_timestamptz(CAST($1 AS BIGINT) * 1000000)"},
	"DATE_FROM_UNIX_DATE":      {"(DATE '1970-01-01' + CAST($1 AS INTEGER))"},
	"LOGICAL_AND":              {"bool_and($1)"},
	"LOGICAL_OR":               {"bool_or($1)"},
	"PERCENTILE_CONT":          {"quantile_cont($1, $2)"},
	"PERCENTILE_DISC":          {"quantile_disc($1, $2)"},
	"GENERATE_ARRAY":           {"generate_series($1, $2)", "generate_series($1, $2, $3)"},
	"ARRAY_LENGTH":             {"len($1)"},
	"ARRAY_REVERSE":            {"list_reverse($1)"},
	"ARRAY_TO_STRING":          {"array_to_string($1, $2)"},
	"SPLIT":                    {"string_split($1, ',')", "string_split($1, $2)"},
	"ENDS_WITH":                {"ends_with($1, $2)"},
	"CHAR_LENGTH":              {"length($1)"},
	"BYTE_LENGTH":              {"octet_length(encode($1))"},
	"LPAD":                     {"lpad($1, CAST($2 AS INTEGER), ' ')", "lpad($1, CAST($2 AS INTEGER), $3)"},
	"RPAD":                     {"rpad($1, CAST($2 AS INTEGER), ' ')", "rpad($1, CAST($2 AS INTEGER), $3)"},
	"REGEXP_CONTAINS":          {"regexp_matches($1, $2)"},
	"REGEXP_REPLACE":           {"regexp_replace($1, $2, $3, 'g')"},
	"FORMAT":                   {"printf($*)"},
	"TO_HEX":                   {"lower(hex($1))"},
	"FROM_HEX":                 {"unhex($1)"},
	"MD5":                      {"unhex(md5($1))"},
	"SHA256":                   {"unhex(sha256($1))"},
	"JSON_VALUE":               {"json_extract_string(json_value($1, '$$'), '$$')", "json_extract_string(json_value($1, $2), '$$')"},
	"JSON_EXTRACT_SCALAR":      {"json_extract_string(json_value($1, '$$'), '$$')", "json_extract_string(json_value($1, $2), '$$')"},
	"JSON_QUERY":               {"json_extract($1, '$$')", "json_extract($1, $2)"},
	"JSON_EXTRACT":             {"json_extract($1, '$$')", "json_extract($1, $2)"},
	"JSON_QUERY_ARRAY":         {"json_extract($1, '$$[*]')", "json_extract($1, concat($2, '[*]'))"},
	"JSON_VALUE_ARRAY":         {"json_extract_string($1, '$$[*]')", "json_extract_string($1, concat($2, '[*]'))"},
	"PARSE_JSON":               {"CAST($1 AS JSON)"},
	"TO_JSON_STRING":           {"CAST(to_json($1) AS VARCHAR)"},
	"INT64":                    {"CAST($1 AS BIGINT)"},
	"FLOAT64":                  {"CAST($1 AS DOUBLE)"},
	"BOOL":                     {"CAST($1 AS BOOLEAN)"},
	"STRING":                   {"json_extract_string(json_value($1, '$$'), '$$')"},
	"GENERATE_DATE_ARRAY":      {"CAST(generate_series($1, $2, INTERVAL 1 DAY) AS DATE[])", "CAST(generate_series($1, $2, $3) AS DATE[])"},
	"GENERATE_TIMESTAMP_ARRAY": {"generate_series($1, $2, $3)"},
}

// fill puts the arguments into the template for their number.
func (c *call) fill(forms []string) (string, error) {
	args := make([]string, len(c.args))
	for i, a := range c.args {
		text, err := c.t.walk(a, false)
		if err != nil {
			return "", err
		}
		args[i] = text
	}
	for _, form := range forms {
		if n := placeholders(form); n >= 0 && n != len(args) {
			continue
		}
		var b strings.Builder
		for i := 0; i < len(form); i++ {
			if form[i] != '$' {
				b.WriteByte(form[i])
				continue
			}
			i++
			switch form[i] {
			case '$':
				b.WriteByte('$')
			case '*':
				b.WriteString(strings.Join(args, ", "))
			default:
				b.WriteString(args[form[i]-'1'])
			}
		}
		return b.String(), nil
	}
	return "", fmt.Errorf("no matching signature for function %s with %d arguments in the local BigQuery", c.name, len(args))
}

// placeholders is the number of arguments that a template takes; negative: any.
func placeholders(form string) int {
	n := 0
	for i := 0; i+1 < len(form); i++ {
		if form[i] != '$' {
			continue
		}
		i++
		switch {
		case form[i] == '*':
			return -1
		case form[i] != '$':
			n = max(n, int(form[i]-'0'))
		}
	}
	return n
}

// arg translates the argument i; a missing one is an error.
func (c *call) arg(i int) (string, error) {
	if i >= len(c.args) || len(c.args[i]) == 0 {
		return "", fmt.Errorf("function %s needs more than %d arguments", c.name, i)
	}
	return c.t.walk(c.args[i], false)
}

// literal is the value of argument i, which must be a string literal.
func (c *call) literal(i int) (string, error) {
	if i >= len(c.args) || len(c.args[i]) != 1 || c.args[i][0].kind != tokenString {
		return "", fmt.Errorf("argument %d of %s must be a string literal in the local BigQuery", i+1, c.name)
	}
	return c.args[i][0].text, nil
}

// unit is the argument i, which must be the name of a unit of time. WEEK starts on Sunday, where DuckDB's week is that of ISO.
func (c *call) unit(i int) (string, error) {
	if i < len(c.args) && len(c.args[i]) == 1 {
		switch u := keywordOf(c.args[i][0]); {
		case u == "ISOWEEK":
			return "week", nil
		case u == "WEEK":
			return "", fmt.Errorf("%s by WEEK is not supported by the local BigQuery: use ISOWEEK", c.name)
		case intervalUnits[u] || u == "ISOYEAR":
			return strings.ToLower(u), nil
		}
	}
	return "", fmt.Errorf("argument %d of %s must be a unit of time", i+1, c.name)
}

// ruleOf returns the rule of a function whose arguments are more than expressions, or need to be looked into; nil: it has none.
func ruleOf(name string) rule {
	switch name {
	case "CAST":
		return cast("CAST")
	case "SAFE_CAST":
		return cast("TRY_CAST")
	case "EXTRACT":
		return extract
	case "CONCAT":
		return concat
	case "STRUCT":
		return structure
	case "ARRAY_AGG":
		return arrayAgg
	case "ARRAY_CONCAT":
		return arrayConcat
	case "APPROX_QUANTILES":
		return approxQuantiles
	case "REGEXP_EXTRACT":
		return regexpExtract
	case "TIMESTAMP_DIFF":
		return difference("date_sub") // counts whole units
	case "DATETIME_DIFF", "DATE_DIFF":
		return difference("date_diff") // count the boundaries between
	case "TIMESTAMP_TRUNC":
		return truncate("TIMESTAMPTZ")
	case "DATETIME_TRUNC":
		return truncate("TIMESTAMP")
	case "DATE_TRUNC":
		return truncate("DATE")
	case "FORMAT_TIMESTAMP", "FORMAT_DATETIME", "FORMAT_DATE":
		return formatTime
	case "PARSE_TIMESTAMP":
		return parseTime("(%s AT TIME ZONE 'UTC')")
	case "PARSE_DATETIME":
		return parseTime("%s")
	case "PARSE_DATE":
		return parseTime("CAST(%s AS DATE)")
	}
	return nil
}

// cast translates CAST(x AS type).
func cast(engine string) rule {
	return func(c *call) (string, error) {
		var tokens []token // the arguments again with their commas, because a type has commas too
		for i, a := range c.args {
			if i > 0 {
				tokens = append(tokens, token{kind: tokenSymbol, text: ","})
			}
			tokens = append(tokens, a...)
		}
		depth := 0
		for i, tok := range tokens {
			switch {
			case tok.is("(") || tok.is("["):
				depth++
			case tok.is(")") || tok.is("]"):
				depth--
			case depth == 0 && tok.is("AS"):
				value, err := c.t.walk(tokens[:i], false)
				if err != nil {
					return "", err
				}
				typeName, used, err := parseType(tokens[i+1:])
				if err != nil {
					return "", err
				}
				if i+1+used != len(tokens) {
					return "", fmt.Errorf("%s with FORMAT is not supported by the local BigQuery", c.name)
				}
				return engine + "(" + value + " AS " + typeName + ")", nil
			}
		}
		return "", fmt.Errorf("syntax error: %s needs AS and a type", c.name)
	}
}

// extractParts are the parts whose values differ from those that DuckDB gives to the same name.
var extractParts = map[string]string{
	"DAYOFWEEK":   "(extract(dow FROM %s) + 1)", // Sunday is 1 in GoogleSQL and 0 in DuckDB
	"ISOWEEK":     "extract(week FROM %s)",
	"MILLISECOND": "(extract(millisecond FROM %s) %% 1000)", // DuckDB's includes the seconds
	"MICROSECOND": "(extract(microsecond FROM %s) %% 1000000)",
	"DATE":        "CAST(%s AS DATE)",
	"TIME":        "CAST(%s AS TIME)",
	"DATETIME":    "CAST(%s AS TIMESTAMP)",
}

var extractSame = wordSet("SECOND MINUTE HOUR DAY DAYOFYEAR MONTH QUARTER YEAR ISOYEAR")

// extract translates EXTRACT(part FROM x [AT TIME ZONE zone]).
func extract(c *call) (string, error) {
	if len(c.args) != 1 || len(c.args[0]) < 3 || !c.args[0][1].is("FROM") {
		return "", fmt.Errorf("syntax error: EXTRACT needs a part, FROM and a value")
	}
	part := keywordOf(c.args[0][0])
	value, err := c.t.walk(c.args[0][2:], false)
	if err != nil {
		return "", err
	}
	if strings.Contains(value, " ") {
		value = "(" + value + ")"
	}
	if form, ok := extractParts[part]; ok {
		return fmt.Sprintf(form, value), nil
	}
	if extractSame[part] {
		return "extract(" + strings.ToLower(part) + " FROM " + value + ")", nil
	}
	return "", fmt.Errorf("EXTRACT of %s is not supported by the local BigQuery", c.args[0][0].text)
}

// concat is NULL when an argument is, unlike DuckDB's function of that name.
func concat(c *call) (string, error) {
	args := make([]string, len(c.args))
	for i := range c.args {
		a, err := c.arg(i)
		if err != nil {
			return "", err
		}
		args[i] = "(" + a + ")"
	}
	return "(" + strings.Join(args, " || ") + ")", nil
}

// structure translates STRUCT(x AS a, y). A field without an alias has the name of its column, if it is one.
func structure(c *call) (string, error) {
	fields := make([]string, len(c.args))
	for i, a := range c.args {
		name := "_field_" + strconv.Itoa(i+1)
		switch n := len(a); {
		case n > 2 && a[n-2].is("AS") && a[n-1].isName():
			name, a = a[n-1].text, a[:n-2]
		case n > 0 && a[n-1].isName() && !reserved[keywordOf(a[n-1])] && (n == 1 || n > 1 && a[n-2].is(".")):
			name = a[n-1].text
		}
		value, err := c.t.walk(a, false)
		if err != nil {
			return "", err
		}
		fields[i] = quoteName(name) + " := " + value
	}
	return "struct_pack(" + strings.Join(fields, ", ") + ")", nil
}

// arrayAgg translates ARRAY_AGG([DISTINCT] x [IGNORE|RESPECT NULLS] [ORDER BY …] [LIMIT n]); DuckDB has neither of the last two.
func arrayAgg(c *call) (string, error) {
	var tokens []token
	for i, a := range c.args {
		if i > 0 {
			tokens = append(tokens, token{kind: tokenSymbol, text: ","})
		}
		tokens = append(tokens, a...)
	}
	var order, limit []token
	ignoreNulls := false
	value := tokens
	depth := 0
	for i, tok := range tokens {
		switch {
		case tok.is("(") || tok.is("["):
			depth++
		case tok.is(")") || tok.is("]"):
			depth--
		case depth > 0:
		case (tok.is("IGNORE") || tok.is("RESPECT")) && i+1 < len(tokens) && tokens[i+1].is("NULLS"):
			ignoreNulls = tok.is("IGNORE")
			value = tokens[:min(i, len(value))]
		case tok.is("ORDER"):
			value = tokens[:min(i, len(value))]
			order = tokens[i:]
		case tok.is("LIMIT"):
			value = tokens[:min(i, len(value))]
			if order != nil {
				order = order[:len(order)-(len(tokens)-i)]
			}
			limit = tokens[i+1:]
		}
	}
	x, err := c.t.walk(value, false)
	if err != nil {
		return "", err
	}
	by, err := c.t.walk(order, false)
	if err != nil {
		return "", err
	}
	if by != "" {
		by = " " + by
	}
	out := "array_agg(" + x + by + ")"
	if ignoreNulls {
		if len(value) > 0 && value[0].is("DISTINCT") {
			return "", fmt.Errorf("ARRAY_AGG(DISTINCT … IGNORE NULLS) is not supported by the local BigQuery")
		}
		out = "list_filter(" + out + ", lambda _x: _x IS NOT NULL)"
	}
	if limit != nil {
		n, err := c.t.walk(limit, false)
		if err != nil {
			return "", err
		}
		out = "(" + out + ")[1:" + n + "]"
	}
	return out, nil
}

func arrayConcat(c *call) (string, error) {
	out := ""
	for i := range c.args {
		a, err := c.arg(i)
		if err != nil {
			return "", err
		}
		if out == "" {
			out = a
		} else {
			out = "list_concat(" + out + ", " + a + ")"
		}
	}
	return out, nil
}

// approxQuantiles gives exact quantiles, which are as good as approximate ones: APPROX_QUANTILES(x, 4) has the 5 values at 0, 25, 50,
// 75 and 100 %.
func approxQuantiles(c *call) (string, error) {
	x, err := c.arg(0)
	if err != nil {
		return "", err
	}
	count := 0
	if len(c.args) == 2 && len(c.args[1]) >= 1 && c.args[1][0].kind == tokenNumber {
		count, _ = strconv.Atoi(c.args[1][0].text) // what is not a number is refused below
	}
	if count < 1 || count > 10_000 {
		return "", fmt.Errorf("argument 2 of APPROX_QUANTILES must be a literal from 1 to 10000 in the local BigQuery")
	}
	points := make([]string, count+1)
	for i := range points {
		points[i] = strconv.FormatFloat(float64(i)/float64(count), 'f', -1, 64)
	}
	return "quantile_disc(" + x + ", [" + strings.Join(points, ", ") + "])", nil
}

// regexpExtract gives the first group, or all when the expression has none; NULL when nothing matches.
func regexpExtract(c *call) (string, error) {
	expression, err := c.literal(1)
	if err != nil {
		return "", err
	}
	if len(c.args) != 2 {
		return "", fmt.Errorf("REGEXP_EXTRACT with a position is not supported by the local BigQuery")
	}
	value, err := c.arg(0)
	if err != nil {
		return "", err
	}
	group := 0
	for i := 0; i < len(expression); i++ {
		switch {
		case expression[i] == '\\':
			i++
		case expression[i] == '(' && !strings.HasPrefix(expression[i:], "(?:"):
			group = 1
		}
	}
	return fmt.Sprintf("list_extract(regexp_extract_all(%s, %s, %d), 1)", value, quoteString(expression), group), nil
}

// difference translates TIMESTAMP_DIFF(end, start, unit) and its like.
func difference(engine string) rule {
	return func(c *call) (string, error) {
		end, err := c.arg(0)
		if err != nil {
			return "", err
		}
		start, err := c.arg(1)
		if err != nil {
			return "", err
		}
		unit, err := c.unit(2)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s('%s', %s, %s)", engine, unit, start, end), nil
	}
}

// truncate translates TIMESTAMP_TRUNC(x, unit [, zone]) and its like.
func truncate(engineType string) rule {
	return func(c *call) (string, error) {
		value, err := c.arg(0)
		if err != nil {
			return "", err
		}
		unit, err := c.unit(1)
		if err != nil {
			return "", err
		}
		if len(c.args) == 3 && engineType == "TIMESTAMPTZ" {
			if len(c.args[2]) != 1 { // it is repeated below
				return "", fmt.Errorf("argument 3 of %s must be a literal or a parameter in the local BigQuery", c.name)
			}
			zone, err := c.arg(2)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("(date_trunc('%s', (%s) AT TIME ZONE %s) AT TIME ZONE %s)", unit, value, zone, zone), nil
		}
		return fmt.Sprintf("CAST(date_trunc('%s', %s) AS %s)", unit, value, engineType), nil
	}
}

// timeFormat translates GoogleSQL's format elements to DuckDB's. In UTC, which is the only zone here, %z and %Z are constant.
func timeFormat(format string, parse bool) (string, error) {
	same := "aAbBdHIjmMpSUWVGuwyY%"
	special := map[string]string{"F": "%Y-%m-%d", "T": "%H:%M:%S", "R": "%H:%M", "D": "%m/%d/%y", "h": "%b", "n": "\n", "t": "\t",
		"E3S": "%S.%g", "E6S": "%S.%f", "E4Y": "%Y"}
	if parse {
		special["E*S"], special["E3S"], special["E6S"] = "%S.%f", "%S.%f", "%S.%f"
		special["z"], special["Ez"], special["Z"] = "%z", "%z", "%Z"
	} else {
		special["z"], special["Ez"], special["Z"] = "+0000", "+00:00", "UTC"
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		n := i + 2
		if strings.HasPrefix(format[i:], "%E") {
			n = i + 3
			if n < len(format) && strings.IndexByte("0123456789*", format[n-1]) >= 0 {
				n++
			}
		}
		if n > len(format) {
			return "", fmt.Errorf("the format %q ends within an element", format)
		}
		element := format[i+1 : n]
		switch form, ok := special[element]; {
		case ok:
			b.WriteString(form)
		case strings.Contains(same, element):
			b.WriteString("%" + element)
		default:
			return "", fmt.Errorf("format element %%%s is not supported by the local BigQuery", element)
		}
		i = n - 1
	}
	return b.String(), nil
}

// formatTime translates FORMAT_TIMESTAMP(format, x) and its like.
func formatTime(c *call) (string, error) {
	if len(c.args) != 2 {
		return "", fmt.Errorf("%s takes a format and a value in the local BigQuery", c.name)
	}
	literal, err := c.literal(0)
	if err != nil {
		return "", err
	}
	format, err := timeFormat(literal, false)
	if err != nil {
		return "", err
	}
	value, err := c.arg(1)
	return fmt.Sprintf("strftime(CAST(%s AS TIMESTAMP), %s)", value, quoteString(format)), err
}

// parseTime translates PARSE_TIMESTAMP(format, x) and its like; wrap makes the type of what strptime returns.
func parseTime(wrap string) rule {
	return func(c *call) (string, error) {
		if len(c.args) != 2 {
			return "", fmt.Errorf("%s takes a format and a value in the local BigQuery", c.name)
		}
		literal, err := c.literal(0)
		if err != nil {
			return "", err
		}
		format, err := timeFormat(literal, true)
		if err != nil {
			return "", err
		}
		value, err := c.arg(1)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf(wrap, fmt.Sprintf("CAST(strptime(%s, %s) AS TIMESTAMP)", value, quoteString(format))), nil
	}
}
