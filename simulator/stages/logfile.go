package stages

import (
	"bytes"
	"fmt"
	"os"
	"sync"
)

const (
	maxLogBytes = 16 << 20 // of one file; the one before is kept, so a stage's logs take at most twice this
	tailBytes   = 4 << 10  // kept in memory for the error of a stage that does not start
)

// logFile is what a stage writes to stdout and stderr, over all its restarts: <stage>.log, and <stage>.log.1 with what came before.
type logFile struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
	tail []byte
}

// openLog continues the file at path.
func openLog(path string, maxBytes int64) (*logFile, error) {
	l := &logFile{path: path, max: maxBytes}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of a stage: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close() // the stat error is the one to report
		return fmt.Errorf("size of the log of a stage: %w", err)
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write appends p and turns the file over once it is full and p ends a line. It never fails: with an error, os/exec would stop
// reading the pipe and a full disk would kill a healthy stage by SIGPIPE.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, p...)
	if over := len(l.tail) - tailBytes; over > 0 {
		l.tail = append(l.tail[:0], l.tail[over:]...)
	}
	if l.file == nil {
		return len(p), nil
	}
	n, _ := l.file.Write(p)
	if l.size += int64(n); l.size >= l.max && bytes.HasSuffix(p, []byte("\n")) {
		_ = l.file.Close()
		l.file = nil
		if os.Rename(l.path, l.path+".1") == nil {
			_ = l.open() // without a file the tail still works
		}
	}
	return len(p), nil
}

// Tail is up to the last n whole lines, from all runs of this Supervisor.
func (l *logFile) Tail(n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := bytes.TrimRight(l.tail, "\n")
	if len(text) == 0 {
		return nil
	}
	lines := bytes.Split(text, []byte("\n"))
	if len(l.tail) == tailBytes && len(lines) > 1 {
		lines = lines[1:] // cut in the middle
	}
	lines = lines[max(0, len(lines)-n):]
	last := make([]string, len(lines))
	for i, line := range lines {
		last[i] = string(line)
	}
	return last
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	if err := file.Close(); err != nil {
		return fmt.Errorf("close the log of a stage: %w", err)
	}
	return nil
}
