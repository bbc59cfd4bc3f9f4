package knative

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// end is one end of a connection: a pod, of the platform or of another namespace, or an address outside.
type end struct {
	namespace string
	labels    map[string]string
	ports     map[string]int // by name
	address   string
}

func outside(address string) end { return end{address: address} }

func networkHasTheArrows(t *testing.T, m *manifests) {
	own := func(name string) end {
		p := m.pod(t, name)
		e := end{namespace: namespace, labels: p.labels, ports: make(map[string]int)}
		for _, port := range p.spec.Containers[0].Ports {
			e.ports[port.Name] = int(port.ContainerPort)
		}
		return e
	}
	other := func(namespace string, labels map[string]string) end { return end{namespace: namespace, labels: labels} }
	activator := other("knative-serving", map[string]string{"app": "activator"})
	autoscaler := other("knative-serving", map[string]string{"app": "autoscaler"})
	gateway := other("kourier-system", map[string]string{"app": "3scale-kourier-gateway"})
	dns := other("kube-system", map[string]string{"k8s-app": "kube-dns"})
	prometheus := other("monitoring", map[string]string{"app": "prometheus"})
	stranger := other("default", map[string]string{"app": "activator"})

	local := m.overlay == "local"
	type arrow struct {
		name     string
		from, to end
		port     int
		want     bool
	}
	ingress, controller := own("broker-ingress"), own("pubsub-broker-controller")
	arrows := []arrow{
		{"controller → broker-ingress", controller, ingress, 8080, true},
		{"controller → the API server", controller, outside("10.96.0.1"), 443, true},
		{"Prometheus → broker-ingress", prometheus, ingress, 9090, true},
		{"Prometheus → controller", prometheus, controller, 9090, true},
		{"a stranger → broker-ingress", stranger, ingress, 8080, false},
		{"a stranger → controller", stranger, controller, 9090, false},
		{"broker-ingress → Google", ingress, outside("142.250.1.1"), 443, true},
		{"broker-ingress → embedded cloud", ingress, outside("10.200.0.1"), 8600, local},
		{"controller → embedded cloud", controller, outside("10.200.0.1"), 8600, local},
		{"broker-ingress → DNS", ingress, dns, 53, true},
	}
	for name := range m.services {
		emits := name == "hot-write" || name == "validate"
		arrows = append(arrows,
			arrow{"activator → " + name, activator, own(name), 8012, true},
			arrow{"gateway → " + name, gateway, own(name), 8012, true},
			arrow{"gateway → " + name + " past queue-proxy", gateway, own(name), 8080, false},
			arrow{"autoscaler → " + name, autoscaler, own(name), 9090, true},
			arrow{"autoscaler → " + name + "'s front", autoscaler, own(name), 8012, false},
			arrow{"Prometheus → " + name, prometheus, own(name), 9095, true},
			arrow{"Prometheus → queue-proxy of " + name, prometheus, own(name), 9091, true},
			arrow{"a stranger → " + name, stranger, own(name), 8012, false},
			arrow{"the internet → " + name, outside("203.0.113.1"), own(name), 8012, false},
			arrow{"itself → " + name, own(name), own(name), 8012, false},
			arrow{name + " → DNS", own(name), dns, 53, true},
			arrow{name + " → the API server", own(name), outside("10.96.0.1"), 443, false},
			arrow{name + " → Google", own(name), outside("142.250.1.1"), 443, !local},
			arrow{name + " → a web server", own(name), outside("142.250.1.1"), 80, false},
			arrow{name + " → embedded cloud", own(name), outside("10.200.0.1"), 8603, local},
			arrow{name + " → metadata server", own(name), outside("169.254.169.254"), 80, !local && name != "validate"},
		)
		arrows = append(arrows,
			arrow{name + " → broker-ingress", own(name), ingress, 8080, emits},
			arrow{name + " → metrics of broker-ingress", own(name), ingress, 9090, false},
		)
		for to := range m.services {
			arrows = append(arrows, arrow{name + " → " + to, own(name), own(to), 8012, false})
		}
	}
	for _, a := range arrows {
		if got := m.allowed(t, a.from, a.to, a.port); got != a.want {
			t.Errorf("%s:%d: allowed is %t, want %t", a.name, a.port, got, a.want)
		}
	}
}

// allowed says whether the policies let from connect to a TCP port of to: both ends must agree.
func (m *manifests) allowed(t *testing.T, from, to end, port int) bool {
	return m.agrees(t, networkingv1.PolicyTypeEgress, from, to, port) && m.agrees(t, networkingv1.PolicyTypeIngress, to, from, port)
}

// agrees says whether the policies of one end allow the other. A pod that no policy of the direction selects agrees to all.
func (m *manifests) agrees(t *testing.T, direction networkingv1.PolicyType, self, peer end, port int) bool {
	t.Helper()
	if self.namespace != namespace {
		return true
	}
	selected := false
	for _, p := range m.policies {
		if !slices.Contains(p.Spec.PolicyTypes, direction) || !matches(t, &p.Spec.PodSelector, self.labels) {
			continue
		}
		selected = true
		if direction == networkingv1.PolicyTypeEgress {
			for _, r := range p.Spec.Egress {
				if isPeer(t, r.To, peer) && isPort(r.Ports, peer, port) {
					return true
				}
			}
			continue
		}
		for _, r := range p.Spec.Ingress {
			if isPeer(t, r.From, peer) && isPort(r.Ports, self, port) {
				return true
			}
		}
	}
	return !selected
}

func isPeer(t *testing.T, peers []networkingv1.NetworkPolicyPeer, e end) bool {
	t.Helper()
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		if p.IPBlock != nil {
			return e.address != "" && inside(t, p.IPBlock.CIDR, e.address) &&
				!slices.ContainsFunc(p.IPBlock.Except, func(cidr string) bool { return inside(t, cidr, e.address) })
		}
		if e.address != "" {
			return false
		}
		if p.NamespaceSelector == nil && e.namespace != namespace {
			return false
		}
		if p.NamespaceSelector != nil && !matches(t, p.NamespaceSelector, map[string]string{corev1.LabelMetadataName: e.namespace}) {
			return false
		}
		return p.PodSelector == nil || matches(t, p.PodSelector, e.labels)
	})
}

// isPort says whether a port of an end is among those of a rule.
func isPort(ports []networkingv1.NetworkPolicyPort, of end, port int) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		if p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			return false
		}
		if p.Port.Type == intstr.String {
			return of.ports[p.Port.StrVal] == port
		}
		last := p.Port.IntValue()
		if p.EndPort != nil {
			last = int(*p.EndPort)
		}
		return p.Port.IntValue() <= port && port <= last
	})
}

func inside(t *testing.T, cidr, address string) bool {
	t.Helper()
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	return prefix.Contains(a)
}
