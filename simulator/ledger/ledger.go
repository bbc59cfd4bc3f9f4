// Package ledger compares what robots published with what the stores hold.
//
// Its left side is the robots' own list of what Pub/Sub has confirmed; its right side is asked of the stores through their
// public clients: SQL for the warehouse, listing and reading for the archive. No counter of the pipeline takes part.
package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/storage"
	"golang.org/x/sync/errgroup"
	"google.golang.org/api/iterator"

	"github.com/robofleet/robofleet/functions/coldarchive"
	"github.com/robofleet/robofleet/functions/hotwrite"
	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/telemetry"
	"github.com/robofleet/robofleet/simulator/robots"
)

// Stores are where the ledger looks.
type Stores struct {
	BigQuery *bigquery.Client
	Dataset  string
	Bucket   *storage.BucketHandle
}

// Ledger is the comparison.
type Ledger struct {
	Sent         int64 // distinct good readings that Pub/Sub confirmed
	Unconfirmed  int64 // good readings and bad messages of which nobody knows whether they arrived
	BadSent      int64 // bad messages that Pub/Sub confirmed
	Rows         int64 // in the table
	RowsDistinct int64 // distinct readings in the table
	RowsUnique   int64 // in the view telemetry_unique
	Archived     int64 // lines of telemetry in the archive
	ArchivedOnce int64 // distinct readings among them
	Objects      int64 // in the archive
	Rejected     int64 // distinct bad messages in the archive's rejected/
	DeadLettered int64 // distinct messages that came to the archive's dead-letter/ meanwhile, of any run
	Injected     int64 // duplicates that the robots sent on purpose

	// BadByReason and RejectedByReason count BadSent and Rejected.
	BadByReason, RejectedByReason map[telemetry.Reason]int64
	// Missing are events that were confirmed and are not in every store they belong in.
	Missing []Finding
	// Unexpected are events in a store that were never sent, or are in the wrong place.
	Unexpected []Finding
}

// Finding is one event that is not where it should be, or is where it should not be.
type Finding struct {
	ID   string `json:"id"`
	What string `json:"what"` // for a person
}

// OK says that nothing was lost and nothing was invented.
func (l *Ledger) OK() bool { return len(l.Missing) == 0 && len(l.Unexpected) == 0 }

// Duplicates counts the rows that repeat another, injected duplicates among them.
func (l *Ledger) Duplicates() int64 { return l.Rows - l.RowsDistinct }

// boot identifies one boot of one robot.
type boot struct{ robotID, bootID string }

// seqs is a set of the readings of a boot.
type seqs struct {
	bits []uint64
	n    int64
}

// add says whether seq is new.
func (s *seqs) add(seq int64) bool {
	word, bit := int(seq/64), uint64(1)<<(seq%64)
	if word >= len(s.bits) {
		s.bits = append(s.bits, make([]uint64, word+1-len(s.bits)+word/2)...)
	}
	if s.bits[word]&bit != 0 {
		return false
	}
	s.bits[word] |= bit
	s.n++
	return true
}

func (s *seqs) has(seq int64) bool {
	word := int(seq / 64)
	return s != nil && word < len(s.bits) && s.bits[word]&(1<<(seq%64)) != 0
}

// holdings is what one store holds of the run.
type holdings map[boot]*seqs

func (h holdings) of(b boot) *seqs {
	s := h[b]
	if s == nil {
		s = &seqs{}
		h[b] = s
	}
	return s
}

func (h holdings) total() int64 {
	var n int64
	for _, s := range h {
		n += s.n
	}
	return n
}

