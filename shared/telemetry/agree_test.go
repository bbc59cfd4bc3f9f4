package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/robofleet/robofleet/shared/telemetry"
)

func compileSchema(tb testing.TB) *jsonschema.Schema {
	tb.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(telemetry.Schema()))
	if err != nil {
		tb.Fatalf("parsing the schema: %v", err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("reading.json", doc); err != nil {
		tb.Fatalf("adding the schema: %v", err)
	}
	schema, err := compiler.Compile("reading.json")
	if err != nil {
		tb.Fatalf("compiling the schema: %v", err)
	}
	return schema
}

// reference decides as the package documentation says, the slow way: the rules of the text with encoding/json and nothing
// of the package's own, then the schema.
func reference(schema *jsonschema.Schema, data []byte) (map[string]any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	if !json.Valid(data) {
		return nil, errors.New("not JSON")
	}
	if err := referenceEscapes(data); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := referenceTokens(d, "", 0); err != nil {
		return nil, err
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	if err := schema.Validate(v); err != nil {
		return nil, err
	}
	return v.(map[string]any), nil
}

var escape = regexp.MustCompile(`\\(?:u([0-9a-fA-F]{4})|.)`)

func referenceEscapes(data []byte) error {
	high := -1 // where a low surrogate must begin
	for _, m := range escape.FindAllSubmatchIndex(data, -1) {
		unit := uint64(' ')
		if m[2] >= 0 {
			unit, _ = strconv.ParseUint(string(data[m[2]:m[3]]), 16, 16) // four hexadecimal digits by the expression
		}
		low := unit&0xFC00 == 0xDC00
		if unit == 0 || low != (m[0] == high) {
			return errors.New("escape of U+0000 or half a surrogate pair")
		}
		if high >= 0 && !low {
			return errors.New("escape of half a surrogate pair")
		}
		high = -1
		if unit&0xFC00 == 0xD800 {
			high = m[1]
		}
	}
	if high >= 0 {
		return errors.New("escape of half a surrogate pair")
	}
	return nil
}

// referenceTokens reads one value and refuses repeated names where they count, deep nesting and numbers beyond the doubles.
func referenceTokens(d *json.Decoder, path string, depth int) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	switch token := token.(type) {
	case json.Number:
		_, err := strconv.ParseFloat(token.String(), 64)
		return err
	case json.Delim:
		if depth++; depth > telemetry.MaxDepth {
			return errors.New("too deep")
		}
		names := map[string]bool{}
		for d.More() {
			child := path + "/"
			if token == '{' {
				name, err := d.Token()
				if err != nil {
					return err
				}
				counts := slices.Contains([]string{"", "/position", "/battery", "/fault"}, path)
				if counts && names[name.(string)] {
					return fmt.Errorf("repeated name %q", name)
				}
				names[name.(string)] = true
				child += name.(string)
			}
			if err := referenceTokens(d, child, depth); err != nil {
				return err
			}
		}
		_, err := d.Token()
		return err
	}
	return nil
}

// checkAgreement fails if Decode and the reference differ in whether data is a reading, or in what it says.
func checkAgreement(t *testing.T, schema *jsonschema.Schema, data []byte) {
	t.Helper()
	given := bytes.Clone(data)
	var got telemetry.Reading
	err := telemetry.Decode(data, &got)
	if !bytes.Equal(given, data) {
		t.Fatalf("Decode changed its input %q to %q", given, data)
	}
	want, wantErr := reference(schema, data)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%q:\nDecode: %v\nreference: %v", data, err, wantErr)
	}
	if err != nil {
		var rule *telemetry.RuleError
		if !errors.As(err, &rule) || rule.Reason == "" || rule.Message == "" || !utf8.ValidString(rule.Error()) {
			t.Fatalf("%q: error %#v is not a RuleError with a reason and a message in UTF-8", data, err)
		}
		if !json.Valid(data) && rule.Reason != telemetry.ReasonMalformed {
			t.Fatalf("%q is not JSON, but the reason is %q", data, rule.Reason)
		}
		return
	}
	clear(data) // a reading must not refer to it
	// Not cmp.Diff alone: its time is exponential in the depth of nested slices.
	if want, got := normalise(want), values(t, &got); !reflect.DeepEqual(want, got) {
		t.Fatalf("%q: reading differs from the text (-text +reading):\n%s", given, cmp.Diff(want, got))
	}
}

