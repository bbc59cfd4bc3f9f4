package stages

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// attributes put the child in its own process group and let the kernel kill it when its parent goes.
// "Parent" is the thread that forked, not the process (prctl(2), PR_SET_PDEATHSIG): see forker.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// watch has nothing to do where the kernel watches.
func watch(int) (stop func(), err error) { return func() {}, nil }

// peakRSS asks the kernel for the most memory a process ever had resident, in bytes; 0 when it cannot tell. The rusage of a
// reaped child cannot answer: its ru_maxrss starts from the parent's.
func peakRSS(pid int) uint64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return parsePeakRSS(status)
}

// parsePeakRSS reads the line "VmHWM:	   12345 kB" of proc_pid_status(5).
func parsePeakRSS(status []byte) uint64 {
	_, rest, found := bytes.Cut(status, []byte("VmHWM:"))
	if !found {
		return 0
	}
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	kilobytes, err := strconv.ParseUint(string(fields[0]), 10, 54) // 54 bits: bytes fit in 64
	if err != nil {
		return 0
	}
	return kilobytes << 10
}
