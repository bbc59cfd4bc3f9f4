package robots

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/robofleet/robofleet/shared/telemetry"
)

func TestReadingIsEncodedAsByEncodingJSON(t *testing.T) {
	base := telemetry.Reading{
		RobotID: "R-000017", BootID: "run-3", Seq: 42, Time: time.Date(2026, 11, 23, 12, 0, 0, 250e6, time.UTC),
		Position: telemetry.Position{LatDeg: 52.0116123, LonDeg: -4.3571, HeadingDeg: 271.5, SpeedMPS: 1.25, AccuracyM: 2.4},
		Battery:  telemetry.Battery{Percent: 87.5, Charging: true},
		Status:   telemetry.StatusIdle,
	}
	with := func(change func(*telemetry.Reading)) telemetry.Reading {
		r := base
		change(&r)
		return r
	}
	cases := map[string]telemetry.Reading{
		"plain":          base,
		"whole second":   with(func(r *telemetry.Reading) { r.Time = r.Time.Truncate(time.Second) }),
		"zeros":          with(func(r *telemetry.Reading) { r.Position, r.Battery = telemetry.Position{}, telemetry.Battery{} }),
		"south and west": with(func(r *telemetry.Reading) { r.Position.LatDeg, r.Position.LonDeg = -0.000012, -179.9999999 }),
		"one at the end": with(func(r *telemetry.Reading) { r.Position.LatDeg = 10.0000001 }),
		"whole numbers":  with(func(r *telemetry.Reading) { r.Battery.Percent, r.Position.HeadingDeg = 100, 10 }),
		"delivering": with(func(r *telemetry.Reading) {
			r.Status, r.DeliveryID, r.SoftwareVersion = telemetry.StatusDelivering, "D-1", "2.4.1"
		}),
		"fault":                 with(func(r *telemetry.Reading) { r.Status, r.Fault = telemetry.StatusFault, faultBattery }),
		"fault without message": with(func(r *telemetry.Reading) { r.Fault = &telemetry.Fault{Code: "X"} }),
	}
	for name, reading := range cases {
		t.Run(name, func(t *testing.T) { checkEncoding(t, reading) })
	}
	t.Run("drawn", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for range 10_000 {
			checkEncoding(t, with(func(r *telemetry.Reading) {
				r.Position.LatDeg = round(rng.Float64()*180-90, 1e7)
				r.Position.LonDeg = round(rng.Float64()*360-180, 1e7)
				r.Position.HeadingDeg = round(rng.Float64()*359, 10)
				r.Position.SpeedMPS = round(rng.Float64()*4, 100)
				r.Battery.Percent = round(rng.Float64()*100, 100)
				r.Time = r.Time.Add(time.Duration(rng.IntN(1e6)) * time.Millisecond)
			}))
		}
	})
	t.Run("faults", func(t *testing.T) {
		for _, fault := range append(faults, faultBattery) {
			checkEncoding(t, with(func(r *telemetry.Reading) { r.Fault = fault }))
		}
	})
}

func checkEncoding(t *testing.T, r telemetry.Reading) {
	t.Helper()
	want, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(appendReading(nil, &r))); diff != "" {
		t.Fatalf("encoding (-want +got):\n%s", diff)
	}
}
