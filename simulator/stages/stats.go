package stages

import (
	"os"
	"time"

	gopsutil "github.com/shirou/gopsutil/v4/process"
)

// Stats is what a stage uses, over all its processes unless said otherwise.
type Stats struct {
	Name     string
	PID      int // 0 while none runs
	Ready    bool
	Restarts int
	Uptime   time.Duration // of the running process
	CPU      time.Duration // user and system time since the first start
	// CPUPercent is the share of one core since the last call of Supervisor.Stats, so 200 is two cores.
	CPUPercent float64
	// RSS is the resident memory in bytes of the running process, or of the last one when it was last seen.
	RSS uint64
	// PeakRSS is the highest RSS in bytes: as the kernel knows it on Linux, the highest sample elsewhere.
	PeakRSS uint64
	// ReadyAfter is how long the last process took from its start to its first 2xx.
	ReadyAfter time.Duration
}

// Stats samples all stages, in the order given to New. After Stop it returns what they used.
func (s *Supervisor) Stats() []Stats {
	stats := make([]Stats, len(s.children))
	for i, c := range s.children {
		stats[i] = c.stats()
	}
	return stats
}

func (c *child) stats() Stats {
	c.sample()
	c.mu.Lock()
	defer c.mu.Unlock()
	stats := Stats{
		Name:       c.stage.Name,
		Ready:      c.ready,
		Restarts:   c.usage.restarts,
		CPU:        c.usage.cpu(),
		CPUPercent: c.usage.percent(time.Now()),
		RSS:        c.usage.rss,
		PeakRSS:    c.usage.peak,
		ReadyAfter: c.usage.readyAfter,
	}
	if c.process != nil {
		stats.PID = c.process.pid()
		stats.Uptime = time.Since(c.process.started)
	}
	return stats
}

// sample reads the CPU time and memory of the running process, if any. What cannot be read keeps its last value: the process is
// about to be reaped, and then its exact CPU time is known.
func (c *child) sample() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil || c.process.exited.Err() != nil {
		return
	}
	pid := c.process.pid()
	proc := gopsutil.Process{Pid: int32(pid)}
	if times, err := proc.Times(); err == nil {
		c.usage.running = time.Duration((times.User + times.System) * float64(time.Second))
	}
	if memory, err := proc.MemoryInfo(); err == nil && memory.RSS > 0 { // 0: a zombie
		c.usage.rss = memory.RSS
		c.usage.peak = max(c.usage.peak, memory.RSS, peakRSS(pid))
	}
}

// usage adds up what the processes of one stage use.
type usage struct {
	restarts   int
	ended      time.Duration // CPU time of those that ended
	running    time.Duration // CPU time of the one that runs, when last sampled
	rss, peak  uint64
	readyAfter time.Duration

	lastCPU time.Duration // when percent was last asked
	lastAt  time.Time
}

func (u *usage) begin(at time.Time, restarts int) {
	u.restarts = restarts
	if u.lastAt.IsZero() {
		u.lastAt = at
	}
}

func (u *usage) end(state *os.ProcessState) {
	u.ended += state.UserTime() + state.SystemTime()
	u.running = 0
}

func (u *usage) cpu() time.Duration { return u.ended + u.running }

// percent is the CPU time since the last call by the wall time since.
func (u *usage) percent(now time.Time) float64 {
	cpu, at := u.lastCPU, u.lastAt
	u.lastCPU, u.lastAt = u.cpu(), now
	elapsed := now.Sub(at)
	if at.IsZero() || elapsed <= 0 {
		return 0
	}
	// Never below 0: samples come in clock ticks, the exact time of an ended process may be a tick less.
	return max(0, 100*float64(u.lastCPU-cpu)/float64(elapsed))
}
