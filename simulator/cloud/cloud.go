// Package cloud is the embedded cloud: Pub/Sub, BigQuery, Cloud Storage and an identity provider in one process, over the
// real protocols, on the loopback interface by default. Google's client libraries talk to it as they are.
//
// Its data is a folder and survives the process, kill -9 included.
package cloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	bigqueryclient "cloud.google.com/go/bigquery"
	storageclient "cloud.google.com/go/storage"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/robofleet/robofleet/simulator/cloud/bigquery"
	"github.com/robofleet/robofleet/simulator/cloud/issuer"
	"github.com/robofleet/robofleet/simulator/cloud/pubsub"
	"github.com/robofleet/robofleet/simulator/cloud/storage"
)

// Project is the id of the embedded cloud's only project.
const Project = "robofleet-local"

// BigQueryDir is the folder of BigQuery's data in that of the Cloud.
const BigQueryDir = "bigquery"

// Ports are where the parts listen; 0 is any free port.
type Ports struct {
	PubSub          int // gRPC
	BigQuery        int // REST
	BigQueryStorage int // gRPC, Storage Write API
	Storage         int // JSON API
	Issuer          int // HTTP
}

// Config is what a Cloud needs.
type Config struct {
	Dir    string // of the data
	Bucket string // made if it does not exist
	// Host is the IP address on which the parts listen, and by which clients are told to reach them. Nobody has to log in, so
	// it must be one that strangers do not reach. Default 127.0.0.1.
	Host   string
	Ports  Ports
	Logger *slog.Logger
	// PushTransport sends Pub/Sub's pushes. Default: that of package pubsub.
	PushTransport http.RoundTripper
}

func (c Config) addr(port int) string {
	return net.JoinHostPort(cmp.Or(c.Host, "127.0.0.1"), strconv.Itoa(port))
}

// Cloud is a running embedded cloud.
type Cloud struct {
	PubSub   *pubsub.Server
	BigQuery *bigquery.Server
	Storage  *storage.Server
	Issuer   *issuer.Issuer

	identity *http.Server
	log      *slog.Logger
}

// Start starts all parts or none.
func Start(ctx context.Context, cfg Config) (_ *Cloud, err error) {
	c := &Cloud{log: cfg.Logger}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := c.startIssuer(ctx, cfg); err != nil {
		return c, err
	}
	c.PubSub, err = pubsub.Start(ctx, pubsub.Config{
		Addr: cfg.addr(cfg.Ports.PubSub), Dir: filepath.Join(cfg.Dir, "pubsub"), Tokens: c.Issuer,
		Transport: cfg.PushTransport, Logger: cfg.Logger,
	})
	if err != nil {
		return c, err
	}
	c.BigQuery, err = bigquery.Start(ctx, bigquery.Config{
		RESTAddr: cfg.addr(cfg.Ports.BigQuery), GRPCAddr: cfg.addr(cfg.Ports.BigQueryStorage),
		Dir: filepath.Join(cfg.Dir, BigQueryDir), Project: Project, Logger: cfg.Logger,
	})
	if err != nil {
		return c, err
	}
	c.Storage, err = storage.Start(ctx, storage.Config{
		Addr: cfg.addr(cfg.Ports.Storage), Dir: filepath.Join(cfg.Dir, "storage"), Buckets: []string{cfg.Bucket}, Logger: cfg.Logger,
	})
	return c, err
}

func (c *Cloud) startIssuer(ctx context.Context, cfg Config) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.addr(cfg.Ports.Issuer))
	if err != nil {
		return fmt.Errorf("start the identity provider: %w", err)
	}
	c.Issuer, err = issuer.New(issuer.Config{URL: "http://" + l.Addr().String(), Dir: filepath.Join(cfg.Dir, "issuer")})
	if err != nil {
		return errors.Join(fmt.Errorf("start the identity provider: %w", err), l.Close())
	}
	c.identity = &http.Server{Handler: c.Issuer, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := c.identity.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("identity provider", "error", err)
		}
	}()
	return nil
}

// Env is the environment by which Google's client libraries and the stages find the embedded cloud.
func (c *Cloud) Env() []string {
	return []string{
		"GOOGLE_CLOUD_PROJECT=" + Project,
		"PUBSUB_PROJECT_ID=" + Project,
		"PUBSUB_EMULATOR_HOST=" + c.PubSub.Addr(),
		"STORAGE_EMULATOR_HOST=" + c.Storage.Host(),
		"BIGQUERY_ENDPOINT=" + c.BigQuery.RESTEndpoint(),
		"BIGQUERY_STORAGE_ENDPOINT=" + c.BigQuery.GRPCAddr(),
		"PUSH_ISSUER=" + c.Issuer.URL(),
		"PUSH_JWKS_URL=" + c.Issuer.URL() + issuer.JWKSPath,
	}
}

// PubSubOptions are how a Pub/Sub client reaches the embedded cloud.
func (c *Cloud) PubSubOptions() []option.ClientOption {
	return []option.ClientOption{
		option.WithEndpoint(c.PubSub.Addr()), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
}

// BigQueryClient returns a client of Google's for the embedded BigQuery.
func (c *Cloud) BigQueryClient(ctx context.Context) (*bigqueryclient.Client, error) {
	client, err := bigqueryclient.NewClient(ctx, Project,
		option.WithEndpoint(c.BigQuery.RESTEndpoint()), option.WithoutAuthentication())
	if err != nil {
		return nil, fmt.Errorf("connect to BigQuery: %w", err)
	}
	return client, nil
}

// StorageClient returns a client of Google's for the embedded Cloud Storage.
func (c *Cloud) StorageClient(ctx context.Context) (*storageclient.Client, error) {
	client, err := storageclient.NewClient(ctx, option.WithEndpoint(c.Storage.Endpoint()), option.WithoutAuthentication())
	if err != nil {
		return nil, fmt.Errorf("connect to Cloud Storage: %w", err)
	}
	return client, nil
}

// Close stops all parts. What they hold is on disk.
func (c *Cloud) Close() error {
	var errs []error
	if c.PubSub != nil {
		errs = append(errs, c.PubSub.Close())
	}
	if c.BigQuery != nil {
		errs = append(errs, c.BigQuery.Close())
	}
	if c.Storage != nil {
		errs = append(errs, c.Storage.Close())
	}
	if c.identity != nil {
		errs = append(errs, c.identity.Close())
	}
	return errors.Join(errs...)
}
