package function

import (
	"errors"
	"net/http"
)

// Kind says what a failure means for the sender: whether the same event may succeed later.
type Kind int

// The kinds of failure. An error that has none is Transient, because then nothing is lost by trying again.
const (
	// Transient is a failure of something else, a sink that is down for example: 503, try again.
	Transient Kind = iota
	// Permanent is a fault of the event that no further attempt mends, for which the stage has no quarantine: 400. To
	// Pub/Sub that is a nack like any other, so such an event ends in the dead-letter topic after its last attempt.
	Permanent
	// Overloaded says that the stage has taken on as much as it can hold: 429, try again later.
	Overloaded
	// Denied refuses the sender: 403.
	Denied
	// unauthenticated refuses a sender that proved no identity: 401.
	unauthenticated
)

type kindError struct {
	kind Kind
	err  error
}

func (e *kindError) Error() string { return e.err.Error() }
func (e *kindError) Unwrap() error { return e.err }

// WithKind returns err with kind attached, or nil if err is nil.
func WithKind(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &kindError{kind, err}
}

// KindOf returns the kind of the outermost error in the tree of err that has one, else Transient.
func KindOf(err error) Kind {
	if ke, ok := errors.AsType[*kindError](err); ok {
		return ke.kind
	}
	return Transient
}

// status is the HTTP status by which a kind is answered. Pub/Sub takes 102, 200, 201, 202 and 204 for an ack and all else for
// a nack (https://cloud.google.com/pubsub/docs/push#receive_push); the difference between nacks is for people and dashboards.
func (k Kind) status() int {
	switch k {
	case Permanent:
		return http.StatusBadRequest
	case Overloaded:
		return http.StatusTooManyRequests
	case Denied:
		return http.StatusForbidden
	case unauthenticated:
		return http.StatusUnauthorized
	default:
		return http.StatusServiceUnavailable
	}
}
