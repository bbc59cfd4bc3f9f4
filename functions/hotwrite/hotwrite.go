// Package hotwrite is the stage that makes readings queryable: it writes them to BigQuery.
//
// Arrives: from Broker "fleet", batches of good readings (dev.robofleet.telemetry.validated.v1).
//
// Leaves: rows of the table telemetry by the Storage Write API; and to Broker "fleet", as refused
// (dev.robofleet.telemetry.rejected.v1), what cannot become a row.
//
// Retried: a batch is acknowledged only after BigQuery has committed all of its rows. While BigQuery does not answer, batches
// are nacked and Pub/Sub keeps them. A batch that is delivered twice is stored twice; the views *_unique keep one of each.
//
// Dead-lettered: only what could not be written until the last attempt. A row that BigQuery refuses for what is in it is
// quarantined, so that it does not take its neighbours along.
package hotwrite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/sink"
	"github.com/robofleet/robofleet/shared/telemetry"
)

// DefaultConfig bounds the appends; the environment starts from it.
func DefaultConfig() batch.Config {
	return batch.Config{
		MaxItems:   50_000,                // rows; the bytes bind first
		MaxBytes:   8 << 20,               // of rows: an append may have 10 MB, its descriptor among them
		MaxWait:    50 * time.Millisecond, // of the 5 s that a reading may take; makes appends of 250 rows at 5,000/s
		MaxWrites:  4,                     // hides the answer time; more only makes appends smaller
		MaxPending: 64 << 20,              // rows that wait while BigQuery is slow; their batches weigh twice that again
		Timeout:    45 * time.Second,      // below the Trigger's ack deadline of 60 s
	}
}

// Writer is the stage.
type Writer struct {
	warehouse Warehouse
	sink      sink.Sink
	rows      *batch.Batcher[*group]
	written   prometheus.Counter
	refused   prometheus.Counter
	seconds   prometheus.Histogram
}

// group is the rows of one event.
type group struct {
	rows  [][]byte // each with room for the time of its writing
	raw   [][]byte // the event that each row comes from, for quarantine
	bytes int
}

func (g *group) size() batch.Size { return batch.Size{Items: len(g.rows), Bytes: g.bytes} }

// New returns the stage. Rows go to w, what cannot become a row to s; metrics are registered with reg.
func New(cfg batch.Config, w Warehouse, s sink.Sink, reg prometheus.Registerer) (*Writer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	h := &Writer{
		warehouse: w,
		sink:      s,
		written: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hot_write_rows_total", Help: "Rows that BigQuery has committed.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hot_write_rows_refused_total", Help: "Rows that cannot be stored, and were quarantined.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "hot_write_append_seconds",
			Help:    "Time of an append, its retries included.",
			Buckets: prometheus.ExponentialBuckets(.001, 2, 16),
		}),
	}
	if err := errors.Join(reg.Register(h.written), reg.Register(h.refused), reg.Register(h.seconds)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	h.rows = batch.New(cfg, (*group).size, h.write)
	return h, nil
}

// Handle takes one batch of readings. It returns nil once all of them are rows, or quarantined.
func (h *Writer) Handle(ctx context.Context, e cloudevents.Event) error {
	if e.Type() != event.TypeTelemetryValidated {
		return function.WithKind(function.Permanent, fmt.Errorf("a %s is not for this stage: its Trigger's filter is wrong", e.Type()))
	}
	if function.DeliveryFrom(ctx).Truncated {
		return function.WithKind(function.Permanent, errors.New("an event over MAX_BODY_BYTES: a part of its readings would be lost"))
	}
	g, unfit, err := decode(e.Data())
	if err != nil {
		// Nothing that the first stage sends: the whole event is kept for a person.
		g, unfit = &group{}, []misfit{{e.ID(), e.Data(), err}}
	}
	if len(g.rows) > 0 {
		if err := h.rows.Do(ctx, g); errors.Is(err, batch.ErrFull) {
			return function.WithKind(function.Overloaded, err)
		} else if err != nil {
			return function.WithKind(function.Transient, err)
		}
	}
	// What the sink says to a quarantine is not the fault of the event either.
	return function.WithKind(function.Transient, h.quarantine(ctx, unfit))
}

// misfit is an event that cannot become a row.
type misfit struct {
	id  string
	raw []byte
	err error
}

