package pubsub

import (
	"container/heap"
	"context"
	"slices"
	"time"
)

// The delivery core: pull, StreamingPull and push take messages here and bring back acks and nacks.
//
//	enqueue ──▶ ready ──take──▶ leased ──ack──▶ gone
//	              ▲                │ nack, deadline
//	              ├── waiting ◀────┤ (retry policy)
//	              └─ forwarding ◀──┘ (attempts used up) ──▶ dead-letter topic, gone
//
// Everything below holds subscription.mu.

type entryState uint8

const (
	stateReady      entryState = iota // in the ready queue, or pending behind its ordering key
	stateLeased                       // with a subscriber
	stateWaiting                      // until due
	stateForwarding                   // being published to the dead-letter topic
	stateAcked                        // acked before an earlier message of its ordering key
	stateGone
)

// entry is one message in the backlog of one subscription.
type entry struct {
	m        *message
	key      *orderedKey // nil: no order to keep
	owner    *puller     // the stream that has it leased, if it counts against that stream's flow control
	born     uint64      // value of subscription.lease when the entry was made: older ack ids are not of this entry
	lease    uint64      // the present lease
	due      time.Time   // end of lease or of waiting
	heap     int         // index in subscription.due, -1 when absent
	failures int32       // nacks and missed deadlines
	state    entryState
}

// orderedKey keeps the messages of one ordering key in order: a run of them is out at a time, and the next run starts
// when all of it is acked. A failure in a run takes back what follows it, acked or not, so that a subscriber sees the
// failed message again before anything after it.
type orderedKey struct {
	name    string
	pending queue[*entry]
	run     []*entry
	queued  bool // in subscription.readyKeys
}

// puller is one waiting Pull or one StreamingPull.
type puller struct {
	messages, bytes       int64 // leased to it
	maxMessages, maxBytes int64 // 0: unlimited
	idle                  bool
	wake                  chan struct{} // capacity 1
}

func newPuller(maxMessages, maxBytes int64) *puller {
	return &puller{maxMessages: maxMessages, maxBytes: maxBytes, wake: make(chan struct{}, 1)}
}

func (p *puller) hasRoom() bool {
	return (p.maxMessages <= 0 || p.messages < p.maxMessages) && (p.maxBytes <= 0 || p.bytes < p.maxBytes)
}

// enqueue appends new messages, which already count this subscription as a holder.
func (s *subscription) enqueue(messages []*message, now time.Time) {
	if len(messages) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range messages {
		if s.closed {
			s.store().release(m, 0)
			continue
		}
		e := s.add(m)
		if d := s.server.faults.delay(); d > 0 {
			s.wait(e, now.Add(d))
		}
		s.settle(e)
	}
	s.dispatch()
}

// add makes the entry of a message. It still has to be settled.
func (s *subscription) add(m *message) *entry {
	e := &entry{m: m, born: s.lease, heap: -1}
	s.backlog[m.seq] = e
	s.order.pushBack(e)
	if s.pb.GetEnableMessageOrdering() && m.orderingKey != "" {
		k := s.keys[m.orderingKey]
		if k == nil {
			k = &orderedKey{name: m.orderingKey}
			s.keys[m.orderingKey] = k
		}
		e.key = k
		k.pending.pushBack(e)
	}
	return e
}

// settle puts a ready entry, or the ordering key it belongs to, where take finds it.
func (s *subscription) settle(e *entry) {
	if e.key == nil {
		if e.state == stateReady {
			s.ready.pushBack(e)
		}
		return
	}
	k := e.key
	if k.queued || len(k.run) > 0 {
		return
	}
	for k.pending.len() > 0 && (*k.pending.at(0)).state == stateGone {
		k.pending.popFront()
	}
	if k.pending.len() == 0 {
		delete(s.keys, k.name)
		return
	}
	if (*k.pending.at(0)).state == stateReady {
		k.queued = true
		s.readyKeys.pushBack(k)
	}
}

// take leases the next entries to a puller, at most n.
func (s *subscription) take(n int, owner *puller, now time.Time, lease time.Duration) []*entry {
	var taken []*entry
	size := 0
	lend := func(e *entry) {
		s.lend(e)
		e.owner = owner
		owner.messages++
		owner.bytes += int64(e.m.size)
		e.due = now.Add(lease)
		heap.Push(&s.due, e)
		size += e.m.size
		taken = append(taken, e)
	}
	more := func() bool { return len(taken) < n && size < maxPullBytes && owner.hasRoom() }
	for more() {
		if e := s.popReady(); e != nil {
			lend(e)
			continue
		}
		k := s.popReadyKey()
		if k == nil {
			break
		}
		for more() && k.pending.len() > 0 && (*k.pending.at(0)).state == stateReady {
			e := k.pending.popFront()
			k.run = append(k.run, e)
			lend(e)
		}
	}
	return taken
}

