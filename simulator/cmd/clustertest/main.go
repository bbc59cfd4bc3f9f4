// Command clustertest tests the platform on the cluster of kubectl's current context, with the embedded cloud on this machine: it
// builds and applies everything, sends a burst from zero while pods are deleted, and compares what was sent with what was
// stored. The exit status is 0 only if nothing was lost and nothing was invented.
//
//	make cluster-test
//
// The first SIGINT or SIGTERM ends the test and cleans up; a second one leaves the cluster as it is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/robofleet/robofleet/simulator/cluster"
	"github.com/robofleet/robofleet/simulator/robots"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the first signal cleans up, and a second one ends that too
	cfg, err := parse(os.Args[1:], os.Stdout, os.Getenv)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintf(os.Stderr, "clustertest: %v (see --help)\n", err)
		os.Exit(2)
	}
	ok, err := cluster.Run(ctx, cfg)
	if err != nil {
		fmt.Fprintf(os.Stderr, "clustertest: %v\n", err)
	}
	if !ok || err != nil {
		stop()
		os.Exit(1)
	}
}

// ko builds images. It is not in go.mod: its hundreds of dependencies are not the product's.
const ko = "github.com/google/ko@v0.19.1"

func parse(args []string, stdout io.Writer, getenv func(string) string) (cluster.Config, error) {
	fleet := robots.DefaultConfig()
	cfg := cluster.Config{Out: stdout, Getenv: getenv, Ko: []string{"go", "run", ko}}
	if path, err := exec.LookPath("ko"); err == nil {
		cfg.Ko = []string{path}
	}
	bad := "0.5%"
	f := flag.NewFlagSet("clustertest", flag.ContinueOnError)
	f.SetOutput(io.Discard) // it would print the whole help for any mistake
	f.StringVar(&cfg.Overlay, "overlay", "knative/overlays/local", "kustomize folder to apply")
	f.StringVar(&cfg.Host, "host", getenv("LAB_NODE_IP"), "IP address by which pods reach this machine, as the overlay has it")
	f.StringVar(&cfg.Ingress, "ingress", getenv("LAB_INGRESS"), "host:port that takes the pushes to all Services; default: what their names resolve to")
	f.StringVar(&cfg.Dir, "data", ".robofleet/cluster", "folder of data and results")
	f.BoolVar(&cfg.Replace, "replace", false, "delete the platform from the cluster first, if it is there")
	f.IntVar(&fleet.Robots, "robots", 200, "number of robots")
	f.Float64Var(&fleet.Rate, "rate", fleet.Rate, "readings per robot per second")
	f.DurationVar(&fleet.Duration, "duration", 20*time.Second, "how long the robots run")
	f.StringVar(&bad, "bad", bad, "bad messages to inject per good reading")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			f.SetOutput(stdout)
			f.PrintDefaults()
		}
		return cfg, err
	}
	switch {
	case f.NArg() > 0:
		return cfg, fmt.Errorf("unknown argument %q", f.Arg(0))
	case cfg.Host == "":
		return cfg, errors.New("--host must say how pods reach this machine")
	case getenv("KO_DOCKER_REPO") == "":
		return cfg, errors.New("KO_DOCKER_REPO must name a registry that the cluster pulls from")
	case fleet.Duration <= 0:
		return cfg, errors.New("--duration must be positive")
	}
	var err error
	if fleet.BadRatio, err = robots.ParseRatio(bad); err != nil {
		return cfg, fmt.Errorf("--bad: %w", err)
	}
	fleet.RunID = "run" + time.Now().UTC().Format("20060102t150405.000")
	cfg.Fleet = fleet
	_, err = robots.New(fleet)
	return cfg, err
}
