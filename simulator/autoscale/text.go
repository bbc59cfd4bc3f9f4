package autoscale

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// sparkWidth is the columns of a sparkline, so that a line with its name and its peak fits into 120.
const sparkWidth = 76

// WriteText writes the report for a terminal: for each stage the totals and sparklines, and with parameters the numbers of
// its model and where they come from.
func WriteText(w io.Writer, report Report, parameters bool) error {
	out := bufio.NewWriter(w)
	for i := range report.Runs[0].Results {
		if i > 0 {
			line(out, "")
		}
		stageText(out, report, i)
		if parameters {
			line(out, "")
			table(out, parameterRows(report.Runs[0].Results[i].Parameters))
		}
	}
	if report.Deviation != nil {
		line(out, "")
		deviationText(out, *report.Deviation)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// line writes a line; bufio keeps its error for Flush.
func line(out *bufio.Writer, text string) {
	_, _ = out.WriteString(strings.TrimRight(text, " ") + "\n")
}

func stageText(out *bufio.Writer, report Report, i int) {
	line(out, fmt.Sprintf("%s: %s, %s", report.Runs[0].Results[i].Stage, report.Profile, length(report.Duration)))
	if len(report.Runs) > 1 {
		line(out, "changed: "+strings.Join(report.Runs[1].Changes, " "))
	}
	line(out, "")

	rows := [][]string{{""}}
	if names := runNames(report.Runs); len(names) > 1 {
		rows[0] = append(rows[0], names...)
	} else {
		rows = nil
	}
	add := func(name string, value func(Totals) string) {
		row := []string{name}
		for _, run := range report.Runs {
			row = append(row, value(run.Results[i].Totals))
		}
		rows = append(rows, row)
	}
	add("messages: published, served, left", func(t Totals) string {
		return fmt.Sprintf("%s, %s, %s", figure(float64(t.Published)), figure(float64(t.Served)), figure(float64(t.Left)))
	})
	add("pushes: shed, late", func(t Totals) string { return figure(float64(t.Shed)) + ", " + figure(float64(t.Expired)) })
	add("publish to ack: p50, p95, p99, max", func(t Totals) string {
		return fmt.Sprintf("%s, %s, %s, %s s", figure(t.P50), figure(t.P95), figure(t.P99), figure(t.Max))
	})
	add("most queued, most kept by Pub/Sub", func(t Totals) string {
		return figure(float64(t.MaxQueued)) + ", " + figure(float64(t.MaxBacklog))
	})
	add("pods: most ready, started", func(t Totals) string { return fmt.Sprintf("%d, %d", t.MaxReady, t.Starts) })
	add("first pod ready, none wanted since", func(t Totals) string { return moment(t.FirstReady) + ", " + moment(t.Zero) })
	add("panic mode", func(t Totals) string { return length(time.Duration(t.PanicTime) * time.Second) })
	add("pod-hours", func(t Totals) string { return fmt.Sprintf("%.3f", t.PodHours) })
	table(out, rows)
	line(out, "")

	for _, p := range panels(report, i) {
		if p.most() == 0 {
			continue
		}
		most := p.most()
		line(out, fmt.Sprintf("%s (peak %s%s)", p.title, figure(most), p.unit))
		for _, c := range p.curves {
			line(out, fmt.Sprintf("  %-18s %s", c.name, sparkline(c.values, most)))
		}
	}
}

// sparkline draws values between 0 and most. Zero is a blank, so that what is not there is not drawn.
func sparkline(values []float64, most float64) string {
	const blocks = "▁▂▃▄▅▆▇█"
	levels := []rune(blocks)
	var b strings.Builder
	for _, v := range columns(values, sparkWidth) {
		if v <= 0 || most <= 0 {
			b.WriteByte(' ')
			continue
		}
		b.WriteRune(levels[min(int(v/most*float64(len(levels))), len(levels)-1)])
	}
	return b.String()
}

func deviationText(out *bufio.Writer, d Deviation) {
	line(out, fmt.Sprintf("predicted against observed, over %d s:", d.Seconds))
	row := func(name string, p Pair) []string {
		difference := ""
		if p.Predicted != nil && p.Observed != nil {
			difference = fmt.Sprintf("%+.4g", *p.Predicted-*p.Observed)
		}
		text := func(v *float64) string {
			if v == nil {
				return "never"
			}
			return figure(*v)
		}
		return []string{name, text(p.Predicted), text(p.Observed), difference}
	}
	table(out, [][]string{
		{"", "predicted", "observed", "difference"},
		row("most pods ready", d.MostReady),
		row("first pod ready, s", d.FirstReady),
		row("none ready since, s", d.Zero),
	})
	line(out, fmt.Sprintf("mean absolute error: %.2f pods wanted, %.2f pods ready", d.MeanWanted, d.MeanReady))
}

func parameterRows(parameters []Parameter) [][]string {
	rows := [][]string{{"model", "", "from"}}
	for _, p := range parameters {
		rows = append(rows, []string{p.Name, p.Value, p.Source})
	}
	return rows
}

// table writes rows with columns as wide as they need.
func table(out *bufio.Writer, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
		line(out, b.String())
	}
}
