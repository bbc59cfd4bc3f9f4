package bigquery

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// translator turns one GoogleSQL statement into DuckDB's SQL. It works on tokens, not on a grammar: what the two dialects share passes
// as it is, and DuckDB judges it.
type translator struct {
	// resolve gives DuckDB's name of a table; an unknown one is an error.
	resolve        func(dataset, table string) (string, error)
	project        string
	defaultDataset string // of tables without one; may be empty
	parameters     []*queryParameter
	positional     int             // positional parameters used so far
	subqueries     map[string]bool // names that WITH defines, in lower case
	depth          int
}

// maxDepth bounds the nesting of parentheses, so that no query exhausts the stack.
const maxDepth = 200

// maxQueryBytes is BigQuery's limit of an unresolved query (https://cloud.google.com/bigquery/quotas#query_jobs).
const maxQueryBytes = 1 << 20

// maxTranslatedBytes bounds the translation, because some functions take more words in DuckDB.
const maxTranslatedBytes = 8 << 20

// translate is the translation of query, which may use the parameters and leave out defaultDataset.
func (c *catalog) translate(query string, parameters []*queryParameter, defaultDataset string) (string, error) {
	t := &translator{
		resolve: func(dataset, table string) (string, error) {
			found, err := c.table(dataset, table)
			if err != nil {
				return "", err
			}
			return found.name, nil
		},
		project:        c.project,
		defaultDataset: defaultDataset,
		parameters:     parameters,
	}
	return t.statement(query)
}

// statement translates a whole statement. Its errors are apiErrors.
func (t *translator) statement(query string) (string, error) {
	if len(query) > maxQueryBytes {
		return "", invalidQuery("the query is larger than %d bytes", maxQueryBytes)
	}
	tokens, err := lex(query)
	if err != nil {
		return "", invalidQuery("%v", err)
	}
	for len(tokens) > 0 && tokens[len(tokens)-1].is(";") {
		tokens = tokens[:len(tokens)-1]
	}
	if len(tokens) == 0 {
		return "", invalidQuery("the query is empty")
	}
	t.subqueries = map[string]bool{}
	for i, token := range tokens {
		if token.is(";") {
			return "", invalidQuery("scripts of several statements are not supported by the local BigQuery")
		}
		if token.isName() && i+2 < len(tokens) && tokens[i+1].is("AS") && tokens[i+2].is("(") {
			t.subqueries[strings.ToLower(token.text)] = true
		}
	}
	out, err := t.walk(tokens, false)
	if err != nil {
		if e, ok := errors.AsType[*apiError](err); ok {
			return "", e
		}
		return "", invalidQuery("%v", err)
	}
	return out, nil
}

// reserved are GoogleSQL's reserved keywords, which name no function and no column
// (https://cloud.google.com/bigquery/docs/reference/standard-sql/lexical#reserved_keywords).
var reserved = wordSet(`ALL AND ANY ARRAY AS ASC ASSERT_ROWS_MODIFIED AT BETWEEN BY CASE CAST COLLATE CONTAINS CREATE CROSS CUBE CURRENT
	DEFAULT DEFINE DESC DISTINCT ELSE END ENUM ESCAPE EXCEPT EXCLUDE EXISTS EXTRACT FALSE FETCH FOLLOWING FOR FROM FULL GROUP GROUPING
	GROUPS HASH HAVING IF IGNORE IN INNER INTERSECT INTERVAL INTO IS JOIN LATERAL LEFT LIKE LIMIT LOOKUP MERGE NATURAL NEW NO NOT NULL
	NULLS OF ON OR ORDER OUTER OVER PARTITION PRECEDING PROTO QUALIFY RANGE RECURSIVE RESPECT RIGHT ROLLUP ROWS SELECT SET SOME STRUCT
	TABLESAMPLE THEN TO TREAT TRUE UNBOUNDED UNION UNNEST USING WHEN WHERE WINDOW WITH WITHIN`)

