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
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/robofleet/robofleet/simulator/platform"
	"github.com/robofleet/robofleet/simulator/robots"
	"github.com/robofleet/robofleet/simulator/run"
)

func main() {
	ctx, stop := signals()
	os.Exit(command(ctx, stop, os.Args[1:], run.Terminal{Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}))
}

// signals returns contexts for the first and the second of SIGINT and SIGTERM: the first stops the robots, the second ends the
// wait for what they sent, and a third kills the process as if there were nobody to listen. Whatever dies with it, the data
// and the messages are on disk.
func signals() (ctx, stop context.Context) {
	ctx, abort := context.WithCancelCause(context.Background())
	stop, cancel := context.WithCancel(ctx)
	c := make(chan os.Signal, 2)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-c
		cancel()
		abort(fmt.Errorf("aborted by a second %v", <-c))
		signal.Stop(c)
	}()
	return ctx, stop
}

// command runs the simulator and returns its exit status: 0 if nothing was lost, 1 if something was or the run failed, 2 for
// arguments that make no sense. ctx and stop are those of run.Run.
func command(ctx, stop context.Context, args []string, t run.Terminal) int {
	options, err := parse(args, t)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintf(t.Err, "simulator: %v (see --help)\n", err)
		return 2
	}
	ok, err := run.Run(ctx, stop, options, t)
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
	f.SetOutput(io.Discard) // it would print the whole help for any mistake
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
		if errors.Is(err, flag.ErrHelp) {
			_, _ = fmt.Fprintln(t.Out, "Runs robots, and by default the whole platform for them. Flags:")
			f.SetOutput(t.Out)
			f.PrintDefaults()
		}
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
	switch {
	case o.Dir == "":
		return o, errors.New("--data must name a folder")
	case o.Port < 0 || o.Port > platform.MaxPort:
		return o, fmt.Errorf("--port must be 0 to %d, not %d", platform.MaxPort, o.Port)
	case o.Project != "" && o.Report != "":
		return o, errors.New("--report needs the local platform: with --project nobody asks the stores")
	case o.Project == "" && o.Topic != platform.Topic:
		return o, errors.New("--topic needs --project")
	}
	// Two runs over the same data must not share the ids of their readings.
	fleet.RunID = "run" + time.Now().UTC().Format("20060102t150405.000")
	o.Fleet = fleet
	// Nothing is built or started for a fleet that cannot be.
	_, err = robots.New(fleet)
	return o, err
}
