// Package autoscale predicts how Knative scales a stage: it replays Knative's own autoscaler against a model of the stage.
//
// What is Knative's own code, version 0.50: the decisions (pkg/autoscaler/scaling with its panic mode, rates and scale-down
// delay), the averages they are made from (pkg/autoscaler/metrics), the numbers that annotations and the cluster's
// configuration resolve to (MakeDecider, MakeMetric), and the rules of the webhook for annotations. All of that takes the
// time as an argument, so that an hour passes in a second.
//
// What is rewritten from its description, because it reads the wall clock or the API server: the reconciler that applies
// the decisions (scale bounds, scaling to zero, when the activator is in the path), the activator's and queue-proxy's
// queues, and the report that wakes a service at zero (kpa.go, model.go).
//
// What is a model: robots or an upstream stage publish; Pub/Sub pushes within its window and backs off on nacks; a pod starts
// within a constant time, handles requests on its share of a CPU, holds each until the batch it is part of has been
// written, and sheds what exceeds its in-flight limit (model.go, pod.go). The numbers of the model and where they come
// from are in stage.go.
//
// Nothing here reads a clock or global randomness: the same input and seed give the same result, byte for byte.
package autoscale
