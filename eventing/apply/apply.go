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
// With [Options.Prune], the subscriptions of Triggers that are gone, with their backlog, as in Knative; and the topics of
// Brokers that are gone, once no subscription is left on them. Never what belongs to a Trigger or Broker with a
// [plan.Problem]: a typing error must not cost a backlog.
package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
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
}

// Report lists what was done in the order in which it was done. It is empty where everything already was as planned.
type Report struct {
	Actions []Action `json:"actions"`
}

// Apply makes Pub/Sub what p says. It goes on past an error to whatever does not depend on it, and returns what was done
// together with all errors, joined. Transient failures are retried by the client until ctx ends.
func Apply(ctx context.Context, client *pubsub.Client, p plan.Plan, options Options) (Report, error) {
	if p.Project == "" || p.Owner == "" {
		return Report{}, errors.New("apply: the plan has no project or no owner")
	}
	a := &applier{client: client, plan: p, options: options, report: Report{Actions: []Action{}}}
	if err := a.read(ctx); err != nil {
		return a.report, err
	}
	a.finishHandovers(ctx)
	a.applyTopics(ctx)
	a.applySubscriptions(ctx)
	if options.Prune {
		a.prune(ctx)
	}
	a.dropSnapshots(ctx)
	return a.report, errors.Join(a.errs...)
}

// callTimeout bounds one write, whose transient failures the client would otherwise retry for as long as ctx lives.
const callTimeout = time.Minute

type applier struct {
	client  *pubsub.Client
	plan    plan.Plan
	options Options

	// What exists, by id. Kept up to date by what is done, so that a dry run sees the same as a real one.
	topics        map[string]*pubsubpb.Topic
	subscriptions map[string]*pubsubpb.Subscription
	snapshots     map[string]*pubsubpb.Snapshot

	report Report
	errs   []error
}

