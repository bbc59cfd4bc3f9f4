package stages

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// child supervises one stage.
type child struct {
	stage      Stage
	supervisor *Supervisor
	log        *logFile
	stopErr    error // how supervise ended when told to stop; read after it returned

	mu      sync.Mutex
	process *process // the one that runs, nil between two
	ready   bool
	usage   usage
}

// supervise runs the stage until the Supervisor stops. It sends on started once: nil when the stage is ready for the first time, or
// why the first process never was; then it gives up.
func (c *child) supervise(started chan<- error) {
	var delays backoff
	for restarts := 0; ; restarts++ {
		begin := time.Now()
		end := c.runOnce(restarts, started)
		event := Event{Kind: Exited, PID: end.pid, Restarts: restarts, After: time.Since(begin), Status: status(end.failure), RestartIn: -1}
		if c.stopping() {
			c.record(event)
			return
		}
		if restarts == 0 && !end.ready {
			c.record(event)
			started <- c.startError(fmt.Errorf("%s before it was ready", status(end.failure)))
			return
		}
		event.RestartIn = delays.next(event.After)
		c.record(event)
		select {
		case <-time.After(event.RestartIn):
		case <-c.supervisor.stop:
			return
		}
	}
}

// outcome is how one process of a stage fared.
type outcome struct {
	pid     int
	ready   bool
	failure error // nil for exit status 0
}

// runOnce runs one process from start to end, which comes by itself or because the Supervisor stops.
func (c *child) runOnce(restarts int, started chan<- error) outcome {
	p, err := c.start(restarts)
	if err != nil {
		return outcome{failure: err}
	}
	defer c.ended(p)
	c.record(Event{Kind: Started, PID: p.pid(), Restarts: restarts})
	ready := p.awaitReady(c.supervisor.stop, c.supervisor.prober, c.stage.ReadyURL)
	if ready {
		after := time.Since(p.started)
		c.markReady(after)
		c.record(Event{Kind: Ready, PID: p.pid(), Restarts: restarts, After: after})
		if restarts == 0 {
			started <- nil
		}
	}
	select {
	case <-p.exited.Done():
	case <-c.supervisor.stop:
		c.sample() // the last chance to see its memory
		inTime := p.terminate(c.supervisor.config.Grace)
		switch failure := p.failure(); {
		case !inTime:
			c.stopErr = fmt.Errorf("%s did not end within %v of SIGTERM and was killed", c.stage.Name, c.supervisor.config.Grace)
		case failure != nil && ready: // before, it had nothing to drain
			c.stopErr = fmt.Errorf("%s failed to drain on SIGTERM: %w", c.stage.Name, failure)
		}
	}
	return outcome{p.pid(), ready, p.failure()}
}

func (c *child) start(restarts int) (*process, error) {
	path, err := filepath.Abs(c.stage.Path) // or it would be looked up from Dir
	if err != nil {
		return nil, fmt.Errorf("find the binary: %w", err)
	}
	cmd := exec.Command(path) //nolint:noctx // the supervisor ends it by signals, in order, and not by a context that kills
	cmd.Dir = "/"
	cmd.Env = c.stage.environment()
	cmd.Stdout, cmd.Stderr = c.log, c.log
	cmd.SysProcAttr = attributes()
	p, err := startProcess(c.supervisor.forker, cmd)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process = p
	c.usage.begin(p.started, restarts)
	return p, nil
}

func (c *child) markReady(after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready = true
	c.usage.readyAfter = after
}

// ended books what the process used and leaves the stage without one.
func (c *child) ended(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process, c.ready = nil, false
	c.usage.end(p.cmd.ProcessState)
}

func (c *child) isReady() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
}

func (c *child) stopping() bool {
	select {
	case <-c.supervisor.stop:
		return true
	default:
		return false
	}
}

func (c *child) kill(signal syscall.Signal) error {
	c.mu.Lock()
	p := c.process
	c.mu.Unlock()
	if p == nil {
		return fmt.Errorf("kill %s: it is not running", c.stage.Name)
	}
	if err := p.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("kill %s: %w", c.stage.Name, err)
	}
	return nil
}

func (c *child) record(e Event) {
	e.Stage = c.stage.Name
	c.supervisor.record(e)
}

func (c *child) startError(err error) error {
	return fmt.Errorf("start %s: %w%s", c.stage.Name, err, lastLines(c.log.Tail(10)))
}

// status is how a process ended, in the words of os.ProcessState.
func status(failure error) string {
	if failure == nil {
		return "exit status 0"
	}
	return failure.Error()
}

// process is one life of a stage.
type process struct {
	cmd     *exec.Cmd
	started time.Time
	exited  context.Context // done once it has been reaped; cmd.ProcessState is set then
}

func startProcess(f *forker, cmd *exec.Cmd) (*process, error) {
	cmd.WaitDelay = time.Second // whoever else holds its stdout does not keep it from counting as ended
	p := &process{cmd: cmd, started: time.Now()}
	if err := f.Start(cmd); err != nil {
		return nil, err
	}
	stopWatch, err := watch(cmd.Process.Pid)
	if err != nil {
		_ = cmd.Process.Kill() // unwatched, it could outlive us
		_ = cmd.Wait()         // killed, as intended
		return nil, err
	}
	exited, cancel := context.WithCancel(context.Background())
	p.exited = exited
	go func() {
		defer cancel()
		_ = cmd.Wait() // the same is in ProcessState
		stopWatch()
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// failure is nil for exit status 0, otherwise the status: "exit status 1", "signal: killed". Only after exited.
func (p *process) failure() error {
	if p.cmd.ProcessState.Success() {
		return nil
	}
	return errors.New(p.cmd.ProcessState.String())
}

// awaitReady returns true when url answers 2xx, and false when the process exits or stop closes before.
func (p *process) awaitReady(stop <-chan struct{}, client *http.Client, url string) bool {
	for {
		if probe(p.exited, client, url) {
			return true
		}
		// Soon at first and ever less often: the time to ready is known to 5 %, and a slow start costs little CPU.
		pause := min(max(time.Since(p.started)/20, 2*time.Millisecond), 100*time.Millisecond)
		select {
		case <-p.exited.Done():
			return false
		case <-stop:
			return false
		case <-time.After(pause):
		}
	}
}

// terminate ends the process as kubelet does and returns once it has been reaped: true when it went within the grace period.
func (p *process) terminate(grace time.Duration) bool {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it just exited
	select {
	case <-p.exited.Done():
		return true
	case <-time.After(grace):
		_ = p.cmd.Process.Kill() // likewise
		<-p.exited.Done()
		return false
	}
}
