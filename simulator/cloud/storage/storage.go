// Package storage is the embedded Cloud Storage: the JSON API of github.com/fsouza/fake-gcs-server over a folder.
//
// Every object is a file, Dir/<bucket>/<object>, so that ordinary tools read them (zcat, jq). Its metadata is an extended attribute of
// the file or, where the file system has none, a file <object>.metadata beside it. Objects are durable when their upload is answered,
// and survive the process, kill -9 included.
//
// What differs from Cloud Storage:
//   - Preconditions hold for uploads only (ifGenerationMatch answers 412), not for reads, deletes and compositions.
//   - A name is a path: there cannot be an object "a" beside an object "a/b", and names ending in ".metadata" are not safe.
//   - Sessions of resumable uploads end with the process. Uploads of one request, which is what the client library does for content
//     that fits in Writer.ChunkSize, have no such sessions.
//   - Uploads of all buckets take turns, and a listing reads the folder and every object's attributes for each of its pages.
//   - There is no versioning and no check of who asks.
//
// Objects with Content-Encoding gzip are decompressed for clients that do not accept gzip, as in Cloud Storage; without it the bytes are
// served as they are stored. Archives that shall be read as files (.gz) are best stored without it.
package storage

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

// Config is what a Server needs.
type Config struct {
	// Addr is the host:port to listen on. Empty is "127.0.0.1:0": a free port.
	Addr string
	// Dir is the folder of the objects; it is created. One process at a time may use it.
	Dir string
	// Buckets are created if they do not exist.
	Buckets []string
	// Logger gets warnings. Nil is slog.Default.
	Logger *slog.Logger
}

// Server is a running Cloud Storage.
type Server struct {
	addr   string
	server *http.Server
	fake   *fakestorage.Server
	faults *Faults
	logger *slog.Logger
	served chan error
	close  func() error
}

// Start serves the objects under cfg.Dir until Close. The context bounds the start only.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start Cloud Storage: %w", err)
	}
	return s, nil
}

func start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Dir == "" {
		return nil, errors.New("no folder for the objects")
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cmp.Or(cfg.Addr, "127.0.0.1:0"))
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s := &Server{addr: listener.Addr().String(), faults: &Faults{}, logger: cmp.Or(cfg.Logger, slog.Default()), served: make(chan error, 1)}
	s.fake, err = fakestorage.NewServerWithOptions(fakestorage.Options{
		StorageRoot: cfg.Dir,
		NoListener:  true, // its own would be on all interfaces, and report no error
		Scheme:      "http",
		ExternalURL: "http://" + s.addr,
		PublicHost:  s.addr,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", cfg.Dir, err), listener.Close())
	}
	if err := s.repair(ctx, cfg.Dir); err != nil {
		s.fake.Stop()
		return nil, errors.Join(err, listener.Close())
	}
	s.server = &http.Server{Handler: s.faults.inject(s.fake.HTTPHandler()), ReadHeaderTimeout: 10 * time.Second}
	s.close = sync.OnceValue(s.shutdown)
	go func() { s.served <- s.server.Serve(listener) }()
	for _, bucket := range cfg.Buckets {
		if err := s.createBucket(ctx, bucket); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// createBucket asks for a bucket as a client does, because the library's own call panics where this one answers with an error.
func (s *Server) createBucket(ctx context.Context, name string) error {
	body, err := json.Marshal(map[string]string{"name": name})
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", name, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Endpoint()+"b", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", name, err)
	}
	request.Close = true // no idle connection is left behind
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", name, err)
	}
	defer func() { _ = response.Body.Close() }() // it has been read
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", name, err)
	}
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusConflict {
		return fmt.Errorf("create bucket %s: %s: %s", name, response.Status, bytes.TrimSpace(text))
	}
	return nil
}

// unfinished is the name of a file that was being written: the library writes ".<name><digits>" and renames it.
var unfinished = regexp.MustCompile(`^\..+[0-9]+$`)

// repair mends buckets in which a killed process has left a file without metadata, because such a file makes every listing of its bucket
// fail. The content of a file is complete once it has its name, so the object is kept, and gets new metadata; its upload was not answered,
// and may as well have succeeded.
func (s *Server) repair(ctx context.Context, dir string) error {
	buckets, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the data folder: %w", err)
	}
	for _, bucket := range buckets {
		if !bucket.IsDir() {
			continue
		}
		if _, err := s.fake.ListObjectsWithOptionsPaginated(bucket.Name(), fakestorage.ListOptions{MaxResults: 1}); err == nil {
			continue
		}
		root := filepath.Join(dir, bucket.Name())
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, ".metadata") {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			return s.repairObject(ctx, bucket.Name(), filepath.ToSlash(name), path)
		})
		if err != nil {
			return fmt.Errorf("repair bucket %s: %w", bucket.Name(), err)
		}
	}
	return nil
}

func (s *Server) repairObject(ctx context.Context, bucket, name, path string) error {
	object, err := s.fake.GetObjectStreaming(bucket, name)
	if err == nil {
		return object.Close()
	}
	if unfinished.MatchString(filepath.Base(path)) {
		s.logger.WarnContext(ctx, "removing an upload that was cut off", "bucket", bucket, "file", name)
		return os.Remove(path)
	}
	s.logger.WarnContext(ctx, "object without metadata gets new", "bucket", bucket, "object", name)
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return s.fake.CreateObjectStreaming(fakestorage.Object{
		ObjectAttrs: fakestorage.ObjectAttrs{BucketName: bucket, Name: name, ContentType: "application/octet-stream"},
		Content:     content,
	}.StreamingObject())
}

// Endpoint is the base URL of the JSON API, for option.WithEndpoint.
func (s *Server) Endpoint() string { return "http://" + s.addr + "/storage/v1/" }

// Host is the host:port, for STORAGE_EMULATOR_HOST.
func (s *Server) Host() string { return s.addr }

// Faults injects faults into uploads.
func (s *Server) Faults() *Faults { return s.faults }

// Close stops serving after the requests under way.
func (s *Server) Close() error { return s.close() }

func (s *Server) shutdown() error {
	// Shutdown waits up to five seconds for connections that a client has opened and not used yet; uploads under way need less.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := s.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.server.Close()
	}
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	s.fake.Stop()
	return err
}
