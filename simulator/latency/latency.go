// Package latency measures how long a reading takes from its publish call to its first sight in a query, by doing what an
// operator would do: it asks the warehouse again and again what is new.
//
// It watches a sample of the robots. A reading's latency is as fine as the questions are frequent, and never too small: the
// reading was visible at some moment before the answer that showed it was read.
package latency

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/bigquery"
	"google.golang.org/api/iterator"
)

const (
	// period is the time between two questions.
	period = 100 * time.Millisecond
	// overlap is how far a question reaches back before the newest row seen: appends are committed out of order.
	overlap = 2 * time.Second
	// recent is the span of time that Recent speaks of.
	recent = 10 * time.Second
)

// Percentiles of latencies.
type Percentiles struct {
	P50, P95, P99, Max time.Duration
	N                  int // of readings
}

// Probe measures. Make it with New; Published and Run may be called at the same time.
type Probe struct {
	client *bigquery.Client
	sql    string

	mu        sync.Mutex
	published map[string]time.Time // of the sample, not seen yet
	seen      []observation
}

type observation struct {
	at      time.Time
	latency time.Duration
}

// New returns a probe of those robots over table, "dataset.table".
func New(client *bigquery.Client, table string, robotIDs []string) *Probe {
	return &Probe{
		client: client,
		sql: `SELECT event_id, ingest_time FROM ` + table + ` WHERE ingest_time >= @since AND robot_id IN ('` +
			strings.Join(robotIDs, `', '`) + `')`,
		published: make(map[string]time.Time),
	}
}

// Published notes that a reading of the sample is being published.
func (p *Probe) Published(id string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.published[id] = at
}

// Run asks until ctx ends. It returns the error of the last question if none succeeded.
func (p *Probe) Run(ctx context.Context) error {
	since := time.Now()
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	var failed error
	ok := false
	for {
		select {
		case <-ctx.Done():
			if ok {
				return nil
			}
			return failed
		case <-ticker.C:
		}
		newest, err := p.ask(ctx, since.Add(-overlap))
		if err != nil {
			failed = err
			continue
		}
		ok = true
		if newest.After(since) {
			since = newest
		}
	}
}

// ask notes which readings of the sample have become visible, and returns the time of the newest row.
func (p *Probe) ask(ctx context.Context, since time.Time) (newest time.Time, err error) {
	q := p.client.Query(p.sql)
	q.Parameters = []bigquery.QueryParameter{{Name: "since", Value: since}}
	it, err := q.Read(ctx)
	if err != nil {
		return newest, fmt.Errorf("ask for new rows: %w", err)
	}
	var ids []string
	for {
		var row struct {
			EventID    string    `bigquery:"event_id"`
			IngestTime time.Time `bigquery:"ingest_time"`
		}
		err := it.Next(&row)
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			return newest, fmt.Errorf("ask for new rows: %w", err)
		}
		ids = append(ids, row.EventID)
		if row.IngestTime.After(newest) {
			newest = row.IngestTime
		}
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if at, ok := p.published[id]; ok {
			delete(p.published, id)
			p.seen = append(p.seen, observation{now, now.Sub(at)})
		}
	}
	return newest, nil
}

// All returns the percentiles of everything seen so far.
func (p *Probe) All() Percentiles { return p.percentiles(time.Time{}) }

// Recent returns the percentiles of what became visible in the last ten seconds.
func (p *Probe) Recent() Percentiles { return p.percentiles(time.Now().Add(-recent)) }

func (p *Probe) percentiles(since time.Time) Percentiles {
	p.mu.Lock()
	// Observations are in order of time.
	first, _ := slices.BinarySearchFunc(p.seen, since, func(o observation, t time.Time) int { return o.at.Compare(t) })
	latencies := make([]time.Duration, 0, len(p.seen)-first)
	for _, o := range p.seen[first:] {
		latencies = append(latencies, o.latency)
	}
	p.mu.Unlock()
	n := len(latencies)
	if n == 0 {
		return Percentiles{}
	}
	slices.SortFunc(latencies, cmp.Compare[time.Duration])
	at := func(share float64) time.Duration { return latencies[min(n-1, int(share*float64(n)))] }
	return Percentiles{P50: at(.50), P95: at(.95), P99: at(.99), Max: latencies[n-1], N: n}
}
