package storage_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/storage"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"

	local "github.com/robofleet/robofleet/simulator/cloud/storage"
)

const bucketName = "robofleet-archive"

func start(t testing.TB, dir string) *local.Server {
	t.Helper()
	server, err := local.Start(t.Context(), local.Config{Dir: dir, Buckets: []string{bucketName}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return server
}

func bucket(t testing.TB, server *local.Server, opts ...option.ClientOption) *storage.BucketHandle {
	t.Helper()
	// A transport of its own: a fault must not hit the idle connection of another test, and no connection outlives the test.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	c, err := storage.NewClient(t.Context(), append([]option.ClientOption{
		option.WithEndpoint(server.Endpoint()), option.WithHTTPClient(&http.Client{Transport: transport}),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.Bucket(bucketName).Retryer(storage.WithPolicy(storage.RetryAlways))
}

func zip(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, o *storage.ObjectHandle, content []byte, set ...func(*storage.Writer)) error {
	t.Helper()
	w := o.NewWriter(t.Context())
	for _, f := range set {
		f(w)
	}
	if _, err := w.Write(content); err != nil {
		return errors.Join(err, w.Close())
	}
	return w.Close()
}

func read(t testing.TB, o *storage.ObjectHandle) []byte {
	t.Helper()
	r, err := o.NewReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func names(t testing.TB, b *storage.BucketHandle, prefix string, page int) []string {
	t.Helper()
	it := b.Objects(t.Context(), &storage.Query{Prefix: prefix})
	it.PageInfo().MaxSize = page
	var out []string
	for {
		attrs, err := it.Next()
		if errors.Is(err, iterator.Done) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, attrs.Name)
	}
}

func hasStatus(err error, code int) bool {
	e, ok := errors.AsType[*googleapi.Error](err)
	return ok && e.Code == code
}

const archived = "telemetry/dt=2026-11-23/hour=07/cold-archive-0-20261123T070001.123Z-ab12.ndjson.gz"

func TestObjectIsTheFileThatItsNameSays(t *testing.T) {
	dir := t.TempDir()
	b := bucket(t, start(t, dir))
	content := zip(t, "{\"id\":1}\n")
	if err := write(t, b.Object(archived), content, func(w *storage.Writer) {
		w.ContentType = "application/gzip"
		w.Metadata = map[string]string{"rows": "1"}
	}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, b.Object(archived)); !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, want the %d written", len(got), len(content))
	}
	if got, err := os.ReadFile(filepath.Join(dir, bucketName, filepath.FromSlash(archived))); err != nil || !bytes.Equal(got, content) {
		t.Errorf("file: %d bytes, %v", len(got), err)
	}
	attrs, err := b.Object(archived).Attrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]any{archived, int64(len(content)), "application/gzip", map[string]string{"rows": "1"}},
		[]any{attrs.Name, attrs.Size, attrs.ContentType, attrs.Metadata}); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if _, err := b.Object("none").Attrs(t.Context()); !errors.Is(err, storage.ErrObjectNotExist) {
		t.Errorf("missing object: got %v", err)
	}
}

func TestUploadsOfEveryKindStoreTheSame(t *testing.T) {
	b := bucket(t, start(t, t.TempDir()))
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	for name, chunk := range map[string]int{"one request, streamed": 0, "one request, buffered": len(content) + 1, "resumable": 256 << 10} {
		t.Run(name, func(t *testing.T) {
			o := b.Object(name)
			if err := write(t, o.If(storage.Conditions{DoesNotExist: true}), content, func(w *storage.Writer) { w.ChunkSize = chunk }); err != nil {
				t.Fatal(err)
			}
			if got := read(t, o); !bytes.Equal(got, content) {
				t.Errorf("read %d bytes, want %d", len(got), len(content))
			}
			err := write(t, o.If(storage.Conditions{DoesNotExist: true}), []byte("other"), func(w *storage.Writer) { w.ChunkSize = chunk })
			if !hasStatus(err, http.StatusPreconditionFailed) {
				t.Errorf("second write: got %v, want 412", err)
			}
			if got := read(t, o); !bytes.Equal(got, content) {
				t.Error("the refused write has changed the object")
			}
		})
	}
}

