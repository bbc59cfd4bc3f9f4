package coldarchive_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/storage"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/option"

	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/functions/coldarchive/storetest"
)

func TestMemoryConforms(t *testing.T) {
	storetest.Run(t, func(*testing.T) (coldarchive.Store, storetest.Reader) {
		m := &coldarchive.Memory{}
		return m, func(_ context.Context, name string) ([]byte, error) {
			content, ok := m.Objects()[name]
			if !ok {
				return nil, fmt.Errorf("no object %s", name)
			}
			return content, nil
		}
	})
}

// bucket is a small Cloud Storage: uploads to one bucket, in memory.
type bucket struct {
	mu       sync.Mutex
	objects  map[string][]byte
	types    map[string]string
	faults   []fault // what happens to the next uploads, one each
	requests int
}

type fault int

const (
	unavailable fault = iota // 503, and nothing is stored
	lostAnswer               // the object is stored, and the connection breaks before the answer
	silence                  // there is never an answer
)

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, contentType, content, err := upload(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	next := fault(-1)
	if len(b.faults) > 0 {
		next, b.faults = b.faults[0], b.faults[1:]
	}
	switch next {
	case unavailable:
		http.Error(w, "try again", http.StatusServiceUnavailable)
		return
	case silence:
		b.mu.Unlock()
		<-r.Context().Done()
		b.mu.Lock()
		return
	}
	if _, exists := b.objects[name]; exists {
		http.Error(w, "conditionNotMet", http.StatusPreconditionFailed)
		return
	}
	b.objects[name], b.types[name] = content, contentType
	if next == lostAnswer {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"bucket": "archive", "name": name}) // the client sees what is missing
}

// upload reads an upload in one request (https://cloud.google.com/storage/docs/uploading-objects, "multipart").
func upload(r *http.Request) (name, contentType string, content []byte, err error) {
	q := r.URL.Query()
	if r.URL.Path != "/upload/storage/v1/b/archive/o" || q.Get("uploadType") != "multipart" || q.Get("ifGenerationMatch") != "0" {
		return "", "", nil, fmt.Errorf("%s %s: not an upload in one request of an object that must be new", r.Method, r.URL)
	}
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return "", "", nil, err
	}
	parts := multipart.NewReader(r.Body, params["boundary"])
	metadata, err := parts.NextPart()
	if err != nil {
		return "", "", nil, err
	}
	var object struct{ Name, ContentType, ContentEncoding string }
	if err := json.NewDecoder(metadata).Decode(&object); err != nil {
		return "", "", nil, err
	}
	if object.ContentEncoding != "" {
		return "", "", nil, fmt.Errorf("content encoding %q", object.ContentEncoding)
	}
	media, err := parts.NextPart()
	if err != nil {
		return "", "", nil, err
	}
	if content, err = io.ReadAll(media); err != nil {
		return "", "", nil, err
	}
	// To the very end, because only then net/http notices that a client has gone.
	_, err = io.Copy(io.Discard, r.Body)
	return object.Name, object.ContentType, content, err
}

func (b *bucket) read(_ context.Context, name string) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	content, ok := b.objects[name]
	if !ok {
		return nil, fmt.Errorf("no object %s", name)
	}
	return content, nil
}

func (b *bucket) open(t *testing.T) *coldarchive.GCS {
	t.Helper()
	b.objects, b.types = make(map[string][]byte), make(map[string]string)
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	client, err := storage.NewClient(t.Context(), option.WithEndpoint(server.URL+"/storage/v1/"), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() }) // nothing of it outlives the test
	return coldarchive.NewGCS(client.Bucket("archive"))
}

func TestGCSConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (coldarchive.Store, storetest.Reader) {
		b := &bucket{}
		return b.open(t), b.read
	})
}

func TestGCSCreatesDespite(t *testing.T) {
	for _, tt := range []struct {
		name     string
		faults   []fault
		requests int
	}{
		{"503", []fault{unavailable}, 2},
		{"503 twice", []fault{unavailable, unavailable}, 3},
		{"an answer that is lost", []fault{lostAnswer}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // the library pauses for up to a second before it tries again
			b := &bucket{faults: tt.faults}
			if err := b.open(t).Create(t.Context(), "a", []byte("content")); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string][]byte{"a": []byte("content")}, b.objects); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			if b.requests != tt.requests {
				t.Errorf("%d uploads, want %d", b.requests, tt.requests)
			}
			if got := b.types["a"]; got != "application/gzip" {
				t.Errorf("content type %q, want application/gzip", got)
			}
		})
	}
}

func TestGCSThatIsSilentEndsWithTheContext(t *testing.T) {
	t.Parallel()
	b := &bucket{faults: []fault{silence}}
	store := b.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := store.Create(ctx, "a", []byte("content")); err == nil {
		t.Error("create without an answer succeeded")
	}
}
