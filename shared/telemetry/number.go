package telemetry

import (
	"strconv"
	"time"
)

// pow10 are the powers of ten that doubles hold exactly.
var pow10 = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

// parseFloat returns the double nearest to a JSON number, whose spelling has been checked, with -0 as 0. It is false if
// the number lies beyond the doubles.
//
// Numbers of at most 15 digits without an exponent, which is what robots send, need one division of two exact doubles,
// which rounds once and so correctly (Clinger 1990, "How to read floating point numbers accurately").
func parseFloat(lit []byte) (float64, bool) {
	digits := lit
	if digits[0] == '-' {
		digits = digits[1:]
	}
	var mantissa int64
	point := -1
	for i, c := range digits {
		switch {
		case c == '.':
			point = i
		case isDigit(c) && i < 16: // 15 digits and a point
			mantissa = mantissa*10 + int64(c-'0')
		default:
			return parseLongFloat(lit)
		}
	}
	v := float64(mantissa)
	switch {
	case point >= 0:
		v /= pow10[len(digits)-1-point]
	case mantissa >= 1<<53:
		return parseLongFloat(lit)
	}
	if len(digits) < len(lit) {
		v = 0 - v // not -v, which would make -0 of 0
	}
	return v, true
}

func parseLongFloat(lit []byte) (float64, bool) {
	v, err := strconv.ParseFloat(string(lit), 64) // errs only beyond the doubles, the spelling being that of JSON
	return v + 0, err == nil                      // -0 + 0 is 0
}

// parseTime parses an RFC 3339 time as the schema has it: upper case, UTC written as Z, years 0001 to 9999, at most nine
// digits of a second and no leap second. The shape is checked first, as package time takes 9:00 for 09:00 and a comma for the
// point (go.dev/issue/54580).
func parseTime(s []byte) (t time.Time, ok bool) {
	const shape = "dddd-dd-ddTdd:dd:dd"
	if len(s) <= len(shape) || len(s) > len(shape+".dddddddddZ") || s[len(shape)] == ',' || s[len(s)-1] != 'Z' {
		return time.Time{}, false
	}
	for i := range len(shape) {
		if c := shape[i]; c == 'd' && !isDigit(s[i]) || c != 'd' && c != s[i] {
			return time.Time{}, false
		}
	}
	err := t.UnmarshalText(s)
	return t, err == nil && t.Year() >= 1
}