// takeOne leases the next entry to a push, or returns nil. A push ends by itself, so the lease has no deadline; of an
// ordering key it takes one message at a time, as production does.
func (s *subscription) takeOne() *entry {
	e := s.popReady()
	if e == nil {
		k := s.popReadyKey()
		if k == nil {
			return nil
		}
		e = k.pending.popFront()
		k.run = append(k.run, e)
	}
	s.lend(e)
	return e
}

func (s *subscription) lend(e *entry) {
	e.state = stateLeased
	s.lease++
	e.lease = s.lease
	s.outstanding++
	s.stats.delivered++
}

// popReady takes the next entry without an ordering key, or nil.
func (s *subscription) popReady() *entry {
	for s.ready.len() > 0 {
		if i := s.server.faults.reorder(s.ready.len()); i > 0 {
			a, b := s.ready.at(0), s.ready.at(i)
			*a, *b = *b, *a
		}
		if e := s.ready.popFront(); e.state == stateReady {
			return e
		}
	}
	return nil
}

// popReadyKey takes the next ordering key that has a message to deliver, or nil.
func (s *subscription) popReadyKey() *orderedKey {
	for s.readyKeys.len() > 0 {
		k := s.readyKeys.popFront()
		k.queued = false
		for k.pending.len() > 0 && (*k.pending.at(0)).state == stateGone {
			k.pending.popFront()
		}
		if k.pending.len() == 0 {
			delete(s.keys, k.name)
		} else if (*k.pending.at(0)).state == stateReady {
			return k
		}
	}
	return nil
}

func (s *subscription) hasReady() bool { return s.ready.len() > 0 || s.readyKeys.len() > 0 }

// unlease takes a leased entry back from its subscriber.
func (s *subscription) unlease(e *entry) {
	s.outstanding--
	if e.heap >= 0 {
		heap.Remove(&s.due, e.heap)
	}
	if p := e.owner; p != nil {
		p.messages--
		p.bytes -= int64(e.m.size)
		e.owner = nil
		s.wakePuller(p)
	}
}

// ack ends an entry. Without an ordering key it counts even after the lease has ended.
func (s *subscription) ack(e *entry) {
	switch e.state {
	case stateLeased:
		s.unlease(e)
	case stateReady, stateWaiting:
		if e.key != nil {
			return // the key has gone back to it: it must be delivered again
		}
		if e.heap >= 0 {
			heap.Remove(&s.due, e.heap)
		}
	case stateForwarding, stateAcked, stateGone:
		return
	}
	s.stats.acked++
	if e.key == nil {
		s.drop(e)
		return
	}
	e.state = stateAcked
	k := e.key
	for len(k.run) > 0 && k.run[0].state == stateAcked {
		s.drop(k.run[0])
		k.run = k.run[1:]
	}
	s.settle(e)
}

// drop removes an entry for good.
func (s *subscription) drop(e *entry) {
	e.state = stateGone
	delete(s.backlog, e.m.seq)
	for s.order.len() > 0 && (*s.order.at(0)).state == stateGone {
		s.order.popFront()
	}
	if s.order.len() > 2*len(s.backlog)+1024 { // an old message is stuck in front of many that are gone
		var order queue[*entry]
		for s.order.len() > 0 {
			if e := s.order.popFront(); e.state != stateGone {
				order.pushBack(e)
			}
		}
		s.order = order
	}
	s.store().release(e.m, s.id)
}

// remove drops an entry in whatever state it is, without an ack of a subscriber.
func (s *subscription) remove(e *entry) {
	if e.state == stateLeased {
		s.unlease(e)
	}
	if e.heap >= 0 {
		heap.Remove(&s.due, e.heap)
	}
	if k := e.key; k != nil {
		k.run = slices.DeleteFunc(k.run, func(x *entry) bool { return x == e })
	}
	s.drop(e)
	s.settle(e)
}

// fail records a nack or a missed deadline of a leased entry and plans what comes next.
func (s *subscription) fail(e *entry, now time.Time) {
	s.unlease(e)
	s.stats.nacked++
	e.failures++
	if e.key != nil {
		s.takeBack(e)
	}
	if policy := s.pb.GetDeadLetterPolicy(); policy != nil && e.failures >= policy.GetMaxDeliveryAttempts() {
		e.state = stateForwarding
		// Publishing waits for the sequencer, which may be waiting for this subscription.
		s.server.background(func(ctx context.Context) { s.forward(ctx, e, policy.GetDeadLetterTopic()) })
		return
	}
	s.retry(e, now, s.retryDelay(e.failures))
}

