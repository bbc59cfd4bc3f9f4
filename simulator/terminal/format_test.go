package terminal

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFormats(t *testing.T) {
	tests := []struct {
		name, got, want string
	}{
		{"zero", Count(0), "0"},
		{"no separator below a thousand", Count(999), "999"},
		{"a separator each three digits", Count(1234567), "1,234,567"},
		{"negative", Count(-123456), "-123,456"},
		{"the least number", Count(math.MinInt64), "-9,223,372,036,854,775,808"},
		{"no rate", Rate(0), "0/s"},
		{"a slow rate has a decimal", Rate(2.5), "2.5/s"},
		{"a rate next to ten has none", Rate(9.96), "10/s"},
		{"a fast rate", Rate(4998.4), "4,998/s"},
		{"an unknown latency", Milliseconds(0), "–"},
		{"a short latency has a decimal", Milliseconds(3210 * time.Microsecond), "3.2 ms"},
		{"a latency", Milliseconds(84400 * time.Microsecond), "84 ms"},
		{"a long latency stays in milliseconds", Milliseconds(12345 * time.Millisecond), "12,345 ms"},
		{"an unknown size", Bytes(0), "–"},
		{"kilobytes", Bytes(640_000), "640 kB"},
		{"rounded up to a megabyte", Bytes(999_600), "1 MB"},
		{"megabytes", Bytes(34_200_000), "34 MB"},
		{"gigabytes", Bytes(1_250_000_000), "1.2 GB"},
		{"seconds", clock(5900 * time.Millisecond), "0:05"},
		{"minutes", clock(725 * time.Second), "12:05"},
		{"hours", clock(26*time.Hour + 61*time.Second), "26:01:01"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.got != test.want {
				t.Errorf("got %q, want %q", test.got, test.want)
			}
		})
	}
}

func TestSparkline(t *testing.T) {
	tests := []struct {
		name   string
		values []float64
		scale  float64
		width  int
		want   string
	}{
		{"nothing yet", nil, 10, 5, ""},
		{"from a blank to a full bar", []float64{0, 1, 2, 3, 4, 5, 6, 7, 8}, 8, 9, " ▁▂▃▄▅▆▇█"},
		{"above the scale the highest is full", []float64{8, 16}, 8, 5, "▄█"},
		{"the last ones that fit", []float64{8, 8, 1, 2}, 8, 2, "▁▂"},
		{"no room", []float64{8}, 8, -3, ""},
		{"all zero without a scale", []float64{0, 0}, 0, 5, "  "},
		{"no numbers", []float64{math.NaN(), -1, 8}, 8, 5, "  █"},
		{"infinite", []float64{1, math.Inf(1)}, 8, 5, "  "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, sparkline(test.values, test.scale, test.width)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
