package plan

import (
	"time"

	"github.com/rickb777/date/period"
	eventingduckv1 "knative.dev/eventing/pkg/apis/duck/v1"
)

// Pub/Sub's limits (google.pubsub.v1: Subscription.ack_deadline_seconds, RetryPolicy, DeadLetterPolicy).
const (
	minAckDeadline = 10 * time.Second
	maxAckDeadline = 600 * time.Second
	maxBackoff     = 600 * time.Second
	minAttempts    = 5
	maxAttempts    = 100
)

// defaultAckDeadline holds where a Trigger has no timeout. It is Pub/Sub's own default.
const defaultAckDeadline = 10 * time.Second

// delivery is a DeliverySpec in Pub/Sub's words, except for whose topic the dead letters go to.
type delivery struct {
	ackDeadline time.Duration
	backoff     *Backoff // nil: at once
	attempts    int      // 0: until the message expires
}

// deliveryOf translates retry, backoff and timeout. It returns every refusal, so that they are mended in one go.
func deliveryOf(spec *eventingduckv1.DeliverySpec) (delivery, []*refusal) {
	d := delivery{ackDeadline: defaultAckDeadline}
	if spec == nil {
		return d, nil
	}
	var refused []*refusal
	note := func(r *refusal) {
		if r != nil {
			refused = append(refused, r)
		}
	}

	var r *refusal
	d.attempts, r = attemptsOf(spec)
	note(r)
	d.backoff, r = backoffOf(spec)
	note(r)
	d.ackDeadline, r = ackDeadlineOf(spec.Timeout)
	note(r)
	if spec.RetryAfterMax != nil {
		if limit, ok := parseDuration(*spec.RetryAfterMax); !ok || limit != 0 {
			note(refuse(ReasonRetryAfter, "spec.delivery.retryAfterMax is %s, but Pub/Sub does not read Retry-After: remove it or write PT0S", *spec.RetryAfterMax))
		}
	}
	if spec.Format != nil && *spec.Format != eventingduckv1.DeliveryFormatBinary {
		note(refuse(ReasonFormat, "spec.delivery.format is %s, but Pub/Sub delivers every event in binary mode: remove it or write binary", *spec.Format))
	}
	return d, refused
}

// attemptsOf counts the first attempt as Pub/Sub does; Knative's retry is the number of those after it.
func attemptsOf(spec *eventingduckv1.DeliverySpec) (int, *refusal) {
	switch {
	case spec.DeadLetterSink == nil && spec.Retry == nil:
		return 0, nil
	case spec.DeadLetterSink == nil:
		return 0, refuse(ReasonRetryWithoutSink,
			"spec.delivery.retry is %d without a deadLetterSink, but Pub/Sub gives up only where there is a dead-letter topic: "+
				"add spec.delivery.deadLetterSink, or remove retry to have it retried until it expires", *spec.Retry)
	case spec.Retry == nil:
		return 0, refuse(ReasonRetry, "spec.delivery has a deadLetterSink without retry: write retry: %d to %d", minAttempts-1, maxAttempts-1)
	}
	attempts := int64(*spec.Retry) + 1
	if attempts < minAttempts || attempts > maxAttempts {
		return 0, refuse(ReasonRetry, "spec.delivery.retry is %d, but Pub/Sub makes %d to %d attempts: write retry: %d to %d",
			*spec.Retry, minAttempts, maxAttempts, minAttempts-1, maxAttempts-1)
	}
	return int(attempts), nil
}

func backoffOf(spec *eventingduckv1.DeliverySpec) (*Backoff, *refusal) {
	switch {
	case spec.BackoffPolicy == nil && spec.BackoffDelay == nil:
		return nil, nil
	case spec.BackoffPolicy == nil || spec.BackoffDelay == nil:
		// Knative ignores one without the other; a person who wrote it meant something else.
		return nil, refuse(ReasonBackoffPolicy, "spec.delivery has only one of backoffPolicy and backoffDelay: write both or none")
	case *spec.BackoffPolicy != eventingduckv1.BackoffPolicyExponential:
		return nil, refuse(ReasonBackoffPolicy, "spec.delivery.backoffPolicy is %s, but Pub/Sub backs off exponentially: write exponential", *spec.BackoffPolicy)
	}
	delay, ok := parseDuration(*spec.BackoffDelay)
	if !ok || delay > maxBackoff {
		return nil, refuse(ReasonBackoff, "spec.delivery.backoffDelay is %s, but Pub/Sub takes PT0S to PT10M in steps of a tenth of a second", *spec.BackoffDelay)
	}
	// Knative's exponential backoff has no ceiling; Pub/Sub's largest is the nearest to none.
	return &Backoff{Min: seconds(delay), Max: seconds(maxBackoff)}, nil
}

func ackDeadlineOf(timeout *string) (time.Duration, *refusal) {
	if timeout == nil {
		return defaultAckDeadline, nil
	}
	deadline, ok := parseDuration(*timeout)
	if !ok || deadline < minAckDeadline || deadline > maxAckDeadline || deadline%time.Second != 0 {
		return 0, refuse(ReasonTimeout, "spec.delivery.timeout is %s, but Pub/Sub waits for PT10S to PT10M in whole seconds", *timeout)
	}
	return deadline, nil
}

// parseDuration reads ISO 8601 as Knative does, and refuses what has no exact length (a month), is negative, or is finer
// than that parser can see (it drops the second decimal place without a word).
func parseDuration(text string) (time.Duration, bool) {
	parsed, err := period.Parse(text)
	if err != nil {
		return 0, false
	}
	exact, ok := parsed.Duration()
	if !ok || exact < 0 || tooFine(text) {
		return 0, false
	}
	return exact, true
}

// tooFine says whether text has a number with more than one decimal place.
func tooFine(text string) bool {
	decimals := -1
	for _, c := range text {
		switch {
		case c == '.' || c == ',':
			decimals = 0
		case c < '0' || c > '9':
			decimals = -1
		case decimals >= 0:
			if decimals++; decimals > 1 {
				return true
			}
		}
	}
	return false
}
