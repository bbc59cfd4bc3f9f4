// Package batch turns concurrent calls into group commits: many callers hand in one item each, a few writes carry them
// all, and each caller learns the outcome of the write its item was part of.
//
// A batch is written when it is full, when its first item has waited MaxWait, or when no item has joined it for MaxQuiet;
// while MaxWrites writes are under way it goes on growing instead. That gate is what makes batches large under load: without it, writes of 1.2 items on average
// were seen where it makes 21.
//
// Nothing is queued beyond the callers themselves: an item whose caller has not been answered is in memory, an item whose
// caller has been answered with nil has been written. Past MaxPending bytes a call is refused with ErrFull, so that the
// caller can push back on its own source.
package batch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrFull refuses an item because too many bytes wait to be written.
var ErrFull = errors.New("batch: too much is waiting to be written")

// ErrClosed refuses an item because the batcher has been closed.
var ErrClosed = errors.New("batch: closed")

// Config bounds a Batcher. All fields but MaxQuiet are required, and none is negative.
type Config struct {
	MaxItems int           `env:"MAX_ITEMS"` // a batch of so many units is written at once
	MaxBytes int           `env:"MAX_BYTES"` // a batch of so many bytes is written at once
	MaxWait  time.Duration `env:"MAX_WAIT"`  // how long the first item of a batch waits for others
	// MaxQuiet is how long a batch waits for the next item before it is written early; 0 is as long as MaxWait. A sender that
	// has as many requests under way as it dares will send no more until some are answered, so waiting on brings nothing.
	MaxQuiet   time.Duration `env:"MAX_QUIET"`
	MaxWrites  int           `env:"MAX_WRITES"`  // writes under way at the same time
	MaxPending int           `env:"MAX_PENDING"` // bytes handed in and not yet written, over which calls are refused
	Timeout    time.Duration `env:"TIMEOUT"`     // bound on one write
}

// Validate names the first field that is not positive.
func (c Config) Validate() error {
	for _, f := range []struct {
		name string
		ok   bool
	}{
		{"MAX_ITEMS", c.MaxItems > 0},
		{"MAX_BYTES", c.MaxBytes > 0},
		{"MAX_WAIT", c.MaxWait > 0},
		{"MAX_QUIET", c.MaxQuiet >= 0},
		{"MAX_WRITES", c.MaxWrites > 0},
		{"MAX_PENDING", c.MaxPending > 0},
		{"TIMEOUT", c.Timeout > 0},
	} {
		if !f.ok {
			return fmt.Errorf("batch: %s must be positive", f.name)
		}
	}
	return nil
}

// Size is what an item counts against the limits of a batch.
type Size struct {
	Items int // units, for example readings
	Bytes int
}

// WriteFunc writes the items of one batch. Nil means that all of them are durable; any error is every caller's. It runs
// on up to MaxWrites goroutines and must not keep items.
type WriteFunc[T any] func(ctx context.Context, items []T) error

// Batcher collects items and writes them in batches. Make one with New.
type Batcher[T any] struct {
	cfg   Config
	size  func(T) Size
	write WriteFunc[T]

	mu      sync.Mutex
	open    *group[T]   // the batch that still takes items, or nil
	full    []*group[T] // batches that wait for a free write, oldest first
	writes  int         // writes under way
	pending int         // bytes handed in and not yet written
	hurry   bool        // do not wait for company
	closed  bool
	idle    sync.Cond // signalled when a write ends
}

// group is one batch and the answer to all who are part of it.
type group[T any] struct {
	items []T
	size  Size
	due   bool          // its first item has waited long enough
	timer *time.Timer   // MaxWait since its first item
	quiet *time.Timer   // MaxQuiet since its last item
	done  chan struct{} // closed once err is set
	err   error
}

// New returns a Batcher that needs no goroutine of its own while it is idle. It panics on a Config that does not
// Validate, which is a programming error once the environment has been checked.
func New[T any](cfg Config, size func(T) Size, write WriteFunc[T]) *Batcher[T] {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	b := &Batcher[T]{cfg: cfg, size: size, write: write}
	b.idle.L = &b.mu
	return b
}

