package bigquery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	bq "google.golang.org/api/bigquery/v2"
	"google.golang.org/grpc"
)

// Config says where and how a Server serves.
type Config struct {
	// RESTAddr and GRPCAddr are the host:port to listen on. Empty is "127.0.0.1:0": a free port.
	RESTAddr string
	GRPCAddr string
	// Dir is the folder of the data; it is created. Empty keeps everything in memory.
	Dir string
	// Project is the one project there is. Empty is "robofleet-local".
	Project string
	// Location is that of datasets which name none. Empty is "EU".
	Location string
	// MemoryMB bounds DuckDB's memory, in MiB; beyond it DuckDB spills to Dir. 0 is 512.
	MemoryMB int
	// Threads bounds DuckDB's threads. 0 is 1: every statement runs on its caller's thread. With more, a caller spins while another thread
	// works for it, a commit's wait for the disk included, which takes more CPU than the rest of an append.
	Threads int
	// Logger gets warnings. Nil is slog.Default.
	Logger *slog.Logger
}

// Server is a running BigQuery.
type Server struct {
	db       *database
	jobs     *jobs
	faults   *Faults
	rest     *http.Server
	grpc     *grpc.Server
	restAddr string
	grpcAddr string
	stop     context.CancelFunc
	served   chan error // of both listeners
	close    func() error
}

// checkpointThreshold is how much the write-ahead log grows before a commit moves it into the database file. A checkpoint delays the
// commits that wait for it, so it should be short; and after a kill the log is replayed, so it should be small.
const checkpointThreshold = "64MB"

// projectID is the form of a project's id.
var projectID = regexp.MustCompile(`^[a-z][a-z0-9-]*[a-z0-9]$`)

// Start opens the database under cfg.Dir and serves it until Close. The context bounds the start only.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	cfg.RESTAddr = cmp.Or(cfg.RESTAddr, "127.0.0.1:0")
	cfg.GRPCAddr = cmp.Or(cfg.GRPCAddr, "127.0.0.1:0")
	cfg.Project = cmp.Or(cfg.Project, "robofleet-local")
	cfg.Location = cmp.Or(cfg.Location, "EU")
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	if !projectID.MatchString(cfg.Project) {
		return nil, fmt.Errorf("start BigQuery: %q is not a project id", cfg.Project)
	}
	db, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("start BigQuery: %w", err)
	}
	s, err := serve(ctx, cfg, db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start BigQuery: %w", err), db.close())
	}
	return s, nil
}

func open(cfg Config) (*database, error) {
	settings := map[string]string{
		"threads":              strconv.Itoa(cmp.Or(cfg.Threads, 1)),
		"memory_limit":         strconv.Itoa(cmp.Or(cfg.MemoryMB, 512)) + "MiB",
		"checkpoint_threshold": checkpointThreshold,
		// A query reads the tables and nothing else of this machine or the network.
		"enable_external_access":       "false",
		"autoinstall_known_extensions": "false",
		"autoload_known_extensions":    "false",
	}
	if cfg.Dir == "" {
		return openDatabase("", settings)
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	path := filepath.Join(cfg.Dir, "bigquery.duckdb")
	db, err := openDatabase(path, settings)
	if err != nil && strings.Contains(err.Error(), "Could not set lock") {
		return nil, fmt.Errorf("%s is in use by another process: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return db, nil
}

func serve(ctx context.Context, cfg Config, db *database) (*Server, error) {
	catalog, err := loadCatalog(ctx, db, cfg.Project, cfg.Location, cfg.Logger)
	if err != nil {
		return nil, err
	}
	var listen net.ListenConfig
	restListener, err := listen.Listen(ctx, "tcp", cfg.RESTAddr)
	if err != nil {
		return nil, fmt.Errorf("listen for REST: %w", err)
	}
	grpcListener, err := listen.Listen(ctx, "tcp", cfg.GRPCAddr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for gRPC: %w", err), restListener.Close())
	}
	lifetime, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{
		db:       db,
		jobs:     &jobs{catalog: catalog, ctx: lifetime, byID: map[string]*job{}},
		faults:   &Faults{},
		restAddr: restListener.Addr().String(),
		grpcAddr: grpcListener.Addr().String(),
		stop:     stop,
		served:   make(chan error, 2),
	}
	s.rest = &http.Server{Handler: (&api{catalog: catalog, jobs: s.jobs}).handler(), ReadHeaderTimeout: 10 * time.Second}
	// The limit leaves room for a request just above BigQuery's, which gets BigQuery's error.
	s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(2*maxAppendBytes), grpc.WaitForHandlers(true))
	storagepb.RegisterBigQueryWriteServer(s.grpc, &writeServer{catalog: catalog, faults: s.faults, streams: map[string]*writeStream{}})
	s.close = sync.OnceValue(s.shutdown)
	go func() { s.served <- s.rest.Serve(restListener) }()
	go func() { s.served <- s.grpc.Serve(grpcListener) }()
	return s, nil
}

// RESTEndpoint is the base URL of the REST API, for option.WithEndpoint.
func (s *Server) RESTEndpoint() string { return "http://" + s.restAddr }

// GRPCAddr is the host:port of the Storage Write API, in plaintext.
func (s *Server) GRPCAddr() string { return s.grpcAddr }

// Faults injects faults into the Storage Write API.
func (s *Server) Faults() *Faults { return s.faults }

// Close stops serving, waits for what has begun, and closes the database with a checkpoint.
func (s *Server) Close() error { return s.close() }

func (s *Server) shutdown() error {
	s.stop()
	s.grpc.Stop()
	// Shutdown waits up to five seconds for connections that a client has opened and not used yet; nobody waits for those.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.rest.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.rest.Close()
	}
	s.jobs.running.Wait()
	for range 2 {
		if served := <-s.served; !errors.Is(served, http.ErrServerClosed) && !errors.Is(served, grpc.ErrServerStopped) {
			err = errors.Join(err, served)
		}
	}
	return errors.Join(err, s.db.close())
}

// sameFields says whether two schemas have the same fields.
func sameFields(a, b []*bq.TableFieldSchema) bool { return reflect.DeepEqual(a, b) }
