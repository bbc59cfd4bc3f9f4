package conformance

import (
	"encoding/json"
	"testing"
	"time"
)

// wrapped is the documented body of a wrapped push (https://cloud.google.com/pubsub/docs/push#receive_push).
type wrapped struct {
	Message      wrappedMessage `json:"message"`
	Subscription string         `json:"subscription"`
}

type wrappedMessage struct {
	Attributes   map[string]string `json:"attributes"`
	Data         []byte            `json:"data"`
	MessageID    string            `json:"messageId"`
	MessageIDOld string            `json:"message_id"`
	PublishTime  time.Time         `json:"publishTime"`
}

func decodeWrapped(t *testing.T, body string) wrapped {
	t.Helper()
	var w wrapped
	if err := json.Unmarshal([]byte(body), &w); err != nil {
		t.Fatalf("decode wrapped push: %v\n%s", err, body)
	}
	return w
}
