package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"github.com/go-logr/logr"
	"github.com/sethvargo/go-envconfig"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	kubeconfig "sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/robofleet/robofleet/eventing/controller"
	"github.com/robofleet/robofleet/shared/function"
)

// config is the environment. The cluster is that of KUBECONFIG, or else the one in which the process runs.
type config struct {
	controller.Settings
	Host        string `env:"HOST"` // "" is every interface
	HealthPort  int    `env:"HEALTH_PORT, default=8081"`
	MetricsPort int    `env:"METRICS_PORT, default=9090"`
	// LeaderElection keeps a second replica waiting until the first is gone.
	LeaderElection bool `env:"LEADER_ELECTION, default=true"`
}

// run makes passes until ctx ends.
func run(ctx context.Context, env envconfig.Lookuper, log *slog.Logger) error {
	var cfg config
	if err := function.Load(ctx, env, &cfg); err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	logger := logr.FromSlogHandler(log.Handler())
	ctrllog.SetLogger(logger) // the libraries log to globals
	klog.SetLogger(logger)

	mgr, err := newManager(cfg, logger)
	if err != nil {
		return err
	}
	pubsubClient, err := pubsub.NewClient(ctx, cfg.Project)
	if err != nil {
		return fmt.Errorf("connect to Pub/Sub: %w", err)
	}
	m, err := controller.NewMetrics(metrics.Registry)
	if err != nil {
		return errors.Join(err, pubsubClient.Close())
	}
	reconciler := &controller.Reconciler{
		Settings: cfg.Settings,
		Client:   mgr.GetClient(),
		Live:     mgr.GetAPIReader(),
		PubSub:   pubsubClient,
		Events:   mgr.GetEventRecorder("pubsub-broker-controller"),
		HTTP:     &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: nil}}, // pods are near, whatever HTTP_PROXY says
		Metrics:  m,
	}
	err = reconciler.SetupWithManager(mgr)
	if err == nil {
		log.Info("starting", "project", cfg.Project, "owner", cfg.Owner)
		err = mgr.Start(ctx)
	}
	return errors.Join(err, pubsubClient.Close())
}

func newManager(cfg config, logger logr.Logger) (manager.Manager, error) {
	scheme, err := controller.NewScheme()
	if err != nil {
		return nil, err
	}
	cluster, err := kubeconfig.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	address := func(port int) string {
		if port == 0 {
			return "0" // none
		}
		return net.JoinHostPort(cfg.Host, strconv.Itoa(port))
	}
	mgr, err := manager.New(cluster, manager.Options{
		Scheme:                        scheme,
		Logger:                        logger,
		Cache:                         cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
		Client:                        client.Options{Cache: &client.CacheOptions{Unstructured: true}}, // subscribers are of any kind
		LeaderElection:                cfg.LeaderElection,
		LeaderElectionID:              "pubsub-broker-controller",
		LeaderElectionNamespace:       cfg.Namespace,
		LeaderElectionReleaseOnCancel: true, // the next one need not wait for the lease to run out
		Metrics:                       metricsserver.Options{BindAddress: address(cfg.MetricsPort)},
		HealthProbeBindAddress:        address(cfg.HealthPort),
	})
	if err != nil {
		return nil, fmt.Errorf("new manager: %w", err)
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("ping", healthz.Ping)); err != nil {
		return nil, fmt.Errorf("add health checks: %w", err)
	}
	return mgr, nil
}
