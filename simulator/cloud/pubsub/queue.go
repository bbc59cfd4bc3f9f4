package pubsub

// queue is a double-ended queue on a ring. The zero value is empty and ready.
type queue[T any] struct {
	ring []T
	head int
	n    int
}

func (q *queue[T]) len() int { return q.n }

func (q *queue[T]) at(i int) *T { return &q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *queue[T]) grow() {
	if q.n < len(q.ring) {
		return
	}
	ring := make([]T, max(2*len(q.ring), 16)) // a power of two, so that at can mask
	for i := range q.n {
		ring[i] = *q.at(i)
	}
	q.ring, q.head = ring, 0
}

func (q *queue[T]) pushBack(v T) {
	q.grow()
	q.n++
	*q.at(q.n - 1) = v
}

func (q *queue[T]) pushFront(v T) {
	q.grow()
	q.head = (q.head - 1) & (len(q.ring) - 1)
	q.n++
	*q.at(0) = v
}

// popFront removes and returns the first element; the queue must not be empty.
func (q *queue[T]) popFront() T {
	var zero T
	p := q.at(0)
	v := *p
	*p = zero
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
	return v
}

// popBack removes and returns the last element; the queue must not be empty.
func (q *queue[T]) popBack() T {
	var zero T
	p := q.at(q.n - 1)
	v := *p
	*p = zero
	q.n--
	return v
}
