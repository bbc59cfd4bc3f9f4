// Package telemetry defines what a robot reports: the nouns (Reading, Rejection), the rules a reading obeys, and the decoder
// that applies them.
//
// # Rules
//
// The reference is a JSON Schema, schema.json (see Schema). Decode applies the same rules by hand, because it runs once for
// every reading of the fleet and a schema library costs some twenty times as much; the tests compare the two on generated and
// on fuzzed input. A schema judges values, so three things come before it:
//
//   - The text is JSON (RFC 8259) in UTF-8 without a byte order mark, and nothing follows the value. As I-JSON (RFC 7493) asks,
//     names are not repeated in the reading itself, its position, its battery or its fault, and an escape never stands for half
//     a surrogate pair. U+0000 is refused too: tools in C cut strings there. Objects and arrays nest at most MaxDepth deep.
//   - A number is the IEEE 754 double nearest to its spelling, before any rule looks at it: 1.0 and 1e0 are the integer 1, -0 is 0,
//     and 1e400 is refused because it has no double, also in an unknown field.
//   - The age of a reading is judged by CheckTime, against the moment its message was published.
//
// # Unknown fields
//
// They are kept, wherever they are, in Reading.Extra: robots with newer software must not lose their readings to a field that
// nobody here has heard of. No rule looks at them, except that they count among the at most 64 fields of their object and obey
// the rules of the text above.
//
// # Errors
//
// Whatever is wrong with a reading is a *RuleError: its Reason for counting, its Field and Message for a person. A text that is
// not JSON is ReasonMalformed even if a rule is broken in the part before the mistake.
//
// # Memory
//
// A decoded Reading keeps no reference to the bytes it came from; its strings share one allocation.
package telemetry
