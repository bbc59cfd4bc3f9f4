package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/robofleet/robofleet/simulator/autoscale"
)

// printCurves prints how the stages have scaled since start, and writes it to files.
func (t *trial) printCurves(start time.Time) error {
	var errs []error
	end := time.Now()
	for _, stage := range stages {
		curve := t.pods.curve(stage, start, end)
		_, err := fmt.Fprintf(t.Out, "%-12s %s\n             ready, each second: %s\n", stage, summary(curve), strip(curve))
		errs = append(errs, err, t.writeFile("pods-"+stage+".csv", curve))
	}
	return errors.Join(errs...)
}

func (t *trial) writeFile(name string, curve []autoscale.Observation) (err error) {
	file, err := os.Create(filepath.Join(t.Dir, name))
	if err != nil {
		return fmt.Errorf("pods over time: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := writeCurve(file, curve); err != nil {
		return fmt.Errorf("pods over time: %w", err)
	}
	return nil
}

// summary is a curve's turning points, for a person.
func summary(curve []autoscale.Observation) string {
	wanted, ready, zero, most := -1.0, -1.0, -1.0, 0
	for _, o := range curve {
		if o.Wanted > 0 && wanted < 0 {
			wanted = o.Seconds
		}
		if o.Ready > 0 && ready < 0 {
			ready = o.Seconds
		}
		most = max(most, o.Ready)
		switch {
		case o.Ready > 0 || o.Wanted > 0:
			zero = -1
		case ready >= 0 && zero < 0:
			zero = o.Seconds
		}
	}
	if ready < 0 {
		return "never had a pod"
	}
	text := fmt.Sprintf("wanted after %.1f s, ready after %.1f s, at most %d pods", wanted, ready, most)
	if zero >= 0 {
		text += fmt.Sprintf(", zero after %.1f s", zero)
	}
	return text
}

// strip is the number of ready pods at each second, a digit for each; + is more than nine.
func strip(curve []autoscale.Observation) string {
	var b strings.Builder
	last := curve[len(curve)-1].Seconds
	for second, i := 0, 0; float64(second) <= last; second++ {
		for i+1 < len(curve) && curve[i+1].Seconds <= float64(second) {
			i++
		}
		if n := curve[i].Ready; n <= 9 {
			b.WriteByte(byte('0' + n))
		} else {
			b.WriteByte('+')
		}
	}
	return b.String()
}
