package pubsub

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxFilterBytes is the documented length limit of a filter (https://cloud.google.com/pubsub/docs/subscription-message-filter).
const maxFilterBytes = 256

// filter is a parsed subscription filter: a predicate over the attributes of a message.
type filter func(attributes map[string]string) bool

// parseFilter parses the filter language of Pub/Sub:
//
//	expression = term { "AND" term } | term { "OR" term }
//	term       = [ "NOT" | "-" ] ( comparison | "(" expression ")" )
//	comparison = "attributes" ":" key | "attributes" "." key ( "=" | "!=" ) string
//	           | "hasPrefix" "(" "attributes" "." key "," string ")"
//	key        = identifier | string
//
// AND and OR in one expression need parentheses, as in production. The operators are case-sensitive. The empty filter
// is nil: it lets every message through.
func parseFilter(text string) (filter, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxFilterBytes {
		return nil, fmt.Errorf("filter has %d bytes, at most %d are allowed", len(text), maxFilterBytes)
	}
	p := filterParser{rest: text}
	if err := p.next(); err != nil {
		return nil, err
	}
	f, err := p.expression()
	if err != nil {
		return nil, err
	}
	if p.token.kind != tokenEnd {
		return nil, fmt.Errorf("filter: unexpected %s", p.token)
	}
	return f, nil
}

type tokenKind int

const (
	tokenEnd    tokenKind = iota
	tokenWord             // an identifier or keyword
	tokenString           // text holds the unescaped value
	tokenSymbol           // ( ) : . = != , -
)

type filterToken struct {
	kind tokenKind
	text string
}

func (t filterToken) String() string {
	if t.kind == tokenEnd {
		return "end of filter"
	}
	return strconv.Quote(t.text)
}

type filterParser struct {
	rest  string
	token filterToken
}

func (p *filterParser) expression() (filter, error) {
	left, err := p.term()
	if err != nil {
		return nil, err
	}
	operator := p.token
	for p.isWord("AND") || p.isWord("OR") {
		if p.token != operator {
			return nil, errors.New("filter: AND and OR in one expression need parentheses")
		}
		if err := p.next(); err != nil {
			return nil, err
		}
		right, err := p.term()
		if err != nil {
			return nil, err
		}
		a, b := left, right
		if operator.text == "AND" {
			left = func(attributes map[string]string) bool { return a(attributes) && b(attributes) }
		} else {
			left = func(attributes map[string]string) bool { return a(attributes) || b(attributes) }
		}
	}
	return left, nil
}

func (p *filterParser) term() (filter, error) {
	negate := p.isWord("NOT") || p.isSymbol("-")
	if negate {
		if err := p.next(); err != nil {
			return nil, err
		}
	}
	f, err := p.primary()
	if err != nil || !negate {
		return f, err
	}
	return func(attributes map[string]string) bool { return !f(attributes) }, nil
}

func (p *filterParser) primary() (filter, error) {
	switch {
	case p.isSymbol("("):
		if err := p.next(); err != nil {
			return nil, err
		}
		f, err := p.expression()
		if err != nil {
			return nil, err
		}
		return f, p.symbol(")")
	case p.isWord("hasPrefix"):
		return p.hasPrefix()
	case p.isWord("attributes"):
		return p.comparison()
	}
	return nil, fmt.Errorf("filter: unexpected %s, want attributes, hasPrefix, NOT or a parenthesis", p.token)
}

func (p *filterParser) comparison() (filter, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	if p.isSymbol(":") {
		if err := p.next(); err != nil {
			return nil, err
		}
		key, err := p.key()
		return func(attributes map[string]string) bool { _, ok := attributes[key]; return ok }, err
	}
	if err := p.symbol("."); err != nil {
		return nil, err
	}
	key, err := p.key()
	if err != nil {
		return nil, err
	}
	equal := p.isSymbol("=")
	if !equal && !p.isSymbol("!=") {
		return nil, fmt.Errorf("filter: unexpected %s, want = or !=", p.token)
	}
	if err := p.next(); err != nil {
		return nil, err
	}
	value, err := p.string()
	// A message without the key is not equal: != lets it through.
	return func(attributes map[string]string) bool {
		got, ok := attributes[key]
		return (ok && got == value) == equal
	}, err
}

func (p *filterParser) hasPrefix() (filter, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	if err := p.symbol("("); err != nil {
		return nil, err
	}
	if !p.isWord("attributes") {
		return nil, fmt.Errorf("filter: unexpected %s, want attributes", p.token)
	}
	if err := p.next(); err != nil {
		return nil, err
	}
	if err := p.symbol("."); err != nil {
		return nil, err
	}
	key, err := p.key()
	if err != nil {
		return nil, err
	}
	if err := p.symbol(","); err != nil {
		return nil, err
	}
	prefix, err := p.string()
	if err != nil {
		return nil, err
	}
	return func(attributes map[string]string) bool {
		got, ok := attributes[key]
		return ok && strings.HasPrefix(got, prefix)
	}, p.symbol(")")
}

func (p *filterParser) isWord(word string) bool { return p.token == filterToken{tokenWord, word} }

func (p *filterParser) isSymbol(symbol string) bool {
	return p.token == filterToken{tokenSymbol, symbol}
}

func (p *filterParser) symbol(want string) error {
	if !p.isSymbol(want) {
		return fmt.Errorf("filter: unexpected %s, want %q", p.token, want)
	}
	return p.next()
}

func (p *filterParser) key() (string, error) {
	if p.token.kind != tokenWord && p.token.kind != tokenString {
		return "", fmt.Errorf("filter: unexpected %s, want an attribute key", p.token)
	}
	key := p.token.text
	return key, p.next()
}

func (p *filterParser) string() (string, error) {
	if p.token.kind != tokenString {
		return "", fmt.Errorf("filter: unexpected %s, want a string in double quotes", p.token)
	}
	value := p.token.text
	return value, p.next()
}

// next reads the next token of p.rest into p.token.
func (p *filterParser) next() error {
	p.rest = strings.TrimLeft(p.rest, " \t\r\n")
	if p.rest == "" {
		p.token = filterToken{}
		return nil
	}
	switch c := p.rest[0]; {
	case c == '"':
		return p.quoted()
	case strings.HasPrefix(p.rest, "!="):
		p.take(tokenSymbol, 2)
	case strings.IndexByte("():.=,-", c) >= 0:
		p.take(tokenSymbol, 1)
	default:
		n := 0
		for n < len(p.rest) && isIdentifier(p.rest[n]) {
			n++
		}
		if n == 0 {
			r, _ := utf8.DecodeRuneInString(p.rest)
			return fmt.Errorf("filter: unexpected character %q", r)
		}
		p.take(tokenWord, n)
	}
	return nil
}

func (p *filterParser) take(kind tokenKind, n int) {
	p.token, p.rest = filterToken{kind, p.rest[:n]}, p.rest[n:]
}

// quoted reads a string in double quotes with the escapes of C: \n \" \\ \x41 \101 \u0041 \U00000041 and so on.
func (p *filterParser) quoted() error {
	var value strings.Builder
	for rest := p.rest[1:]; rest != ""; {
		if rest[0] == '"' {
			p.token, p.rest = filterToken{tokenString, value.String()}, rest[1:]
			return nil
		}
		r, multibyte, tail, err := strconv.UnquoteChar(rest, '"')
		if err != nil {
			return fmt.Errorf("filter: bad escape or character in string at %q", rest)
		}
		if r < utf8.RuneSelf || !multibyte {
			value.WriteByte(byte(r))
		} else {
			value.WriteRune(r)
		}
		rest = tail
	}
	return errors.New("filter: string without closing quote")
}

func isIdentifier(c byte) bool {
	return c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
