// Package platform is the whole of RoboFleet on one machine: the embedded cloud, Pub/Sub set up from the platform's own
// Triggers, and each stage as a process of its own, configured by the environment variables of its Knative Service.
package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/storage"
	"google.golang.org/api/option"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/robofleet/robofleet/eventing"
	"github.com/robofleet/robofleet/eventing/apply"
	"github.com/robofleet/robofleet/eventing/plan"
	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/simulator/cloud"
	"github.com/robofleet/robofleet/simulator/stages"
)

// What the local platform has instead of the choices of a Google Cloud project.
const (
	Dataset = "robofleet"
	Bucket  = "robofleet-archive"
	Topic   = "robofleet-telemetry"

	dataDir      = "data" // in the platform's folder
	logsDir      = "logs" // likewise
	namespace    = "robofleet"
	owner        = "robofleet"
	pushIdentity = "pubsub-push@" + cloud.Project + ".iam.gserviceaccount.com"
)

// DefaultPort is the first of the ports that a platform takes.
const DefaultPort = 8600

// Config is what a Platform needs.
type Config struct {
	Dir       string // of data, binaries and logs
	ModuleDir string // of RoboFleet's sources
	// Port is the first of the ports: Port to Port+4 are the embedded cloud's, Port+10… the stages', Port+20… their metrics'.
	// 0 takes free ones.
	Port int
	Out  io.Writer // progress, and what the compiler prints
}

// Platform is a running platform.
type Platform struct {
	Cloud    *cloud.Cloud
	Stages   *stages.Supervisor
	Plan     plan.Plan
	BigQuery *bigquery.Client
	Storage  *storage.Client
	Log      *slog.Logger // writes to logs/platform.log

	folder    *folder
	endpoints string // file; "" until it is written
	metrics   map[string]string
}

// stage is what the platform knows of a stage.
type stage struct {
	name, pkg     string
	port, metrics int
	env           []string
}

