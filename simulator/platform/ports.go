package platform

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"

	"github.com/robofleet/robofleet/simulator/cloud"
)

// How free ports are chosen: below those that systems give to outgoing connections (Linux from 32768, macOS and Windows from
// 49152), or one of these could take the port of a stage while it is being restarted.
const (
	freeFrom, freeTo = 10_000, 32_000
	portBlock        = 30 // ports that a platform spans
	freeAttempts     = 100
)

// MaxPort is the highest that a platform's first port can be.
const MaxPort = 1<<16 - portBlock

// CloudPorts are those of the embedded cloud for a first port.
func CloudPorts(first int) cloud.Ports {
	return cloud.Ports{PubSub: first, BigQuery: first + 1, BigQueryStorage: first + 2, Storage: first + 3, Issuer: first + 4}
}

// choosePorts returns first, or a free one if it is 0, after it has seen that all ports are free. Whoever finds out only when
// the first stage does not start has waited for the build of all of them.
func choosePorts(ctx context.Context, first int, services []stage) (int, error) {
	if first != 0 {
		return first, checkPorts(ctx, first, services)
	}
	var err error
	for range freeAttempts {
		first = freeFrom + rand.IntN((freeTo-freeFrom)/portBlock)*portBlock
		if err = checkPorts(ctx, first, services); err == nil {
			return first, nil
		}
	}
	return 0, fmt.Errorf("find %d free ports: %w", portBlock, err)
}

func checkPorts(ctx context.Context, first int, services []stage) error {
	used := []struct {
		port int
		by   string
	}{
		{first, "Pub/Sub"}, {first + 1, "BigQuery"}, {first + 2, "BigQuery's Storage Write API"}, {first + 3, "Cloud Storage"},
		{first + 4, "the identity provider"},
	}
	for i, s := range services {
		used = append(used, struct {
			port int
			by   string
		}{first + 10 + i, s.name}, struct {
			port int
			by   string
		}{first + 20 + i, "the metrics of " + s.name})
	}
	for _, u := range used {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(u.port)))
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("port %d of %s is taken by another process; --port chooses others", u.port, u.by)
		}
		if err != nil {
			return fmt.Errorf("port %d of %s: %w", u.port, u.by, err)
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("port %d of %s: %w", u.port, u.by, err)
		}
	}
	return nil
}
