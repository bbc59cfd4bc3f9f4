package bigquery

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// tokenKind is the kind of a GoogleSQL token.
type tokenKind int

const (
	tokenEnd       tokenKind = iota
	tokenName                // an identifier or keyword, as written
	tokenQuoted              // an identifier in backticks; text is what is between them
	tokenString              // a string literal; text is its value
	tokenBytes               // a bytes literal; text is its value
	tokenNumber              // as written
	tokenParameter           // @name; text is the name. A positional ? has none.
	tokenSymbol              // an operator or punctuation, as written
)

// token is one lexical element.
type token struct {
	kind tokenKind
	text string
	// glued says that nothing stands between this token and the one before it.
	glued bool
}

// is says whether the token is the keyword or symbol s, which is in upper case.
func (t token) is(s string) bool {
	return (t.kind == tokenName || t.kind == tokenSymbol) && strings.EqualFold(t.text, s)
}

func (t token) isName() bool { return t.kind == tokenName || t.kind == tokenQuoted }

// symbols of more than one character. >> is read as two, because it may close two types at once.
var symbols = []string{"<=", ">=", "<>", "!=", "||", "<<", "=>", "|>"}

// lex splits GoogleSQL into tokens and drops comments
// (https://cloud.google.com/bigquery/docs/reference/standard-sql/lexical).
func lex(s string) ([]token, error) {
	if !utf8.ValidString(s) {
		return nil, fmt.Errorf("syntax error: the query is not UTF-8")
	}
	var out []token
	glued := false
	add := func(kind tokenKind, text string) {
		out = append(out, token{kind, text, glued})
		glued = true
	}
	for i := 0; i < len(s); {
		rest := s[i:]
		switch c := s[i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f':
			i++
			glued = false
		case strings.HasPrefix(rest, "--") || c == '#':
			n := strings.IndexByte(rest, '\n')
			if n < 0 {
				n = len(rest)
			}
			i += n
			glued = false
		case strings.HasPrefix(rest, "/*"):
			n := strings.Index(rest[2:], "*/")
			if n < 0 {
				return nil, fmt.Errorf("syntax error: unclosed comment at byte %d", i)
			}
			i += n + 4
			glued = false
		case c == '`':
			n := strings.IndexByte(rest[1:], '`')
			if n < 0 {
				return nil, fmt.Errorf("syntax error: unclosed identifier literal at byte %d", i)
			}
			if n == 0 {
				return nil, fmt.Errorf("syntax error: empty identifier at byte %d", i)
			}
			add(tokenQuoted, rest[1:1+n])
			i += n + 2
		case stringStart(rest) > 0:
			value, isBytes, n, err := lexString(rest)
			if err != nil {
				return nil, fmt.Errorf("syntax error at byte %d: %w", i, err)
			}
			kind := tokenString
			if isBytes {
				kind = tokenBytes
			}
			add(kind, value)
			i += n
		case isNameByte(c) && !isDigit(c):
			n := 1
			for n < len(rest) && isNameByte(rest[n]) {
				n++
			}
			add(tokenName, rest[:n])
			i += n
		case isDigit(c) || c == '.' && len(rest) > 1 && isDigit(rest[1]) && !afterOperand(out):
			n := numberLength(rest)
			add(tokenNumber, rest[:n])
			i += n
		case c == '@' && len(rest) > 1 && isNameByte(rest[1]) && !isDigit(rest[1]):
			n := 2
			for n < len(rest) && isNameByte(rest[n]) {
				n++
			}
			add(tokenParameter, rest[1:n])
			i += n
		case c == '?':
			add(tokenParameter, "")
			i++
		default:
			text := ""
			for _, symbol := range symbols {
				if strings.HasPrefix(rest, symbol) {
					text = symbol
					break
				}
			}
			if text == "" && strings.IndexByte("()[]<>=+-*/.,;&|^~", c) >= 0 {
				text = rest[:1]
			}
			if text == "" {
				r, _ := utf8.DecodeRuneInString(rest)
				return nil, fmt.Errorf("syntax error: illegal input character %q at byte %d", r, i)
			}
			add(tokenSymbol, text)
			i += len(text)
		}
	}
	return out, nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isNameByte(c byte) bool {
	return c == '_' || isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'z'
}

// afterOperand says whether a dot after these tokens is a field access rather than the start of a number.
func afterOperand(out []token) bool {
	if len(out) == 0 {
		return false
	}
	last := out[len(out)-1]
	return last.isName() || last.is(")") || last.is("]")
}

// numberLength is the length of the number literal at the start of s: 12, 0x1F, 1.5, .5, 1e-3.
func numberLength(s string) int {
	if len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x' {
		n := 2
		for n < len(s) && strings.IndexByte("0123456789abcdefABCDEF", s[n]) >= 0 {
			n++
		}
		return n
	}
	n := 0
	digits := func() {
		for n < len(s) && isDigit(s[n]) {
			n++
		}
	}
	digits()
	if n < len(s) && s[n] == '.' {
		n++
		digits()
	}
	if n < len(s) && s[n]|0x20 == 'e' {
		exponent := n
		n++
		if n < len(s) && (s[n] == '+' || s[n] == '-') {
			n++
		}
		if n == len(s) || !isDigit(s[n]) {
			return exponent
		}
		digits()
	}
	return n
}

