package hotwrite

import (
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// The field numbers of a row are the places of the columns in schema/telemetry.json, from 1: that is how the client library
// makes a descriptor of a table's schema. A test holds the two together.
const (
	fieldEventID = iota + 1
	fieldRobotID
	fieldBootID
	fieldSeq
	fieldTime
	fieldLat
	fieldLon
	fieldHeading
	fieldSpeed
	fieldAccuracy
	fieldBatteryPercent
	fieldCharging
	fieldStatus
	fieldFaultCode
	fieldFaultMessage
	fieldDeliveryID
	fieldSoftwareVersion
	fieldExtra
	fieldPublishTime
	fieldIngestTime
)

// appendRow appends the row of r to dst as a protocol buffer message, but for the column ingest_time, which
// appendIngestTime adds when the row is handed to the warehouse.
func appendRow(dst []byte, eventID []byte, r *telemetry.Reading, published time.Time) []byte {
	dst = protowire.AppendTag(dst, fieldEventID, protowire.BytesType)
	dst = protowire.AppendBytes(dst, eventID)
	dst = appendString(dst, fieldRobotID, r.RobotID)
	dst = appendString(dst, fieldBootID, r.BootID)
	dst = appendInt(dst, fieldSeq, r.Seq)
	dst = appendInt(dst, fieldTime, r.Time.UnixMicro())
	dst = appendFloat(dst, fieldLat, r.Position.LatDeg)
	dst = appendFloat(dst, fieldLon, r.Position.LonDeg)
	dst = appendFloat(dst, fieldHeading, r.Position.HeadingDeg)
	dst = appendFloat(dst, fieldSpeed, r.Position.SpeedMPS)
	dst = appendFloat(dst, fieldAccuracy, r.Position.AccuracyM)
	dst = appendFloat(dst, fieldBatteryPercent, r.Battery.Percent)
	dst = protowire.AppendTag(dst, fieldCharging, protowire.VarintType)
	dst = protowire.AppendVarint(dst, protowire.EncodeBool(r.Battery.Charging))
	dst = appendString(dst, fieldStatus, string(r.Status))
	if r.Fault != nil {
		dst = appendString(dst, fieldFaultCode, r.Fault.Code)
		dst = appendOptional(dst, fieldFaultMessage, r.Fault.Message)
	}
	dst = appendOptional(dst, fieldDeliveryID, r.DeliveryID)
	dst = appendOptional(dst, fieldSoftwareVersion, r.SoftwareVersion)
	if r.Extra != nil {
		dst = protowire.AppendTag(dst, fieldExtra, protowire.BytesType)
		dst = protowire.AppendBytes(dst, r.Extra)
	}
	return appendInt(dst, fieldPublishTime, published.UnixMicro())
}

// maxIngestTime is the most bytes that appendIngestTime adds: a tag of two bytes and a varint.
const maxIngestTime = 2 + 10

// appendIngestTime completes a row of appendRow: protocol buffers take fields in any order.
func appendIngestTime(row []byte, t time.Time) []byte {
	return appendInt(row, fieldIngestTime, t.UnixMicro())
}

func appendString(dst []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(dst, field, protowire.BytesType), s)
}

// appendOptional leaves an empty string out, so that its column is NULL.
func appendOptional(dst []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	return appendString(dst, field, s)
}

func appendInt(dst []byte, field protowire.Number, n int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), uint64(n))
}

func appendFloat(dst []byte, field protowire.Number, f float64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(dst, field, protowire.Fixed64Type), math.Float64bits(f))
}
