package telemetry

// Reason is why a reading was refused. It is a metric label, an object field and what an operator searches for,
// so its values are few and never change their meaning.
type Reason string

// The reasons for which a reading is refused.
const (
	ReasonMalformed    Reason = "malformed"      // not JSON, not UTF-8, or not an object or an array of objects
	ReasonWrongType    Reason = "wrong_type"     // a field has another JSON type than the schema's
	ReasonMissingField Reason = "missing_field"  // a required field is absent
	ReasonOutOfRange   Reason = "out_of_range"   // a value breaks the schema's limits, pattern or enumeration
	ReasonTooOld       Reason = "too_old"        // measured longer ago than MaxAge before it was published
	ReasonInFuture     Reason = "in_future"      // measured later than MaxSkew after it was published
	ReasonBodyTooLarge Reason = "body_too_large" // the message exceeds the stage's body limit; what is kept is truncated
	ReasonUnstorable   Reason = "unstorable"     // valid by the rules, but refused by the warehouse
	// ReasonUndeliverable is the reason of a dead letter: every attempt to deliver it failed.
	ReasonUndeliverable Reason = "undeliverable"
)

// Rejection is a refused reading as it is quarantined: the data of an event of type
// dev.robofleet.telemetry.rejected.v1, kept so that the original can be read, mended and sent again.
type Rejection struct {
	Reason  Reason `json:"reason"`
	Message string `json:"message"` // for a person: which field, what was found, what was expected
	// Body is the original message, or of a JSON array the one element that was refused. Base64 in JSON.
	Body []byte `json:"body_base64"`
	// Truncated says that Body is only the beginning of the original, whose size was Size bytes (0: unknown).
	Truncated bool  `json:"truncated,omitempty"`
	Size      int64 `json:"size,omitempty"`
	// Attributes are the attributes of the original message, as it arrived.
	Attributes map[string]string `json:"attributes,omitempty"`
}
