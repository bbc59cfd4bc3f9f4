package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	eventingduckv1 "knative.dev/eventing/pkg/apis/duck/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/robofleet/robofleet/eventing/apply"
	"github.com/robofleet/robofleet/eventing/plan"
)

// BrokerConditionTopic says whether the Broker's topic is there. The other conditions are Knative's own.
const BrokerConditionTopic apis.ConditionType = "TopicReady"

// brokerConditions replaces Knative's set, which speaks of channels and filters that this class does not have.
var brokerConditions = apis.NewLivingConditionSet(
	BrokerConditionTopic,
	eventingv1.BrokerConditionIngress,
	eventingv1.BrokerConditionAddressable,
	eventingv1.BrokerConditionDeadLetterSinkResolved,
)

// dependencyAnnotation makes a Trigger wait for another object, in Knative's own Broker class.
const dependencyAnnotation = "knative.dev/dependency"

// reasonIngress is why a Broker's IngressReady is Unknown.
const reasonIngress = "IngressNotUpdated"

// outcome is all that a pass found out, by the object that it is about.
type outcome struct {
	class    *class
	unread   error // why Pub/Sub could not be read, so that nothing was tried
	serving  serving
	brokers  map[plan.Ref]plan.Broker
	topics   map[string]plan.Broker // by topic
	problems map[plan.Ref][]plan.Problem

	subscriptions map[made]plan.Subscription
	failures      map[made]error
	actions       map[made][]apply.Action
}

// made is the labels that tell for which object something was made.
type made struct{ namespace, broker, trigger string }

func madeOf(labels map[string]string) made {
	return made{namespace: labels[plan.LabelNamespace], broker: labels[plan.LabelBroker], trigger: labels[plan.LabelTrigger]}
}

func madeFor(object client.Object) made { return madeOf(refOf(object).Labels()) }

func newOutcome(c *class, p plan.Plan, report apply.Report, applied error, s serving) outcome {
	o := outcome{
		class: c, serving: s,
		brokers: map[plan.Ref]plan.Broker{}, topics: map[string]plan.Broker{}, problems: map[plan.Ref][]plan.Problem{},
		subscriptions: map[made]plan.Subscription{}, failures: map[made]error{}, actions: map[made][]apply.Action{},
	}
	if len(report.Failures) == 0 {
		o.unread = applied
	}
	for _, broker := range p.Brokers {
		o.brokers[plan.Ref{Kind: "Broker", Namespace: broker.Namespace, Name: broker.Name}] = broker
		o.topics[broker.Topic] = broker
	}
	for _, problem := range p.Problems {
		o.problems[problem.Ref()] = append(o.problems[problem.Ref()], problem)
	}
	for _, subscription := range p.Subscriptions {
		o.subscriptions[madeOf(subscription.Labels)] = subscription
	}
	for _, failure := range report.Failures {
		key := madeOf(failure.Labels)
		o.failures[key] = errors.Join(o.failures[key], failure.Err)
	}
	for _, action := range report.Actions {
		o.actions[madeOf(action.Labels)] = append(o.actions[madeOf(action.Labels)], action)
	}
	return o
}

// errorOf is why what is planned for an object is perhaps not so.
func (o outcome) errorOf(object client.Object) error {
	if o.unread != nil {
		return o.unread
	}
	return o.failures[madeFor(object)]
}

// report writes the statuses that have changed, and tells of the changes in Kubernetes events.
func (r *Reconciler) report(ctx context.Context, o outcome) error {
	type changed struct{ before, after client.Object }
	var changes []changed
	var counted counts
	brokerReady := map[plan.Ref]*apis.Condition{}
	for _, broker := range o.class.brokers {
		after := broker.DeepCopy()
		o.describeBroker(after)
		ready := brokerConditions.Manage(&after.Status).GetTopLevelCondition()
		brokerReady[refOf(after)] = ready
		counted.add("Broker", ready)
		if !equality.Semantic.DeepEqual(broker.Status, after.Status) {
			changes = append(changes, changed{broker, after})
		}
	}
	for _, trigger := range o.class.triggers {
		after := trigger.DeepCopy()
		key := brokerOf(trigger)
		o.describeTrigger(after, brokerReady[plan.Ref{Kind: "Broker", Namespace: key.Namespace, Name: key.Name}])
		counted.add("Trigger", after.Status.GetTopLevelCondition())
		if !equality.Semantic.DeepEqual(trigger.Status, after.Status) {
			changes = append(changes, changed{trigger, after})
		}
	}
	r.Metrics.counted(counted)
	r.tellActions(o)

	errs := r.forEach(len(changes), func(i int) error {
		before, after := changes[i].before, changes[i].after
		r.tellReadiness(before, after)
		// Nobody else writes it, so it need not be as it was read.
		if err := r.Client.Status().Patch(ctx, after, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("write the status of %s: %w", refOf(after), err)
		}
		return nil
	})
	return errors.Join(errs...)
}

