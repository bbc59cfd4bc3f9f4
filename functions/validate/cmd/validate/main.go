// Command validate serves the stage of package validate.
//
// Environment: what shared/function.Config says; K_SINK, where events go; READINGS_… and REJECTIONS_…, the limits of
// shared/batch.Config. Under the functions framework: FUNCTION_TARGET=validate.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sethvargo/go-envconfig"

	"github.com/robofleet/robofleet/functions/validate"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/sink"
)

const name = "validate"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, envconfig.OsLookuper()); err != nil {
		function.NewLogger(name).Error(err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, env envconfig.Lookuper) error {
	cfg := struct {
		function.Config
		Sink     sink.Config
		Validate validate.Config
	}{Validate: validate.DefaultConfig()}
	if err := function.Load(ctx, env, &cfg); err != nil {
		return err
	}
	s, err := sink.New(cfg.Sink, validate.Source, cfg.Laptop(), os.Stdout)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	v, err := validate.New(cfg.Validate, s, reg)
	if err != nil {
		return err
	}
	defer v.Close()
	return function.Run(ctx, cfg.Config, function.Stage{Name: name, Handler: v.Handle, Flush: v.Flush}, reg, function.NewLogger(name))
}
