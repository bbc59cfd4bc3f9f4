package platform

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/robofleet/robofleet/simulator/cloud"
)

// folder is a platform's folder while it runs.
type folder struct {
	lock *os.File // held
	log  *os.File // of the platform's own process
}

// lockFile is locked while a platform runs on its folder. The kernel takes the lock off a process that is killed.
const lockFile = "lock"

// errLocked says that a platform runs on a folder.
var errLocked = errors.New("a platform is running on it")

// openFolder makes the folder, or takes it over from a platform that ran on it. A folder that is in use is left as it is.
func openFolder(dir string) (_ *folder, err error) {
	if err := os.MkdirAll(filepath.Join(dir, logsDir), 0o755); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	f := &folder{}
	if f.lock, err = lock(dir); err != nil {
		return nil, fmt.Errorf("data folder %s: %w", dir, err)
	}
	if f.log, err = os.Create(filepath.Join(dir, logsDir, "platform.log")); err != nil {
		return nil, errors.Join(fmt.Errorf("log of the platform: %w", err), f.lock.Close())
	}
	// One that was killed leaves it behind.
	if err := os.Remove(filepath.Join(dir, endpointsFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("data folder: %w", err), f.close())
	}
	return f, nil
}

func lock(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errLocked
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (f *folder) close() error { return errors.Join(f.log.Close(), f.lock.Close()) }

// endpointsFile says, while a platform runs, where it does.
const endpointsFile = "endpoints.json"

// Endpoints are where a running platform listens.
type Endpoints struct {
	PID      int    `json:"pid"`
	BigQuery string `json:"bigquery"` // base URL of the REST API
	PubSub   string `json:"pubsub"`   // host:port
	Storage  string `json:"storage"`  // host:port
}

func (p *Platform) writeEndpoints(dir string) error {
	text, err := json.MarshalIndent(Endpoints{
		PID: os.Getpid(), BigQuery: p.Cloud.BigQuery.RESTEndpoint(), PubSub: p.Cloud.PubSub.Addr(), Storage: p.Cloud.Storage.Host(),
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode endpoints: %w", err)
	}
	// Renamed into place, so that nobody reads a part of it.
	file := filepath.Join(dir, endpointsFile)
	if err := os.WriteFile(file+".new", append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	p.endpoints = file
	return nil
}

// Running returns where the platform on dir listens; ok is false if none runs. A platform that is just starting or stopping is
// an error, because then its data can be had neither from it nor without it.
func Running(dir string) (e Endpoints, ok bool, err error) {
	held, err := lock(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return e, false, nil
	case err == nil:
		return e, false, held.Close()
	case !errors.Is(err, errLocked):
		return e, false, fmt.Errorf("data folder %s: %w", dir, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, endpointsFile))
	if errors.Is(err, os.ErrNotExist) {
		return e, false, fmt.Errorf("the platform on %s is starting or stopping", dir)
	}
	if err != nil {
		return e, false, fmt.Errorf("read endpoints: %w", err)
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return e, false, fmt.Errorf("read %s of %s: %w", endpointsFile, dir, err)
	}
	return e, true, nil
}

// BigQueryDir returns where the embedded BigQuery of the platform on dir keeps its data.
func BigQueryDir(dir string) string { return filepath.Join(dir, dataDir, cloud.BigQueryDir) }
