package telemetry

import (
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// RuleError says which rule a reading breaks. Reason and Error are what a Rejection holds.
type RuleError struct {
	Reason  Reason
	Field   string // path of the field, for example "position.lat_deg"; empty if the reading as a whole is meant
	Message string // what was found and what was expected; of the reading, no more than a short piece
}

// Error returns the field and the message, for example
// "position.lat_deg: found 91.5, want a number of degrees from -90 to 90".
func (e *RuleError) Error() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

// absent reports the missing fields, a set of bits 1<<field.
func absent(missing uint32) *RuleError {
	f := field(bits.TrailingZeros32(missing))
	e := &RuleError{Reason: ReasonMissingField, Field: fields[f].path, Message: "missing, want " + fields[f].want}
	var also []string
	for rest := missing &^ (1 << f); rest != 0; rest &= rest - 1 {
		// The fields of a missing object go without saying.
		path := fields[bits.TrailingZeros32(rest)].path
		if parent, _, nested := strings.Cut(path, "."); !nested || (parent != e.Field && !slices.Contains(also, parent)) {
			also = append(also, path)
		}
	}
	if also != nil {
		e.Message += "; also missing: " + strings.Join(also, ", ")
	}
	return e
}

// clip returns what fits in a message of a piece of a reading.
func clip(s []byte) string {
	const limit = 64
	if len(s) <= limit {
		return string(s)
	}
	n := limit
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return string(s[:n]) + "…"
}

// quote is clip for the value of a string.
func quote(s []byte) string { return strconv.Quote(clip(s)) }
