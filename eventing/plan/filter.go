package plan

import (
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
)

// maxFilterBytes is Pub/Sub's limit of a subscription's filter (https://cloud.google.com/pubsub/docs/subscription-message-filter).
const maxFilterBytes = 256

// filterOf translates what a Trigger wants to receive into Pub/Sub's filter language. "" is everything.
//
// As in Knative, a non-empty spec.filters replaces spec.filter.
func filterOf(spec *eventingv1.TriggerSpec) (string, *refusal) {
	var expr expression
	var refused *refusal
	switch {
	case len(spec.Filters) > 0:
		expr, refused = allOf(spec.Filters)
	case spec.Filter != nil && len(spec.Filter.Attributes) > 0:
		expr, refused = legacyFilter(spec.Filter.Attributes)
	default:
		return "", nil
	}
	if refused != nil {
		return "", refused
	}
	if len(expr.text) > maxFilterBytes {
		return "", refuse(ReasonFilterTooLong, "the filter is %d bytes as Pub/Sub writes it, of at most %d: %s; split the Trigger or filter on a prefix",
			len(expr.text), maxFilterBytes, expr.text)
	}
	return expr.text, nil
}

// expression is a piece of a filter. Pub/Sub wants parentheses wherever AND and OR, or NOT and another operator, meet.
type expression struct {
	text     string
	operator operator // the outermost one
}

type operator string

const (
	opNone operator = "" // a comparison, a function call or something in parentheses
	opAnd  operator = " AND "
	opOr   operator = " OR "
	opNot  operator = "NOT "
)

func join(op operator, parts []expression) expression {
	if len(parts) == 1 {
		return parts[0]
	}
	texts := make([]string, len(parts))
	for i, part := range parts {
		texts[i] = part.text
		if part.operator != opNone && part.operator != op && part.operator != opNot {
			texts[i] = "(" + part.text + ")"
		}
	}
	return expression{text: strings.Join(texts, string(op)), operator: op}
}

func negate(e expression) expression {
	if e.operator != opNone {
		e.text = "(" + e.text + ")"
	}
	return expression{text: string(opNot) + e.text, operator: opNot}
}

// legacyFilter is spec.filter.attributes: exact matches, where "" stands for any value.
func legacyFilter(attributes map[string]string) (expression, *refusal) {
	return eachAttribute(attributes, func(key, value string) (expression, *refusal) {
		if value == eventingv1.TriggerAnyFilter {
			// Knative takes an attribute with an empty value for an absent one.
			return expression{text: "attributes:" + key + " AND attributes." + key + ` != ""`, operator: opAnd}, nil
		}
		return equals(key, value)
	})
}

func translate(filter eventingv1.SubscriptionsAPIFilter) (expression, *refusal) {
	switch {
	case len(filter.Exact) > 0:
		return eachAttribute(filter.Exact, equals)
	case len(filter.Prefix) > 0:
		return eachAttribute(filter.Prefix, hasPrefix)
	case len(filter.All) > 0:
		return allOf(filter.All)
	case len(filter.Any) > 0:
		parts, refused := translateEach(filter.Any)
		return join(opOr, parts), refused
	case filter.Not != nil:
		inner, refused := translate(*filter.Not)
		return negate(inner), refused
	case len(filter.Suffix) > 0:
		return expression{}, refuse(ReasonFilterDialect, "Pub/Sub cannot filter by suffix: use exact or prefix, or filter in the subscriber")
	case filter.CESQL != "":
		return expression{}, refuse(ReasonFilterDialect, "Pub/Sub cannot evaluate CloudEvents SQL: use exact, prefix, all, any and not, or filter in the subscriber")
	default:
		return expression{}, refuse(ReasonInvalid, "a filter without a dialect: give it exactly one of exact, prefix, all, any and not")
	}
}

func allOf(filters []eventingv1.SubscriptionsAPIFilter) (expression, *refusal) {
	parts, refused := translateEach(filters)
	return join(opAnd, parts), refused
}

func translateEach(filters []eventingv1.SubscriptionsAPIFilter) ([]expression, *refusal) {
	parts := make([]expression, len(filters))
	for i, filter := range filters {
		var refused *refusal
		if parts[i], refused = translate(filter); refused != nil {
			return nil, refused
		}
	}
	return parts, nil
}

// eachAttribute joins one comparison per attribute, in alphabetical order: the same Trigger gives the same filter.
func eachAttribute(attributes map[string]string, compare func(key, value string) (expression, *refusal)) (expression, *refusal) {
	var parts []expression
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		key, refused := attributeKey(name)
		if refused != nil {
			return expression{}, refused
		}
		part, refused := compare(key, attributes[name])
		if refused != nil {
			return expression{}, refused
		}
		parts = append(parts, part)
	}
	return join(opAnd, parts), nil
}

// attributeKey is the Pub/Sub message attribute that holds the CloudEvents attribute name. The keys need no quotes: they
// are letters, digits and hyphens, because Knative's validation has passed.
func attributeKey(name string) (string, *refusal) {
	switch name {
	case "datacontenttype":
		return "content-type", nil
	case "time":
		return "", refuse(ReasonFilterAttribute, "Knative compares time in one canonical form and Pub/Sub as the publisher wrote it: filter on another attribute")
	case "datamediatype", "datacontentencoding", "schemaurl":
		return "", refuse(ReasonFilterAttribute, "%s is not an attribute of CloudEvents 1.0: Knative derives it, Pub/Sub does not know it", name)
	default:
		return "ce-" + name, nil
	}
}

func equals(key, value string) (expression, *refusal) {
	literal, refused := quote(key, value)
	return expression{text: "attributes." + key + " = " + literal}, refused
}

func hasPrefix(key, value string) (expression, *refusal) {
	literal, refused := quote(key, value)
	return expression{text: "hasPrefix(attributes." + key + ", " + literal + ")"}, refused
}

var quoter = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// quote writes value as a string literal of the filter language.
func quote(key, value string) (string, *refusal) {
	if value == "" {
		return "", refuse(ReasonFilterValue, "the filter compares %s with an empty value: CloudEvents attributes are never empty", key)
	}
	if !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
		return "", refuse(ReasonFilterValue, "the filter compares %s with %q: CloudEvents attributes hold no control characters", key, value)
	}
	return `"` + quoter.Replace(value) + `"`, nil
}