// reservedFunctions are the reserved keywords that are called like functions.
var reservedFunctions = wordSet(`CAST EXTRACT IF LEFT RIGHT STRUCT GROUPING`)

// engineReserved are names that DuckDB reserves and GoogleSQL does not, so that they may name columns.
var engineReserved = wordSet(`ANALYSE ANALYZE ASYMMETRIC BOTH CHECK COLUMN CONSTRAINT DEFERRABLE DESCRIBE DO FOREIGN INITIALLY LAMBDA LEADING
	ONLY PLACING PRIMARY REFERENCES RETURNING SHOW SUMMARIZE SYMMETRIC TRAILING UNIQUE VARIADIC`)

// afterFrom are the keywords that end a FROM clause.
var afterFrom = wordSet(`WHERE GROUP HAVING QUALIFY WINDOW ORDER LIMIT SELECT SET UNION INTERSECT WHEN VALUES`)

func wordSet(words string) map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(words) {
		set[w] = true
	}
	return set
}

// text collects translated parts, with a space between them where one may stand.
type text struct{ strings.Builder }

func (t *text) add(part string) {
	if s := t.String(); s != "" && part != "." && part != "," && !strings.HasSuffix(s, ".") {
		t.WriteByte(' ')
	}
	t.WriteString(part)
}

// walk translates tokens. inFrom says that they are the inside of parentheses in a FROM clause.
func (t *translator) walk(tokens []token, inFrom bool) (string, error) {
	t.depth++
	defer func() { t.depth-- }()
	if t.depth > maxDepth {
		return "", fmt.Errorf("the query is nested too deeply")
	}
	var out text
	expectTable := inFrom
	operand := false // the token before ends an operand, so that [ is a subscript
	for i := 0; i < len(tokens); {
		token := tokens[i]
		rest := tokens[i:]
		tableHere := expectTable
		expectTable = false
		var part string
		var err error
		used := 1
		wasOperand := operand
		operand = true
		switch upper := strings.ToUpper(token.text); {
		case tableHere && token.is("UNNEST"):
			part, used, err = t.unnestTable(rest)
			operand = false
		case tableHere && token.isName() && !reserved[keywordOf(token)] && (token.kind == tokenQuoted || !isCall(rest)):
			part, used, err = t.tablePath(rest)
		case token.is("("):
			part, used, err = t.parenthesis(rest, tableHere)
		case token.is("["):
			part, used, err = t.bracket(rest, wasOperand)
		case token.kind == tokenString:
			part = quoteString(token.text)
		case token.kind == tokenBytes:
			part = fmt.Sprintf("unhex('%x')", token.text)
		case token.kind == tokenNumber:
			part, err = number(token.text)
		case token.kind == tokenParameter:
			part, err = t.parameter(token.text)
		case token.kind == tokenQuoted:
			part = quoteName(token.text)
		case token.is(">") && len(rest) > 1 && rest[1].is(">") && rest[1].glued:
			part, used, operand = ">>", 2, false
		case token.kind == tokenSymbol:
			operand = token.is(")") || token.is("]")
			expectTable = token.is(",") && inFrom
			part = token.text
			if token.is("^") || token.is("|>") {
				err = fmt.Errorf("operator %s is not supported by the local BigQuery", token.text)
			}
		case i > 0 && tokens[i-1].is("."):
			part, used, err = t.name(rest, true)
		case reserved[upper] && (!reservedFunctions[upper] || !isCall(rest) && !isTyped(rest)) && (upper != "ARRAY" || !isTyped(rest)),
			afterFrom[upper], statementKeywords[upper]:
			operand = false
			part, used, err = t.keyword(tokens, i, &inFrom, &expectTable)
		default:
			part, used, err = t.name(rest, false)
		}
		if err != nil {
			return "", err
		}
		if part != "" {
			out.add(part)
		}
		if out.Len() > maxTranslatedBytes {
			return "", fmt.Errorf("the query is too complex: its translation exceeds %d bytes", maxTranslatedBytes)
		}
		i += used
	}
	return out.String(), nil
}

