// Command controller runs the Broker class PubSub in a cluster: see package controller.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sethvargo/go-envconfig"

	"github.com/robofleet/robofleet/shared/function"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := function.NewLogger("pubsub-broker-controller")
	if err := run(ctx, envconfig.OsLookuper(), log); err != nil {
		log.Error("stopped", "error", err)
		os.Exit(1)
	}
}
