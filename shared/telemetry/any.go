package telemetry

import (
	"bytes"
	"encoding/json"
	"iter"

	"github.com/go-faster/jx"
)

// MaxReadings is how many readings one message may hold. It bounds what a small body of tiny elements can make of itself,
// as each refused element becomes an event of its own.
const MaxReadings = 10_000

// DecodeAny decodes the body of a message, which is one reading or a JSON array of readings, and yields for each reading its
// JSON text and what Decode said of it. One bad reading does not condemn its neighbours; but a body that is not JSON, or
// holds more than MaxReadings, is yielded once, whole, with a *RuleError. An empty array yields nothing.
//
// Before each step r is overwritten, as by Decode. The text of a good reading is one line: if it was spread over several, it
// is a copy without the white space between tokens, otherwise it is the part of body where it stands. Strings and numbers are
// spelt as they were. The text of a refused one is always that part of body, unchanged.
func DecodeAny(body []byte, r *Reading) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		text := bytes.Trim(body, " \t\r\n")
		if len(text) == 0 || text[0] != '[' {
			yield(decodeLine(text, r))
			return
		}
		elements, err := split(text)
		if err != nil {
			yield(body, err)
			return
		}
		for _, element := range elements {
			if !yield(decodeLine(element, r)) {
				return
			}
		}
	}
}

// split returns the elements of a JSON array. The array is read to its end before the first is used, so that one which
// breaks off half-way is refused as a whole and not after some of its readings have been taken.
func split(array []byte) ([][]byte, error) {
	var d jx.Decoder
	d.ResetBytes(array)
	it, err := d.ArrIter()
	if err != nil {
		return nil, notJSON(err)
	}
	const typical = 256 // bytes of a reading
	elements := make([][]byte, 0, min(len(array)/typical+1, MaxReadings))
	for it.Next() {
		raw, err := d.Raw()
		if err != nil {
			return nil, notJSON(err)
		}
		if len(elements) == MaxReadings {
			return nil, &RuleError{Reason: ReasonOutOfRange, Message: "found more than 10000 readings, want at most 10000 in a message"}
		}
		elements = append(elements, bytes.Trim(raw, " \t\r\n"))
	}
	if err := it.Err(); err != nil {
		return nil, notJSON(err)
	}
	if err := end(&d); err != nil {
		return nil, notJSON(err)
	}
	return elements, nil
}

// decodeLine decodes a reading and returns its text, which is one line if the reading is good.
func decodeLine(text []byte, r *Reading) ([]byte, error) {
	if err := Decode(text, r); err != nil {
		return text, err
	}
	// In JSON line breaks stand only between tokens; those in strings are escaped.
	if bytes.IndexByte(text, '\n') < 0 && bytes.IndexByte(text, '\r') < 0 {
		return text, nil
	}
	var line bytes.Buffer
	if err := json.Compact(&line, text); err != nil {
		return text, notJSON(err) // not reached while jx and encoding/json agree, which the tests assert
	}
	return line.Bytes(), nil
}
