package robots

import (
	"slices"
	"strconv"
	"time"

	"github.com/robofleet/robofleet/shared/event"
)

// Message is what a fleet hands to its Publisher: a Pub/Sub message. It is not changed after it was handed over, and its
// Data and Attributes may be shared with another message.
type Message struct {
	Data       []byte
	Attributes map[string]string

	readings  []readingRef // what is in it; empty for a bad one
	one       [1]readingRef
	duplicate bool // the readings were in a message before
	bad       BadKind
	badOf     *bootRecord
	badNumber int64 // of the bad messages of the boot
}

// readingRef names a reading to the manifest.
type readingRef struct {
	boot *bootRecord
	seq  int64
}

func (r readingRef) id() string { return event.ReadingID(r.boot.robotID, r.boot.bootID, r.seq) }

// measurement is a reading that is ready to be published.
type measurement struct {
	readingRef
	data []byte // the reading as JSON
	time time.Time
}

// cloudEvent is the attributes of a CloudEvent in binary mode (CloudEvents 1.0, Pub/Sub protocol binding).
func cloudEvent(id, source, partitionKey string, at time.Time) map[string]string {
	return map[string]string{
		"ce-specversion":              "1.0",
		"ce-id":                       id,
		"ce-type":                     event.TypeTelemetry,
		"ce-source":                   source,
		"ce-time":                     at.Format(time.RFC3339Nano),
		"ce-" + event.ExtPartitionKey: partitionKey,
		"content-type":                event.ContentType,
	}
}

// newMessage makes the message of one reading.
func newMessage(r *robot, m measurement) *Message {
	msg := &Message{Data: m.data, one: [1]readingRef{m.readingRef}}
	msg.readings = msg.one[:]
	if !r.plain {
		msg.Attributes = cloudEvent(m.id(), r.source, r.id, m.time)
	}
	return msg
}

// again is the same message to be published once more.
func (m *Message) again() *Message {
	return &Message{Data: m.Data, Attributes: m.Attributes, readings: m.readings, duplicate: true}
}

// gateway is an edge gateway: it collects readings of the robots near it and publishes several in one message, as a JSON
// array.
type gateway struct {
	id       string // "G-000001"
	runID    string
	size     int // readings per message
	plain    bool
	messages int64
	data     []byte
	readings []readingRef
	first    time.Time
}

// add adds a reading and returns the message that it completes, or nil.
func (g *gateway) add(m measurement) *Message {
	if len(g.readings) == 0 {
		g.data, g.first = append(g.data[:0], '['), m.time
	} else {
		g.data = append(g.data, ',')
	}
	g.data = append(g.data, m.data...)
	g.readings = append(g.readings, m.readingRef)
	if len(g.readings) < g.size {
		return nil
	}
	return g.flush()
}

// flush returns the message of what has been collected, or nil if that is nothing.
func (g *gateway) flush() *Message {
	if len(g.readings) == 0 {
		return nil
	}
	g.messages++
	msg := &Message{Data: slices.Concat(g.data, []byte("]")), readings: slices.Clone(g.readings)}
	if !g.plain {
		id := g.id + "/" + g.runID + "/" + strconv.FormatInt(g.messages, 10)
		msg.Attributes = cloudEvent(id, "//robofleet.dev/gateways/"+g.id, g.id, g.first)
	}
	g.readings = g.readings[:0]
	return msg
}
