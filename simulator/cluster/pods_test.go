package cluster

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/robofleet/robofleet/simulator/autoscale"
)

func deployment(name, service string, replicas int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: Namespace, Labels: map[string]string{serviceLabel: service}},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas},
	}
}

func readyPod(name, service string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: Namespace, Labels: map[string]string{serviceLabel: service}},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func TestPodsFollowTheCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client := fake.NewClientset(deployment("validate-1", "validate", 1), deployment("hot-write-1", "hot-write", 0), readyPod("a", "validate"))
	p, err := watchPods(ctx, client, Namespace)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.one("validate"); got != "a" {
		t.Errorf("one ready pod of validate: %q, want a", got)
	}
	if got := p.one("hot-write"); got != "" {
		t.Errorf("one ready pod of hot-write: %q, want none", got)
	}
	if _, err := client.AppsV1().Deployments(Namespace).Update(ctx, deployment("validate-1", "validate", 0), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().Pods(Namespace).Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.zero(ctx); err != nil {
		t.Fatal(err)
	}
	curve := p.curve("validate", time.Now(), time.Now())
	if got := curve[len(curve)-1]; got.Wanted != 0 || got.Ready != 0 {
		t.Errorf("at the end: %+v, want no pods", got)
	}
}

func TestZeroSaysWhyItGaveUp(t *testing.T) {
	client := fake.NewClientset(deployment("validate-1", "validate", 1))
	p, err := watchPods(t.Context(), client, Namespace)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.zero(ctx); err == nil || !strings.Contains(err.Error(), "zero pods") {
		t.Errorf("zero: %v", err)
	}
}

func TestCurveBeginsWithWhatThereWas(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	p := &pods{samples: map[string][]sample{"validate": {
		{at(-5000), 1, 1}, {at(-2000), 0, 1}, {at(-1000), 0, 0}, {at(400), 1, 0}, {at(1500), 1, 1},
		{start.Add(1500*time.Millisecond + 300*time.Microsecond), 2, 1}, {at(9000), 0, 0},
	}}}
	got := p.curve("validate", start, at(11_000))
	want := []autoscale.Observation{{}, {Seconds: 0.4, Wanted: 1}, {Seconds: 1.5, Wanted: 2, Ready: 1}, {Seconds: 9}, {Seconds: 11}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("curve (-want +got):\n%s", diff)
	}
	if got, want := summary(got), "wanted after 0.4 s, ready after 1.5 s, at most 1 pods, zero after 9.0 s"; got != want {
		t.Errorf("summary: got %q, want %q", got, want)
	}
	if got, want := strip(got), "001111111000"; got != want {
		t.Errorf("strip: got %s, want %s", got, want)
	}
	var file strings.Builder
	if err := writeCurve(&file, got); err != nil {
		t.Fatal(err)
	}
	read, err := autoscale.ParseObserved(strings.NewReader(file.String()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, read); diff != "" {
		t.Errorf("what autoscale reads (-written +read):\n%s", diff)
	}
}

func TestSummaryOfAServiceThatNeverRan(t *testing.T) {
	if got, want := summary([]autoscale.Observation{{}, {Seconds: 3, Wanted: 1}}), "never had a pod"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
