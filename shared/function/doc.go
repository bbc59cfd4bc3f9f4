// Package function serves a CloudEvents handler over HTTP, as a Knative Service that Pub/Sub pushes to, as a container of
// its own, or under the functions framework on a laptop.
//
// Arrives: POST requests with a CloudEvent in binary, structured or batched mode, a Pub/Sub push with or without wrapping, or a
// bare body. The handler sees a CloudEvent in each case, and by DeliveryFrom how it came.
//
// Leaves: nothing but the answer, which is an acknowledgement: 204 once the handler has returned nil, which it does only when
// the event's effect is durable.
//
// Retried: whatever is answered otherwise, by Pub/Sub. 503 is a failure elsewhere, 429 more than the stage can hold (both with
// Retry-After), 500 a panic of the handler, 401 and 403 a push without the right identity, 400 an event that no attempt
// mends.
//
// Dead-lettered: by Pub/Sub, what still fails after the last attempt that the Trigger allows. Handlers quarantine bad input
// themselves and acknowledge it, because nacks slow the whole subscription down.
//
// The functions framework's own event path is not used: in version 1.9.2 functions.CloudEvent passes all requests through one
// unbuffered channel, on which patient callers stall when others hang up (cloudevents/sdk-go issues 1224 and 1332), answers
// permanently bad input by 500, and knows no SIGTERM. functions.HTTP with this package's handler has none of that.
package function
