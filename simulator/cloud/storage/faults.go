package storage

import (
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// FaultKind is something that goes wrong with an upload.
type FaultKind string

// The faults that can be injected.
const (
	FaultUnavailable  FaultKind = "unavailable"  // 503, nothing is stored
	FaultPrecondition FaultKind = "precondition" // 412, nothing is stored
	FaultReset        FaultKind = "reset"        // the connection breaks while the content is sent, nothing is stored
	FaultLostAnswer   FaultKind = "lost_answer"  // the object is stored, and the connection breaks in place of the answer
	FaultSlow         FaultKind = "slow"         // the upload waits for Fault.Delay first
)

// Fault is a rule: which uploads fail, and how.
type Fault struct {
	Kind FaultKind
	// Rate is the share of the uploads that are hit, 0 to 1.
	Rate float64
	// Limit is how many uploads are hit at most; 0: any number.
	Limit int
	// Delay is for FaultSlow.
	Delay time.Duration
}

// Faults injects faults into uploads. Which are hit depends on the seed and the order of the uploads only.
type Faults struct {
	mu       sync.Mutex
	random   *rand.Rand
	rules    []Fault
	hits     []int // by rule
	injected map[FaultKind]int
}

// Set replaces the rules; none ends all faults. For each upload the first rule that hits applies.
func (f *Faults) Set(seed uint64, rules ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.random = rand.New(rand.NewPCG(seed, 0))
	f.rules = append([]Fault(nil), rules...)
	f.hits = make([]int, len(rules))
}

// Injected counts the uploads that were hit since the server started, by kind.
func (f *Faults) Injected() map[FaultKind]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.injected)
}

func (f *Faults) next() Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, rule := range f.rules {
		hit := f.random.Float64() < rule.Rate
		if !hit || rule.Limit > 0 && f.hits[i] >= rule.Limit {
			continue
		}
		f.hits[i]++
		if f.injected == nil {
			f.injected = map[FaultKind]int{}
		}
		f.injected[rule.Kind]++
		return rule
	}
	return Fault{}
}

// inject puts the faults before the handler.
func (f *Faults) inject(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/upload/") {
			next.ServeHTTP(w, r)
			return
		}
		switch fault := f.next(); fault.Kind {
		case FaultUnavailable:
			http.Error(w, "injected fault", http.StatusServiceUnavailable)
		case FaultPrecondition:
			http.Error(w, "injected fault", http.StatusPreconditionFailed)
		case FaultReset:
			_, _ = io.CopyN(io.Discard, r.Body, 512) // a body that is shorter is broken off all the same
			breakOff(w)
		case FaultLostAnswer:
			next.ServeHTTP(&discard{header: http.Header{}}, r)
			breakOff(w)
		case FaultSlow:
			select {
			case <-time.After(fault.Delay):
			case <-r.Context().Done():
			}
			next.ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// breakOff resets the connection in place of an answer. A reset is what a client sees of a peer that has died; of a connection that is
// closed in order it sees the end, which Google's client library does not retry.
func breakOff(w http.ResponseWriter) {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // cannot happen: the server speaks HTTP/1 only
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // an error here and below is a break as well
	}
	_ = connection.Close()
}

// discard is a ResponseWriter whose answer nobody gets.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}
