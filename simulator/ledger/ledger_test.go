package ledger_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/storage"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/api/option"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/telemetry"
	localbigquery "github.com/robofleet/robofleet/simulator/cloud/bigquery"
	localstorage "github.com/robofleet/robofleet/simulator/cloud/storage"
	"github.com/robofleet/robofleet/simulator/ledger"
	"github.com/robofleet/robofleet/simulator/robots"
)

const (
	project = "robofleet-local"
	runID   = "run1"
)

// publisher confirms every message but those it is told to give up.
type publisher struct {
	mu     sync.Mutex
	n      int
	giveUp func(n int) bool // by the number of the message, from 1
}

func (p *publisher) Publish(_ context.Context, m *robots.Message, report func(*robots.Message, error)) {
	p.mu.Lock()
	p.n++
	var err error
	if p.giveUp(p.n) {
		err = errors.New("nobody answered")
	}
	p.mu.Unlock()
	report(m, err)
}

func (*publisher) Flush() {}

// publish lets a small fleet publish, in no time, and returns what it knows to have sent.
func publish(t *testing.T, giveUp func(n int) bool) *robots.Manifest {
	t.Helper()
	cfg := robots.DefaultConfig()
	cfg.RunID, cfg.Robots, cfg.Rate, cfg.Duration, cfg.BadRatio = runID, 5, 10, 4*time.Second, 0.3
	f, err := robots.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		_ = f.Run(t.Context(), &publisher{giveUp: giveUp}) // the error counts the messages that were given up
	})
	return f.Manifest()
}

// rejection is a line of the archive's rejected/.
type rejection struct {
	id     string
	reason telemetry.Reason
}

// stored is what the stores are given: what a faithful platform holds, or something else.
type stored struct {
	rows, lines []string // ids of readings
	rejected    []rejection
	deadLetters []string
}

func faithful(m *robots.Manifest) *stored {
	s := &stored{}
	for b := range m.Boots() {
		for seq := range b.Good() {
			s.rows = append(s.rows, event.ReadingID(b.RobotID, b.BootID, seq))
		}
		for _, bad := range b.Bad {
			if bad.Confirmed && bad.Reason != "" {
				s.rejected = append(s.rejected, rejection{bad.ID, bad.Reason})
			}
		}
	}
	s.lines = slices.Clone(s.rows)
	return s
}

// clouds are the embedded stores of all tests here.
type clouds struct {
	warehouse *bigquery.Client
	archive   *storage.Client
	grpcAddr  string
}

