// Package validate is the first stage: it checks what robots send against the rules of a reading.
//
// Arrives: from Broker "edge", whatever robots and gateways publish: one reading or a JSON array of them, as a CloudEvent or
// as plain JSON.
//
// Leaves: to Broker "fleet", batches of good readings (dev.robofleet.telemetry.validated.v1), each reading as a CloudEvent with
// the id <robot_id>/<boot_id>/<seq>; and batches of refused ones (dev.robofleet.telemetry.rejected.v1) with the reason, the
// original bytes and the original attributes.
//
// Retried: a message is acknowledged only after the Broker holds all of its readings, good and refused. While the Broker does
// not answer, messages are nacked and Pub/Sub keeps them. A message that is delivered twice leaves twice, with the same ids.
//
// Dead-lettered: only what could not be passed on until the last attempt. Bad input is quarantined and acknowledged, because
// a nack would slow down the whole subscription and the next attempt would find the same bytes.
package validate

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/sink"
	"github.com/robofleet/robofleet/shared/telemetry"
)

// Source is the source of the events of refused readings.
const Source = "//robofleet.dev/functions/validate"

// Config bounds the batches that leave.
type Config struct {
	// Readings and Rejections bound the events that are sent on; see DefaultConfig for the numbers and their reasons.
	Readings   batch.Config `env:", prefix=READINGS_"`
	Rejections batch.Config `env:", prefix=REJECTIONS_"`
}

// DefaultConfig is what the environment starts from.
func DefaultConfig() Config {
	return Config{
		Readings: batch.Config{
			MaxItems:   500,                   // readings: about 250 KB, cheap to send again if a stage behind dies
			MaxBytes:   1 << 20,               // a tenth of Pub/Sub's limit, so that one reading more never breaks it
			MaxWait:    20 * time.Millisecond, // of the 5 s that a reading may take, and what fills batches at 5,000/s
			MaxWrites:  4,                     // hides the Broker's answer time without making batches small
			MaxPending: 32 << 20,              // half a minute at 5,000/s that the Broker may be away before robots feel it
			Timeout:    20 * time.Second,      // below the Trigger's ack deadline of 30 s
		},
		Rejections: batch.Config{
			MaxItems:   500,
			MaxBytes:   2 << 20, // one refused body of 1 MiB in base64, and some small ones
			MaxWait:    50 * time.Millisecond,
			MaxWrites:  2,
			MaxPending: 32 << 20,
			Timeout:    20 * time.Second,
		},
	}
}

// Validator is the stage.
type Validator struct {
	sink       sink.Sink
	readings   *batch.Batcher[group]
	rejections *batch.Batcher[group]
	accepted   prometheus.Counter
	rejected   *prometheus.CounterVec
}

// group is what one message adds to a batch: events, each followed by a comma.
type group struct {
	events []byte
	n      int
}

// New returns the stage. Its events go to s; its metrics are registered with reg.
func New(cfg Config, s sink.Sink, reg prometheus.Registerer) (*Validator, error) {
	if err := errors.Join(cfg.Readings.Validate(), cfg.Rejections.Validate()); err != nil {
		return nil, err
	}
	v := &Validator{
		sink: s,
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "validate_readings_total", Help: "Readings that obey the rules and were passed on.",
		}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "validate_rejected_total", Help: "Readings refused and quarantined, by reason.",
		}, []string{"reason"}),
	}
	if err := errors.Join(reg.Register(v.accepted), reg.Register(v.rejected)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	v.readings = batch.New(cfg.Readings, group.size, v.emit(event.TypeTelemetryValidated))
	v.rejections = batch.New(cfg.Rejections, group.size, v.emit(event.TypeTelemetryRejected))
	return v, nil
}

// Handle takes one message from a robot. It returns nil once every reading in it has been passed on, good or refused.
func (v *Validator) Handle(ctx context.Context, e cloudevents.Event) error {
	d := function.DeliveryFrom(ctx)
	m := message{event: e, delivery: d, trace: traceParent(e)}
	if d.Truncated {
		m.refuse(e.Data(), &telemetry.RuleError{
			Reason:  telemetry.ReasonBodyTooLarge,
			Message: fmt.Sprintf("found more than %d bytes, which is all that is kept", len(e.Data())),
		})
	} else {
		m.decode()
	}
	if len(m.refused) > 0 && d.Bare && !d.FromPubSub() {
		// A person with curl is told what is wrong; there is no message that could be lost, and nothing of it is passed on.
		return function.WithKind(function.Permanent, m.refused[0].err)
	}
	return v.pass(ctx, &m)
}

// message is one delivery and what became of its readings.
type message struct {
	event    cloudevents.Event
	delivery *function.Delivery
	trace    string
	good     []group // of about maxGroup bytes at most, so that no event outgrows Pub/Sub's limit
	n        int     // good readings in all
	refused  []refusal
}

type refusal struct {
	body []byte
	err  *telemetry.RuleError
}

func (m *message) decode() {
	var r telemetry.Reading
	data := m.event.Data()
	for text, err := range telemetry.DecodeAny(data, &r) {
		if err == nil {
			err = telemetry.CheckTime(&r, m.delivery.PublishTime)
		}
		if err != nil {
			m.refuse(text, err)
			continue
		}
		if len(m.good) == 0 || len(m.good[len(m.good)-1].events) >= maxGroup {
			// One reading, or the first of many that are about as long.
			left := len(data) - m.n*len(text)
			n := max(left+len(text)-1, len(text)) / len(text)
			m.good = append(m.good, group{events: make([]byte, 0, min(n*(len(text)+envelope), maxGroup+len(text)+envelope))})
		}
		g := &m.good[len(m.good)-1]
		g.events = event.AppendReading(g.events, event.Reading{
			RobotID: r.RobotID, BootID: r.BootID, Seq: r.Seq,
			Time: r.Time, Published: m.delivery.PublishTime, TraceParent: m.trace, Data: text,
		})
		g.events = append(g.events, ',')
		g.n++
		m.n++
	}
	if m.n == 0 && len(m.refused) == 0 {
		m.refuse(data, &telemetry.RuleError{Reason: telemetry.ReasonMalformed, Message: "found an empty array, want readings"})
	}
}

