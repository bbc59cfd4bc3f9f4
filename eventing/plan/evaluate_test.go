package plan

import (
	"regexp"
	"strings"
	"testing"
)

// evaluate decides whether a message with attributes passes filter, by the rules of
// https://cloud.google.com/pubsub/docs/subscription-message-filter. It is stricter than a server needs to be: AND, OR and
// NOT must not meet without parentheses.
func evaluate(t testing.TB, filter string, attributes map[string]string) bool {
	t.Helper()
	e := &evaluator{t: t, filter: filter, tokens: tokenize(t, filter), attributes: attributes}
	result := e.expression()
	if len(e.tokens) > 0 {
		t.Fatalf("filter %s: %q is left over", filter, e.tokens)
	}
	return result
}

var tokenPattern = regexp.MustCompile(`^(?:"(?:[^"\\]|\\["\\])*"|!=|[A-Za-z0-9_.-]+|[():=,])`)

func tokenize(t testing.TB, filter string) []string {
	t.Helper()
	var tokens []string
	for rest := strings.TrimSpace(filter); rest != ""; {
		token := tokenPattern.FindString(rest)
		if token == "" {
			t.Fatalf("filter %s: no token at %q", filter, rest)
		}
		tokens = append(tokens, token)
		rest = strings.TrimSpace(rest[len(token):])
	}
	return tokens
}

type evaluator struct {
	t          testing.TB
	filter     string
	tokens     []string
	attributes map[string]string
}

func (e *evaluator) peek() string {
	if len(e.tokens) == 0 {
		return ""
	}
	return e.tokens[0]
}

func (e *evaluator) take() string {
	e.t.Helper()
	if len(e.tokens) == 0 {
		e.t.Fatalf("filter %s ends too soon", e.filter)
	}
	token := e.tokens[0]
	e.tokens = e.tokens[1:]
	return token
}

func (e *evaluator) want(tokens ...string) {
	e.t.Helper()
	for _, token := range tokens {
		if got := e.take(); got != token {
			e.t.Fatalf("filter %s: %q, want %q", e.filter, got, token)
		}
	}
}

func (e *evaluator) expression() bool {
	e.t.Helper()
	result := e.term()
	operator := e.peek()
	for operator == "AND" || operator == "OR" {
		e.want(operator)
		next := e.term() // always evaluated, so that it is always parsed
		if operator == "AND" {
			result = result && next
		} else {
			result = result || next
		}
		if more := e.peek(); more != operator {
			break
		}
	}
	return result
}

func (e *evaluator) term() bool {
	e.t.Helper()
	switch token := e.take(); token {
	case "NOT":
		return !e.term()
	case "(":
		result := e.expression()
		e.want(")")
		return result
	case "hasPrefix":
		e.want("(")
		value, found := e.attribute(e.take())
		e.want(",")
		prefix := e.literal()
		e.want(")")
		return found && strings.HasPrefix(value, prefix)
	case "attributes":
		e.want(":")
		_, found := e.attributes[e.take()]
		return found
	default:
		value, found := e.attribute(token)
		switch operator := e.take(); operator {
		case "=":
			want := e.literal()
			return found && value == want
		case "!=":
			unwanted := e.literal()
			return !found || value != unwanted
		default:
			e.t.Fatalf("filter %s: operator %q", e.filter, operator)
			return false
		}
	}
}

func (e *evaluator) attribute(token string) (value string, found bool) {
	e.t.Helper()
	key, ok := strings.CutPrefix(token, "attributes.")
	if !ok {
		e.t.Fatalf("filter %s: %q, want attributes.<key>", e.filter, token)
	}
	value, found = e.attributes[key]
	return value, found
}

func (e *evaluator) literal() string {
	e.t.Helper()
	token := e.take()
	if len(token) < 2 || token[0] != '"' {
		e.t.Fatalf("filter %s: %q, want a string", e.filter, token)
	}
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(token[1 : len(token)-1])
}
