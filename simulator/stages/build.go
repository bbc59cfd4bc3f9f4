package stages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// Tags are the build tags of the stages' images. disable_grpc_modules leaves the gRPC transport of the Cloud Storage client
// out, which no stage uses: 20 MB of binary and 10 MB of memory.
const Tags = "disable_grpc_modules"

// Build compiles main packages of the module in moduleDir with one go build call and writes the binaries to outDir, each named
// after the last element of its package's path: ./functions/validate/cmd/validate becomes outDir/validate. The binaries are
// made as those of the production images are: without cgo, without paths of this machine.
//
// Progress and what the compiler prints go to out, unchanged. The error is one line: the go command is missing, or the build failed.
func Build(ctx context.Context, out io.Writer, moduleDir, outDir string, packages ...string) error {
	goCommand, err := exec.LookPath("go")
	if err != nil {
		return errors.New("the go command is not in PATH, and the stages are built with it: see https://go.dev/doc/install")
	}
	outDir, err = filepath.Abs(outDir)
	if err != nil {
		return fmt.Errorf("find the folder of the binaries: %w", err)
	}
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return fmt.Errorf("make the folder of the binaries: %w", err)
	}
	names := make([]string, len(packages))
	for i, pkg := range packages {
		names[i] = path.Base(pkg)
	}
	if _, err := fmt.Fprintf(out, "building %s\n", strings.Join(names, ", ")); err != nil {
		return fmt.Errorf("print progress: %w", err)
	}

	// Without -buildvcs=false every commit would link all binaries anew, and a checkout that git distrusts would not build.
	// The trailing separator makes -o a folder even for a single package.
	args := []string{"build", "-trimpath", "-buildvcs=false", "-tags=" + Tags, "-o", outDir + string(filepath.Separator)}
	build := exec.CommandContext(ctx, goCommand, append(args, packages...)...)
	build.Dir = moduleDir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = out, out
	if err := build.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("go build %s: %w", strings.Join(packages, " "), ctx.Err())
		}
		return fmt.Errorf("go build %s: %w", strings.Join(packages, " "), err)
	}
	return nil
}
