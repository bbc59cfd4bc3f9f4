package robots

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestManifestKeepsRangesWithExceptions(t *testing.T) {
	m := newManifest("run", 2)
	boot := m.addBoot(2, 1)
	message := func(seqs ...int64) *Message {
		msg := &Message{}
		for _, seq := range seqs {
			msg.readings = append(msg.readings, readingRef{boot, seq})
		}
		return msg
	}
	first, second, third := message(1, 2, 3), message(4), message(5, 6)
	for _, msg := range []*Message{first, second, third} {
		m.handOver(msg)
	}
	bad := &Message{bad: BadLate, badOf: boot, badNumber: 1}
	m.handOver(bad)

	m.confirm(third) // results may come in another order
	m.confirm(first)
	again := third.again()
	m.handOver(again)
	m.confirm(again)

	want := []Boot{{
		RobotID: "R-000002", BootID: "run-1", Last: 6, Unconfirmed: []int64{4}, Duplicates: []int64{5, 6},
		Bad: []BadMessage{{ID: "R-000002/run-1/bad-1", Kind: BadLate, Reason: BadLate.Reason()}},
	}}
	if diff := cmp.Diff(want, slices.Collect(m.Boots())); diff != "" {
		t.Errorf("boots (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int64{1, 2, 3, 5, 6}, slices.Collect(want[0].Good())); diff != "" {
		t.Errorf("good (-want +got):\n%s", diff)
	}
	if got := m.Sent(); got != 5 {
		t.Errorf("sent %d, want 5", got)
	}
	if diff := cmp.Diff([]string{"R-000002/run-1/4", "R-000002/run-1/bad-1"}, slices.Collect(m.Unconfirmed())); diff != "" {
		t.Errorf("unconfirmed (-want +got):\n%s", diff)
	}

	for id, want := range map[string]*Entry{
		"R-000002/run-1/1":      {Confirmed: true},
		"R-000002/run-1/4":      {},
		"R-000002/run-1/5":      {Confirmed: true, Duplicates: 1},
		"R-000002/run-1/bad-1":  {Bad: BadLate, Reason: BadLate.Reason()},
		"R-000002/run-1/7":      nil,
		"R-000002/run-1/0":      nil,
		"R-000002/run-1/01":     nil,
		"R-000002/run-1/bad-2":  nil,
		"R-000002/run-1/bad--1": nil,
		"R-000002/run-2/1":      nil,
		"R-000002/other-1/1":    nil,
		"R-000001/run-1/1":      nil,
		"R-000003/run-1/1":      nil,
		"R-2/run-1/1":           nil,
		"R-000002/run-1":        nil,
		"R-000002/run-1/1/1":    nil,
		"":                      nil,
	} {
		got, ok := m.Lookup(id)
		if ok != (want != nil) || ok && got != *want {
			t.Errorf("Lookup(%q) = %+v, %v; want %+v", id, got, ok, want)
		}
	}
}

func TestConfirmedDuplicateProvesItsReadingSent(t *testing.T) {
	m := newManifest("run", 1)
	first := &Message{readings: []readingRef{{m.addBoot(1, 1), 1}}}
	m.handOver(first)
	again := first.again()
	m.handOver(again)
	m.confirm(again)
	if got := m.Sent(); got != 1 {
		t.Errorf("sent %d, want 1", got)
	}
	m.confirm(first)
	if got := m.Sent(); got != 1 {
		t.Errorf("sent %d after the first was confirmed too, want 1", got)
	}
}

func FuzzLookup(f *testing.F) {
	m := newManifest("run", 3)
	boot := m.addBoot(2, 1)
	m.handOver(&Message{readings: []readingRef{{boot, 1}}})
	m.handOver(&Message{bad: BadHuge, badOf: boot, badNumber: 1})
	for _, id := range []string{"R-000002/run-1/1", "R-000002/run-1/bad-1", "R-000004/run-99/-1", "//", "R-000002/run-/bad-"} {
		f.Add(id)
	}
	known := []string{"R-000002/run-1/1", "R-000002/run-1/bad-1"}
	f.Fuzz(func(t *testing.T, id string) {
		if _, ok := m.Lookup(id); ok != slices.Contains(known, id) {
			t.Errorf("Lookup(%q) = %v", id, ok)
		}
	})
}
