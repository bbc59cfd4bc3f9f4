// Command broker-ingress serves the addresses of the Brokers of class PubSub: see package ingress.
//
//	PUBSUB_PROJECT_ID=my-project BROKERS=robofleet/fleet=robofleet-events,robofleet/edge=robofleet-telemetry broker-ingress
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
	log := function.NewLogger("broker-ingress")
	if err := run(ctx, envconfig.OsLookuper(), log); err != nil {
		log.Error("stopped", "error", err)
		os.Exit(1)
	}
}
