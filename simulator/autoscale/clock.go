package autoscale

import "time"

// clock is virtual time: what is to happen, in order. Things that are due at the same time happen in the order in which
// they were asked for, so that a run is repeatable.
type clock struct {
	now    time.Duration
	count  uint64
	events []event // a binary heap, the next one first
}

type event struct {
	at    time.Duration
	order uint64
	do    func()
}

func (e event) before(f event) bool { return e.at < f.at || e.at == f.at && e.order < f.order }

// after has do called when d has passed.
func (c *clock) after(d time.Duration, do func()) {
	c.count++
	c.events = append(c.events, event{at: c.now + max(d, 0), order: c.count, do: do})
	for i := len(c.events) - 1; i > 0; {
		parent := (i - 1) / 2
		if !c.events[i].before(c.events[parent]) {
			break
		}
		c.events[i], c.events[parent] = c.events[parent], c.events[i]
		i = parent
	}
}

// run lets time pass until the given time, that moment included.
func (c *clock) run(until time.Duration) {
	for len(c.events) > 0 && c.events[0].at <= until {
		next := c.take()
		c.now = next.at
		next.do()
	}
	c.now = until
}

func (c *clock) take() event {
	first, last := c.events[0], len(c.events)-1
	c.events[0] = c.events[last]
	c.events[last] = event{}
	c.events = c.events[:last]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
			if c.events[child].before(c.events[least]) {
				least = child
			}
		}
		if least == i {
			return first
		}
		c.events[i], c.events[least] = c.events[least], c.events[i]
		i = least
	}
}

// fifo is a queue that reuses its memory.
type fifo[T any] struct {
	items []T
	head  int
}

func (q *fifo[T]) len() int { return len(q.items) - q.head }
func (q *fifo[T]) push(v T) { q.items = append(q.items, v) }
func (q *fifo[T]) front() T { return q.items[q.head] }
func (q *fifo[T]) pop() (v T) {
	var none T
	v, q.items[q.head] = q.items[q.head], none
	if q.head++; 2*q.head > len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	return v
}