// values returns r as its text would be unmarshalled, the unknown fields among the others.
func values(t *testing.T, r *telemetry.Reading) map[string]any {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatalf("marshalling the reading: %v", err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatalf("unmarshalling the reading: %v", err)
	}
	if r.Extra != nil {
		var extra map[string]any
		if err := json.Unmarshal(r.Extra, &extra); err != nil {
			t.Fatalf("Extra %q: %v", r.Extra, err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, r.Extra); err != nil || compact.String() != string(r.Extra) {
			t.Fatalf("Extra %q is not compact (%v)", r.Extra, err)
		}
		d := json.NewDecoder(bytes.NewReader(r.Extra))
		d.UseNumber()
		if err := referenceTokens(d, "", 0); err != nil {
			t.Fatalf("Extra %q: %v", r.Extra, err)
		}
		merge(t, got, extra)
	}
	return got
}

// merge adds the unknown fields to the known ones of the same object.
func merge(t *testing.T, known, extra map[string]any) {
	t.Helper()
	if len(extra) == 0 {
		t.Fatal("Extra holds an object for no field")
	}
	for name, v := range extra {
		was, ok := known[name]
		if !ok {
			known[name] = v
			continue
		}
		object, ok := was.(map[string]any)
		unknown, ok2 := v.(map[string]any)
		if !ok || !ok2 {
			t.Fatalf("known field %q in Extra", name)
		}
		merge(t, object, unknown)
	}
}

// normalise removes what a Reading does not keep apart: the precision of a time, and empty strings that may as well be absent.
func normalise(m map[string]any) map[string]any {
	if s, ok := m["time"].(string); ok {
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
			m["time"] = t.Format(time.RFC3339Nano)
		}
	}
	for _, name := range []string{"delivery_id", "software_version"} {
		if m[name] == "" {
			delete(m, name)
		}
	}
	if fault, ok := m["fault"].(map[string]any); ok && fault["message"] == "" {
		delete(fault, "message")
	}
	return m
}