func (s stage) url() string { return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// theStages are the services of the platform, sinks first: a stage is ready before those that send to it.
func theStages() []stage {
	return []stage{
		{name: "broker-ingress", pkg: "./eventing/cmd/broker-ingress"},
		{name: "cold-archive", pkg: "./functions/coldarchive/cmd/cold-archive", env: []string{"ARCHIVE_BUCKET=" + Bucket}},
		{name: "hot-write", pkg: "./functions/hotwrite/cmd/hot-write", env: []string{"BIGQUERY_DATASET=" + Dataset}},
		{name: "validate", pkg: "./functions/validate/cmd/validate"},
	}
}

// Start builds the stages, and starts everything or nothing. The platform runs until Close. The error of a folder that another
// platform uses, and of a port that is taken, is one line that says so.
func Start(ctx context.Context, cfg Config) (_ *Platform, err error) {
	// A stage runs in another folder, and the embedded cloud gets paths from here.
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	p := &Platform{metrics: make(map[string]string)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.folder, err = openFolder(cfg.Dir); err != nil {
		return p, err
	}
	p.Log = slog.New(slog.NewJSONHandler(p.folder.log, nil))
	services := theStages()
	if cfg.Port, err = choosePorts(ctx, cfg.Port, services); err != nil {
		return p, err
	}
	var packages []string
	for i := range services {
		services[i].port, services[i].metrics = cfg.Port+10+i, cfg.Port+20+i
		packages = append(packages, services[i].pkg)
	}
	bin := filepath.Join(cfg.Dir, "bin")
	if err := stages.Build(ctx, cfg.Out, cfg.ModuleDir, bin, packages...); err != nil {
		return p, err
	}
	p.Cloud, err = cloud.Start(ctx, cloud.Config{
		Dir: filepath.Join(cfg.Dir, dataDir), Bucket: Bucket, Ports: CloudPorts(cfg.Port), Logger: p.Log,
	})
	if err != nil {
		return p, err
	}
	if err := p.connect(ctx); err != nil {
		return p, err
	}
	if err := hotwrite.CreateTables(ctx, p.BigQuery, Dataset); err != nil {
		return p, err
	}
	if err := p.applyPlan(ctx, services); err != nil {
		return p, err
	}
	if err := p.startStages(ctx, cfg, bin, services); err != nil {
		return p, err
	}
	return p, p.writeEndpoints(cfg.Dir)
}

// connect makes the clients of the platform's own: they are Google's, as everybody else's are.
func (p *Platform) connect(ctx context.Context) (err error) {
	if p.BigQuery, err = p.Cloud.BigQueryClient(ctx); err != nil {
		return err
	}
	p.Storage, err = p.Cloud.StorageClient(ctx)
	return err
}

// PubSubOptions are how a Pub/Sub client reaches the embedded cloud.
func (p *Platform) PubSubOptions() []option.ClientOption { return p.Cloud.PubSubOptions() }

// applyPlan makes topics and push subscriptions of the platform's Brokers and Triggers.
func (p *Platform) applyPlan(ctx context.Context, services []stage) (err error) {
	objects, err := plan.Load(eventing.Manifests)
	if err != nil {
		return fmt.Errorf("read Brokers and Triggers: %w", err)
	}
	urls := make(map[string]string)
	for _, s := range services {
		urls[s.name] = s.url()
	}
	p.Plan = plan.Make(objects, plan.Settings{
		Project:            cloud.Project,
		Owner:              owner,
		PushServiceAccount: pushIdentity,
		AllowHTTP:          true,
		Resolve: func(ref duckv1.KReference) (string, error) {
			if u, ok := urls[ref.Name]; ok && ref.Kind == "Service" {
				return u, nil
			}
			return "", fmt.Errorf("the local platform has no %s %q", ref.Kind, ref.Name)
		},
		Ingress: func(namespace, broker string) string { return urls["broker-ingress"] + "/" + namespace + "/" + broker },
	})
	var problems []error
	for _, problem := range p.Plan.Problems {
		problems = append(problems, problem)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	client, err := pubsub.NewClient(ctx, cloud.Project, p.PubSubOptions()...)
	if err != nil {
		return fmt.Errorf("connect to Pub/Sub: %w", err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if _, err := apply.Apply(ctx, client, p.Plan, apply.Options{Prune: true}); err != nil {
		return fmt.Errorf("apply the plan: %w", err)
	}
	return nil
}

// startStages starts the processes and waits until they are ready.
func (p *Platform) startStages(ctx context.Context, cfg Config, bin string, services []stage) error {
	topics := make([]string, 0, len(p.Plan.Brokers))
	for broker, topic := range p.Plan.IngressTopics() {
		topics = append(topics, broker+"="+topic)
	}
	slices.Sort(topics)
	fleet := ""
	for _, s := range services {
		if s.name == "broker-ingress" {
			fleet = s.url() + "/" + namespace + "/fleet"
		}
	}
	var all []stages.Stage
	for _, s := range services {
		p.metrics[s.name] = "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.metrics)) + "/metrics"
		env := append(p.Cloud.Env(),
			"HOST=127.0.0.1",
			"METRICS_PORT="+strconv.Itoa(s.metrics),
			"PUSH_AUDIENCE="+s.url(),
			"PUSH_SERVICE_ACCOUNTS="+pushIdentity,
			"K_SINK="+fleet,
			"BROKERS="+strings.Join(topics, ","),
		)
		all = append(all, stages.Stage{
			Name: s.name, Path: filepath.Join(bin, s.name), Env: append(env, s.env...),
			Port: s.port, MetricsPort: s.metrics, ReadyURL: s.url() + "/healthz",
		})
	}
	supervisor := stages.New(stages.Config{LogDir: filepath.Join(cfg.Dir, logsDir), Logger: p.Log, Grace: 30 * time.Second}, all...)
	if err := supervisor.Start(ctx); err != nil {
		return err
	}
	p.Stages = supervisor
	return nil
}

// Trigger returns the name of the Trigger that a subscription, by its full name, serves.
func (p *Platform) Trigger(subscription string) string {
	for _, s := range p.Plan.Subscriptions {
		if strings.HasSuffix(subscription, "/"+s.Name) {
			return s.Labels[plan.LabelTrigger]
		}
	}
	return ""
}

// Backlog returns how many messages each Trigger has yet to see acknowledged.
func (p *Platform) Backlog() map[string]int {
	backlog := make(map[string]int)
	for name, stats := range p.Cloud.PubSub.Stats().Subscriptions {
		if trigger := p.Trigger(name); trigger != "" {
			backlog[trigger] += stats.Backlog
		}
	}
	return backlog
}

// Drain waits until every message has been acknowledged by every stage that wants it. It gives up when ctx ends. No robot may
// publish meanwhile.
func (p *Platform) Drain(ctx context.Context) error {
	return Drain(ctx, p.Backlog, len(p.Plan.Subscriptions))
}

// Drain waits until nothing is left of a backlog, by name, that is spread over that many subscriptions. It gives up when ctx ends.
// No robot may publish meanwhile.
func Drain(ctx context.Context, backlog func() map[string]int, subscriptions int) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	// The subscriptions are looked at one after another, so a message can slip past a single look: acknowledged in the one
	// after its successor was published to another that had been looked at before. But a message goes through no
	// subscription twice; so each look that finds all of them empty proves at least one more of them empty for good.
	for empty := 0; empty < subscriptions; {
		left, total := backlog(), 0
		for _, n := range left {
			total += n
		}
		if total == 0 {
			empty++
		} else {
			empty = 0
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d messages are not acknowledged yet (%v): %w", total, left, context.Cause(ctx))
		case <-ticker.C:
		}
	}
	return nil
}

// Close stops the stages, which finish what they have begun, and then the embedded cloud. It leaves no process behind.
func (p *Platform) Close() error {
	var errs []error
	if p.endpoints != "" {
		errs = append(errs, os.Remove(p.endpoints))
	}
	if p.Stages != nil {
		errs = append(errs, p.Stages.Stop())
	}
	if p.BigQuery != nil {
		errs = append(errs, p.BigQuery.Close())
	}
	if p.Storage != nil {
		errs = append(errs, p.Storage.Close())
	}
	if p.Cloud != nil {
		errs = append(errs, p.Cloud.Close())
	}
	if p.folder != nil {
		errs = append(errs, p.folder.close())
	}
	return errors.Join(errs...)
}
