package ingress

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// BrokersPath is where a GET is answered with the Brokers that are served, as FormatBrokers writes them: from it the
// controller learns whether a new Broker has arrived at every pod.
const BrokersPath = "/brokers"

// FormatBrokers writes one line "<namespace>/<broker>=<topic>" for each Broker, sorted.
func FormatBrokers(brokers map[string]string) string {
	var text strings.Builder
	for _, broker := range slices.Sorted(maps.Keys(brokers)) {
		fmt.Fprintf(&text, "%s=%s\n", broker, brokers[broker])
	}
	return text.String()
}

// ParseBrokers reads what FormatBrokers writes. Blank lines and lines that begin with # are passed over.
func ParseBrokers(text string) (map[string]string, error) {
	brokers := map[string]string{}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		broker, topic, _ := strings.Cut(line, "=")
		namespace, name, _ := strings.Cut(broker, "/")
		if namespace == "" || name == "" || topic == "" || strings.Contains(name, "/") || strings.ContainsAny(topic, "=/") {
			return nil, fmt.Errorf("line %d is %q: want <namespace>/<broker>=<topic>", number, line)
		}
		if _, twice := brokers[broker]; twice {
			return nil, fmt.Errorf("line %d: Broker %s is there twice", number, broker)
		}
		brokers[broker] = topic
	}
	return brokers, nil
}

// WatchBrokers calls serve with the Brokers of a file, before it returns and then whenever the file has changed, until stop is
// called. It looks every so often, because a mounted ConfigMap is changed by moving a link, and one small read a second costs
// less than getting notifications right. While the file is missing there are no Brokers; while it is wrong, the last ones stay.
func WatchBrokers(file string, every time.Duration, serve func(brokers map[string]string), log *slog.Logger) (stop func()) {
	f := &brokersFile{name: file, serve: serve, log: log}
	f.look()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				f.look()
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

type brokersFile struct {
	name  string
	serve func(brokers map[string]string)
	log   *slog.Logger

	last *string // nil: never read
}

func (f *brokersFile) look() {
	content, err := os.ReadFile(f.name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.log.Error("Brokers not read, the last ones stay", "file", f.name, "error", err)
		return
	}
	text := string(content)
	if f.last != nil && *f.last == text {
		return
	}
	f.last = &text
	brokers, err := ParseBrokers(text)
	if err != nil {
		f.log.Error("Brokers not understood, the last ones stay", "file", f.name, "error", err)
		return
	}
	f.serve(brokers)
	f.log.Info("serving Brokers", "file", f.name, "brokers", len(brokers))
}