// variants are values to put in the place of a field's own.
func variants() []string {
	v := []string{
		`null`, `true`, `false`, `""`, `"x"`, `"é😀"`, `"\u0041"`, `"\ud83d\ude00"`, `"\ud83d"`, `"\ude00"`, `"\ud83dx"`, `"\ud83d\ud83d\ude00"`,
		`"\u0000"`, `"\\u0000"`, `"\\\u0000"`, `"a\"b\\"`, `"a\/b"`, `"a\nb"`, "\"a\nb\"", "\"a\x00b\"", "\"\xff\"", "\"\xed\xa0\x80\"", `"\x"`, `"\u12"`,
		`{}`, `[]`, `{"a":1}`, `[1,2]`, `{"code":"MOTOR_STALL"}`, `{"code":"X","message":"m"}`, `{"code":"X","message":1}`, `{"code":"X","other":1}`,
		`{"code":"X","code":"X"}`, `{"code":"X","cod\u0065":"X"}`, `{"code":"x"}`, `{"message":"m"}`, `{"a":1,"a":2}`, `{"a":{"b":[1, 2 ,{"c" : null}]}}`,
		`NaN`, `Infinity`, `-Infinity`, `nul`, `tru`, `truex`, `'x'`, `0x10`, `1_000`, `+1`, `.5`, `5.`, `01`, `-`, `1-2`, `1+2`, `1e`, `1e+`, `--1`, `-01`, `1.e1`, `"1"`,
		`0`, `-0`, `-0.0`, `0e0`, `1`, `1.0`, `1.00`, `1e0`, `10e-1`, `1E+2`, `1.5`, `0.9999999999999999999999`, `1e-400`, `1e400`, `-1e400`, `1e308`, `1e99999`, `1e-99999`,
		`9007199254740990`, `9007199254740991`, `9007199254740991.4`, `9007199254740992`, `9007199254740993`, `18446744073709551616`, `9223372036854775808`, `1e16`,
		`[1e400]`, `{"a":-1e999}`, `"idle"`, `"fault"`, `"FAULT"`, `"Idle"`, `"idl\u0065"`, `"delivering"`, `"returning"`, `"charging"`, `"paused"`,
	}
	for _, n := range []int{telemetry.MaxDepth - 2, telemetry.MaxDepth - 1, telemetry.MaxDepth, 11_000} {
		v = append(v, strings.Repeat("[", n)+strings.Repeat("]", n), strings.Repeat(`{"a":`, n)+"1"+strings.Repeat("}", n))
	}
	for _, limit := range []float64{1, 30, 90, 100, 180, 360, 10000} {
		for _, f := range []float64{limit, math.Nextafter(limit, 0), math.Nextafter(limit, math.Inf(1))} {
			s := strconv.FormatFloat(f, 'f', -1, 64)
			v = append(v, s, "-"+s)
		}
	}
	v = append(v, `90.000000000000000000001`, `359.99999999999999999999`, `0.00000000000000000000000000000001`, `-0.00000000000000000001`)
	for _, n := range []int{63, 64, 65, 127, 128, 129, 1023, 1024, 1025} {
		for _, r := range []string{"a", "A", "é", "😀", `\u00e9`, `\ud83d\ude00`} {
			v = append(v, `"`+strings.Repeat(r, n)+`"`, `{"code":"X","message":"`+strings.Repeat(r, n)+`"}`, `{"code":"`+strings.Repeat(r, n)+`"}`)
		}
	}
	for _, c := range []string{"-", ".", "_", "0", "z", "Z", "/", ":", "@", "[", "`", "{", " ", "é"} {
		v = append(v, `"`+c+`"`, `"A`+c+`"`, `{"code":"`+c+`"}`, `{"code":"A`+c+`"}`)
	}
	for _, s := range []string{
		"2026-11-23T11:19:03Z", "2026-11-23T11:19:03.1Z", "2026-11-23T11:19:03.123456789Z", "2026-11-23T11:19:03.1234567891Z", "2026-11-23T11:19:03.Z",
		"2026-11-23T11:19:03,5Z", "2026-11-23t11:19:03Z", "2026-11-23T11:19:03z", "2026-11-23T11:19:03+00:00", "2026-11-23T11:19:03-00:00", "2026-11-23T11:19:03",
		"2026-11-23 11:19:03Z", "2026-11-23T1:19:03Z", "2026-11-23T24:00:00Z", "2026-11-23T23:59:60Z", "2026-11-23T23:60:00Z", "2016-12-31T23:59:60Z",
		"2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-01-00T00:00:00Z", "2026-01-32T00:00:00Z", "2026-04-31T00:00:00Z", "2026-02-29T00:00:00Z",
		"2024-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2000-02-29T00:00:00Z", "2024-02-30T00:00:00Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z",
		"9999-12-31T23:59:59.999999999Z", "10000-01-01T00:00:00Z", "-001-01-01T00:00:00Z", "2026-11-23T11:19:03.5Z ", " 2026-11-23T11:19:03Z", "２026-11-23T11:19:03Z",
	} {
		v = append(v, `"`+s+`"`)
	}
	return v
}

// members are the name and text of each field of an object, in order, so that a test can write what no marshaller would.
type members [][2]string

func (m members) String() string {
	var b strings.Builder
	b.WriteByte('{')
	for i, field := range m {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(field[0] + ":" + field[1])
	}
	b.WriteByte('}')
	return b.String()
}

func good() (top, position, battery, fault members) {
	position = members{{`"lat_deg"`, `48.137154`}, {`"lon_deg"`, `11.576124`}, {`"heading_deg"`, `271.5`}, {`"speed_mps"`, `1.42`}, {`"accuracy_m"`, `2.5`}}
	battery = members{{`"percent"`, `83.5`}, {`"charging"`, `false`}}
	fault = members{{`"code"`, `"MOTOR_STALL"`}, {`"message"`, `"left wheel"`}}
	top = members{
		{`"robot_id"`, `"R-000017"`}, {`"boot_id"`, `"01JD3Z8Q5W"`}, {`"seq"`, `48151`}, {`"time"`, `"2026-11-23T11:19:03.25Z"`},
		{`"position"`, position.String()}, {`"battery"`, battery.String()}, {`"status"`, `"delivering"`}, {`"fault"`, fault.String()},
		{`"delivery_id"`, `"D-7F3A"`}, {`"software_version"`, `"4.12.0"`},
	}
	return top, position, battery, fault
}

