package autoscale

import "time"

// request is one push of a message.
type request struct {
	message message
	started time.Duration
	epoch   uint32 // of the push window
	pod     *pod   // whose container it is in, or nil
}

// message is what Pub/Sub keeps until it is acked.
type message struct {
	published time.Duration
	readings  int
	attempts  int
}

// pod is one pod: queue-proxy, and the stage with its share of a CPU and its group commit.
type pod struct {
	m        *model
	stopping bool           // it has had its SIGTERM
	inside   int            // requests in the container
	bytes    int64          // of their bodies
	queue    fifo[*request] // requests in queue-proxy
	cpuFree  time.Duration  // when the CPU has done what it was given

	// The group commit, by the rules of shared/batch. A test holds the two equal.
	open    *group
	full    fifo[*group]
	writes  int
	pending int // bytes
}

// group is one batch.
type group struct {
	requests []*request
	readings int
	bytes    int
	due      bool
	last     time.Duration // when its last item came
}

// enter takes a request into queue-proxy. Its queue is ten times the container's concurrency (pkg/queue/sharedmain).
func (p *pod) enter(r *request) {
	cc := p.m.service.ContainerConcurrency
	switch {
	case cc == 0 || int64(p.inside) < cc:
		p.handle(r)
	case int64(p.queue.len()) < 10*cc:
		p.queue.push(r)
	default:
		p.m.refuse(r)
	}
}

// handle is the container: it sheds a request over its limit, or works on it and adds it to the batch.
func (p *pod) handle(r *request) {
	r.pod = p
	p.inside++
	p.bytes += p.m.size(r)
	if p.inside > p.m.limits.MaxInFlight || p.bytes > p.m.limits.MaxInFlightBytes && p.inside > 1 {
		p.m.refuse(r)
		return
	}
	stage := &p.m.stage
	work := stage.PerRequest + time.Duration(r.message.readings)*stage.PerReading
	p.cpuFree = max(p.cpuFree, p.m.now) + time.Duration(float64(work)/p.m.cores)
	p.m.after(p.cpuFree-p.m.now, func() { p.add(r) })
}

func (p *pod) add(r *request) {
	cfg := &p.m.batch
	bytes := int(p.m.size(r))
	if p.pending > 0 && p.pending+bytes > cfg.MaxPending {
		p.m.refuse(r)
		return
	}
	p.pending += bytes
	if g := p.open; g != nil && (g.bytes+bytes > cfg.MaxBytes || g.readings+r.message.readings > cfg.MaxItems) {
		p.seal()
	}
	if p.open == nil {
		g := &group{due: p.stopping}
		p.open = g
		if !g.due {
			p.m.after(cfg.MaxWait, func() { p.ripen(g) })
			if cfg.MaxQuiet > 0 {
				p.m.after(cfg.MaxQuiet, func() { p.quiet(g) })
			}
		}
	}
	g := p.open
	g.requests = append(g.requests, r)
	g.readings += r.message.readings
	g.bytes += bytes
	g.last = p.m.now
	if g.readings >= cfg.MaxItems || g.bytes >= cfg.MaxBytes {
		p.seal()
	}
	p.start()
}

func (p *pod) seal() {
	p.full.push(p.open)
	p.open = nil
}

func (p *pod) ripen(g *group) {
	g.due = true
	p.start()
}

// quiet makes g due if nothing has joined it for as long as it waits for the next item; else it asks again then.
func (p *pod) quiet(g *group) {
	if g != p.open || g.due {
		return
	}
	if rest := g.last + p.m.batch.MaxQuiet - p.m.now; rest > 0 {
		p.m.after(rest, func() { p.quiet(g) })
		return
	}
	p.ripen(g)
}

func (p *pod) start() {
	for p.writes < p.m.batch.MaxWrites {
		var g *group
		switch {
		case p.full.len() > 0:
			g = p.full.pop()
		case p.open != nil && p.open.due:
			g, p.open = p.open, nil
		default:
			return
		}
		p.writes++
		took := p.m.stage.WriteTime + time.Duration(g.readings)*p.m.stage.WritePerReading
		p.m.after(took, func() { p.written(g) })
	}
}

func (p *pod) written(g *group) {
	p.writes--
	p.pending -= g.bytes
	p.m.emit(Arrival{At: p.m.now, Messages: 1, Readings: g.readings})
	p.start()
	p.m.after(p.m.stage.Hop, func() {
		for _, r := range g.requests {
			p.m.answer(r, true)
		}
	})
}

// leave is a request's answer: its place goes to the next one.
func (p *pod) leave(r *request) {
	p.inside--
	p.bytes -= p.m.size(r)
	if p.queue.len() > 0 {
		p.handle(p.queue.pop())
	}
}

// drainPeriod is how long queue-proxy stays quiet before it lets the stage have its SIGTERM (pkg/queue/sharedmain,
// drainSleepDuration).
const drainPeriod = 30 * time.Second

// stop takes the pod out of the endpoints. It goes on with what it has until the drain period is over; then the stage writes
// without waiting for company.
func (p *pod) stop() {
	p.m.after(drainPeriod, func() {
		p.stopping = true
		if p.open != nil {
			p.open.due = true
		}
		p.start()
	})
}

// gone says that the pod has ended.
func (p *pod) gone() bool { return p.stopping && p.inside == 0 && p.queue.len() == 0 }
