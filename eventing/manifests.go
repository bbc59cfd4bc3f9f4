// Package eventing holds the Brokers and Triggers of the platform: which stage receives which events.
//
// The manifests are standard Knative objects (eventing.knative.dev/v1) of the Broker class PubSub. Package plan
// translates them to Pub/Sub, package apply makes Pub/Sub so, and package ingress takes events over HTTP.
package eventing

import "embed"

// Manifests are brokers.yaml and triggers/*.yaml, for plan.Load.
//
//go:embed brokers.yaml triggers/*.yaml
var Manifests embed.FS
