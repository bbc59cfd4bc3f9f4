package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// with returns the typical reading with the first occurrence of old replaced.
func with(tb testing.TB, old, replacement string) string {
	tb.Helper()
	if !strings.Contains(typical, old) {
		tb.Fatalf("the typical reading does not contain %q", old)
	}
	return strings.Replace(typical, old, replacement, 1)
}

// numbered returns n unknown fields, each followed by a comma.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"x%d":%d,`, i, i)
	}
	return b.String()
}

func wantReading() telemetry.Reading {
	return telemetry.Reading{
		RobotID: "R-000017", BootID: "01JD3Z8Q5W", Seq: 48151, Time: time.Date(2026, 11, 23, 11, 19, 3, 250e6, time.UTC),
		Position: telemetry.Position{LatDeg: 48.137154, LonDeg: 11.576124, HeadingDeg: 271.5, SpeedMPS: 1.42, AccuracyM: 2.5},
		Battery:  telemetry.Battery{Percent: 83.5},
		Status:   telemetry.StatusDelivering, DeliveryID: "D-7F3A", SoftwareVersion: "4.12.0",
	}
}

func TestDecodeFillsEveryFieldAndForgetsTheLastReading(t *testing.T) {
	t.Parallel()
	// Left over from another reading; all of it must go.
	got := telemetry.Reading{Fault: &telemetry.Fault{Code: "OLD"}, Extra: json.RawMessage(`{"old":1}`), Battery: telemetry.Battery{Charging: true}}
	if err := telemetry.Decode([]byte(typical), &got); err != nil {
		t.Fatalf("Decode: %v", err)
	}
	if diff := cmp.Diff(wantReading(), got); diff != "" {
		t.Errorf("reading (-want +got):\n%s", diff)
	}
}

