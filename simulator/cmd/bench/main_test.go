package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseReadsEveryMetric(t *testing.T) {
	got := parse("goos: linux\nBenchmarkPush/readings=1/bare-2  100  26927 ns/op  20951 cpu-ns/reading  40 allocs/op\nPASS\nok  x  1s\n")
	want := map[string]map[string]float64{
		"Push/readings=1/bare": {"ns/op": 26927, "cpu-ns/reading": 20951, "allocs/op": 40},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestHighestRateIsFoundBetweenTheLastThatHeldAndTheFirstThatDidNot(t *testing.T) {
	for _, limit := range []float64{7, 11, 40, 79} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			best, err := highest(t.Context(), func(rate float64) (bool, outcome, error) {
				return rate <= limit, outcome{RatePerSecond: rate}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := best.RatePerSecond; got > limit || got < limit*.8 {
				t.Errorf("got %v, want at most %v and little less", got, limit)
			}
		})
	}
}

func TestHighestStopsAtAFailedRun(t *testing.T) {
	failed := errors.New("no port")
	_, err := highest(t.Context(), func(float64) (bool, outcome, error) { return false, outcome{}, failed })
	if !errors.Is(err, failed) {
		t.Errorf("got %v, want %v", err, failed)
	}
}

// Each row of the table names a benchmark that exists, with the metric that the row shows.
func TestFiguresAreOfBenchmarksThatExist(t *testing.T) {
	if testing.Short() {
		t.Skip("runs every benchmark once")
	}
	for _, f := range figures {
		t.Run(f.what, func(t *testing.T) {
			f.pkg = "../../../" + f.pkg
			if err := f.print(context.Background(), printer{io.Discard}, "1x", io.Discard); err != nil {
				t.Error(err)
			}
		})
	}
}
