package controller

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	duckv1 "knative.dev/pkg/apis/duck/v1"
)

// addressOf gives the address of what a Trigger refers to, by Knative's rules: a Kubernetes Service by its name, everything
// else by its status.address. A Knative Service has a public URL besides, which is what Pub/Sub needs unless Settings say how
// it gets into the cluster. The error tells a person what to do.
func (r *Reconciler) addressOf(ctx context.Context, ref duckv1.KReference) (string, error) {
	name := fmt.Sprintf("%s %s/%s (%s)", ref.Kind, ref.Namespace, ref.Name, ref.APIVersion)
	version, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil || ref.APIVersion == "" {
		return "", fmt.Errorf("ref.apiVersion is %q: write group/version, such as serving.knative.dev/v1", ref.APIVersion)
	}
	kind := version.WithKind(ref.Kind)
	key := types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
	if r.Watch != nil {
		if err := r.Watch(ctx, kind, key); err != nil {
			return "", unreadable(name, kind, err)
		}
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	if err := r.Client.Get(ctx, key, object); err != nil {
		return "", unreadable(name, kind, err)
	}

	if kind == (schema.GroupVersionKind{Version: "v1", Kind: "Service"}) {
		return "http://" + ref.Name + "." + ref.Namespace + ".svc.cluster.local", nil
	}
	if kind.Group == "serving.knative.dev" && kind.Kind == "Service" && r.Settings.PushEndpoint == "" {
		if public, _, _ := unstructured.NestedString(object.Object, "status", "url"); public != "" {
			return public, nil
		}
	}
	address := statusAddress(object, ref.Address)
	if address == "" {
		return "", fmt.Errorf("%s has no address in its status.address: it is not ready yet, or it is not something that takes events", name)
	}
	return address, nil
}

// statusAddress is the URL of status.address, or of the one in status.addresses that is asked for by its name.
func statusAddress(object *unstructured.Unstructured, wanted *string) string {
	if wanted == nil {
		address, _, _ := unstructured.NestedString(object.Object, "status", "address", "url") // of another type: as if absent
		return address
	}
	addresses, _, _ := unstructured.NestedSlice(object.Object, "status", "addresses")
	for _, entry := range addresses {
		if address, ok := entry.(map[string]any); ok && address["name"] == *wanted {
			found, _ := address["url"].(string)
			return found
		}
	}
	return ""
}

func unreadable(name string, kind schema.GroupVersionKind, err error) error {
	switch {
	case meta.IsNoMatchError(err):
		return fmt.Errorf("%s: this cluster has no kind %s in %s: correct ref.kind and ref.apiVersion, or install it", name, kind.Kind, kind.GroupVersion())
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s does not exist: create it, or correct spec.subscriber.ref", name)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: the controller may not read this kind: give a ClusterRole that allows get, list and watch the label "+
			"duck.knative.dev/addressable: \"true\": %w", name, err)
	default:
		return fmt.Errorf("read %s: %w", name, err)
	}
}

// reach gives the URL at which Pub/Sub reaches an address. Addresses of the cluster, <name>.<namespace>.svc and longer, are
// translated by PushEndpoint; others stand for themselves.
func (s Settings) reach(address *url.URL) (*url.URL, error) {
	host := strings.Split(address.Hostname(), ".")
	if len(host) < 3 || host[2] != "svc" {
		return address, nil
	}
	if s.PushEndpoint == "" {
		if s.AllowHTTP {
			return address, nil
		}
		return nil, fmt.Errorf("%s is an address of the cluster, which Pub/Sub cannot reach: make the service public, "+
			"or let the operator set PUSH_ENDPOINT to where the cluster's services are reached from outside", address)
	}
	endpoint, err := url.Parse(strings.NewReplacer("{name}", host[0], "{namespace}", host[1]).Replace(s.PushEndpoint))
	if err != nil {
		return nil, fmt.Errorf("PUSH_ENDPOINT: %w", err)
	}
	endpoint = endpoint.JoinPath(address.EscapedPath())
	endpoint.RawQuery = address.RawQuery
	return endpoint, nil
}

// ownerName is Google Cloud's rule for the value of a label (https://cloud.google.com/pubsub/docs/create-topic#labels).
var ownerName = regexp.MustCompile(`^[a-z0-9_-]{1,63}$`)

// Validate finds what is wrong with the settings before anything is done with them.
func (s Settings) Validate() error {
	var errs []error
	if s.PushEndpoint != "" {
		u, err := url.Parse(strings.NewReplacer("{name}", "name", "{namespace}", "namespace").Replace(s.PushEndpoint))
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("PUSH_ENDPOINT: %w", err))
		case u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !s.AllowHTTP):
			errs = append(errs, fmt.Errorf("PUSH_ENDPOINT is %q: want https://…, with {name} and {namespace}", s.PushEndpoint))
		case !strings.Contains(s.PushEndpoint, "{name}") || !strings.Contains(s.PushEndpoint, "{namespace}"):
			errs = append(errs, fmt.Errorf("PUSH_ENDPOINT is %q: without {name} and {namespace} all services would be one", s.PushEndpoint))
		}
	}
	if s.Project == "" {
		errs = append(errs, errors.New("PUBSUB_PROJECT_ID is empty"))
	}
	if !ownerName.MatchString(s.Owner) {
		errs = append(errs, fmt.Errorf("OWNER is %q: want 1 to 63 lower-case letters, digits, hyphens and underscores", s.Owner))
	}
	if s.Resync <= 0 || s.Parallel <= 0 || s.CallTimeout <= 0 {
		errs = append(errs, errors.New("RESYNC, PARALLEL and CALL_TIMEOUT must be positive"))
	}
	return errors.Join(errs...)
}
