// Package plan translates Knative Eventing objects of the Broker class PubSub to Pub/Sub topics and subscriptions.
//
// It is one pure function, [Make]: the same objects and settings give the same plan, byte for byte, and nothing is
// called. What Pub/Sub cannot do is refused with a [Problem] and never approximated.
//
// Arrives: Brokers and Triggers (eventing.knative.dev/v1), from files ([Load]) or from a cluster.
//
// Leaves: one topic per Broker, one push subscription per Trigger, and a holding subscription for each dead-letter topic
// that no Trigger empties, because Pub/Sub drops what it forwards to a topic without subscriptions.
//
// Retried and dead-lettered: as spec.delivery of the Trigger says, or of its Broker if the Trigger says nothing.
package plan

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"
	eventingduckv1 "knative.dev/eventing/pkg/apis/duck/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/feature"
	duckv1 "knative.dev/pkg/apis/duck/v1"
)

// BrokerClass is the value of the annotation eventing.knative.dev/broker.class of the Brokers that are ours. Brokers of
// other classes, and their Triggers, are ignored.
const BrokerClass = "PubSub"

// Annotations of a Broker.
const (
	// AnnotationTopic is the id of the Broker's topic. Without it the topic is "<namespace>-<broker>".
	AnnotationTopic = "pubsub.eventing.robofleet.dev/topic"
	// AnnotationCreateTopic says whether a missing topic is created: "true", as without it, or "false", where the topic
	// is somebody else's and its absence is an error. A topic that exists without our labels is adopted either way: it is
	// used, and never changed or deleted.
	AnnotationCreateTopic = "pubsub.eventing.robofleet.dev/create-topic"
)

// Settings is what the objects do not say.
type Settings struct {
	Project string
	// Owner names this installation in the labels of what it creates, and two installations in one project must differ.
	// At most 63 lower-case letters, digits, hyphens and underscores.
	Owner string
	// PushServiceAccount is the e-mail address of the identity in the OIDC token of every push. "": no token.
	PushServiceAccount string
	// Resolve gives the absolute URL of a subscriber (or of what a relative uri is relative to). Its error becomes the
	// message of a Problem.
	Resolve func(ref duckv1.KReference) (string, error)
	// Reach gives the URL at which Pub/Sub reaches an address, which may be known inside a cluster only. nil: the address.
	// Its error becomes the message of a Problem.
	Reach func(address *url.URL) (*url.URL, error)
	// Audience gives the audience of the token for an endpoint. nil: the endpoint's scheme and host, so that a service knows
	// one audience, whatever the paths its Triggers send to. (Pub/Sub's own default would be the whole endpoint.)
	Audience func(endpoint string) string
	// Ingress gives the URL at which events for a Broker are taken over HTTP. nil: ClusterIngress.
	Ingress func(namespace, broker string) string
	// Retention is how long an event that nobody acked is kept: 10 minutes to 31 days. 0: 7 days.
	Retention time.Duration
	// AllowHTTP admits endpoints without TLS, which Pub/Sub itself refuses and a local one may take.
	AllowHTTP bool
}

const defaultRetention = 7 * 24 * time.Hour

// ClusterIngress is the address of a Broker inside a cluster.
func ClusterIngress(namespace, broker string) string {
	return fmt.Sprintf("http://broker-ingress.%s.svc/%s/%s", namespace, namespace, broker)
}

// Plan is what shall exist. Its lists are sorted by name.
type Plan struct {
	Project       string         `json:"project"`
	Owner         string         `json:"owner"`
	Brokers       []Broker       `json:"brokers"`
	Topics        []Topic        `json:"topics"`
	Subscriptions []Subscription `json:"subscriptions"`
	Problems      []Problem      `json:"problems"`
}

// Broker is where a Broker takes events and where it puts them.
type Broker struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Topic     string `json:"topic"` // id
	Ingress   string `json:"ingress"`
}

// Topic is a topic that shall exist.
type Topic struct {
	Name   string            `json:"name"`   // id, without projects/…/topics/
	Create bool              `json:"create"` // false: its absence is an error
	Labels map[string]string `json:"labels"`
}

