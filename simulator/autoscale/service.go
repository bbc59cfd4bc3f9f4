package autoscale

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/yaml"
	"knative.dev/serving/pkg/apis/autoscaling"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	sigsyaml "sigs.k8s.io/yaml"
)

// Service is what of a Knative Service's manifest decides how it scales.
type Service struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Annotations map[string]string `json:"annotations"` // of the revision, autoscaling.knative.dev/ only
	// ContainerConcurrency is the most requests that queue-proxy lets into a container; 0 is any number.
	ContainerConcurrency int64             `json:"container_concurrency"`
	Env                  map[string]string `json:"env,omitempty"` // of the first container, literal values only
	CPU                  float64           `json:"cpu,omitempty"` // limit of the first container in cores; 0 is none
}

// annotationPrefix is what the names of the annotations in question begin with.
const annotationPrefix = autoscaling.GroupName + "/"

// annotations are the names that a Change may have. Knative reads others, older spellings of the same, from manifests.
var annotations = []string{
	autoscaling.ActivationScaleKey, autoscaling.ClassAnnotationKey, autoscaling.InitialScaleAnnotationKey,
	autoscaling.MaxScaleAnnotationKey, autoscaling.MetricAggregationAlgorithmKey, autoscaling.MetricAnnotationKey,
	autoscaling.MinScaleAnnotationKey, autoscaling.PanicThresholdPercentageAnnotationKey,
	autoscaling.PanicWindowPercentageAnnotationKey, autoscaling.ScaleDownDelayAnnotationKey,
	autoscaling.ScaleToZeroPodRetentionPeriodKey, autoscaling.TargetAnnotationKey, autoscaling.TargetBurstCapacityKey,
	autoscaling.TargetUtilizationPercentageKey, autoscaling.WindowAnnotationKey,
}

// LoadServices reads the Knative Services in a file, in the output of a folder with a kustomization.yaml, in the *.yaml files
// of any other folder, or with the path "-" in stdin. Objects of other kinds are passed over. A Service that is there twice
// is an error. Services are sorted by name.
func LoadServices(path string, stdin io.Reader) ([]Service, error) {
	documents, err := readManifests(path, stdin)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var services []Service
	for _, d := range documents {
		found, err := ParseServices(d.data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.name, err)
		}
		services = append(services, found...)
	}
	slices.SortFunc(services, func(a, b Service) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(services); i++ {
		if services[i].Name == services[i-1].Name {
			return nil, fmt.Errorf("%s: the Service %s is there twice", path, services[i].Name)
		}
	}
	return services, nil
}

// manifest is YAML documents and where they were found.
type manifest struct {
	name string
	data []byte
}

func readManifests(path string, stdin io.Reader) ([]manifest, error) {
	if path == "-" {
		data, err := io.ReadAll(stdin)
		return []manifest{{"stdin", data}}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	files := []string{path}
	if info.IsDir() {
		if _, err := os.Stat(filepath.Join(path, "kustomization.yaml")); err == nil {
			built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
			if err != nil {
				return nil, fmt.Errorf("kustomize %s: %w", path, err)
			}
			data, err := built.AsYaml()
			return []manifest{{path, data}}, err
		}
		if files, err = filepath.Glob(filepath.Join(path, "*.yaml")); err != nil {
			return nil, err
		}
	}
	var all []manifest
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		all = append(all, manifest{f, data})
	}
	return all, nil
}

// ParseServices reads the Knative Services among YAML documents, in their order.
func ParseServices(data []byte) ([]Service, error) {
	var services []Service
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return services, nil
		}
		if err != nil {
			return nil, fmt.Errorf("split documents: %w", err)
		}
		var kind struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := sigsyaml.Unmarshal(doc, &kind); err != nil {
			return nil, fmt.Errorf("read a document: %w", err)
		}
		if kind.APIVersion != servingv1.SchemeGroupVersion.String() || kind.Kind != "Service" {
			continue
		}
		var object servingv1.Service
		if err := sigsyaml.UnmarshalStrict(doc, &object); err != nil {
			return nil, fmt.Errorf("read a Service: %w", err)
		}
		service, err := newService(&object)
		if err != nil {
			return nil, fmt.Errorf("Service %q: %w", object.Name, err)
		}
		services = append(services, service)
	}
}

func newService(object *servingv1.Service) (Service, error) {
	template := &object.Spec.Template
	s := Service{Name: object.Name, Namespace: object.Namespace, Annotations: map[string]string{}, Env: map[string]string{}}
	switch {
	case s.Name == "":
		return Service{}, errors.New("it has no name")
	case len(template.Spec.Containers) == 0:
		return Service{}, errors.New("it has no container")
	}
	for k, v := range template.Annotations {
		if strings.HasPrefix(k, annotationPrefix) {
			s.Annotations[k] = v
		}
	}
	if cc := template.Spec.ContainerConcurrency; cc != nil {
		s.ContainerConcurrency = *cc
	}
	container := &template.Spec.Containers[0]
	for _, e := range container.Env {
		if e.ValueFrom == nil {
			s.Env[e.Name] = e.Value
		}
	}
	s.CPU = container.Resources.Limits.Cpu().AsApproximateFloat64()
	return s, nil
}

