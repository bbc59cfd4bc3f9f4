// Package apply makes a project's Pub/Sub what a [plan.Plan] says, through the ordinary admin API, and does nothing
// where it already is.
//
// # What is touched
//
// Only what carries this installation's owner label. A topic without it is adopted: used, never changed, never deleted.
// A subscription without it whose name the plan wants is an error. Labels of other people on our objects stay.
//
// # What is replaced
//
// A subscription's topic and filter cannot be changed, so another filter is another subscription, by another name. A
// new subscription gets only what is published after its creation, and a deleted one takes its backlog along, so the
// backlog is handed over:
//
//  1. A snapshot of the old subscription is created. It keeps the old one's backlog and everything that is published to
//     the topic from then on (google.pubsub.v1: CreateSnapshot).
//  2. The new subscription is created. Its label eventing-handover names the snapshot.
//  3. The new subscription is sought to the snapshot: the backlog is now its own, as far as its filter wants it. That is
//     what Knative's own Brokers do, which filter when they deliver.
//  4. The old subscription is deleted.
//  5. The label is removed, and a later run deletes the snapshot once it is an hour old.
//
// Between 2 and 4 both deliver to the subscriber, and after 3 what was in flight comes again: duplicates, never a gap.
// A run that dies on the way is continued by the next one, before anything else, from the label: seeking to the same
// snapshot again is harmless, and to a newer one would not be. If a step is impossible (a snapshot must not be taken when the oldest event is
// about to expire, for example), the old subscription stays beside the new one and the error says so.
//
// # What is deleted
//
// The subscriptions of Triggers that are gone, with their backlog, as in Knative; and the topics of Brokers that are gone,
// once no subscription is left on them. With [Options.Prune] an object is gone if it is not in the plan, with
// [Options.Deleted] if it is listed there. Never what belongs to a Trigger or Broker with a [plan.Problem]: a typing error
// must not cost a backlog.
//
// # What was lost by others
//
// A subscription whose topic was deleted by hand cannot be attached to the topic that is created in its place. It is left
// to deliver the backlog that it has, and another one ("<name>-2") takes what is published from now on.
package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/api/iterator"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/robofleet/robofleet/eventing/plan"
)

// Options change how a plan is applied.
type Options struct {
	// DryRun reads, and reports what would be written.
	DryRun bool
	// Prune deletes what the owner has and the plan has not.
	Prune bool
	// Deleted lists Brokers and Triggers that were deleted for certain: what was made for them goes, with or without Prune.
	Deleted []plan.Ref
	// Parallel is how many writes may be under way at a time. 0: one, in the order of the plan.
	Parallel int
	// Timeout bounds each read and write, whose transient failures the client would otherwise retry for as long as the
	// context lives. 0: one minute.
	Timeout time.Duration
}

// Verb is what was done, or in a dry run would be.
type Verb string

// The verbs of a report.
const (
	Create  Verb = "create"
	Update  Verb = "update"
	Replace Verb = "replace" // the subscription of Action.Detail handed its backlog over and was deleted
	Delete  Verb = "delete"
	Keep    Verb = "keep" // unplanned, but deleting it would lose something: Action.Detail says what a person may do
)

// Action is one thing that was done.
type Action struct {
	Verb   Verb     `json:"verb"`
	Kind   string   `json:"kind"` // "topic", "subscription" or "snapshot"
	Name   string   `json:"name"`
	Fields []string `json:"fields,omitempty"` // of an update
	Detail string   `json:"detail,omitempty"`
	// Labels are those of what it was done for, by which plan.Ref.Labels finds the Broker or Trigger.
	Labels map[string]string `json:"-"`
}

// Report lists what was done in the order in which it was done. It is empty where everything already was as planned.
type Report struct {
	Actions []Action `json:"actions"`
	// Failures are what Apply's error joins, each with the object that it harms.
	Failures []Failure `json:"-"`
}

// Failure is one thing that could not be done.
type Failure struct {
	Kind   string // as in an Action
	Name   string
	Labels map[string]string // as in an Action
	Err    error             // with the call that failed and, where a person can mend it, how
}

// Apply makes Pub/Sub what p says. It goes on past an error to whatever does not depend on it, and returns what was done
// together with all errors, joined. Transient failures are retried by the client until ctx ends.
func Apply(ctx context.Context, client *pubsub.Client, p plan.Plan, options Options) (Report, error) {
	if p.Project == "" || p.Owner == "" {
		return Report{}, errors.New("apply: the plan has no project or no owner")
	}
	options.Timeout = cmp.Or(options.Timeout, defaultTimeout)
	a := &applier{client: client, plan: p, options: options, report: Report{Actions: []Action{}}}
	if err := a.read(ctx); err != nil {
		return a.report, err
	}
	a.passByDetached()
	a.finishHandovers(ctx)
	a.applyTopics(ctx)
	a.applySubscriptions(ctx)
	if len(options.Deleted) > 0 || options.Prune {
		a.prune(ctx)
	}
	a.dropSnapshots(ctx)
	var errs []error
	for _, failure := range a.report.Failures {
		errs = append(errs, failure.Err)
	}
	return a.report, errors.Join(errs...)
}

