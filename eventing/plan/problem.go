package plan

import "fmt"

// Reason says in one word why an object was refused. It is written for a Kubernetes condition, whose reasons are CamelCase.
type Reason string

// The reasons for which a Broker or Trigger is refused.
const (
	ReasonInvalid                Reason = "Invalid"                      // breaks Knative's own rules
	ReasonBrokerNotFound         Reason = "BrokerNotFound"               // the Trigger names a Broker that does not exist
	ReasonBrokerRefused          Reason = "BrokerRefused"                // the Trigger's Broker has a Problem of its own
	ReasonCrossNamespace         Reason = "CrossNamespaceUnsupported"    // the Trigger's Broker is in another namespace
	ReasonTopicName              Reason = "TopicNameInvalid"             // not a name that Pub/Sub accepts
	ReasonTopicConflict          Reason = "TopicConflict"                // another Broker has the same topic
	ReasonAnnotation             Reason = "AnnotationInvalid"            // an annotation of this class has an unknown value
	ReasonFilterDialect          Reason = "FilterDialectUnsupported"     // suffix or CE SQL
	ReasonFilterAttribute        Reason = "FilterAttributeUnsupported"   // an attribute that Pub/Sub does not see as Knative does
	ReasonFilterValue            Reason = "FilterValueUnsupported"       // empty, or not printable text
	ReasonFilterTooLong          Reason = "FilterTooLong"                // over Pub/Sub's 256 bytes
	ReasonRetry                  Reason = "RetryOutOfRange"              // not 4 to 99
	ReasonRetryWithoutSink       Reason = "RetryWithoutDeadLetterSink"   // Pub/Sub gives up only where there is a dead-letter topic
	ReasonBackoff                Reason = "BackoffOutOfRange"            // not 0 to 600 s
	ReasonBackoffPolicy          Reason = "BackoffPolicyUnsupported"     // linear, or a policy without a delay
	ReasonTimeout                Reason = "TimeoutOutOfRange"            // not whole seconds from 10 to 600
	ReasonRetryAfter             Reason = "RetryAfterUnsupported"        // Pub/Sub does not read Retry-After
	ReasonFormat                 Reason = "FormatUnsupported"            // structured mode
	ReasonDeadLetterSink         Reason = "DeadLetterSinkUnsupported"    // not a Broker of this class in the plan
	ReasonDeadLetterLoop         Reason = "DeadLetterSinkLoop"           // dead letters would come back to the same Trigger
	ReasonSubscriberUnresolved   Reason = "SubscriberNotResolved"        // nothing, or nothing with an address, by that name
	ReasonSubscriberUnreachable  Reason = "SubscriberUnreachable"        // its address is not one that Pub/Sub can reach
	ReasonSubscriberNotHTTPS     Reason = "SubscriberNotHTTPS"           // Pub/Sub pushes to HTTPS only
	ReasonSubscriberCertificates Reason = "SubscriberCACertsUnsupported" // Pub/Sub trusts public certificate authorities only
)

// Problem is why an object is not in the plan. Other objects are unharmed, and what an earlier plan made of this one is
// left as it is.
type Problem struct {
	Kind      string `json:"kind"` // "Broker" or "Trigger"
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Reason    Reason `json:"reason"`
	// Message tells a person what was found and what to write instead.
	Message string `json:"message"`
}

// Error reads "Trigger robofleet/validate: RetryOutOfRange: spec.delivery.retry is 100: …".
func (p Problem) Error() string {
	return fmt.Sprintf("%s %s/%s: %s: %s", p.Kind, p.Namespace, p.Name, p.Reason, p.Message)
}

// Ref is the object that has the Problem.
func (p Problem) Ref() Ref { return Ref{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name} }

// refusal is a Problem before it is known whose it is.
type refusal struct {
	reason  Reason
	message string
}

func refuse(reason Reason, format string, args ...any) *refusal {
	return &refusal{reason: reason, message: fmt.Sprintf(format, args...)}
}
