package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/workqueue"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// NewScheme knows Kubernetes' own kinds and Knative's Brokers and Triggers.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register Kubernetes' types: %w", err)
	}
	if err := eventingv1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register Knative Eventing's types: %w", err)
	}
	return scheme, nil
}

// Backoff of failed passes.
const (
	minBackoff = time.Second
	maxBackoff = time.Minute
)

// SetupWithManager has r run in mgr, and sets r.Watch.
func (r *Reconciler) SetupWithManager(mgr manager.Manager) error {
	c, err := controller.New("pubsub-broker", mgr, controller.Options{
		Reconciler:              r,
		MaxConcurrentReconciles: 1, // there is one request
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minBackoff, maxBackoff),
	})
	if err != nil {
		return fmt.Errorf("new controller: %w", err)
	}
	for _, object := range []client.Object{&eventingv1.Broker{}, &eventingv1.Trigger{}} {
		if err := c.Watch(source.Kind(mgr.GetCache(), object, pass{}, specChanged())); err != nil {
			return fmt.Errorf("watch %T: %w", object, err)
		}
	}
	r.Watch = (&subscribers{controller: c, cache: mgr.GetCache(), live: r.Live, kinds: map[schema.GroupVersionKind]bool{}, names: map[subscriber]bool{}}).watch
	return nil
}

// pass asks for a pass, whatever has happened.
type pass struct{}

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

func (pass) Create(_ context.Context, _ event.CreateEvent, q queue)   { ask(q) }
func (pass) Update(_ context.Context, _ event.UpdateEvent, q queue)   { ask(q) }
func (pass) Delete(_ context.Context, _ event.DeleteEvent, q queue)   { ask(q) }
func (pass) Generic(_ context.Context, _ event.GenericEvent, q queue) { ask(q) }

var _ handler.EventHandler = pass{}

func ask(q queue) {
	q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Name: "class"}}, debounce)
}

// specChanged passes over changes of the status, which are our own.
func specChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() ||
			!e.ObjectNew.GetDeletionTimestamp().Equal(e.ObjectOld.GetDeletionTimestamp()) ||
			!equality.Semantic.DeepEqual(e.ObjectOld.GetAnnotations(), e.ObjectNew.GetAnnotations())
	}}
}

// subscribers watches what Triggers refer to: kinds that are not known before a Trigger names one.
type subscribers struct {
	controller controller.Controller
	cache      cache.Cache
	live       client.Reader

	mu    sync.Mutex
	kinds map[schema.GroupVersionKind]bool // being watched
	names map[subscriber]bool              // of which somebody wants to know
}

type subscriber struct {
	kind schema.GroupVersionKind
	name types.NamespacedName
}

func (s *subscribers) watch(ctx context.Context, kind schema.GroupVersionKind, name types.NamespacedName) error {
	s.mu.Lock()
	s.names[subscriber{kind, name}] = true
	watched := s.kinds[kind]
	s.mu.Unlock()
	if watched {
		return nil
	}
	// A cache waits for ever for a kind that does not exist or may not be listed, so this is asked first.
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
	if err := s.live.List(ctx, list, client.Limit(1)); err != nil {
		return err
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	if err := s.controller.Watch(source.Kind[client.Object](s.cache, object, pass{}, s.addressChanged(kind))); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kinds[kind] = true // passes do not run at the same time, so nobody else was watching it meanwhile
	return nil
}

// addressChanged lets through what can change a Trigger's push endpoint.
func (s *subscribers) addressChanged(kind schema.GroupVersionKind) predicate.Predicate {
	wanted := func(object client.Object) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.names[subscriber{kind, client.ObjectKeyFromObject(object)}]
	}
	return predicate.And(predicate.NewPredicateFuncs(wanted), predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !equality.Semantic.DeepEqual(addressFields(e.ObjectOld), addressFields(e.ObjectNew))
	}})
}

// addressFields are the fields that addressOf reads.
func addressFields(object client.Object) [3]any {
	u, ok := object.(*unstructured.Unstructured)
	if !ok {
		return [3]any{}
	}
	var fields [3]any
	for i, name := range []string{"address", "addresses", "url"} {
		fields[i], _, _ = unstructured.NestedFieldNoCopy(u.Object, "status", name) // of another type: as if absent
	}
	return fields
}
