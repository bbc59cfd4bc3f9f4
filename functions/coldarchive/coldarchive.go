// Package coldarchive is the stage that keeps everything: it writes events to Cloud Storage.
//
// Arrives: from Broker "fleet", batches of good readings and of refused ones, and the events of commands; from Broker
// "dead-letter", at the path DeadLetterPath, messages that no attempt could deliver.
//
// Leaves: objects named <kind>/dt=YYYY-MM-DD/hour=HH/<writer>-<first event time>-<hash>.ndjson.gz, with one CloudEvent in
// structured mode on each line. Date and hour are those of the events' own time; for refused readings and dead letters
// those of their refusal, because a bad message need not have a time.
//
// Retried: an event is acknowledged only after the objects that hold it exist. While the bucket does not answer, events are
// nacked and Pub/Sub keeps them. An event that is delivered twice is archived twice, with the same id.
//
// Dead-lettered: what could not be archived until the last attempt, except what comes from the dead-letter Broker: its Trigger
// has no dead-letter sink and tries until the bucket answers.
package coldarchive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/telemetry"
)

// DeadLetterPath is the path to which the dead-letter Broker's Trigger sends.
const DeadLetterPath = "/dead-letter"

// DefaultConfig bounds the objects; the environment starts from it.
func DefaultConfig() batch.Config {
	return batch.Config{
		MaxItems: 100_000,  // events; the bytes bind first
		MaxBytes: 16 << 20, // of events before compression, which becomes an object of about 2 MiB
		// Pub/Sub starts with few pushes outstanding and adds more while they are answered within a second. Without this the
		// first ones would each take MaxWait, and so would the last.
		MaxQuiet:   400 * time.Millisecond,
		MaxWait:    10 * time.Second, // larger objects are cheaper to write and to read; nobody waits for the archive
		MaxWrites:  2,                // one is compressed while the other is sent
		MaxPending: 96 << 20,         // with the batch that is open, what the stage's memory holds
		Timeout:    40 * time.Second, // with MaxWait below the Trigger's ack deadline of 60 s
	}
}

// Archiver is the stage.
type Archiver struct {
	store   Store
	writer  string
	lines   *batch.Batcher[*group]
	objects *prometheus.CounterVec
	events  *prometheus.CounterVec
	bytes   prometheus.Counter
}

// group is the events of one message.
type group struct {
	kind  Kind
	lines []line
	bytes int
}

type line struct {
	text []byte // one structured CloudEvent, without newline
	at   time.Time
}

func (g *group) size() batch.Size { return batch.Size{Items: len(g.lines), Bytes: g.bytes} }

// New returns the stage. Objects go to store, and have writer, the name of this process, in their names; metrics are
// registered with reg.
func New(cfg batch.Config, store Store, writer string, reg prometheus.Registerer) (*Archiver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &Archiver{
		store:  store,
		writer: writer,
		objects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cold_archive_objects_total", Help: "Objects written, by kind.",
		}, []string{"kind"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cold_archive_events_total", Help: "Events in the objects written, by kind.",
		}, []string{"kind"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cold_archive_bytes_total", Help: "Bytes of the objects written, compressed.",
		}),
	}
	if err := errors.Join(reg.Register(a.objects), reg.Register(a.events), reg.Register(a.bytes)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	a.lines = batch.New(cfg, (*group).size, a.write)
	return a, nil
}

// Handle takes one event, batch or not. It returns nil once all that it holds is archived.
func (a *Archiver) Handle(ctx context.Context, e cloudevents.Event) error {
	d := function.DeliveryFrom(ctx)
	if d.Truncated {
		return function.WithKind(function.Permanent, errors.New("an event over MAX_BODY_BYTES: a part of it would be lost"))
	}
	g, err := linesOf(e, d)
	if err != nil {
		return err
	}
	err = a.lines.Do(ctx, g)
	if errors.Is(err, batch.ErrFull) {
		return function.WithKind(function.Overloaded, err)
	}
	return err
}

