// Package knative holds manifests only. Its tests render every overlay and hold it to Knative's own rules, to the project's, and to
// what the stages' code reads.
package knative

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/feature"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"knative.dev/serving/pkg/apis/autoscaling"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	autoscalerconfig "knative.dev/serving/pkg/autoscaler/config"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/robofleet/robofleet/eventing/plan"
	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/functions/validate"
	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/function"
)

const (
	module    = "github.com/robofleet/robofleet"
	namespace = "robofleet"
)

func TestOverlays(t *testing.T) {
	for _, overlay := range []string{"dev", "local", "prod"} {
		t.Run(overlay, func(t *testing.T) {
			m := render(t, "overlays/"+overlay)
			for _, promise := range []struct {
				name  string
				holds func(*testing.T, *manifests)
			}{
				{"objects are valid by Knative's own rules", objectsAreValid},
				{"everything is in the platform's namespace", oneNamespace},
				{"one name for Service, image, account and labels", oneName},
				{"containers can do nothing but their work", containersAreConfined},
				{"containers say what they need", containersSayWhatTheyNeed},
				{"probes ask for healthz", probesAskForHealthz},
				{"variables are those that the code reads", variablesAreRead},
				{"settings refer to what exists", settingsExist},
				{"settings are taken by the stage", settingsAreTaken},
				{"pushes are those that the stages expect", pushesAreExpected},
				{"a request may take longer than the stage holds it", requestsOutlastTheHold},
				{"a pod has the time that it needs to end", podsEndInTime},
				{"autoscaling is set in full and valid", autoscalingIsSet},
				{"Triggers have Brokers and subscribers", triggersAreConnected},
				{"who emits is bound to a Broker", emittersAreBound},
				{"each NetworkPolicy selects something", policiesSelect},
				{"the network has the arrows of the picture and no others", networkHasTheArrows},
				{"disruption budgets stand where two pods stay up", budgetsStand},
			} {
				t.Run(promise.name, func(t *testing.T) { promise.holds(t, m) })
			}
		})
	}
}

// manifests are the objects of an overlay, by name, as they are written: without defaults.
type manifests struct {
	overlay     string
	services    map[string]*servingv1.Service
	deployments map[string]*appsv1.Deployment
	brokers     map[string]*eventingv1.Broker
	triggers    map[string]*eventingv1.Trigger
	bindings    map[string]*sourcesv1.SinkBinding
	configMaps  map[string]*corev1.ConfigMap
	accounts    map[string]*corev1.ServiceAccount
	policies    map[string]*networkingv1.NetworkPolicy
	budgets     map[string]*policyv1.PodDisruptionBudget
	all         []metav1.Object
}

// render builds an overlay as `kubectl apply -k` does and decodes each object into its Go type. An unknown field fails the test.
func render(t *testing.T, overlay string) *manifests {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), overlay)
	if err != nil {
		t.Fatal(err)
	}
	m := &manifests{
		overlay:     path.Base(overlay),
		services:    make(map[string]*servingv1.Service),
		deployments: make(map[string]*appsv1.Deployment),
		brokers:     make(map[string]*eventingv1.Broker),
		triggers:    make(map[string]*eventingv1.Trigger),
		bindings:    make(map[string]*sourcesv1.SinkBinding),
		configMaps:  make(map[string]*corev1.ConfigMap),
		accounts:    make(map[string]*corev1.ServiceAccount),
		policies:    make(map[string]*networkingv1.NetworkPolicy),
		budgets:     make(map[string]*policyv1.PodDisruptionBudget),
	}
	for _, r := range resources.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		kind := r.GetApiVersion() + " " + r.GetKind()
		switch kind {
		case "serving.knative.dev/v1 Service":
			decode(t, m, text, m.services)
		case "apps/v1 Deployment":
			decode(t, m, text, m.deployments)
		case "eventing.knative.dev/v1 Broker":
			decode(t, m, text, m.brokers)
		case "eventing.knative.dev/v1 Trigger":
			decode(t, m, text, m.triggers)
		case "sources.knative.dev/v1 SinkBinding":
			decode(t, m, text, m.bindings)
		case "v1 ConfigMap":
			decode(t, m, text, m.configMaps)
		case "v1 ServiceAccount":
			decode(t, m, text, m.accounts)
		case "networking.k8s.io/v1 NetworkPolicy":
			decode(t, m, text, m.policies)
		case "policy/v1 PodDisruptionBudget":
			decode(t, m, text, m.budgets)
		case "v1 Namespace":
			decode(t, m, text, map[string]*corev1.Namespace{})
		case "v1 Service":
			decode(t, m, text, map[string]*corev1.Service{})
		case "rbac.authorization.k8s.io/v1 ClusterRole":
			decode(t, m, text, map[string]*rbacv1.ClusterRole{})
		case "rbac.authorization.k8s.io/v1 ClusterRoleBinding":
			decode(t, m, text, map[string]*rbacv1.ClusterRoleBinding{})
		case "rbac.authorization.k8s.io/v1 Role":
			decode(t, m, text, map[string]*rbacv1.Role{})
		case "rbac.authorization.k8s.io/v1 RoleBinding":
			decode(t, m, text, map[string]*rbacv1.RoleBinding{})
		default:
			t.Errorf("%s %s: no test knows this kind", kind, r.GetName())
		}
	}
	for _, name := range []string{"validate", "hot-write", "cold-archive"} {
		if m.services[name] == nil {
			t.Errorf("no Service %s", name)
		}
	}
	return m
}

