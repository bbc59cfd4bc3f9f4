package bigquery

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	bq "google.golang.org/api/bigquery/v2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// messagePlan says how the fields of a message become columns. It is made once per descriptor and schema, so that a row is decoded
// in one pass over its bytes, without reflection and without anything in between.
type messagePlan struct {
	byNumber []*fieldPlan // of the numbers that fit; nil: unknown
	others   map[protowire.Number]*fieldPlan
	defaults []*fieldPlan // fields that have a default, and so are never absent
}

// fieldPlan says how one field becomes a column.
type fieldPlan struct {
	column   int // index in the parent's columns
	name     string
	kind     protoreflect.Kind
	repeated bool
	message  *messagePlan // of a RECORD
	set      setter
	standard scalar // the field's default
}

// scalar is the value of a field, in the member that its kind uses.
type scalar struct {
	i int64   // integers and booleans; unsigned ones beyond its range are refused before
	f float64 // float and double
	b []byte  // string and bytes
}

// setter writes a value into row of a column.
type setter func(c *column, row int, v scalar) error

// maxPlainNumber is the greatest field number that is looked up by index.
const maxPlainNumber = 1023

// planRows prepares the decoding of rows that the descriptor describes for a table of this schema.
func planRows(descriptor *descriptorpb.DescriptorProto, fields []*bq.TableFieldSchema) (*messagePlan, error) {
	file := &descriptorpb.FileDescriptorProto{
		Name:        new("row.proto"),
		Syntax:      new("proto2"),
		MessageType: []*descriptorpb.DescriptorProto{descriptor},
	}
	fd, err := protodesc.NewFile(file, nil)
	if err != nil {
		return nil, fmt.Errorf("the writer schema is not a self-contained proto2 descriptor: %w", err)
	}
	return planMessage(fd.Messages().Get(0), fields, "", 0)
}

func planMessage(m protoreflect.MessageDescriptor, fields []*bq.TableFieldSchema, path string, depth int) (*messagePlan, error) {
	const maxNesting = 15 // https://cloud.google.com/bigquery/docs/nested-repeated#limitations
	if depth > maxNesting {
		return nil, fmt.Errorf("field %s is nested more than %d levels deep", path, maxNesting)
	}
	plan := &messagePlan{}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		name := path + string(f.Name())
		at := slices.IndexFunc(fields, func(c *bq.TableFieldSchema) bool { return strings.EqualFold(c.Name, string(f.Name())) })
		if at < 0 {
			return nil, &extraFieldError{name}
		}
		c := fields[at]
		p := &fieldPlan{column: at, name: name, kind: f.Kind(), repeated: f.IsList()}
		if p.repeated != (c.Mode == "REPEATED") {
			return nil, fmt.Errorf("field %s is %s in the writer schema and %s in the table", name, f.Cardinality(), c.Mode)
		}
		var err error
		switch {
		case f.Kind() == protoreflect.GroupKind || (f.Kind() == protoreflect.MessageKind) != (c.Type == "RECORD"):
			return nil, mismatch(name, f, c)
		case c.Type == "RECORD":
			p.message, err = planMessage(f.Message(), c.Fields, name+".", depth+1)
		default:
			p.set, err = setterFor(name, f, c)
		}
		if err != nil {
			return nil, err
		}
		if f.HasDefault() {
			p.standard = defaultScalar(f)
			plan.defaults = append(plan.defaults, p)
		}
		if n := f.Number(); n <= maxPlainNumber {
			for len(plan.byNumber) <= int(n) {
				plan.byNumber = append(plan.byNumber, nil)
			}
			plan.byNumber[n] = p
		} else {
			if plan.others == nil {
				plan.others = map[protowire.Number]*fieldPlan{}
			}
			plan.others[n] = p
		}
	}
	return plan, nil
}

// extraFieldError says that the writer schema has a field that the table lacks.
type extraFieldError struct{ field string }

func (e *extraFieldError) Error() string {
	return fmt.Sprintf("Input schema has more fields than BigQuery schema, extra fields: '%s'", e.field)
}

func mismatch(name string, f protoreflect.FieldDescriptor, c *bq.TableFieldSchema) error {
	return fmt.Errorf("the proto field mismatched with BigQuery field at %s: the proto field type %s, BigQuery field type %s", name, f.Kind(), c.Type)
}

