package autoscale

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
)

// The measures of a picture in pixels.
const (
	svgWidth   = 860
	svgLeft    = 70
	svgRight   = 20
	svgTop     = 46
	svgPlot    = 84 // height of the curves of a panel
	svgPanel   = 128
	svgBottom  = 30
	svgColumns = 385 // as fine as two pixels
)

// svgColors are those of the runs: manifests, changed, observed. They are told apart without seeing colours by their dashes.
var svgColors = [...]struct{ colour, dashes string }{
	{"#0072b2", ""},
	{"#d55e00", "6 2"},
	{"#000000", "2 2"},
}

// WriteSVG draws the stage at index i of the report.
func WriteSVG(w io.Writer, report Report, i int) error {
	var shown []panel
	for _, p := range panels(report, i) {
		if p.most() > 0 {
			shown = append(shown, p)
		}
	}
	height := svgTop + len(shown)*svgPanel + svgBottom
	out := bufio.NewWriter(w)
	// A bufio.Writer keeps its first error for Flush.
	put := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }

	put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">`,
		svgWidth, height, svgWidth, height)
	put(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	title := fmt.Sprintf("%s: %s", report.Runs[0].Results[i].Stage, report.Profile)
	put(`<text x="%d" y="22" font-size="15" font-weight="bold">%s</text>`, svgLeft, escape(title))
	if len(report.Runs) > 1 {
		put(`<text x="%d" y="38">changed: %s</text>`, svgLeft, escape(strings.Join(report.Runs[1].Changes, " ")))
	}
	for n, p := range shown {
		svgDraw(put, p, svgTop+n*svgPanel)
	}
	seconds := len(report.Runs[0].Results[i].Samples)
	step := tick(float64(seconds), 8)
	for t := 0.0; t <= float64(seconds); t += step {
		put(`<text x="%.0f" y="%d" text-anchor="middle">%g s</text>`, svgX(t, float64(seconds)), height-12, t)
	}
	put(`</svg>`)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the picture: %w", err)
	}
	return nil
}

// svgDraw draws a panel whose upper edge is at y.
func svgDraw(put func(string, ...any), p panel, y int) {
	plot := float64(y + 26)
	most := p.most()
	step := tick(most, 3)
	highest := math.Ceil(most/step) * step
	at := func(v float64) float64 { return plot + svgPlot*(1-v/highest) }

	put(`<text x="%d" y="%d" font-weight="bold">%s</text>`, svgLeft, y+16, escape(p.title))
	x := svgWidth - svgRight
	for i := len(p.curves) - 1; i >= 0; i-- {
		c := p.curves[i]
		put(`<text x="%d" y="%d" text-anchor="end" fill="%s"%s>%s</text>`, x, y+16, svgColors[c.run].colour, opacity(c), escape(c.name))
		x -= 7*len(c.name) + 14
	}
	for v := 0.0; v <= highest+step/2; v += step {
		put(`<path d="M%d %.1fH%d" stroke="#ddd"/>`, svgLeft, at(v), svgWidth-svgRight)
		put(`<text x="%d" y="%.1f" text-anchor="end">%s%s</text>`, svgLeft-6, at(v)+4, figure(v), escape(p.unit))
	}
	for _, c := range p.curves {
		dashes := ""
		if d := svgColors[c.run].dashes; d != "" {
			dashes = fmt.Sprintf(` stroke-dasharray="%s"`, d)
		}
		put(`<path d="%s" fill="none" stroke="%s" stroke-width="%g"%s%s/>`,
			steps(columns(c.values, svgColumns), at), svgColors[c.run].colour, width(c), dashes, opacity(c))
	}
}

func opacity(c curve) string {
	if c.faint {
		return ` opacity="0.5"`
	}
	return ""
}

func width(c curve) float64 {
	if c.faint {
		return 1
	}
	return 1.6
}

// steps is the path of a curve that keeps each value until the next one; unchanged values add nothing to the file.
func steps(values []float64, at func(float64) float64) string {
	var b strings.Builder
	last := ""
	for i, v := range values {
		y := fmt.Sprintf("%.1f", at(v))
		switch {
		case i == 0:
			fmt.Fprintf(&b, "M%d %s", svgLeft, y)
		case y != last:
			fmt.Fprintf(&b, "H%.1fV%s", svgX(float64(i), float64(len(values))), y)
		}
		last = y
	}
	fmt.Fprintf(&b, "H%d", svgWidth-svgRight)
	return b.String()
}

// svgX is where t of total is.
func svgX(t, total float64) float64 { return svgLeft + t/total*(svgWidth-svgLeft-svgRight) }

// tick is a round step that divides most into n parts at the most.
func tick(most float64, n float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(most/n)))
	for _, f := range []float64{1, 2, 5, 10} {
		if most/(f*step) <= n {
			return f * step
		}
	}
	return 10 * step
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder does not fail
	return b.String()
}