func decode[T any, P interface {
	*T
	metav1.Object
}](t *testing.T, m *manifests, text []byte, into map[string]P) {
	t.Helper()
	object := P(new(T))
	if err := yaml.UnmarshalStrict(text, object); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if into[object.GetName()] != nil {
		t.Errorf("%T %s is there twice", object, object.GetName())
	}
	into[object.GetName()] = object
	m.all = append(m.all, object)
}

// pod is what runs containers, a Knative Service's or a Deployment's.
type pod struct {
	name   string
	labels map[string]string
	spec   corev1.PodSpec
}

func (m *manifests) pods() []pod {
	var pods []pod
	for name, s := range m.services {
		// Knative's own labels, as far as policies here use them.
		l := map[string]string{"serving.knative.dev/service": name}
		maps.Copy(l, s.Spec.Template.Labels)
		pods = append(pods, pod{name, l, s.Spec.Template.Spec.PodSpec})
	}
	for name, d := range m.deployments {
		pods = append(pods, pod{name, d.Spec.Template.Labels, d.Spec.Template.Spec})
	}
	return pods
}

func (m *manifests) pod(t *testing.T, name string) pod {
	t.Helper()
	for _, p := range m.pods() {
		if p.name == name {
			return p
		}
	}
	t.Fatalf("no pod %s", name)
	return pod{}
}

