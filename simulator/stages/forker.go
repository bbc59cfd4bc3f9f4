package stages

import (
	"os/exec"
	"runtime"
)

// forker starts every child from one OS thread that lives as long as the children may. Linux sends the parent-death signal when
// the thread that forked ends, and the Go runtime ends threads as it likes: without this, a healthy stage would be killed
// now and then (https://github.com/golang/go/issues/27505).
type forker struct {
	starts chan forkRequest
}

type forkRequest struct {
	cmd *exec.Cmd
	err chan<- error
}

func newForker() *forker {
	f := &forker{starts: make(chan forkRequest)}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for request := range f.starts {
			request.err <- request.cmd.Start()
		}
	}()
	return f
}

// Start is cmd.Start on the forker's thread.
func (f *forker) Start(cmd *exec.Cmd) error {
	err := make(chan error, 1)
	f.starts <- forkRequest{cmd, err}
	return <-err
}

// Close lets the thread go. Only after the last child has been reaped.
func (f *forker) Close() { close(f.starts) }