const defaultTimeout = time.Minute

type applier struct {
	client  *pubsub.Client
	plan    plan.Plan
	options Options

	// What exists, by id. Kept up to date by what is done, so that a dry run sees the same as a real one.
	topics        map[string]*pubsubpb.Topic
	subscriptions map[string]*pubsubpb.Subscription
	snapshots     map[string]*pubsubpb.Snapshot

	planned map[string]bool // ids of subscriptions
	report  Report
}

func (a *applier) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.options.Timeout)
	defer cancel()
	project := "projects/" + a.plan.Project
	a.topics = map[string]*pubsubpb.Topic{}
	topics := a.client.TopicAdminClient.ListTopics(ctx, &pubsubpb.ListTopicsRequest{Project: project})
	if err := each(topics.Next, func(t *pubsubpb.Topic) { a.topics[id(t.Name)] = t }); err != nil {
		return explain("list topics", project, err)
	}
	a.subscriptions = map[string]*pubsubpb.Subscription{}
	subscriptions := a.client.SubscriptionAdminClient.ListSubscriptions(ctx, &pubsubpb.ListSubscriptionsRequest{Project: project})
	if err := each(subscriptions.Next, func(s *pubsubpb.Subscription) { a.subscriptions[id(s.Name)] = s }); err != nil {
		return explain("list subscriptions", project, err)
	}
	a.snapshots = map[string]*pubsubpb.Snapshot{}
	snapshots := a.client.SubscriptionAdminClient.ListSnapshots(ctx, &pubsubpb.ListSnapshotsRequest{Project: project})
	err := each(snapshots.Next, func(s *pubsubpb.Snapshot) { a.snapshots[id(s.Name)] = s })
	// A server that has no snapshots (some emulators) has none to continue from either.
	if err != nil && status.Code(err) != codes.Unimplemented {
		return explain("list snapshots", project, err)
	}
	return nil
}

func each[T any](next func() (T, error), yield func(T)) error {
	for {
		item, err := next()
		if errors.Is(err, iterator.Done) {
			return nil
		}
		if err != nil {
			return err
		}
		yield(item)
	}
}

func id(resource string) string { return resource[strings.LastIndexByte(resource, '/')+1:] }

func (a *applier) path(collection, id string) string {
	return "projects/" + a.plan.Project + "/" + collection + "/" + id
}

func (a *applier) owns(labels map[string]string) bool { return labels[plan.LabelOwner] == a.plan.Owner }

// passByDetached gives another name to each planned subscription whose own name is taken by one that lost its topic.
func (a *applier) passByDetached() {
	a.plan.Subscriptions = slices.Clone(a.plan.Subscriptions)
	a.planned = make(map[string]bool, len(a.plan.Subscriptions))
	for i := range a.plan.Subscriptions {
		s := &a.plan.Subscriptions[i]
		base := s.Name[:min(len(s.Name), 251)] // ids have at most 255 characters
		for n := 2; a.detached(s.Name); n++ {
			s.Name = fmt.Sprintf("%s-%d", base, n)
		}
		a.planned[s.Name] = true
	}
}

// deletedTopic is the topic of subscriptions whose own was deleted (google.pubsub.v1: Subscription.topic).
const deletedTopic = "_deleted-topic_"

func (a *applier) detached(name string) bool {
	s := a.subscriptions[name]
	return s != nil && a.owns(s.Labels) && (s.Topic == deletedTopic || s.Detached)
}

// write is a call that changes something.
type write struct {
	action Action
	labels map[string]string // of what it is for
	call   func(ctx context.Context) error
	then   func() // records the success; may be nil
}

// do makes one write, unless this is a dry run, and says whether it succeeded.
func (a *applier) do(ctx context.Context, w write) bool {
	failures := len(a.report.Failures)
	a.doAll(ctx, []write{w})
	return len(a.report.Failures) == failures
}