func startClouds(t *testing.T) *clouds {
	t.Helper()
	b, err := localbigquery.Start(t.Context(), localbigquery.Config{Project: project, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	s, err := localstorage.Start(t.Context(), localstorage.Config{Addr: "127.0.0.1:0", Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	c := &clouds{grpcAddr: b.GRPCAddr()}
	if c.warehouse, err = bigquery.NewClient(t.Context(), project, option.WithEndpoint(b.RESTEndpoint()), option.WithoutAuthentication()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.warehouse.Close() })
	if c.archive, err = storage.NewClient(t.Context(), option.WithEndpoint(s.Endpoint()), option.WithoutAuthentication()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.archive.Close() })
	return c
}

// fill puts what is given into stores of their own.
func (c *clouds) fill(t *testing.T, name string, s *stored) ledger.Stores {
	t.Helper()
	stores := ledger.Stores{BigQuery: c.warehouse, Dataset: name, Bucket: c.archive.Bucket(name)}
	if err := hotwrite.CreateTables(t.Context(), c.warehouse, name); err != nil {
		t.Fatal(err)
	}
	w, err := hotwrite.NewBigQuery(t.Context(), hotwrite.BigQueryConfig{Project: project, Dataset: name, StorageEndpoint: c.grpcAddr})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	var rows [][]byte
	for _, id := range s.rows {
		rows = append(rows, row(t, id))
	}
	if err := w.Append(t.Context(), rows); err != nil {
		t.Fatal(err)
	}

	if err := stores.Bucket.Create(t.Context(), project, nil); err != nil {
		t.Fatal(err)
	}
	var telemetryLines, rejected, deadLetters [][]byte
	for _, id := range s.lines {
		telemetryLines = append(telemetryLines,
			fmt.Appendf(nil, `{"specversion":"1.0","type":%q,"id":%q,"source":"//test","data":{}}`, event.TypeTelemetry, id))
	}
	for _, r := range s.rejected {
		rejected = append(rejected, refusal(t, event.TypeTelemetryRejected, "message", map[string]string{"ce-id": r.id}, r.reason))
	}
	for _, id := range s.deadLetters {
		deadLetters = append(deadLetters, refusal(t, event.TypeDeadLetter, id, nil, telemetry.ReasonUndeliverable))
	}
	put(t, stores.Bucket, coldarchive.KindTelemetry, telemetryLines)
	put(t, stores.Bucket, coldarchive.KindRejected, rejected)
	put(t, stores.Bucket, coldarchive.KindDeadLetter, deadLetters)
	return stores
}

// row is a row of the table with nothing in it but the identity of a reading.
func row(t *testing.T, id string) []byte {
	t.Helper()
	_, d, err := hotwrite.Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	m := dynamicpb.NewMessage(d)
	for i := range d.Fields().Len() {
		if f := d.Fields().Get(i); f.Cardinality() == protoreflect.Required {
			m.Set(f, f.Default())
		}
	}
	part := strings.Split(id, "/")
	seq, err := strconv.ParseInt(part[2], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[protoreflect.Name]any{"event_id": id, "robot_id": part[0], "boot_id": part[1], "seq": seq} {
		m.Set(d.Fields().ByName(name), protoreflect.ValueOf(v))
	}
	text, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func refusal(t *testing.T, eventType, id string, attributes map[string]string, reason telemetry.Reason) []byte {
	t.Helper()
	line, err := event.AppendRejected(nil, event.Rejected{
		Type: eventType, ID: id, Source: "//test", Time: time.Now(), Published: time.Now(),
		Rejection: telemetry.Rejection{Reason: reason, Attributes: attributes},
	})
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// put writes lines as an object of a kind.
func put(t *testing.T, bucket *storage.BucketHandle, kind coldarchive.Kind, lines [][]byte) {
	t.Helper()
	var content bytes.Buffer
	gz := gzip.NewWriter(&content)
	for _, l := range lines {
		if _, err := gz.Write(append(l, '\n')); err != nil {
			t.Fatal(err)
		}
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	name := coldarchive.Prefix(kind, time.Now()) + "writer-x.ndjson.gz"
	if err := coldarchive.NewGCS(bucket).Create(t.Context(), name, content.Bytes()); err != nil {
		t.Fatal(err)
	}
}

// findings are what a ledger says besides numbers.
type findings struct{ Missing, Unexpected []ledger.Finding }

// TestEachFalsehoodMakesItsFinding proves that a ledger can fail: it gets stores that hold something else than what was sent.
func TestEachFalsehoodMakesItsFinding(t *testing.T) {
	m := publish(t, func(int) bool { return false })
	truth := faithful(m)
	if len(truth.rows) < 100 || len(truth.rejected) < 10 {
		t.Fatalf("the fleet sent %d readings and %d bad messages, want some of both", len(truth.rows), len(truth.rejected))
	}
	const n = 42 // of the reading that something happens to
	id, bad := truth.rows[n], truth.rejected[3]
	other := telemetry.ReasonInFuture // is none of the fleet's
	never := "R-000001/run1-1/4711"
	c := startClouds(t)

	for i, test := range []struct {
		name    string
		falsify func(*stored)
		want    findings
		numbers func(*ledger.Ledger) int64 // a figure that it shows in, and
		differ  int64                      // by how much it differs from the faithful one
	}{
		{name: "nothing", falsify: func(*stored) {}},
		{
			name:    "a row is missing",
			falsify: func(s *stored) { s.rows = slices.Delete(s.rows, n, n+1) },
			want:    findings{Missing: []ledger.Finding{{ID: id, What: "archived, not in the warehouse"}}},
			numbers: func(l *ledger.Ledger) int64 { return l.RowsDistinct }, differ: -1,
		},
		{
			name:    "a line is missing",
			falsify: func(s *stored) { s.lines = slices.Delete(s.lines, n, n+1) },
			want:    findings{Missing: []ledger.Finding{{ID: id, What: "in the warehouse, not archived"}}},
			numbers: func(l *ledger.Ledger) int64 { return l.ArchivedOnce }, differ: -1,
		},
		{
			name: "a reading is nowhere",
			falsify: func(s *stored) {
				s.rows, s.lines = slices.Delete(s.rows, n, n+1), slices.Delete(s.lines, n, n+1)
			},
			want: findings{Missing: []ledger.Finding{{ID: id, What: "published"}}},
		},
		{
			name:    "a row was never sent",
			falsify: func(s *stored) { s.rows = append(s.rows, never) },
			want:    findings{Unexpected: []ledger.Finding{{ID: never, What: "in the warehouse, and never sent"}}},
			numbers: func(l *ledger.Ledger) int64 { return l.Rows }, differ: 1,
		},
		{
			name:    "a row of a robot that does not exist",
			falsify: func(s *stored) { s.rows = append(s.rows, "R-000099/run1-1/1") },
			want:    findings{Unexpected: []ledger.Finding{{ID: "R-000099/run1-1/1", What: "in the warehouse, and never sent"}}},
		},
		{
			name:    "a row with a seq of a bad message",
			falsify: func(s *stored) { s.rows = append(s.rows, "R-000001/run1-1/1000000000001") },
			want: findings{Unexpected: []ledger.Finding{
				{ID: "R-000001/run1-1/1000000000001", What: "a row with a seq that no robot sends"},
			}},
		},
		{
			name:    "a line was never sent",
			falsify: func(s *stored) { s.lines = append(s.lines, never) },
			want:    findings{Unexpected: []ledger.Finding{{ID: never, What: "archived, and never sent"}}},
		},
		{
			name:    "a line that is no reading",
			falsify: func(s *stored) { s.lines = append(s.lines, bad.id) },
			want:    findings{Unexpected: []ledger.Finding{{ID: bad.id, What: "archived as telemetry, with an id that no reading has"}}},
		},
		{
			name:    "a bad message is not among the rejected",
			falsify: func(s *stored) { s.rejected = slices.Delete(s.rejected, 3, 4) },
			want: findings{Missing: []ledger.Finding{
				{ID: bad.id, What: fmt.Sprintf("a bad message (%s), not among the rejected", kindOf(t, m, bad.id))},
			}},
			numbers: func(l *ledger.Ledger) int64 { return l.Rejected }, differ: -1,
		},
		{
			name:    "a bad message is rejected for another reason",
			falsify: func(s *stored) { s.rejected[3].reason = other },
			want: findings{Unexpected: []ledger.Finding{
				{ID: bad.id, What: fmt.Sprintf("rejected as %s, and should be as %s", other, bad.reason)},
			}},
			numbers: func(l *ledger.Ledger) int64 { return l.RejectedByReason[other] }, differ: 1,
		},
		{
			name:    "a good reading is rejected too",
			falsify: func(s *stored) { s.rejected = append(s.rejected, rejection{id, telemetry.ReasonTooOld}) },
			want:    findings{Unexpected: []ledger.Finding{{ID: id, What: "a good reading, rejected as too_old"}}},
		},
		{
			name:    "a rejected message was never sent",
			falsify: func(s *stored) { s.rejected = append(s.rejected, rejection{"R-000001/run1-1/bad-4711", other}) },
			want:    findings{Unexpected: []ledger.Finding{{ID: "R-000001/run1-1/bad-4711", What: "rejected, and never sent"}}},
		},
		{
			name: "everything was delivered twice",
			falsify: func(s *stored) {
				s.rows, s.lines = append(s.rows, s.rows...), append(s.lines, s.lines...)
				s.rejected = append(s.rejected, s.rejected...)
			},
			numbers: (*ledger.Ledger).Duplicates, differ: int64(len(truth.rows)),
		},
		{
			name: "stores with another run's data",
			falsify: func(s *stored) {
				// Of which run1 is no prefix up to a hyphen, and one that has the run's id elsewhere.
				s.rows = append(s.rows, "R-000001/run10-1/1", "R-000001/old-run1-1/7")
				s.lines = append(s.lines, "R-000001/run10-1/2")
				s.rejected = append(s.rejected, rejection{"R-000001/run10-1/bad-1", other})
			},
			numbers: func(l *ledger.Ledger) int64 { return l.Rows }, differ: 0,
		},
		{
			name:    "dead letters",
			falsify: func(s *stored) { s.deadLetters = []string{"1", "2", "2"} },
			numbers: func(l *ledger.Ledger) int64 { return l.DeadLettered }, differ: 2,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := faithful(m)
			test.falsify(s)
			start := time.Now()
			l, err := ledger.Make(t.Context(), c.fill(t, "case"+strconv.Itoa(i), s), m, runID, start)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, findings{l.Missing, l.Unexpected}); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if want := test.want.Missing == nil && test.want.Unexpected == nil; l.OK() != want {
				t.Errorf("OK() = %v, want %v", l.OK(), want)
			}
			if test.numbers == nil {
				return
			}
			perfect := &ledger.Ledger{
				Rows: int64(len(truth.rows)), RowsDistinct: int64(len(truth.rows)), ArchivedOnce: int64(len(truth.rows)),
				Rejected: int64(len(truth.rejected)),
			}
			if got, want := test.numbers(l), test.numbers(perfect)+test.differ; got != want {
				t.Errorf("figure = %d, want %d", got, want)
			}
		})
	}
}

func kindOf(t *testing.T, m *robots.Manifest, id string) robots.BadKind {
	t.Helper()
	entry, ok := m.Lookup(id)
	if !ok {
		t.Fatalf("%s was not sent", id)
	}
	return entry.Bad
}

// TestUnconfirmedMessagesMayHaveArrivedOrNot: whoever did not hear from Pub/Sub cannot claim a loss, nor is it a wonder if
// the message is there.
func TestUnconfirmedMessagesMayHaveArrivedOrNot(t *testing.T) {
	m := publish(t, func(n int) bool { return n%10 == 0 })
	c := startClouds(t)
	unconfirmed := slices.Collect(m.Unconfirmed())
	if len(unconfirmed) < 10 {
		t.Fatalf("%d unconfirmed messages, want some", len(unconfirmed))
	}
	without, with := faithful(m), faithful(m)
	for _, id := range unconfirmed {
		entry, _ := m.Lookup(id)
		if entry.Bad != "" {
			with.rejected = append(with.rejected, rejection{id, entry.Reason})
			continue
		}
		with.rows, with.lines = append(with.rows, id), append(with.lines, id)
	}
	for name, s := range map[string]*stored{"lost": without, "arrived": with} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			l, err := ledger.Make(t.Context(), c.fill(t, name, s), m, runID, start)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(findings{}, findings{l.Missing, l.Unexpected}); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if l.Unconfirmed != int64(len(unconfirmed)) || l.Sent != int64(len(without.rows)) || l.RowsDistinct != int64(len(s.rows)) {
				t.Errorf("unconfirmed %d, sent %d, rows %d; want %d, %d, %d",
					l.Unconfirmed, l.Sent, l.RowsDistinct, len(unconfirmed), len(without.rows), len(s.rows))
			}
		})
	}
}

func TestObjectThatIsNotTheArchivesIsAnError(t *testing.T) {
	m := publish(t, func(int) bool { return false })
	start := time.Now()
	stores := startClouds(t).fill(t, "foreign", faithful(m))
	if err := coldarchive.NewGCS(stores.Bucket).Create(t.Context(), "notes.txt", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	_, err := ledger.Make(t.Context(), stores, m, runID, start)
	if err == nil || !strings.Contains(err.Error(), "notes.txt") {
		t.Errorf("Make = %v, want an error that names the object", err)
	}
}

func TestBrokenObjectIsAnError(t *testing.T) {
	m := publish(t, func(int) bool { return false })
	start := time.Now()
	stores := startClouds(t).fill(t, "broken", faithful(m))
	name := coldarchive.Prefix(coldarchive.KindTelemetry, start) + "broken.ndjson.gz"
	if err := coldarchive.NewGCS(stores.Bucket).Create(t.Context(), name, []byte("not gzip")); err != nil {
		t.Fatal(err)
	}
	_, err := ledger.Make(t.Context(), stores, m, runID, start)
	if err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("Make = %v, want an error that names the object", err)
	}
}
