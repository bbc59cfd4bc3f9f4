package stages

import (
	"fmt"
	"time"
)

// Kind is what happened to a stage.
type Kind string

// The kinds of events.
const (
	Started Kind = "started" // its process runs
	Ready   Kind = "ready"   // its readiness path answered 2xx
	Exited  Kind = "exited"  // its process ended, asked to or not
)

// Event is one moment in the life of a stage.
type Event struct {
	Time  time.Time
	Stage string
	Kind  Kind
	PID   int
	// Restarts counts the starts after the first, so 0 is the first process of the stage.
	Restarts int
	// After is how long the process has been running.
	After time.Duration
	// Status is how the process ended: "exit status 1", "signal: killed". Exited only.
	Status string
	// RestartIn is the delay before the next start; negative when the stage was told to stop. Exited only.
	RestartIn time.Duration
}

// String is one line for people, such as "validate exited (signal: killed), restarting now".
func (e Event) String() string {
	name := fmt.Sprintf("%s started", e.Stage)
	if e.Restarts > 0 {
		name = fmt.Sprintf("%s restarted", e.Stage)
	}
	switch {
	case e.Kind == Started:
		return fmt.Sprintf("%s as pid %d", name, e.PID)
	case e.Kind == Ready:
		return fmt.Sprintf("%s as pid %d, ready in %d ms", name, e.PID, e.After.Milliseconds())
	case e.RestartIn < 0:
		return fmt.Sprintf("%s stopped (%s)", e.Stage, e.Status)
	case e.RestartIn == 0:
		return fmt.Sprintf("%s exited (%s), restarting now", e.Stage, e.Status)
	default:
		return fmt.Sprintf("%s exited (%s), restarting in %v", e.Stage, e.Status, e.RestartIn)
	}
}
