package terminal

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// maxMessages is how many of the last messages a frame shows.
const maxMessages = 4

// frame is the live view, in lines for the given width in columns.
func frame(s Snapshot, width int) []line {
	lines := []line{
		justified(line{{"RoboFleet", bold}, {"  ", plain}, phase(s.Phase)}, times(s), width),
		rule("", width),
	}
	lines = append(lines, readings(s, width)...)
	lines = append(lines, nil, rate(s, width))
	lines = append(lines, labelled("latency", []line{
		figure("p50", Milliseconds(s.Latency.P50)), figure("p95", Milliseconds(s.Latency.P95)), figure("p99", Milliseconds(s.Latency.P99)),
	}, width)...)
	lines = append(lines, labelled("in flight", figures(s.Backlog), width)...)
	lines = append(lines, labelled("robots", figures(s.Robots), width)...)
	if len(s.Stages) > 0 {
		lines = append(lines, rule("", width))
		lines = append(lines, stages(s.Stages, width)...)
	}
	if len(s.Messages) > 0 {
		lines = append(lines, rule("", width))
		for _, m := range s.Messages[max(0, len(s.Messages)-maxMessages):] {
			lines = append(lines, message(m))
		}
	}
	return lines
}

func phase(name string) span {
	colour := yellow
	if name == "running" || name == "done" {
		colour = green
	}
	return span{"● " + name, colour}
}

func times(s Snapshot) line {
	l := line{{clock(s.Elapsed), bold}, {" elapsed", dim}}
	if s.Remaining >= 0 {
		l = append(l, span{"   ", plain}, span{clock(s.Remaining), bold}, span{" left", dim})
	}
	return l
}

// readings is the way of a reading, as a table of one row.
func readings(s Snapshot, width int) []line {
	return table([]column{
		{title: "measured", width: 11, left: true}, {title: "sent", width: 11, left: true}, {title: "rows", width: 11, left: true},
		{title: "objects", width: 9, left: true}, {title: "rejected", left: true}, {title: "dead-lettered", left: true},
	}, [][]span{{
		{Count(s.Measured), bold}, {Count(s.Sent), bold}, {Count(s.Rows), bold},
		{Count(s.Objects), bold}, nonZero(s.Rejected, yellow), nonZero(s.DeadLettered, red),
	}}, width)
}

// nonZero warns with a colour when there is something to warn about.
func nonZero(n int64, warning style) span {
	if n == 0 {
		return span{"0", bold}
	}
	return span{Count(n), warning}
}

func rate(s Snapshot, width int) line {
	const minute = 60
	now := Rate(s.Rate)
	target := ""
	if s.TargetRate > 0 {
		target = " of " + Rate(s.TargetRate)
	}
	l := labelled("rate", []line{{{now, bold}, {target, dim}}}, width)[0]
	const graphColumn = 36 // wide enough for six digits each; the graph stands still while the numbers change
	l = append(l, span{strings.Repeat(" ", max(2, graphColumn-l.width())), plain})
	return append(l, span{sparkline(s.Rates, s.TargetRate, min(minute, width-l.width())), cyan})
}

func figure(name, value string) line { return line{{name + " ", dim}, {value, plain}} }

func figures(counts []Figure) []line {
	lines := make([]line, len(counts))
	for i, c := range counts {
		lines[i] = figure(c.Name, Count(c.N))
	}
	return lines
}

func stages(stages []Stage, width int) []line {
	rows := make([][]span, len(stages))
	for i, s := range stages {
		pid, state := strconv.Itoa(s.PID), span{"ready", green}
		switch {
		case s.PID == 0:
			pid, state = "–", span{"down", red}
		case !s.Ready:
			state = span{"starting", yellow}
		}
		restarts := nonZero(int64(s.Restarts), yellow)
		if s.Restarts == 0 {
			restarts.style = plain
		}
		rows[i] = []span{
			{s.Name, bold}, {pid, plain}, restarts, {percent(s.CPUPercent), plain}, {Bytes(s.RSS), plain}, state,
		}
	}
	return table([]column{
		{title: "stage", width: 16, left: true}, {title: "pid", width: 7}, {title: "restarts"}, {title: "cpu", width: 5},
		{title: "memory", width: 7}, {title: "state", width: 8, left: true},
	}, rows, width)
}

func percent(p float64) string { return strconv.Itoa(int(math.Round(p))) + "%" }

func message(m Message) line {
	return line{{m.Time.Format(time.TimeOnly) + "  ", dim}, {m.Text, plain}}
}

// summary is the live view as one line of plain text, for logs.
func summary(s Snapshot) string {
	inFlight := int64(0)
	for _, c := range s.Backlog {
		inFlight += c.N
	}
	ready := 0
	for _, stage := range s.Stages {
		if stage.Ready {
			ready++
		}
	}
	return fmt.Sprintf("%s %s  measured %s  sent %s  in flight %s  rows %s  objects %s  rejected %s  dead-lettered %s  "+
		"rate %s  p50 %s  p95 %s  p99 %s  stages ready %d/%d",
		clock(s.Elapsed), s.Phase, Count(s.Measured), Count(s.Sent), Count(inFlight), Count(s.Rows), Count(s.Objects), Count(s.Rejected),
		Count(s.DeadLettered), Rate(s.Rate), Milliseconds(s.Latency.P50), Milliseconds(s.Latency.P95), Milliseconds(s.Latency.P99),
		ready, len(s.Stages))
}
