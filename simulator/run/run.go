// Package run is one run of the simulator, from the start of the platform to the ledger.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/simulator/cloud"
	"github.com/robofleet/robofleet/simulator/latency"
	"github.com/robofleet/robofleet/simulator/ledger"
	"github.com/robofleet/robofleet/simulator/platform"
	"github.com/robofleet/robofleet/simulator/robots"
	"github.com/robofleet/robofleet/simulator/terminal"
)

// Options are the flags of the simulator.
type Options struct {
	Fleet   robots.Config
	Dir     string
	Port    int
	Report  string // file; "" is none
	Project string // "" is a local platform
	Topic   string
	// Platform, if not nil, is called when the local platform runs and the robots are about to start, with a context that
	// ends when they are to stop. For tests that do something to it meanwhile.
	Platform func(context.Context, *platform.Platform)
	// Drained, if not nil, is called before the ledger is made.
	Drained func(*platform.Platform)
}

// Terminal is where a run shows itself.
type Terminal struct {
	Out, Err io.Writer
	Getenv   func(string) string
}

// drainTimeout bounds the wait for messages that nobody has acknowledged after the robots have stopped.
const drainTimeout = 5 * time.Minute

// Run runs the robots until stop ends or their duration is over, and then waits until everything has arrived; ctx ends that
// too, at once and without a ledger. ok says that the ledger found nothing lost and nothing unexpected; without a local platform
// there is no ledger, and ok says that every message was confirmed.
func Run(ctx, stop context.Context, o Options, t Terminal) (ok bool, err error) {
	if o.Project != "" {
		return publish(ctx, stop, o, t)
	}
	return local(ctx, stop, o, t)
}