// envelope is about what AppendReading adds to a reading, with a trace context.
const envelope = 400

func (m *message) refuse(body []byte, err error) {
	rule, ok := errors.AsType[*telemetry.RuleError](err)
	if !ok {
		rule = &telemetry.RuleError{Reason: telemetry.ReasonMalformed, Message: err.Error()}
	}
	m.refused = append(m.refused, refusal{body, rule})
}

// What a message of many refused elements may make of itself: each becomes an event that carries the attributes of the
// message, unless those are large, in which case only the first does; and the events leave in groups, one after the other,
// so that the message never takes more memory than one group of them.
const (
	maxRepeated = 1 << 20 // bytes of attributes in all
	maxGroup    = 1 << 20 // bytes of events
)

// quarantine hands the events of the refused readings to pass, group by group.
func (m *message) quarantine(pass func(group) error) error {
	var g group
	now := time.Now()
	attributes, size := m.delivery.Attributes(), 0
	for name, value := range attributes {
		size += len(name) + len(value)
	}
	for i, r := range m.refused {
		if i == 1 && size*len(m.refused) > maxRepeated {
			attributes = nil
		}
		id := m.delivery.MessageID // and not ce-id, which the robot chooses: two messages must not share one
		if id == "" {
			id = m.event.ID()
		}
		if len(m.refused)+m.n > 1 {
			id += "#" + strconv.Itoa(i)
		}
		rejection := telemetry.Rejection{
			Reason: r.err.Reason, Message: r.err.Error(), Body: r.body, Attributes: attributes,
			Truncated: m.delivery.Truncated, Size: m.delivery.Size,
		}
		var err error
		g.events, err = event.AppendRejected(g.events, event.Rejected{
			Type: event.TypeTelemetryRejected, ID: id, Source: Source,
			Time: now, Published: m.delivery.PublishTime, Rejection: rejection,
		})
		if err != nil {
			return err
		}
		g.events = append(g.events, ',')
		g.n++
		if len(g.events) >= maxGroup || i == len(m.refused)-1 {
			if err := pass(g); err != nil {
				return err
			}
			g = group{}
		}
	}
	return nil
}

// pass hands the readings of m on and waits until the sink holds them.
func (v *Validator) pass(ctx context.Context, m *message) error {
	for _, g := range m.good {
		if err := v.readings.Do(ctx, g); err != nil {
			return nack(err)
		}
		v.accepted.Add(float64(g.n))
	}
	if len(m.refused) == 0 {
		return nil
	}
	if err := m.quarantine(func(g group) error { return v.rejections.Do(ctx, g) }); err != nil {
		return nack(err)
	}
	for _, r := range m.refused {
		v.rejected.WithLabelValues(string(r.err.Reason)).Inc()
	}
	return nil
}

// nack gives err its kind. A full batcher is this stage's own doing; whatever the sink says is never the fault of the message,
// even where the sink finds fault with the batch that the message was part of.
func nack(err error) error {
	if errors.Is(err, batch.ErrFull) {
		return function.WithKind(function.Overloaded, err)
	}
	return function.WithKind(function.Transient, err)
}

func (g group) size() batch.Size { return batch.Size{Items: g.n, Bytes: len(g.events)} }

// maxEvent is the most that one event may hold: Pub/Sub takes 10 MB in a message, attributes among them.
const maxEvent = 9 << 20

// emit returns the write function for batches of that type.
func (v *Validator) emit(eventType string) batch.WriteFunc[group] {
	return func(ctx context.Context, groups []group) error {
		for len(groups) > 0 {
			n, size := 0, 2
			for n < len(groups) && (n == 0 || size+len(groups[n].events) <= maxEvent) {
				size += len(groups[n].events)
				n++
			}
			data := make([]byte, 1, size)
			data[0] = '['
			for _, g := range groups[:n] {
				data = append(data, g.events...)
			}
			data[len(data)-1] = ']' // in the place of the last comma
			if err := v.sink.Emit(ctx, eventType, data); err != nil {
				return err
			}
			groups = groups[n:]
		}
		return nil
	}
}

// Flush ends all waiting for company: the process is told to stop.
func (v *Validator) Flush() {
	v.readings.Flush()
	v.rejections.Flush()
}

// Close waits until everything handed in has been passed on or has failed.
func (v *Validator) Close() {
	v.readings.Close()
	v.rejections.Close()
}

// traceParent returns the trace context of e if it has a sound one. Robots write it, so its form is checked before it goes
// into JSON by hand (https://www.w3.org/TR/trace-context/#traceparent-header).
func traceParent(e cloudevents.Event) string {
	ec, ok := e.Context.(*cloudevents.EventContextV1)
	if !ok {
		return ""
	}
	s, ok := ec.Extensions[event.ExtTraceParent].(string) // and not e.Extensions(), which copies the map
	if !ok || len(s) != len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") {
		return ""
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 2 || i == 35 || i == 52:
			if c != '-' {
				return ""
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return ""
		}
	}
	return s
}