// Do hands in item and returns once the batch that it became part of has been written, with the write's error. If ctx
// ends first, Do returns its error, and the item may or may not still be written.
func (b *Batcher[T]) Do(ctx context.Context, item T) error {
	g, err := b.add(item)
	if err != nil {
		return err
	}
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Batcher[T]) add(item T) (*group[T], error) {
	size := b.size(item)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, ErrClosed
	case b.pending > 0 && b.pending+size.Bytes > b.cfg.MaxPending:
		// An item larger than the bound is taken when nothing else waits: refusing it for ever would not help anyone.
		return nil, ErrFull
	}
	b.pending += size.Bytes
	if b.open != nil && (b.open.size.Bytes+size.Bytes > b.cfg.MaxBytes || b.open.size.Items+size.Items > b.cfg.MaxItems) {
		b.seal()
	}
	g := b.open
	if g == nil {
		g = &group[T]{done: make(chan struct{}), due: b.hurry}
		if !g.due {
			g.timer = time.AfterFunc(b.cfg.MaxWait, func() { b.ripen(g) })
			if b.cfg.MaxQuiet > 0 {
				g.quiet = time.AfterFunc(b.cfg.MaxQuiet, func() { b.ripen(g) })
			}
		}
		b.open = g
	} else if g.quiet != nil {
		g.quiet.Reset(b.cfg.MaxQuiet)
	}
	g.items = append(g.items, item)
	g.size.Items += size.Items
	g.size.Bytes += size.Bytes
	if g.size.Items >= b.cfg.MaxItems || g.size.Bytes >= b.cfg.MaxBytes {
		b.seal()
	}
	b.start()
	return g, nil
}

// seal moves the open batch behind those that wait for a write.
func (b *Batcher[T]) seal() {
	b.full = append(b.full, b.open)
	b.open = nil
}

// ripen marks g as due when its first item has waited MaxWait, or its last one MaxQuiet.
func (b *Batcher[T]) ripen(g *group[T]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g.due = true
	b.start()
}

// start begins as many writes as the gate allows: full batches first, then the open one if it is due.
func (b *Batcher[T]) start() {
	for b.writes < b.cfg.MaxWrites {
		var g *group[T]
		switch {
		case len(b.full) > 0:
			g = b.full[0]
			b.full[0] = nil
			b.full = b.full[1:]
		case b.open != nil && b.open.due:
			g, b.open = b.open, nil
		default:
			return
		}
		if g.timer != nil {
			g.timer.Stop()
		}
		if g.quiet != nil {
			g.quiet.Stop()
		}
		b.writes++
		go b.run(g)
	}
}

func (b *Batcher[T]) run(g *group[T]) {
	ctx, cancel := context.WithTimeout(context.Background(), b.cfg.Timeout)
	defer cancel()
	g.err = b.safeWrite(ctx, g.items)
	g.items = nil
	close(g.done)

	b.mu.Lock()
	defer b.mu.Unlock()
	b.writes--
	b.pending -= g.size.Bytes
	b.start()
	b.idle.Broadcast()
}

// safeWrite makes a panic of write the error of its callers: they are other requests, which must be answered.
func (b *Batcher[T]) safeWrite(ctx context.Context, items []T) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("batch: write panicked: %v", p)
		}
	}()
	return b.write(ctx, items)
}

// Flush writes what waits and from now on makes no item wait for company. Call it when the process is told to stop, so
// that the requests under way are answered at once.
func (b *Batcher[T]) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hurry = true
	if b.open != nil {
		b.open.due = true
	}
	b.start()
}

// Close refuses further items and returns once everything handed in has been written or has failed.
func (b *Batcher[T]) Close() {
	b.Flush()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for b.writes > 0 || b.open != nil || len(b.full) > 0 {
		b.idle.Wait()
	}
}
