package cluster

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/robofleet/robofleet/simulator/autoscale"
)

// serviceLabel names the Knative Service that a Deployment or pod belongs to.
const serviceLabel = "serving.knative.dev/service"

// pods follows how many pods each Knative Service of a namespace wants and has, as the API server tells it.
type pods struct {
	mu          sync.Mutex
	deployments map[string]scale // by name: what each revision wants
	ready       map[string]string
	samples     map[string][]sample // by Service, in order of time
	changed     chan struct{}       // closed at the next change
}

type scale struct {
	service string
	wanted  int
}

// sample is the state of a Service from a moment on.
type sample struct {
	at            time.Time
	wanted, ready int
}

// watchPods follows a namespace until ctx ends. It returns when it knows the present state.
func watchPods(ctx context.Context, client kubernetes.Interface, namespace string) (*pods, error) {
	p := &pods{
		deployments: map[string]scale{}, ready: map[string]string{}, samples: map[string][]sample{}, changed: make(chan struct{}),
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = serviceLabel }))
	var synced []cache.InformerSynced
	for _, informer := range []cache.SharedIndexInformer{factory.Apps().V1().Deployments().Informer(), factory.Core().V1().Pods().Informer()} {
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { p.see(object, false) },
			UpdateFunc: func(_, object any) { p.see(object, false) },
			DeleteFunc: func(object any) { p.see(object, true) },
		})
		if err != nil {
			return nil, fmt.Errorf("watch pods: %w", err)
		}
		synced = append(synced, registration.HasSynced)
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil, fmt.Errorf("watch pods: %w", context.Cause(ctx))
	}
	return p, nil
}

// see takes a Deployment or a pod into the account.
func (p *pods) see(object any, deleted bool) {
	if tombstone, ok := object.(cache.DeletedFinalStateUnknown); ok { // its deletion was missed
		object = tombstone.Obj
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var service string
	switch o := object.(type) {
	case *appsv1.Deployment:
		service = o.Labels[serviceLabel]
		delete(p.deployments, o.Name)
		if !deleted && o.Spec.Replicas != nil {
			p.deployments[o.Name] = scale{service, int(*o.Spec.Replicas)}
		}
	case *corev1.Pod:
		service = o.Labels[serviceLabel]
		delete(p.ready, o.Name)
		if !deleted && isReady(o) {
			p.ready[o.Name] = service
		}
	}
	now := p.count(service)
	if all := p.samples[service]; len(all) > 0 && all[len(all)-1].wanted == now.wanted && all[len(all)-1].ready == now.ready {
		return
	}
	p.samples[service] = append(p.samples[service], now)
	close(p.changed)
	p.changed = make(chan struct{})
}

// isReady says whether a pod gets requests.
func isReady(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func (p *pods) count(service string) sample {
	now := sample{at: time.Now()}
	for _, d := range p.deployments {
		if d.service == service {
			now.wanted += d.wanted
		}
	}
	for _, s := range p.ready {
		if s == service {
			now.ready++
		}
	}
	return now
}

// zero waits until no Service wants or has a pod.
func (p *pods) zero(ctx context.Context) error {
	for {
		p.mu.Lock()
		total, changed := 0, p.changed
		for _, d := range p.deployments {
			total += d.wanted
		}
		total += len(p.ready)
		p.mu.Unlock()
		if total == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for zero pods: %w", context.Cause(ctx))
		}
	}
}

// one returns the name of a ready pod of a Service, "" if there is none.
func (p *pods) one(service string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range p.ready {
		if s == service {
			return name
		}
	}
	return ""
}

// curve returns the pods of a Service from start to end: what there was at that time, each change, and a last row to say how long that
// held. Times rise by 1 ms or more.
func (p *pods) curve(service string, start, end time.Time) []autoscale.Observation {
	p.mu.Lock()
	defer p.mu.Unlock()
	curve := []autoscale.Observation{{}}
	for _, s := range p.samples[service] {
		o := autoscale.Observation{Seconds: max(0, s.at.Sub(start).Truncate(time.Millisecond).Seconds()), Wanted: s.wanted, Ready: s.ready}
		if last := &curve[len(curve)-1]; last.Seconds == o.Seconds {
			*last = o
			continue
		}
		curve = append(curve, o)
	}
	last := curve[len(curve)-1]
	if seconds := end.Sub(start).Truncate(time.Millisecond).Seconds(); seconds > last.Seconds {
		last.Seconds = seconds
		curve = append(curve, last)
	}
	return curve
}

// writeCurve writes what `autoscale --observed` reads.
func writeCurve(w io.Writer, curve []autoscale.Observation) error {
	rows := csv.NewWriter(w)
	_ = rows.Write([]string{"seconds", "pods_wanted", "pods_ready"}) // Error below has what Write returns
	for _, o := range curve {
		_ = rows.Write([]string{strconv.FormatFloat(o.Seconds, 'f', 3, 64), strconv.Itoa(o.Wanted), strconv.Itoa(o.Ready)})
	}
	rows.Flush()
	return rows.Error()
}
