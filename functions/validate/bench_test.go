package validate_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/robofleet/robofleet/functions/validate"
	"github.com/robofleet/robofleet/shared/function"
)

// TestMain makes the test binary its own load client: in a process of its own, so that the CPU time of the benchmark's process
// is the server's.
func TestMain(m *testing.M) {
	if url := os.Getenv("LOAD_URL"); url != "" {
		if err := load(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// load posts LOAD_N times LOAD_READINGS readings to url, as a push subscription does: many at a time, on kept connections.
func load(url string) error {
	n, err := strconv.Atoi(os.Getenv("LOAD_N"))
	if err != nil {
		return err
	}
	readings, err := strconv.Atoi(os.Getenv("LOAD_READINGS"))
	if err != nil {
		return err
	}
	const concurrency = 512
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: concurrency}}
	body := []byte(reading("R-000017", 123456))
	if readings > 1 {
		body = []byte("[" + strings.Repeat(string(body)+",", readings-1) + string(body) + "]")
	}
	header := pushed(fromRobot)
	var left atomic.Int64
	left.Store(int64(n))
	var failure atomic.Pointer[error]
	var wg sync.WaitGroup
	for range concurrency {
		wg.Go(func() {
			for left.Add(-1) >= 0 && failure.Load() == nil {
				if err := send(client, url, header, body); err != nil {
					failure.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}

func send(client *http.Client, url string, header http.Header, body []byte) error {
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	if err == nil && res.StatusCode != http.StatusNoContent {
		err = fmt.Errorf("answer %s, want 204", res.Status)
	}
	return err
}

// discard is a Sink that takes everything.
type discard struct{}

func (discard) Emit(context.Context, string, []byte) error { return nil }

// BenchmarkPush measures what the process of a server spends per reading, next to a bare net/http handler that reads the body
// and answers 204, under the same load from another process.
func BenchmarkPush(b *testing.B) {
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	v, err := validate.New(validate.DefaultConfig(), discard{}, prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	h, err := function.NewHandler(v.Handle, limits, nil, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	for _, readings := range []int{1, 100} {
		var reference float64
		b.Run(fmt.Sprintf("readings=%d/bare", readings), func(b *testing.B) { reference = benchmarkPush(b, bare, readings) })
		b.Run(fmt.Sprintf("readings=%d/validate", readings), func(b *testing.B) {
			b.ReportMetric(benchmarkPush(b, h, readings)/reference, "×bare")
		})
	}
}

// benchmarkPush returns the CPU time of this process per request, in nanoseconds.
func benchmarkPush(b *testing.B, h http.Handler, readings int) float64 {
	server := httptest.NewServer(h)
	defer server.Close()
	client := exec.CommandContext(b.Context(), os.Args[0])
	client.Env = append(os.Environ(), "LOAD_URL="+server.URL, fmt.Sprintf("LOAD_N=%d", b.N), fmt.Sprintf("LOAD_READINGS=%d", readings))
	client.Stderr = os.Stderr
	b.ReportAllocs()
	before := cpu(b)
	b.ResetTimer()
	if err := client.Run(); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	spent := float64(cpu(b)-before) / float64(b.N)
	b.ReportMetric(spent/float64(readings), "cpu-ns/reading")
	b.ReportMetric(float64(b.N*readings)/b.Elapsed().Seconds(), "readings/s")
	return spent
}

// cpu returns the CPU time that this process has spent.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
