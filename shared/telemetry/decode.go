package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/go-faster/jx"
)

// MaxDepth is how deep objects and arrays may nest in a reading, the reading itself being the first level.
// It is far below BigQuery's limit for JSON values (500), so that what is accepted can be stored.
const MaxDepth = 32

// maxFields is how many fields a reading may have, and its position, its battery and its fault ("maxProperties" in the
// schema). It bounds the search for repeated names among the unknown ones.
const maxFields = 64

// field is a field that the rules know, at any level: names are unique in a reading's three objects, so one set of bits
// remembers which have been seen.
type field uint8

const (
	fieldNone field = iota // the reading itself, and names that the rules do not know
	fieldRobotID
	fieldBootID
	fieldSeq
	fieldTime
	fieldPosition
	fieldLatDeg
	fieldLonDeg
	fieldHeadingDeg
	fieldSpeedMPS
	fieldAccuracyM
	fieldBattery
	fieldPercent
	fieldCharging
	fieldStatus
	fieldFault
	fieldFaultCode
	fieldFaultMessage
	fieldDeliveryID
	fieldSoftwareVersion
	fieldCount
)

// required are the fields of every reading. A missing object is reported before the fields in it, as it has the lower bit.
const required = 1<<fieldRobotID | 1<<fieldBootID | 1<<fieldSeq | 1<<fieldTime |
	1<<fieldPosition | 1<<fieldLatDeg | 1<<fieldLonDeg | 1<<fieldHeadingDeg | 1<<fieldSpeedMPS | 1<<fieldAccuracyM |
	1<<fieldBattery | 1<<fieldPercent | 1<<fieldCharging | 1<<fieldStatus

// fields has, for messages, the path of each field and what is expected of it.
var fields = [fieldCount]struct{ path, want string }{
	fieldNone:            {"", "an object"},
	fieldRobotID:         {"robot_id", "a string of 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"},
	fieldBootID:          {"boot_id", "a string of 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"},
	fieldSeq:             {"seq", "an integer from 1 to 9007199254740991"},
	fieldTime:            {"time", "a string holding a time as in RFC 3339, in UTC, such as \"2026-11-23T11:19:03.250Z\""},
	fieldPosition:        {"position", "an object"},
	fieldLatDeg:          {"position.lat_deg", "a number of degrees from -90 to 90"},
	fieldLonDeg:          {"position.lon_deg", "a number of degrees from -180 to 180"},
	fieldHeadingDeg:      {"position.heading_deg", "a number of degrees from 0 to less than 360"},
	fieldSpeedMPS:        {"position.speed_mps", "a number of metres per second from 0 to 30"},
	fieldAccuracyM:       {"position.accuracy_m", "a number of metres from 0 to 10000"},
	fieldBattery:         {"battery", "an object"},
	fieldPercent:         {"battery.percent", "a number from 0 to 100"},
	fieldCharging:        {"battery.charging", "true or false"},
	fieldStatus:          {"status", "one of \"idle\", \"delivering\", \"returning\", \"charging\", \"paused\", \"fault\""},
	fieldFault:           {"fault", "an object"},
	fieldFaultCode:       {"fault.code", "a string of 1 to 64 capitals, digits or '_', the first a capital"},
	fieldFaultMessage:    {"fault.message", "a string of at most 1024 characters"},
	fieldDeliveryID:      {"delivery_id", "a string of at most 128 characters"},
	fieldSoftwareVersion: {"software_version", "a string of at most 128 characters"},
}

// Decode decodes the JSON text of one reading into r and applies every rule except the one of CheckTime. White space around
// the text is allowed.
//
// Its error is a *RuleError, after which r holds nothing of use. On success r is overwritten as a whole and refers to no
// byte of data, so both may be reused at once.
func Decode(data []byte, r *Reading) error {
	err := decode(data, r)
	if err == nil {
		return nil
	}
	var rule *RuleError
	if errors.As(err, &rule) {
		// A broken rule does not say whether what follows is JSON at all.
		if rule.Reason == ReasonMalformed {
			return rule
		}
		var d jx.Decoder
		d.ResetBytes(data)
		if err = d.Skip(); err == nil {
			err = end(&d)
		}
		if err == nil {
			return rule
		}
	}
	return notJSON(err)
}

