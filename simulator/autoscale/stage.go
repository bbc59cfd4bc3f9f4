package autoscale

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"

	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/functions/validate"
	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/function"
)

// Stage is the model of what one pod of a Service does with a request, and of how requests come to it.
type Stage struct {
	Name     string
	Upstream string // the stage whose batches are this one's messages; "" is the robots

	// A request costs PerRequest and PerReading of CPU, then waits for its batch. A batch is written in WriteTime and
	// WritePerReading.
	PerRequest, PerReading     time.Duration
	WriteTime, WritePerReading time.Duration
	BytesPerReading            int
	// Batch is the group commit, with the limits that the stage's own code has; the manifest's environment changes them.
	Batch     batch.Config
	EnvPrefix string

	// ColdStart is from the decision to start a pod until a request reaches it.
	ColdStart time.Duration
	// Hop is what ingress, activator, queue-proxy and back add to the time of a request.
	Hop time.Duration

	// AckDeadline and Backoff are those of the Trigger: timeout and backoffDelay.
	AckDeadline, Backoff time.Duration
}

// Parameter is one number of the model with its origin.
type Parameter struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// The numbers that all stages share.
const (
	// coldStart is the middle of the 1 to 2 s that a local cluster takes for a pod whose image is on the node: scheduling,
	// container, queue-proxy's first probe, endpoints. Of it the stage's own process needs less than a tenth of a second.
	coldStart = 1500 * time.Millisecond
	hop       = 3 * time.Millisecond
)

// The clouds that stages write to, for Stages.
const (
	Google   = "google"   // Pub/Sub, BigQuery and Cloud Storage in the same region
	Embedded = "embedded" // the simulator's, on the same machine
)

// Stages are the models there are, each after its upstream. The cloud is Google or Embedded and decides how long writes take.
func Stages(cloud string) ([]Stage, error) {
	var write map[string]time.Duration
	switch cloud {
	case Google:
		write = map[string]time.Duration{
			"validate": 30 * time.Millisecond, "hot-write": 100 * time.Millisecond, "cold-archive": 200 * time.Millisecond,
		}
	case Embedded:
		write = map[string]time.Duration{
			"validate": 5 * time.Millisecond, "hot-write": 15 * time.Millisecond, "cold-archive": 20 * time.Millisecond,
		}
	default:
		return nil, fmt.Errorf("cloud %q: want %s or %s", cloud, Google, Embedded)
	}
	stages := []Stage{
		{
			Name:            "validate",
			PerRequest:      25 * time.Microsecond,
			BytesPerReading: 500,
			Batch:           validate.DefaultConfig().Readings, EnvPrefix: "READINGS_",
			ColdStart: coldStart, Hop: hop,
			AckDeadline: 30 * time.Second, Backoff: 500 * time.Millisecond,
		},
		{
			Name: "hot-write", Upstream: "validate",
			PerRequest: 40 * time.Microsecond, PerReading: 5 * time.Microsecond,
			WritePerReading: 2 * time.Microsecond, BytesPerReading: 250,
			Batch: hotwrite.DefaultConfig(), EnvPrefix: "ROWS_",
			ColdStart: coldStart, Hop: hop,
			AckDeadline: time.Minute, Backoff: 500 * time.Millisecond,
		},
		{
			Name: "cold-archive", Upstream: "validate",
			PerRequest: 40 * time.Microsecond, PerReading: 5 * time.Microsecond,
			WritePerReading: time.Microsecond, BytesPerReading: 500,
			Batch: coldarchive.DefaultConfig(), EnvPrefix: "OBJECTS_",
			ColdStart: coldStart, Hop: hop,
			AckDeadline: time.Minute, Backoff: 500 * time.Millisecond,
		},
	}
	for i := range stages {
		stages[i].WriteTime = write[stages[i].Name]
	}
	return stages, nil
}

// modelKeys are the numbers of a model that a Change may have, with the prefix modelPrefix.
var modelKeys = []string{"cold-start", "hop", "per-reading", "per-request", "write-time"}

const modelPrefix = "model."

