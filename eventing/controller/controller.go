// Package controller makes Pub/Sub what the Brokers and Triggers of class PubSub in a cluster say, and writes into their
// status what came of it.
//
// Arrives: every change of a Broker, a Trigger, or an object that a Trigger names as its subscriber; and a tick, to find
// what others changed at Pub/Sub.
//
// Leaves: topics and subscriptions, by way of package plan and package apply; conditions, addresses and finalizers on the
// objects; Kubernetes events; and a ConfigMap that tells broker-ingress which Brokers there are.
//
// There is one pass over the whole class and no reconciliation of single objects: a Trigger's subscription depends on its
// Broker, on the Broker that takes its dead letters, and on which of all subscriptions are there. A pass that finds
// everything in place makes three list calls and no writes, so it can afford to be run for every change.
//
// Retried: everything, by the next pass, which comes with exponential delays after a failure. One object's failure harms no
// other.
//
// Deleted: only what was made for an object whose deletion this controller saw, by its finalizer. What is merely missing from
// a list (a cluster restored from an old backup, two clusters with one owner's name) costs no backlog.
package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/retry"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/robofleet/robofleet/eventing/apply"
	"github.com/robofleet/robofleet/eventing/plan"
)

// Finalizer is on every Broker of this class and every Trigger of such a Broker until what was made for it is deleted.
const Finalizer = "pubsub.eventing.robofleet.dev/finalizer"

// Settings is what a cluster's operator decides.
type Settings struct {
	// Project is where the topics and subscriptions are.
	Project string `env:"PUBSUB_PROJECT_ID, required"`
	// Owner names this cluster in the labels of what it creates: no other cluster in the project may have the same.
	Owner string `env:"OWNER, required"`
	// PushServiceAccount is the e-mail address of the identity in the token of every push. "": no token.
	PushServiceAccount string `env:"PUSH_SERVICE_ACCOUNT"`
	// PushEndpoint is where Pub/Sub reaches what is at http://<name>.<namespace>.svc in the cluster, with {name} and
	// {namespace}: "https://{name}.{namespace}.example.com". Paths are added. "": Knative Services by their public URL, and
	// nothing else that is known in the cluster only.
	PushEndpoint string `env:"PUSH_ENDPOINT"`
	// AllowHTTP admits push endpoints without TLS, and addresses of the cluster: for a local Pub/Sub.
	AllowHTTP bool `env:"ALLOW_HTTP"`
	// Namespace is where this controller and broker-ingress are.
	Namespace string `env:"POD_NAMESPACE, required"`
	// IngressURL is a Broker's address, with {namespace} and {broker}.
	// "": http://broker-ingress.<Namespace>.svc.cluster.local/{namespace}/{broker}.
	IngressURL string `env:"INGRESS_URL"`
	// IngressElsewhere says that broker-ingress does not run as pods in Namespace, so that nobody can ask them what they serve.
	IngressElsewhere bool `env:"INGRESS_ELSEWHERE"`
	// Resync is how often Pub/Sub is compared with the plan when nothing has changed in the cluster.
	Resync time.Duration `env:"RESYNC, default=1m"`
	// Parallel is how many writes to Pub/Sub and to the cluster may be under way. Pub/Sub allows 100 administrative
	// operations a second in a project (https://cloud.google.com/pubsub/quotas), and one takes 0.1 to 1 s.
	Parallel int `env:"PARALLEL, default=10"`
	// CallTimeout bounds one call to Pub/Sub with its retries.
	CallTimeout time.Duration `env:"CALL_TIMEOUT, default=20s"`
}

const (
	// debounce is how long a pass waits for more changes: manifests are applied by the dozen.
	debounce = 200 * time.Millisecond
	// passTimeout bounds a pass. What it did not get done is done by the next.
	passTimeout = 5 * time.Minute
	// ingressRetry is how soon the pods of broker-ingress are asked again while one does not serve a Broker yet; the second
	// time it is twice as long, and so on.
	ingressRetry = time.Second
)

// Reconciler runs passes.
type Reconciler struct {
	Settings Settings
	// Client reads Brokers and Triggers from a cache; Live reads from the API server.
	Client client.Client
	Live   client.Reader
	PubSub *pubsub.Client
	Events events.EventRecorder
	// Watch makes sure that changes of a subscriber lead to a pass. nil: they do not.
	Watch func(ctx context.Context, kind schema.GroupVersionKind, name types.NamespacedName) error
	// HTTP asks the pods of broker-ingress what they serve.
	HTTP    *http.Client
	Metrics *Metrics

	waiting int // passes since all Brokers were served; passes do not run at the same time
}

