package coldarchive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
)

// Store is where objects go.
type Store interface {
	// Create writes a new object and returns nil once it is durable. An object of that name that exists already is left as
	// it is, and that is a success: a name stands for its content. After an error it may or may not exist.
	Create(ctx context.Context, name string, content []byte) error
}

// GCS is the Store of production, a bucket of Cloud Storage.
type GCS struct{ bucket *storage.BucketHandle }

// NewGCS returns the store in bucket.
func NewGCS(bucket *storage.BucketHandle) *GCS {
	// A retry after an answer that was lost is safe, because the precondition makes the second attempt find the first.
	return &GCS{bucket.Retryer(storage.WithPolicy(storage.RetryAlways), storage.WithErrorFunc(func(err error) bool {
		return storage.ShouldRetry(err) || errors.Is(err, io.EOF) // EOF: the connection ended instead of an answer
	}))}
}

// Create implements Store.
func (g *GCS) Create(ctx context.Context, name string, content []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // abandons the upload if it was not completed by Close
	w := g.bucket.Object(name).If(storage.Conditions{DoesNotExist: true}).NewWriter(ctx)
	w.ContentType = contentType
	// The object fits in one chunk, so it is sent in one request, and kept in a buffer that a retry is sent from; the default
	// buffer of 16 MiB would be most of the stage's memory.
	w.ChunkSize = len(content) + 1
	_, err := bytes.NewReader(content).WriteTo(w)
	if err == nil {
		err = w.Close()
	}
	if e, ok := errors.AsType[*googleapi.Error](err); ok && e.Code == http.StatusPreconditionFailed {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create object %s: %w", name, err)
	}
	return nil
}

// Memory is a Store in memory, for tests and benchmarks.
type Memory struct {
	mu      sync.Mutex
	objects map[string][]byte
}

// Create implements Store.
func (m *Memory) Create(ctx context.Context, name string, content []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.objects == nil {
		m.objects = make(map[string][]byte)
	}
	if _, exists := m.objects[name]; !exists {
		m.objects[name] = bytes.Clone(content)
	}
	return nil
}

// Objects returns the objects created so far, by name.
func (m *Memory) Objects() map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.objects)
}
