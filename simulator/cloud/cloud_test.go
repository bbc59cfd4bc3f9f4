package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/storage"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"

	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/functions/coldarchive/storetest"
	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/functions/hotwrite/warehousetest"
	"github.com/robofleet/robofleet/simulator/cloud"
)

func start(t *testing.T, dir string) *cloud.Cloud {
	t.Helper()
	c, err := cloud.Start(t.Context(), cloud.Config{Dir: dir, Bucket: "archive", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func warehouse(t *testing.T, c *cloud.Cloud) *bigquery.Client {
	t.Helper()
	client, err := bigquery.NewClient(t.Context(), cloud.Project, option.WithEndpoint(c.BigQuery.RESTEndpoint()), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func archive(t *testing.T, c *cloud.Cloud) *storage.Client {
	t.Helper()
	client, err := storage.NewClient(t.Context(), option.WithEndpoint(c.Storage.Endpoint()), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// TestWarehouse holds hot-write's sink for BigQuery to its promises, on the embedded BigQuery.
func TestWarehouse(t *testing.T) {
	c := start(t, t.TempDir())
	client := warehouse(t, c)
	var datasets atomic.Int64
	warehousetest.Run(t, func(t *testing.T) (hotwrite.Warehouse, warehousetest.Reader) {
		dataset := fmt.Sprintf("test%d", datasets.Add(1))
		if err := hotwrite.CreateTables(t.Context(), client, dataset); err != nil {
			t.Fatal(err)
		}
		w, err := hotwrite.NewBigQuery(t.Context(), hotwrite.BigQueryConfig{
			Project: cloud.Project, Dataset: dataset, StorageEndpoint: c.BigQuery.GRPCAddr(),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		return w, func(ctx context.Context) ([]warehousetest.Row, error) {
			it, err := client.Query("SELECT " + warehousetest.Columns + " FROM " + dataset + "." + hotwrite.Table).Read(ctx)
			if err != nil {
				return nil, err
			}
			var rows []warehousetest.Row
			for {
				var row warehousetest.Row
				err := it.Next(&row)
				if errors.Is(err, iterator.Done) {
					return rows, nil
				}
				if err != nil {
					return nil, err
				}
				rows = append(rows, row)
			}
		}
	})
}

// TestStore holds cold-archive's sink for Cloud Storage to its promises, on the embedded Cloud Storage.
func TestStore(t *testing.T) {
	client := archive(t, start(t, t.TempDir()))
	var buckets atomic.Int64
	storetest.Run(t, func(t *testing.T) (coldarchive.Store, storetest.Reader) {
		bucket := client.Bucket(fmt.Sprintf("test-%d", buckets.Add(1)))
		if err := bucket.Create(t.Context(), cloud.Project, nil); err != nil {
			t.Fatal(err)
		}
		return coldarchive.NewGCS(bucket), func(ctx context.Context, name string) (_ []byte, err error) {
			r, err := bucket.Object(name).ReadCompressed(true).NewReader(ctx)
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, r.Close()) }()
			return io.ReadAll(r)
		}
	})
}

func TestDataSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	first := start(t, dir)
	if err := hotwrite.CreateTables(t.Context(), warehouse(t, first), "robofleet"); err != nil {
		t.Fatal(err)
	}
	if err := coldarchive.NewGCS(archive(t, first).Bucket("archive")).Create(t.Context(), "a", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second, err := cloud.Start(t.Context(), cloud.Config{Dir: dir, Bucket: "archive", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if _, err := warehouse(t, second).Dataset("robofleet").Table(hotwrite.Table).Metadata(t.Context()); err != nil {
		t.Errorf("table: %v", err)
	}
	if _, err := archive(t, second).Bucket("archive").Object("a").Attrs(t.Context()); err != nil {
		t.Errorf("object: %v", err)
	}
}

// TestEnvNamesWhereEveryPartListens: every endpoint in it answers.
func TestEnvNamesWhereEveryPartListens(t *testing.T) {
	env := map[string]string{}
	for _, pair := range start(t, t.TempDir()).Env() {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	for _, name := range []string{"PUBSUB_EMULATOR_HOST", "STORAGE_EMULATOR_HOST", "BIGQUERY_STORAGE_ENDPOINT"} {
		conn, err := net.Dial("tcp", env[name])
		if err != nil {
			t.Errorf("%s=%s: %v", name, env[name], err)
			continue
		}
		_ = conn.Close()
	}
	for _, url := range []string{env["PUSH_JWKS_URL"], env["BIGQUERY_ENDPOINT"] + "/bigquery/v2/projects/" + cloud.Project + "/datasets"} {
		r, err := http.Get(url)
		if err != nil {
			t.Errorf("get %s: %v", url, err)
			continue
		}
		_ = r.Body.Close()
		if r.StatusCode != http.StatusOK {
			t.Errorf("get %s: %s", url, r.Status)
		}
	}
}

func TestTakenPortIsNamedAndNothingIsLeftRunning(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	taken := l.Addr().(*net.TCPAddr).Port
	for name, ports := range map[string]cloud.Ports{
		"Pub/Sub": {PubSub: taken}, "BigQuery": {BigQuery: taken}, "Storage Write API": {BigQueryStorage: taken},
		"Cloud Storage": {Storage: taken}, "identity provider": {Issuer: taken},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cfg := cloud.Config{Dir: dir, Bucket: "archive", Ports: ports, Logger: slog.New(slog.DiscardHandler)}
			_, err := cloud.Start(t.Context(), cfg)
			if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), ":"+strconv.Itoa(taken)) {
				t.Errorf("start = %v, want one line that names port %d", err, taken)
			}
			start(t, dir) // nobody holds the files
		})
	}
}
