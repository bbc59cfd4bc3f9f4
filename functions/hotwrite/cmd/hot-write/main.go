// Command hot-write serves the stage of package hotwrite.
//
// Environment: what shared/function.Config and hotwrite.BigQueryConfig say; K_SINK, where refused rows go; ROWS_…, the limits
// of shared/batch.Config. Under the functions framework: FUNCTION_TARGET=hot-write.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sethvargo/go-envconfig"

	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/function"
	"github.com/robofleet/robofleet/shared/sink"
)

const name = "hot-write"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, envconfig.OsLookuper()); err != nil {
		function.NewLogger(name).Error(err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, env envconfig.Lookuper) (err error) {
	cfg := struct {
		function.Config
		Sink     sink.Config
		BigQuery hotwrite.BigQueryConfig
		Rows     batch.Config `env:", prefix=ROWS_"`
	}{Config: function.Config{Limits: function.PlatformLimits()}, Rows: hotwrite.DefaultConfig()}
	if err := function.Load(ctx, env, &cfg); err != nil {
		return err
	}
	s, err := sink.New(cfg.Sink, "//robofleet.dev/functions/hot-write", cfg.Laptop(), os.Stdout)
	if err != nil {
		return err
	}
	// The connection outlives ctx: what is under way when the process is told to stop is still written.
	warehouse, err := hotwrite.NewBigQuery(context.WithoutCancel(ctx), cfg.BigQuery)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, warehouse.Close()) }()
	reg := prometheus.NewRegistry()
	h, err := hotwrite.New(cfg.Rows, warehouse, s, reg)
	if err != nil {
		return err
	}
	defer h.Close()
	return function.Run(ctx, cfg.Config, function.Stage{Name: name, Handler: h.Handle, Flush: h.Flush}, reg, function.NewLogger(name))
}