// decode returns a *RuleError, or an error of jx if data is not JSON.
func decode(data []byte, r *Reading) error {
	if err := checkText(data); err != nil {
		return err
	}
	*r = Reading{}
	p := parsers.Get().(*parser)
	defer p.release()
	p.r = r
	p.d.ResetBytes(data)
	if err := p.object(fieldNone); err != nil {
		return err
	}
	if err := end(&p.d); err != nil {
		return err
	}
	return p.finish()
}

// end returns an error unless nothing but white space is left.
func end(d *jx.Decoder) error {
	if err := d.Skip(); !errors.Is(err, io.EOF) { // a value cut short is io.ErrUnexpectedEOF
		return errTrailing
	}
	return nil
}

var errTrailing = errors.New("something follows the value")

// parser is the state of decoding one reading.
type parser struct {
	d    jx.Decoder
	r    *Reading
	seen uint32 // bit 1<<f for each field seen

	// text collects the strings of the reading, which become one allocation: each is text[start:end]. The rules bound its size.
	text                                     []byte
	robotID, bootID, deliveryID, softVersion span

	unknown [][]byte  // names of the unknown fields met in the objects being parsed, the reading's first
	extra   jx.Writer // the object of the unknown fields, without its closing brace
}

type span struct{ start, end int }

// parsers keeps what a parser would otherwise allocate for each reading.
var parsers = sync.Pool{New: func() any { return &parser{text: make([]byte, 0, 256)} }}

// release gives p back, without any reference to the data or the reading.
func (p *parser) release() {
	names := p.unknown[:cap(p.unknown)]
	clear(names)
	*p = parser{text: p.text[:0], unknown: names[:0]}
	parsers.Put(p)
}

// object parses the object that is the value of the field of, or the reading itself.
func (p *parser) object(of field) error {
	if p.d.Next() != jx.Object {
		return p.wrongType(of)
	}
	it, err := p.d.ObjIter()
	if err != nil {
		return err
	}
	outer := len(p.unknown)
	for n := 1; it.Next(); n++ {
		if n > maxFields {
			return &RuleError{Reason: ReasonOutOfRange, Field: fields[of].path, Message: "found more than 64 fields, want at most 64"}
		}
		name := it.Key()
		f := lookup(of, name)
		switch {
		case f == fieldNone:
			err = p.keep(of, name, p.unknown[outer:])
		case p.seen&(1<<f) != 0:
			err = repeated(fields[f].path)
		default:
			p.seen |= 1 << f
			err = p.value(f)
		}
		if err != nil {
			return err
		}
	}
	if of != fieldNone && len(p.unknown) > outer {
		p.extra.ObjEnd()
	}
	p.unknown = p.unknown[:outer]
	return it.Err()
}

// lookup returns the field called name in the object that is the value of the field of.
func lookup(of field, name []byte) field {
	switch of {
	case fieldNone:
		switch string(name) {
		case "robot_id":
			return fieldRobotID
		case "boot_id":
			return fieldBootID
		case "seq":
			return fieldSeq
		case "time":
			return fieldTime
		case "position":
			return fieldPosition
		case "battery":
			return fieldBattery
		case "status":
			return fieldStatus
		case "fault":
			return fieldFault
		case "delivery_id":
			return fieldDeliveryID
		case "software_version":
			return fieldSoftwareVersion
		}
	case fieldPosition:
		switch string(name) {
		case "lat_deg":
			return fieldLatDeg
		case "lon_deg":
			return fieldLonDeg
		case "heading_deg":
			return fieldHeadingDeg
		case "speed_mps":
			return fieldSpeedMPS
		case "accuracy_m":
			return fieldAccuracyM
		}
	case fieldBattery:
		switch string(name) {
		case "percent":
			return fieldPercent
		case "charging":
			return fieldCharging
		}
	case fieldFault:
		switch string(name) {
		case "code":
			return fieldFaultCode
		case "message":
			return fieldFaultMessage
		}
	}
	return fieldNone
}

