// Package storetest is the conformance suite of coldarchive.Store.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/robofleet/robofleet/functions/coldarchive"
)

// Reader returns the content of an object, and an error if there is none of that name.
type Reader func(ctx context.Context, name string) ([]byte, error)

// Run holds the stores that open returns to the promises of coldarchive.Store. Each is empty, and is read by its Reader.
func Run(t *testing.T, open func(t *testing.T) (coldarchive.Store, Reader)) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s coldarchive.Store, read Reader)
	}{
		{"ObjectIsThereOnceCreated", objectIsThere},
		{"SecondCreateSucceedsAndChangesNothing", secondCreate},
		{"LargeObject", largeObject},
		{"ConcurrentCreates", concurrentCreates},
		{"CreateEndsWithItsContext", createEndsWithItsContext},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, read := open(t)
			test.run(t, s, read)
		})
	}
}

const name = "telemetry/dt=2026-11-23/hour=11/w-20261123T111903.250Z-0123456789abcdef.ndjson.gz"

func objectIsThere(t *testing.T, s coldarchive.Store, read Reader) {
	content := []byte{0x1f, 0x8b, 0, 0xff, '\n', '\r'}
	create(t, s, name, content)
	expect(t, read, name, content)
}

func secondCreate(t *testing.T, s coldarchive.Store, read Reader) {
	create(t, s, name, []byte("first"))
	create(t, s, name, []byte("second"))
	expect(t, read, name, []byte("first"))
}

func largeObject(t *testing.T, s coldarchive.Store, read Reader) {
	content := make([]byte, 20<<20+1) // more than the client library's own chunk of 16 MiB
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(content) // never errs
	create(t, s, name, content)
	expect(t, read, name, content)
}

func concurrentCreates(t *testing.T, s coldarchive.Store, read Reader) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			create(t, s, "same", []byte("same"))
			create(t, s, fmt.Sprintf("own/%d", i), fmt.Append(nil, i))
		})
	}
	wg.Wait()
	expect(t, read, "same", []byte("same"))
	for i := range 16 {
		expect(t, read, fmt.Sprintf("own/%d", i), fmt.Append(nil, i))
	}
}

func createEndsWithItsContext(t *testing.T, s coldarchive.Store, _ Reader) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Create(ctx, name, []byte("late")); !errors.Is(err, context.Canceled) {
		t.Errorf("create with an ended context = %v, want %v", err, context.Canceled)
	}
}

func create(t *testing.T, s coldarchive.Store, name string, content []byte) {
	t.Helper()
	if err := s.Create(t.Context(), name, content); err != nil {
		t.Errorf("create %s: %v", name, err)
	}
}

func expect(t *testing.T, read Reader, name string, want []byte) {
	t.Helper()
	got, err := read(t.Context(), name)
	if err != nil {
		t.Errorf("read %s: %v", name, err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes that are not the %d created", name, len(got), len(want))
	}
}
