// Autoscale shows how Knative would scale the stages for a given traffic, before anything is deployed:
//
//	go run ./simulator/cmd/autoscale --profile burst:2000:60s --set validate.target=80 --out pictures
//
// It replays Knative's autoscaler against a model of the stages; see package simulator/autoscale and docs/autoscaling.md.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/robofleet/robofleet/simulator/autoscale"
)

func main() {
	err := run(os.Args[1:], os.Stdin, os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "autoscale:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	manifests, cluster, cloud string
	stage, profile            string
	out, format, observed     string
	changes                   []autoscale.Change
	window                    int
	seed                      uint64
	deployed, parameters      bool
}

func parse(args []string, stdout io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("autoscale", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is one line, not one and all flags
	flags.StringVar(&o.manifests, "manifests", "knative/base", "Knative Services: a kustomize folder, a folder, a file, or - for stdin")
	flags.StringVar(&o.cluster, "cluster", "", "a file with the cluster's ConfigMap config-autoscaler (default: Knative's defaults)")
	flags.StringVar(&o.cloud, "cloud", autoscale.Google, "what stages write to: google or embedded")
	flags.StringVar(&o.stage, "stage", "", "the stage to show (default: all)")
	flags.StringVar(&o.profile, "profile", "burst:2000",
		"readings per second: steady:RATE[:DURATION], burst:RATE[:DURATION[:LEAD]], zero[:DURATION] or day:RATE[:PERIOD]")
	flags.Func("set", "compare with another setting, `STAGE.KEY=VALUE`: an annotation (target), container-concurrency, cpu,\n"+
		"env.NAME or model.NAME; repeatable", func(s string) error {
		c, err := autoscale.ParseChange(s)
		o.changes = append(o.changes, c)
		return err
	})
	flags.StringVar(&o.out, "out", "", "draw an SVG for each stage into this folder")
	flags.StringVar(&o.format, "o", "text", "output: text or json")
	flags.StringVar(&o.observed, "observed", "", "CSV of pods on a real cluster (seconds,pods_wanted,pods_ready) to lay over the stage's")
	flags.IntVar(&o.window, "push-window", autoscale.DefaultPushWindow, "most pushes that Pub/Sub keeps outstanding to a stage")
	flags.Uint64Var(&o.seed, "seed", 1, "of the choice of a pod where chance makes it")
	flags.BoolVar(&o.deployed, "deployed", false, "begin with new revisions instead of idle ones")
	flags.BoolVar(&o.parameters, "parameters", false, "print the numbers of the models and where they come from")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(stdout)
			flags.Usage()
		}
		return options{}, err
	}
	switch {
	case flags.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.format != "text" && o.format != "json":
		return options{}, fmt.Errorf("output %q: want text or json", o.format)
	case o.observed != "" && o.stage == "":
		return options{}, errors.New("--observed is of one stage: name it with --stage")
	}
	return o, nil
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	report, err := replay(o, stdin)
	if err != nil {
		return err
	}
	if o.out != "" {
		if err := draw(report, o.out); err != nil {
			return err
		}
	}
	if o.format == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(report); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		return nil
	}
	return autoscale.WriteText(stdout, report, o.parameters)
}

func replay(o options, stdin io.Reader) (autoscale.Report, error) {
	var none autoscale.Report
	setup := autoscale.Setup{
		Config: autoscale.Config{PushWindow: o.window, Deployed: o.deployed, Seed: o.seed},
		Stage:  o.stage,
	}
	var err error
	if setup.Profile, err = autoscale.ParseProfile(o.profile); err != nil {
		return none, err
	}
	if setup.Stages, err = autoscale.Stages(o.cloud); err != nil {
		return none, err
	}
	if setup.Config.Cluster, err = autoscale.DefaultCluster(); o.cluster != "" {
		setup.Config.Cluster, err = autoscale.LoadCluster(o.cluster)
	}
	if err != nil {
		return none, err
	}
	if setup.Services, err = autoscale.LoadServices(o.manifests, stdin); err != nil {
		return none, err
	}
	report := autoscale.Report{Profile: setup.Profile.String(), Duration: setup.Profile.Duration()}
	if o.observed != "" {
		if report.Observed, err = loadObserved(o.observed); err != nil {
			return none, err
		}
	}
	settings := [][]autoscale.Change{nil}
	if len(o.changes) > 0 {
		settings = append(settings, o.changes)
	}
	for _, changes := range settings {
		r, err := setup.Replay(changes)
		if err != nil {
			return none, err
		}
		report.Runs = append(report.Runs, r)
	}
	if report.Observed != nil {
		d, err := autoscale.Compare(report.Runs[0].Results[0].Samples, report.Observed)
		if err != nil {
			return none, err
		}
		report.Deviation = &d
	}
	return report, nil
}

func loadObserved(path string) ([]autoscale.Observation, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("observed pods: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	return autoscale.ParseObserved(f)
}

// draw writes one picture per stage.
func draw(report autoscale.Report, folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make the folder for pictures: %w", err)
	}
	for i, r := range report.Runs[0].Results {
		f, err := os.Create(filepath.Join(folder, r.Stage+".svg"))
		if err != nil {
			return fmt.Errorf("make a picture: %w", err)
		}
		if err := errors.Join(autoscale.WriteSVG(f, report, i), f.Close()); err != nil {
			return fmt.Errorf("make the picture %s: %w", f.Name(), err)
		}
	}
	return nil
}
