package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// shell runs the tools that a person would use, so that what is tested is what the documentation says.
type shell struct {
	dir string    // where they run: the module's
	err io.Writer // what they have to say
}

// run runs a command and returns what it printed.
func (s shell) run(ctx context.Context, in io.Reader, command ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var out, said bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = s.dir, in, &out, io.MultiWriter(&said, s.err)
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, lastLine(said.String()))
	}
	return out.Bytes(), nil
}

func (s shell) kubectl(ctx context.Context, args ...string) error {
	_, err := s.run(ctx, nil, append([]string{"kubectl"}, args...)...)
	return err
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// render builds the images, pushes them, and returns the overlay's manifests, which name them by digest.
func (s shell) render(ctx context.Context, ko []string, overlay string) ([]byte, error) {
	manifests, err := s.run(ctx, nil, "kubectl", "kustomize", overlay)
	if err != nil {
		return nil, err
	}
	resolve := append(append([]string{}, ko...), "resolve", "--base-import-paths", "-f", "-")
	return s.run(ctx, bytes.NewReader(manifests), resolve...)
}

// apply creates what is in the manifests, and waits until all of it works: first all but the Knative Services, because a
// revision that starts before its Broker has an address fails, and holds its pod until its deadline.
func (s shell) apply(ctx context.Context, manifests []byte) error {
	services, others := split(manifests)
	for _, step := range []struct {
		manifests []byte
		ready     [][]string
	}{
		{others, [][]string{
			{"--for=condition=Available", "deployment/pubsub-broker-controller", "deployment/broker-ingress"},
			{"--for=condition=Ready", "--all", "brokers.eventing.knative.dev"},
		}},
		{services, [][]string{
			{"--for=condition=Ready", "--all", "services.serving.knative.dev,sinkbindings.sources.knative.dev,triggers.eventing.knative.dev"},
		}},
	} {
		apply := []string{"kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-"}
		if _, err := s.run(ctx, bytes.NewReader(step.manifests), apply...); err != nil {
			return err
		}
		for _, wait := range step.ready {
			if err := s.kubectl(ctx, append([]string{"wait", "--namespace", Namespace, "--timeout", readyTimeout.String()}, wait...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// split takes the Knative Services out of manifests as kustomize prints them.
func split(manifests []byte) (services, others []byte) {
	separator := []byte("\n---\n")
	for _, object := range bytes.Split(manifests, separator) {
		into := &others
		if bytes.HasPrefix(bytes.TrimSpace(object), []byte("apiVersion: serving.knative.dev/")) {
			into = &services
		}
		if len(*into) > 0 {
			*into = append(*into, separator...)
		}
		*into = append(*into, object...)
	}
	return services, others
}

// remove deletes what apply created: Knative Services before their namespace, whose end would otherwise wait for the grace
// periods of their pods; Triggers and Brokers while there is a controller that takes their finalizers off.
func (s shell) remove(ctx context.Context, manifests []byte) error {
	for _, kinds := range []string{"services.serving.knative.dev", "triggers.eventing.knative.dev", "brokers.eventing.knative.dev"} {
		if err := s.kubectl(ctx, "delete", "--namespace", Namespace, "--all", "--timeout", readyTimeout.String(), kinds); err != nil {
			return err
		}
	}
	// Pods in their grace period hold the namespace, and what they had to finish is finished.
	if err := s.kubectl(ctx, "delete", "--namespace", Namespace, "--all", "--force", "--wait=false", "pods"); err != nil {
		return err
	}
	_, err := s.run(ctx, bytes.NewReader(manifests), "kubectl", "delete", "--ignore-not-found", "--timeout", readyTimeout.String(), "-f", "-")
	return err
}
