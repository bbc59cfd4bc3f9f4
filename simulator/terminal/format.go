package terminal

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Count formats n with thousands separators: 1,234,567.
func Count(n int64) string {
	digits := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// Rate formats readings per second, with one decimal below 10: 4,998/s, 2.5/s.
func Rate(perSecond float64) string {
	if perSecond > 0 && perSecond < 9.95 {
		return strconv.FormatFloat(perSecond, 'f', 1, 64) + "/s"
	}
	return Count(int64(math.Round(perSecond))) + "/s"
}

// Milliseconds formats a latency: 84 ms, 12,345 ms, and with one decimal below 10: 3.2 ms. Zero is not known: –.
func Milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case d == 0:
		return "–"
	case ms < 9.95:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	default:
		return Count(int64(math.Round(ms))) + " ms"
	}
}

// Bytes formats a size in decimal units with three digits at most after kB: 640 kB, 34 MB, 1.2 GB. Zero is not known: –.
func Bytes(n uint64) string {
	switch {
	case n == 0:
		return "–"
	case n < 999_500:
		return fmt.Sprintf("%d kB", (n+500)/1000)
	case n < 999_500_000:
		return fmt.Sprintf("%d MB", (n+500_000)/1_000_000)
	default:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	}
}

// clock formats a duration as on a stopwatch: 0:32, 12:05, 1:00:00.
func clock(d time.Duration) string {
	seconds := int64(d / time.Second)
	if seconds < 3600 {
		return fmt.Sprintf("%d:%02d", seconds/60, seconds%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60)
}

// sparkline draws the last values, at most width of them, from 0 to the greater of scale and the highest. 0 is blank.
func sparkline(values []float64, scale float64, width int) string {
	const bars = "▁▂▃▄▅▆▇█"
	values = values[max(0, len(values)-max(0, width)):]
	for _, v := range values {
		scale = max(scale, v)
	}
	var line strings.Builder
	for _, v := range values {
		if !(v > 0) || math.IsInf(scale, 0) {
			line.WriteByte(' ')
			continue
		}
		bar := int(math.Ceil(v/scale*8)) - 1
		line.WriteRune([]rune(bars)[min(max(bar, 0), 7)])
	}
	return line.String()
}