func objectsAreValid(t *testing.T, m *manifests) {
	features, err := feature.NewFlagsConfigFromMap(nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := feature.ToContext(apis.WithinCreate(t.Context()), features)
	check := func(o interface {
		apis.Defaultable
		apis.Validatable
	}, name string) {
		t.Helper()
		o.SetDefaults(ctx)
		if err := o.Validate(ctx); err != nil {
			t.Errorf("%T %s: %v", o, name, err)
		}
	}
	for name, s := range m.services {
		s = s.DeepCopy()
		// What ko makes of it.
		s.Spec.Template.Spec.Containers[0].Image = "registry.example.com/" + name + "@sha256:" + strings.Repeat("0", 64)
		check(s, name)
	}
	for name, b := range m.brokers {
		check(b.DeepCopy(), name)
	}
	for name, tr := range m.triggers {
		check(tr.DeepCopy(), name)
	}
	for name, b := range m.bindings {
		check(b.DeepCopy(), name)
	}
}

func oneNamespace(t *testing.T, m *manifests) {
	for _, o := range m.all {
		switch o.(type) {
		case *corev1.Namespace:
			if o.GetName() != namespace {
				t.Errorf("Namespace %s, want %s", o.GetName(), namespace)
			}
		case *rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding:
		default:
			if o.GetNamespace() != namespace {
				t.Errorf("%T %s is in namespace %q, want %q", o, o.GetName(), o.GetNamespace(), namespace)
			}
		}
	}
}

func oneName(t *testing.T, m *manifests) {
	for _, p := range m.pods() {
		container := p.spec.Containers[0]
		pkg, ok := strings.CutPrefix(container.Image, "ko://"+module+"/")
		if !ok {
			t.Errorf("%s: image %q is none that ko builds from this module", p.name, container.Image)
		}
		if _, err := os.Stat(path.Join("..", pkg, "main.go")); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		names := map[string]string{"account": p.spec.ServiceAccountName, "label app.kubernetes.io/name": p.labels["app.kubernetes.io/name"]}
		if m.services[p.name] != nil { // logs, metrics and panels lead back to the folder
			names["command"], names["container"] = path.Base(pkg), container.Name
		}
		for what, got := range names {
			if got != p.name {
				t.Errorf("%s of %s is %q", what, p.name, got)
			}
		}
		if m.accounts[p.spec.ServiceAccountName] == nil {
			t.Errorf("%s: no ServiceAccount %q", p.name, p.spec.ServiceAccountName)
		}
	}
}

func containersAreConfined(t *testing.T, m *manifests) {
	for _, p := range m.pods() {
		if v := p.spec.EnableServiceLinks; v == nil || *v {
			t.Errorf("%s: the namespace's Services are put into its environment", p.name)
		}
		// Of the pods here only the Broker class's controller may need one.
		if v := p.spec.AutomountServiceAccountToken; m.services[p.name] != nil && (v == nil || *v) {
			t.Errorf("%s: gets a token for the API server, which it never calls", p.name)
		}
		if p.spec.HostNetwork || p.spec.HostPID || p.spec.HostIPC {
			t.Errorf("%s: shares a namespace with its node", p.name)
		}
		for _, c := range slices.Concat(p.spec.InitContainers, p.spec.Containers) {
			s := effective(p.spec.SecurityContext, c.SecurityContext)
			for what, ok := range map[string]bool{
				"runs as a user other than root": s.RunAsNonRoot != nil && *s.RunAsNonRoot,
				"reads its root file system":     s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem,
				"gains no privileges":            s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
				"has none":                       s.Privileged == nil || !*s.Privileged,
				"has no capabilities":            s.Capabilities != nil && len(s.Capabilities.Add) == 0 && slices.Contains(s.Capabilities.Drop, "ALL"),
				"makes usual system calls only":  s.SeccompProfile != nil && s.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault,
			} {
				if !ok {
					t.Errorf("%s/%s: not so: %s", p.name, c.Name, what)
				}
			}
		}
		for _, v := range p.spec.Volumes {
			if v.HostPath != nil {
				t.Errorf("%s: mounts %s of its node", p.name, v.HostPath.Path)
			}
		}
	}
}

// effective is a container's security context with what it takes over from its pod's.
func effective(pod *corev1.PodSecurityContext, container *corev1.SecurityContext) corev1.SecurityContext {
	var s corev1.SecurityContext
	if container != nil {
		s = *container
	}
	if pod == nil {
		return s
	}
	if s.RunAsNonRoot == nil {
		s.RunAsNonRoot = pod.RunAsNonRoot
	}
	if s.SeccompProfile == nil {
		s.SeccompProfile = pod.SeccompProfile
	}
	return s
}

func containersSayWhatTheyNeed(t *testing.T, m *manifests) {
	for _, p := range m.pods() {
		r := p.spec.Containers[0].Resources
		if r.Requests.Cpu().IsZero() || r.Requests.Memory().IsZero() || r.Limits.Memory().IsZero() {
			t.Errorf("%s: CPU and memory must be asked for and memory bounded: %v", p.name, r)
		}
		if r.Requests.Memory().Cmp(*r.Limits.Memory()) > 0 {
			t.Errorf("%s: asks for more memory than its limit", p.name)
		}
		if m.overlay == "prod" && m.services[p.name] != nil && r.Requests.Memory().Cmp(*r.Limits.Memory()) != 0 {
			t.Errorf("%s: a node may promise its memory to others", p.name)
		}
		env, err := m.environment(p)
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		if m.services[p.name] == nil {
			continue
		}
		soft, ok := strings.CutSuffix(env["GOMEMLIMIT"], "MiB")
		want := fmt.Sprint(r.Limits.Memory().Value() * 8 / 10 >> 20)
		if !ok || soft != want {
			t.Errorf("%s: GOMEMLIMIT is %q, want 80 %% of the memory limit, %sMiB", p.name, env["GOMEMLIMIT"], want)
		}
	}
}

func probesAskForHealthz(t *testing.T, m *manifests) {
	for _, p := range m.pods() {
		c := p.spec.Containers[0]
		for what, probe := range map[string]*corev1.Probe{"readinessProbe": c.ReadinessProbe, "livenessProbe": c.LivenessProbe} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != "/healthz" && probe.HTTPGet.Path != "/readyz" {
				t.Errorf("%s: %s does not ask for /healthz or /readyz", p.name, what)
			}
		}
	}
}

