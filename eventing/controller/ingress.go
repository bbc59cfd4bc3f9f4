package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/robofleet/robofleet/eventing/ingress"
	"github.com/robofleet/robofleet/eventing/plan"
)

const (
	// BrokersConfigMap is what broker-ingress reads.
	BrokersConfigMap = "broker-ingress-brokers"
	// BrokersKey is the file in it.
	BrokersKey = "brokers"
	// ingressLabel and ingressName mark the pods of broker-ingress.
	ingressLabel = "app.kubernetes.io/name"
	ingressName  = "broker-ingress"
	// annotationBrokers on a pod of broker-ingress changes with the ConfigMap.
	annotationBrokers = "pubsub.eventing.robofleet.dev/brokers"
)

// serving is what the pods of broker-ingress serve.
type serving struct {
	elsewhere bool                         // nobody can be asked
	unknown   error                        // why nobody was asked
	pods      map[string]map[string]string // by pod, the topic of each Broker; nil: it did not answer
}

// lacks says why a Broker cannot be relied on at its address; "" is that it can.
func (s serving) lacks(broker, topic string) string {
	if s.elsewhere {
		return ""
	}
	if s.unknown != nil {
		return s.unknown.Error()
	}
	if len(s.pods) == 0 {
		return "no pod of broker-ingress is ready: see its Deployment"
	}
	for _, pod := range slices.Sorted(maps.Keys(s.pods)) {
		switch served := s.pods[pod]; {
		case served == nil:
			return "pod " + pod + " does not say what it serves: see its log, and whether a NetworkPolicy keeps this controller from it"
		case served[broker] != topic:
			return "pod " + pod + " has not read the new Brokers yet"
		}
	}
	return ""
}

// everywhere says whether every Broker of a plan is served.
func (s serving) everywhere(p plan.Plan) bool {
	for broker, topic := range p.IngressTopics() {
		if s.lacks(broker, topic) != "" {
			return false
		}
	}
	return true
}

// publishBrokers tells broker-ingress which Brokers there are, and finds out which of them its pods serve.
func (r *Reconciler) publishBrokers(ctx context.Context, c *class, p plan.Plan) (serving, error) {
	text, err := r.writeBrokers(ctx, c, p)
	if err != nil || r.Settings.IngressElsewhere {
		return serving{elsewhere: r.Settings.IngressElsewhere && err == nil, unknown: err}, err
	}
	var pods corev1.PodList
	if err := r.Live.List(ctx, &pods, client.InNamespace(r.Settings.Namespace), client.MatchingLabels{ingressLabel: ingressName}); err != nil {
		err = fmt.Errorf("list the pods of broker-ingress: %w", err)
		return serving{unknown: err}, err
	}
	sum := sha256.Sum256([]byte(text))
	version := hex.EncodeToString(sum[:8])
	ready := slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return !pod.DeletionTimestamp.IsZero() || !isReady(&pod) })
	answers := make([]map[string]string, len(ready))
	errs := r.forEach(len(ready), func(i int) error {
		pod := &ready[i]
		var err error
		if answers[i], err = r.ask(ctx, pod); err == nil && ingress.FormatBrokers(answers[i]) == text {
			return nil
		}
		return r.hurry(ctx, pod, version) // an answer that did not come shows in the conditions
	})
	s := serving{pods: make(map[string]map[string]string, len(ready))}
	for i := range ready {
		s.pods[ready[i].Name] = answers[i]
	}
	return s, errors.Join(errs...)
}

// writeBrokers writes the ConfigMap where it differs, and returns its text. A Broker that has a problem keeps what it had: a
// typing error in an annotation must not turn its senders away.
func (r *Reconciler) writeBrokers(ctx context.Context, c *class, p plan.Plan) (text string, err error) {
	existing := &corev1.ConfigMap{}
	err = r.Live.Get(ctx, types.NamespacedName{Namespace: r.Settings.Namespace, Name: BrokersConfigMap}, existing)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return "", fmt.Errorf("read ConfigMap %s: %w", BrokersConfigMap, err)
	}
	brokers := p.IngressTopics()
	if before, err := ingress.ParseBrokers(existing.Data[BrokersKey]); err == nil { // else somebody edited it, and it is written anew
		for _, broker := range c.brokers {
			key := broker.Namespace + "/" + broker.Name
			if topic, had := before[key]; had && brokers[key] == "" {
				brokers[key] = topic
			}
		}
	}
	text = ingress.FormatBrokers(brokers)
	switch {
	case missing:
		err = r.Client.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: r.Settings.Namespace, Name: BrokersConfigMap, Labels: map[string]string{"app.kubernetes.io/part-of": "pubsub-broker"},
			},
			Data: map[string]string{BrokersKey: text},
		})
	case existing.Data[BrokersKey] != text:
		changed := existing.DeepCopy()
		changed.Data = map[string]string{BrokersKey: text}
		err = r.Client.Patch(ctx, changed, client.MergeFrom(existing))
	default:
		return text, nil
	}
	if err != nil {
		return "", fmt.Errorf("write ConfigMap %s: %w", BrokersConfigMap, err)
	}
	return text, nil
}

func isReady(pod *corev1.Pod) bool {
	return pod.Status.PodIP != "" && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// ask reads what a pod serves.
func (r *Reconciler) ask(ctx context.Context, pod *corev1.Pod) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	address := net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(httpPort(pod)))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+ingress.BrokersPath, nil)
	if err != nil {
		return nil, fmt.Errorf("ask pod %s: %w", pod.Name, err)
	}
	response, err := r.HTTP.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask pod %s: %w", pod.Name, err)
	}
	defer func() { _ = response.Body.Close() }() // only read
	const limit = 1 << 20                        // a ConfigMap's
	text, err := io.ReadAll(io.LimitReader(response.Body, limit))
	if err != nil || response.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("pod %s answers %s", pod.Name, response.Status), err)
	}
	return ingress.ParseBrokers(string(text))
}

// httpPort is the container port named http.
func httpPort(pod *corev1.Pod) int {
	for _, container := range pod.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name == "http" {
				return int(port.ContainerPort)
			}
		}
	}
	return 8080
}

// hurry makes the kubelet refresh a pod's volumes at once, by a change of the pod: of its own it looks once a minute or so
// (https://kubernetes.io/docs/tasks/configure-pod-container/configure-pod-configmap/#mounted-configmaps-are-updated-automatically).
func (r *Reconciler) hurry(ctx context.Context, pod *corev1.Pod, version string) error {
	if pod.Annotations[annotationBrokers] == version {
		return nil
	}
	before := pod.DeepCopy()
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, annotationBrokers, version)
	if err := r.Client.Patch(ctx, pod, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("annotate pod %s: %w", pod.Name, err)
	}
	return nil
}