func (a *applier) read(ctx context.Context) error {
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

// done reports action, after write has done it unless this is a dry run.
func (a *applier) done(ctx context.Context, action Action, write func(ctx context.Context) error) bool {
	if !a.options.DryRun {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := write(ctx); err != nil {
			a.errs = append(a.errs, explain(string(action.Verb)+" "+action.Kind, action.Name, err))
			return false
		}
	}
	a.report.Actions = append(a.report.Actions, action)
	return true
}

func (a *applier) applyTopics(ctx context.Context) {
	for _, want := range a.plan.Topics {
		existing, found := a.topics[want.Name]
		switch {
		case !found && !want.Create:
			a.errs = append(a.errs, fmt.Errorf("topic %s does not exist, and its Broker says that it is not ours to create (annotation %s)",
				want.Name, plan.AnnotationCreateTopic))
		case !found:
			topic := &pubsubpb.Topic{Name: a.path("topics", want.Name), Labels: want.Labels}
			if a.done(ctx, Action{Verb: Create, Kind: "topic", Name: want.Name}, func(ctx context.Context) error {
				_, err := a.client.TopicAdminClient.CreateTopic(ctx, topic)
				return ignore(err, codes.AlreadyExists) // somebody was faster, or an answer was lost and the call repeated
			}) {
				a.topics[want.Name] = topic
			}
		case a.owns(existing.Labels):
			labels, differ := overlay(existing.Labels, want.Labels)
			if !differ {
				continue
			}
			a.done(ctx, Action{Verb: Update, Kind: "topic", Name: want.Name, Fields: []string{"labels"}}, func(ctx context.Context) error {
				_, err := a.client.TopicAdminClient.UpdateTopic(ctx, &pubsubpb.UpdateTopicRequest{
					Topic:      &pubsubpb.Topic{Name: existing.Name, Labels: labels},
					UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
				})
				return err
			})
		}
	}
}

// applySubscriptions creates those without a dead-letter topic first: a dead-letter topic has its subscription before
// anything is forwarded to it.
func (a *applier) applySubscriptions(ctx context.Context) {
	ordered := slices.Clone(a.plan.Subscriptions)
	slices.SortStableFunc(ordered, func(x, y plan.Subscription) int {
		switch {
		case x.DeadLetter == nil && y.DeadLetter != nil:
			return -1
		case x.DeadLetter != nil && y.DeadLetter == nil:
			return 1
		default:
			return 0
		}
	})
	for _, want := range ordered {
		existing, found := a.subscriptions[want.Name]
		switch {
		case !found:
			a.create(ctx, want)
		case !a.owns(existing.Labels):
			a.errs = append(a.errs, fmt.Errorf("subscription %s exists without the label %s=%s: it is not ours to change; rename the Trigger or delete it",
				want.Name, plan.LabelOwner, a.plan.Owner))
		default:
			a.update(ctx, existing, want)
		}
	}
}

func (a *applier) create(ctx context.Context, want plan.Subscription) {
	if old := a.predecessor(want); old != nil {
		a.replace(ctx, old, want)
		return
	}
	subscription := a.proto(want)
	if a.done(ctx, Action{Verb: Create, Kind: "subscription", Name: want.Name}, func(ctx context.Context) error {
		_, err := a.client.SubscriptionAdminClient.CreateSubscription(ctx, subscription)
		return ignore(err, codes.AlreadyExists)
	}) {
		a.subscriptions[want.Name] = subscription
	}
}

func (a *applier) update(ctx context.Context, existing *pubsubpb.Subscription, want plan.Subscription) {
	changed, fields := drift(existing, a.proto(want))
	if len(fields) == 0 {
		return
	}
	a.done(ctx, Action{Verb: Update, Kind: "subscription", Name: want.Name, Fields: fields}, func(ctx context.Context) error {
		_, err := a.client.SubscriptionAdminClient.UpdateSubscription(ctx, &pubsubpb.UpdateSubscriptionRequest{
			Subscription: changed, UpdateMask: &fieldmaskpb.FieldMask{Paths: fields},
		})
		return err
	})
}

func (a *applier) planned(name string) bool {
	return slices.ContainsFunc(a.plan.Subscriptions, func(s plan.Subscription) bool { return s.Name == name })
}

// refused says whether labels are those of an object that has a Problem.
func (a *applier) refused(labels map[string]string) bool {
	return slices.ContainsFunc(a.plan.Problems, func(p plan.Problem) bool { return holds(labels, p.Labels()) })
}

func holds(labels, want map[string]string) bool {
	for key, value := range want {
		if labels[key] != value {
			return false
		}
	}
	return true
}

// prune deletes or keeps what is ours and unplanned.
func (a *applier) prune(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(a.subscriptions)) {
		s := a.subscriptions[name]
		if !a.owns(s.Labels) || a.planned(name) {
			continue
		}
		keep := func(why string) {
			a.report.Actions = append(a.report.Actions, Action{Verb: Keep, Kind: "subscription", Name: name, Detail: why})
		}
		switch {
		case a.refused(s.Labels):
			keep("its Trigger has a problem: correct it, or delete the Trigger")
		case s.Labels[plan.LabelRole] == plan.RoleHold:
			keep("it may hold dead letters: delete it when they are replayed")
		case a.triggerPlanned(s.Labels):
			keep("its Trigger has another subscription now, but may not have got this one's backlog: it still delivers; delete it when its backlog is empty")
		default:
			if a.done(ctx, Action{Verb: Delete, Kind: "subscription", Name: name}, func(ctx context.Context) error {
				return ignore(a.client.SubscriptionAdminClient.DeleteSubscription(ctx, &pubsubpb.DeleteSubscriptionRequest{Subscription: s.Name}), codes.NotFound)
			}) {
				delete(a.subscriptions, name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.topics)) {
		t := a.topics[name]
		if !a.owns(t.Labels) || slices.ContainsFunc(a.plan.Topics, func(want plan.Topic) bool { return want.Name == name }) {
			continue
		}
		keep := func(why string) {
			a.report.Actions = append(a.report.Actions, Action{Verb: Keep, Kind: "topic", Name: name, Detail: why})
		}
		switch {
		case a.refused(t.Labels):
			keep("its Broker has a problem: correct it, or delete the Broker")
		case a.subscribed(name):
			keep("it still has subscriptions")
		default:
			a.done(ctx, Action{Verb: Delete, Kind: "topic", Name: name}, func(ctx context.Context) error {
				return ignore(a.client.TopicAdminClient.DeleteTopic(ctx, &pubsubpb.DeleteTopicRequest{Topic: t.Name}), codes.NotFound)
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
	switch status.Code(err) {
	case codes.PermissionDenied:
		advice = " (the caller needs roles/pubsub.editor on the project, and roles/iam.serviceAccountUser on the push identity)"
	case codes.Unauthenticated:
		advice = " (no credentials: run `gcloud auth application-default login`, or use workload identity)"
	case codes.Unavailable, codes.DeadlineExceeded:
		advice = " (Pub/Sub did not answer in time: run it again, it goes on where it stopped)"
	}
	return fmt.Errorf("%s %s%s: %w", call, name, advice, err)
}
