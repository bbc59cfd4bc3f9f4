package coldarchive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
)

func hourOf(year int, month time.Month, day, hour int) time.Time {
	return time.Date(year, month, day, hour, 0, 0, 0, time.UTC)
}

func TestNamesTellKindAndHour(t *testing.T) {
	for _, kind := range []Kind{KindTelemetry, KindRejected, KindCommand, KindDeadLetter, KindOther} {
		for _, hour := range []time.Time{hourOf(2026, 11, 23, 11), hourOf(1, 1, 1, 0), hourOf(9999, 12, 31, 23)} {
			name, _, err := pack(partition{kind, hour}, []line{{[]byte("{}"), hour.Add(time.Minute)}}, "pod-1")
			if err != nil {
				t.Fatal(err)
			}
			gotKind, gotHour, ok := ParseName(name)
			if !ok || gotKind != kind || !gotHour.Equal(hour) {
				t.Errorf("ParseName(%q) = %s, %v, %t, want %s, %v", name, gotKind, gotHour, ok, kind, hour)
			}
			if !strings.HasPrefix(name, Prefix(kind, hour)) {
				t.Errorf("name %q does not begin with %q", name, Prefix(kind, hour))
			}
		}
	}
}

func TestParseNameRefusesOtherNames(t *testing.T) {
	for _, name := range []string{
		"", "telemetry/", "telemetry/dt=2026-11-23/hour=11/", "telemetry/dt=2026-11-23/hour=11/x.json", "x.ndjson.gz",
		"telemetry/dt=2026-13-23/hour=11/x.ndjson.gz", "telemetry/dt=2026-11-23/hour=24/x.ndjson.gz",
		"a/telemetry/dt=2026-11-23/hour=11/x.ndjson.gz", "/dt=2026-11-23/hour=11/x.ndjson.gz",
	} {
		if kind, hour, ok := ParseName(name); ok {
			t.Errorf("ParseName(%q) = %q, %v, want not ok", name, kind, hour)
		}
	}
}

func packed(t testing.TB, lines ...string) []byte {
	t.Helper()
	var all []line
	for _, l := range lines {
		all = append(all, line{[]byte(l), hourOf(2026, 11, 23, 11)})
	}
	_, content, err := pack(partition{KindTelemetry, hourOf(2026, 11, 23, 11)}, all, "w")
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestLinesReadsWhatWasPacked(t *testing.T) {
	want := []string{`{"id":"1"}`, "", `{"id":"` + strings.Repeat("x", 1<<20) + `"}`}
	// Objects that were put together by Cloud Storage ("compose") or by cat are read like one.
	content := append(packed(t, want...), packed(t, want...)...)
	var got []string
	err := Lines(bytes.NewReader(content), func(line []byte) error {
		got = append(got, string(line))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append(want, want...), got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestLinesReturnsTheErrorOfItsCaller(t *testing.T) {
	stop := errors.New("stop")
	n := 0
	err := Lines(bytes.NewReader(packed(t, "1", "2", "3")), func([]byte) error { n++; return stop })
	if !errors.Is(err, stop) || n != 1 {
		t.Errorf("Lines = %v after %d lines, want %v after 1", err, n, stop)
	}
}

func TestLinesNeverYieldsAPartOfALine(t *testing.T) {
	var lines []string
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf(`{"id":"%d","x":"%x"}`, i, i*7919))
	}
	whole := packed(t, lines...)
	unended := new(bytes.Buffer)
	gz := gzip.NewWriter(unended)
	_, _ = io.WriteString(gz, strings.Join(lines, "\n"))
	_ = gz.Close()
	for _, tt := range []struct {
		name    string
		content []byte
	}{
		{"empty", nil},
		{"not gzip", []byte("{}\n{}\n")},
		{"half of an object", whole[:len(whole)/2]},
		{"without its last byte", whole[:len(whole)-1]},
		{"a bit flipped", flip(whole, len(whole)-5)},
		{"last line without its end", unended.Bytes()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			err := Lines(bytes.NewReader(tt.content), func(line []byte) error {
				if string(line) != lines[n] {
					t.Errorf("line %d is %q, want %q", n, line, lines[n])
				}
				n++
				return nil
			})
			if err == nil {
				t.Error("Lines = nil, want an error")
			}
		})
	}
}

func flip(content []byte, i int) []byte {
	flipped := bytes.Clone(content)
	flipped[i] ^= 1
	return flipped
}

func FuzzLines(f *testing.F) {
	f.Add(packed(f, "{}", `{"id":1}`))
	f.Add(packed(f, "{}")[:12])
	f.Add([]byte("not gzip"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		_ = Lines(bytes.NewReader(content), func(line []byte) error {
			if bytes.IndexByte(line, '\n') >= 0 {
				t.Errorf("line %q has a line break", line)
			}
			return nil
		})
	})
}

func FuzzParseName(f *testing.F) {
	f.Add("telemetry/dt=2026-11-23/hour=11/w-20261123T111903.250Z-0123456789abcdef.ndjson.gz")
	f.Add("dead-letter/dt=0001-01-01/hour=00/.ndjson.gz")
	f.Add("//.ndjson.gz")
	f.Fuzz(func(t *testing.T, name string) {
		kind, hour, ok := ParseName(name)
		if ok && !strings.HasPrefix(name, Prefix(kind, hour)) {
			t.Errorf("ParseName(%q) = %q, %v, but names of those begin with %q", name, kind, hour, Prefix(kind, hour))
		}
	})
}