// defaultScalar is the default that the descriptor gives a field. The client gives one to every field without explicit presence.
func defaultScalar(f protoreflect.FieldDescriptor) scalar {
	d := f.Default()
	switch f.Kind() {
	case protoreflect.BoolKind:
		if d.Bool() {
			return scalar{i: 1}
		}
		return scalar{}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return scalar{f: d.Float()}
	case protoreflect.StringKind:
		return scalar{b: []byte(d.String())}
	case protoreflect.BytesKind:
		return scalar{b: d.Bytes()}
	case protoreflect.EnumKind:
		return scalar{i: int64(d.Enum())}
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return scalar{i: int64(d.Uint())}
	default:
		return scalar{i: d.Int()}
	}
}

// setterFor picks how a kind of proto field becomes a type of column, by the conversions of
// https://cloud.google.com/bigquery/docs/supported-data-types.
func setterFor(name string, f protoreflect.FieldDescriptor, c *bq.TableFieldSchema) (setter, error) {
	kind := f.Kind()
	var isInt, isFloat, isText bool
	switch kind {
	case protoreflect.StringKind, protoreflect.BytesKind:
		isText = true
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		isFloat = true
	case protoreflect.EnumKind, protoreflect.BoolKind:
	default:
		isInt = true
	}
	isString := kind == protoreflect.StringKind
	switch {
	case c.Type == "STRING" && isString:
		return setString, nil
	case c.Type == "STRING" && kind == protoreflect.EnumKind:
		return setEnumName(f.Enum()), nil
	case c.Type == "BYTES" && isText:
		return func(c *column, row int, v scalar) error { c.setBytes(row, v.b); return nil }, nil
	case c.Type == "INTEGER" && (isInt || kind == protoreflect.EnumKind || kind == protoreflect.BoolKind):
		return func(c *column, row int, v scalar) error { setValue(c, row, v.i); return nil }, nil
	case c.Type == "FLOAT" && isFloat:
		return func(c *column, row int, v scalar) error { setValue(c, row, v.f); return nil }, nil
	case c.Type == "FLOAT" && isInt:
		return func(c *column, row int, v scalar) error { setValue(c, row, float64(v.i)); return nil }, nil
	case c.Type == "BOOLEAN" && (kind == protoreflect.BoolKind || isInt):
		return func(c *column, row int, v scalar) error { setValue(c, row, v.i != 0); return nil }, nil
	case c.Type == "TIMESTAMP" && isInt:
		return setMicros("TIMESTAMP"), nil
	case c.Type == "TIMESTAMP" && isString:
		return setParsed(parseTimestamp, setMicros("TIMESTAMP")), nil
	case c.Type == "DATE" && isInt:
		return setDate, nil
	case c.Type == "DATE" && isString:
		return setParsed(parseDate, setDate), nil
	case c.Type == "DATETIME" && isInt:
		return setParsed(unpackDateTime, setMicros("DATETIME")), nil
	case c.Type == "DATETIME" && isString:
		return setParsed(parseDateTime, setMicros("DATETIME")), nil
	case c.Type == "TIME" && isInt:
		return setParsed(unpackTime, setTime), nil
	case c.Type == "TIME" && isString:
		return setParsed(parseTimeOfDay, setTime), nil
	case c.Type == "NUMERIC" && isString:
		return func(c *column, row int, v scalar) error { return setNumeric(c, row, string(v.b)) }, nil
	case c.Type == "NUMERIC" && kind == protoreflect.BytesKind:
		return setNumericBytes, nil
	case c.Type == "NUMERIC" && isInt:
		return func(c *column, row int, v scalar) error { return setNumeric(c, row, strconv.FormatInt(v.i, 10)) }, nil
	case c.Type == "NUMERIC" && isFloat:
		return func(c *column, row int, v scalar) error {
			return setNumeric(c, row, strconv.FormatFloat(v.f, 'f', 9, 64))
		}, nil
	case c.Type == "JSON" && isString:
		return setJSON, nil
	}
	return nil, mismatch(name, f, c)
}

func setString(c *column, row int, v scalar) error {
	if !utf8.Valid(v.b) {
		return fmt.Errorf("field %s contains invalid UTF-8", c.field.Name)
	}
	c.setBytes(row, v.b)
	return nil
}

func setJSON(c *column, row int, v scalar) error {
	if !utf8.Valid(v.b) || !json.Valid(v.b) {
		return fmt.Errorf("field %s is not valid JSON", c.field.Name)
	}
	c.setBytes(row, v.b)
	return nil
}

