package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

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
	Brokers map[string]string `env:"BROKERS, required, separator=="`
}

// run serves until ctx ends and what is under way has been answered.
func run(ctx context.Context, env envconfig.Lookuper, log *slog.Logger) error {
	var cfg config
	if err := function.Load(ctx, env, &cfg); err != nil {
		return err
	}
	client, err := pubsub.NewClient(context.WithoutCancel(ctx), cfg.Project) // it is needed until the drain ends
	if err != nil {
		return fmt.Errorf("connect to Pub/Sub: %w", err)
	}
	topics, stop := ingress.Open(client, cfg.Brokers, cfg.Publishing)
	reg := prometheus.NewRegistry()
	handler, err := ingress.NewHandler(topics, cfg.Limits, reg, log)
	if err == nil {
		err = function.Serve(ctx, cfg.Server, handler, nil, reg, log)
	}
	stop()
	return errors.Join(err, client.Close())
}