// retry makes an entry ready again after a delay.
func (s *subscription) retry(e *entry, now time.Time, delay time.Duration) {
	e.state = stateReady
	if delay > 0 {
		s.wait(e, now.Add(delay))
	}
	s.settle(e)
}

func (s *subscription) wait(e *entry, until time.Time) {
	e.state, e.due = stateWaiting, until
	heap.Push(&s.due, e)
}

// takeBack returns a failed entry of an ordering key, and all that follows it in its run, to the front of the key.
func (s *subscription) takeBack(failed *entry) {
	k := failed.key
	i := slices.Index(k.run, failed)
	for _, e := range slices.Backward(k.run[i:]) {
		if e.state == stateLeased && e != failed {
			s.unlease(e)
		}
		e.state = stateReady
		k.pending.pushFront(e)
	}
	clear(k.run[i:])
	k.run = k.run[:i]
}

// retryDelay is the back-off of a message by the subscription's retry policy: exponential from the minimum to the
// maximum. Without a policy a message is retried at once.
func (s *subscription) retryDelay(failures int32) time.Duration {
	policy := s.pb.GetRetryPolicy()
	if policy == nil {
		return 0
	}
	lowest, highest := policy.GetMinimumBackoff().AsDuration(), policy.GetMaximumBackoff().AsDuration()
	delay := lowest
	for i := int32(1); i < failures && delay < highest; i++ {
		delay *= 2
	}
	return min(delay, highest)
}

// dispatch gives ready messages to whoever can take them, and sets the timer for what comes due.
func (s *subscription) dispatch() {
	now := time.Now()
	if s.paused || s.closed {
		return
	}
	if s.push != nil {
		s.dispatchPush(now)
	} else if s.hasReady() {
		s.wakeIdle()
	}
	next := time.Time{}
	if len(s.due) > 0 {
		next = s.due[0].due
	}
	if s.push != nil && s.hasReady() && now.Before(s.window.until) && (next.IsZero() || s.window.until.Before(next)) {
		next = s.window.until
	}
	s.arm(now, next)
}

// arm sets the timer to the given time if it would not go off before; the zero time asks for nothing.
func (s *subscription) arm(now, next time.Time) {
	if next.IsZero() || s.closed || s.paused || !s.armed.IsZero() && !next.Before(s.armed) {
		return
	}
	s.armed = next
	if s.timer == nil {
		s.timer = time.AfterFunc(next.Sub(now), s.onTimer)
		return
	}
	s.timer.Reset(next.Sub(now))
}

// onTimer ends leases and waits that are over.
func (s *subscription) onTimer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = time.Time{}
	if s.closed || s.paused {
		return
	}
	now := time.Now()
	for len(s.due) > 0 && !s.due[0].due.After(now) {
		e := s.due[0]
		if e.state == stateLeased {
			s.stats.expired++
			s.fail(e, now)
			continue
		}
		heap.Pop(&s.due)
		e.state = stateReady
		s.settle(e)
	}
	s.dispatch()
}

// wakePuller tells a puller that it may have room again.
func (s *subscription) wakePuller(p *puller) {
	if p.idle && s.hasReady() && p.hasRoom() {
		p.idle = false
		select {
		case p.wake <- struct{}{}:
		default: // it has been told already and not looked yet
		}
	}
}

// wakeIdle wakes one idle puller, in turn; that one wakes the next when it leaves something.
func (s *subscription) wakeIdle() {
	for i := range s.pullers {
		p := s.pullers[(s.turn+i)%len(s.pullers)]
		if p.idle && p.hasRoom() {
			s.turn = (s.turn + i + 1) % len(s.pullers)
			s.wakePuller(p)
			return
		}
	}
}

func (s *subscription) removePuller(p *puller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pullers = slices.DeleteFunc(s.pullers, func(q *puller) bool { return q == p })
	for _, e := range s.due { // their leases go on, but count against nobody
		if e.owner == p {
			e.owner = nil
		}
	}
	if s.hasReady() {
		s.wakeIdle()
	}
}

// dueHeap orders entries by their due time.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heap, h[j].heap = i, j
}

func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	e.heap = len(*h)
	*h = append(*h, e)
}

func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	e.heap = -1
	*h = old[:len(old)-1]
	return e
}

// extend moves the end of a lease.
func (s *subscription) extend(e *entry, until time.Time) {
	e.due = until
	if e.heap >= 0 {
		heap.Fix(&s.due, e.heap)
	}
}
