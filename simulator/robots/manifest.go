package robots

import (
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/robofleet/robofleet/shared/event"
	"github.com/robofleet/robofleet/shared/telemetry"
)

// Manifest is what a fleet knows to have published: the left side of the ledger. Readings are kept as ranges of seq with
// exceptions, so tens of millions of them take no more than thousands. It may be read while the fleet runs.
type Manifest struct {
	runID  string
	robots []robotRecord
	sent   atomic.Int64
}

type robotRecord struct {
	mu    sync.Mutex
	boots []*bootRecord // the n-th boot at n-1
}

type bootRecord struct {
	robotID, bootID string
	sampled         bool

	mu         sync.Mutex
	last       int64   // seqs 1 to last were handed to the publisher …
	pending    []int64 // … and all but these are confirmed; ascending
	duplicates []int64 // confirmed once more
	bad        []BadKind
	badPending []int64 // numbers of bad messages that are not confirmed, ascending
}

func newManifest(runID string, robots int) *Manifest {
	return &Manifest{runID: runID, robots: make([]robotRecord, robots)}
}

// addBoot records that the n-th robot starts its next boot.
func (m *Manifest) addBoot(number, boot int) *bootRecord {
	b := &bootRecord{robotID: RobotID(number), bootID: m.runID + "-" + strconv.Itoa(boot), sampled: sampled(number)}
	r := &m.robots[number-1]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.boots = append(r.boots, b)
	return b
}

// handOver records that a message goes to the publisher now. From here on it may arrive.
func (m *Manifest) handOver(msg *Message) {
	if b := msg.badOf; b != nil {
		b.mu.Lock()
		b.bad = append(b.bad, msg.bad)
		b.badPending = append(b.badPending, msg.badNumber)
		b.mu.Unlock()
		return
	}
	if msg.duplicate {
		return
	}
	for _, r := range msg.readings {
		r.boot.mu.Lock()
		r.boot.last = r.seq
		r.boot.pending = append(r.boot.pending, r.seq)
		r.boot.mu.Unlock()
	}
}

// confirm records that Pub/Sub has a message.
func (m *Manifest) confirm(msg *Message) {
	if b := msg.badOf; b != nil {
		b.mu.Lock()
		b.badPending, _ = without(b.badPending, msg.badNumber)
		b.mu.Unlock()
		return
	}
	sent := int64(0)
	for _, r := range msg.readings {
		r.boot.mu.Lock()
		var found bool
		// A confirmed duplicate proves its reading sent even if the first message of it was not confirmed.
		if r.boot.pending, found = without(r.boot.pending, r.seq); found {
			sent++
		}
		if msg.duplicate {
			r.boot.duplicates = append(r.boot.duplicates, r.seq)
		}
		r.boot.mu.Unlock()
	}
	m.sent.Add(sent)
}

// without removes n from an ascending slice. Results come about in order, so n is near the front.
func without(s []int64, n int64) ([]int64, bool) {
	for i, v := range s {
		if v == n {
			return slices.Delete(s, i, i+1), true
		}
		if v > n {
			break
		}
	}
	return s, false
}

// Sent is how many distinct good readings were confirmed by Pub/Sub.
func (m *Manifest) Sent() int64 { return m.sent.Load() }

// Boot is what one boot of one robot published.
type Boot struct {
	RobotID, BootID string
	// Last is the highest seq handed over: 1 to Last were confirmed, but for Unconfirmed.
	Last int64
	// Unconfirmed are the seqs, ascending, of which nobody knows whether they arrived.
	Unconfirmed []int64
	// Duplicates are the seqs that were published once more on purpose, once per time. A publisher's own retries may add
	// duplicates that nobody knows of.
	Duplicates []int64
	Bad        []BadMessage
}

// Good are the seqs of the confirmed readings, ascending.
func (b Boot) Good() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		skip := b.Unconfirmed
		for seq := int64(1); seq <= b.Last; seq++ {
			if len(skip) > 0 && skip[0] == seq {
				skip = skip[1:]
				continue
			}
			if !yield(seq) {
				return
			}
		}
	}
}

// BadMessage is a message that was injected to be rejected.
type BadMessage struct {
	ID        string // its ce-id, "<robot_id>/<boot_id>/bad-<n>"
	Kind      BadKind
	Reason    telemetry.Reason // for which it is to be rejected
	Confirmed bool
}

// Boots are all boots of all robots, by robot and in order of time. Each is a copy made when it is yielded.
func (m *Manifest) Boots() iter.Seq[Boot] {
	return func(yield func(Boot) bool) {
		for i := range m.robots {
			r := &m.robots[i]
			r.mu.Lock()
			boots := slices.Clone(r.boots)
			r.mu.Unlock()
			for _, b := range boots {
				if !yield(b.copy()) {
					return
				}
			}
		}
	}
}