// value parses the value of f.
func (p *parser) value(f field) (err error) {
	switch f {
	case fieldRobotID:
		p.robotID, err = p.identifier(f)
	case fieldBootID:
		p.bootID, err = p.identifier(f)
	case fieldSeq:
		err = p.seq()
	case fieldTime:
		err = p.time()
	case fieldLatDeg:
		err = p.number(f, &p.r.Position.LatDeg, -90, 90)
	case fieldLonDeg:
		err = p.number(f, &p.r.Position.LonDeg, -180, 180)
	case fieldHeadingDeg:
		err = p.number(f, &p.r.Position.HeadingDeg, 0, math.Nextafter(360, 0))
	case fieldSpeedMPS:
		err = p.number(f, &p.r.Position.SpeedMPS, 0, 30)
	case fieldAccuracyM:
		err = p.number(f, &p.r.Position.AccuracyM, 0, 10000)
	case fieldPercent:
		err = p.number(f, &p.r.Battery.Percent, 0, 100)
	case fieldCharging:
		if p.d.Next() != jx.Bool {
			return p.wrongType(f)
		}
		p.r.Battery.Charging, err = p.d.Bool()
	case fieldStatus:
		err = p.status()
	case fieldFaultCode:
		err = p.faultCode()
	case fieldFaultMessage:
		var s []byte
		s, err = p.str(f, 1024)
		p.r.Fault.Message = string(s)
	case fieldDeliveryID:
		p.deliveryID, err = p.spanOf(p.str(f, 128))
	case fieldSoftwareVersion:
		p.softVersion, err = p.spanOf(p.str(f, 128))
	case fieldFault:
		p.r.Fault = new(Fault)
		err = p.object(f)
	case fieldPosition, fieldBattery:
		err = p.object(f)
	}
	return err
}

// str returns a string of at most maxLen characters (Unicode code points, as "maxLength" counts). It is valid until the
// next call of a parser's method.
func (p *parser) str(f field, maxLen int) ([]byte, error) {
	if p.d.Next() != jx.String {
		return nil, p.wrongType(f)
	}
	s, err := p.d.StrBytes()
	if err != nil {
		return nil, err
	}
	if len(s) > maxLen && utf8.RuneCount(s) > maxLen {
		return nil, outOfRange(f, strconv.Itoa(utf8.RuneCount(s))+" characters")
	}
	return s, nil
}

// spanOf adds the string that p.str returned to p.text.
func (p *parser) spanOf(s []byte, err error) (span, error) {
	if err != nil {
		return span{}, err
	}
	start := len(p.text)
	p.text = append(p.text, s...)
	return span{start, len(p.text)}, nil
}

func (p *parser) identifier(f field) (span, error) {
	s, err := p.str(f, math.MaxInt)
	if err != nil {
		return span{}, err
	}
	ok := len(s) >= 1 && len(s) <= 64 && s[0] != '.' && s[0] != '_' && s[0] != '-'
	for _, c := range s {
		ok = ok && (isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '.' || c == '_')
	}
	if !ok {
		return span{}, outOfRange(f, quote(s))
	}
	return p.spanOf(s, nil)
}

func (p *parser) faultCode() error {
	s, err := p.str(fieldFaultCode, math.MaxInt)
	if err != nil {
		return err
	}
	ok := len(s) >= 1 && len(s) <= 64 && s[0] >= 'A' && s[0] <= 'Z'
	for _, c := range s {
		ok = ok && (c >= 'A' && c <= 'Z' || isDigit(c) || c == '_')
	}
	if !ok {
		return outOfRange(fieldFaultCode, quote(s))
	}
	p.r.Fault.Code = string(s)
	return nil
}

func (p *parser) status() error {
	s, err := p.str(fieldStatus, math.MaxInt)
	if err != nil {
		return err
	}
	switch Status(s) {
	case StatusIdle:
		p.r.Status = StatusIdle
	case StatusDelivering:
		p.r.Status = StatusDelivering
	case StatusReturning:
		p.r.Status = StatusReturning
	case StatusCharging:
		p.r.Status = StatusCharging
	case StatusPaused:
		p.r.Status = StatusPaused
	case StatusFault:
		p.r.Status = StatusFault
	default:
		return outOfRange(fieldStatus, quote(s))
	}
	return nil
}