// describeBroker writes the status of a Broker.
func (o outcome) describeBroker(broker *eventingv1.Broker) {
	ref := refOf(broker)
	s := &broker.Status
	s.ObservedGeneration = broker.Generation
	// Conditions of another class's set, of a Broker that was made anew from a copy, would stand there for ever.
	s.Conditions = only(s.Conditions, brokerConditions, BrokerConditionTopic, eventingv1.BrokerConditionIngress,
		eventingv1.BrokerConditionAddressable, eventingv1.BrokerConditionDeadLetterSinkResolved)
	conditions := brokerConditions.Manage(s)
	conditions.InitializeConditions()

	planned, inOrder := o.brokers[ref]
	if !inOrder {
		reason, message := merge(o.problems[ref])
		conditions.MarkFalse(BrokerConditionTopic, reason, "%s", message)
		conditions.MarkFalse(eventingv1.BrokerConditionAddressable, reason, "%s", message)
		conditions.MarkUnknown(eventingv1.BrokerConditionIngress, reason, "The Broker is not served anew until it is corrected.")
		s.Address = nil
	} else {
		mark(conditions, BrokerConditionTopic, o.errorOf(broker))
		if lack := o.serving.lacks(broker.Namespace+"/"+broker.Name, planned.Topic); lack != "" {
			conditions.MarkUnknown(eventingv1.BrokerConditionIngress, reasonIngress, "%s", lack)
		} else {
			conditions.MarkTrue(eventingv1.BrokerConditionIngress)
		}
		conditions.MarkTrue(eventingv1.BrokerConditionAddressable)
		s.Address = addressable(planned.Ingress)
	}

	s.DeliveryStatus = eventingduckv1.DeliveryStatus{}
	sink := sinkOf(broker.Spec.Delivery)
	if sink == nil {
		conditions.MarkTrueWithReason(eventingv1.BrokerConditionDeadLetterSinkResolved, "DeadLetterSinkNotConfigured", "No dead-letter sink is configured.")
		return
	}
	target, found := o.sinkBroker(sink, broker.Namespace)
	if !found {
		conditions.MarkFalse(eventingv1.BrokerConditionDeadLetterSinkResolved, string(plan.ReasonDeadLetterSink),
			"spec.delivery.deadLetterSink is not a Broker of class %s that is in order: name one", plan.BrokerClass)
		return
	}
	s.DeadLetterSinkURI = addressable(target.Ingress).URL
	conditions.MarkTrue(eventingv1.BrokerConditionDeadLetterSinkResolved)
}

// conditionOf is the condition of a Trigger to which a reason belongs. All others belong to SubscriptionReady.
var conditionOf = map[plan.Reason]apis.ConditionType{
	plan.ReasonBrokerNotFound:         eventingv1.TriggerConditionBroker,
	plan.ReasonBrokerRefused:          eventingv1.TriggerConditionBroker,
	plan.ReasonCrossNamespace:         eventingv1.TriggerConditionBroker,
	plan.ReasonDeadLetterLoop:         eventingv1.TriggerConditionDeadLetterSinkResolved,
	plan.ReasonDeadLetterSink:         eventingv1.TriggerConditionDeadLetterSinkResolved,
	plan.ReasonSubscriberCertificates: eventingv1.TriggerConditionSubscriberResolved,
	plan.ReasonSubscriberNotHTTPS:     eventingv1.TriggerConditionSubscriberResolved,
	plan.ReasonSubscriberUnreachable:  eventingv1.TriggerConditionSubscriberResolved,
	plan.ReasonSubscriberUnresolved:   eventingv1.TriggerConditionSubscriberResolved,
}

