package event

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/go-faster/jx"
)

// Reading is what an element of a telemetry batch is made of.
type Reading struct {
	RobotID, BootID string
	Seq             int64
	Time            time.Time // when the robot measured
	Published       time.Time // when Pub/Sub took the robot's message
	TraceParent     string    // W3C trace context of the robot's message, or ""
	Data            []byte    // the reading's JSON, without raw newlines
}

// AppendReading appends r to dst as a structured CloudEvent of type TypeTelemetry on one line.
func AppendReading(dst []byte, r Reading) []byte {
	dst = append(dst, `{"specversion":"1.0","type":"`+TypeTelemetry+`","id":"`...)
	// Robot and boot ids have no character that JSON escapes: the rules of a reading see to it.
	dst = append(dst, r.RobotID...)
	dst = append(dst, '/')
	dst = append(dst, r.BootID...)
	dst = append(dst, '/')
	dst = strconv.AppendInt(dst, r.Seq, 10)
	dst = append(dst, `","source":"//robofleet.dev/robots/`...)
	dst = append(dst, r.RobotID...)
	dst = append(dst, `","time":"`...)
	dst = r.Time.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","`+ExtPartitionKey+`":"`...)
	dst = append(dst, r.RobotID...)
	dst = append(dst, `","`+ExtPublishTime+`":"`...)
	dst = r.Published.UTC().AppendFormat(dst, time.RFC3339Nano)
	if r.TraceParent != "" {
		dst = append(dst, `","`+ExtTraceParent+`":"`...)
		dst = append(dst, r.TraceParent...)
	}
	dst = append(dst, `","datacontenttype":"`+ContentType+`","data":`...)
	dst = append(dst, r.Data...)
	return append(dst, '}')
}

// Element is what the stages look at of one event of a batch. Its slices alias the batch, or are its own where the JSON has
// escapes; they stay valid as long as the batch is not changed.
type Element struct {
	Raw       []byte    // the whole structured CloudEvent, as it stands in the batch
	ID        []byte    // decoded
	Type      []byte    // decoded
	Time      time.Time // zero if the event has none
	Published time.Time // extension publishtime, zero if it has none
	Data      []byte    // JSON of "data", nil if it has none
}

// Split calls fn for each event of a batch, in order, and returns fn's first error. An array that is not JSON, or an
// element that is not a CloudEvent, ends the walk with an error that wraps ErrBatch; fn has then seen the elements before it.
func Split(batch []byte, fn func(Element) error) error {
	// Not from jx's pool: a pooled decoder keeps its last input, and would read another's stream into it.
	d, inner := jx.DecodeBytes(batch), new(jx.Decoder)
	if d.Next() != jx.Array {
		return fmt.Errorf("%w: not a JSON array", ErrBatch)
	}
	var stop error // fn's error, which must come out as it is
	err := d.Arr(func(d *jx.Decoder) error {
		raw, err := d.Raw()
		if err != nil {
			return err
		}
		el, err := parse(inner, raw)
		if err != nil {
			return err
		}
		stop = fn(el)
		return stop
	})
	switch {
	case stop != nil:
		return stop
	case err != nil:
		return fmt.Errorf("%w: %w", ErrBatch, err)
	}
	if !errors.Is(d.Skip(), io.EOF) {
		return fmt.Errorf("%w: more data after the array", ErrBatch)
	}
	return nil
}

// ErrBatch says that something is not a batch of events.
var ErrBatch = errors.New("not a batch of CloudEvents")

// Parse returns what Split would pass on of one structured CloudEvent.
func Parse(raw []byte) (Element, error) {
	var d jx.Decoder
	return parse(&d, raw)
}

func parse(d *jx.Decoder, raw []byte) (Element, error) {
	el := Element{Raw: raw}
	d.ResetBytes(raw)
	err := d.ObjBytes(func(d *jx.Decoder, key []byte) (err error) {
		switch string(key) {
		case "id":
			el.ID, err = d.StrBytes()
		case "type":
			el.Type, err = d.StrBytes()
		case "time":
			el.Time, err = timeOf(d)
		case ExtPublishTime:
			el.Published, err = timeOf(d)
		case "data":
			var data jx.Raw
			data, err = d.Raw()
			el.Data = data
		default:
			err = d.Skip()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	})
	switch {
	case err != nil:
		return Element{}, err
	case !errors.Is(d.Skip(), io.EOF):
		return Element{}, errors.New("more data after an event")
	case len(el.ID) == 0:
		return Element{}, errors.New("an event without id")
	case len(el.Type) == 0:
		return Element{}, errors.New("an event without type")
	}
	return el, nil
}

func timeOf(d *jx.Decoder) (time.Time, error) {
	s, err := d.StrBytes()
	if err != nil {
		return time.Time{}, err
	}
	var t time.Time
	if err := t.UnmarshalText(s); err != nil {
		return time.Time{}, err
	}
	return t, nil
}