// environment is what the pod's container finds, without what Knative and SinkBindings add and what only the cluster knows.
func (m *manifests) environment(p pod) (map[string]string, error) {
	env := make(map[string]string)
	c := p.spec.Containers[0]
	for _, from := range c.EnvFrom {
		if from.ConfigMapRef == nil || m.configMaps[from.ConfigMapRef.Name] == nil {
			return nil, fmt.Errorf("no ConfigMap for %v", from)
		}
		maps.Copy(env, m.configMaps[from.ConfigMapRef.Name].Data)
	}
	for _, v := range c.Env {
		if slices.IndexFunc(c.Env, func(o corev1.EnvVar) bool { return o.Name == v.Name }) != slices.Index(c.Env, v) {
			return nil, fmt.Errorf("%s is set twice", v.Name)
		}
		switch {
		case v.ValueFrom == nil:
			env[v.Name] = v.Value
		case v.ValueFrom.ConfigMapKeyRef != nil:
			ref := v.ValueFrom.ConfigMapKeyRef
			if m.configMaps[ref.Name] == nil {
				return nil, fmt.Errorf("%s: no ConfigMap %s", v.Name, ref.Name)
			}
			value, ok := m.configMaps[ref.Name].Data[ref.Key]
			if !ok {
				return nil, fmt.Errorf("%s: ConfigMap %s has no %s", v.Name, ref.Name, ref.Key)
			}
			env[v.Name] = value
		default:
			env[v.Name] = "(known on the cluster)"
		}
	}
	return env, nil
}

// elsewhere are variables that libraries read, not the commands' configuration, and who links these libraries.
var elsewhere = map[string][]string{
	"GOMEMLIMIT":            {"broker-ingress", "cold-archive", "hot-write", "pubsub-broker-controller", "validate"}, // Go
	"PUBSUB_EMULATOR_HOST":  {"broker-ingress", "pubsub-broker-controller"},
	"STORAGE_EMULATOR_HOST": {"cold-archive"},
}

func variablesAreRead(t *testing.T, m *manifests) {
	shared := make(map[string]bool) // whether somebody reads a variable that is given to several
	for _, p := range m.pods() {
		reads := variables(t, strings.TrimPrefix(p.spec.Containers[0].Image, "ko://"+module))
		env, err := m.environment(p)
		if err != nil {
			t.Fatal(err)
		}
		for name := range env {
			_, read := reads[name]
			read = read || slices.Contains(elsewhere[name], p.name)
			if !slices.ContainsFunc(p.spec.Containers[0].Env, func(v corev1.EnvVar) bool { return v.Name == name }) {
				shared[name] = shared[name] || read
			} else if !read {
				t.Errorf("%s does not read %s", p.name, name)
			}
		}
		for name, required := range reads {
			// Without these two a stage does not start: see function.Identity.
			required = required || name == "PUSH_AUDIENCE" || name == "PUSH_SERVICE_ACCOUNTS"
			if required && env[name] == "" {
				t.Errorf("%s does not start without %s", p.name, name)
			}
		}
	}
	for name, read := range shared {
		if !read {
			t.Errorf("nobody reads %s", name)
		}
	}
}

