// Command plan prints what the Brokers and Triggers of class PubSub become in Pub/Sub, and with --apply makes it so.
//
//	go run ./eventing/cmd/plan --project my-project --subscriber-url 'https://{name}.robofleet.example.com'
//	go run ./eventing/cmd/plan --project my-project --subscriber-url … --push-service-account push@… --apply
//
// It exits with status 1 if a Broker or Trigger was refused or something could not be applied; whatever else was planned
// is printed, and applied, all the same. With PUBSUB_EMULATOR_HOST set it talks to that server.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.LookupEnv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "plan:", err)
		os.Exit(1)
	}
}
