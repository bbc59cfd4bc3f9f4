package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"

	"cloud.google.com/go/pubsub/v2"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/robofleet/robofleet/eventing"
	"github.com/robofleet/robofleet/eventing/apply"
	"github.com/robofleet/robofleet/eventing/plan"
)

// flags are the command line; each takes its default from the environment variable that its usage names.
type flags struct {
	project, owner, manifests string
	pushServiceAccount        string
	subscriberURL             string
	subscribers               map[string]string
	allowHTTP                 bool
	apply, dryRun, prune      bool
	output                    string
}

func parse(args []string, lookupEnv func(string) (string, bool), output io.Writer) (flags, error) {
	env := func(names ...string) string {
		for _, name := range names {
			if value, ok := lookupEnv(name); ok && value != "" {
				return value
			}
		}
		return ""
	}
	f := flags{subscribers: map[string]string{}}
	set := flag.NewFlagSet("plan", flag.ContinueOnError)
	set.SetOutput(output)
	set.StringVar(&f.project, "project", env("PUBSUB_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"), "`id` of the project ($PUBSUB_PROJECT_ID, $GOOGLE_CLOUD_PROJECT)")
	set.StringVar(&f.owner, "owner", "robofleet", "`name` of this installation in the labels of what it creates; two in one project must differ")
	set.StringVar(&f.manifests, "manifests", "", "`folder` of Brokers and Triggers (default: those of the platform, built in)")
	set.StringVar(&f.pushServiceAccount, "push-service-account", env("PUSH_SERVICE_ACCOUNT"),
		"`e-mail` of the identity in the token of every push; without it pushes carry no token ($PUSH_SERVICE_ACCOUNT)")
	set.StringVar(&f.subscriberURL, "subscriber-url", env("SUBSCRIBER_URL"),
		"`pattern` of a Service's address, with {name} and {namespace} ($SUBSCRIBER_URL)")
	set.Func("subscriber", "`name=url`: the address of one Service; may be repeated", func(value string) error {
		name, address, ok := strings.Cut(value, "=")
		if !ok {
			return errors.New("want name=url")
		}
		f.subscribers[name] = address
		return nil
	})
	set.BoolVar(&f.allowHTTP, "allow-http", false, "admit addresses without TLS, which only a local Pub/Sub pushes to")
	set.BoolVar(&f.apply, "apply", false, "make it so")
	set.BoolVar(&f.dryRun, "dry-run", false, "with --apply: read, and print what would be written")
	set.BoolVar(&f.prune, "prune", false, "with --apply: delete what this owner has and the plan has not")
	set.StringVar(&f.output, "o", "table", "`format`: table or json")
	if err := set.Parse(args); err != nil {
		return flags{}, err
	}
	switch {
	case set.NArg() > 0:
		return flags{}, fmt.Errorf("unexpected argument %q", set.Arg(0))
	case f.output != "table" && f.output != "json":
		return flags{}, fmt.Errorf("-o %s: want table or json", f.output)
	case f.project == "":
		return flags{}, errors.New("--project is missing")
	case !f.apply && (f.dryRun || f.prune):
		return flags{}, errors.New("--dry-run and --prune go with --apply")
	}
	return f, nil
}

func run(ctx context.Context, args []string, lookupEnv func(string) (string, bool), stdout io.Writer) error {
	f, err := parse(args, lookupEnv, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	manifests := fs.FS(eventing.Manifests)
	if f.manifests != "" {
		manifests = os.DirFS(f.manifests)
	}
	objects, err := plan.Load(manifests)
	if err != nil {
		return err
	}
	result := output{Plan: plan.Make(objects, plan.Settings{
		Project:            f.project,
		Owner:              f.owner,
		PushServiceAccount: f.pushServiceAccount,
		Resolve:            f.resolve,
		AllowHTTP:          f.allowHTTP,
	})}

	var failed error
	if f.apply {
		result.Report, failed = applyPlan(ctx, f, result.Plan)
	}
	if err := result.print(stdout, f.output); err != nil {
		return errors.Join(failed, fmt.Errorf("print: %w", err))
	}
	if n := len(result.Plan.Problems); n > 0 {
		failed = errors.Join(failed, fmt.Errorf("%d problems: see above", n))
	}
	return failed
}

// resolve gives the address of a Service: its own flag, or the pattern.
func (f flags) resolve(ref duckv1.KReference) (string, error) {
	if address, ok := f.subscribers[ref.Name]; ok {
		return address, nil
	}
	if f.subscriberURL == "" {
		return "", fmt.Errorf("no address for %s %s: give --subscriber %s=URL or --subscriber-url", ref.Kind, ref.Name, ref.Name)
	}
	return strings.NewReplacer("{name}", ref.Name, "{namespace}", ref.Namespace).Replace(f.subscriberURL), nil
}

func applyPlan(ctx context.Context, f flags, p plan.Plan) (*apply.Report, error) {
	client, err := pubsub.NewClient(ctx, f.project)
	if err != nil {
		return nil, fmt.Errorf("connect to Pub/Sub: %w", err)
	}
	report, err := apply.Apply(ctx, client, p, apply.Options{DryRun: f.dryRun, Prune: f.prune})
	return &report, errors.Join(err, client.Close())
}

// output is what the command prints.
type output struct {
	Plan   plan.Plan     `json:"plan"`
	Report *apply.Report `json:"report,omitempty"` // nil without --apply
}

func (o output) print(w io.Writer, format string) error {
	if format == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(o)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) } // errors come with Flush
	row("BROKER", "TOPIC", "INGRESS")
	for _, b := range o.Plan.Brokers {
		row(b.Namespace+"/"+b.Name, b.Topic, b.Ingress)
	}
	row()
	row("SUBSCRIPTION", "TOPIC", "FILTER", "PUSH TO", "ACK", "BACKOFF", "DEAD LETTERS")
	for _, s := range o.Plan.Subscriptions {
		row(s.Name, s.Topic, orDash(s.Filter), endpoint(s), s.AckDeadline.Duration.String(), backoff(s), deadLetters(s))
	}
	if len(o.Plan.Problems) > 0 {
		row()
		row("REFUSED", "REASON", "")
		for _, p := range o.Plan.Problems {
			row(fmt.Sprintf("%s %s/%s", p.Kind, p.Namespace, p.Name), string(p.Reason), p.Message)
		}
	}
	if o.Report != nil {
		row()
		row("DONE", "KIND", "NAME", "")
		for _, a := range o.Report.Actions {
			row(string(a.Verb), a.Kind, a.Name, strings.Join(append(a.Fields, a.Detail), " "))
		}
		if len(o.Report.Actions) == 0 {
			row("nothing", "", "everything is as planned", "")
		}
	}
	return t.Flush()
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func endpoint(s plan.Subscription) string {
	if s.Push == nil {
		return "(pull)"
	}
	return s.Push.Endpoint
}

func backoff(s plan.Subscription) string {
	if s.Backoff == nil {
		return "-"
	}
	return s.Backoff.Min.Duration.String() + "–" + s.Backoff.Max.Duration.String()
}

func deadLetters(s plan.Subscription) string {
	if s.DeadLetter == nil {
		return "never"
	}
	return fmt.Sprintf("%s after %d", s.DeadLetter.Topic, s.DeadLetter.Attempts)
}
