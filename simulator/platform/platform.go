// Package platform is the whole of RoboFleet on one machine: the embedded cloud, Pub/Sub set up from the platform's own
// Triggers, and each stage as a process of its own, configured by the environment variables of its Knative Service.
package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
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
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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
	// 0 takes free ports.
	Port   int
	Logger *slog.Logger
	Out    io.Writer // progress, and what the compiler prints
}

// Platform is a running platform.
type Platform struct {
	Cloud    *cloud.Cloud
	Stages   *stages.Supervisor
	Plan     plan.Plan
	BigQuery *bigquery.Client
	Storage  *storage.Client

	endpoints string // file
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

// Start builds the stages, and starts everything or nothing. The platform runs until Close.
func Start(ctx context.Context, cfg Config) (_ *Platform, err error) {
	// A stage runs in another folder, and the embedded cloud gets paths from here.
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	services := theStages()
	var packages []string
	for i := range services {
		packages = append(packages, services[i].pkg)
		if services[i].port, services[i].metrics, err = ports(ctx, cfg.Port, i); err != nil {
			return nil, err
		}
	}
	bin := filepath.Join(cfg.Dir, "bin")
	if err := stages.Build(ctx, cfg.Out, cfg.ModuleDir, bin, packages...); err != nil {
		return nil, err
	}
	p := &Platform{endpoints: filepath.Join(cfg.Dir, endpointsFile), metrics: make(map[string]string)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	p.Cloud, err = cloud.Start(ctx, cloud.Config{
		Dir: filepath.Join(cfg.Dir, dataDir), Bucket: Bucket, Ports: cloudPorts(cfg.Port), Logger: cfg.Logger,
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
	if err := p.writeEndpoints(); err != nil {
		return p, err
	}
	return p, p.startStages(ctx, cfg, bin, services)
}

// ports returns the ports of the i-th stage.
func ports(ctx context.Context, first, i int) (port, metrics int, err error) {
	if first != 0 {
		return first + 10 + i, first + 20 + i, nil
	}
	for _, p := range []*int{&port, &metrics} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return 0, 0, fmt.Errorf("find a free port: %w", err)
		}
		*p = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return 0, 0, fmt.Errorf("find a free port: %w", err)
		}
	}
	return port, metrics, nil
}

func cloudPorts(first int) cloud.Ports {
	if first == 0 {
		return cloud.Ports{}
	}
	return cloud.Ports{PubSub: first, BigQuery: first + 1, BigQueryStorage: first + 2, Storage: first + 3, Issuer: first + 4}
}

// connect makes the clients of the platform's own: they are Google's, as everybody else's are.
func (p *Platform) connect(ctx context.Context) (err error) {
	p.BigQuery, err = bigquery.NewClient(ctx, cloud.Project,
		option.WithEndpoint(p.Cloud.BigQuery.RESTEndpoint()), option.WithoutAuthentication())
	if err != nil {
		return fmt.Errorf("connect to BigQuery: %w", err)
	}
	p.Storage, err = storage.NewClient(ctx, option.WithEndpoint(p.Cloud.Storage.Endpoint()), option.WithoutAuthentication())
	if err != nil {
		return fmt.Errorf("connect to Cloud Storage: %w", err)
	}
	return nil
}

// PubSubOptions are how a Pub/Sub client reaches the embedded cloud.
func (p *Platform) PubSubOptions() []option.ClientOption {
	return []option.ClientOption{
		option.WithEndpoint(p.Cloud.PubSub.Addr()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
}

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
	supervisor := stages.New(stages.Config{LogDir: filepath.Join(cfg.Dir, "logs"), Logger: cfg.Logger, Grace: 30 * time.Second}, all...)
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

// Drain waits until every message has been acknowledged by every stage that wants it. It gives up when ctx ends.
func (p *Platform) Drain(ctx context.Context) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		left := p.Backlog()
		total := 0
		for _, n := range left {
			total += n
		}
		if total == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("drain: %d messages are left (%v): %w", total, left, ctx.Err())
		case <-ticker.C:
		}
	}
}

// Close stops the stages, which finish what they have begun, and then the embedded cloud.
func (p *Platform) Close() error {
	var errs []error
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
	if err := os.Remove(p.endpoints); !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// endpointsFile says, while a platform runs, where it does.
const endpointsFile = "endpoints.json"

// Endpoints are where a running platform listens.
type Endpoints struct {
	PID      int    `json:"pid"`
	BigQuery string `json:"bigquery"` // base URL of the REST API
	PubSub   string `json:"pubsub"`   // host:port
	Storage  string `json:"storage"`  // host:port
}

func (p *Platform) writeEndpoints() error {
	text, err := json.MarshalIndent(Endpoints{
		PID: os.Getpid(), BigQuery: p.Cloud.BigQuery.RESTEndpoint(), PubSub: p.Cloud.PubSub.Addr(), Storage: p.Cloud.Storage.Host(),
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode endpoints: %w", err)
	}
	if err := os.WriteFile(p.endpoints, append(text, '\n'), 0o644); err != nil { //nolint:gosec // no secret
		return fmt.Errorf("write endpoints: %w", err)
	}
	return nil
}

// ReadEndpoints returns where the platform on dir listens; ok is false if none runs. The file of one that was killed is
// still there, so whoever uses the answer must be ready to find nobody.
func ReadEndpoints(dir string) (e Endpoints, ok bool) {
	text, err := os.ReadFile(filepath.Join(dir, endpointsFile))
	if err != nil {
		return e, false
	}
	return e, json.Unmarshal(text, &e) == nil
}

// Alive says whether the platform of e answers. One that was killed leaves its file behind.
func Alive(ctx context.Context, e Endpoints) bool {
	u, err := url.Parse(e.BigQuery)
	if err != nil {
		return false
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return false
	}
	_ = conn.Close() // it was only to see whether somebody answers
	return true
}

// BigQueryDir returns where the embedded BigQuery of the platform on dir keeps its data.
func BigQueryDir(dir string) string { return filepath.Join(dir, dataDir, cloud.BigQueryDir) }
