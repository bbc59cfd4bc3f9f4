package controller

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"
)

func TestOnlyChangesThatMatterLeadToAPass(t *testing.T) {
	tests := []struct {
		name   string
		change func(*eventingv1.Trigger)
		want   bool
	}{
		{"the status", func(o *eventingv1.Trigger) { o.Status.ObservedGeneration = 7 }, false},
		{"our finalizer", func(o *eventingv1.Trigger) { o.Finalizers = []string{Finalizer} }, false},
		{"the spec", func(o *eventingv1.Trigger) { o.Generation++ }, true},
		{"an annotation", func(o *eventingv1.Trigger) { o.Annotations = map[string]string{dependencyAnnotation: "{}"} }, true},
		{"a deletion", func(o *eventingv1.Trigger) { now := metav1.NewTime(time.Unix(1, 0)); o.DeletionTimestamp = &now }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := &eventingv1.Trigger{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "t", Generation: 1}}
			after := before.DeepCopy()
			test.change(after)
			if got := specChanged().Update(event.UpdateEvent{ObjectOld: before, ObjectNew: after}); got != test.want {
				t.Errorf("leads to a pass: %v, want %v", got, test.want)
			}
		})
	}
}

func TestOnlyAddressesOfSubscribersLeadToAPass(t *testing.T) {
	kind := schema.GroupVersionKind{Group: "serving.knative.dev", Version: "v1", Kind: "Service"}
	s := &subscribers{names: map[subscriber]bool{{kind, types.NamespacedName{Namespace: "ns", Name: "wanted"}}: true}}
	object := func(name, address, condition string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"namespace": "ns", "name": name},
			"status":   map[string]any{"address": map[string]any{"url": address}, "conditions": []any{condition}},
		}}
	}
	tests := []struct {
		name          string
		before, after *unstructured.Unstructured
		want          bool
	}{
		{"another address", object("wanted", "http://a", "x"), object("wanted", "http://b", "x"), true},
		{"the rest of the status", object("wanted", "http://a", "x"), object("wanted", "http://a", "y"), false},
		{"nobody's subscriber", object("other", "http://a", "x"), object("other", "http://b", "x"), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := s.addressChanged(kind).Update(event.UpdateEvent{ObjectOld: test.before, ObjectNew: test.after}); got != test.want {
				t.Errorf("leads to a pass: %v, want %v", got, test.want)
			}
		})
	}
	if !s.addressChanged(kind).Create(event.CreateEvent{Object: object("wanted", "http://a", "x")}) {
		t.Error("a subscriber that comes leads to no pass")
	}
}