func setEnumName(e protoreflect.EnumDescriptor) setter {
	return func(c *column, row int, v scalar) error {
		value := e.Values().ByNumber(protoreflect.EnumNumber(v.i))
		if value == nil {
			return fmt.Errorf("field %s: enum %s has no value %d", c.field.Name, e.Name(), v.i)
		}
		c.setBytes(row, []byte(value.Name()))
		return nil
	}
}

func setMicros(typeName string) setter {
	return func(c *column, row int, v scalar) error {
		if v.i < minTimestampMicros || v.i > maxTimestampMicros {
			return fmt.Errorf("field %s: %s value is out of range: %d microseconds since 1970", c.field.Name, typeName, v.i)
		}
		setValue(c, row, v.i)
		return nil
	}
}

func setDate(c *column, row int, v scalar) error {
	if v.i < minDateDays || v.i > maxDateDays {
		return fmt.Errorf("field %s: DATE value is out of range: %d days since 1970", c.field.Name, v.i)
	}
	setValue(c, row, int32(v.i))
	return nil
}

func setTime(c *column, row int, v scalar) error {
	setValue(c, row, v.i)
	return nil
}

// setParsed converts the value before it is set.
func setParsed(parse func(scalar) (int64, error), set setter) setter {
	return func(c *column, row int, v scalar) error {
		i, err := parse(v)
		if err != nil {
			return fmt.Errorf("field %s: %w", c.field.Name, err)
		}
		return set(c, row, scalar{i: i})
	}
}