func keywordOf(t token) string {
	if t.kind != tokenName {
		return ""
	}
	return strings.ToUpper(t.text)
}

// isCall says whether the name at the start of tokens is followed by arguments.
func isCall(tokens []token) bool { return len(tokens) > 1 && tokens[1].is("(") }

// isTyped says whether the name at the start of tokens is followed by the types of its elements, as in ARRAY<INT64>.
func isTyped(tokens []token) bool { return len(tokens) > 1 && tokens[1].is("<") }

// statementKeywords begin or shape statements, without being reserved.
var statementKeywords = wordSet(`INSERT UPDATE DELETE TRUNCATE VALUES TABLE`)

// keyword translates the keyword at tokens[i], and keeps the state of the clause it begins.
func (t *translator) keyword(tokens []token, i int, inFrom, expectTable *bool) (string, int, error) {
	upper := strings.ToUpper(tokens[i].text)
	next := func(n int) token {
		if i+n < len(tokens) {
			return tokens[i+n]
		}
		return token{}
	}
	before := token{}
	if i > 0 {
		before = tokens[i-1]
	}
	if afterFrom[upper] {
		*inFrom = false
	}
	switch upper {
	case "FROM":
		if before.is("DISTINCT") && i > 1 && (tokens[i-2].is("IS") || tokens[i-2].is("NOT")) { // IS [NOT] DISTINCT FROM
			return "FROM", 1, nil
		}
		*inFrom, *expectTable = true, true
	case "JOIN", "INTO", "UPDATE", "TABLE":
		*expectTable = true
	case "MERGE":
		*expectTable = true
		if !next(1).is("INTO") {
			return "MERGE INTO", 1, nil
		}
	case "USING":
		*expectTable = !next(1).is("(") || next(2).is("SELECT") || next(2).is("WITH")
	case "INSERT":
		if next(1).isName() && !next(1).is("INTO") && i == 0 {
			*expectTable = true
			return "INSERT INTO", 1, nil
		}
	case "DELETE":
		if i == 0 && !next(1).is("FROM") {
			*expectTable = true
			return "DELETE FROM", 1, nil
		}
	case "UNION", "INTERSECT", "EXCEPT":
		if next(1).is("DISTINCT") {
			return upper, 2, nil
		}
		if upper == "EXCEPT" && before.is("*") {
			return "EXCLUDE", 1, nil
		}
	case "IN":
		if next(1).is("UNNEST") && next(2).is("(") {
			end, err := closing(tokens, i+2)
			if err != nil {
				return "", 0, err
			}
			inner, err := t.walk(tokens[i+3:end], false)
			return "IN (SELECT unnest(" + inner + "))", end - i + 1, err
		}
	case "SELECT":
		if next(1).is("AS") && (next(2).is("STRUCT") || next(2).is("VALUE")) {
			return "", 0, fmt.Errorf("SELECT AS %s is not supported by the local BigQuery", strings.ToUpper(next(2).text))
		}
	case "FOR":
		if next(1).is("SYSTEM_TIME") {
			return "", 0, fmt.Errorf("FOR SYSTEM_TIME is not supported by the local BigQuery")
		}
	case "INTERVAL":
		return t.interval(tokens[i:])
	case "UNNEST":
		return "unnest", 1, nil
	}
	return tokens[i].text, 1, nil
}

// closing is the index of the bracket that closes the one at open.
func closing(tokens []token, open int) (int, error) {
	depth := 0
	for i := open; i < len(tokens); i++ {
		switch {
		case tokens[i].is("(") || tokens[i].is("["):
			depth++
		case tokens[i].is(")") || tokens[i].is("]"):
			depth--
			if depth == 0 {
				if tokens[i].is(")") != tokens[open].is("(") {
					return 0, fmt.Errorf("syntax error: unexpected %q", tokens[i].text)
				}
				return i, nil
			}
		}
	}
	return 0, fmt.Errorf("syntax error: %q is never closed", tokens[open].text)
}