// Make asks the stores about a run, which began at start and whose boots' ids begin with runID and a hyphen.
func Make(ctx context.Context, stores Stores, m *robots.Manifest, runID string, start time.Time) (*Ledger, error) {
	l := &Ledger{BadByReason: make(map[telemetry.Reason]int64), RejectedByReason: make(map[telemetry.Reason]int64)}
	a := &account{ledger: l, manifest: m, runID: runID, warehouse: holdings{}, archive: holdings{}, rejected: map[string]bool{}, deadLetters: map[string]bool{}}
	if err := a.readWarehouse(ctx, stores); err != nil {
		return nil, fmt.Errorf("ask the warehouse: %w", err)
	}
	if err := a.readArchive(ctx, stores.Bucket, start); err != nil {
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	a.compare()
	return l, nil
}

// account is a ledger in the making.
type account struct {
	ledger    *Ledger
	manifest  *robots.Manifest
	runID     string
	warehouse holdings
	archive   holdings
	rejected  map[string]bool // ids
	// deadLetters are the ids of messages, which do not tell what is in them: those of an earlier run are among them.
	deadLetters map[string]bool
}

// readWarehouse asks per boot first: distinct positive numbers of which the largest equals their count are all there.
// Only boots that are not whole are asked for their readings.
func (a *account) readWarehouse(ctx context.Context, s Stores) error {
	table := s.Dataset + "." + hotwrite.Table
	type row struct {
		RobotID  string `bigquery:"robot_id"`
		BootID   string `bigquery:"boot_id"`
		First    int64  `bigquery:"first_seq"`
		Last     int64  `bigquery:"last_seq"`
		Rows     int64  `bigquery:"n"`
		Distinct int64  `bigquery:"distinct_n"`
	}
	var broken []boot
	err := query(ctx, s.BigQuery, `SELECT robot_id, boot_id, MIN(seq) AS first_seq, MAX(seq) AS last_seq, COUNT(*) AS n,
		COUNT(DISTINCT seq) AS distinct_n FROM `+table+` WHERE STARTS_WITH(boot_id, @run) GROUP BY robot_id, boot_id`,
		[]bigquery.QueryParameter{{Name: "run", Value: a.runID + "-"}},
		func(r row) {
			b := boot{r.RobotID, r.BootID}
			a.ledger.Rows += r.Rows
			a.ledger.RowsDistinct += r.Distinct
			if r.First == 1 && r.Last == r.Distinct {
				held := a.warehouse.of(b)
				for seq := int64(1); seq <= r.Last; seq++ {
					held.add(seq)
				}
				return
			}
			broken = append(broken, b)
		})
	if err != nil {
		return err
	}
	for _, b := range broken {
		err := query(ctx, s.BigQuery, `SELECT DISTINCT seq FROM `+table+` WHERE robot_id = @robot AND boot_id = @boot`,
			[]bigquery.QueryParameter{{Name: "robot", Value: b.robotID}, {Name: "boot", Value: b.bootID}},
			func(r struct {
				Seq int64 `bigquery:"seq"`
			}) {
				if r.Seq < 1 || r.Seq > maxSeq {
					a.unexpected(event.ReadingID(b.robotID, b.bootID, r.Seq), "a row with a seq that no robot sends")
					return
				}
				a.warehouse.of(b).add(r.Seq)
			})
		if err != nil {
			return err
		}
	}
	return query(ctx, s.BigQuery, `SELECT COUNT(*) AS n FROM `+table+`_unique WHERE STARTS_WITH(boot_id, @run)`,
		[]bigquery.QueryParameter{{Name: "run", Value: a.runID + "-"}},
		func(r struct {
			N int64 `bigquery:"n"`
		}) {
			a.ledger.RowsUnique = r.N
		})
}

// maxSeq bounds what is taken for a seq: a set has a bit for each number up to its largest.
const maxSeq = 1 << 32

func query[T any](ctx context.Context, client *bigquery.Client, sql string, params []bigquery.QueryParameter, fn func(T)) error {
	q := client.Query(sql)
	q.Parameters = params
	it, err := q.Read(ctx)
	if err != nil {
		return err
	}
	for {
		var row T
		err := it.Next(&row)
		if errors.Is(err, iterator.Done) {
			return nil
		}
		if err != nil {
			return err
		}
		fn(row)
	}
}

// content is what one object says of the run.
type content struct {
	kind   coldarchive.Kind
	events []archived
}

type archived struct {
	id     string           // of the reading; of a refused one the ce-id that the robot gave
	reason telemetry.Reason // of a refused one
}

// readArchive reads every object that was written since the run began.
func (a *account) readArchive(ctx context.Context, bucket *storage.BucketHandle, start time.Time) error {
	var names []string
	it := bucket.Objects(ctx, &storage.Query{})
	for {
		attrs, err := it.Next()
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		if attrs.Created.Before(start.Add(-time.Second)) { // some stores keep whole seconds only
			continue
		}
		names = append(names, attrs.Name)
	}
	a.ledger.Objects = int64(len(names))
	contents := make(chan content)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	failed := make(chan error, 1)
	go func() {
		for _, name := range names {
			g.Go(func() error {
				c, err := readObject(ctx, bucket, name)
				if err == nil {
					contents <- c
				}
				return err
			})
		}
		failed <- g.Wait()
		close(contents)
	}()
	for c := range contents {
		a.enter(c)
	}
	return <-failed
}

func readObject(ctx context.Context, bucket *storage.BucketHandle, name string) (c content, err error) {
	kind, _, ok := coldarchive.ParseName(name)
	if !ok {
		return c, fmt.Errorf("object %s: not a name that cold-archive gives", name)
	}
	c.kind = kind
	r, err := bucket.Object(name).ReadCompressed(true).NewReader(ctx)
	if err != nil {
		return c, fmt.Errorf("object %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	err = coldarchive.Lines(r, func(line []byte) error {
		e, err := event.Parse(line)
		if err != nil {
			return err
		}
		if kind != coldarchive.KindRejected {
			c.events = append(c.events, archived{id: string(e.ID)})
			return nil
		}
		var r telemetry.Rejection
		if err := json.Unmarshal(e.Data, &r); err != nil {
			return fmt.Errorf("a rejection: %w", err)
		}
		c.events = append(c.events, archived{cmp.Or(r.Attributes["ce-id"], string(e.ID)), r.Reason})
		return nil
	})
	if err != nil {
		return c, fmt.Errorf("object %s: %w", name, err)
	}
	_, err = io.Copy(io.Discard, r) // to its end, so that the checksum is compared
	return c, err
}

// enter takes an object's events into the account.
func (a *account) enter(c content) {
	for _, e := range c.events {
		id := e.id
		switch c.kind {
		case coldarchive.KindTelemetry:
			robotID, bootID, last, ok := splitID(id)
			if !ok || !a.ofRun(bootID) {
				continue
			}
			seq, err := strconv.ParseInt(last, 10, 64)
			if err != nil || seq < 1 || seq > maxSeq {
				a.unexpected(id, "archived as telemetry, with an id that no reading has")
				continue
			}
			a.ledger.Archived++
			a.archive.of(boot{robotID, bootID}).add(seq)
		case coldarchive.KindRejected:
			a.enterRejected(id, e.reason)
		case coldarchive.KindDeadLetter:
			a.deadLetters[id] = true
		}
	}
}

// splitID takes the id of a robot's event apart.
func splitID(id string) (robotID, bootID, last string, ok bool) {
	robotID, rest, ok1 := strings.Cut(id, "/")
	bootID, last, ok2 := strings.Cut(rest, "/")
	return robotID, bootID, last, ok1 && ok2
}

// ofRun says whether a boot belongs to the run. The stores also hold earlier runs, and what others sent meanwhile.
func (a *account) ofRun(bootID string) bool { return strings.HasPrefix(bootID, a.runID+"-") }

func (a *account) enterRejected(id string, reason telemetry.Reason) {
	if _, bootID, _, ok := splitID(id); !ok || !a.ofRun(bootID) || a.rejected[id] {
		return // another run's, or delivered twice
	}
	a.rejected[id] = true
	a.ledger.Rejected++
	a.ledger.RejectedByReason[reason]++
	entry, ok := a.manifest.Lookup(id)
	switch {
	case !ok:
		a.unexpected(id, "rejected, and never sent")
	case entry.Bad == "":
		a.unexpected(id, "a good reading, rejected as "+string(reason))
	case entry.Reason != reason:
		a.unexpected(id, fmt.Sprintf("rejected as %s, and should be as %s", reason, entry.Reason))
	}
}

// compare finds what is missing and what should not be there.
func (a *account) compare() {
	l := a.ledger
	l.Sent = a.manifest.Sent()
	l.DeadLettered = int64(len(a.deadLetters))
	l.ArchivedOnce = a.archive.total()
	if l.RowsUnique != l.RowsDistinct {
		a.unexpected("", fmt.Sprintf("the view telemetry_unique has %d rows for %d readings", l.RowsUnique, l.RowsDistinct))
	}
	a.manifest.Good(func(robotID, bootID string, seq int64) bool {
		b := boot{robotID, bootID}
		rows, lines := a.warehouse[b].has(seq), a.archive[b].has(seq)
		switch id := event.ReadingID(robotID, bootID, seq); {
		case rows && lines:
		case rows:
			a.missing(id, "in the warehouse, not archived")
		case lines:
			a.missing(id, "archived, not in the warehouse")
		default:
			a.missing(id, "published")
		}
		return true
	})
	for store, held := range map[string]holdings{"in the warehouse": a.warehouse, "archived": a.archive} {
		for b, s := range held {
			for word, bits := range s.bits {
				for bit := int64(0); bits != 0 && bit < 64; bit++ {
					seq := int64(word)*64 + bit
					if bits&(1<<bit) == 0 {
						continue
					}
					if _, ok := a.manifest.LookupReading(b.robotID, b.bootID, seq); !ok {
						a.unexpected(event.ReadingID(b.robotID, b.bootID, seq), store+", and never sent")
					}
				}
			}
		}
	}
	for bad := range a.manifest.Bad() {
		if bad.Reason == "" || !bad.Confirmed {
			continue
		}
		l.BadSent++
		l.BadByReason[bad.Reason]++
		if !a.rejected[bad.ID] {
			a.missing(bad.ID, fmt.Sprintf("a bad message (%s), not among the rejected", bad.Kind))
		}
	}
	for b := range a.manifest.Boots() {
		l.Injected += int64(len(b.Duplicates))
	}
	for range a.manifest.Unconfirmed() {
		l.Unconfirmed++
	}
	byID := func(a, b Finding) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.What, b.What)) }
	slices.SortFunc(l.Missing, byID)
	slices.SortFunc(l.Unexpected, byID)
}

func (a *account) missing(id, what string) {
	a.ledger.Missing = append(a.ledger.Missing, Finding{id, what})
}

func (a *account) unexpected(id, what string) {
	a.ledger.Unexpected = append(a.ledger.Unexpected, Finding{id, what})
}