// pushesAreExpected: what the Broker class puts into the tokens of its pushes is what the stages ask for.
func pushesAreExpected(t *testing.T, m *manifests) {
	settings, err := m.environment(m.pod(t, "pubsub-broker-controller"))
	if err != nil {
		t.Fatal(err)
	}
	for name := range m.services {
		cfg := m.settings(t, name)
		if !slices.Contains(cfg.Push.ServiceAccounts, settings["PUSH_SERVICE_ACCOUNT"]) {
			t.Errorf("%s takes pushes of %v, not of %s", name, cfg.Push.ServiceAccounts, settings["PUSH_SERVICE_ACCOUNT"])
		}
		endpoint := strings.NewReplacer("{name}", name, "{namespace}", namespace).Replace(settings["PUSH_ENDPOINT"])
		if endpoint != "" && cfg.Push.Audience != endpoint {
			t.Errorf("%s takes pushes to %s, and they go to %s", name, cfg.Push.Audience, endpoint)
		}
	}
}

func settingsExist(t *testing.T, m *manifests) {
	used := make(map[string]bool)
	for _, p := range m.pods() {
		if _, err := m.environment(p); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		for _, v := range p.spec.Containers[0].Env {
			if v.ValueFrom != nil && v.ValueFrom.ConfigMapKeyRef != nil {
				used[v.ValueFrom.ConfigMapKeyRef.Name+"/"+v.ValueFrom.ConfigMapKeyRef.Key] = true
			}
		}
	}
	for name, c := range m.configMaps {
		if !strings.HasPrefix(name, "platform-") {
			continue
		}
		for key := range c.Data {
			if !used[name+"/"+key] {
				t.Errorf("ConfigMap %s: nobody reads %s", name, key)
			}
		}
	}
}

// settings is a stage's configuration as its main reads it.
type settings struct {
	function.Config
	batches []batch.Config
}

func (m *manifests) settings(t *testing.T, name string) settings {
	t.Helper()
	env, err := m.environment(m.pod(t, name))
	if err != nil {
		t.Fatal(err)
	}
	cfg := struct {
		function.Config
		Validate validate.Config
		Rows     batch.Config `env:", prefix=ROWS_"`
		Objects  batch.Config `env:", prefix=OBJECTS_"`
	}{Validate: validate.DefaultConfig(), Rows: hotwrite.DefaultConfig(), Objects: coldarchive.DefaultConfig()}
	if name != "validate" {
		cfg.Limits = function.PlatformLimits()
	}
	if err := function.Load(t.Context(), envconfig.MapLookuper(env), &cfg); err != nil {
		t.Fatal(err)
	}
	batches := map[string][]batch.Config{
		"validate": {cfg.Validate.Readings, cfg.Validate.Rejections}, "hot-write": {cfg.Rows}, "cold-archive": {cfg.Objects},
	}[name]
	if len(batches) == 0 {
		t.Fatalf("the test does not know the group commits of %s", name)
	}
	return settings{cfg.Config, batches}
}