// parseLayouts reads a text in one of several layouts.
func parseLayouts(typeName string, b []byte, layouts ...string) (time.Time, error) {
	for _, layout := range layouts {
		if t, err := time.Parse(layout, string(b)); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("invalid %s value: %q", typeName, b)
}

func parseTimestamp(v scalar) (int64, error) {
	t, err := parseLayouts("TIMESTAMP", v.b, time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999 MST", "2006-01-02 15:04:05")
	return t.UnixMicro(), err
}

func parseDate(v scalar) (int64, error) {
	t, err := parseLayouts("DATE", v.b, time.DateOnly)
	return t.Unix() / 86400, err
}

func parseDateTime(v scalar) (int64, error) {
	t, err := parseLayouts("DATETIME", v.b, "2006-01-02T15:04:05.999999", "2006-01-02 15:04:05.999999")
	return t.UnixMicro(), err
}

func parseTimeOfDay(v scalar) (int64, error) {
	t, err := parseLayouts("TIME", v.b, "15:04:05.999999")
	return t.Sub(time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds(), err
}

// unpackTime reads a civil time as ZetaSQL packs it into 64 bits: hours from bit 32, minutes from 26, seconds from 20, microseconds.
// https://cloud.google.com/bigquery/docs/supported-data-types names CivilTimeEncoder, whose layout this is.
func unpackTime(v scalar) (int64, error) {
	hour, minute, second, micro := v.i>>32&0x1f, v.i>>26&0x3f, v.i>>20&0x3f, v.i&0xfffff
	if v.i>>37 != 0 || hour > 23 || minute > 59 || second > 59 || micro > 999_999 {
		return 0, fmt.Errorf("invalid packed TIME value: %d", v.i)
	}
	return ((hour*60+minute)*60+second)*1_000_000 + micro, nil
}

// unpackDateTime reads a civil date and time: the year from bit 46, the month from 42, the day from 37, then the time.
func unpackDateTime(v scalar) (int64, error) {
	year, month, day := v.i>>46, v.i>>42&0xf, v.i>>37&0x1f
	micros, err := unpackTime(scalar{i: v.i & (1<<37 - 1)})
	date := time.Date(int(year), time.Month(month), int(day), 0, 0, 0, 0, time.UTC)
	if err != nil || year < 1 || year > 9999 || int64(date.Month()) != month || int64(date.Day()) != day {
		return 0, fmt.Errorf("invalid packed DATETIME value: %d", v.i)
	}
	return date.UnixMicro() + micros, nil
}

func setNumeric(c *column, row int, s string) error {
	v, err := parseNumeric(s)
	if err != nil {
		return fmt.Errorf("field %s: %w", c.field.Name, err)
	}
	setValue(c, row, int128Of(v))
	return nil
}

// setNumericBytes reads NUMERIC as the value times 10^9 in two's complement, the lowest byte first.
func setNumericBytes(c *column, row int, v scalar) error {
	b := slices.Clone(v.b)
	slices.Reverse(b)
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	if len(b) == 0 || len(b) > 16 || n.CmpAbs(maxNumeric) > 0 {
		return fmt.Errorf("field %s: invalid NUMERIC value of %d bytes", c.field.Name, len(b))
	}
	setValue(c, row, int128Of(n))
	return nil
}

// decode writes the message b into row of the columns.
func (p *messagePlan) decode(b []byte, columns []column, row int) error {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("the row is not a valid message: %w", protowire.ParseError(n))
		}
		b = b[n:]
		f := p.field(number)
		if f == nil {
			n = protowire.ConsumeFieldValue(number, wire, b)
			if n < 0 {
				return fmt.Errorf("the row is not a valid message: %w", protowire.ParseError(n))
			}
			b = b[n:] // production ignores fields that the writer schema does not know
			continue
		}
		n, err := f.decode(b, wire, &columns[f.column], row)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	for _, f := range p.defaults {
		if c := &columns[f.column]; c.written != row+1 {
			if err := f.set(c, row, f.standard); err != nil {
				return err
			}
		}
	}
	for i := range columns {
		if c := &columns[i]; c.written != row+1 {
			if err := c.setAbsent(row); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *messagePlan) field(n protowire.Number) *fieldPlan {
	if int(n) < len(p.byNumber) {
		return p.byNumber[n]
	}
	return p.others[n]
}

// decode writes the value at the start of b, and returns its length.
func (f *fieldPlan) decode(b []byte, wire protowire.Type, c *column, row int) (int, error) {
	if !f.repeated {
		return f.decodeOne(b, wire, c, row)
	}
	if wire == protowire.BytesType && f.message == nil && f.kind != protoreflect.StringKind && f.kind != protoreflect.BytesKind {
		packed, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return 0, fmt.Errorf("field %s is not valid: %w", f.name, protowire.ParseError(n))
		}
		for len(packed) > 0 {
			at, err := c.appendElement(row)
			if err != nil {
				return 0, err
			}
			used, err := f.decodeOne(packed, wireType(f.kind), c.element, at)
			if err != nil {
				return 0, err
			}
			packed = packed[used:]
		}
		return n, nil
	}
	at, err := c.appendElement(row)
	if err != nil {
		return 0, err
	}
	return f.decodeOne(b, wire, c.element, at)
}

// wireType is the type on the wire of a numeric kind.
func wireType(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	default:
		return protowire.VarintType
	}
}

func (f *fieldPlan) decodeOne(b []byte, wire protowire.Type, c *column, row int) (int, error) {
	if wire != wireType(f.kind) {
		return 0, fmt.Errorf("field %s has the wrong wire type %d", f.name, wire)
	}
	var v scalar
	var raw uint64
	var n int
	switch wire {
	case protowire.VarintType:
		raw, n = protowire.ConsumeVarint(b)
	case protowire.Fixed32Type:
		if n = 4; len(b) < n {
			n = -1
		} else {
			raw = uint64(binary.LittleEndian.Uint32(b))
		}
	case protowire.Fixed64Type:
		raw, n = protowire.ConsumeFixed64(b)
	default:
		v.b, n = protowire.ConsumeBytes(b)
	}
	if n < 0 {
		return 0, fmt.Errorf("field %s is not valid: %w", f.name, protowire.ParseError(n))
	}
	switch f.kind {
	case protoreflect.MessageKind:
		if c.written == row+1 { // legal, but no encoder writes it, and NULLs of the first would have to be undone
			return 0, fmt.Errorf("field %s occurs twice", f.name)
		}
		c.written = row + 1
		return n, f.message.decode(v.b, c.fields, row)
	case protoreflect.Sint32Kind, protoreflect.Sint64Kind:
		v.i = protowire.DecodeZigZag(raw)
	case protoreflect.Int32Kind, protoreflect.Sfixed32Kind, protoreflect.EnumKind:
		v.i = int64(int32(raw))
	case protoreflect.BoolKind:
		v.i = int64(min(raw, 1))
	case protoreflect.FloatKind:
		v.f = float64(math.Float32frombits(uint32(raw)))
	case protoreflect.DoubleKind:
		v.f = math.Float64frombits(raw)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		if raw > math.MaxInt64 {
			return 0, fmt.Errorf("field %s: %d is out of range of INT64", f.name, raw)
		}
		v.i = int64(raw)
	case protoreflect.StringKind, protoreflect.BytesKind:
	default:
		v.i = int64(raw)
	}
	return n, f.set(c, row, v)
}