// generated yields readings with one thing changed each.
func generated(yield func(string)) {
	top, position, battery, fault := good()
	mutate := func(object members, yield func(string)) {
		yield(object.String())
		for i := range object {
			yield(slices.Delete(slices.Clone(object), i, i+1).String())
			yield(append(slices.Clone(object), object[i]).String())
			name := object[i][0]
			for _, other := range []string{strings.ToUpper(name), `"\u00` + strconv.FormatInt(int64(name[1]), 16) + name[2:], `"` + name[1:2], name + " ", `"x` + name[1:], name[1:]} {
				renamed := slices.Clone(object)
				renamed[i][0] = other
				yield(renamed.String())
				yield(append(renamed, object[i]).String())
			}
			for _, v := range variants() {
				changed := slices.Clone(object)
				changed[i][1] = v
				yield(changed.String())
			}
		}
		for _, v := range variants() {
			yield(append(slices.Clone(object), [2]string{`"new"`, v}).String())
			yield(append(slices.Clone(object), [2]string{v, `1`}).String())
		}
		yield(append(slices.Clone(object), [2]string{`"new"`, `1`}, [2]string{`"ne\u0077"`, `2`}).String())
		for n := 63; n <= 65; n++ {
			many := slices.Clone(object)
			for i := range n - len(object) {
				many = append(many, [2]string{fmt.Sprintf(`"x%d"`, i), `1`})
			}
			yield(many.String())
		}
		s := object.String()
		yield(strings.NewReplacer(",", " ,\r\n", ":", "\t:\n ", "{", "{ ", "}", "\n}").Replace(s))
		for _, suffix := range []string{" ", "\n", "x", ",", "}", "{}", "null", "\x00", "\xef\xbb\xbf"} {
			yield(s + suffix)
			yield(suffix + s)
		}
		for i := range s {
			yield(s[:i])
			yield(s[:i] + s[i+1:])
		}
	}
	mutate(top, yield)
	for _, suffix := range []string{"{}", "}", " null", "x"} {
		yield(`{"seq":"1"}` + suffix)
	}
	for i, object := range []members{4: position, 5: battery, 7: fault} {
		if object != nil {
			mutate(object, func(s string) {
				changed := slices.Clone(top)
				changed[i][1] = s
				yield(changed.String())
			})
		}
	}
	for _, v := range variants() {
		yield(v)
	}
	// Unknown fields everywhere, with the same name and the names of fields of other objects, before, between and after.
	everywhere := members{{`"a"`, `[1, 2]`}}
	for i, field := range top {
		switch i {
		case 4, 5, 7:
			field[1] = `{"a" :` + strconv.Itoa(i) + `,"seq":{"position":{ }},` + field[1][1:len(field[1])-1] + `,"fault": "a"}`
		}
		everywhere = append(everywhere, field, [2]string{fmt.Sprintf(`"b%d"`, i), `{}`})
	}
	yield(everywhere.String())
	for _, status := range []string{"idle", "fault"} {
		healthy := slices.Delete(slices.Clone(top), 7, 8)
		healthy[6][1] = `"` + status + `"`
		yield(healthy.String())
	}
}

func TestDecodeAgreesWithTheSchemaOnGeneratedReadings(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t)
	accepted, refused := 0, 0
	generated(func(s string) {
		checkAgreement(t, schema, []byte(s))
		if telemetry.Decode([]byte(s), new(telemetry.Reading)) == nil {
			accepted++
		} else {
			refused++
		}
	})
	t.Logf("%d accepted, %d refused", accepted, refused)
	if accepted < 1000 || refused < 1000 {
		t.Errorf("generated %d good and %d bad readings, want at least 1000 of each", accepted, refused)
	}
}

func FuzzDecodeAgreesWithTheSchema(f *testing.F) {
	f.Add([]byte(typical))
	seeds := 0
	generated(func(s string) {
		// The whole set runs in the test above; the fuzzer starts from a part of it, in which all kinds occur.
		if seeds++; seeds%23 == 0 && len(s) < 1000 {
			f.Add([]byte(s))
		}
	})
	schema := compileSchema(f)
	f.Fuzz(func(t *testing.T, data []byte) { checkAgreement(t, schema, bytes.Clone(data)) })
}