// describeTrigger writes the status of a Trigger; broker is the Ready condition of its Broker, nil if there is none.
func (o outcome) describeTrigger(trigger *eventingv1.Trigger, broker *apis.Condition) {
	ref := refOf(trigger)
	s := &trigger.Status
	s.ObservedGeneration = trigger.Generation
	s.InitializeConditions()
	problems := map[apis.ConditionType][]plan.Problem{}
	for _, problem := range o.problems[ref] {
		condition, special := conditionOf[problem.Reason]
		if !special {
			condition = eventingv1.TriggerConditionSubscribed
		}
		problems[condition] = append(problems[condition], problem)
	}
	planned, inOrder := o.subscriptions[madeFor(trigger)]

	if reason, message := merge(problems[eventingv1.TriggerConditionBroker]); reason != "" {
		s.MarkBrokerFailed(reason, "%s", message)
	} else {
		s.PropagateBrokerCondition(escaped(broker))
	}

	if trigger.Annotations[dependencyAnnotation] == "" {
		s.MarkDependencySucceeded()
	} else {
		s.MarkDependencyFailed("DependencyUnsupported", "the annotation %s is not known to this Broker class, and events are delivered all the same: remove it",
			dependencyAnnotation)
	}

	s.SubscriberURI = nil
	reason, message := merge(problems[eventingv1.TriggerConditionSubscriberResolved])
	switch {
	case reason != "":
		s.MarkSubscriberResolvedFailed(reason, "%s", message)
	case inOrder && planned.Push != nil:
		s.SubscriberURI = parsed(planned.Push.Endpoint)
		s.MarkSubscriberResolvedSucceeded()
	default:
		s.MarkSubscriberResolvedUnknown("NotResolved", "The subscriber is looked up when the Trigger's other problems are mended.")
	}

	s.DeliveryStatus = eventingduckv1.DeliveryStatus{}
	reason, message = merge(problems[eventingv1.TriggerConditionDeadLetterSinkResolved])
	switch {
	case reason != "":
		s.MarkDeadLetterSinkResolvedFailed(reason, "%s", message)
	case inOrder && planned.DeadLetter != nil:
		s.DeadLetterSinkURI = addressable(o.topics[planned.DeadLetter.Topic].Ingress).URL
		s.MarkDeadLetterSinkResolvedSucceeded()
	case !inOrder && sinkOf(trigger.Spec.Delivery) != nil:
		triggerConditions.Manage(s).MarkUnknown(eventingv1.TriggerConditionDeadLetterSinkResolved, "NotResolved",
			"The dead-letter sink is looked up when the Trigger's other problems are mended.")
	default:
		s.MarkDeadLetterSinkNotConfigured()
	}

	held := o.class.held[ref]
	reason, message = merge(problems[eventingv1.TriggerConditionSubscribed])
	switch {
	case held != nil:
		s.MarkNotSubscribed("FinalizerRefused", "%v", held)
	case reason != "":
		s.MarkNotSubscribed(reason, "%s", message)
	case !inOrder:
		s.MarkSubscribedUnknown("NotPlanned", "The subscription is made when the Trigger's other problems are mended. One that is there already is left as it is.")
	default:
		mark(triggerConditions.Manage(s), eventingv1.TriggerConditionSubscribed, o.errorOf(trigger))
	}
}

// triggerConditions is Knative's set of a Trigger.
var triggerConditions = (&eventingv1.Trigger{}).GetConditionSet()

// merge makes one reason and message of all problems of one condition; "" is none.
func merge(problems []plan.Problem) (reason, message string) {
	var messages []string
	for _, problem := range problems {
		messages = append(messages, problem.Message)
	}
	if len(problems) > 0 {
		reason = string(problems[0].Reason)
	}
	return reason, strings.Join(messages, "; ")
}

// mark is True without an error, Unknown with one that will pass, and False with one that a person has to mend.
func mark(conditions apis.ConditionManager, condition apis.ConditionType, err error) {
	if err == nil {
		conditions.MarkTrue(condition)
		return
	}
	reason, passing := classify(err)
	if passing {
		conditions.MarkUnknown(condition, reason, "%v", err)
	} else {
		conditions.MarkFalse(condition, reason, "%v", err)
	}
}

