package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

const (
	liveInterval  = 400 * time.Millisecond
	plainInterval = 10 * time.Second

	defaultWidth = 80 // columns of output that is no terminal
	maxWidth     = 120
	minWidth     = 40 // below, lines are cut at the edge anyway

	uncut = 4096 // columns of a line that may go over the edge
)

// Display is where a run is shown. It is for one goroutine.
type Display struct {
	out    io.Writer
	live   bool                       // redraw in place
	colour bool                       // allowed to use colours
	size   func() (columns, rows int) // of the terminal, now

	drawn                int // lines of the frame on the screen
	drawnCols, drawnRows int // of the terminal when they were drawn
	lastMessage          time.Time
}

// New looks at out and at the environment (TERM, NO_COLOR) once. Only a terminal gets a live view or colours.
func New(out io.Writer, getenv func(string) string) *Display {
	d := &Display{out: out, size: func() (int, int) { return defaultWidth, 0 }}
	file, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || getenv("TERM") == "dumb" {
		return d
	}
	d.live = true
	d.colour = getenv("NO_COLOR") == ""
	d.size = func() (int, int) {
		columns, rows, err := term.GetSize(int(file.Fd()))
		if err != nil || columns == 0 { // some serial consoles do not know
			return defaultWidth, 0
		}
		return columns, rows
	}
	return d
}

// Interval is how often to Draw: a few times a second on a terminal, every ten seconds elsewhere.
func (d *Display) Interval() time.Duration {
	if d.live {
		return liveInterval
	}
	return plainInterval
}

// Draw shows the snapshot: in place of the one before on a terminal, as a line after the new messages elsewhere.
// Whatever is printed to the terminal between two Draws is overwritten, so it belongs into Messages; what is printed after the last stays.
func (d *Display) Draw(s Snapshot) error {
	if d.live {
		return d.redraw(s)
	}
	var out strings.Builder
	for _, m := range s.Messages {
		if m.Time.After(d.lastMessage) {
			out.WriteString(message(m).render(uncut, false) + "\n")
		}
	}
	if n := len(s.Messages); n > 0 {
		d.lastMessage = s.Messages[n-1].Time
	}
	out.WriteString(summary(s) + "\n")
	return d.write("progress", out.String())
}

// Control sequences (ECMA-48 and DEC private modes).
const (
	hideCursor  = "\x1b[?25l"
	showCursor  = "\x1b[?25h"
	beginUpdate = "\x1b[?2026h" // terminals that know it show the update at once; others ignore it
	endUpdate   = "\x1b[?2026l"
	clearLine   = "\x1b[K" // from the cursor to the end
	clearBelow  = "\x1b[J"
	clearScreen = "\x1b[2J\x1b[H"
)

// redraw writes a frame over the last in a single write, so that nothing flickers and, killed at any time, the terminal is left with
// its cursor below the frame.
func (d *Display) redraw(s Snapshot) error {
	columns, rows := d.size()
	var out strings.Builder
	out.WriteString(beginUpdate + hideCursor)
	switch {
	case d.drawn == 0:
	case columns != d.drawnCols || rows != d.drawnRows:
		out.WriteString(clearScreen) // the terminal has rewrapped the old frame: where it began is unknown
	default:
		fmt.Fprintf(&out, "\x1b[%dA\r", d.drawn)
	}
	lines := d.lines(frame(s, d.width(columns)), min(d.width(columns), columns-2))
	if rows > 1 {
		lines = lines[:min(len(lines), rows-1)] // the cursor cannot go above the screen
	}
	for _, l := range lines {
		out.WriteString(l + clearLine + "\n")
	}
	out.WriteString(clearBelow + showCursor + endUpdate)
	d.drawn, d.drawnCols, d.drawnRows = len(lines), columns, rows
	return d.write("live view", out.String())
}

// PrintLedger prints the account below whatever is there.
func (d *Display) PrintLedger(v LedgerView) error {
	columns, _ := d.size()
	lines := d.lines(ledger(v, d.width(columns)), uncut)
	return d.write("ledger", strings.Join(lines, "\n")+"\n")
}

// width is what a layout has: one column of margin on either side. The last column stays free, as clearing to the end of a
// line that is exactly full wipes its last character on xterm.
func (*Display) width(columns int) int {
	return min(max(columns, minWidth), maxWidth) - 2
}

// lines renders with the left margin and cuts at width.
func (d *Display) lines(lines []line, width int) []string {
	rendered := make([]string, len(lines))
	for i, l := range lines {
		rendered[i] = strings.TrimRight(" "+l.render(width, d.colour), " ")
	}
	return rendered
}

func (d *Display) write(what, s string) error {
	if _, err := io.WriteString(d.out, s); err != nil {
		return fmt.Errorf("print the %s: %w", what, err)
	}
	return nil
}