func (t *translator) parenthesis(tokens []token, inFrom bool) (string, int, error) {
	end, err := closing(tokens, 0)
	if err != nil {
		return "", 0, err
	}
	inner, err := t.walk(tokens[1:end], inFrom)
	return "(" + inner + ")", end + 1, err
}

// bracket translates an array literal, or the subscript of an operand: [OFFSET(0)], [ORDINAL(1)], [0], ['field'].
func (t *translator) bracket(tokens []token, subscript bool) (string, int, error) {
	end, err := closing(tokens, 0)
	if err != nil {
		return "", 0, err
	}
	inner := tokens[1:end]
	base := "1" // GoogleSQL counts from 0, DuckDB from 1
	if subscript && len(inner) > 2 && inner[1].is("(") && inner[len(inner)-1].is(")") {
		switch strings.ToUpper(inner[0].text) {
		case "OFFSET", "SAFE_OFFSET":
			inner = inner[2 : len(inner)-1]
		case "ORDINAL", "SAFE_ORDINAL":
			inner, base = inner[2:len(inner)-1], "0"
		}
	}
	text, err := t.walk(inner, false)
	switch {
	case err != nil:
		return "", 0, err
	case !subscript || len(inner) == 1 && inner[0].kind == tokenString:
		return "[" + text + "]", end + 1, nil
	default:
		return "[(" + text + ")+" + base + "]", end + 1, nil
	}
}

// number writes a literal so that one with a point or an exponent is a DOUBLE, as it is a FLOAT64 in GoogleSQL; DuckDB would make it
// a DECIMAL.
func number(s string) (string, error) {
	switch {
	case len(s) > 1 && s[1]|0x20 == 'x':
		v, err := strconv.ParseInt(s[2:], 16, 64)
		if err != nil {
			return "", fmt.Errorf("invalid integer literal: %s", s)
		}
		return strconv.FormatInt(v, 10), nil
	case strings.ContainsAny(s, "eE") || !strings.Contains(s, "."):
		return s, nil
	default:
		return s + "e0", nil
	}
}

// name translates what begins with a name that is not a keyword: a column, a typed literal or a function call.
func (t *translator) name(tokens []token, afterDot bool) (string, int, error) {
	first := tokens[0]
	upper := strings.ToUpper(first.text)
	next := func(n int) token {
		if n < len(tokens) {
			return tokens[n]
		}
		return token{}
	}
	switch {
	case afterDot && !next(1).is("("):
		return quoteName(first.text), 1, nil
	case !afterDot && upper == "SAFE" && next(1).is(".") && next(3).is("("):
		call, used, err := t.call(tokens[2:])
		return "TRY(" + call + ")", used + 2, err
	case next(1).is("("):
		return t.call(tokens)
	case upper == "STRUCT" || upper == "ARRAY":
		return t.typedConstructor(tokens)
	case next(1).kind == tokenString:
		if _, known := columnType[upper]; known {
			typeName, _, err := parseType(tokens[:1])
			return "CAST(" + quoteString(tokens[1].text) + " AS " + typeName + ")", 2, err
		}
	case upper == "CURRENT_DATETIME":
		return "CAST(current_timestamp AS TIMESTAMP)", 1, nil
	case engineReserved[upper]:
		return quoteName(first.text), 1, nil
	}
	return first.text, 1, nil
}

