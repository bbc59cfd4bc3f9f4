// Package cluster tests the platform as it is deployed: the manifests on a real Kubernetes with Knative, against the embedded cloud
// on the host. A burst of readings starts the stages from zero, pods are deleted under it, and the ledger says what became of
// every reading.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/storage"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/simulator/cloud"
	"github.com/robofleet/robofleet/simulator/latency"
	"github.com/robofleet/robofleet/simulator/ledger"
	"github.com/robofleet/robofleet/simulator/platform"
	"github.com/robofleet/robofleet/simulator/robots"
	"github.com/robofleet/robofleet/simulator/run"
	"github.com/robofleet/robofleet/simulator/terminal"
)

// Namespace is where the manifests put everything.
const Namespace = "robofleet"

// controller is the Deployment of the Broker class's controller.
const controller = "pubsub-broker-controller"

// stages are the Knative Services, in the order of the readings.
var stages = [...]string{"validate", "hot-write", "cold-archive"}

// What is waited for, and how long.
const (
	readyTimeout   = 3 * time.Minute // one kind of objects, to be Ready or gone
	drainTimeout   = 5 * time.Minute // the last reading, to be stored
	zeroTimeout    = 3 * time.Minute // the last pod, to go
	cleanupTimeout = 10 * time.Minute
)

// Config is what a test needs. The cluster is that of the current context of kubectl; it must have Knative, and must not have the
// platform or the Broker class.
type Config struct {
	Dir     string   // of data and results
	Overlay string   // kustomize folder
	Ko      []string // command that builds the images
	Host    string   // IP address by which pods reach this machine
	Ingress string   // host:port that takes the pushes to all Knative Services; "" looks their names up
	Fleet   robots.Config
	Replace bool // delete a platform that an earlier test has left, instead of refusing to run
	Out     io.Writer
	Getenv  func(string) string
}

// Run runs the test. ok says that nothing was lost and nothing was invented.
func Run(ctx context.Context, cfg Config) (ok bool, err error) {
	module, err := run.ModuleDir()
	if err != nil {
		return false, err
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return false, fmt.Errorf("data folder: %w", err)
	}
	// Pub/Sub would deliver what an earlier test left.
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "data")); err != nil {
		return false, fmt.Errorf("data folder: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return false, fmt.Errorf("data folder: %w", err)
	}
	logFile, err := os.Create(filepath.Join(cfg.Dir, "cluster-test.log"))
	if err != nil {
		return false, fmt.Errorf("log: %w", err)
	}
	defer func() { err = errors.Join(err, logFile.Close()) }()
	kubeconfig, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return false, fmt.Errorf("find the cluster: %w", err)
	}
	client, err := kubernetes.NewForConfig(kubeconfig)
	if err != nil {
		return false, fmt.Errorf("find the cluster: %w", err)
	}
	t := &trial{
		Config: cfg, client: client, shell: shell{module, logFile}, log: slog.New(slog.NewJSONHandler(logFile, nil)),
		began: time.Now(),
	}
	return t.run(ctx)
}

// trial is one run of the test.
type trial struct {
	Config
	client    kubernetes.Interface
	shell     shell
	log       *slog.Logger
	began     time.Time
	cloud     *cloud.Cloud
	warehouse *bigquery.Client
	archive   *storage.Client
	pods      *pods

	printing sync.Mutex
}

// say prints a line of progress.
func (t *trial) say(format string, args ...any) {
	t.printing.Lock()
	defer t.printing.Unlock()
	_, _ = fmt.Fprintf(t.Out, "%6.1f s  "+format+"\n", append([]any{time.Since(t.began).Seconds()}, args...)...) // progress only
}

