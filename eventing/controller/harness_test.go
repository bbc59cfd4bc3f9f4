package controller

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/events"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/pkg/apis"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/yaml"

	"github.com/robofleet/robofleet/eventing/internal/pubsubtest"
)

const project = "robofleet-test"

// cluster is a controller between a cluster and Pub/Sub, both in memory.
type cluster struct {
	*Reconciler
	server *pubsubtest.Server
	events chan string
	writes atomic.Int64 // to the cluster
}

// newCluster has the objects of a YAML text of several documents.
func newCluster(t testing.TB, text string) *cluster {
	t.Helper()
	scheme, err := NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{server: pubsubtest.Start(t)}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&eventingv1.Broker{}, &eventingv1.Trigger{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, client client.WithWatch, object client.Object, options ...client.CreateOption) error {
				c.writes.Add(1)
				return client.Create(ctx, object, options...)
			},
			Patch: func(ctx context.Context, client client.WithWatch, object client.Object, patch client.Patch, options ...client.PatchOption) error {
				c.writes.Add(1)
				return client.Patch(ctx, object, patch, options...)
			},
			SubResourcePatch: func(ctx context.Context, client client.Client, resource string, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
				c.writes.Add(1)
				return client.SubResource(resource).Patch(ctx, object, patch, options...)
			},
		})
	for _, document := range strings.Split(text, "\n---") {
		if object := decode(t, document); object != nil {
			builder = builder.WithObjects(object)
		}
	}
	kubernetes := builder.Build()
	recorder := events.NewFakeRecorder(10_000)
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	c.events = recorder.Events
	c.Reconciler = &Reconciler{
		Settings: Settings{
			Project: project, Owner: "test", Namespace: "robofleet", PushEndpoint: "https://{name}.{namespace}.example.com",
			IngressElsewhere: true, Resync: time.Minute, Parallel: 4, CallTimeout: time.Second,
		},
		Client: kubernetes, Live: kubernetes, PubSub: c.server.Client(t, project), Events: recorder, HTTP: http.DefaultClient, Metrics: metrics,
	}
	return c
}

// decode makes an object of YAML; typed where the scheme knows it, because the fake cluster's status is typed.
func decode(t testing.TB, document string) client.Object {
	t.Helper()
	var content map[string]any
	if err := yaml.Unmarshal([]byte(document), &content); err != nil {
		t.Fatalf("%v:\n%s", err, document)
	}
	var object client.Object
	switch content["kind"] {
	case nil:
		return nil
	case "Broker":
		object = &eventingv1.Broker{}
	case "Trigger":
		object = &eventingv1.Trigger{}
	default:
		return &unstructured.Unstructured{Object: content}
	}
	if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
		t.Fatalf("%v:\n%s", err, document)
	}
	return object
}

// pass makes one pass and returns its error.
func (c *cluster) pass(t testing.TB) error {
	t.Helper()
	_, err := c.Reconcile(t.Context(), reconcile.Request{})
	return err
}

// settle makes a pass that succeeds and forgets what it wrote.
func (c *cluster) settle(t testing.TB) {
	t.Helper()
	if err := c.pass(t); err != nil {
		t.Fatalf("pass: %v", err)
	}
	c.server.Written()
	c.writes.Store(0)
	c.told()
}

// told returns the Kubernetes events since the last call.
func (c *cluster) told() []string {
	var told []string
	for {
		select {
		case event := <-c.events:
			told = append(told, event)
		default:
			return told
		}
	}
}

func (c *cluster) broker(t testing.TB, name string) *eventingv1.Broker {
	t.Helper()
	broker := &eventingv1.Broker{}
	if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: name}, broker); err != nil {
		t.Fatal(err)
	}
	return broker
}

func (c *cluster) trigger(t testing.TB, name string) *eventingv1.Trigger {
	t.Helper()
	trigger := &eventingv1.Trigger{}
	if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: name}, trigger); err != nil {
		t.Fatal(err)
	}
	return trigger
}

// conditions reads "True", or "False Reason", by the condition's type.
func conditions(from apis.ConditionsAccessor) map[string]string {
	words := map[string]string{}
	for _, condition := range from.GetConditions() {
		words[string(condition.Type)] = string(condition.Status)
		if !condition.IsTrue() {
			words[string(condition.Type)] += " " + condition.Reason
		}
	}
	return words
}

// message is that of the condition Ready.
func message(from apis.ConditionsAccessor) string {
	for _, condition := range from.GetConditions() {
		if condition.Type == apis.ConditionReady {
			return condition.Message
		}
	}
	return ""
}

func wantConditions(t testing.TB, what string, want map[string]string, got apis.ConditionsAccessor) {
	t.Helper()
	if diff := cmp.Diff(want, conditions(got)); diff != "" {
		t.Errorf("conditions of %s (-want +got):\n%s", what, diff)
	}
}

const (
	twoBrokers = `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: main, namespace: ns, generation: 3, annotations: {eventing.knative.dev/broker.class: PubSub}}
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: dead, namespace: ns, annotations: {eventing.knative.dev/broker.class: PubSub, pubsub.eventing.robofleet.dev/topic: buried}}
`
	service = `
---
apiVersion: v1
kind: Service
metadata: {name: worker, namespace: ns}
`
)

// triggerYAML is Trigger ns/<name> with its spec besides the Broker, main.
func triggerYAML(name, spec string) string {
	return `
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: ` + name + `, namespace: ns, generation: 2}
spec: {broker: main, ` + spec + `}
`
}

const (
	toWorker = "subscriber: {ref: {apiVersion: v1, kind: Service, name: worker}}"
	toDead   = ", delivery: {retry: 10, deadLetterSink: {ref: {apiVersion: eventing.knative.dev/v1, kind: Broker, name: dead}}}"
)
