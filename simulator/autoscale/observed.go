package autoscale

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
)

// Observation is the state of a Service on a real cluster.
type Observation struct {
	Seconds float64 `json:"seconds"` // since the start of the profile
	Wanted  int     `json:"pods_wanted"`
	Ready   int     `json:"pods_ready"`
}

// observedHeader is the first line of the file that ParseObserved reads.
var observedHeader = []string{"seconds", "pods_wanted", "pods_ready"}

// ParseObserved reads CSV with the header seconds,pods_wanted,pods_ready and rising seconds. A row holds until the next one.
func ParseObserved(r io.Reader) ([]Observation, error) {
	rows := csv.NewReader(r)
	rows.FieldsPerRecord = len(observedHeader)
	header, err := rows.Read()
	if err != nil {
		return nil, fmt.Errorf("observed pods: read the header: %w", err)
	}
	if !slices.Equal(header, observedHeader) {
		return nil, fmt.Errorf("observed pods: header %q: want %q", header, observedHeader)
	}
	var all []Observation
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("observed pods: %w", err)
		}
		line, _ := rows.FieldPos(0)
		seconds, err := strconv.ParseFloat(row[0], 64)
		if err != nil || !(seconds >= 0 && seconds <= maxDuration.Seconds()) {
			return nil, fmt.Errorf("observed pods: line %d: seconds %q: want 0 to %g", line, row[0], maxDuration.Seconds())
		}
		if n := len(all); n > 0 && seconds <= all[n-1].Seconds {
			return nil, fmt.Errorf("observed pods: line %d: seconds %g do not rise", line, seconds)
		}
		o := Observation{Seconds: seconds}
		for i, into := range []*int{&o.Wanted, &o.Ready} {
			n, err := strconv.ParseUint(row[i+1], 10, 16)
			if err != nil {
				return nil, fmt.Errorf("observed pods: line %d: %s %q: want a number of pods", line, observedHeader[i+1], row[i+1])
			}
			*into = int(n)
		}
		all = append(all, o)
	}
	if len(all) == 0 {
		return nil, errors.New("observed pods: no rows")
	}
	return all, nil
}

// Deviation is how far a prediction is from what was observed, over the seconds that both cover.
type Deviation struct {
	Seconds int `json:"seconds"` // that were compared
	// MeanWanted and MeanReady are mean absolute errors in pods.
	MeanWanted float64 `json:"mean_absolute_error_wanted"`
	MeanReady  float64 `json:"mean_absolute_error_ready"`
	MostReady  Pair    `json:"most_pods_ready"`
	FirstReady Pair    `json:"first_pod_seconds"`
	Zero       Pair    `json:"zero_seconds"`
}

// Pair is a predicted and an observed number; nil is never.
type Pair struct {
	Predicted *float64 `json:"predicted"`
	Observed  *float64 `json:"observed"`
}

// Compare sets samples, which are a second apart, against observations.
func Compare(samples []Sample, observed []Observation) (Deviation, error) {
	if len(observed) == 0 {
		return Deviation{}, errors.New("compare: nothing was observed")
	}
	var d Deviation
	var predicted, seen []Observation
	first, last := observed[0].Seconds, observed[len(observed)-1].Seconds
	for _, s := range samples {
		t := float64(s.Second)
		if t < first || t > last {
			continue
		}
		i, found := slices.BinarySearchFunc(observed, t, func(o Observation, t float64) int {
			switch {
			case o.Seconds < t:
				return -1
			case o.Seconds > t:
				return 1
			}
			return 0
		})
		if !found {
			i--
		}
		o := observed[i]
		predicted = append(predicted, Observation{Seconds: t, Wanted: s.Wanted, Ready: s.Ready})
		seen = append(seen, Observation{Seconds: t, Wanted: o.Wanted, Ready: o.Ready})
		d.MeanWanted += math.Abs(float64(s.Wanted - o.Wanted))
		d.MeanReady += math.Abs(float64(s.Ready - o.Ready))
	}
	d.Seconds = len(seen)
	if d.Seconds == 0 {
		return Deviation{}, fmt.Errorf("compare: the prediction and the %g to %g s that were observed do not overlap", first, last)
	}
	d.MeanWanted /= float64(d.Seconds)
	d.MeanReady /= float64(d.Seconds)
	d.MostReady = Pair{mostReady(predicted), mostReady(seen)}
	d.FirstReady = Pair{firstReady(predicted), firstReady(seen)}
	d.Zero = Pair{zeroSince(predicted), zeroSince(seen)}
	return d, nil
}

func mostReady(o []Observation) *float64 {
	most := 0.0
	for _, v := range o {
		most = max(most, float64(v.Ready))
	}
	return &most
}

// firstReady is when the first pod was ready, if it was not from the beginning.
func firstReady(o []Observation) *float64 {
	i := slices.IndexFunc(o, func(v Observation) bool { return v.Ready > 0 })
	if i <= 0 {
		return nil
	}
	return &o[i].Seconds
}

// zeroSince is when no pod was ready any more, until the end.
func zeroSince(o []Observation) *float64 {
	i := len(o)
	for i > 0 && o[i-1].Ready == 0 {
		i--
	}
	if i == 0 || i == len(o) {
		return nil
	}
	return &o[i].Seconds
}
