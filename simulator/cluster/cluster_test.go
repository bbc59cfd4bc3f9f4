package cluster

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestServicesComeAfterWhatTheyNeed(t *testing.T) {
	const broker, validate, account, hotWrite = "apiVersion: eventing.knative.dev/v1\nkind: Broker", "apiVersion: serving.knative.dev/v1\nkind: Service",
		"apiVersion: v1\nkind: ServiceAccount", "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: hot-write}\n"
	services, others := split([]byte(strings.Join([]string{broker, validate, account, hotWrite}, "\n---\n")))
	if got, want := string(services), validate+"\n---\n"+hotWrite; got != want {
		t.Errorf("services: got %q, want %q", got, want)
	}
	if got, want := string(others), broker+"\n---\n"+account; got != want {
		t.Errorf("others: got %q, want %q", got, want)
	}
}

func TestPushesGoToTheIngressUnderTheirOwnHost(t *testing.T) {
	var host string
	ingress := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { host = r.Host }))
	defer ingress.Close()
	client := http.Client{Transport: pushTransport(ingress.Listener.Addr().String())}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://validate.robofleet.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if host != "validate.robofleet.example.com" {
		t.Errorf("host: %q", host)
	}
	if pushTransport("") != nil {
		t.Error("without an ingress there is a transport of our own")
	}
}

func TestAClusterThatSomebodyUsesIsRefused(t *testing.T) {
	for _, test := range []struct {
		name, namespace string
		replace         bool
		want            string // of the error; "" is none
	}{
		{"the platform", Namespace, false, "--replace"},
		{"the platform, to be replaced", Namespace, true, ""},
		{"the Broker class of somebody else", "other", true, "in namespace other"},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := fake.NewClientset(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: controller, Namespace: test.namespace}})
			err := (&trial{Config: Config{Replace: test.replace}, client: client}).free(t.Context())
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestAFailedToolSaysWhatItSaid(t *testing.T) {
	var log bytes.Buffer
	_, err := shell{t.TempDir(), &log}.run(t.Context(), nil, "sh", "-c", "echo first >&2; echo last >&2; exit 3")
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 3: last") {
		t.Errorf("error: %v", err)
	}
	if got, want := log.String(), "first\nlast\n"; got != want {
		t.Errorf("log: got %q, want %q", got, want)
	}
}
