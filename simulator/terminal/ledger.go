package terminal

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxMissing is how many of the missing events are printed; all of them are in the report file.
const maxMissing = 10

// ledger is the account, in lines for the given width in columns. Identifiers and notes are whole, even where they take more.
func ledger(v LedgerView, width int) []line {
	lines := []line{nil, justified(line{{"Ledger", bold}}, line{{v.Title, dim}}, width)}
	labels, values := 0, 0 // the same columns in all sections
	for _, section := range v.Sections {
		for _, row := range section.Rows {
			labels = max(labels, utf8.RuneCountInString(row.Label))
			values = max(values, utf8.RuneCountInString(row.Value))
		}
	}
	for _, section := range v.Sections {
		lines = append(lines, rule(section.Title, width))
		for _, row := range section.Rows {
			lines = append(lines, ledgerRow(row, labels, values, width)...)
		}
	}
	if len(v.Stages) > 0 {
		lines = append(lines, rule("Stages", width))
		lines = append(lines, usages(v.Stages, width)...)
	}
	lines = append(lines, rule("", width))
	if v.OK {
		return append(lines, line{{"✓ " + v.Verdict, green}})
	}
	lines = append(lines, line{{"✗ " + v.Verdict, red}})
	return append(lines, missing(v.Missing)...)
}

func ledgerRow(row Row, labels, values, width int) []line {
	const gap = 3
	value := bold
	if row.Bad {
		value = red
	}
	noteColumn := labels + gap + values + gap
	notes := wrap(row.Note, width-noteColumn)
	lines := []line{{
		{row.Label + strings.Repeat(" ", labels-utf8.RuneCountInString(row.Label)), plain},
		{strings.Repeat(" ", gap+values-utf8.RuneCountInString(row.Value)), plain},
		{row.Value, value},
		{strings.Repeat(" ", gap) + notes[0], dim},
	}}
	for _, note := range notes[1:] {
		lines = append(lines, line{{strings.Repeat(" ", noteColumn) + note, dim}})
	}
	return lines
}

func usages(stages []StageUsage, width int) []line {
	rows := make([][]span, len(stages))
	for i, s := range stages {
		rows[i] = []span{
			{s.Name, plain}, {strconv.FormatFloat(s.CPU.Seconds(), 'f', 1, 64) + " s", bold}, {Bytes(s.RSS), bold}, {Bytes(s.PeakRSS), bold},
			{Count(int64(s.Restarts)), plain},
		}
	}
	return table([]column{
		{title: "stage", width: 16, left: true}, {title: "cpu", width: 9}, {title: "memory", width: 9}, {title: "peak", width: 9}, {title: "restarts"},
	}, rows, width)
}

func missing(events []MissingEvent) []line {
	ids := 0
	shown := events[:min(len(events), maxMissing)]
	for _, e := range shown {
		ids = max(ids, utf8.RuneCountInString(e.ID))
	}
	var lines []line
	for _, e := range shown {
		lines = append(lines, line{
			{"  " + e.ID + strings.Repeat(" ", ids-utf8.RuneCountInString(e.ID)), plain}, {"   " + e.LastSeen, dim},
		})
	}
	if more := len(events) - len(shown); more > 0 {
		lines = append(lines, line{{fmt.Sprintf("  and %s more", Count(int64(more))), dim}})
	}
	return lines
}