// With is the stage with the changes of its model.
func (s Stage) With(changes []Change) (Stage, error) {
	for _, c := range changes {
		key, isModel := strings.CutPrefix(c.Key, modelPrefix)
		if c.Service != s.Name || !isModel {
			continue
		}
		d, err := time.ParseDuration(c.Value)
		if err != nil {
			return Stage{}, fmt.Errorf("setting %s: %w", c, err)
		}
		if d < 0 || d > time.Hour {
			return Stage{}, fmt.Errorf("setting %s: want 0 to 1h", c)
		}
		switch key {
		case "cold-start":
			s.ColdStart = d
		case "hop":
			s.Hop = d
		case "per-reading":
			s.PerReading = d
		case "per-request":
			s.PerRequest = d
		case "write-time":
			s.WriteTime = d
		}
	}
	return s, nil
}

// Parameters lists the model's numbers for the stage as service configures it.
func (s Stage) Parameters(service Service) ([]Parameter, error) {
	b, limits, err := s.limits(service)
	if err != nil {
		return nil, err
	}
	source := map[string]string{
		"validate":     "make bench: a push with one reading",
		"hot-write":    "make bench: rows per second and core into a sink in the process",
		"cold-archive": "make bench: readings per second and core into a sink in the process",
	}[s.Name]
	write := map[string]string{
		"validate":     "assumed: through broker-ingress to Pub/Sub (--cloud)",
		"hot-write":    "assumed: AppendRows (--cloud)",
		"cold-archive": "assumed: an object of 2 MiB (--cloud)",
	}[s.Name]
	cores, coresSource := "1 core", "assumed: the manifest has no limit"
	if service.CPU > 0 {
		cores, coresSource = fmt.Sprintf("%g cores", service.CPU), "manifest: resources.limits.cpu"
	}
	wait := fmt.Sprintf("%v, %d readings or %d KiB", b.MaxWait, b.MaxItems, b.MaxBytes>>10)
	if b.MaxQuiet > 0 {
		wait = fmt.Sprintf("%v (%v quiet), %d readings or %d KiB", b.MaxWait, b.MaxQuiet, b.MaxItems, b.MaxBytes>>10)
	}
	return []Parameter{
		{"CPU", fmt.Sprintf("%v per request, %v per reading", s.PerRequest, s.PerReading), source},
		{"CPU share", cores, coresSource},
		{"batch", wait, "the stage's DefaultConfig and the manifest's " + s.EnvPrefix + "*"},
		{"writes", fmt.Sprintf("%d at once, %v and %v per reading", b.MaxWrites, s.WriteTime, s.WritePerReading), write},
		{"in flight", fmt.Sprint(limits.MaxInFlight), "shared/function and the manifest's MAX_IN_FLIGHT: more are shed with 429"},
		{"cold start", s.ColdStart.String(), "assumed: 1 to 2 s on a local cluster with the image on the node"},
		{"hop", s.Hop.String(), "assumed: ingress, activator and queue-proxy without load"},
		{"push", fmt.Sprintf("ack deadline %v, back-off from %v", s.AckDeadline, s.Backoff), "eventing/triggers/" + s.Name + ".yaml"},
	}, nil
}

// limits are the group commit and the handler's limits as the manifest's environment sets them.
func (s Stage) limits(service Service) (batch.Config, function.Limits, error) {
	cfg := struct {
		Batch  batch.Config
		Limits function.Limits
	}{Batch: s.Batch}
	env := maps.Clone(service.Env)
	lookup := func(prefix string) envconfig.Lookuper {
		return envconfig.PrefixLookuper(prefix, envconfig.MapLookuper(env))
	}
	for _, part := range []struct {
		target any
		prefix string
	}{{&cfg.Batch, s.EnvPrefix}, {&cfg.Limits, ""}} {
		err := envconfig.ProcessWith(context.Background(),
			&envconfig.Config{Target: part.target, Lookuper: lookup(part.prefix), DefaultOverwrite: true})
		if err != nil {
			return cfg.Batch, cfg.Limits, fmt.Errorf("environment of %s: %w", service.Name, err)
		}
	}
	if err := cfg.Batch.Validate(); err != nil {
		return cfg.Batch, cfg.Limits, fmt.Errorf("environment of %s: %s: %w", service.Name, strings.TrimSuffix(s.EnvPrefix, "_"), err)
	}
	if cfg.Limits.MaxInFlight <= 0 {
		return cfg.Batch, cfg.Limits, fmt.Errorf("environment of %s: MAX_IN_FLIGHT must be positive", service.Name)
	}
	return cfg.Batch, cfg.Limits, nil
}
