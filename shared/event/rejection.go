package event

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/robofleet/robofleet/shared/telemetry"
)

// Rejected is what an element of a batch of rejections, or a dead letter, is made of.
type Rejected struct {
	Type      string    // TypeTelemetryRejected or TypeDeadLetter
	ID        string    // of the message that was refused
	Source    string    // the stage that refused it
	Time      time.Time // when it was refused
	Published time.Time // when Pub/Sub took the message
	Rejection telemetry.Rejection
}

// AppendRejected appends r to dst as a structured CloudEvent on one line.
func AppendRejected(dst []byte, r Rejected) ([]byte, error) {
	line, err := json.Marshal(struct {
		SpecVersion     string              `json:"specversion"`
		Type            string              `json:"type"`
		ID              string              `json:"id"`
		Source          string              `json:"source"`
		Time            time.Time           `json:"time"`
		PublishTime     time.Time           `json:"publishtime"`
		Reason          telemetry.Reason    `json:"reason"` // an extension, so that Triggers and grep find it
		DataContentType string              `json:"datacontenttype"`
		Data            telemetry.Rejection `json:"data"`
	}{"1.0", r.Type, r.ID, r.Source, r.Time.UTC(), r.Published.UTC(), r.Rejection.Reason, ContentType, r.Rejection})
	if err != nil {
		return dst, fmt.Errorf("encode rejection of %q: %w", r.ID, err)
	}
	return append(dst, line...), nil
}
