package autoscale

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"sigs.k8s.io/yaml"
)

func TestLoadServices(t *testing.T) {
	want := []Service{
		{Name: "hot-write"},
		{
			Name: "validate", Namespace: "robofleet",
			Annotations: map[string]string{
				"autoscaling.knative.dev/target":    "50",
				"autoscaling.knative.dev/max-scale": "10",
			},
			ContainerConcurrency: 200,
			Env:                  map[string]string{"MAX_IN_FLIGHT": "400"},
			CPU:                  0.5,
		},
	}
	data, err := os.ReadFile("testdata/services.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"testdata", "testdata/services.yaml", "-"} {
		got, err := LoadServices(path, strings.NewReader(string(data)))
		if err != nil {
			t.Fatalf("LoadServices(%q): %v", path, err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("LoadServices(%q) (-want +got):\n%s", path, diff)
		}
	}
}

func TestLoadServicesRefuses(t *testing.T) {
	service := func(template string) string {
		return "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {template: {" + template + "}}\n"
	}
	container := "spec: {containers: [{image: a}]}"
	for _, tt := range []struct{ name, manifests, want string }{
		{"what is not YAML", "a: [", "read a document"},
		{"an unknown field", service("metadata: {anotations: {}}, " + container), "anotations"},
		{"no container", service("spec: {}"), "no container"},
		{"no name", strings.Replace(service(container), "name: a", "namespace: a", 1), "no name"},
		{"the same twice", service(container) + "---\n" + service(container), "twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := LoadServices("-", strings.NewReader(tt.manifests))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("LoadServices: got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestValidateRefusesWhatTheWebhookRefuses(t *testing.T) {
	cluster, err := DefaultCluster()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ change, want string }{
		{"validate.target=0", "should be at least 0.01"},
		{"validate.window=5s", "window"},
		{"validate.min-scale=11", "less than min-scale"},
		{"validate.activation-scale=1", "greater than 1"},
		{"validate.metric=cpu", "metric"},
		{"validate.container-concurrency=1001", "containerConcurrency"},
		{"validate.class=hpa.autoscaling.knative.dev", "only kpa.autoscaling.knative.dev is replayed"},
	} {
		t.Run(tt.change, func(t *testing.T) {
			s := fixture(t, tt.change)
			err := s.Validate(cluster)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate: got error %v, want one with %q", err, tt.want)
			}
		})
	}
	if err := fixture(t).Validate(cluster); err != nil {
		t.Errorf("Validate of the fixture: %v", err)
	}
}

func TestChangesReplaceAndTakeAway(t *testing.T) {
	got := fixture(t, "validate.target=80", "validate.max-scale=", "validate.container-concurrency=7", "validate.cpu=2",
		"validate.env.MAX_IN_FLIGHT=", "validate.env.READINGS_MAX_WAIT=5ms", "hot-write.target=1", "validate.model.hop=1ms")
	want := Service{
		Name: "validate", Namespace: "robofleet", ContainerConcurrency: 7, CPU: 2,
		Annotations: map[string]string{"autoscaling.knative.dev/target": "80"},
		Env:         map[string]string{"READINGS_MAX_WAIT": "5ms"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("With (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("50", fixture(t).Annotations["autoscaling.knative.dev/target"]); diff != "" {
		t.Errorf("the service that With was called on has changed (-want +got):\n%s", diff)
	}
}

func TestParseChangeRefuses(t *testing.T) {
	for _, s := range []string{"", "validate", "validate.target", "target=80", ".target=80", "validate.=80", "validate.foo=1",
		"validate.env.=1", "validate.env.A B=1", "validate.model.speed=1", "validate.Target=80"} {
		if c, err := ParseChange(s); err == nil {
			t.Errorf("ParseChange(%q): got %+v, want an error", s, c)
		}
	}
}

// What is predicted must be what is deployed.
func TestRepositoryManifestsCanBeReplayed(t *testing.T) {
	cluster, err := DefaultCluster()
	if err != nil {
		t.Fatal(err)
	}
	stages, err := Stages(Google)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"base", "overlays/local", "overlays/dev", "overlays/prod"} {
		t.Run(path, func(t *testing.T) {
			services, err := LoadServices(filepath.Join("../../knative", path), nil)
			if err != nil {
				t.Fatal(err)
			}
			byName := map[string]Service{}
			for _, s := range services {
				byName[s.Name] = s
			}
			for _, stage := range stages {
				s, ok := byName[stage.Name]
				if !ok {
					t.Errorf("there is no Service %s", stage.Name)
					continue
				}
				if err := s.Validate(cluster); err != nil {
					t.Error(err)
				}
				if _, err := stage.Parameters(s); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestStagesRetryAsTheirTriggersSay(t *testing.T) {
	stages, err := Stages(Google)
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range stages {
		data, err := os.ReadFile("../../eventing/triggers/" + stage.Name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		var trigger eventingv1.Trigger
		if err := yaml.UnmarshalStrict(data, &trigger); err != nil {
			t.Fatal(err)
		}
		for _, v := range []struct {
			name string
			text *string
			got  time.Duration
		}{
			{"timeout", trigger.Spec.Delivery.Timeout, stage.AckDeadline},
			{"backoffDelay", trigger.Spec.Delivery.BackoffDelay, stage.Backoff},
		} {
			want, err := time.ParseDuration(strings.ToLower(strings.TrimPrefix(*v.text, "PT")))
			if err != nil {
				t.Fatal(err)
			}
			if v.got != want {
				t.Errorf("%s of %s: got %v, want %v", v.name, stage.Name, v.got, want)
			}
		}
	}
}

func TestEnvironmentSetsTheModel(t *testing.T) {
	stages, err := Stages(Google)
	if err != nil {
		t.Fatal(err)
	}
	batch, limits, err := stages[0].limits(fixture(t, "validate.env.READINGS_MAX_WAIT=7ms"))
	if err != nil {
		t.Fatal(err)
	}
	if batch.MaxWait != 7*time.Millisecond || batch.MaxItems != stages[0].Batch.MaxItems || limits.MaxInFlight != 400 {
		t.Errorf("limits: got %v, %d, %d in flight, want 7ms, %d, 400", batch.MaxWait, batch.MaxItems, limits.MaxInFlight,
			stages[0].Batch.MaxItems)
	}
	for _, change := range []string{"validate.env.READINGS_MAX_WAIT=soon", "validate.env.READINGS_MAX_ITEMS=0", "validate.env.MAX_IN_FLIGHT=-1"} {
		if _, _, err := stages[0].limits(fixture(t, change)); err == nil {
			t.Errorf("limits with %s: got no error", change)
		}
	}
}

func FuzzParseServices(f *testing.F) {
	data, err := os.ReadFile("testdata/services.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("---\n---\n"))
	f.Add([]byte("apiVersion: serving.knative.dev/v1\nkind: Service\nspec: {template: {spec: {containers: [{resources: {limits: {cpu: -1}}}]}}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		services, err := ParseServices(data)
		if err != nil {
			return
		}
		for _, s := range services {
			if s.Name == "" {
				t.Errorf("a Service without a name: %+v", s)
			}
		}
	})
}

func FuzzParseChange(f *testing.F) {
	f.Add("validate.target=80")
	f.Add("hot-write.env.ROWS_MAX_WAIT=200ms")
	f.Add("cold-archive.model.cold-start=3s")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseChange(s)
		if err != nil {
			return
		}
		if c.String() != s {
			t.Errorf("ParseChange(%q).String(): got %q", s, c.String())
		}
	})
}

// fixture is the Service validate of testdata with changes.
func fixture(t *testing.T, changes ...string) Service {
	t.Helper()
	services, err := LoadServices("testdata/services.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := services[1].With(parseChanges(t, changes...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parseChanges(t *testing.T, texts ...string) []Change {
	t.Helper()
	var changes []Change
	for _, text := range texts {
		c, err := ParseChange(text)
		if err != nil {
			t.Fatal(err)
		}
		changes = append(changes, c)
	}
	return changes
}