// local runs the whole platform.
func local(ctx, stop context.Context, o Options, t Terminal) (ok bool, err error) {
	module, err := ModuleDir()
	if err != nil {
		return false, err
	}
	if err := writable(o.Report); err != nil {
		return false, err
	}
	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Both before the robots run and while the platform is being built there is nothing to drain.
	stopStarting := context.AfterFunc(stop, func() { cancel(errStopped) })
	p, err := platform.Start(starting, platform.Config{Dir: o.Dir, ModuleDir: module, Port: o.Port, Out: t.Err})
	if err != nil && starting.Err() != nil {
		return false, context.Cause(starting)
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if !stopStarting() {
		return false, errStopped
	}
	r := &session{options: o, platform: p, display: terminal.New(t.Out, t.Getenv)}
	return r.run(ctx, stop)
}

var errStopped = errors.New("stopped before the robots started")

// writable finds out before a run, not after it, that its report cannot be written.
func writable(file string) error {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return f.Close()
}

// session is a run on a local platform.
type session struct {
	options  Options
	platform *platform.Platform
	display  *terminal.Display
	fleet    *robots.Fleet
	probe    *latency.Probe
	view     *view
}

// run lets the robots publish until stop ends, drains, and prints the ledger.
func (s *session) run(ctx, stop context.Context) (ok bool, err error) {
	var sample []string
	for n := 1; n <= s.options.Fleet.Robots; n++ {
		if id := robots.RobotID(n); robots.Sampled(id) {
			sample = append(sample, id)
		}
	}
	s.probe = latency.New(s.platform.BigQuery, platform.Dataset+"."+hotwrite.Table, sample)
	cfg := s.options.Fleet
	cfg.OnPublish = s.probe.Published
	if s.fleet, err = robots.New(cfg); err != nil {
		return false, err
	}
	publisher, err := robots.NewPubSub(ctx, cloud.Project, platform.Topic, s.platform.Log, s.platform.PubSubOptions()...)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()

	s.view = newView(s)
	watching, endWatch := context.WithCancel(ctx)
	defer endWatch()
	var watch errgroup.Group
	watch.Go(func() error { return s.probe.Run(watching) })
	watch.Go(func() error { return s.view.run(watching) })

	if s.options.Platform != nil {
		s.options.Platform(stop, s.platform)
	}
	idle := s.platform.Stages.Stats()
	start := time.Now()
	s.view.phase("running")
	failed := runFleet(ctx, stop, s.fleet, publisher)
	published := time.Since(start)

	if ctx.Err() == nil {
		s.view.phase("draining")
		drain, cancel := context.WithTimeoutCause(ctx, drainTimeout, fmt.Errorf("gave up after %s", drainTimeout))
		if err := s.platform.Drain(drain); err != nil {
			failed = errors.Join(failed, fmt.Errorf("drain: %w", err))
		}
		cancel()
	}
	if ctx.Err() != nil {
		endWatch()
		// What the watchers say of a run that was ended from outside is that it was.
		_ = watch.Wait()
		return false, s.aborted(ctx)
	}
	s.view.phase("done")
	endWatch()
	failed = errors.Join(failed, watch.Wait())

	if s.options.Drained != nil {
		s.options.Drained(s.platform)
	}
	l, err := ledger.Make(ctx, ledger.Stores{
		BigQuery: s.platform.BigQuery, Dataset: platform.Dataset, Bucket: s.platform.Storage.Bucket(platform.Bucket),
	}, s.fleet.Manifest(), cfg.RunID, start)
	if err != nil {
		return false, errors.Join(failed, fmt.Errorf("make the ledger: %w", err))
	}
	report := NewReport(cfg, l, published, s.probe.All(), idle, s.platform.Stages.Stats())
	if err := s.display.PrintLedger(report.View()); err != nil {
		return false, fmt.Errorf("print the ledger: %w", err)
	}
	if err := report.Write(s.options.Report); err != nil {
		return false, err
	}
	return l.OK(), failed
}

// aborted says what becomes of a run that was not drained.
func (s *session) aborted(ctx context.Context) error {
	left := 0
	for _, n := range s.platform.Backlog() {
		left += n
	}
	return fmt.Errorf("%w: no ledger; Pub/Sub keeps %d unacknowledged messages in %s for the next start",
		context.Cause(ctx), left, s.options.Dir)
}

// runFleet runs the robots until stop ends and the results of all their messages are known, or until ctx ends.
func runFleet(ctx, stop context.Context, f *robots.Fleet, p robots.Publisher) error {
	running, cancel := context.WithCancel(stop)
	defer cancel() // when ctx ends first
	done := make(chan error, 1)
	go func() { done <- f.Run(running, p) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// publish lets the robots publish to Google Cloud.
func publish(ctx, stop context.Context, o Options, t Terminal) (ok bool, err error) {
	log := slog.New(slog.NewTextHandler(t.Err, nil))
	fleet, err := robots.New(o.Fleet)
	if err != nil {
		return false, err
	}
	publisher, err := robots.NewPubSub(ctx, o.Project, o.Topic, log)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()
	display := terminal.New(t.Out, t.Getenv)
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- runFleet(ctx, stop, fleet, publisher) }()
	ticker := time.NewTicker(display.Interval())
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			s := fleetSnapshot(fleet, o.Fleet, start)
			s.Phase = "done"
			return err == nil, errors.Join(err, display.Draw(s))
		case <-ticker.C:
			s := fleetSnapshot(fleet, o.Fleet, start)
			if stop.Err() != nil {
				s.Phase = "draining"
			}
			if err := display.Draw(s); err != nil {
				return false, fmt.Errorf("draw: %w", err)
			}
		}
	}
}

// modulePath is RoboFleet's.
const modulePath = "github.com/robofleet/robofleet"

// ModuleDir finds RoboFleet's sources, of which the stages are built: the folder of its go.mod, which is the current one or
// above it.
func ModuleDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the current folder: %w", err)
	}
	for {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(text, []byte("module "+modulePath+"\n")) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("this is not a checkout of RoboFleet (no go.mod of it here or above), and the stages are built from one")
		}
		dir = parent
	}
}
