package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sethvargo/go-envconfig"

	"github.com/robofleet/robofleet/eventing/ingress"
	"github.com/robofleet/robofleet/shared/function"
)

// config is the environment.
type config struct {
	function.Server
	ingress.Limits
	ingress.Publishing
	Project string `env:"PUBSUB_PROJECT_ID, required"`
	// Brokers maps "<namespace>/<broker>" to the id of its topic: plan.Plan.IngressTopics.
	Brokers map[string]string `env:"BROKERS, separator=="`
	// BrokersFile has the same, one per line, and is followed as it changes: in a cluster, the ConfigMap of the controller.
	BrokersFile string `env:"BROKERS_FILE"`
}

// lookEvery is how soon a changed file is seen.
const lookEvery = time.Second

// run serves until ctx ends and what is under way has been answered.
func run(ctx context.Context, env envconfig.Lookuper, log *slog.Logger) error {
	var cfg config
	if err := function.Load(ctx, env, &cfg); err != nil {
		return err
	}
	if (len(cfg.Brokers) == 0) == (cfg.BrokersFile == "") {
		return errors.New("give BROKERS or BROKERS_FILE, and not both")
	}
	client, err := pubsub.NewClient(context.WithoutCancel(ctx), cfg.Project) // it is needed until the drain ends
	if err != nil {
		return fmt.Errorf("connect to Pub/Sub: %w", err)
	}
	publishers := ingress.NewPublishers(client, cfg.Publishing)
	reg := prometheus.NewRegistry()
	handler, err := ingress.NewHandler(publishers.Topics(cfg.Brokers), cfg.Limits, reg, log)
	if err == nil {
		stop := follow(cfg.BrokersFile, handler, publishers, log)
		err = function.Serve(ctx, cfg.Server, handler, nil, reg, log)
		stop()
	}
	publishers.StopExcept(nil)
	return errors.Join(err, client.Close())
}

// follow serves the Brokers of a file, if there is one, as it changes, until stop is called.
func follow(file string, handler *ingress.Handler, publishers *ingress.Publishers, log *slog.Logger) (stop func()) {
	if file == "" {
		return func() {}
	}
	return ingress.WatchBrokers(file, lookEvery, func(brokers map[string]string) {
		handler.Serve(publishers.Topics(brokers))
		publishers.StopExcept(brokers)
	}, log)
}
