// Package stages runs each stage of the platform as its own child process, the way kubelet would run its container.
//
// A stage gets the environment of a Pod and nothing of the parent's: the variables the caller names, those of the Knative
// runtime contract (PORT, K_SERVICE, K_CONFIGURATION, K_REVISION) and a minimal base. It is ready when its readiness path answers
// 2xx, is started again when it exits (at once the first time, then with a growing delay), and is stopped as a Pod is: SIGTERM, a
// grace period, SIGKILL.
//
// No child outlives the parent, even one killed with -9: Linux kills the children itself, on other Unix systems a small watcher
// process per stage does. Every child leads its own process group, so Ctrl-C in the terminal reaches the parent alone,
// which then decides in what order things stop.
package stages