// Subscription is a subscription that shall exist. It never expires.
type Subscription struct {
	Name        string            `json:"name"` // id, without projects/…/subscriptions/
	Topic       string            `json:"topic"`
	Filter      string            `json:"filter,omitempty"` // "": everything
	Push        *Push             `json:"push,omitempty"`   // nil: to be pulled
	AckDeadline metav1.Duration   `json:"ackDeadline"`
	Backoff     *Backoff          `json:"backoff,omitempty"`    // nil: retried at once
	DeadLetter  *DeadLetter       `json:"deadLetter,omitempty"` // nil: retried until it expires
	Retention   metav1.Duration   `json:"retention"`
	Labels      map[string]string `json:"labels"`
}

// Push is where and as whom a subscription delivers: the payload as the body, the attributes as headers.
type Push struct {
	Endpoint       string `json:"endpoint"`
	ServiceAccount string `json:"serviceAccount,omitempty"` // "": no token
	Audience       string `json:"audience,omitempty"`
}

// Backoff is the delay before the first retry and its ceiling; between them it doubles.
type Backoff struct {
	Min metav1.Duration `json:"min"`
	Max metav1.Duration `json:"max"`
}

// DeadLetter is the topic that takes an event after so many failed attempts.
type DeadLetter struct {
	Topic    string `json:"topic"`
	Attempts int    `json:"attempts"`
}

func seconds(d time.Duration) metav1.Duration { return metav1.Duration{Duration: d} }

// IngressTopics maps "<namespace>/<broker>" to the id of its topic: what broker-ingress serves.
func (p Plan) IngressTopics() map[string]string {
	topics := make(map[string]string, len(p.Brokers))
	for _, broker := range p.Brokers {
		topics[broker.Namespace+"/"+broker.Name] = broker.Topic
	}
	return topics
}

