package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// Labels mark what an installation owns. Package apply changes and deletes nothing without LabelOwner.
const (
	LabelOwner     = "eventing-owner"
	LabelNamespace = "eventing-namespace" // of the Broker or Trigger
	LabelBroker    = "eventing-broker"    // on a topic
	LabelTrigger   = "eventing-trigger"   // on a subscription that serves a Trigger
	LabelRole      = "eventing-role"      // RoleHold, on a subscription that serves none
)

// RoleHold marks the subscription that keeps dead letters where no Trigger takes them.
const RoleHold = "hold"

func brokerLabels(owner, namespace, name string) map[string]string {
	return map[string]string{LabelOwner: owner, LabelNamespace: labelValue(namespace), LabelBroker: labelValue(name)}
}

func triggerLabels(owner, namespace, name string) map[string]string {
	return map[string]string{LabelOwner: owner, LabelNamespace: labelValue(namespace), LabelTrigger: labelValue(name)}
}

func holdLabels(owner string) map[string]string {
	return map[string]string{LabelOwner: owner, LabelRole: RoleHold}
}

// Ref names a Broker or Trigger.
type Ref struct {
	Kind      string // "Broker" or "Trigger"
	Namespace string
	Name      string
}

// Labels returns the labels of what is made for the object, except for the owner.
func (r Ref) Labels() map[string]string {
	key := LabelTrigger
	if r.Kind == "Broker" {
		key = LabelBroker
	}
	return map[string]string{LabelNamespace: labelValue(r.Namespace), key: labelValue(r.Name)}
}

// Made says whether labels are those of something that was made for the object.
func (r Ref) Made(labels map[string]string) bool {
	for key, value := range r.Labels() {
		if labels[key] != value {
			return false
		}
	}
	return true
}

// String reads "Trigger robofleet/validate".
func (r Ref) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

// subscriptionName is readable first and unique by its hash, which covers what cannot be changed in a subscription: a
// changed filter gives another name, so that the new one can be there before the old one goes.
func subscriptionName(namespace, trigger, topic, filter string) string {
	const maxReadable = 255 - 9 // Pub/Sub's 255 less "-" and 8 of the hash
	readable := namespace + "-" + trigger
	if strings.HasPrefix(readable, "goog") || readable[0] < 'a' {
		readable = "trigger-" + readable // ids begin with a letter and not with goog
	}
	return readable[:min(len(readable), maxReadable)] + "-" + shortHash(namespace, trigger, topic, filter)
}

func holdName(topic string) string {
	return topic[:min(len(topic), 200)] + "-hold-" + shortHash(topic)
}

var labelSafe = regexp.MustCompile(`^[a-z0-9_-]{1,63}$`)

// labelValue is name if a label can hold it (Kubernetes names may be longer and have dots), or else its beginning and a hash.
func labelValue(name string) string {
	if labelSafe.MatchString(name) {
		return name
	}
	readable := strings.ReplaceAll(name, ".", "_")
	return readable[:min(len(readable), 63-9)] + "-" + shortHash(name)
}

// shortHash is 8 hexadecimal digits over parts, which cannot run into each other.
func shortHash(parts ...string) string {
	hash := sha256.New()
	for _, part := range parts {
		hash.Write([]byte(part))
		hash.Write([]byte{0})
	}
	return hex.EncodeToString(hash.Sum(nil))[:8]
}
