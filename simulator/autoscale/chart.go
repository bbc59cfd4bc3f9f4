package autoscale

import (
	"fmt"
	"strconv"
	"time"
)

// panel is curves over the same time that are measured in the same unit.
type panel struct {
	title  string
	unit   string
	curves []curve
}

// curve is one value per second.
type curve struct {
	name   string
	run    int // 0 the manifests, 1 the changes, observedRun what was seen on a cluster
	faint  bool
	values []float64
}

// observedRun is the run of a curve that was not predicted.
const observedRun = 2

// runNames are the names of the runs in pictures and tables.
func runNames(runs []Run) []string {
	names := []string{"manifests"}
	if len(runs) > 1 {
		names = append(names, "changed")
	}
	return names
}

// panels are the pictures of the stage at index i of each run.
func panels(report Report, i int) []panel {
	names := runNames(report.Runs)
	several := len(names) > 1 || len(report.Observed) > 0
	values := func(run int, value func(Sample) float64) []float64 {
		var all []float64
		for _, s := range report.Runs[run].Results[i].Samples {
			all = append(all, value(s))
		}
		return all
	}
	var all []panel
	type part struct {
		name  string
		faint bool
		value func(Sample) float64
	}
	add := func(title, unit string, parts ...part) {
		p := panel{title: title, unit: unit}
		for run := range report.Runs {
			for _, part := range parts {
				name := part.name
				if several {
					name += ", " + names[run]
				}
				p.curves = append(p.curves, curve{name: name, run: run, faint: part.faint, values: values(run, part.value)})
			}
		}
		all = append(all, p)
	}
	add("Messages", "/s",
		part{"published", true, func(s Sample) float64 { return float64(s.Published) }},
		part{"served", false, func(s Sample) float64 { return float64(s.Served) }})
	add("Pods", "",
		part{"wanted", true, func(s Sample) float64 { return float64(s.Wanted) }},
		part{"ready", false, func(s Sample) float64 { return float64(s.Ready) }})
	if len(report.Observed) > 0 {
		var wanted, ready []float64
		for _, s := range report.Runs[0].Results[i].Samples {
			at := len(report.Observed) - 1
			for at > 0 && report.Observed[at].Seconds > float64(s.Second) {
				at--
			}
			wanted = append(wanted, float64(report.Observed[at].Wanted))
			ready = append(ready, float64(report.Observed[at].Ready))
		}
		pods := &all[len(all)-1]
		pods.curves = append(pods.curves,
			curve{name: "wanted, observed", run: observedRun, faint: true, values: wanted},
			curve{name: "ready, observed", run: observedRun, values: ready})
	}
	add("Requests in containers", "", part{"in flight", false, func(s Sample) float64 { return float64(s.InFlight) }})
	add("Requests in activator and queue-proxy", "", part{"queued", false, func(s Sample) float64 { return float64(s.Queued) }})
	add("Messages kept by Pub/Sub", "", part{"backlog", false, func(s Sample) float64 { return float64(s.Backlog) }})
	add("Pushes refused or late", "/s", part{"shed", false, func(s Sample) float64 { return float64(s.Shed + s.Expired) }})
	add("Publish to ack, p95", " s", part{"p95", false, func(s Sample) float64 { return s.P95 }})
	return all
}

// most is the highest value of a panel.
func (p panel) most() float64 {
	most := 0.0
	for _, c := range p.curves {
		for _, v := range c.values {
			most = max(most, v)
		}
	}
	return most
}

// columns sums values up to n columns at the most, each the highest value of its seconds: a peak must not get lost.
func columns(values []float64, n int) []float64 {
	if len(values) <= n {
		return values
	}
	all := make([]float64, n)
	for i, v := range values {
		at := i * n / len(values)
		all[at] = max(all[at], v)
	}
	return all
}

// figure is a number for people: 12,345 or 1.23.
func figure(v float64) string {
	if v != 0 && v < 100 && v != float64(int(v)) {
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	digits := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// moment is a time since the start of a replay, or "never".
func moment(seconds *float64) string {
	if seconds == nil {
		return "never"
	}
	return figure(float64(int(*seconds*10+0.5))/10) + " s"
}

// length is a duration without the zeros of its smaller units.
func length(d time.Duration) string {
	if d%time.Minute == 0 && d > 0 {
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%g s", d.Seconds())
}
