package terminal

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// style is a Select Graphic Rendition parameter (ECMA-48, 8.3.117); all are of the 16 colours, which follow the user's theme.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// span is a piece of a line in one style.
type span struct {
	text  string
	style style
}

// line is one line of output before it is cut to the width and coloured.
type line []span

// width is in columns; every rune used here takes one.
func (l line) width() int {
	n := 0
	for _, s := range l {
		n += utf8.RuneCountInString(s.text)
	}
	return n
}

// render cuts the line to width columns, and replaces control characters: some texts come from other processes.
func (l line) render(width int, colour bool) string {
	var out strings.Builder
	cut := l.width() > width
	left := width
	if cut {
		left-- // for the ellipsis
	}
	for _, s := range l {
		runes := []rune(strings.Map(printable, s.text))
		runes = runes[:min(len(runes), max(0, left))]
		left -= len(runes)
		if len(runes) == 0 {
			continue
		}
		if colour && s.style != plain {
			out.WriteString("\x1b[" + string(s.style) + "m" + string(runes) + "\x1b[0m")
		} else {
			out.WriteString(string(runes))
		}
	}
	if cut && width > 0 {
		out.WriteString("…")
	}
	return strings.TrimRight(out.String(), " ")
}

func printable(r rune) rune {
	if unicode.IsControl(r) {
		return '?'
	}
	return r
}

// rule is a thin line over the width, with an optional heading in it.
func rule(heading string, width int) line {
	if heading == "" {
		return line{{strings.Repeat("─", max(0, width)), dim}}
	}
	rest := width - utf8.RuneCountInString(heading) - 4
	return line{{"── ", dim}, {heading, bold}, {" " + strings.Repeat("─", max(0, rest)), dim}}
}

// justified puts left and right at the ends of the width.
func justified(left, right line, width int) line {
	gap := max(2, width-left.width()-right.width())
	return append(append(left, span{strings.Repeat(" ", gap), plain}), right...)
}

// column is one column of a table.
type column struct {
	title string
	width int  // at least, so that growing numbers do not move the columns; the content may widen it
	left  bool // aligned left instead of right
}

// table lays out rows below the titles. The space that is left goes between the columns, up to maxGap.
func table(columns []column, rows [][]span, width int) []line {
	const minGap, maxGap = 1, 6
	widths := make([]int, len(columns))
	total := 0
	for i, c := range columns {
		widths[i] = max(c.width, utf8.RuneCountInString(c.title))
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
		total += widths[i]
	}
	gap := minGap
	if len(columns) > 1 {
		gap = min(max((width-total)/(len(columns)-1), minGap), maxGap)
	}
	titles := make([]span, len(columns))
	for i, c := range columns {
		titles[i] = span{c.title, dim}
	}
	lines := make([]line, 0, len(rows)+1)
	for _, row := range append([][]span{titles}, rows...) {
		var l line
		for i, cell := range row {
			if i > 0 {
				l = append(l, span{strings.Repeat(" ", gap), plain})
			}
			padding := span{strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell.text)), plain}
			if columns[i].left {
				l = append(l, cell, padding)
			} else {
				l = append(l, padding, cell)
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// wrap breaks s between words into pieces of at most width columns; a longer word stays whole.
func wrap(s string, width int) []string {
	var pieces []string
	piece := ""
	for _, word := range strings.Fields(s) {
		if piece != "" && utf8.RuneCountInString(piece)+1+utf8.RuneCountInString(word) > width {
			pieces = append(pieces, piece)
			piece = ""
		}
		if piece != "" {
			piece += " "
		}
		piece += word
	}
	return append(pieces, piece)
}

// labelled puts items after a label, in as many lines as the width needs.
func labelled(label string, items []line, width int) []line {
	const indent, gap = 12, 3
	blank := strings.Repeat(" ", indent)
	first := line{{label + blank[min(len(label), indent):], dim}}
	lines := []line{first}
	for _, item := range items {
		last := &lines[len(lines)-1]
		switch {
		case last.width() == indent:
			*last = append(*last, item...)
		case last.width()+gap+item.width() > width:
			lines = append(lines, append(line{{blank, plain}}, item...))
		default:
			*last = append(append(*last, span{strings.Repeat(" ", gap), plain}), item...)
		}
	}
	return lines
}
