package robots

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// BadKind is what is wrong with a message that a fleet injects.
type BadKind string

// The kinds of injected messages. All but BadDuplicate are to be rejected.
const (
	BadMalformed    BadKind = "malformed"     // not JSON
	BadOutOfRange   BadKind = "out_of_range"  // a value no robot can have
	BadWrongType    BadKind = "wrong_type"    // a field of another JSON type
	BadMissingField BadKind = "missing_field" // a required field left out
	BadHuge         BadKind = "huge"          // a valid reading in a body just over 1 MiB
	BadLate         BadKind = "late"          // measured longer than 31 days ago
	BadDuplicate    BadKind = "duplicate"     // a good message published once more: accepted, and stored once
)

// BadKinds are all kinds, in a fixed order.
func BadKinds() []BadKind {
	return []BadKind{BadMalformed, BadOutOfRange, BadWrongType, BadMissingField, BadHuge, BadLate, BadDuplicate}
}

// Reason is why a message of this kind is to be rejected, or "" for a duplicate, which is not.
func (k BadKind) Reason() telemetry.Reason {
	switch k {
	case BadMalformed:
		return telemetry.ReasonMalformed
	case BadOutOfRange:
		return telemetry.ReasonOutOfRange
	case BadWrongType:
		return telemetry.ReasonWrongType
	case BadMissingField:
		return telemetry.ReasonMissingField
	case BadHuge:
		return telemetry.ReasonBodyTooLarge
	case BadLate:
		return telemetry.ReasonTooOld
	default:
		return ""
	}
}

const (
	// hugeBody is the size of a huge message in bytes: over the 1 MiB that a stage accepts, far below the 10 MB that
	// Pub/Sub does.
	hugeBody = 1<<20 + 512
	// lateBy is how old a late reading is at least: by more than any clock is wrong.
	lateBy = telemetry.MaxAge + 2*time.Hour
	// badSeqBase is added to the number of a bad message to make the seq in its body, so that one that gets through by
	// mistake is a row of its own and not taken for a good one.
	badSeqBase = 1_000_000_000_000
)

// drawBadKind chooses a kind; huge ones are rarer, because one weighs as much as three thousand others.
func drawBadKind(rng *rand.Rand) BadKind {
	const share = 8 // of every other kind for one huge message
	kinds := BadKinds()
	at := rng.IntN(share*(len(kinds)-1) + 1)
	if at == share*(len(kinds)-1) {
		return BadHuge
	}
	return slices.DeleteFunc(kinds, func(k BadKind) bool { return k == BadHuge })[at/share]
}

// badBody makes the body of a bad message from a valid reading. Each breaks exactly one rule, so that the reason for
// which it is to be rejected is certain.
func badBody(kind BadKind, good telemetry.Reading, rng *rand.Rand) ([]byte, error) {
	switch kind {
	case BadMalformed:
		return malformed(appendReading(nil, &good), rng), nil
	case BadLate:
		good.Time = good.Time.Add(-lateBy - time.Duration(rng.Int64N(int64(24*time.Hour)))).Truncate(time.Millisecond)
		return appendReading(nil, &good), nil
	case BadHuge:
		body := appendReading(make([]byte, 0, hugeBody), &good)
		body = append(body[:len(body)-1], `,"padding":"`...)
		for len(body) < hugeBody-2 {
			body = append(body, 'x')
		}
		return append(body, `"}`...), nil
	}

	var fields map[string]any
	if err := json.Unmarshal(appendReading(nil, &good), &fields); err != nil {
		return nil, fmt.Errorf("decode reading to spoil: %w", err)
	}
	position, _ := fields["position"].(map[string]any)
	charge, _ := fields["battery"].(map[string]any)
	choices := map[BadKind][]func(){
		BadOutOfRange: {
			func() { position["lat_deg"] = 91.5 },
			func() { position["lon_deg"] = -180.25 },
			func() { position["heading_deg"] = 361 },
			func() { position["speed_mps"] = -3 },
			func() { charge["percent"] = 130 },
			func() { fields["status"] = "flying" },
		},
		BadWrongType: {
			func() { fields["seq"] = "twelve" },
			func() { fields["position"] = []float64{good.Position.LatDeg, good.Position.LonDeg} },
			func() { charge["percent"] = "87 %" },
			func() { charge["charging"] = 1 },
			func() { fields["status"] = nil },
			func() { position["lat_deg"] = "north" },
		},
		BadMissingField: {
			func() { delete(fields, "position") },
			func() { delete(fields, "battery") },
			func() { delete(fields, "time") },
			func() { delete(fields, "status") },
			func() { delete(position, "lon_deg") },
			func() { delete(charge, "percent") },
		},
	}[kind]
	if len(choices) == 0 {
		return nil, fmt.Errorf("no way to make a message bad by %q", kind)
	}
	choices[rng.IntN(len(choices))]()
	body, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("encode spoilt reading: %w", err)
	}
	return body, nil
}

// malformed makes something of a valid body that is not JSON.
func malformed(body []byte, rng *rand.Rand) []byte {
	switch rng.IntN(4) {
	case 0: // a connection that broke
		return body[:1+rng.IntN(len(body)-1)]
	case 1: // a log line that went the wrong way
		return append([]byte("WARN telemetry: "), body...)
	case 2: // bytes of another encoding inside a string
		return slices.Concat(body[:len(body)-1], []byte(",\"note\":\"\xff\xfe\"}"))
	default: // what printf makes of a missing number
		return slices.Concat(body[:len(body)-1], []byte(`,"load_kg":NaN}`))
	}
}
