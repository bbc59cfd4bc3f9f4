// Package event names the CloudEvents that flow through the platform and maps them to Pub/Sub messages.
//
// On the wire every event is in binary mode: its attributes are message attributes (or HTTP headers) with the prefix "ce-"
// in lower case, its data content type is the attribute "content-type", its data is the payload.
//
// A stage that has many events to pass on sends them as one: a batch, an event whose data is a JSON array of structured
// CloudEvents. Split takes it apart.
package event

import "strconv"

// The types of the platform's events (CloudEvents 1.0).
const (
	// TypeTelemetry comes from a robot: one reading, or a JSON array of readings.
	TypeTelemetry = "dev.robofleet.telemetry.v1"
	// TypeTelemetryValidated carries a batch of TypeTelemetry events, one reading each, all valid.
	TypeTelemetryValidated = "dev.robofleet.telemetry.validated.v1"
	// TypeTelemetryRejected carries a batch of events of the same type whose data is a telemetry.Rejection each.
	TypeTelemetryRejected = "dev.robofleet.telemetry.rejected.v1"
	// TypeDeadLetter is a message that no attempt could deliver, as the archive keeps it; its data is a
	// telemetry.Rejection with reason telemetry.ReasonUndeliverable.
	TypeDeadLetter = "dev.robofleet.deadletter.v1"
	// TypeCommandRequested asks for something to be done by robots.
	TypeCommandRequested = "dev.robofleet.command.requested.v1"
	// TypeCommandDispatched says that a command was published to the robots.
	TypeCommandDispatched = "dev.robofleet.command.dispatched.v1"
	// TypeCommandAcknowledged is a robot's own answer to a command.
	TypeCommandAcknowledged = "dev.robofleet.command.acknowledged.v1"
)

// ContentType is the data content type of every event of the platform, batches among them. A batch does not use
// application/cloudevents-batch+json: in binary mode that content type makes CloudEvents receivers (Knative's own
// broker ingress among them) take the request for one in batch mode.
const ContentType = "application/json"

// The CloudEvents extensions in use.
const (
	ExtPartitionKey = "partitionkey" // the robot's id
	ExtPublishTime  = "publishtime"  // when Pub/Sub took the robot's message, RFC 3339
	ExtTraceParent  = "traceparent"  // W3C trace context
)

// ReadingID is the id of a reading's event: "<robot_id>/<boot_id>/<seq>".
func ReadingID(robotID, bootID string, seq int64) string {
	return robotID + "/" + bootID + "/" + strconv.FormatInt(seq, 10)
}

// RobotSource is the source of the events of one robot: "//robofleet.dev/robots/<robot_id>".
func RobotSource(robotID string) string { return "//robofleet.dev/robots/" + robotID }
