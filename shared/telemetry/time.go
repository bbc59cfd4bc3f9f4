package telemetry

import (
	"fmt"
	"time"
)

// How far the time of a reading may lie from the moment its message was published.
const (
	// MaxAge is the longest that a robot may keep readings while it is offline. What is older than a month is more likely a
	// clock that was never set.
	MaxAge = 31 * 24 * time.Hour
	// MaxSkew is how much the clock of a robot may be fast.
	MaxSkew = time.Hour
)

// CheckTime compares the time of r with the moment its message was published. It uses that and not the clock of this
// machine, so that a message is judged alike each time it is delivered, however late. Its error is a *RuleError with
// ReasonTooOld or ReasonInFuture.
func CheckTime(r *Reading, published time.Time) error {
	age := published.Sub(r.Time)
	switch {
	case age > MaxAge:
		return &RuleError{Reason: ReasonTooOld, Field: "time", Message: timeMessage(r.Time, published, "at most 31 days before")}
	case age < -MaxSkew:
		return &RuleError{Reason: ReasonInFuture, Field: "time", Message: timeMessage(r.Time, published, "at most 1 hour after")}
	}
	return nil
}

func timeMessage(t, published time.Time, want string) string {
	return fmt.Sprintf("found %s, want %s it was published, which was %s",
		t.Format(time.RFC3339Nano), want, published.UTC().Format(time.RFC3339Nano))
}