func settingsAreTaken(t *testing.T, m *manifests) {
	// https://github.com/knative/serving/blob/main/pkg/networking/constants.go, and the port of its profiler.
	queueProxy := []int{8008, 8012, 8013, 8022, 8112, 9090, 9091}
	for name, s := range m.services {
		cfg := m.settings(t, name)
		for _, b := range cfg.batches {
			if err := b.Validate(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if slices.Contains(queueProxy, cfg.MetricsPort) || cfg.MetricsPort == cfg.Port {
			t.Errorf("%s: METRICS_PORT %d is taken in its pod", name, cfg.MetricsPort)
		}
		if got := s.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort; int(got) != cfg.Port {
			t.Errorf("%s: containerPort %d, want the stage's %d", name, got, cfg.Port)
		}
		if cc := s.Spec.Template.Spec.ContainerConcurrency; cc == nil || int(*cc) > cfg.MaxInFlight {
			t.Errorf("%s: queue-proxy lets through more than MAX_IN_FLIGHT %d", name, cfg.MaxInFlight)
		}
		if cfg.Local {
			t.Errorf("%s: takes pushes from anybody", name)
		}
	}
}

// hold is the longest that a stage keeps a request before it answers: its batch waits, then is written.
func hold(cfg settings) time.Duration {
	var longest time.Duration
	for _, b := range cfg.batches {
		longest = max(longest, b.MaxWait+b.Timeout)
	}
	return longest
}

func requestsOutlastTheHold(t *testing.T, m *manifests) {
	for name, s := range m.services {
		timeout := time.Duration(*s.Spec.Template.Spec.TimeoutSeconds) * time.Second
		if h := hold(m.settings(t, name)); timeout <= h {
			t.Errorf("%s: timeoutSeconds %v, but the stage may answer after %v", name, timeout, h)
		}
		for _, tr := range m.triggers {
			if tr.Spec.Subscriber.Ref.Name != name {
				continue
			}
			deadline, err := time.ParseDuration(strings.ToLower(strings.TrimPrefix(*tr.Spec.Delivery.Timeout, "PT")))
			if err != nil {
				t.Fatal(err)
			}
			if timeout <= deadline {
				t.Errorf("%s: timeoutSeconds %v ends a request before Trigger %s gives it up after %v", name, timeout, tr.Name, deadline)
			}
			if h := hold(m.settings(t, name)); h >= deadline {
				t.Errorf("%s holds a request up to %v, but Trigger %s sends it again after %v", name, h, tr.Name, deadline)
			}
		}
	}
}

// quiet is how long queue-proxy stays after the pod's last request, before the stage gets its SIGTERM
// (knative.dev/serving/pkg/queue/sharedmain, drainSleepDuration).
const quiet = 30 * time.Second

func podsEndInTime(t *testing.T, m *manifests) {
	for name, s := range m.services {
		cfg := m.settings(t, name)
		// A revision's timeout is its pods' terminationGracePeriodSeconds.
		grace := time.Duration(*s.Spec.Template.Spec.TimeoutSeconds) * time.Second
		if need := quiet + cfg.ShutdownTimeout; grace < need {
			t.Errorf("%s: a grace period of %v, but it needs %v", name, grace, need)
		}
		for _, b := range cfg.batches {
			if cfg.ShutdownTimeout <= b.Timeout {
				t.Errorf("%s: SHUTDOWN_TIMEOUT %v cuts a write of up to %v off", name, cfg.ShutdownTimeout, b.Timeout)
			}
		}
	}
}

func autoscalingIsSet(t *testing.T, m *manifests) {
	config, err := autoscalerconfig.NewConfigFromMap(nil)
	if err != nil {
		t.Fatal(err)
	}
	required := []string{
		autoscaling.ClassAnnotationKey, autoscaling.MetricAnnotationKey, autoscaling.TargetAnnotationKey,
		autoscaling.TargetUtilizationPercentageKey, autoscaling.WindowAnnotationKey, autoscaling.PanicWindowPercentageAnnotationKey,
		autoscaling.PanicThresholdPercentageAnnotationKey, autoscaling.MinScaleAnnotationKey, autoscaling.MaxScaleAnnotationKey,
		autoscaling.InitialScaleAnnotationKey, autoscaling.ScaleDownDelayAnnotationKey, autoscaling.ScaleToZeroPodRetentionPeriodKey,
		autoscaling.TargetBurstCapacityKey,
	}
	known := append(slices.Clone(required), autoscaling.ActivationScaleKey)
	for name, s := range m.services {
		annotations := s.Spec.Template.Annotations
		if err := autoscaling.ValidateAnnotations(t.Context(), config, annotations); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, key := range required {
			if annotations[key] == "" {
				t.Errorf("%s: %s is left to the cluster", name, key)
			}
		}
		for key := range annotations { // a misspelt one is ignored by Knative
			if strings.HasPrefix(key, autoscaling.GroupName) && !slices.Contains(known, key) {
				t.Errorf("%s: %s means nothing to Knative", name, key)
			}
		}
		for key := range s.Annotations {
			if strings.HasPrefix(key, autoscaling.GroupName) {
				t.Errorf("%s: %s belongs to the template, where a revision finds it", name, key)
			}
		}
	}
}

func triggersAreConnected(t *testing.T, m *manifests) {
	problem := func(name string, ref *duckv1.KReference) string {
		switch {
		case ref == nil:
			return "no reference"
		case ref.APIVersion == "serving.knative.dev/v1" && ref.Kind == "Service" && m.services[ref.Name] != nil:
		case ref.APIVersion == "eventing.knative.dev/v1" && ref.Kind == "Broker" && m.brokers[ref.Name] != nil:
		default:
			return fmt.Sprintf("no %s %s %s", ref.APIVersion, ref.Kind, ref.Name)
		}
		return ""
	}
	fed := make(map[string]bool)
	for name, tr := range m.triggers {
		if m.brokers[tr.Spec.Broker] == nil {
			t.Errorf("Trigger %s: no Broker %s", name, tr.Spec.Broker)
		}
		if p := problem(name, tr.Spec.Subscriber.Ref); p != "" {
			t.Errorf("Trigger %s: subscriber: %s", name, p)
		}
		if d := tr.Spec.Delivery; d.DeadLetterSink != nil {
			if p := problem(name, d.DeadLetterSink.Ref); p != "" {
				t.Errorf("Trigger %s: deadLetterSink: %s", name, p)
			}
		}
		fed[tr.Spec.Subscriber.Ref.Name] = true
	}
	for name := range m.services {
		if !fed[name] {
			t.Errorf("no Trigger sends to %s", name)
		}
	}
	// All that the eventing folder says is in the overlay, and nothing else.
	objects, err := plan.Load(os.DirFS("../eventing/triggers"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, tr := range objects.Triggers {
		want = append(want, tr.Name)
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(m.triggers))); diff != "" {
		t.Errorf("Triggers (-eventing/triggers +overlay):\n%s", diff)
	}
}

func emittersAreBound(t *testing.T, m *manifests) {
	bound := make(map[string]bool)
	for name, b := range m.bindings {
		subject := b.Spec.Subject
		if subject.APIVersion != "serving.knative.dev/v1" || subject.Kind != "Service" || m.services[subject.Name] == nil {
			t.Errorf("SinkBinding %s: no Service %s", name, subject.Name)
		}
		if ref := b.Spec.Sink.Ref; ref == nil || ref.Kind != "Broker" || m.brokers[ref.Name] == nil {
			t.Errorf("SinkBinding %s: its sink is no Broker of the platform", name)
		}
		bound[subject.Name] = true
	}
	for name, s := range m.services {
		_, emits := variables(t, strings.TrimPrefix(s.Spec.Template.Spec.Containers[0].Image, "ko://"+module))["K_SINK"]
		if emits != bound[name] {
			t.Errorf("%s: reads K_SINK: %t, has a SinkBinding: %t", name, emits, bound[name])
		}
	}
}

func policiesSelect(t *testing.T, m *manifests) {
	pods := m.pods()
	selects := func(s *metav1.LabelSelector) bool {
		return slices.ContainsFunc(pods, func(p pod) bool { return matches(t, s, p.labels) })
	}
	for name, p := range m.policies {
		if !selects(&p.Spec.PodSelector) {
			t.Errorf("NetworkPolicy %s selects no pod", name)
		}
		var peers []networkingv1.NetworkPolicyPeer
		for _, r := range p.Spec.Ingress {
			peers = append(peers, r.From...)
		}
		for _, r := range p.Spec.Egress {
			peers = append(peers, r.To...)
		}
		for _, peer := range peers {
			if peer.NamespaceSelector == nil && peer.PodSelector != nil && !selects(peer.PodSelector) {
				t.Errorf("NetworkPolicy %s: its peer selects no pod: %v", name, peer.PodSelector)
			}
		}
	}
	for name, b := range m.budgets {
		if !selects(b.Spec.Selector) {
			t.Errorf("PodDisruptionBudget %s selects no pod", name)
		}
	}
}

func matches(t *testing.T, s *metav1.LabelSelector, l map[string]string) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return selector.Matches(labels.Set(l))
}

func budgetsStand(t *testing.T, m *manifests) {
	for name, s := range m.services {
		up := s.Spec.Template.Annotations[autoscaling.MinScaleAnnotationKey]
		stays := up != "0" && up != "1"
		if (m.budgets[name] != nil) != stays {
			t.Errorf("%s: %s pods stay up, and it has a disruption budget: %t", name, up, m.budgets[name] != nil)
		}
	}
}
