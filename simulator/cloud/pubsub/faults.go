package pubsub

import (
	"sync/atomic"
	"time"
)

// FaultPlan says which faults to inject and how often. Every share is between 0 (never) and 1 (always).
type FaultPlan struct {
	// Seed makes the sequence of decisions repeatable: the n-th decision of each kind depends on Seed and n only.
	Seed uint64
	// Duplicate is the share of deliveries made twice.
	Duplicate float64
	// Delay is the share of messages held back for up to DelayMax before their first delivery.
	Delay    float64
	DelayMax time.Duration
	// Reorder is the share of deliveries that take a later message than the next one. Ordering keys stay in order.
	Reorder float64
	// LoseAck is the share of pushes whose answer gets lost after the endpoint handled them, as when a connection drops.
	LoseAck float64
	// RefusePublish is the share of Publish calls answered with UNAVAILABLE.
	RefusePublish float64
}

// Faults injects faults into a running server. Its methods may be called concurrently.
type Faults struct {
	server       *Server
	plan         atomic.Pointer[faultPlan]
	refusedUntil atomic.Int64 // UnixNano
}

type faultKind uint64

const (
	faultDuplicate faultKind = iota
	faultDelay
	faultReorder
	faultLoseAck
	faultRefusePublish
	faultKinds
)

type faultPlan struct {
	FaultPlan
	count [faultKinds]atomic.Uint64
}

// Set replaces the plan and starts its sequence of decisions anew; the zero FaultPlan ends all faults.
func (f *Faults) Set(p FaultPlan) {
	if p == (FaultPlan{}) {
		f.plan.Store(nil)
		return
	}
	f.plan.Store(&faultPlan{FaultPlan: p})
}

// RefusePublish answers every Publish call with UNAVAILABLE for the given time.
func (f *Faults) RefusePublish(d time.Duration) {
	f.refusedUntil.Store(time.Now().Add(d).UnixNano())
}

// CollapsePushWindows throws every push subscription back to its slowest start, as a nack storm would.
func (f *Faults) CollapsePushWindows() {
	for _, s := range f.server.allSubscriptions() {
		s.mu.Lock()
		s.window.collapse(time.Now())
		s.dispatch()
		s.mu.Unlock()
	}
}

// publishRefused decides about one Publish call.
func (f *Faults) publishRefused() bool {
	if until := f.refusedUntil.Load(); until != 0 && time.Now().UnixNano() < until {
		return true
	}
	_, hit := f.decide(faultRefusePublish, func(p *faultPlan) float64 { return p.RefusePublish })
	return hit
}

func (f *Faults) duplicate() bool {
	_, hit := f.decide(faultDuplicate, func(p *faultPlan) float64 { return p.Duplicate })
	return hit
}

func (f *Faults) loseAck() bool {
	_, hit := f.decide(faultLoseAck, func(p *faultPlan) float64 { return p.LoseAck })
	return hit
}

// delay is how long to hold a message back, 0 for most.
func (f *Faults) delay() time.Duration {
	r, hit := f.decide(faultDelay, func(p *faultPlan) float64 { return p.Delay })
	p := f.plan.Load()
	if !hit || p == nil || p.DelayMax <= 0 {
		return 0
	}
	return time.Duration(r % uint64(p.DelayMax))
}

// reorder picks which of n waiting messages goes next.
func (f *Faults) reorder(n int) int {
	r, hit := f.decide(faultReorder, func(p *faultPlan) float64 { return p.Reorder })
	if !hit || n < 2 {
		return 0
	}
	return int(r % uint64(n))
}

// decide makes the next decision of a kind: random bits and whether the fault strikes.
func (f *Faults) decide(kind faultKind, share func(*faultPlan) float64) (bits uint64, hit bool) {
	p := f.plan.Load()
	if p == nil || share(p) <= 0 {
		return 0, false
	}
	x := mix(p.Seed ^ mix(uint64(kind)+1) ^ mix(p.count[kind].Add(1)))
	return mix(x), float64(x>>11)/(1<<53) < share(p)
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