// Validate says what Knative's webhook would refuse, with the defaults of the cluster in cluster, and what cannot be replayed.
func (s Service) Validate(cluster *autoscalerconfig.Config) error {
	if s.ContainerConcurrency < 0 || s.ContainerConcurrency > 1000 {
		// 1000 is container-concurrency-max-limit of config-defaults.
		return fmt.Errorf("Service %s: containerConcurrency %d: want 0 to 1000", s.Name, s.ContainerConcurrency)
	}
	if s.CPU < 0 {
		return fmt.Errorf("Service %s: cpu limit %g is negative", s.Name, s.CPU)
	}
	if err := autoscaling.ValidateAnnotations(context.Background(), cluster, s.Annotations); err != nil {
		return fmt.Errorf("Service %s: %s", s.Name, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	class := cluster.PodAutoscalerClass
	if _, c, ok := autoscaling.ClassAnnotation.Get(s.Annotations); ok {
		class = c
	}
	if class != autoscaling.KPA {
		return fmt.Errorf("Service %s: class %s scales by other rules: only %s is replayed", s.Name, class, autoscaling.KPA)
	}
	return nil
}

// A Change is another setting of a Service.
type Change struct {
	Service string
	// Key is an autoscaling annotation without its prefix ("target"), "container-concurrency", "cpu" (cores), "env." and the
	// name of an environment variable, or "model." and a number of the stage's model ("model.cold-start").
	Key string
	// Value replaces the setting; "" takes it away, so that the default holds.
	Value string
}

// ParseChange reads SERVICE.KEY=VALUE, for example validate.target=80 or hot-write.env.ROWS_MAX_WAIT=200ms.
func ParseChange(s string) (Change, error) {
	setting, value, ok := strings.Cut(s, "=")
	service, key, dot := strings.Cut(setting, ".")
	if !ok || !dot || service == "" {
		return Change{}, fmt.Errorf("setting %q: want SERVICE.KEY=VALUE, for example validate.target=80", s)
	}
	name, isEnv := strings.CutPrefix(key, "env.")
	switch {
	case isEnv && name != "" && !strings.ContainsAny(name, ". ="):
	case key == "container-concurrency", key == "cpu":
	case strings.HasPrefix(key, modelPrefix) && slices.Contains(modelKeys, strings.TrimPrefix(key, modelPrefix)):
	case slices.Contains(annotations, annotationPrefix+key):
	default:
		names := make([]string, len(annotations))
		for i, a := range annotations {
			names[i] = strings.TrimPrefix(a, annotationPrefix)
		}
		return Change{}, fmt.Errorf("setting %q: %q is none of container-concurrency, cpu, env.NAME, %s, %s%s", s, key,
			strings.Join(names, ", "), modelPrefix, strings.Join(modelKeys, ", "+modelPrefix))
	}
	return Change{Service: service, Key: key, Value: value}, nil
}

// String is the change as ParseChange reads it.
func (c Change) String() string { return c.Service + "." + c.Key + "=" + c.Value }

// With is the service with the changes that name it, those of its model aside.
func (s Service) With(changes []Change) (Service, error) {
	s.Annotations, s.Env = maps.Clone(s.Annotations), maps.Clone(s.Env)
	for _, c := range changes {
		if c.Service != s.Name || strings.HasPrefix(c.Key, modelPrefix) {
			continue
		}
		switch name, isEnv := strings.CutPrefix(c.Key, "env."); {
		case isEnv && c.Value == "":
			delete(s.Env, name)
		case isEnv:
			s.Env[name] = c.Value
		case c.Key == "container-concurrency":
			n, err := strconv.ParseInt(c.Value, 10, 64)
			if c.Value != "" && err != nil {
				return Service{}, fmt.Errorf("setting %s: %w", c, err)
			}
			s.ContainerConcurrency = n
		case c.Key == "cpu":
			s.CPU = 0
			if c.Value != "" {
				q, err := resource.ParseQuantity(c.Value)
				if err != nil {
					return Service{}, fmt.Errorf("setting %s: %w", c, err)
				}
				s.CPU = q.AsApproximateFloat64()
			}
		case c.Value == "":
			delete(s.Annotations, annotationPrefix+c.Key)
		default:
			s.Annotations[annotationPrefix+c.Key] = c.Value
		}
	}
	return s, nil
}
