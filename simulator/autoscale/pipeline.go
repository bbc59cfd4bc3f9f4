package autoscale

import (
	"fmt"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	asconfig "knative.dev/serving/pkg/autoscaler/config"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"
	"sigs.k8s.io/yaml"
)

// DefaultCluster is the configuration of a cluster whose ConfigMap config-autoscaler has no data.
func DefaultCluster() (*autoscalerconfig.Config, error) { return asconfig.NewConfigFromMap(nil) }

// LoadCluster reads the ConfigMap config-autoscaler from a file.
func LoadCluster(path string) (*autoscalerconfig.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read config-autoscaler: %w", err)
	}
	var object corev1.ConfigMap
	if err := yaml.UnmarshalStrict(data, &object); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if object.Kind != "ConfigMap" || object.Name != asconfig.ConfigName {
		return nil, fmt.Errorf("read %s: want the ConfigMap %s, got %s %q", path, asconfig.ConfigName, object.Kind, object.Name)
	}
	cluster, err := asconfig.NewConfigFromConfigMap(&object)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return cluster, nil
}

// Setup is what a Run is made of.
type Setup struct {
	Config   Config
	Stages   []Stage
	Services []Service
	Profile  Profile
	// Stage is the stage to show; "" is all that have a Service.
	Stage string
}

// A Run is the profile replayed with one setting.
type Run struct {
	Changes []string `json:"changes,omitempty"` // against the manifests
	Results []Result `json:"results"`
}

// Replay lets the profile go through the stages, each stage's batches being the messages of the stages behind it.
func (s Setup) Replay(changes []Change) (Run, error) {
	run := Run{}
	for _, c := range changes {
		if !slices.ContainsFunc(s.Services, func(v Service) bool { return v.Name == c.Service }) {
			return Run{}, fmt.Errorf("setting %s: there is no Service %s in the manifests", c, c.Service)
		}
		run.Changes = append(run.Changes, c.String())
	}
	wanted, err := s.wanted()
	if err != nil {
		return Run{}, err
	}
	emitted := map[string][]Arrival{"": s.Profile.arrivals()}
	var replay func(name string) (Result, error)
	done := map[string]Result{}
	replay = func(name string) (Result, error) {
		if r, ok := done[name]; ok {
			return r, nil
		}
		stage, service, err := s.find(name)
		if err != nil {
			return Result{}, err
		}
		if stage, err = stage.With(changes); err != nil {
			return Result{}, err
		}
		if service, err = service.With(changes); err != nil {
			return Result{}, err
		}
		if err := service.Validate(s.Config.Cluster); err != nil {
			return Result{}, err
		}
		if stage.Upstream != "" {
			upstream, err := replay(stage.Upstream)
			if err != nil {
				return Result{}, fmt.Errorf("upstream of %s: %w", name, err)
			}
			emitted[stage.Upstream] = upstream.Emitted
		}
		r, err := Replay(s.Config, stage, service, emitted[stage.Upstream], s.Profile.Duration())
		if err != nil {
			return Result{}, err
		}
		done[name] = r
		return r, nil
	}
	for _, name := range wanted {
		r, err := replay(name)
		if err != nil {
			return Run{}, err
		}
		run.Results = append(run.Results, r)
	}
	return run, nil
}

// wanted are the names of the stages to show.
func (s Setup) wanted() ([]string, error) {
	if s.Stage != "" {
		return []string{s.Stage}, nil
	}
	var names []string
	for _, stage := range s.Stages {
		if slices.ContainsFunc(s.Services, func(v Service) bool { return v.Name == stage.Name }) {
			names = append(names, stage.Name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no Service in the manifests is a stage that has a model")
	}
	return names, nil
}

func (s Setup) find(name string) (Stage, Service, error) {
	stage := slices.IndexFunc(s.Stages, func(v Stage) bool { return v.Name == name })
	if stage < 0 {
		return Stage{}, Service{}, fmt.Errorf("stage %q has no model", name)
	}
	service := slices.IndexFunc(s.Services, func(v Service) bool { return v.Name == name })
	if service < 0 {
		return Stage{}, Service{}, fmt.Errorf("there is no Service %s in the manifests", name)
	}
	return s.Stages[stage], s.Services[service], nil
}

// Report is one or two runs of the same traffic, and how far the first is from what was observed.
type Report struct {
	Profile   string        `json:"profile"`
	Duration  time.Duration `json:"duration_ns"`
	Runs      []Run         `json:"runs"`
	Deviation *Deviation    `json:"deviation,omitempty"`
	Observed  []Observation `json:"observed,omitempty"`
}