func TestOneOfManyWritersOfANameSucceeds(t *testing.T) {
	b := bucket(t, start(t, t.TempDir()))
	var succeeded atomic.Int32
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			err := write(t, b.Object("same").If(storage.Conditions{DoesNotExist: true}), []byte(fmt.Sprint(i)))
			switch {
			case err == nil:
				succeeded.Add(1)
			case !hasStatus(err, http.StatusPreconditionFailed):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := succeeded.Load(); n != 1 {
		t.Errorf("%d writers succeeded, want 1", n)
	}
}

func TestGzipIsServedAsStoredUnlessDeclaredAsEncoding(t *testing.T) {
	b := bucket(t, start(t, t.TempDir()))
	text := strings.Repeat("{\"id\":1}\n", 100)
	content := zip(t, text)
	plain, encoded := b.Object("plain.ndjson.gz"), b.Object("encoded.ndjson")
	if err := write(t, plain, content, func(w *storage.Writer) { w.ContentType = "application/gzip" }); err != nil {
		t.Fatal(err)
	}
	if err := write(t, encoded, content, func(w *storage.Writer) { w.ContentType, w.ContentEncoding = "application/x-ndjson", "gzip" }); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		object *storage.ObjectHandle
		want   []byte
	}{
		{"no encoding", plain, content},
		{"no encoding, compressed read", plain.ReadCompressed(true), content},
		{"encoding", encoded, []byte(text)},
		{"encoding, compressed read", encoded.ReadCompressed(true), content},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := read(t, test.object); !bytes.Equal(got, test.want) {
				t.Errorf("got %d bytes, want %d", len(got), len(test.want))
			}
		})
	}
}

