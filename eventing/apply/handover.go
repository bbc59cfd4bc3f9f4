package apply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/robofleet/robofleet/eventing/plan"
)

const (
	// labelHandover on a subscription is the id of the snapshot to which it is still to be sought. Without it a
	// subscription has everything that its predecessor had.
	labelHandover = "eventing-handover"
	// labelPredecessor on the snapshot is the hash of the id of the subscription that it was taken of.
	labelPredecessor = "eventing-predecessor"
	// labelCreated on a snapshot is when it was taken, in Unix seconds.
	labelCreated = "eventing-created"
)

// snapshotAge is how long a snapshot outlives its use: a seek takes effect gradually.
const snapshotAge = time.Hour

// predecessor finds the subscription whose backlog a new one takes over: the one that serves the same Trigger on the same
// topic, or the one that holds the topic's dead letters.
func (a *applier) predecessor(want plan.Subscription) *pubsubpb.Subscription {
	var found *pubsubpb.Subscription
	for _, name := range slices.Sorted(maps.Keys(a.subscriptions)) {
		s := a.subscriptions[name]
		if !a.owns(s.Labels) || a.planned[name] || id(s.Topic) != want.Topic {
			continue
		}
		if sameTrigger(s.Labels, want.Labels) {
			return s
		}
		if s.Labels[plan.LabelRole] == plan.RoleHold && want.Filter == "" {
			found = s
		}
	}
	return found
}

// replace creates want and hands it the backlog of old. The steps are explained in the package comment.
func (a *applier) replace(ctx context.Context, old *pubsubpb.Subscription, want plan.Subscription) {
	a.do(ctx, write{action: Action{Verb: Replace, Kind: "subscription", Name: want.Name, Detail: id(old.Name)}, labels: want.Labels, call: func(ctx context.Context) error {
		snapshot := &pubsubpb.Snapshot{
			Name:  a.path("snapshots", "eventing-"+hash(old.Name, want.Name)+"-"+strconv.FormatInt(time.Now().Unix(), 10)),
			Topic: old.Topic,
			Labels: map[string]string{
				plan.LabelOwner: a.plan.Owner, labelPredecessor: hash(id(old.Name)), labelCreated: strconv.FormatInt(time.Now().Unix(), 10),
			},
		}
		_, err := a.client.SubscriptionAdminClient.CreateSnapshot(ctx, &pubsubpb.CreateSnapshotRequest{
			Name: snapshot.Name, Subscription: old.Name, Labels: snapshot.Labels,
		})
		if err := ignore(err, codes.AlreadyExists); err != nil {
			// Without a snapshot the old one is left to deliver its backlog; beside the new one that costs duplicates only.
			if _, created := a.client.SubscriptionAdminClient.CreateSubscription(ctx, a.proto(want)); created == nil {
				a.subscriptions[want.Name] = a.proto(want)
			}
			return fmt.Errorf("create a snapshot of %s, which stays beside the new subscription until somebody deletes it: %w", id(old.Name), err)
		}
		a.snapshots[id(snapshot.Name)] = snapshot

		subscription := a.proto(want)
		subscription.Labels[labelHandover] = id(snapshot.Name)
		if _, err := a.client.SubscriptionAdminClient.CreateSubscription(ctx, subscription); err != nil {
			return fmt.Errorf("create it: %w", err)
		}
		a.subscriptions[want.Name] = subscription
		return a.finishHandover(ctx, subscription)
	}})
	if a.options.DryRun {
		a.subscriptions[want.Name] = a.proto(want)
		delete(a.subscriptions, id(old.Name))
	}
}

// finishHandovers completes what an earlier run began and did not end.
func (a *applier) finishHandovers(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(a.subscriptions)) {
		s := a.subscriptions[name]
		if a.owns(s.Labels) && s.Labels[labelHandover] != "" {
			a.do(ctx, write{
				action: Action{Verb: Replace, Kind: "subscription", Name: name, Detail: "continued from snapshot " + s.Labels[labelHandover]},
				labels: s.Labels,
				call:   func(ctx context.Context) error { return a.finishHandover(ctx, s) },
			})
		}
	}
}

func (a *applier) finishHandover(ctx context.Context, to *pubsubpb.Subscription) error {
	snapshot, found := a.snapshots[to.Labels[labelHandover]]
	if !found {
		return fmt.Errorf("the snapshot %s with the backlog of its predecessor is gone: let the predecessor deliver its backlog, delete it, "+
			"and remove the label %s", to.Labels[labelHandover], labelHandover)
	}
	if _, err := a.client.SubscriptionAdminClient.Seek(ctx, &pubsubpb.SeekRequest{
		Subscription: to.Name, Target: &pubsubpb.SeekRequest_Snapshot{Snapshot: snapshot.Name},
	}); err != nil {
		return fmt.Errorf("seek to snapshot %s: %w", id(snapshot.Name), err)
	}
	for name, old := range a.subscriptions {
		if !a.owns(old.Labels) || hash(name) != snapshot.Labels[labelPredecessor] {
			continue
		}
		err := a.client.SubscriptionAdminClient.DeleteSubscription(ctx, &pubsubpb.DeleteSubscriptionRequest{Subscription: old.Name})
		if err := ignore(err, codes.NotFound); err != nil {
			return fmt.Errorf("delete its predecessor %s: %w", name, err)
		}
		delete(a.subscriptions, name)
	}
	labels := maps.Clone(to.Labels)
	delete(labels, labelHandover)
	if _, err := a.client.SubscriptionAdminClient.UpdateSubscription(ctx, &pubsubpb.UpdateSubscriptionRequest{
		Subscription: &pubsubpb.Subscription{Name: to.Name, Topic: to.Topic, Labels: labels},
		UpdateMask:   &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
	}); err != nil {
		return fmt.Errorf("remove the label %s: %w", labelHandover, err)
	}
	to.Labels = labels
	return nil
}

// dropSnapshots deletes the snapshots of handovers that ended a while ago. They would expire by themselves, within 7 days.
func (a *applier) dropSnapshots(ctx context.Context) {
	waiting := map[string]bool{}
	for _, s := range a.subscriptions {
		waiting[s.Labels[labelHandover]] = true
	}
	for _, name := range slices.Sorted(maps.Keys(a.snapshots)) {
		snapshot := a.snapshots[name]
		created, err := strconv.ParseInt(snapshot.Labels[labelCreated], 10, 64)
		if !a.owns(snapshot.Labels) || err != nil || waiting[name] || time.Since(time.Unix(created, 0)) < snapshotAge {
			continue
		}
		a.do(ctx, write{action: Action{Verb: Delete, Kind: "snapshot", Name: name}, labels: snapshot.Labels, call: func(ctx context.Context) error {
			return ignore(a.client.SubscriptionAdminClient.DeleteSnapshot(ctx, &pubsubpb.DeleteSnapshotRequest{Snapshot: snapshot.Name}), codes.NotFound)
		}})
	}
}

// hash is 16 hexadecimal digits over parts: ids are longer than what a label can hold.
func hash(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}
