package robots

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/robofleet/robofleet/shared/telemetry"
)

func TestBadMessagesBreakTheRuleTheySay(t *testing.T) {
	published := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	good := telemetry.Reading{
		RobotID: "R-000001", BootID: "run-1", Seq: badSeqBase + 1, Time: published.Add(10 * time.Minute),
		Position: telemetry.Position{LatDeg: 52.01, LonDeg: 4.35, HeadingDeg: 12, SpeedMPS: 1, AccuracyM: 2},
		Battery:  telemetry.Battery{Percent: 50},
		Status:   telemetry.StatusFault, Fault: faultBattery,
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, kind := range BadKinds() {
		if kind == BadDuplicate {
			continue
		}
		t.Run(string(kind), func(t *testing.T) {
			for range 200 {
				body, err := badBody(kind, good, rng)
				if err != nil {
					t.Fatal(err)
				}
				if got := verdict(body, published); got != kind.Reason() {
					t.Fatalf("refused for %q, want %q\n%.600s", got, kind.Reason(), body)
				}
			}
		})
	}
}

// verdict is why a message is to be refused, by the rules of the platform; "" when it is not.
func verdict(body []byte, published time.Time) telemetry.Reason {
	const bodyLimit = 1 << 20
	if len(body) > bodyLimit {
		return telemetry.ReasonBodyTooLarge
	}
	var r telemetry.Reading
	err := telemetry.Decode(body, &r)
	if err == nil {
		err = telemetry.CheckTime(&r, published)
	}
	var rule *telemetry.RuleError
	if errors.As(err, &rule) {
		return rule.Reason
	}
	if err != nil {
		return telemetry.Reason(fmt.Sprintf("unknown: %v", err))
	}
	return ""
}

func TestHugeMessagesAreRare(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	drawn := map[BadKind]int{}
	for range 49_000 {
		drawn[drawBadKind(rng)]++
	}
	for _, kind := range BadKinds() {
		least, most := 7500, 8500
		if kind == BadHuge {
			least, most = 850, 1150
		}
		if n := drawn[kind]; n < least || n > most {
			t.Errorf("%s drawn %d times of 49,000, want %d to %d", kind, n, least, most)
		}
	}
}