// Make translates objects.
func Make(objects Objects, settings Settings) Plan {
	if settings.Ingress == nil {
		settings.Ingress = ClusterIngress
	}
	settings.Retention = cmp.Or(settings.Retention, defaultRetention)
	m := &maker{
		settings: settings,
		// Empty lists, not nil ones: a plan is also read as JSON.
		plan: Plan{
			Project: settings.Project, Owner: settings.Owner,
			Brokers: []Broker{}, Topics: []Topic{}, Subscriptions: []Subscription{}, Problems: []Problem{},
		},
		brokers: map[string]*brokerState{},
	}
	for _, broker := range oldestFirst(objects.Brokers) {
		m.addBroker(broker)
	}
	for _, trigger := range sorted(objects.Triggers) {
		m.addTrigger(trigger)
	}
	m.holdDeadLetters()

	slices.SortFunc(m.plan.Brokers, func(a, b Broker) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(m.plan.Topics, func(a, b Topic) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(m.plan.Subscriptions, func(a, b Subscription) int { return cmp.Compare(a.Name, b.Name) })
	return m.plan
}

type maker struct {
	settings Settings
	plan     Plan
	brokers  map[string]*brokerState // by "namespace/name", those of other classes too
}

type brokerState struct {
	broker *eventingv1.Broker
	class  string
	topic  string // "": refused
}

func sorted[T metav1.Object](objects []T) []T {
	return slices.SortedFunc(slices.Values(objects), func(a, b T) int { return cmp.Compare(keyOf(a), keyOf(b)) })
}

// oldestFirst lets the Broker that had a topic first keep it, whatever the name of another that wants it too. In files all are
// of one age.
func oldestFirst(brokers []*eventingv1.Broker) []*eventingv1.Broker {
	return slices.SortedStableFunc(slices.Values(sorted(brokers)), func(a, b *eventingv1.Broker) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
}

func keyOf(object metav1.Object) string { return object.GetNamespace() + "/" + object.GetName() }

func (m *maker) refuse(kind string, object metav1.Object, refused ...*refusal) {
	for _, r := range refused {
		m.plan.Problems = append(m.plan.Problems, Problem{
			Kind: kind, Namespace: object.GetNamespace(), Name: object.GetName(), Reason: r.reason, Message: r.message,
		})
	}
}

// topicName is Pub/Sub's rule for ids (https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names).
var topicName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._~%+-]{2,254}$`)

func (m *maker) addBroker(broker *eventingv1.Broker) {
	annotations := broker.GetAnnotations()
	state := &brokerState{broker: broker, class: annotations[eventingv1.BrokerClassAnnotationKey]}
	m.brokers[keyOf(broker)] = state
	if state.class != BrokerClass {
		return
	}

	var refused []*refusal
	if r := invalidName(broker); r != nil {
		refused = append(refused, r)
	}
	// spec.config is ignored: this class has no configuration object, but Knative's webhook writes a cluster's default into
	// every Broker that has none, of whatever class, and lets nobody remove it (config-br-defaults; it is immutable).
	topic := cmp.Or(annotations[AnnotationTopic], broker.Namespace+"-"+broker.Name)
	if !topicName.MatchString(topic) || strings.HasPrefix(topic, "goog") {
		refused = append(refused, refuse(ReasonTopicName, "the topic would be %q, but Pub/Sub wants a letter and then 2 to 254 of [A-Za-z0-9._~%%+-], not beginning with goog: "+
			"set the annotation %s", topic, AnnotationTopic))
	}
	create := true
	switch value := annotations[AnnotationCreateTopic]; value {
	case "", "true":
	case "false":
		create = false
	default:
		refused = append(refused, refuse(ReasonAnnotation, "the annotation %s is %q: write \"true\" or \"false\"", AnnotationCreateTopic, value))
	}
	for _, other := range m.plan.Brokers {
		if other.Topic == topic {
			refused = append(refused, refuse(ReasonTopicConflict, "the topic %s is already that of Broker %s/%s: give each Broker its own",
				topic, other.Namespace, other.Name))
		}
	}
	if len(refused) > 0 {
		m.refuse("Broker", broker, refused...)
		return
	}

	state.topic = topic
	m.plan.Brokers = append(m.plan.Brokers, Broker{
		Namespace: broker.Namespace, Name: broker.Name, Topic: topic, Ingress: m.settings.Ingress(broker.Namespace, broker.Name),
	})
	m.plan.Topics = append(m.plan.Topics, Topic{
		Name: topic, Create: create, Labels: brokerLabels(m.settings.Owner, broker.Namespace, broker.Name),
	})
}

// addTrigger adds a Trigger's subscription, or all the reasons why it cannot be.
func (m *maker) addTrigger(original *eventingv1.Trigger) {
	trigger := original.DeepCopy()
	trigger.SetDefaults(context.Background()) // fills in the namespaces of references

	broker, ours, refused := m.brokerOf(trigger)
	if !ours {
		return
	}
	if refused != nil {
		m.refuse("Trigger", trigger, refused)
		return
	}
	if refused := cmp.Or(invalidName(trigger), validate(trigger)); refused != nil {
		m.refuse("Trigger", trigger, refused)
		return
	}

	var all []*refusal
	note := func(r *refusal) {
		if r != nil {
			all = append(all, r)
		}
	}
	spec := trigger.Spec.Delivery
	if spec == nil {
		spec = deliveryOfBroker(broker.broker) // a Trigger's delivery replaces its Broker's as a whole, as in Knative
	}
	filter, r := filterOf(&trigger.Spec)
	note(r)
	delivery, rs := deliveryOf(spec)
	all = append(all, rs...)
	deadLetter, r := m.deadLetterOf(trigger, broker, spec)
	note(r)
	push, r := m.pushOf(trigger)
	note(r)
	if len(all) > 0 {
		m.refuse("Trigger", trigger, all...)
		return
	}

	if deadLetter != nil {
		deadLetter.Attempts = delivery.attempts
	}
	m.plan.Subscriptions = append(m.plan.Subscriptions, Subscription{
		Name:        subscriptionName(trigger.Namespace, trigger.Name, broker.topic, filter),
		Topic:       broker.topic,
		Filter:      filter,
		Push:        push,
		AckDeadline: seconds(delivery.ackDeadline),
		Backoff:     delivery.backoff,
		DeadLetter:  deadLetter,
		Retention:   seconds(m.settings.Retention),
		Labels:      triggerLabels(m.settings.Owner, trigger.Namespace, trigger.Name),
	})
}

// deliveryOfBroker is what somebody wrote into a Broker. Knative's webhook writes a delivery of its own into a Broker that has
// none (config-br-defaults in the namespace knative-eventing, as Knative ships it): retry: 10 without a dead-letter sink,
// which would drop events after the tenth and which Pub/Sub cannot. Nobody asked for that, so it counts as nothing written.
func deliveryOfBroker(broker *eventingv1.Broker) *eventingduckv1.DeliverySpec {
	spec := broker.Spec.Delivery
	shipped := &eventingduckv1.DeliverySpec{
		Retry: ptr.To[int32](10), BackoffPolicy: ptr.To(eventingduckv1.BackoffPolicyExponential), BackoffDelay: ptr.To("PT0.2S"),
	}
	if equality.Semantic.DeepEqual(spec, shipped) {
		return nil
	}
	return spec
}

// brokerOf finds a Trigger's Broker. A Trigger of another class's Broker is not ours.
func (m *maker) brokerOf(trigger *eventingv1.Trigger) (broker *brokerState, ours bool, refused *refusal) {
	name := trigger.Spec.Broker
	if ref := trigger.Spec.BrokerRef; ref != nil {
		name = ref.Name
		if ref.Namespace != "" && ref.Namespace != trigger.Namespace {
			return nil, true, refuse(ReasonCrossNamespace, "spec.brokerRef names a Broker in namespace %s: create the Trigger there", ref.Namespace)
		}
	}
	broker, found := m.brokers[trigger.Namespace+"/"+name]
	switch {
	case !found:
		return nil, true, refuse(ReasonBrokerNotFound, "there is no Broker %s/%s: create it, or correct spec.broker", trigger.Namespace, name)
	case broker.class != BrokerClass:
		return nil, false, nil
	case broker.topic == "":
		return nil, true, refuse(ReasonBrokerRefused, "Broker %s/%s has a problem of its own: see there", trigger.Namespace, name)
	}
	return broker, true, nil
}

// invalidName guards the ids and labels that are made of an object's name: files have not passed a cluster's checks.
func invalidName(object metav1.Object) *refusal {
	if problems := validation.IsDNS1123Label(object.GetNamespace()); len(problems) > 0 {
		return refuse(ReasonInvalid, "metadata.namespace is %q: %s", object.GetNamespace(), problems[0])
	}
	if problems := validation.IsDNS1123Subdomain(object.GetName()); len(problems) > 0 {
		return refuse(ReasonInvalid, "metadata.name is %q: %s", object.GetName(), problems[0])
	}
	return nil
}

// validate applies Knative's own rules, which a cluster's webhook has already applied and files have not seen.
func validate(trigger *eventingv1.Trigger) *refusal {
	ctx := feature.ToContext(context.Background(), feature.Flags{
		feature.DeliveryTimeout:    feature.Enabled,
		feature.DeliveryRetryAfter: feature.Enabled,
	})
	if err := trigger.Validate(ctx); err != nil {
		return refuse(ReasonInvalid, "%s", err.Error())
	}
	return nil
}

func (m *maker) deadLetterOf(trigger *eventingv1.Trigger, from *brokerState, spec *eventingduckv1.DeliverySpec) (*DeadLetter, *refusal) {
	if spec == nil || spec.DeadLetterSink == nil {
		return nil, nil
	}
	sink := spec.DeadLetterSink
	if sink.Ref == nil || sink.URI != nil || sink.Ref.Kind != "Broker" || !strings.HasPrefix(sink.Ref.APIVersion, "eventing.knative.dev/") {
		return nil, refuse(ReasonDeadLetterSink, "spec.delivery.deadLetterSink is not a Broker, but Pub/Sub forwards dead letters to a topic only: "+
			"name a Broker of class %s, and a Trigger on it for whatever shall have them", BrokerClass)
	}
	key := cmp.Or(sink.Ref.Namespace, trigger.Namespace) + "/" + sink.Ref.Name
	broker, found := m.brokers[key]
	switch {
	case !found:
		return nil, refuse(ReasonDeadLetterSink, "spec.delivery.deadLetterSink names Broker %s, which does not exist", key)
	case broker.class != BrokerClass:
		return nil, refuse(ReasonDeadLetterSink, "spec.delivery.deadLetterSink names Broker %s of class %q: name one of class %s", key, broker.class, BrokerClass)
	case broker.topic == "":
		return nil, refuse(ReasonDeadLetterSink, "spec.delivery.deadLetterSink names Broker %s, which has a problem of its own: see there", key)
	case broker == from:
		return nil, refuse(ReasonDeadLetterLoop, "spec.delivery.deadLetterSink is the Trigger's own Broker %s: its dead letters would come back to it for ever", key)
	}
	return &DeadLetter{Topic: broker.topic}, nil
}

func (m *maker) pushOf(trigger *eventingv1.Trigger) (*Push, *refusal) {
	subscriber := trigger.Spec.Subscriber
	if subscriber.CACerts != nil {
		return nil, refuse(ReasonSubscriberCertificates, "spec.subscriber.CACerts is set, but Pub/Sub trusts public certificate authorities only: remove it")
	}
	endpoint, err := m.resolve(subscriber)
	if err != nil {
		return nil, refuse(ReasonSubscriberUnresolved, "spec.subscriber: %v", err)
	}
	if m.settings.Reach != nil {
		if endpoint, err = m.settings.Reach(endpoint); err != nil {
			return nil, refuse(ReasonSubscriberUnreachable, "spec.subscriber: %v", err)
		}
	}
	if endpoint.Scheme != "https" && (endpoint.Scheme != "http" || !m.settings.AllowHTTP) {
		return nil, refuse(ReasonSubscriberNotHTTPS, "the subscriber's address is %s, but Pub/Sub pushes to public HTTPS addresses only", endpoint)
	}

	push := &Push{Endpoint: endpoint.String()}
	if m.settings.PushServiceAccount == "" {
		return push, nil
	}
	push.ServiceAccount = m.settings.PushServiceAccount
	switch {
	case subscriber.Audience != nil:
		push.Audience = *subscriber.Audience
	case m.settings.Audience != nil:
		push.Audience = m.settings.Audience(push.Endpoint)
	default:
		push.Audience = origin(push.Endpoint)
	}
	return push, nil
}

// resolve follows Knative's rules: a ref, an absolute uri, or a uri relative to the ref's address.
func (m *maker) resolve(subscriber duckv1.Destination) (*url.URL, error) {
	base := &url.URL{}
	if subscriber.Ref != nil {
		if m.settings.Resolve == nil {
			return nil, fmt.Errorf("%s %s has no address here", subscriber.Ref.Kind, subscriber.Ref.Name)
		}
		address, err := m.settings.Resolve(*subscriber.Ref)
		if err != nil {
			return nil, err
		}
		if base, err = url.Parse(address); err != nil {
			return nil, fmt.Errorf("address of %s %s: %w", subscriber.Ref.Kind, subscriber.Ref.Name, err)
		}
	}
	if subscriber.URI != nil {
		base = base.ResolveReference(subscriber.URI.URL())
	}
	if !base.IsAbs() || base.Host == "" {
		return nil, fmt.Errorf("%q is not an absolute address", base)
	}
	return base, nil
}

// holdDeadLetters adds a subscription to every dead-letter topic from which no Trigger takes everything.
func (m *maker) holdDeadLetters() {
	taken := map[string]bool{}
	for _, s := range m.plan.Subscriptions {
		taken[s.Topic] = taken[s.Topic] || s.Filter == ""
	}
	for _, s := range slices.Clone(m.plan.Subscriptions) {
		if s.DeadLetter == nil || taken[s.DeadLetter.Topic] {
			continue
		}
		topic := s.DeadLetter.Topic
		taken[topic] = true
		m.plan.Subscriptions = append(m.plan.Subscriptions, Subscription{
			Name:        holdName(topic),
			Topic:       topic,
			AckDeadline: seconds(defaultAckDeadline),
			Retention:   seconds(m.settings.Retention),
			Labels:      holdLabels(m.settings.Owner),
		})
	}
}

// origin returns the scheme and host of a URL that has been checked.
func origin(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return endpoint
	}
	return u.Scheme + "://" + u.Host
}