// stringStart is the length of the prefix and opening quote of a string or bytes literal at the start of s; 0: there is none.
func stringStart(s string) int {
	n := 0
	for n < 2 && n < len(s) && strings.IndexByte("rRbB", s[n]) >= 0 {
		n++
	}
	if n < len(s) && (s[n] == '\'' || s[n] == '"') {
		if n < 2 || s[0]|0x20 != s[1]|0x20 {
			return n + 1
		}
	}
	return 0
}

// lexString reads the string or bytes literal at the start of s: its value and its length.
func lexString(s string) (value string, isBytes bool, length int, err error) {
	start := stringStart(s)
	prefix := strings.ToLower(s[:start-1])
	raw := strings.Contains(prefix, "r")
	isBytes = strings.Contains(prefix, "b")
	quote := s[start-1 : start]
	if strings.HasPrefix(s[start:], quote+quote) {
		quote = quote + quote + quote
		start += 2
	}
	var b strings.Builder
	for i := start; i < len(s); {
		switch {
		case strings.HasPrefix(s[i:], quote):
			return b.String(), isBytes, i + len(quote), nil
		case s[i] == '\n' && len(quote) == 1:
			return "", false, 0, fmt.Errorf("unclosed string literal")
		case s[i] != '\\':
			b.WriteByte(s[i])
			i++
		case i+1 >= len(s):
			return "", false, 0, fmt.Errorf("unclosed string literal")
		case raw:
			b.WriteString(s[i : i+2])
			i += 2
		default:
			n, err := unescape(&b, s[i:], isBytes)
			if err != nil {
				return "", false, 0, err
			}
			i += n
		}
	}
	return "", false, 0, fmt.Errorf("unclosed string literal")
}

// unescape writes what the escape sequence at the start of s stands for, and returns its length.
func unescape(b *strings.Builder, s string, isBytes bool) (int, error) {
	const simple, values = "abfnrtv\\?\"'`", "\a\b\f\n\r\t\v\\?\"'`"
	if i := strings.IndexByte(simple, s[1]); i >= 0 {
		b.WriteByte(values[i])
		return 2, nil
	}
	var digits int
	base, begin := 16, 2
	switch c := s[1]; {
	case c >= '0' && c <= '3':
		digits, base, begin = 3, 8, 1
	case c|0x20 == 'x':
		digits = 2
	case c == 'u' && !isBytes:
		digits = 4
	case c == 'U' && !isBytes:
		digits = 8
	default:
		return 0, fmt.Errorf("illegal escape sequence: %q", s[:2])
	}
	if len(s) < begin+digits {
		return 0, fmt.Errorf("illegal escape sequence: %q", s)
	}
	v, err := strconv.ParseUint(s[begin:begin+digits], base, 32)
	if err != nil || !isBytes && !utf8.ValidRune(rune(v)) {
		return 0, fmt.Errorf("illegal escape sequence: %q", s[:begin+digits])
	}
	if isBytes {
		b.WriteByte(byte(v))
	} else {
		b.WriteRune(rune(v))
	}
	return begin + digits, nil
}
