package plan

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/robofleet/robofleet/eventing"
)

func TestLoadRefuses(t *testing.T) {
	const good = "apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {name: b, namespace: ns}\n"
	tests := []struct {
		name string
		// input
		files map[string]string
		// expectations
		message string // a part of the error
	}{
		{
			name:    "an unknown field",
			files:   map[string]string{"b.yaml": strings.Replace(good, "Broker", "Trigger", 1) + "spec: {brokr: x}\n"},
			message: `b.yaml: decode a Trigger: error unmarshaling JSON: while decoding JSON: json: unknown field "brokr"`,
		},
		{name: "the same key twice", files: map[string]string{"b.yaml": good + "kind: Broker\n"}, message: "b.yaml: decode a Broker"},
		{
			name:    "another kind",
			files:   map[string]string{"dir/c.yml": strings.Replace(good, "Broker", "Channel", 1)},
			message: `dir/c.yml: kind "Channel": want Broker or Trigger`,
		},
		{
			name:    "another version",
			files:   map[string]string{"b.yaml": strings.Replace(good, "/v1", "/v1beta1", 1)},
			message: `b.yaml: apiVersion "eventing.knative.dev/v1beta1" of a Broker: want eventing.knative.dev/v1`,
		},
		{name: "an object that is there twice", files: map[string]string{"a.yaml": good, "b.yaml": good}, message: "b.yaml: Broker ns/b is already in a.yaml"},
		{name: "what is not YAML", files: map[string]string{"a.yaml": "a: [\n"}, message: "a.yaml: decode YAML"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for name, text := range test.files {
				fsys[name] = &fstest.MapFile{Data: []byte(text)}
			}
			_, err := Load(fsys)
			if err == nil || !strings.Contains(err.Error(), test.message) {
				t.Errorf("error %v, want one with %q", err, test.message)
			}
		})
	}
}

func TestLoadPassesOverWhatIsNotAManifest(t *testing.T) {
	objects, err := Load(fstest.MapFS{
		"README.md":  {Data: []byte("# Brokers")},
		"empty.yaml": {Data: []byte("# only a comment\n---\n")},
	})
	if err != nil || len(objects.Brokers)+len(objects.Triggers) > 0 {
		t.Errorf("objects %+v, error %v, want nothing", objects, err)
	}
}

// FuzzDecode holds that no text makes the decoder or the plan panic, and that every Trigger of a PubSub Broker is
// either planned or refused.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"brokers.yaml", "triggers/hot-write.yaml", "triggers/dead-letter-archive.yaml"} {
		text, err := eventing.Manifests.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(trigger(toStage + "filters: [{not: {any: [{prefix: {type: a}}]}}]\ndelivery: {retry: 9, timeout: PT1M}")))
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, err := Decode(text)
		if err != nil {
			return
		}
		p := Make(objects, settings())
		for _, s := range p.Subscriptions {
			if len(s.Name) > 255 || len(s.Filter) > maxFilterBytes {
				t.Errorf("subscription %+v breaks a limit of Pub/Sub", s)
			}
		}
		if len(p.Topics) != len(p.Brokers) {
			t.Errorf("%d topics for %d Brokers", len(p.Topics), len(p.Brokers))
		}
	})
}
