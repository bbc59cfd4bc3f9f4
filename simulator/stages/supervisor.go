package stages

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Stage is one child process: what a container is to its Pod.
type Stage struct {
	// Name is the stage's Knative Service name; it becomes K_SERVICE and names the log file.
	Name string
	// Path is the binary, relative to the current folder or absolute.
	Path string
	// Env are "KEY=value" pairs, the only ones besides the base environment. Paths in them must be absolute: a stage runs in "/", as
	// in its container.
	Env []string
	// Port is where the stage listens; it becomes PORT. MetricsPort is a second port it listens on, 0 for none; telling the
	// stage is up to Env. Both must be free before the first start.
	Port, MetricsPort int
	// ReadyURL answers 2xx to a GET once the stage is ready.
	ReadyURL string
}

// environment is the base of a Pod and the stage's own, of which the last of a name wins. HOME exists on no machine: with the
// user's, Google's libraries would find the user's credentials there and a stage could reach a real project.
func (s Stage) environment() []string {
	base := []string{
		"HOME=/nonexistent",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"TMPDIR=" + os.TempDir(),
		"PORT=" + strconv.Itoa(s.Port),
		"K_SERVICE=" + s.Name,
		"K_CONFIGURATION=" + s.Name,
		"K_REVISION=" + s.Name + "-local",
	}
	return append(base, s.Env...)
}

// checkPorts fails with one clear line when another process listens where the stage is to.
func (s Stage) checkPorts(ctx context.Context) error {
	for _, port := range []int{s.Port, s.MetricsPort} {
		// Both addresses, as some systems let a wildcard and a specific listener share a port.
		for _, host := range []string{"", "127.0.0.1"} {
			if port == 0 {
				continue
			}
			listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			if errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf("port %d of %s is taken by another process", port, s.Name)
			}
			if err != nil {
				return fmt.Errorf("port %d of %s: %w", port, s.Name, err)
			}
			if err := listener.Close(); err != nil {
				return fmt.Errorf("free port %d of %s: %w", port, s.Name, err)
			}
		}
	}
	return nil
}

// Config is what a Supervisor needs besides the stages.
type Config struct {
	// LogDir holds <stage>.log, what a stage writes to stdout and stderr. It is made when missing.
	LogDir string
	// Logger gets a line for each start, readiness and exit.
	Logger *slog.Logger
	// StartTimeout bounds the time from first start to ready. Default 30 s.
	StartTimeout time.Duration
	// Grace is the time between SIGTERM and SIGKILL. Default 10 s.
	Grace time.Duration
}

// maxEvents bounds what Events returns.
const maxEvents = 256

// Supervisor keeps stages running. Create it with New; it may be used from several goroutines.
type Supervisor struct {
	config   Config
	children []*child
	forker   *forker
	prober   *http.Client
	running  sync.WaitGroup // one per child being supervised

	stopOnce sync.Once
	stop     chan struct{} // closed when the stages are to end
	stopErr  error

	mu     sync.Mutex
	events []Event
}

// New prepares the stages; nothing runs before Start.
func New(config Config, stages ...Stage) *Supervisor {
	if config.StartTimeout == 0 {
		config.StartTimeout = 30 * time.Second
	}
	if config.Grace == 0 {
		config.Grace = 10 * time.Second
	}
	s := &Supervisor{config: config, prober: newProber(), stop: make(chan struct{})}
	for _, stage := range stages {
		s.children = append(s.children, &child{stage: stage, supervisor: s})
	}
	return s
}

// Start starts all stages at once and returns when every one is ready. A stage that exits first, is not ready in time or finds
// its port taken is an error with the last lines of its log; then, and when ctx ends, no stage is left running.
// Later exits are restarts, not errors. Call it once, and Stop only after it has returned.
func (s *Supervisor) Start(ctx context.Context) error {
	if err := s.openLogs(); err != nil {
		return err
	}
	for _, c := range s.children {
		if err := c.stage.checkPorts(ctx); err != nil {
			return errors.Join(err, s.Stop())
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.config.StartTimeout, fmt.Errorf("not ready after %v", s.config.StartTimeout))
	defer cancel()

	s.forker = newForker()
	started := make(chan error, len(s.children))
	for _, c := range s.children {
		s.running.Go(func() { c.supervise(started) })
	}
	for range s.children {
		var failed error
		select {
		case failed = <-started:
		case <-ctx.Done():
			failed = s.notReady(context.Cause(ctx))
		}
		if failed != nil {
			_ = s.Stop() // what keeps a stage from starting is the error to report
			return failed
		}
	}
	return nil
}

func (s *Supervisor) openLogs() error {
	if err := os.MkdirAll(s.config.LogDir, 0o755); err != nil {
		return fmt.Errorf("make the folder of the stages' logs: %w", err)
	}
	for _, c := range s.children {
		log, err := openLog(filepath.Join(s.config.LogDir, c.stage.Name+".log"), maxLogBytes)
		if err != nil {
			return errors.Join(err, s.Stop())
		}
		c.log = log
	}
	return nil
}

// notReady names the stages that Start is still waiting for.
func (s *Supervisor) notReady(cause error) error {
	if errors.Is(cause, context.Canceled) {
		return fmt.Errorf("start the stages: %w", cause)
	}
	var waiting []error
	for _, c := range s.children {
		if !c.isReady() {
			waiting = append(waiting, c.startError(fmt.Errorf("%w at %s", cause, c.stage.ReadyURL)))
		}
	}
	return errors.Join(waiting...)
}

// Stop ends all stages at once and returns when they are gone: SIGTERM, then SIGKILL after the grace period. The error names those
// that had to be killed or reported a failure. Later calls return the same.
func (s *Supervisor) Stop() error {
	s.stopOnce.Do(func() {
		close(s.stop)
		s.running.Wait()
		if s.forker != nil {
			s.forker.Close()
		}
		var errs []error
		for _, c := range s.children {
			errs = append(errs, c.stopErr)
			if c.log != nil {
				errs = append(errs, c.log.Close())
			}
		}
		s.stopErr = errors.Join(errs...)
	})
	return s.stopErr
}

// Kill sends a signal to the process of the named stage, and only to it: for tests and chaos. The error says that there is no such
// stage or that it is not running.
func (s *Supervisor) Kill(name string, signal syscall.Signal) error {
	for _, c := range s.children {
		if c.stage.Name == name {
			return c.kill(signal)
		}
	}
	return fmt.Errorf("kill %s: no such stage", name)
}

// Events are the last few hundred events, oldest first.
func (s *Supervisor) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Event(nil), s.events...)
}

func (s *Supervisor) record(e Event) {
	e.Time = time.Now()
	s.mu.Lock()
	s.events = append(s.events, e)
	s.events = s.events[max(0, len(s.events)-maxEvents):]
	s.mu.Unlock()

	attrs := []any{"stage", e.Stage, "pid", e.PID, "restarts", e.Restarts, "after", e.After.Round(time.Millisecond).String()}
	level := slog.LevelInfo
	if e.Kind == Exited {
		attrs = append(attrs, "status", e.Status)
		if e.RestartIn >= 0 {
			level = slog.LevelWarn
			attrs = append(attrs, "restart_in", e.RestartIn.String())
		}
	}
	s.config.Logger.Log(context.Background(), level, "stage "+string(e.Kind), attrs...)
}

// lastLines formats the end of a log for an error.
func lastLines(lines []string) string {
	if len(lines) == 0 {
		return " (it wrote nothing)"
	}
	return "; its last lines:\n  " + strings.Join(lines, "\n  ")
}