func (p *parser) time() error {
	s, err := p.str(fieldTime, math.MaxInt)
	if err != nil {
		return err
	}
	t, ok := parseTime(s)
	if !ok {
		return outOfRange(fieldTime, quote(s))
	}
	p.r.Time = t
	return nil
}

func (p *parser) seq() error {
	v, lit, err := p.float(fieldSeq)
	switch {
	case err != nil:
		return err
	case v != math.Trunc(v):
		return &RuleError{Reason: ReasonWrongType, Field: fields[fieldSeq].path, Message: "found " + clip(lit) + ", want " + fields[fieldSeq].want}
	case v < 1 || v > 1<<53-1:
		return outOfRange(fieldSeq, clip(lit))
	}
	p.r.Seq = int64(v)
	return nil
}

// number parses a number from lo to hi.
func (p *parser) number(f field, dst *float64, lo, hi float64) error {
	v, lit, err := p.float(f)
	if err != nil {
		return err
	}
	if v < lo || v > hi {
		return outOfRange(f, clip(lit))
	}
	*dst = v
	return nil
}

// float returns the double nearest to a number, and its spelling. jx checks the spelling, but does not convert it: its
// conversion takes 1-2 for a number and is not always the nearest double.
func (p *parser) float(f field) (float64, []byte, error) {
	if p.d.Next() != jx.Number {
		return 0, nil, p.wrongType(f)
	}
	lit, err := p.d.Raw()
	if err != nil {
		return 0, nil, err
	}
	v, ok := parseFloat(lit)
	if !ok {
		return 0, nil, outOfRange(f, clip(lit))
	}
	return v, lit, nil
}

// keep adds to p.extra a field that is unknown in the object that is the value of the field of, where others precede it.
func (p *parser) keep(of field, name []byte, others [][]byte) error {
	for _, other := range others {
		if bytes.Equal(other, name) {
			return repeated(unknownPath(of, name))
		}
	}
	raw, err := p.d.Raw()
	if err != nil {
		return err
	}
	p.unknown = append(p.unknown, name)
	depth := 1 // the reading
	if of != fieldNone {
		depth++
		if len(others) == 0 {
			// The method object closes it. As a known field is not repeated, it is not opened twice.
			p.separate()
			p.extra.FieldStart(fields[of].path)
			p.extra.ObjStart()
		}
	}
	p.separate()
	p.extra.ByteStr(name)
	var rule *RuleError
	if p.extra.Buf, rule = appendCompact(append(p.extra.Buf, ':'), raw, depth); rule != nil {
		rule.Field = unknownPath(of, name)
		return rule
	}
	return nil
}

// separate makes p.extra ready for the next name.
func (p *parser) separate() {
	switch n := len(p.extra.Buf); {
	case n == 0:
		p.extra.Grow(128) // enough for a few numbers
		p.extra.ObjStart()
	case p.extra.Buf[n-1] != '{': // no value ends so
		p.extra.Comma()
	}
}

func unknownPath(of field, name []byte) string {
	if of == fieldNone {
		return clip(name)
	}
	return fields[of].path + "." + clip(name)
}

// finish looks for what is missing and fills in the strings.
func (p *parser) finish() error {
	if missing := required &^ p.seen; missing != 0 {
		return absent(missing)
	}
	switch {
	case p.r.Fault == nil && p.r.Status == StatusFault:
		return &RuleError{Reason: ReasonMissingField, Field: "fault", Message: "required while status is \"fault\""}
	case p.r.Fault != nil && p.seen&(1<<fieldFaultCode) == 0:
		return absent(1 << fieldFaultCode)
	}
	text := string(p.text)
	p.r.RobotID = text[p.robotID.start:p.robotID.end]
	p.r.BootID = text[p.bootID.start:p.bootID.end]
	p.r.DeliveryID = text[p.deliveryID.start:p.deliveryID.end]
	p.r.SoftwareVersion = text[p.softVersion.start:p.softVersion.end]
	if p.extra.Buf != nil {
		p.extra.ObjEnd()
		p.r.Extra = p.extra.Buf
	}
	return nil
}

