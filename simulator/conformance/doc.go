// Package conformance holds Knative's Broker and Trigger expectations against the Broker class PubSub, as tests and without
// a cluster. It has no code of its own.
//
// Under test is what runs in production, over the same protocols: Triggers go through eventing/plan and eventing/apply,
// events through the handler of broker-ingress and the ordinary Pub/Sub client, and subscribers are HTTP servers that check
// the tokens of pushes. Only Pub/Sub is the embedded one (simulator/cloud/pubsub). What Knative says about the status of
// objects is tested where it is written, in eventing/controller.
//
// The expectations are those of https://github.com/knative/specs (specs/eventing: broker.md, control-plane.md, data-plane.md)
// and of Knative's own conformance features (knative.dev/eventing v0.50, test/rekt/features/broker). docs/conformance.md lists
// them with the tests; TestTheTableNamesEveryTest keeps list and tests in step.
package conformance
