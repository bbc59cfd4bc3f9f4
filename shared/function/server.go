package function

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/GoogleCloudPlatform/functions-framework-go/funcframework"
	"github.com/GoogleCloudPlatform/functions-framework-go/functions"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sethvargo/go-envconfig"
)

// Config is what every stage reads from its environment.
type Config struct {
	Server
	Limits
	Push Identity `env:", prefix=PUSH_"`
	// Local says that this is a laptop: pushes are not checked unless PUSH_AUDIENCE is set, and a stage that has no K_SINK
	// prints what it would send.
	Local bool `env:"ROBOFLEET_LOCAL"`
	// Target is the function that the functions framework is to serve; "" serves without the framework.
	Target string `env:"FUNCTION_TARGET"`
	// Service is set by Knative and Cloud Run.
	Service string `env:"K_SERVICE"`
}

// Server is where a stage listens and how it ends.
type Server struct {
	Host        string `env:"HOST"` // "" is every interface, as a container needs it; without a push identity 127.0.0.1
	Port        int    `env:"PORT, default=8080"`
	MetricsPort int    `env:"METRICS_PORT, default=9090"` // 0: no metrics
	// ShutdownTimeout is how long requests under way may take after SIGTERM. It is above the group-commit windows and below
	// Kubernetes' grace period of 30 s.
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT, default=25s"`
}

// Load reads a stage's configuration, a struct that embeds Config, from env. What env does not have keeps its value.
func Load(ctx context.Context, env envconfig.Lookuper, cfg any) error {
	if err := envconfig.ProcessWith(ctx, &envconfig.Config{Target: cfg, Lookuper: env, DefaultOverwrite: true}); err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	return nil
}

// Laptop says whether the stage runs where nobody but its developer can reach it: ROBOFLEET_LOCAL says so, or it runs under
// the functions framework without a push identity outside of Knative. Without a push identity it listens on 127.0.0.1 only,
// unless ROBOFLEET_LOCAL and HOST both say otherwise.
func (c Config) Laptop() bool { return c.Local || c.underFramework() }

func (c Config) underFramework() bool {
	return c.Target != "" && c.Service == "" && c.Push.Audience == ""
}

// identity is whose pushes are accepted; nil is everybody's.
func (c Config) identity() *Identity {
	if c.Laptop() && c.Push.Audience == "" {
		return nil
	}
	return &c.Push
}

// Stage is what a main hands to Run.
type Stage struct {
	Name    string // of the stage, its Knative Service and its function
	Handler Handler
	// Flush ends all waiting for company; it is called when the process is told to stop, and may be nil.
	Flush func()
}

// Run serves the stage until ctx ends, then drains it: requests under way are answered, within the shutdown timeout.
func Run(ctx context.Context, cfg Config, s Stage, reg *prometheus.Registry, log *slog.Logger) error {
	h, err := NewHandler(s.Handler, cfg.Limits, cfg.identity(), http.DefaultClient,
		prometheus.WrapRegistererWith(prometheus.Labels{"function": s.Name}, reg), log)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	if cfg.identity() == nil && (cfg.Host == "" || !cfg.Local) {
		cfg.Host = "127.0.0.1" // whoever reaches it can store what he likes
	}
	if cfg.Target != "" {
		return runFramework(ctx, cfg, s.Name, h, log)
	}
	return Serve(ctx, cfg.Server, h, s.Flush, reg, log)
}

// runFramework serves h under the functions framework, which has neither a drain nor limits of its own: for laptops.
func runFramework(ctx context.Context, cfg Config, name string, h http.Handler, log *slog.Logger) error {
	functions.HTTP(name, h.ServeHTTP)
	log.Info("serving under the functions framework", "target", cfg.Target, "host", cfg.Host, "port", cfg.Port)
	failed := make(chan error, 1)
	go func() { failed <- funcframework.StartHostPort(cfg.Host, strconv.Itoa(cfg.Port)) }()
	select {
	case err := <-failed:
		return fmt.Errorf("functions framework: %w", err)
	case <-ctx.Done():
		return nil
	}
}

// Serve serves h on the main port and reg's metrics on their own until ctx ends, then calls flush (unless nil), answers
// the requests under way and returns. GET /healthz on the main port says that the process is there.
func Serve(ctx context.Context, cfg Server, h http.Handler, flush func(), reg *prometheus.Registry, log *slog.Logger) error {
	if err := registerProcess(reg); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.Handle("/", h)
	main := newServer(mux, log)
	listener, err := listen(ctx, cfg.Host, cfg.Port)
	if err != nil {
		return err
	}
	served := make(chan error, 2) // one for each listener
	var metrics *http.Server
	if cfg.MetricsPort != 0 {
		l, err := listen(ctx, cfg.Host, cfg.MetricsPort)
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		metrics = newServer(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), log)
		go func() { served <- serve(metrics, l) }()
	}
	go func() { served <- serve(main, listener) }()
	log.Info("serving", "addr", listener.Addr().String())

	select {
	case err := <-served:
		return err // a listener broke, and a process that half serves is better replaced
	case <-ctx.Done():
	}
	log.Info("draining")
	if flush != nil {
		flush()
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout)
	defer cancel()
	err = main.Shutdown(stop)
	if err != nil {
		// What is not answered by now is not acknowledged either: Pub/Sub will send it again.
		err = errors.Join(fmt.Errorf("drain: %w", err), main.Close())
	}
	if metrics != nil {
		err = errors.Join(err, metrics.Close(), <-served)
	}
	return errors.Join(err, <-served)
}

// newServer is hardened against slow clients and speaks HTTP/1.1 and HTTP/2 without TLS, which Knative's queue-proxy ends.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &protocols,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       60 * time.Second,  // of a whole request: 10 MB at 1.3 Mbit/s
		WriteTimeout:      600 * time.Second, // from the end of the headers to that of the answer: Pub/Sub's longest ack deadline
		IdleTimeout:       120 * time.Second, // longer than Pub/Sub and queue-proxy keep idle connections
		MaxHeaderBytes:    256 << 10,         // a message has up to 100 attributes of at most 1,280 bytes
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

func listen(ctx context.Context, host string, port int) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

func serve(s *http.Server, l net.Listener) error {
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

func registerProcess(reg *prometheus.Registry) error {
	return errors.Join(reg.Register(collectors.NewGoCollector()),
		reg.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})))
}

// NewLogger returns a stage's logger: JSON lines that Cloud Logging understands.
func NewLogger(name string) *slog.Logger {
	h := slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		switch a.Key { // https://cloud.google.com/logging/docs/structured-logging#structured_logging_special_fields
		case slog.LevelKey:
			level, ok := a.Value.Any().(slog.Level)
			if !ok {
				break // an attribute of somebody else's by that name
			}
			a.Key = "severity"
			if level == slog.LevelWarn {
				a.Value = slog.StringValue("WARNING") // slog's WARN is no severity there
			}
		case slog.MessageKey:
			a.Key = "message"
		}
		return a
	}})
	return slog.New(h).With("function", name)
}