// wrongType reports the value at hand, which is not of the type that f has.
func (p *parser) wrongType(f field) error {
	typ := p.d.Next()
	raw, err := p.d.Raw()
	if err != nil {
		return err
	}
	found := typ.String()
	if typ != jx.Object && typ != jx.Array && typ != jx.Null {
		found += " " + clip(raw)
	}
	reason := ReasonWrongType
	if f == fieldNone {
		reason = ReasonMalformed
	}
	return &RuleError{Reason: reason, Field: fields[f].path, Message: "found " + found + ", want " + fields[f].want}
}

// checkText refuses what jx lets pass: bytes that are not UTF-8, and escapes of U+0000 and of half a surrogate pair.
func checkText(data []byte) error {
	if !utf8.Valid(data) {
		return malformed("not UTF-8 at byte %d", invalidUTF8(data))
	}
	// In JSON a backslash stands only in strings; if this is no JSON, it is refused anyway.
	for i := bytes.IndexByte(data, '\\'); i >= 0 && i+1 < len(data); {
		n := 2
		if data[i+1] == 'u' {
			n = 6
			switch r, ok := unescape(data[i:]); {
			case !ok:
				return malformed("not JSON: bad escape at byte %d", i)
			case r == 0:
				return malformed("escape of U+0000 at byte %d", i)
			case r >= 0xDC00 && r <= 0xDFFF:
				return malformed("escape of half a surrogate pair at byte %d", i)
			case r >= 0xD800 && r <= 0xDBFF:
				if low, ok := unescape(data[i+6:]); !ok || low < 0xDC00 || low > 0xDFFF {
					return malformed("escape of half a surrogate pair at byte %d", i)
				}
				n = 12
			}
		}
		next := bytes.IndexByte(data[min(i+n, len(data)):], '\\')
		if next < 0 {
			break
		}
		i += n + next
	}
	return nil
}

func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(data)
}

// unescape returns the code unit that an escape \uXXXX at the beginning of s stands for.
func unescape(s []byte) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range s[2:6] {
		switch {
		case isDigit(c):
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// appendCompact appends the value of an unknown field, a JSON text that stands depth levels deep, without the white space
// between its tokens. It refuses values that nest too deep and numbers without a double, which storage would refuse later
// and with them the readings written beside.
func appendCompact(dst, raw []byte, depth int) ([]byte, *RuleError) {
	for i := 0; i < len(raw); {
		start := i
		switch c := raw[i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
			continue
		case c == '"':
			for i++; raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
			i++
		case c == '-' || isDigit(c):
			for i < len(raw) && isNumberByte(raw[i]) {
				i++
			}
			if _, ok := parseFloat(raw[start:i]); !ok {
				return nil, &RuleError{Reason: ReasonOutOfRange, Message: "found " + clip(raw[start:i]) + ", want numbers within the range of IEEE 754 doubles"}
			}
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return nil, malformed("nests deeper than %d levels", MaxDepth)
			}
			i++
		case c == '}' || c == ']':
			depth--
			i++
		default: // ',', ':' and the letters of true, false and null
			i++
		}
		dst = append(dst, raw[start:i]...)
	}
	return dst, nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isNumberByte(c byte) bool {
	return isDigit(c) || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-'
}

func malformed(format string, args ...any) *RuleError {
	return &RuleError{Reason: ReasonMalformed, Message: fmt.Sprintf(format, args...)}
}

// notJSON reports an error of jx, of which the cause says where; what jx wraps around it is its own call stack.
func notJSON(err error) *RuleError {
	for cause := errors.Unwrap(err); cause != nil; cause = errors.Unwrap(err) {
		err = cause
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("not JSON: it ends too early")
	}
	return malformed("not JSON: %v", err)
}

func repeated(path string) *RuleError {
	return &RuleError{Reason: ReasonMalformed, Field: path, Message: "found twice, want it once"}
}

func outOfRange(f field, found string) *RuleError {
	return &RuleError{Reason: ReasonOutOfRange, Field: fields[f].path, Message: "found " + found + ", want " + fields[f].want}
}