func TestDecodeKeepsUnknownFieldsInOrderAndSpelling(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text, want string
	}{
		{
			"of the reading", with(t, `"seq":48151`, `"z" : [1.50, 1E2, "a b\u00e9"] ,"seq":48151, "a\"\n": {"x" : null,  "x":true}`),
			`{"z":[1.50,1E2,"a b\u00e9"],"a\"\n":{"x":null,"x":true}}`,
		},
		{
			"of an object, under its name", with(t, `"charging":false`, `"voltage_v" : 48.10, "charging":false, "cells": [ 4.0, 4.1 ]`),
			`{"battery":{"voltage_v":48.10,"cells":[4.0,4.1]}}`,
		},
		{
			"of several objects, which the reading has between its own", strings.NewReplacer(
				`"seq"`, `"a":1,"seq"`, `"lat_deg"`, `"a":2,"lat_deg"`, `"battery":{`, `"b":{},"battery":{"a":3,`, `"delivery_id"`, `"c":"{","delivery_id"`,
			).Replace(typical),
			`{"a":1,"position":{"a":2},"b":{},"battery":{"a":3},"c":"{"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got telemetry.Reading
			if err := telemetry.Decode([]byte(tt.text), &got); err != nil {
				t.Fatalf("Decode: %v", err)
			}
			want := wantReading()
			want.Extra = json.RawMessage(tt.want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("reading (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	const id = "a string of 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
	for _, tt := range []struct {
		name string
		text string
		want telemetry.RuleError
	}{
		{"empty", ``, telemetry.RuleError{Reason: "malformed", Message: "not JSON: it ends too early"}},
		{"text", `hello`, telemetry.RuleError{Reason: "malformed", Message: "not JSON: unexpected byte 104 'h' at 0"}},
		{"cut off", typical[:200], telemetry.RuleError{Reason: "malformed", Message: "not JSON: it ends too early"}},
		{"two readings", typical + typical, telemetry.RuleError{Reason: "malformed", Message: "not JSON: something follows the value"}},
		{"number", `17`, telemetry.RuleError{Reason: "malformed", Message: "found number 17, want an object"}},
		{"null", `null`, telemetry.RuleError{Reason: "malformed", Message: "found null, want an object"}},
		{"not UTF-8", with(t, "D-7F3A", "\xff"), telemetry.RuleError{Reason: "malformed", Message: "not UTF-8 at byte 280"}},
		{"not UTF-8 in a name", with(t, "delivery_id", "\xff"), telemetry.RuleError{Reason: "malformed", Message: "not UTF-8 at byte 266"}},
		{"half a surrogate pair", with(t, "D-7F3A", `\ud800`), telemetry.RuleError{Reason: "malformed", Message: "escape of half a surrogate pair at byte 280"}},
		{"U+0000", with(t, "D-7F3A", `\u0000`), telemetry.RuleError{Reason: "malformed", Message: "escape of U+0000 at byte 280"}},
		{"wrong type, then not JSON", with(t, `"R-000017"`, `17`) + "}", telemetry.RuleError{Reason: "malformed", Message: "not JSON: something follows the value"}},
		{"wrong type, then more JSON", with(t, `"R-000017"`, `17`) + "{}", telemetry.RuleError{Reason: "malformed", Message: "not JSON: something follows the value"}},
		{"wrong type, then no JSON", with(t, `"R-000017","boot_id":`, `17,"boot_id"`), telemetry.RuleError{Reason: "malformed", Message: "not JSON: unexpected byte 34 '\"' at 24"}},
		{"repeated field", with(t, `"seq":48151`, `"seq":48151,"seq":48152`), telemetry.RuleError{Reason: "malformed", Field: "seq", Message: "found twice, want it once"}},
		{"repeated unknown field", with(t, `"seq":48151`, `"seq":48151,"a":1,"\u0061":2`), telemetry.RuleError{Reason: "malformed", Field: "a", Message: "found twice, want it once"}},
		{"deep", with(t, `"seq":48151`, `"seq":48151,"a":`+strings.Repeat("[", 32)+strings.Repeat("]", 32)), telemetry.RuleError{Reason: "malformed", Field: "a", Message: "nests deeper than 32 levels"}},
		{"string for integer", with(t, `48151`, `"48151"`), telemetry.RuleError{Reason: "wrong_type", Field: "seq", Message: `found string "48151", want an integer from 1 to 9007199254740991`}},
		{"fraction for integer", with(t, `48151`, `1.5`), telemetry.RuleError{Reason: "wrong_type", Field: "seq", Message: `found 1.5, want an integer from 1 to 9007199254740991`}},
		{"null for object", with(t, `{"percent":83.5,"charging":false}`, `null`), telemetry.RuleError{Reason: "wrong_type", Field: "battery", Message: `found null, want an object`}},
		{"array for number", with(t, `48.137154`, `[48]`), telemetry.RuleError{Reason: "wrong_type", Field: "position.lat_deg", Message: `found array, want a number of degrees from -90 to 90`}},
		{"missing field", with(t, `"seq":48151,`, ``), telemetry.RuleError{Reason: "missing_field", Field: "seq", Message: `missing, want an integer from 1 to 9007199254740991`}},
		{"missing nested field", with(t, `"lon_deg":11.576124,`, ``), telemetry.RuleError{Reason: "missing_field", Field: "position.lon_deg", Message: `missing, want a number of degrees from -180 to 180`}},
		{"many missing fields", `{"seq":1,"battery":{}}`, telemetry.RuleError{Reason: "missing_field", Field: "robot_id", Message: `missing, want ` + id + `; also missing: boot_id, time, position, battery.percent, battery.charging, status`}},
		{"fault without code", with(t, `"delivery_id"`, `"fault":{},"delivery_id"`), telemetry.RuleError{Reason: "missing_field", Field: "fault.code", Message: `missing, want a string of 1 to 64 capitals, digits or '_', the first a capital`}},
		{"status fault without fault", with(t, `delivering`, `fault`), telemetry.RuleError{Reason: "missing_field", Field: "fault", Message: `required while status is "fault"`}},
		{"out of range", with(t, `48.137154`, `91.5`), telemetry.RuleError{Reason: "out_of_range", Field: "position.lat_deg", Message: `found 91.5, want a number of degrees from -90 to 90`}},
		{"beyond doubles", with(t, `48.137154`, `1e400`), telemetry.RuleError{Reason: "out_of_range", Field: "position.lat_deg", Message: `found 1e400, want a number of degrees from -90 to 90`}},
		{"beyond doubles in unknown field", with(t, `"seq":48151`, `"seq":48151,"a":{"b":[1e400]}`), telemetry.RuleError{Reason: "out_of_range", Field: "a", Message: `found 1e400, want numbers within the range of IEEE 754 doubles`}},
		{"bad identifier", with(t, `R-000017`, `R/17`), telemetry.RuleError{Reason: "out_of_range", Field: "robot_id", Message: `found "R/17", want ` + id}},
		{"long identifier", with(t, `R-000017`, strings.Repeat("é", 65)), telemetry.RuleError{Reason: "out_of_range", Field: "robot_id", Message: `found "` + strings.Repeat("é", 32) + `…", want ` + id}},
		{"local time", with(t, `03.250Z`, `03.250+01:00`), telemetry.RuleError{Reason: "out_of_range", Field: "time", Message: `found "2026-11-23T11:19:03.250+01:00", want a string holding a time as in RFC 3339, in UTC, such as "2026-11-23T11:19:03.250Z"`}},
		{"unknown status", with(t, `delivering`, `flying`), telemetry.RuleError{Reason: "out_of_range", Field: "status", Message: `found "flying", want one of "idle", "delivering", "returning", "charging", "paused", "fault"`}},
		{"long string", with(t, `D-7F3A`, strings.Repeat("x", 129)), telemetry.RuleError{Reason: "out_of_range", Field: "delivery_id", Message: `found 129 characters, want a string of at most 128 characters`}},
		{"repeated unknown field in an object", with(t, `"lat_deg"`, `"alt_m":519,"lat_deg":0,"alt_m":520,"lat_deg"`), telemetry.RuleError{Reason: "malformed", Field: "position.alt_m", Message: "found twice, want it once"}},
		{"deep in an object", with(t, `"lat_deg"`, `"a":`+strings.Repeat("[", 31)+strings.Repeat("]", 31)+`,"lat_deg"`), telemetry.RuleError{Reason: "malformed", Field: "position.a", Message: "nests deeper than 32 levels"}},
		{"beyond doubles in unknown field of an object", with(t, `"lat_deg"`, `"a":-1e400,"lat_deg"`), telemetry.RuleError{Reason: "out_of_range", Field: "position.a", Message: `found -1e400, want numbers within the range of IEEE 754 doubles`}},
		{"too many fields", with(t, `"seq"`, numbered(56)+`"seq"`), telemetry.RuleError{Reason: "out_of_range", Message: `found more than 64 fields, want at most 64`}},
		{"too many fields in an object", with(t, `"percent"`, numbered(63)+`"percent"`), telemetry.RuleError{Reason: "out_of_range", Field: "battery", Message: `found more than 64 fields, want at most 64`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := telemetry.Decode([]byte(tt.text), new(telemetry.Reading))
			var got *telemetry.RuleError
			if !errors.As(err, &got) {
				t.Fatalf("Decode: got %v, want a *RuleError", err)
			}
			if diff := cmp.Diff(tt.want, *got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeAllocatesOnce(t *testing.T) {
	data := []byte(typical)
	var r telemetry.Reading
	got := testing.AllocsPerRun(1000, func() {
		if err := telemetry.Decode(data, &r); err != nil {
			t.Fatalf("Decode: %v", err)
		}
	})
	// The race detector makes sync.Pool drop some of what it is given.
	if got > 3 {
		t.Errorf("got %v allocations, want 1 (at most 3 under the race detector)", got)
	}
}

// step is what DecodeAny yields, and the seq of the reading.
type step struct {
	Text   string
	Seq    int64
	Reason telemetry.Reason
}

func steps(t *testing.T, body string) []step {
	t.Helper()
	var got []step
	var r telemetry.Reading
	for text, err := range telemetry.DecodeAny([]byte(body), &r) {
		s := step{Text: string(text)}
		var rule *telemetry.RuleError
		switch {
		case err == nil:
			s.Seq = r.Seq
		case errors.As(err, &rule):
			s.Reason = rule.Reason
		default:
			t.Fatalf("%q: got %v, want a *RuleError", text, err)
		}
		got = append(got, s)
	}
	return got
}

func TestDecodeAny(t *testing.T) {
	t.Parallel()
	second := with(t, "48151", "48152.0")
	bad := with(t, "48.137154", "148.137154")
	folded := strings.NewReplacer(`,"`, ",\r\n  \"", `:{`, ":\n{").Replace(typical)
	cut := "[" + typical + "," + typical[:20] + "]"
	for _, tt := range []struct {
		name string
		body string
		want []step
	}{
		{"a reading is yielded as it is", typical, []step{{Text: typical, Seq: 48151}}},
		{"white space around it is not part of it", "\r\n " + typical + "\t\n", []step{{Text: typical, Seq: 48151}}},
		{"one of several lines becomes one line", folded, []step{{Text: typical, Seq: 48151}}},
		{"white space within a line stays", with(t, ":", " : "), []step{{Text: with(t, ":", " : "), Seq: 48151}}},
		{"a refused one stays as it is", "{\n}", []step{{Text: "{\n}", Reason: telemetry.ReasonMissingField}}},
		{"an array is yielded one by one, numbers as they were spelt", "[ " + typical + " ,\n" + second + "\n]\n", []step{{Text: typical, Seq: 48151}, {Text: second, Seq: 48152}}},
		{"lines in an array become one each", "[" + folded + "," + folded + "]", []step{{Text: typical, Seq: 48151}, {Text: typical, Seq: 48151}}},
		{
			"a bad reading does not condemn its neighbours", "[" + bad + "," + typical + ", null ,[" + typical + "]," + second + "]",
			[]step{
				{Text: bad, Reason: telemetry.ReasonOutOfRange}, {Text: typical, Seq: 48151}, {Text: "null", Reason: telemetry.ReasonMalformed},
				{Text: "[" + typical + "]", Reason: telemetry.ReasonMalformed}, {Text: second, Seq: 48152},
			},
		},
		{"nor does one that is not UTF-8", "[" + with(t, "D-7F3A", "\xff") + "," + typical + "]", []step{{Text: with(t, "D-7F3A", "\xff"), Reason: telemetry.ReasonMalformed}, {Text: typical, Seq: 48151}}},
		{"an empty array holds nothing", " [ ] ", nil},
		{"an array that is not JSON is refused once, whole", cut, []step{{Text: cut, Reason: telemetry.ReasonMalformed}}},
		{"so is one cut short", "[" + typical, []step{{Text: "[" + typical, Reason: telemetry.ReasonMalformed}}},
		{"so is one that something follows", "[" + typical + "]]", []step{{Text: "[" + typical + "]]", Reason: telemetry.ReasonMalformed}}},
		{"so is one with a comma too many", "[" + typical + ",]", []step{{Text: "[" + typical + ",]", Reason: telemetry.ReasonMalformed}}},
		{"so is an empty body", "", []step{{Reason: telemetry.ReasonMalformed}}},
		{"a bracket alone is refused", "[", []step{{Text: "[", Reason: telemetry.ReasonMalformed}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, steps(t, tt.body)); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeAnyBoundsTheNumberOfReadings(t *testing.T) {
	t.Parallel()
	full := "[" + strings.Repeat("0,", telemetry.MaxReadings-1) + "0]"
	if got := len(steps(t, full)); got != telemetry.MaxReadings {
		t.Errorf("full array: got %d steps, want %d", got, telemetry.MaxReadings)
	}
	tooMany := "[0," + full[1:]
	if diff := cmp.Diff([]step{{Text: tooMany, Reason: telemetry.ReasonOutOfRange}}, steps(t, tooMany)); diff != "" {
		t.Errorf("one too many: steps (-want +got):\n%s", diff)
	}
}

func TestDecodeAnyStopsWhenAsked(t *testing.T) {
	t.Parallel()
	n := 0
	for _, err := range telemetry.DecodeAny([]byte("["+typical+","+typical+"]"), new(telemetry.Reading)) {
		if err != nil {
			t.Fatalf("DecodeAny: %v", err)
		}
		n++
		break
	}
	if n != 1 {
		t.Errorf("got %d steps, want 1", n)
	}
}

// FuzzDecodeAny compares with encoding/json: the same elements, each judged as Decode judges it, the good ones in one line.
func FuzzDecodeAny(f *testing.F) {
	for _, body := range []string{
		typical, "[" + typical + "," + typical + "]", "[\n" + typical + " ,\t1, null,\"a\\\"]\",[[]]\r]", "[]", "[", "[1,]", "[1]]", "", " ", "{}\n", "[{},\xff]", "[-,1]",
		strings.ReplaceAll(typical, ",", ",\r\n"),
		"[" + strings.ReplaceAll(typical, "{", "{\n\"new\": {\"a\" :[ 1.0 ]},") + "]",
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		want := []json.RawMessage{bytes.Trim(body, " \t\r\n")}
		var elements []json.RawMessage
		if text := want[0]; len(text) > 0 && text[0] == '[' && json.Unmarshal(text, &elements) == nil && len(elements) <= telemetry.MaxReadings {
			want = elements
		} else if len(text) > 0 && text[0] == '[' {
			want[0] = body
		}
		var r, alone telemetry.Reading
		i := 0
		for text, err := range telemetry.DecodeAny(body, &r) {
			if i == len(want) {
				t.Fatalf("%q: more than %d steps", body, len(want))
			}
			if err != nil && !bytes.Equal(text, want[i]) {
				t.Fatalf("%q: step %d: got text %q, want %q", body, i, text, want[i])
			}
			if wantErr := telemetry.Decode(want[i], &alone); (err == nil) != (wantErr == nil) {
				t.Fatalf("%q: step %d: got %v, want %v", body, i, err, wantErr)
			}
			if err == nil {
				if bytes.ContainsAny(text, "\r\n") {
					t.Fatalf("%q: step %d: text %q is not one line", body, i, text)
				}
				if diff := cmp.Diff(alone, r); diff != "" {
					t.Fatalf("%q: step %d: reading (-alone +here):\n%s", body, i, diff)
				}
				if err := telemetry.Decode(text, &alone); err != nil || !cmp.Equal(alone, r) {
					t.Fatalf("%q: step %d: text %q does not hold the reading (%v)", body, i, text, err)
				}
			}
			i++
		}
		if i != len(want) {
			t.Fatalf("%q: got %d steps, want %d", body, i, len(want))
		}
	})
}

func TestCheckTimeComparesWithTheMomentOfPublishing(t *testing.T) {
	t.Parallel()
	published := time.Date(2026, 11, 23, 12, 0, 0, 0, time.FixedZone("", 3600))
	for _, tt := range []struct {
		name string
		time time.Time
		want string
	}{
		{"now", published, ""},
		{"as old as may be", published.Add(-telemetry.MaxAge), ""},
		{"too old", published.Add(-telemetry.MaxAge - 1).UTC(), "too_old: time: found 2026-10-23T10:59:59.999999999Z, want at most 31 days before it was published, which was 2026-11-23T11:00:00Z"},
		{"as early as can be written", time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), "too_old: time: found 0001-01-01T00:00:00Z, want at most 31 days before it was published, which was 2026-11-23T11:00:00Z"},
		{"as fast as may be", published.Add(telemetry.MaxSkew), ""},
		{"too fast", published.Add(telemetry.MaxSkew + 1).UTC(), "in_future: time: found 2026-11-23T12:00:00.000000001Z, want at most 1 hour after it was published, which was 2026-11-23T11:00:00Z"},
		{"as late as can be written", time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "in_future: time: found 9999-12-31T23:59:59Z, want at most 1 hour after it was published, which was 2026-11-23T11:00:00Z"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := ""
			if err := telemetry.CheckTime(&telemetry.Reading{Time: tt.time}, published); err != nil {
				var rule *telemetry.RuleError
				if !errors.As(err, &rule) {
					t.Fatalf("got %v, want a *RuleError", err)
				}
				got = string(rule.Reason) + ": " + rule.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSchemaHolds(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t)
	if got, want := schema.DraftVersion, 2020; got != want {
		t.Errorf("got draft %d, want %d", got, want)
	}
}
