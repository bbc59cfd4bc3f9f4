package stages

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// TestMain makes the test binary its own stage: started with ROLE it plays that part instead of running tests.
func TestMain(m *testing.M) {
	switch role := os.Getenv("ROLE"); role {
	case "":
		os.Exit(m.Run())
	case "crash":
		fmt.Println("cannot start: the bucket is gone")
		os.Exit(3)
	case "parent":
		superviseUntilKilled()
	default:
		serve(role)
	}
}

// serve is a stage. Roles: "stage" drains on SIGTERM; "deaf" ignores it; "gated" is ready once the file GATE exists; "once" serves the
// first time and crashes when the file GATE exists.
func serve(role string) {
	gate := os.Getenv("GATE")
	if role == "once" && exists(gate) {
		os.Exit(4)
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if role == "gated" && !exists(gate) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /environment", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(os.Environ()) // the client sees a broken answer
	})
	go func() {
		fmt.Println(http.ListenAndServe(net.JoinHostPort("127.0.0.1", os.Getenv("PORT")), mux))
		os.Exit(1)
	}()
	for range terminated {
		fmt.Println("SIGTERM received")
		if role != "deaf" {
			os.Exit(0)
		}
	}
}

// superviseUntilKilled is the local platform in small: it starts one stage, prints its readiness and waits to be killed.
func superviseUntilKilled() {
	supervisor := New(Config{LogDir: os.Getenv("LOGS"), Logger: slog.New(slog.DiscardHandler)}, Stage{
		Name:     "validate",
		Path:     os.Args[0],
		Env:      []string{"ROLE=deaf", "PORT=" + os.Getenv("STAGE_PORT")},
		ReadyURL: "http://127.0.0.1:" + os.Getenv("STAGE_PORT") + "/ready",
	})
	if err := supervisor.Start(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or until the test itself is gone
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