// decode makes rows of a batch of events. What is no good reading is returned beside them.
func decode(data []byte) (*group, []misfit, error) {
	const typical = 400 // bytes of an event
	n := len(data)/typical + 1
	g := &group{rows: make([][]byte, 0, n), raw: make([][]byte, 0, n)}
	var unfit []misfit
	var r telemetry.Reading
	// Rows are about half of their event. They share one allocation while it lasts, and then another.
	arena := make([]byte, 0, len(data)*2/3)
	err := event.Split(data, func(e event.Element) error {
		if err := telemetry.Decode(e.Data, &r); err != nil {
			unfit = append(unfit, misfit{string(e.ID), e.Raw, err})
			return nil
		}
		published := e.Published
		if published.IsZero() {
			published = r.Time
		}
		if cap(arena)-len(arena) < len(e.Raw)+maxIngestTime {
			arena = make([]byte, 0, max(len(data)/4, len(e.Raw)+maxIngestTime))
		}
		start := len(arena)
		arena = slices.Grow(appendRow(arena, e.ID, &r, published), maxIngestTime)
		end := len(arena) + maxIngestTime
		g.rows = append(g.rows, arena[start:len(arena):end])
		g.raw = append(g.raw, e.Raw)
		g.bytes += end - start
		arena = arena[:end]
		return nil
	})
	return g, unfit, err
}

// write appends the rows of several events. Rows that the warehouse refuses are quarantined, and the others tried again.
func (h *Writer) write(ctx context.Context, groups []*group) error {
	var rows, raw [][]byte
	now := time.Now()
	for _, g := range groups {
		for _, row := range g.rows {
			rows = append(rows, appendIngestTime(row, now))
		}
		raw = append(raw, g.raw...)
	}
	for len(rows) > 0 {
		start := time.Now()
		err := h.warehouse.Append(ctx, rows)
		h.seconds.Observe(time.Since(start).Seconds())
		if err == nil {
			h.written.Add(float64(len(rows)))
			return nil
		}
		refused, ok := errors.AsType[*RowsError](err)
		if !ok || len(refused.Rows) == 0 {
			return err
		}
		var unfit []misfit
		n := 0
		for i := range rows {
			if message, bad := refused.Rows[i]; bad {
				unfit = append(unfit, misfit{idOf(raw[i]), raw[i], errors.New(message)})
				continue
			}
			rows[n], raw[n] = rows[i], raw[i]
			n++
		}
		if len(unfit) == 0 {
			return err // the warehouse names rows that it was not given
		}
		if err := h.quarantine(ctx, unfit); err != nil {
			return err
		}
		rows, raw = rows[:n], raw[:n]
	}
	return nil
}

// maxQuarantine bounds the data of one event of rejections: base64 makes them a third larger, and Pub/Sub takes 10 MB.
const maxQuarantine = 4 << 20

// quarantine sends what cannot become a row to the archive of refused readings.
func (h *Writer) quarantine(ctx context.Context, unfit []misfit) error {
	var data bytes.Buffer
	flush := func() error {
		b := data.Bytes()
		b[len(b)-1] = ']' // in the place of the last comma
		err := h.sink.Emit(ctx, event.TypeTelemetryRejected, b)
		data.Reset()
		return err
	}
	for i, m := range unfit {
		rejected := event.Rejected{
			Type: event.TypeTelemetryRejected, ID: m.id, Source: "//robofleet.dev/functions/hot-write",
			Time: time.Now(), Published: time.Now(),
			Rejection: telemetry.Rejection{Reason: telemetry.ReasonUnstorable, Message: m.err.Error(), Body: m.raw},
		}
		if data.Len() == 0 {
			data.WriteByte('[')
		}
		line, err := event.AppendRejected(data.AvailableBuffer(), rejected)
		if err != nil {
			return err
		}
		data.Write(line)
		data.WriteByte(',')
		if data.Len() >= maxQuarantine || i == len(unfit)-1 {
			if err := flush(); err != nil {
				return fmt.Errorf("quarantine: %w", err)
			}
		}
	}
	h.refused.Add(float64(len(unfit)))
	return nil
}

// idOf returns the id of an event that decode has made a row of, and which therefore has one.
func idOf(raw []byte) string {
	e, _ := event.Parse(raw)
	return string(e.ID)
}

// Flush ends all waiting for company: the process is told to stop.
func (h *Writer) Flush() { h.rows.Flush() }

// Close waits until everything handed in has been written or has failed.
func (h *Writer) Close() { h.rows.Close() }