// typedConstructor translates ARRAY<T>[…] and STRUCT<…>(…).
func (t *translator) typedConstructor(tokens []token) (string, int, error) {
	typeName, used, err := parseType(tokens)
	if err != nil {
		return "", 0, err
	}
	if used == len(tokens) || !tokens[used].is("[") && !tokens[used].is("(") {
		return "", 0, fmt.Errorf("syntax error: expected a value after the type %s", typeName)
	}
	end, err := closing(tokens, used)
	if err != nil {
		return "", 0, err
	}
	inner, err := t.walk(tokens[used+1:end], false)
	if err != nil {
		return "", 0, err
	}
	if tokens[used].is("[") {
		return "CAST([" + inner + "] AS " + typeName + ")", end + 1, nil
	}
	return "CAST(row(" + inner + ") AS " + typeName + ")", end + 1, nil
}

// parseType translates the type at the start of tokens, and says how many tokens it has.
func parseType(tokens []token) (string, int, error) {
	if len(tokens) == 0 || tokens[0].kind != tokenName {
		return "", 0, fmt.Errorf("syntax error: expected a type")
	}
	at := func(i int, s string) bool { return i < len(tokens) && tokens[i].is(s) }
	upper := strings.ToUpper(tokens[0].text)
	switch {
	case upper == "ARRAY" && at(1, "<"):
		elem, n, err := parseType(tokens[2:])
		if err != nil {
			return "", 0, err
		}
		n += 2
		if err := closeAngle(tokens, n); err != nil {
			return "", 0, err
		}
		return elem + "[]", n + 1, nil
	case upper == "STRUCT" && at(1, "<"):
		var fields []string
		i := 2
		for {
			name := "_field_" + strconv.Itoa(len(fields)+1)
			if i+1 < len(tokens) && tokens[i].isName() && tokens[i+1].isName() {
				name = tokens[i].text
				i++
			}
			if i >= len(tokens) {
				return "", 0, fmt.Errorf("syntax error: STRUCT< is never closed")
			}
			field, n, err := parseType(tokens[i:])
			if err != nil {
				return "", 0, err
			}
			fields = append(fields, quoteName(name)+" "+field)
			i += n
			if !at(i, ",") {
				break
			}
			i++
		}
		if err := closeAngle(tokens, i); err != nil {
			return "", 0, err
		}
		return "STRUCT(" + strings.Join(fields, ", ") + ")", i + 1, nil
	}
	known, ok := columnType[upper]
	engine := engineType[known]
	if upper == "INTERVAL" {
		engine, ok = upper, true
	}
	if !ok || engine == "" {
		return "", 0, fmt.Errorf("type %s is not supported by the local BigQuery", tokens[0].text)
	}
	if !at(1, "(") { // STRING(10), NUMERIC(10, 2): the parameters are checked by BigQuery alone
		return engine, 1, nil
	}
	end, err := closing(tokens, 1)
	return engine, end + 1, err
}

// closeAngle expects > at tokens[i].
func closeAngle(tokens []token, i int) error {
	if i < len(tokens) && tokens[i].is(">") {
		return nil
	}
	return fmt.Errorf("syntax error: expected > after the type")
}

// intervalUnits are the units that INTERVAL and the date functions take.
var intervalUnits = wordSet(`MICROSECOND MILLISECOND SECOND MINUTE HOUR DAY WEEK MONTH QUARTER YEAR`)

// interval translates INTERVAL <expression> <unit>.
func (t *translator) interval(tokens []token) (string, int, error) {
	depth := 0
	for i := 1; i < len(tokens); i++ {
		switch {
		case tokens[i].is("(") || tokens[i].is("["):
			depth++
		case tokens[i].is(")") || tokens[i].is("]"):
			depth--
		case depth == 0 && i > 1 && intervalUnits[keywordOf(tokens[i])]:
			if i+1 < len(tokens) && tokens[i+1].is("TO") {
				return "", 0, fmt.Errorf("INTERVAL … TO … is not supported by the local BigQuery")
			}
			value, err := t.walk(tokens[1:i], false)
			return "INTERVAL (" + value + ") " + strings.ToUpper(tokens[i].text), i + 1, err
		}
	}
	return "", 0, fmt.Errorf("syntax error: INTERVAL needs a value and a unit")
}

