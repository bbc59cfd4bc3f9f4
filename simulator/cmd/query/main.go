// Command query asks the local platform's BigQuery and prints the answer as a table.
//
// While a platform runs it is asked through its REST API. Otherwise the query opens the data folder itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"cloud.google.com/go/bigquery"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"

	"github.com/robofleet/robofleet/simulator/cloud"
	embedded "github.com/robofleet/robofleet/simulator/cloud/bigquery"
	"github.com/robofleet/robofleet/simulator/platform"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "query: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	f := flag.NewFlagSet("query", flag.ContinueOnError)
	f.SetOutput(stderr)
	dir := f.String("data", ".robofleet", "folder of the local platform")
	if err := f.Parse(args); err != nil {
		return err
	}
	sql := strings.TrimSpace(strings.Join(f.Args(), " "))
	if sql == "" {
		return errors.New("no query: make query SQL='SELECT COUNT(*) FROM robofleet.telemetry'")
	}
	endpoint, closeServer, err := connect(ctx, *dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeServer()) }()
	client, err := bigquery.NewClient(ctx, cloud.Project, option.WithEndpoint(endpoint), option.WithoutAuthentication())
	if err != nil {
		return fmt.Errorf("connect to %s: %w", endpoint, err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	it, err := client.Query(sql).Read(ctx)
	if err != nil {
		return oneLine(err)
	}
	return print(it, stdout)
}

// oneLine is what BigQuery says of a query. The embedded one adds lines that point into the SQL that it has made of it.
func oneLine(err error) error {
	e, ok := errors.AsType[*googleapi.Error](err)
	if !ok {
		return err
	}
	message, _, _ := strings.Cut(e.Message, "\n\nLINE ")
	return errors.New(strings.Join(strings.Split(strings.TrimSpace(message), "\n"), "; "))
}

// connect finds the BigQuery of the platform on dir, or starts one there.
func connect(ctx context.Context, dir string) (endpoint string, closeServer func() error, err error) {
	e, running, err := platform.Running(dir)
	if err != nil {
		return "", nil, err
	}
	if running {
		return e.BigQuery, func() error { return nil }, nil
	}
	data := platform.BigQueryDir(dir)
	if _, err := os.Stat(data); err != nil {
		return "", nil, fmt.Errorf("no data in %s yet; make run makes some", dir)
	}
	s, err := embedded.Start(ctx, embedded.Config{Dir: data, Project: cloud.Project, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", nil, err
	}
	return s.RESTEndpoint(), s.Close, nil
}

func print(it *bigquery.RowIterator, out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	n := 0
	for {
		var row []bigquery.Value
		err := it.Next(&row)
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			return oneLine(err)
		}
		if n == 0 {
			if err := line(w, header(it.Schema)); err != nil {
				return err
			}
		}
		cells := make([]string, len(row))
		for i, v := range row {
			cells[i] = cell(v)
		}
		if err := line(w, cells); err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		_, err := fmt.Fprintln(out, "no rows")
		return err
	}
	return w.Flush()
}

func header(s bigquery.Schema) []string {
	names := make([]string, len(s))
	for i, field := range s {
		names[i] = field.Name
	}
	return names
}

func line(w io.Writer, cells []string) error {
	_, err := fmt.Fprintln(w, strings.Join(cells, "\t"))
	return err
}

func cell(v bigquery.Value) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case time.Time:
		return v.UTC().Format("2006-01-02 15:04:05.000")
	case float64:
		return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.6f", v), "0"), ".")
	}
	return fmt.Sprint(v)
}
