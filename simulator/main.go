// Command simulator runs robots, and by default the whole platform for them.
//
// Without --project it starts the embedded cloud, sets up Pub/Sub from the platform's own Triggers, runs each stage as a
// process of its own, and lets the robots publish. When the robots stop, by Ctrl-C or --duration, it waits until every
// message is acknowledged and prints the ledger: what was sent against what the stores hold. The exit status is 0 only if
// nothing was lost and nothing was invented.
//
// With --project the robots publish to real Google Cloud, and nothing else changes for them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/robofleet/robofleet/simulator/platform"
	"github.com/robofleet/robofleet/simulator/robots"
	"github.com/robofleet/robofleet/simulator/run"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], run.Terminal{Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}))
}

// command runs the simulator and returns its exit status: 0 if nothing was lost, 1 if something was or the run failed, 2 for
// arguments that make no sense.
func command(ctx context.Context, args []string, t run.Terminal) int {
	options, err := parse(args, t)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintf(t.Err, "simulator: %v\n", err)
		return 2
	}
	ok, err := run.Run(ctx, options, t)
	if err != nil {
		_, _ = fmt.Fprintf(t.Err, "simulator: %v\n", err)
		return 1
	}
	if !ok {
		return 1
	}
	return 0
}

func parse(args []string, t run.Terminal) (run.Options, error) {
	fleet := robots.DefaultConfig()
	o := run.Options{}
	profile, bad, plain := "steady", "0%", "0%"
	f := flag.NewFlagSet("simulator", flag.ContinueOnError)
	f.SetOutput(t.Err)
	f.IntVar(&fleet.Robots, "robots", fleet.Robots, "number of robots")
	f.Float64Var(&fleet.Rate, "rate", fleet.Rate, "readings per robot per second")
	f.DurationVar(&fleet.Duration, "duration", 0, "how long the robots run; 0 is until Ctrl-C")
	f.StringVar(&profile, "profile", profile, "shape of the traffic: steady, burst[:period] or day[:period]")
	f.StringVar(&bad, "bad", bad, "bad messages to inject per good reading, such as 0.1%")
	f.StringVar(&plain, "plain", plain, "share of robots that publish plain JSON instead of CloudEvents")
	f.IntVar(&fleet.Gateway, "gateway", fleet.Gateway, "readings that an edge gateway puts into one message; 1 is no gateways")
	f.Uint64Var(&fleet.Seed, "seed", fleet.Seed, "seed of everything random")
	f.StringVar(&o.Dir, "data", ".robofleet", "folder of the local platform's data, binaries and logs")
	f.IntVar(&o.Port, "port", platform.DefaultPort, "first port of the local platform; 0 takes free ones")
	f.StringVar(&o.Report, "report", "", "file to write the ledger to, as JSON")
	f.StringVar(&o.Project, "project", "", "Google Cloud project to publish to, instead of a local platform")
	f.StringVar(&o.Topic, "topic", platform.Topic, "topic to publish to, with --project")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	var err error
	if fleet.Profile, err = robots.ParseProfile(profile); err != nil {
		return o, fmt.Errorf("--profile: %w", err)
	}
	if fleet.BadRatio, err = robots.ParseRatio(bad); err != nil {
		return o, fmt.Errorf("--bad: %w", err)
	}
	if fleet.PlainRatio, err = robots.ParseRatio(plain); err != nil {
		return o, fmt.Errorf("--plain: %w", err)
	}
	// Two runs over the same data must not share the ids of their readings.
	fleet.RunID = "run" + time.Now().UTC().Format("20060102t150405.000")
	o.Fleet = fleet
	return o, nil
}