// class is what a pass works on.
type class struct {
	brokers  []*eventingv1.Broker  // ours and not being deleted
	triggers []*eventingv1.Trigger // of our Brokers or of none, and not being deleted
	others   []*eventingv1.Broker  // of other classes: plan tells who names one
	deleted  []client.Object       // with our finalizer, and being deleted or no longer ours
	lost     []plan.Ref            // Brokers that are gone, of Triggers in deleted
	held     map[plan.Ref]error    // Triggers to which the finalizer could not be added
}

// Reconcile makes one pass. The request says nothing: it is always the whole class.
func (r *Reconciler) Reconcile(ctx context.Context, _ reconcile.Request) (result reconcile.Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	start := time.Now()
	defer func() { r.Metrics.pass(time.Since(start), err) }()

	c, err := r.list(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	claimed := r.claim(ctx, c)
	p := plan.Make(c.objects(), r.planSettings(ctx))
	report, applied := apply.Apply(ctx, r.PubSub, p, apply.Options{
		Deleted: append(refsOf(c.deleted), c.lost...), Parallel: r.Settings.Parallel, Timeout: r.Settings.CallTimeout,
	})
	r.Metrics.applied(report)
	serving, published := r.publishBrokers(ctx, c, p)
	o := newOutcome(c, p, report, applied, serving)
	reported := r.report(ctx, o)
	released := r.release(ctx, o)

	err = errors.Join(claimed, applied, published, reported, released)
	if err != nil {
		return reconcile.Result{}, err
	}
	if serving.everywhere(p) {
		r.waiting = 0
		return reconcile.Result{RequeueAfter: r.Settings.Resync}, nil
	}
	r.waiting++
	return reconcile.Result{RequeueAfter: min(ingressRetry*time.Duration(r.waiting), r.Settings.Resync)}, nil
}

// list sorts all Brokers and Triggers of the cluster.
func (r *Reconciler) list(ctx context.Context) (*class, error) {
	var brokers eventingv1.BrokerList
	if err := r.Client.List(ctx, &brokers); err != nil {
		return nil, fmt.Errorf("list Brokers: %w", err)
	}
	var triggers eventingv1.TriggerList
	if err := r.Client.List(ctx, &triggers); err != nil {
		return nil, fmt.Errorf("list Triggers: %w", err)
	}

	c := &class{held: map[plan.Ref]error{}}
	ours := map[types.NamespacedName]bool{} // whether a Broker is of this class; ours that are being deleted are not there
	for i := range brokers.Items {
		broker := &brokers.Items[i]
		mine := broker.Annotations[eventingv1.BrokerClassAnnotationKey] == plan.BrokerClass
		switch {
		case mine && broker.DeletionTimestamp.IsZero():
			c.brokers = append(c.brokers, broker)
		case controllerutil.ContainsFinalizer(broker, Finalizer):
			c.deleted = append(c.deleted, broker)
		case !mine:
			c.others = append(c.others, broker)
		}
		if broker.DeletionTimestamp.IsZero() || !mine {
			ours[client.ObjectKeyFromObject(broker)] = mine
		}
	}
	for i := range triggers.Items {
		trigger := &triggers.Items[i]
		key := brokerOf(trigger)
		mine, exists := ours[key]
		finalizer := controllerutil.ContainsFinalizer(trigger, Finalizer)
		switch {
		case trigger.DeletionTimestamp.IsZero() && (mine || !exists):
			c.triggers = append(c.triggers, trigger)
		case finalizer:
			c.deleted = append(c.deleted, trigger)
			if !exists {
				c.lost = append(c.lost, plan.Ref{Kind: "Broker", Namespace: key.Namespace, Name: key.Name})
			}
		}
	}
	return c, nil
}

func brokerOf(trigger *eventingv1.Trigger) types.NamespacedName {
	if ref := trigger.Spec.BrokerRef; ref != nil {
		return types.NamespacedName{Namespace: orElse(ref.Namespace, trigger.Namespace), Name: ref.Name}
	}
	return types.NamespacedName{Namespace: trigger.Namespace, Name: trigger.Spec.Broker}
}

func orElse(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// claim adds the finalizer to what will be planned. A Trigger without one is left out: its subscription would outlive it and
// push for ever. A Broker is not: its Triggers need it, and a topic that is left over harms nobody.
func (r *Reconciler) claim(ctx context.Context, c *class) error {
	exists := map[types.NamespacedName]bool{}
	var objects []client.Object
	for _, broker := range c.brokers {
		exists[client.ObjectKeyFromObject(broker)] = true
		objects = append(objects, broker)
	}
	for _, trigger := range c.triggers {
		if exists[brokerOf(trigger)] { // else its Broker may turn out to be another class's
			objects = append(objects, trigger)
		}
	}
	errs := r.forEach(len(objects), func(i int) error {
		return r.changeFinalizers(ctx, objects[i], controllerutil.AddFinalizer)
	})
	for i, err := range errs {
		if ref := refOf(objects[i]); err != nil && ref.Kind == "Trigger" {
			c.held[ref] = err
		}
	}
	return errors.Join(errs...)
}

// changeFinalizers writes object if change changes it. The list of finalizers is everybody's, so it is written only as it
// was read.
func (r *Reconciler) changeFinalizers(ctx context.Context, object client.Object, change func(client.Object, string) bool) error {
	again := false
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if again { // the cache is behind
			if err := r.Live.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
				return err
			}
		}
		again = true
		before, ok := object.DeepCopyObject().(client.Object)
		if !ok || !change(object, Finalizer) {
			return nil
		}
		return r.Client.Patch(ctx, object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("change the finalizer of %s: %w", refOf(object), err)
	}
	return nil
}

// objects are those for the plan.
func (c *class) objects() plan.Objects {
	objects := plan.Objects{Brokers: slices.Concat(c.brokers, c.others)}
	for _, trigger := range c.triggers {
		if c.held[refOf(trigger)] == nil {
			objects.Triggers = append(objects.Triggers, trigger)
		}
	}
	return objects
}

func (r *Reconciler) planSettings(ctx context.Context) plan.Settings {
	s := r.Settings
	return plan.Settings{
		Project:            s.Project,
		Owner:              s.Owner,
		PushServiceAccount: s.PushServiceAccount,
		AllowHTTP:          s.AllowHTTP,
		Resolve:            func(ref duckv1.KReference) (string, error) { return r.addressOf(ctx, ref) },
		Reach:              s.reach,
		Ingress: func(namespace, broker string) string {
			pattern := orElse(s.IngressURL, "http://broker-ingress."+s.Namespace+".svc.cluster.local/{namespace}/{broker}")
			return strings.NewReplacer("{namespace}", namespace, "{broker}", broker).Replace(pattern)
		},
	}
}

// release lets go of the objects for which nothing is left to be deleted.
func (r *Reconciler) release(ctx context.Context, o outcome) error {
	if o.unread != nil {
		return nil // the pass has failed already
	}
	errs := r.forEach(len(o.class.deleted), func(i int) error {
		object := o.class.deleted[i]
		if err := o.errorOf(object); err != nil {
			r.Events.Eventf(object, nil, corev1.EventTypeWarning, "DeleteFailed", "Delete", "%s", note(err.Error()))
			return nil // applied has the error
		}
		for _, action := range o.actions[madeFor(object)] {
			if action.Verb == apply.Keep {
				r.Events.Eventf(object, nil, corev1.EventTypeWarning, "Kept", "Delete", "%s", note(action.Kind+" "+action.Name+" is kept: "+action.Detail))
			}
		}
		return r.changeFinalizers(ctx, object, controllerutil.RemoveFinalizer)
	})
	return errors.Join(errs...)
}

// forEach calls f for 0 to n-1, several at a time, and returns what it returned.
func (r *Reconciler) forEach(n int, f func(i int) error) []error {
	errs := make([]error, n)
	var group errgroup.Group
	group.SetLimit(max(1, r.Settings.Parallel))
	for i := range n {
		group.Go(func() error {
			errs[i] = f(i)
			return nil // all are called, whatever becomes of one
		})
	}
	_ = group.Wait() // nil: see above
	return errs
}

func refOf(object client.Object) plan.Ref {
	kind := "Trigger"
	if _, ok := object.(*eventingv1.Broker); ok {
		kind = "Broker"
	}
	return plan.Ref{Kind: kind, Namespace: object.GetNamespace(), Name: object.GetName()}
}

func refsOf(objects []client.Object) []plan.Ref {
	refs := make([]plan.Ref, len(objects))
	for i, object := range objects {
		refs[i] = refOf(object)
	}
	return refs
}

// note cuts text to what a Kubernetes event holds (events.k8s.io/v1: Event.note, 1 kB).
func note(text string) string {
	const limit = 1000
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}
