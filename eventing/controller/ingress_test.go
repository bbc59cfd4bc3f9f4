package controller

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/robofleet/robofleet/eventing/ingress"
)

// ingressPod is a ready pod of broker-ingress at a server of the test's own.
func ingressPod(t *testing.T, name string, serve http.HandlerFunc) *corev1.Pod {
	t.Helper()
	server := httptest.NewServer(serve)
	t.Cleanup(server.Close)
	address, ok := server.Listener.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("address %v", server.Listener.Addr())
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "robofleet", Name: name, Labels: map[string]string{"app.kubernetes.io/name": "broker-ingress"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "broker-ingress", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: int32(address.Port)}},
		}}},
		Status: corev1.PodStatus{PodIP: "127.0.0.1", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func TestABrokerIsReadyWhenEveryIngressPodServesIt(t *testing.T) {
	c := newCluster(t, twoBrokers)
	c.Settings.IngressElsewhere = false
	ready := func(want string) {
		t.Helper()
		if err := c.pass(t); err != nil {
			t.Fatal(err)
		}
		if got := conditions(&c.broker(t, "main").Status)["IngressReady"]; got != want {
			t.Errorf("IngressReady is %q, want %q", got, want)
		}
	}
	ready("Unknown IngressNotUpdated") // there is no pod

	const all = "ns/dead=buried\nns/main=ns-main\n"
	var served atomic.Value
	served.Store("")
	for i := range 2 {
		pod := ingressPod(t, fmt.Sprintf("broker-ingress-%d", i), func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != ingress.BrokersPath {
				http.NotFound(w, r)
				return
			}
			text := all // the first pod is up to date
			if i == 1 {
				text, _ = served.Load().(string)
			}
			_, _ = fmt.Fprint(w, text)
		})
		if err := c.Client.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	ready("Unknown IngressNotUpdated")
	annotation := func(name string) string {
		pod := &corev1.Pod{}
		if err := c.Client.Get(t.Context(), types.NamespacedName{Namespace: "robofleet", Name: name}, pod); err != nil {
			t.Fatal(err)
		}
		return pod.Annotations[annotationBrokers]
	}
	if annotation("broker-ingress-0") != "" || annotation("broker-ingress-1") == "" {
		t.Error("want the pod that is behind annotated, and no other")
	}
	served.Store("nonsense")
	ready("Unknown IngressNotUpdated")
	served.Store(all)
	ready("True")
	c.writes.Store(0)
	ready("True")
	if n := c.writes.Load(); n > 0 {
		t.Errorf("%d writes to the cluster when everything is served, want none", n)
	}
}

func TestABrokerWithAProblemIsStillServed(t *testing.T) {
	c := newCluster(t, twoBrokers)
	c.settle(t)
	broker := c.broker(t, "dead")
	broker.Annotations["pubsub.eventing.robofleet.dev/create-topic"] = "perhaps"
	if err := c.Client.Update(t.Context(), broker); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	served := &corev1.ConfigMap{}
	if err := c.Client.Get(t.Context(), types.NamespacedName{Namespace: "robofleet", Name: BrokersConfigMap}, served); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("ns/dead=buried\nns/main=ns-main\n", served.Data[BrokersKey]); diff != "" {
		t.Errorf("served (-want +got):\n%s", diff)
	}
}