// tablePath translates the name of a table: [project.]dataset.table, with any part, or all of it, in backticks.
func (t *translator) tablePath(tokens []token) (string, int, error) {
	var parts []string
	i := 0
	for {
		if i >= len(tokens) || !tokens[i].isName() {
			return "", 0, fmt.Errorf("syntax error: expected the name of a table")
		}
		if tokens[i].kind == tokenQuoted {
			parts = append(parts, strings.Split(tokens[i].text, ".")...)
			i++
		} else {
			part := tokens[i].text
			i++
			dotted := false
			// A project's name may have dashes without being quoted.
			for len(parts) == 0 && i+1 < len(tokens) && tokens[i].is("-") && tokens[i].glued && tokens[i+1].glued &&
				(tokens[i+1].kind == tokenName || tokens[i+1].kind == tokenNumber) {
				piece, dot := strings.CutSuffix(tokens[i+1].text, ".") // in a-1.b the lexer has read the number "1."
				part += "-" + piece
				i += 2
				if dot {
					dotted = true
					break
				}
			}
			parts = append(parts, part)
			if dotted {
				continue
			}
		}
		if i >= len(tokens) || !tokens[i].is(".") {
			break
		}
		i++
	}
	name, err := t.tableName(parts)
	return name, i, err
}

func (t *translator) tableName(parts []string) (string, error) {
	if slices.ContainsFunc(parts, func(p string) bool { return strings.EqualFold(p, "INFORMATION_SCHEMA") }) {
		return "", fmt.Errorf("INFORMATION_SCHEMA is not supported by the local BigQuery")
	}
	switch len(parts) {
	case 1:
		if t.subqueries[strings.ToLower(parts[0])] {
			return quoteName(parts[0]), nil
		}
		if t.defaultDataset == "" {
			return "", fmt.Errorf("table %q must be qualified with a dataset (e.g. dataset.table)", parts[0])
		}
		return t.resolve(t.defaultDataset, parts[0])
	case 2:
		return t.resolve(parts[0], parts[1])
	case 3:
		if parts[0] != t.project {
			return "", notFound("Project", "%s: the local BigQuery has the one project %s", parts[0], t.project)
		}
		return t.resolve(parts[1], parts[2])
	default:
		return "", fmt.Errorf("invalid table name %q", strings.Join(parts, "."))
	}
}

// unnestTable translates UNNEST(array) [[AS] alias] [WITH OFFSET [[AS] name]] in a FROM clause. The alias is the element itself.
func (t *translator) unnestTable(tokens []token) (string, int, error) {
	if len(tokens) < 2 || !tokens[1].is("(") {
		return "", 0, fmt.Errorf("syntax error: expected ( after UNNEST")
	}
	end, err := closing(tokens, 1)
	if err != nil {
		return "", 0, err
	}
	array, err := t.walk(tokens[2:end], false)
	if err != nil {
		return "", 0, err
	}
	i := end + 1
	alias := func(fallback string) string {
		if i < len(tokens) && tokens[i].is("AS") {
			i++
		}
		if i < len(tokens) && tokens[i].isName() && !reserved[keywordOf(tokens[i])] {
			i++
			return quoteName(tokens[i-1].text)
		}
		return fallback
	}
	element := alias(`"_element"`)
	if i+1 < len(tokens) && tokens[i].is("WITH") && tokens[i+1].is("OFFSET") {
		i += 2
		offset := alias(`"offset"`)
		return fmt.Sprintf(`(SELECT unnest("_array") AS %s, generate_subscripts("_array", 1) - 1 AS %s FROM (SELECT %s AS "_array")) AS %s`,
			element, offset, array, element), i, nil
	}
	return fmt.Sprintf("(SELECT unnest(%s) AS %s) AS %s", array, element, element), i, nil
}