func (t *trial) run(ctx context.Context) (ok bool, err error) {
	if err := t.free(ctx); err != nil {
		return false, err
	}
	t.say("building images")
	manifests, err := t.shell.render(ctx, t.Ko, t.Overlay)
	if err != nil {
		return false, fmt.Errorf("render %s: %w", t.Overlay, err)
	}
	if err := t.startCloud(ctx); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, t.warehouse.Close(), t.archive.Close(), t.cloud.Close()) }()
	if t.Replace {
		t.say("deleting what an earlier test has left")
		if err := t.remove(ctx, manifests); err != nil {
			return false, err
		}
	}
	defer func() {
		t.say("cleaning up")
		err = errors.Join(err, t.remove(context.WithoutCancel(ctx), manifests))
		t.say("done")
	}()
	t.say("applying %s", t.Overlay)
	if err := t.shell.apply(ctx, manifests); err != nil {
		return false, fmt.Errorf("apply %s: %w", t.Overlay, err)
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	if t.pods, err = watchPods(watching, t.client, Namespace); err != nil {
		return false, err
	}
	t.say("all Ready; waiting for zero pods")
	if err := t.zero(ctx); err != nil {
		return false, err
	}
	return t.burst(ctx)
}

// free refuses a cluster that somebody uses: the platform, or the Broker class alone, of which a cluster has one.
func (t *trial) free(ctx context.Context) error {
	deployments, err := t.client.AppsV1().Deployments(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: "metadata.name=" + controller,
	})
	if err != nil {
		return fmt.Errorf("ask the cluster: %w", err)
	}
	for _, d := range deployments.Items {
		switch {
		case d.Namespace != Namespace:
			return fmt.Errorf("the cluster has the Broker class PubSub already, in namespace %s", d.Namespace)
		case !t.Replace:
			return fmt.Errorf("the cluster has the platform already, in namespace %s; --replace deletes it", Namespace)
		}
	}
	return nil
}

// remove deletes the platform. It needs the embedded cloud, where the controller deletes topics and subscriptions.
func (t *trial) remove(ctx context.Context, manifests []byte) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	if err := t.shell.remove(ctx, manifests); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// startCloud starts the embedded cloud where pods reach it, with the tables.
func (t *trial) startCloud(ctx context.Context) (err error) {
	// It outlives ctx: the controller takes its finalizers off when Pub/Sub has answered.
	t.cloud, err = cloud.Start(context.WithoutCancel(ctx), cloud.Config{
		Dir: filepath.Join(t.Dir, "data"), Bucket: platform.Bucket, Host: t.Host, Ports: platform.CloudPorts(platform.DefaultPort),
		Logger: t.log, PushTransport: pushTransport(t.Ingress),
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.cloud.Close())
		}
	}()
	if t.warehouse, err = t.cloud.BigQueryClient(ctx); err != nil {
		return err
	}
	if t.archive, err = t.cloud.StorageClient(ctx); err != nil {
		return err
	}
	return hotwrite.CreateTables(ctx, t.warehouse, platform.Dataset)
}

// pushTransport sends every push to the ingress, which tells Services apart by the Host header: the names are known in the cluster
// only. Without an ingress it is that of Pub/Sub.
func pushTransport(ingress string) http.RoundTripper {
	if ingress == "" {
		return nil
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, ingress)
		},
		MaxIdleConnsPerHost: 1000, IdleConnTimeout: time.Minute, DisableCompression: true,
	}
}

func (t *trial) zero(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, zeroTimeout, fmt.Errorf("gave up after %s", zeroTimeout))
	defer cancel()
	return t.pods.zero(ctx)
}

// backlog is what every subscription has yet to see acknowledged.
func (t *trial) backlog() map[string]int {
	backlog := map[string]int{}
	for name, stats := range t.cloud.PubSub.Stats().Subscriptions {
		backlog[path.Base(name)] = stats.Backlog
	}
	return backlog
}