// classify gives the word for an error of Pub/Sub, and says whether it passes without anybody doing anything.
func classify(err error) (reason string, passing bool) {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return "PubSubUnavailable", true
	}
	switch code := status.Code(err); code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Aborted, codes.Canceled:
		return "PubSubUnavailable", true
	case codes.ResourceExhausted:
		return "QuotaExceeded", true
	case codes.Unknown:
		return "NotOurs", false // package apply found something that belongs to somebody else
	default: // PermissionDenied, Unauthenticated, InvalidArgument, NotFound, …
		return code.String(), false
	}
}

func sinkOf(spec *eventingduckv1.DeliverySpec) *duckv1.Destination {
	if spec == nil {
		return nil
	}
	return spec.DeadLetterSink
}

func (o outcome) sinkBroker(sink *duckv1.Destination, namespace string) (broker plan.Broker, found bool) {
	if sink.Ref == nil || sink.Ref.Kind != "Broker" {
		return plan.Broker{}, false
	}
	broker, found = o.brokers[plan.Ref{Kind: "Broker", Namespace: orElse(sink.Ref.Namespace, namespace), Name: sink.Ref.Name}]
	return broker, found
}

func addressable(address string) *duckv1.Addressable {
	u := parsed(address)
	if u == nil {
		return &duckv1.Addressable{}
	}
	return &duckv1.Addressable{Name: &u.Scheme, URL: u}
}

// parsed is nil where address is not a URL, which the plan and the settings have ruled out.
func parsed(address string) *apis.URL {
	u, err := apis.ParseURL(address)
	if err != nil {
		return nil
	}
	return u
}

// escaped is a condition whose message can be used as a format, as Knative's Propagate… does.
func escaped(condition *apis.Condition) *apis.Condition {
	if condition == nil {
		return nil
	}
	copied := *condition
	copied.Message = strings.ReplaceAll(copied.Message, "%", "%%")
	return &copied
}

// only leaves the conditions of a set.
func only(conditions duckv1.Conditions, set apis.ConditionSet, dependents ...apis.ConditionType) duckv1.Conditions {
	keep := map[apis.ConditionType]bool{set.GetTopLevelConditionType(): true}
	for _, condition := range dependents {
		keep[condition] = true
	}
	var kept duckv1.Conditions
	for _, condition := range conditions {
		if keep[condition.Type] {
			kept = append(kept, condition)
		}
	}
	return kept
}

// tellReadiness makes an event of a change between ready and not, or of another reason for not.
func (r *Reconciler) tellReadiness(before, after client.Object) {
	was, is := readyOf(before), readyOf(after)
	switch {
	case is == nil || was != nil && was.Status == is.Status && was.Reason == is.Reason:
	case is.Reason == reasonIngress && is.IsUnknown(): // a matter of seconds with every new Broker
	case is.IsTrue():
		r.Events.Eventf(after, nil, corev1.EventTypeNormal, "Ready", "Reconcile", "%s is ready", refOf(after).Kind)
	default:
		r.Events.Eventf(after, nil, corev1.EventTypeWarning, orElse(is.Reason, "NotReady"), "Reconcile", "%s", note(is.Message))
	}
}

func readyOf(object client.Object) *apis.Condition {
	switch o := object.(type) {
	case *eventingv1.Broker:
		return brokerConditions.Manage(&o.Status).GetTopLevelCondition()
	case *eventingv1.Trigger:
		return o.Status.GetTopLevelCondition()
	default:
		return nil
	}
}

// tellActions makes an event of every write.
func (r *Reconciler) tellActions(o outcome) {
	reasons := map[apply.Verb]string{apply.Create: "Created", apply.Update: "Updated", apply.Replace: "Replaced", apply.Delete: "Deleted"}
	tell := func(object client.Object) {
		for _, action := range o.actions[madeFor(object)] {
			if reason := reasons[action.Verb]; reason != "" {
				detail := strings.TrimSpace(strings.Join(action.Fields, ", ") + " " + action.Detail)
				r.Events.Eventf(object, nil, corev1.EventTypeNormal, reason, "Apply", "%s", note(strings.TrimSpace(action.Kind+" "+action.Name+" "+detail)))
			}
		}
	}
	for _, broker := range o.class.brokers {
		tell(broker)
	}
	for _, trigger := range o.class.triggers {
		tell(trigger)
	}
	for _, object := range o.class.deleted {
		tell(object)
	}
}
