//go:build unix && !linux

package stages

import (
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
)

// attributes put the child in its own process group.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// watch kills the process group of pid when this process dies: a shell reads from a pipe whose other end only this process
// holds, and end of file means that it is gone. Call stop once the process has been reaped.
func watch(pid int) (stop func(), err error) {
	watcher := exec.Command("/bin/sh", "-c", `read -r line; kill -KILL -"$1"`, "watch-parent", strconv.Itoa(pid))
	watcher.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := watcher.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("pipe to the watcher of process %d: %w", pid, err)
	}
	if err := watcher.Start(); err != nil {
		return nil, fmt.Errorf("start the watcher of process %d: %w", pid, err)
	}
	return func() {
		_ = watcher.Process.Kill() // before the pipe closes, or it would kill a group that is gone
		_ = watcher.Wait()         // killed, as intended
		_ = pipe.Close()           // Wait closed it already
	}, nil
}

// peakRSS is not known here before a process ends; the highest sample has to do.
func peakRSS(int) uint64 { return 0 }