// burst lets the robots publish, deletes pods meanwhile, and makes the ledger of it.
func (t *trial) burst(ctx context.Context) (ok bool, err error) {
	var sample []string
	for n := 1; n <= t.Fleet.Robots; n++ {
		if id := robots.RobotID(n); robots.Sampled(id) {
			sample = append(sample, id)
		}
	}
	probe := latency.New(t.warehouse, platform.Dataset+"."+hotwrite.Table, sample)
	fleetConfig := t.Fleet
	fleetConfig.OnPublish = probe.Published
	fleet, err := robots.New(fleetConfig)
	if err != nil {
		return false, err
	}
	publisher, err := robots.NewPubSub(ctx, cloud.Project, platform.Topic, t.log, t.cloud.PubSubOptions()...)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()

	watching, endWatch := context.WithCancel(ctx)
	defer endWatch()
	var watch errgroup.Group
	watch.Go(func() error { return probe.Run(watching) })

	start := time.Now()
	watch.Go(func() error { return t.awaitRow(watching, start) })
	t.say("%d robots, %g readings/s each, for %s", t.Fleet.Robots, t.Fleet.Rate, t.Fleet.Duration)
	var faults errgroup.Group
	faults.Go(func() error { return t.deletePods(ctx, t.Fleet.Duration/2) })
	if err := fleet.Run(ctx, publisher); err != nil {
		return false, errors.Join(err, faults.Wait())
	}
	published := time.Since(start)
	failed := faults.Wait()
	backlog := t.backlog()
	t.say("published; draining %v", backlog)
	drain, cancel := context.WithTimeoutCause(ctx, drainTimeout, fmt.Errorf("gave up after %s", drainTimeout))
	if err := platform.Drain(drain, t.backlog, len(backlog)); err != nil {
		failed = errors.Join(failed, fmt.Errorf("drain: %w", err))
	}
	cancel()
	t.say("%.1f s after the last reading nothing is left", (time.Since(start) - published).Seconds())
	endWatch()
	failed = errors.Join(failed, watch.Wait())
	l, err := ledger.Make(ctx, ledger.Stores{
		BigQuery: t.warehouse, Dataset: platform.Dataset, Bucket: t.archive.Bucket(platform.Bucket),
	}, fleet.Manifest(), t.Fleet.RunID, start)
	if err != nil {
		return false, errors.Join(failed, fmt.Errorf("make the ledger: %w", err))
	}
	report := run.NewReport(t.Fleet, l, published, probe.All(), nil, nil)
	if err := terminal.New(t.Out, t.Getenv).PrintLedger(report.View()); err != nil {
		return false, fmt.Errorf("print the ledger: %w", err)
	}
	if err := report.Write(filepath.Join(t.Dir, "ledger.json")); err != nil {
		return false, err
	}
	t.say("waiting for zero pods")
	if err := t.zero(ctx); err != nil {
		failed = errors.Join(failed, err)
	}
	return l.OK(), errors.Join(failed, t.printCurves(start))
}

// awaitRow prints when the first row of the burst can be read.
func (t *trial) awaitRow(ctx context.Context, start time.Time) error {
	query := t.warehouse.Query("SELECT COUNT(*) FROM " + platform.Dataset + "." + hotwrite.Table)
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		rows, err := query.Read(ctx)
		var row []bigquery.Value
		if err == nil {
			err = rows.Next(&row)
		}
		switch {
		case ctx.Err() != nil: // the ledger says what is missing
			return nil
		case err != nil:
			return fmt.Errorf("wait for the first row: %w", err)
		}
		if n, ok := row[0].(int64); ok && n > 0 {
			t.say("first row %.2f s after the start of the burst", time.Since(start).Seconds())
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// deletePods deletes a pod of every stage, of the Broker's ingress and of its controller.
func (t *trial) deletePods(ctx context.Context, after time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(after):
	}
	var victims []string
	for _, stage := range stages {
		name := t.pods.one(stage)
		if name == "" {
			return fmt.Errorf("%s has no pod to delete %s after the start of the burst", stage, after)
		}
		victims = append(victims, name)
	}
	for _, app := range []string{"broker-ingress", controller} {
		list, err := t.client.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + app})
		if err != nil {
			return fmt.Errorf("find a pod of %s: %w", app, err)
		}
		if len(list.Items) == 0 {
			return fmt.Errorf("%s has no pod", app)
		}
		victims = append(victims, list.Items[0].Name)
	}
	for _, name := range victims {
		if err := t.client.CoreV1().Pods(Namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return fmt.Errorf("delete pod %s: %w", name, err)
		}
		t.say("deleted pod %s", name)
	}
	return nil
}
