package bigquery

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// FaultKind is something that goes wrong with an AppendRows request.
type FaultKind string

// The faults that can be injected.
const (
	FaultUnavailable       FaultKind = "unavailable"        // the call ends with UNAVAILABLE, nothing is written
	FaultResourceExhausted FaultKind = "resource_exhausted" // the call ends with RESOURCE_EXHAUSTED, nothing is written
	FaultRowErrors         FaultKind = "row_errors"         // the rows that contain Fault.Contains are refused, so nothing is written
	FaultReset             FaultKind = "reset"              // the call is aborted before anything is written
	FaultLostAnswer        FaultKind = "lost_answer"        // the rows are written, and the call is aborted in place of the answer
	FaultSlow              FaultKind = "slow"               // the request waits for Fault.Delay first
)

// Fault is a rule: which requests fail, and how.
type Fault struct {
	Kind FaultKind
	// Rate is the share of the AppendRows requests that are hit, 0 to 1.
	Rate float64
	// Limit is how many requests are hit at most; 0: any number.
	Limit int
	// Delay is for FaultSlow.
	Delay time.Duration
	// Contains is for FaultRowErrors: bytes of a row, as it is encoded, for example a robot's id. Empty matches every row.
	Contains string
}

// Faults injects faults into AppendRows. Which requests are hit depends on the seed and the order of the requests only.
type Faults struct {
	mu       sync.Mutex
	random   *rand.Rand
	rules    []Fault
	injected map[FaultKind]int
	hits     []int // by rule
}

// Set replaces the rules; none ends all faults. For each request the first rule that hits applies.
func (f *Faults) Set(seed uint64, rules ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.random = rand.New(rand.NewPCG(seed, 0))
	f.rules = append([]Fault(nil), rules...)
	f.hits = make([]int, len(rules))
}

// Injected counts the requests that were hit since the server started, by kind.
func (f *Faults) Injected() map[FaultKind]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.injected)
}

// fault is what shall go wrong with one request; nil: nothing.
type fault Fault

func (f *Faults) next(r *storagepb.AppendRowsRequest) *fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, rule := range f.rules {
		// Every rule draws for every request, so that one rule's limit does not change what the others do.
		hit := f.random.Float64() < rule.Rate
		if !hit || rule.Limit > 0 && f.hits[i] >= rule.Limit || rule.Kind == FaultRowErrors && !anyRowContains(r, rule.Contains) {
			continue
		}
		f.hits[i]++
		if f.injected == nil {
			f.injected = map[FaultKind]int{}
		}
		f.injected[rule.Kind]++
		return (*fault)(&rule)
	}
	return nil
}

func anyRowContains(r *storagepb.AppendRowsRequest, s string) bool {
	for _, row := range r.GetProtoRows().GetRows().GetSerializedRows() {
		if bytes.Contains(row, []byte(s)) {
			return true
		}
	}
	return false
}

// before happens when the request has arrived; an error ends the call.
func (f *fault) before(ctx context.Context) error {
	if f == nil {
		return nil
	}
	switch f.Kind {
	case FaultUnavailable:
		return status.Error(codes.Unavailable, "injected fault")
	case FaultResourceExhausted:
		return status.Error(codes.ResourceExhausted, "Exceeds 'AppendRows throughput' quota: injected fault")
	case FaultReset:
		return status.Error(codes.Aborted, "injected fault: the connection is reset")
	case FaultSlow:
		select {
		case <-time.After(f.Delay):
		case <-ctx.Done():
		}
	}
	return nil
}

// after happens when the request's rows are written; an error ends the call without an answer.
func (f *fault) after() error {
	if f != nil && f.Kind == FaultLostAnswer {
		return status.Error(codes.Aborted, "injected fault: the answer is lost")
	}
	return nil
}

// refuses says why a row is bad.
func (f *fault) refuses(row []byte) error {
	if f != nil && f.Kind == FaultRowErrors && bytes.Contains(row, []byte(f.Contains)) {
		return fmt.Errorf("injected fault: the row contains %q", f.Contains)
	}
	return nil
}
