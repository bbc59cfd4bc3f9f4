package robots

import (
	"math"
	"strconv"
	"time"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// Decimals of what a robot reports: 1e-7 degrees are 11 mm, finer than any receiver, and the usual unit of GNSS modules.
const (
	decimalsDegrees = 7
	decimalsHeading = 1
	decimalsSpeed   = 2
	decimalsMetres  = 1
	decimalsPercent = 2
)

// appendReading appends a reading as JSON: byte for byte what encoding/json makes of it, at a tenth of the cost. Two
// things are taken for granted because the simulator makes the readings itself: numbers are already rounded to the
// decimals above, and strings are printable text without quotes, backslashes, <, > or &, which need no escape.
func appendReading(b []byte, r *telemetry.Reading) []byte {
	b = appendString(append(b, `{"robot_id":`...), r.RobotID)
	b = appendString(append(b, `,"boot_id":`...), r.BootID)
	b = strconv.AppendInt(append(b, `,"seq":`...), r.Seq, 10)
	b = append(b, `,"time":"`...)
	b = r.Time.AppendFormat(b, time.RFC3339Nano)
	b = appendNumber(append(b, `","position":{"lat_deg":`...), r.Position.LatDeg, decimalsDegrees)
	b = appendNumber(append(b, `,"lon_deg":`...), r.Position.LonDeg, decimalsDegrees)
	b = appendNumber(append(b, `,"heading_deg":`...), r.Position.HeadingDeg, decimalsHeading)
	b = appendNumber(append(b, `,"speed_mps":`...), r.Position.SpeedMPS, decimalsSpeed)
	b = appendNumber(append(b, `,"accuracy_m":`...), r.Position.AccuracyM, decimalsMetres)
	b = appendNumber(append(b, `},"battery":{"percent":`...), r.Battery.Percent, decimalsPercent)
	b = strconv.AppendBool(append(b, `,"charging":`...), r.Battery.Charging)
	b = appendString(append(b, `},"status":`...), string(r.Status))
	if r.Fault != nil {
		b = appendString(append(b, `,"fault":{"code":`...), r.Fault.Code)
		if r.Fault.Message != "" {
			b = appendString(append(b, `,"message":`...), r.Fault.Message)
		}
		b = append(b, '}')
	}
	if r.DeliveryID != "" {
		b = appendString(append(b, `,"delivery_id":`...), r.DeliveryID)
	}
	if r.SoftwareVersion != "" {
		b = appendString(append(b, `,"software_version":`...), r.SoftwareVersion)
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// powersOfTen are exact in a float64.
var powersOfTen = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7}

// appendNumber appends v with at most so many decimals and no trailing zeros. v is far below 2^53 in units of the last.
func appendNumber(b []byte, v float64, decimals int) []byte {
	n := int64(math.Round(v * powersOfTen[decimals]))
	if n < 0 {
		b, n = append(b, '-'), -n
	}
	var digits [24]byte
	i, trailing := len(digits), true
	for d := range decimals {
		digit := byte(n % 10)
		n /= 10
		if trailing && digit == 0 {
			continue
		}
		trailing = false
		i--
		digits[i] = '0' + digit
		if d == decimals-1 {
			break
		}
	}
	if !trailing {
		i--
		digits[i] = '.'
	}
	b = strconv.AppendInt(b, n, 10)
	return append(b, digits[i:]...)
}