// doAll makes writes that do not depend on each other, and reports them in their order.
func (a *applier) doAll(ctx context.Context, writes []write) {
	errs := make([]error, len(writes))
	if !a.options.DryRun {
		var group errgroup.Group
		group.SetLimit(max(1, a.options.Parallel))
		for i, w := range writes {
			group.Go(func() error {
				ctx, cancel := context.WithTimeout(ctx, a.options.Timeout)
				defer cancel()
				errs[i] = w.call(ctx)
				return nil // all are made, whatever becomes of one
			})
		}
		_ = group.Wait() // nil: see above
	}
	for i, w := range writes {
		if errs[i] != nil {
			a.fail(w.action.Kind, w.action.Name, w.labels, explain(string(w.action.Verb)+" "+w.action.Kind, w.action.Name, errs[i]))
			continue
		}
		if w.then != nil {
			w.then()
		}
		w.action.Labels = w.labels
		a.report.Actions = append(a.report.Actions, w.action)
	}
}

func (a *applier) fail(kind, name string, labels map[string]string, err error) {
	a.report.Failures = append(a.report.Failures, Failure{Kind: kind, Name: name, Labels: labels, Err: err})
}

func (a *applier) applyTopics(ctx context.Context) {
	var writes []write
	for _, want := range a.plan.Topics {
		existing, found := a.topics[want.Name]
		switch {
		case !found && !want.Create:
			a.fail("topic", want.Name, want.Labels, fmt.Errorf("topic %s does not exist, and its Broker says that it is not ours to create (annotation %s)",
				want.Name, plan.AnnotationCreateTopic))
		case !found:
			topic := &pubsubpb.Topic{Name: a.path("topics", want.Name), Labels: want.Labels}
			writes = append(writes, write{
				action: Action{Verb: Create, Kind: "topic", Name: want.Name},
				labels: want.Labels,
				call: func(ctx context.Context) error {
					_, err := a.client.TopicAdminClient.CreateTopic(ctx, topic)
					return ignore(err, codes.AlreadyExists) // somebody was faster, or an answer was lost and the call repeated
				},
				then: func() { a.topics[want.Name] = topic },
			})
		case a.owns(existing.Labels):
			labels, differ := overlay(existing.Labels, want.Labels)
			if !differ {
				continue
			}
			writes = append(writes, write{
				action: Action{Verb: Update, Kind: "topic", Name: want.Name, Fields: []string{"labels"}},
				labels: want.Labels,
				call: func(ctx context.Context) error {
					_, err := a.client.TopicAdminClient.UpdateTopic(ctx, &pubsubpb.UpdateTopicRequest{
						Topic:      &pubsubpb.Topic{Name: existing.Name, Labels: labels},
						UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
					})
					return err
				},
			})
		}
	}
	a.doAll(ctx, writes)
}

// applySubscriptions creates those without a dead-letter topic first: a dead-letter topic has its subscription before
// anything is forwarded to it.
func (a *applier) applySubscriptions(ctx context.Context) {
	for _, withDeadLetter := range []bool{false, true} {
		var writes []write
		for _, want := range a.plan.Subscriptions {
			if (want.DeadLetter != nil) != withDeadLetter {
				continue
			}
			existing, found := a.subscriptions[want.Name]
			switch {
			case found && !a.owns(existing.Labels):
				a.fail("subscription", want.Name, want.Labels, fmt.Errorf("subscription %s exists without the label %s=%s: it is not ours to change; "+
					"rename the Trigger or delete it", want.Name, plan.LabelOwner, a.plan.Owner))
			case found:
				if w, differs := a.update(existing, want); differs {
					writes = append(writes, w)
				}
			default:
				if old := a.predecessor(want); old != nil {
					a.replace(ctx, old, want)
					continue
				}
				writes = append(writes, a.create(want))
			}
		}
		a.doAll(ctx, writes)
	}
}

func (a *applier) create(want plan.Subscription) write {
	subscription := a.proto(want)
	return write{
		action: Action{Verb: Create, Kind: "subscription", Name: want.Name},
		labels: want.Labels,
		call: func(ctx context.Context) error {
			_, err := a.client.SubscriptionAdminClient.CreateSubscription(ctx, subscription)
			return ignore(err, codes.AlreadyExists)
		},
		then: func() { a.subscriptions[want.Name] = subscription },
	}
}

func (a *applier) update(existing *pubsubpb.Subscription, want plan.Subscription) (w write, differs bool) {
	changed, fields := drift(existing, a.proto(want))
	return write{
		action: Action{Verb: Update, Kind: "subscription", Name: want.Name, Fields: fields},
		labels: want.Labels,
		call: func(ctx context.Context) error {
			_, err := a.client.SubscriptionAdminClient.UpdateSubscription(ctx, &pubsubpb.UpdateSubscriptionRequest{
				Subscription: changed, UpdateMask: &fieldmaskpb.FieldMask{Paths: fields},
			})
			return err
		},
	}, len(fields) > 0
}