// linesOf returns the lines that e becomes.
func linesOf(e cloudevents.Event, d *function.Delivery) (*group, error) {
	if d.Path == DeadLetterPath {
		return deadLetter(e, d)
	}
	g := &group{kind: kindOf(e.Type())}
	if g.kind == KindTelemetry || g.kind == KindRejected {
		err := event.Split(e.Data(), func(el event.Element) error {
			return g.add(el.Raw, timeOf(el.Time, d))
		})
		if err == nil {
			return g, nil
		}
		*g = group{kind: g.kind} // not a batch: it is kept as it came, and whoever reads the archive sees what is wrong
	}
	if !storable(e) {
		e.DataBase64 = true
	}
	text, err := json.Marshal(e)
	if err != nil {
		return nil, function.WithKind(function.Permanent, fmt.Errorf("encode event %q: %w", e.ID(), err))
	}
	return g, g.add(text, timeOf(e.Time(), d))
}

// storable says whether the data of e can stand in JSON as it is: the encoder believes the content type.
func storable(e cloudevents.Event) bool {
	if mediaType := e.DataMediaType(); mediaType == "" || strings.HasSuffix(mediaType, "json") {
		return json.Valid(e.Data())
	}
	return utf8.Valid(e.Data())
}

// timeOf returns the time of an event, or the one of its publication if it has none that an object's name can show.
func timeOf(t time.Time, d *function.Delivery) time.Time {
	if year := t.UTC().Year(); t.IsZero() || year < 1 || year > 9999 {
		return d.PublishTime
	}
	return t
}

// deadLetter keeps a message whole, as a rejection is kept: body and attributes as they arrived, so that it can be sent again.
func deadLetter(e cloudevents.Event, d *function.Delivery) (*group, error) {
	text, err := event.AppendRejected(nil, event.Rejected{
		Type: event.TypeDeadLetter, ID: e.ID(), Source: e.Source(), Time: d.PublishTime, Published: d.PublishTime,
		Rejection: telemetry.Rejection{
			Reason:     telemetry.ReasonUndeliverable,
			Message:    "every attempt to deliver it failed; the attributes say to whom",
			Body:       e.Data(),
			Attributes: d.Attributes(),
		},
	})
	if err != nil {
		return nil, function.WithKind(function.Permanent, err)
	}
	g := &group{kind: KindDeadLetter}
	return g, g.add(text, d.PublishTime)
}

// add appends an event. Line breaks, which JSON allows between tokens, are taken out.
func (g *group) add(text []byte, at time.Time) error {
	if bytes.IndexByte(text, '\n') >= 0 || bytes.IndexByte(text, '\r') >= 0 {
		var compact bytes.Buffer
		if err := json.Compact(&compact, text); err != nil {
			return fmt.Errorf("put an event on one line: %w", err)
		}
		text = compact.Bytes()
	}
	g.lines = append(g.lines, line{text, at})
	g.bytes += len(text) + 1
	return nil
}

// maxUploads bounds the objects of one batch that are compressed and sent at the same time. Robots that come back after days
// bring hundreds of hours, and a compressor has half a megabyte of memory.
const maxUploads = 4

// write makes objects of the events of several messages, one for each kind and hour, and returns nil once all exist.
func (a *Archiver) write(ctx context.Context, groups []*group) error {
	partitions := make(map[partition][]line)
	for _, g := range groups {
		for _, l := range g.lines {
			p := partition{g.kind, l.at.UTC().Truncate(time.Hour)}
			partitions[p] = append(partitions[p], l)
		}
	}
	uploads, ctx := errgroup.WithContext(ctx)
	uploads.SetLimit(maxUploads)
	for p, lines := range partitions {
		uploads.Go(func() error {
			name, content, err := pack(p, lines, a.writer)
			if err != nil {
				return err
			}
			if err := a.store.Create(ctx, name, content); err != nil {
				return err
			}
			a.objects.WithLabelValues(string(p.kind)).Inc()
			a.events.WithLabelValues(string(p.kind)).Add(float64(len(lines)))
			a.bytes.Add(float64(len(content)))
			return nil
		})
	}
	return uploads.Wait()
}

// Flush ends all waiting for company: the process is told to stop.
func (a *Archiver) Flush() { a.lines.Flush() }

// Close waits until everything handed in has been written or has failed.
func (a *Archiver) Close() { a.lines.Close() }