func TestListingHasThePrefixInOrderAndPages(t *testing.T) {
	b := bucket(t, start(t, t.TempDir()))
	var want []string
	for hour := range 3 {
		for i := range 4 {
			name := fmt.Sprintf("telemetry/dt=2026-11-23/hour=%02d/%d.ndjson.gz", hour, i)
			if err := write(t, b.Object(name), nil); err != nil {
				t.Fatal(err)
			}
			want = append(want, name)
		}
	}
	if err := write(t, b.Object("rejected/dt=2026-11-23/hour=00/0.ndjson.gz"), []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, page := range []int{0, 1, 5} {
		if diff := cmp.Diff(want, names(t, b, "telemetry/", page)); diff != "" {
			t.Errorf("pages of %d (-want +got):\n%s", page, diff)
		}
	}
	if diff := cmp.Diff(want[4:8], names(t, b, "telemetry/dt=2026-11-23/hour=01/", 0)); diff != "" {
		t.Errorf("one hour (-want +got):\n%s", diff)
	}
	it := b.Objects(t.Context(), &storage.Query{Delimiter: "/"})
	var folders []string
	for {
		attrs, err := it.Next()
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		folders = append(folders, attrs.Prefix)
	}
	if diff := cmp.Diff([]string{"rejected/", "telemetry/"}, folders); diff != "" {
		t.Errorf("folders (-want +got):\n%s", diff)
	}
}

func TestObjectsSurviveAStart(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // with one server after the other
		server, err := local.Start(t.Context(), local.Config{Dir: dir, Buckets: []string{bucketName, bucketName}})
		if err != nil {
			t.Fatal(err)
		}
		b := bucket(t, server)
		err = write(t, b.Object(archived).If(storage.Conditions{DoesNotExist: true}), []byte("content"))
		if err != nil && !hasStatus(err, http.StatusPreconditionFailed) {
			t.Fatal(err)
		}
		if got := string(read(t, b.Object(archived))); got != "content" {
			t.Errorf("got %q", got)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		if err := server.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	}
}

func TestBucketIsMendedAfterAKill(t *testing.T) {
	dir := t.TempDir()
	server, err := local.Start(t.Context(), local.Config{Dir: dir, Buckets: []string{bucketName}})
	if err != nil {
		t.Fatal(err)
	}
	if err := write(t, bucket(t, server).Object("a/whole"), []byte("whole")); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	// What a process leaves that is killed while it writes: a file that has no name yet, and one that has no metadata yet.
	for name, content := range map[string]string{".cut-off123456789": "cut", "complete": "complete"} {
		if err := os.WriteFile(filepath.Join(dir, bucketName, "a", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := bucket(t, start(t, dir))
	if diff := cmp.Diff([]string{"a/complete", "a/whole"}, names(t, b, "", 0)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	if got := string(read(t, b.Object("a/complete"))); got != "complete" {
		t.Errorf("got %q", got)
	}
	if err := write(t, b.Object("a/complete").If(storage.Conditions{DoesNotExist: true}), nil); !hasStatus(err, http.StatusPreconditionFailed) {
		t.Errorf("writing it again: got %v, want 412", err)
	}
}

func TestEmulatorVariableIsEnough(t *testing.T) {
	server := start(t, t.TempDir())
	t.Setenv("STORAGE_EMULATOR_HOST", server.Host())
	c, err := storage.NewClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	o := c.Bucket(bucketName).Object(archived)
	if err := write(t, o, []byte("content")); err != nil {
		t.Fatal(err)
	}
	if got := string(read(t, o)); got != "content" {
		t.Errorf("got %q", got)
	}
}

func TestStartFailsWithAReason(t *testing.T) {
	t.Run("port taken", func(t *testing.T) {
		first := start(t, t.TempDir())
		if _, err := local.Start(t.Context(), local.Config{Addr: first.Host(), Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("folder is a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := local.Start(t.Context(), local.Config{Dir: file}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("bucket's name is not valid", func(t *testing.T) {
		if _, err := local.Start(t.Context(), local.Config{Dir: t.TempDir(), Buckets: []string{"A/b"}}); err == nil || !strings.Contains(err.Error(), "A/b") {
			t.Errorf("got %v", err)
		}
	})
}

func TestInjectedFaultsHappenAndTheClientRecovers(t *testing.T) {
	tests := []struct {
		fault local.Fault
		want  int // status of the write's error; 0: it succeeds
	}{
		{local.Fault{Kind: local.FaultUnavailable, Rate: 1, Limit: 1}, 0},
		{local.Fault{Kind: local.FaultReset, Rate: 1, Limit: 1}, 0},
		{local.Fault{Kind: local.FaultSlow, Rate: 1, Limit: 1, Delay: 10 * time.Millisecond}, 0},
		{local.Fault{Kind: local.FaultLostAnswer, Rate: 1, Limit: 1}, http.StatusPreconditionFailed}, // of the retry, which finds the first
		{local.Fault{Kind: local.FaultPrecondition, Rate: 1, Limit: 1}, http.StatusPreconditionFailed},
	}
	for _, test := range tests {
		t.Run(string(test.fault.Kind), func(t *testing.T) {
			t.Parallel()
			server := start(t, t.TempDir())
			b := bucket(t, server)
			content := bytes.Repeat([]byte("x"), 100_000)
			server.Faults().Set(1, test.fault)
			err := write(t, b.Object("o").If(storage.Conditions{DoesNotExist: true}), content, func(w *storage.Writer) { w.ChunkSize = len(content) + 1 })
			if test.want == 0 && err != nil || test.want != 0 && !hasStatus(err, test.want) {
				t.Errorf("got %v, want status %d", err, test.want)
			}
			if got := server.Faults().Injected()[test.fault.Kind]; got != 1 {
				t.Errorf("%d faults injected, want 1", got)
			}
			if test.fault.Kind != local.FaultPrecondition && !bytes.Equal(read(t, b.Object("o")), content) {
				t.Error("the object is not stored")
			}
		})
	}
}

// BenchmarkList lists a bucket of 1,000 objects.
func BenchmarkList(b *testing.B) {
	handle := bucket(b, start(b, b.TempDir()))
	for i := range 1000 {
		if err := write(b, handle.Object(fmt.Sprintf("telemetry/dt=2026-11-23/hour=%02d/%d.ndjson.gz", i/60, i)), []byte("x")); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if got := len(names(b, handle, "telemetry/", 0)); got != 1000 {
			b.Fatal(got)
		}
	}
	b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}

// BenchmarkWrite writes objects of 1 MiB, one after the other.
func BenchmarkWrite(b *testing.B) {
	handle := bucket(b, start(b, b.TempDir()))
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	b.SetBytes(int64(len(content)))
	for i := range b.N {
		if err := write(b, handle.Object(fmt.Sprint(i)).If(storage.Conditions{DoesNotExist: true}), content, func(w *storage.Writer) { w.ChunkSize = len(content) + 1 }); err != nil {
			b.Fatal(err)
		}
	}
}
