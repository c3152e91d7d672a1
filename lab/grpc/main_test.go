package grpclab

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/grpclog"
)

// edgeBinary is the program under test, built once from the checkout around us.
var edgeBinary string

func TestMain(m *testing.M) {
	grpclog.SetLoggerV2(verdict{grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)})
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "edge-grpc-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	edgeBinary = filepath.Join(dir, "edge")
	build := exec.CommandContext(context.Background(), "go", "build", "-o", edgeBinary, "./cmd/edge")
	build.Dir = filepath.Join("..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build edge: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// verdict is the logger of the official cases. They report a failure by
// grpclog's Fatal, which would end the whole run: here it ends the case.
type verdict struct{ grpclog.LoggerV2 }

// failure is what verdict panics with.
type failure string

func (verdict) Fatal(args ...any) { panic(failure(fmt.Sprint(args...))) }

func (verdict) Fatalf(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

func (verdict) Fatalln(args ...any) { panic(failure(fmt.Sprintln(args...))) }

// judge runs one case, and fails t when the case calls Fatal.
func judge(t *testing.T, official func()) {
	t.Helper()
	defer func() {
		t.Helper()
		switch r := recover().(type) {
		case nil:
		case failure:
			t.Error(string(r))
		default:
			panic(r)
		}
	}()
	official()
}