// refused says whether labels are those of an object that has a Problem.
func (a *applier) refused(labels map[string]string) bool {
	return slices.ContainsFunc(a.plan.Problems, func(p plan.Problem) bool { return p.Ref().Made(labels) })
}

func holds(labels, want map[string]string) bool {
	for key, value := range want {
		if labels[key] != value {
			return false
		}
	}
	return true
}

// gone says whether what has labels may be deleted if it is not planned.
func (a *applier) gone(labels map[string]string) bool {
	return a.options.Prune ||
		slices.ContainsFunc(a.options.Deleted, func(ref plan.Ref) bool { return ref.Made(labels) })
}

// prune deletes or keeps what is ours, unplanned and gone.
func (a *applier) prune(ctx context.Context) {
	var writes []write
	for _, name := range slices.Sorted(maps.Keys(a.subscriptions)) {
		s := a.subscriptions[name]
		if !a.owns(s.Labels) || a.planned[name] || !a.gone(s.Labels) {
			continue
		}
		keep := func(why string) {
			a.report.Actions = append(a.report.Actions, Action{Verb: Keep, Kind: "subscription", Name: name, Detail: why, Labels: s.Labels})
		}
		switch {
		case a.refused(s.Labels):
			keep("its Trigger has a problem: correct it, or delete the Trigger")
		case s.Labels[plan.LabelRole] == plan.RoleHold:
			keep("it may hold dead letters: delete it when they are replayed")
		case a.triggerPlanned(s.Labels):
			keep("its Trigger has another subscription now, but may not have got this one's backlog: it still delivers; delete it when its backlog is empty")
		default:
			writes = append(writes, write{
				action: Action{Verb: Delete, Kind: "subscription", Name: name},
				labels: s.Labels,
				call: func(ctx context.Context) error {
					return ignore(a.client.SubscriptionAdminClient.DeleteSubscription(ctx, &pubsubpb.DeleteSubscriptionRequest{Subscription: s.Name}), codes.NotFound)
				},
				then: func() { delete(a.subscriptions, name) },
			})
		}
	}
	a.doAll(ctx, writes)
	a.pruneTopics(ctx)
}

func (a *applier) pruneTopics(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(a.topics)) {
		t := a.topics[name]
		if !a.owns(t.Labels) || !a.gone(t.Labels) || slices.ContainsFunc(a.plan.Topics, func(want plan.Topic) bool { return want.Name == name }) {
			continue
		}
		keep := func(why string) {
			a.report.Actions = append(a.report.Actions, Action{Verb: Keep, Kind: "topic", Name: name, Detail: why, Labels: t.Labels})
		}
		switch {
		case a.refused(t.Labels):
			keep("its Broker has a problem: correct it, or delete the Broker")
		case a.subscribed(name):
			keep("it still has subscriptions")
		default:
			a.do(ctx, write{
				action: Action{Verb: Delete, Kind: "topic", Name: name},
				labels: t.Labels,
				call: func(ctx context.Context) error {
					return ignore(a.client.TopicAdminClient.DeleteTopic(ctx, &pubsubpb.DeleteTopicRequest{Topic: t.Name}), codes.NotFound)
				},
			})
		}
	}
}

func (a *applier) triggerPlanned(labels map[string]string) bool {
	return slices.ContainsFunc(a.plan.Subscriptions, func(s plan.Subscription) bool { return sameTrigger(s.Labels, labels) })
}

func sameTrigger(a, b map[string]string) bool {
	return a[plan.LabelTrigger] != "" && a[plan.LabelTrigger] == b[plan.LabelTrigger] && a[plan.LabelNamespace] == b[plan.LabelNamespace]
}

// subscribed says whether anything, ours or not, subscribes to a topic or sends it dead letters.
func (a *applier) subscribed(topic string) bool {
	for _, s := range a.subscriptions {
		if id(s.Topic) == topic || id(s.GetDeadLetterPolicy().GetDeadLetterTopic()) == topic {
			return true
		}
	}
	return false
}

func ignore(err error, code codes.Code) error {
	if status.Code(err) == code {
		return nil
	}
	return err
}

// explain says what a person can do about the errors that only a person can mend.
func explain(call, name string, err error) error {
	advice := ""
	code := status.Code(err)
	if errors.Is(err, context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	switch code {
	case codes.PermissionDenied:
		advice = " (the caller needs roles/pubsub.editor on the project, and roles/iam.serviceAccountUser on the push identity)"
	case codes.Unauthenticated:
		advice = " (no credentials: run `gcloud auth application-default login`, or use workload identity)"
	case codes.Unavailable, codes.DeadlineExceeded:
		advice = " (Pub/Sub did not answer in time: run it again, it goes on where it stopped)"
	}
	return fmt.Errorf("%s %s%s: %w", call, name, advice, err)
}