func (b *bootRecord) copy() Boot {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := Boot{
		RobotID: b.robotID, BootID: b.bootID, Last: b.last,
		Unconfirmed: slices.Clone(b.pending),
		Duplicates:  slices.Clone(b.duplicates),
	}
	for i := range b.bad {
		out.Bad = append(out.Bad, b.badMessage(int64(i+1)))
	}
	return out
}

// badMessage is the n-th bad message of the boot. The caller holds the lock.
func (b *bootRecord) badMessage(n int64) BadMessage {
	kind := b.bad[n-1]
	_, pending := slices.BinarySearch(b.badPending, n)
	return BadMessage{ID: badID(b, n), Kind: kind, Reason: kind.Reason(), Confirmed: !pending}
}

func badID(b *bootRecord, n int64) string {
	return b.robotID + "/" + b.bootID + "/bad-" + strconv.FormatInt(n, 10)
}

// Good calls f for each confirmed good reading, by robot and boot with ascending seq, until f returns false.
func (m *Manifest) Good(f func(robotID, bootID string, seq int64) bool) {
	for b := range m.Boots() {
		for seq := range b.Good() {
			if !f(b.RobotID, b.BootID, seq) {
				return
			}
		}
	}
}

// Bad are the messages that were injected to be rejected, confirmed or not.
func (m *Manifest) Bad() iter.Seq[BadMessage] {
	return func(yield func(BadMessage) bool) {
		for b := range m.Boots() {
			for _, bad := range b.Bad {
				if !yield(bad) {
					return
				}
			}
		}
	}
}

// Unconfirmed are the ids, of good readings and of bad messages, of which nobody knows whether they arrived. While the
// fleet runs, they include what is in flight.
func (m *Manifest) Unconfirmed() iter.Seq[string] {
	return func(yield func(string) bool) {
		for b := range m.Boots() {
			for _, seq := range b.Unconfirmed {
				if !yield(event.ReadingID(b.RobotID, b.BootID, seq)) {
					return
				}
			}
			for _, bad := range b.Bad {
				if !bad.Confirmed && !yield(bad.ID) {
					return
				}
			}
		}
	}
}

// Entry is what the manifest knows of one id.
type Entry struct {
	Confirmed  bool
	Duplicates int              // of a good reading: how often it was published once more on purpose
	Bad        BadKind          // "" for a good reading
	Reason     telemetry.Reason // of a bad message: why it is to be rejected
}

// Lookup finds a reading by "<robot_id>/<boot_id>/<seq>" or a bad message by "<robot_id>/<boot_id>/bad-<n>". It returns
// false for an id that this fleet never handed over.
func (m *Manifest) Lookup(id string) (Entry, bool) {
	robotID, rest, ok := strings.Cut(id, "/")
	bootID, last, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return Entry{}, false
	}
	number, isBad := strings.CutPrefix(last, "bad-")
	n, ok := counting(number)
	if !ok {
		return Entry{}, false
	}
	if !isBad {
		return m.LookupReading(robotID, bootID, n)
	}
	b := m.boot(robotID, bootID)
	if b == nil {
		return Entry{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > int64(len(b.bad)) {
		return Entry{}, false
	}
	bad := b.badMessage(n)
	return Entry{Confirmed: bad.Confirmed, Bad: bad.Kind, Reason: bad.Reason}, true
}

// LookupReading finds a good reading. It returns false for one that this fleet never handed over.
func (m *Manifest) LookupReading(robotID, bootID string, seq int64) (Entry, bool) {
	b := m.boot(robotID, bootID)
	if b == nil {
		return Entry{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if seq < 1 || seq > b.last {
		return Entry{}, false
	}
	_, pending := slices.BinarySearch(b.pending, seq)
	e := Entry{Confirmed: !pending}
	for _, d := range b.duplicates {
		if d == seq {
			e.Duplicates++
		}
	}
	return e, true
}

// boot finds a boot, or returns nil.
func (m *Manifest) boot(robotID, bootID string) *bootRecord {
	number, ok := robotNumber(robotID)
	text, found := strings.CutPrefix(bootID, m.runID+"-")
	boot, counted := counting(text)
	if !ok || !found || !counted || number > len(m.robots) {
		return nil
	}
	r := &m.robots[number-1]
	r.mu.Lock()
	defer r.mu.Unlock()
	if boot > int64(len(r.boots)) {
		return nil
	}
	return r.boots[boot-1]
}

// robotNumber is the number in a robot's id, the reverse of RobotID.
func robotNumber(id string) (int, bool) {
	digits, ok := strings.CutPrefix(id, "R-")
	if !ok || len(digits) != 6 {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 1 && digits[0] != '+'
}

// counting reads a number from 1 as it is written in an id: without sign or leading zeros.
func counting(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 1 && s[0] >= '1'
}
