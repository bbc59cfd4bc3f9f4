// Command cold-archive serves the stage of package coldarchive.
//
// Environment: what shared/function.Config says; ARCHIVE_BUCKET; OBJECTS_…, the limits of shared/batch.Config. A local Cloud
// Storage is named by STORAGE_EMULATOR_HOST, as Google's client library has it. Under the functions framework:
// FUNCTION_TARGET=cold-archive.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"cloud.google.com/go/storage"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sethvargo/go-envconfig"

	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/shared/batch"
	"github.com/robofleet/robofleet/shared/function"
)

const name = "cold-archive"

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
		Bucket  string       `env:"ARCHIVE_BUCKET, required"`
		Pod     string       `env:"HOSTNAME, default=local"` // Kubernetes sets it to the pod's name
		Objects batch.Config `env:", prefix=OBJECTS_"`
	}{Config: function.Config{Limits: function.PlatformLimits()}, Objects: coldarchive.DefaultConfig()}
	if err := function.Load(ctx, env, &cfg); err != nil {
		return err
	}
	client, err := storage.NewClient(context.WithoutCancel(ctx)) // what is under way when the process is told to stop is still written
	if err != nil {
		return fmt.Errorf("connect to Cloud Storage: %w", err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	// A pod's name may come back after a restart; the suffix tells its lives apart.
	writer := cfg.Pod + "-" + uuid.NewString()[:8]
	reg := prometheus.NewRegistry()
	a, err := coldarchive.New(cfg.Objects, coldarchive.NewGCS(client.Bucket(cfg.Bucket)), writer, reg)
	if err != nil {
		return err
	}
	defer a.Close()
	return function.Run(ctx, cfg.Config, function.Stage{Name: name, Handler: a.Handle, Flush: a.Flush}, reg, function.NewLogger(name))
}
