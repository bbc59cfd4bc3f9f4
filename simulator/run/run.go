// Package run is one run of the simulator, from the start of the platform to the ledger.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/robofleet/robofleet/simulator/latency"
	"github.com/robofleet/robofleet/simulator/ledger"
	"github.com/robofleet/robofleet/simulator/platform"
	"github.com/robofleet/robofleet/simulator/robots"
	"github.com/robofleet/robofleet/simulator/terminal"

	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/simulator/cloud"
)

// Options are the flags of the simulator.
type Options struct {
	Fleet   robots.Config
	Dir     string
	Port    int
	Report  string // file; "" is none
	Project string // "" is a local platform
	Topic   string
	// Platform, if not nil, is called when the local platform runs and the robots are about to start; for tests that do
	// something to it meanwhile.
	Platform func(context.Context, *platform.Platform)
}

// Terminal is where a run shows itself.
type Terminal struct {
	Out, Err io.Writer
	Getenv   func(string) string
}

// drainTimeout bounds the wait for messages that nobody has acknowledged after the robots have stopped.
const drainTimeout = 5 * time.Minute

// Run runs the robots until ctx ends or their duration is over. ok says that the ledger found nothing lost and nothing
// unexpected; without a local platform there is no ledger, and ok says that every message was confirmed.
func Run(ctx context.Context, o Options, t Terminal) (ok bool, err error) {
	if o.Project != "" {
		return publish(ctx, o, t)
	}
	return local(ctx, o, t)
}

// local runs the whole platform.
func local(ctx context.Context, o Options, t Terminal) (ok bool, err error) {
	log, closeLog, err := openLog(o.Dir)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	module, err := moduleDir()
	if err != nil {
		return false, err
	}
	// The platform lives on after ctx has stopped the robots: it has to drain.
	life := context.WithoutCancel(ctx)
	starting, cancel := context.WithCancel(life)
	defer cancel()
	stopStarting := context.AfterFunc(ctx, cancel) // Ctrl-C while it is being built
	p, err := platform.Start(starting, platform.Config{Dir: o.Dir, ModuleDir: module, Port: o.Port, Logger: log, Out: t.Err})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if !stopStarting() {
		return false, errors.New("stopped before the robots started")
	}
	r := &session{options: o, platform: p, log: log, display: terminal.New(t.Out, t.Getenv)}
	return r.run(life, ctx)
}

// session is a run on a local platform.
type session struct {
	options  Options
	platform *platform.Platform
	log      *slog.Logger
	display  *terminal.Display
	fleet    *robots.Fleet
	probe    *latency.Probe
	view     *view
}

// run lets the robots publish until stop ends, drains, and prints the ledger.
func (s *session) run(life, stop context.Context) (ok bool, err error) {
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
	publisher, err := robots.NewPubSub(life, cloud.Project, platform.Topic, s.log, s.platform.PubSubOptions()...)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()

	s.view = newView(s)
	watching, endWatch := context.WithCancel(life)
	defer endWatch()
	var watch errgroup.Group
	watch.Go(func() error { return s.probe.Run(watching) })
	watch.Go(func() error { return s.view.run(watching) })

	if s.options.Platform != nil {
		s.options.Platform(stop, s.platform)
	}
	start := time.Now()
	s.view.phase("running")
	failed := s.fleet.Run(stop, publisher)
	published := time.Since(start)

	s.view.phase("draining")
	drain, cancel := context.WithTimeout(life, drainTimeout)
	failed = errors.Join(failed, s.platform.Drain(drain))
	cancel()
	s.view.phase("done")
	endWatch()
	failed = errors.Join(failed, watch.Wait())

	l, err := ledger.Make(life, ledger.Stores{
		BigQuery: s.platform.BigQuery, Dataset: platform.Dataset, Bucket: s.platform.Storage.Bucket(platform.Bucket),
	}, s.fleet.Manifest(), cfg.RunID, start)
	if err != nil {
		return false, errors.Join(failed, err)
	}
	report := newReport(cfg, l, published, s.probe.All(), s.platform.Stages.Stats())
	if err := s.display.PrintLedger(report.view()); err != nil {
		return false, fmt.Errorf("print the ledger: %w", err)
	}
	if err := report.write(s.options.Report); err != nil {
		return false, err
	}
	return l.OK(), failed
}

// publish lets the robots publish to Google Cloud.
func publish(ctx context.Context, o Options, t Terminal) (ok bool, err error) {
	log := slog.New(slog.NewTextHandler(t.Err, nil))
	fleet, err := robots.New(o.Fleet)
	if err != nil {
		return false, err
	}
	publisher, err := robots.NewPubSub(context.WithoutCancel(ctx), o.Project, o.Topic, log)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()
	display := terminal.New(t.Out, t.Getenv)
	done := make(chan error, 1)
	go func() { done <- fleet.Run(ctx, publisher) }()
	start := time.Now()
	ticker := time.NewTicker(display.Interval())
	defer ticker.Stop()
	for {
		s := fleetSnapshot(fleet, o.Fleet, start)
		select {
		case err := <-done:
			s.Phase = "done"
			return err == nil, errors.Join(err, display.Draw(s))
		case <-ticker.C:
			if err := display.Draw(s); err != nil {
				return false, fmt.Errorf("draw: %w", err)
			}
		}
	}
}

// openLog opens the log of the platform's own process: its output belongs to the live view.
func openLog(dir string) (_ *slog.Logger, closeLog func() error, err error) {
	logs := filepath.Join(dir, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, nil, fmt.Errorf("folder of the logs: %w", err)
	}
	f, err := os.Create(filepath.Join(logs, "platform.log"))
	if err != nil {
		return nil, nil, fmt.Errorf("log of the platform: %w", err)
	}
	return slog.New(slog.NewJSONHandler(f, nil)), f.Close, nil
}

// moduleDir finds RoboFleet's sources, of which the stages are built: the folder of go.mod at or above the current one.
func moduleDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the current folder: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("this is not a checkout of RoboFleet (no go.mod here or above), and the stages are built from one")
		}
		dir = parent
	}
}
