package main_test

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"edge/internal/edgetest"
)

// buildOnce builds the program for all end-to-end tests of this run.
var buildOnce = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return edgetest.Build(ctx, os.Getenv("EDGE_TEST_DIR"), raceDetector)
})

// binary returns the path of the built program.
func binary(t *testing.T) string {
	t.Helper()
	path, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMain gives the scripts the real program as the command edge.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "edge-test-")
	if err != nil {
		panic(err)
	}
	_ = os.Setenv("EDGE_TEST_DIR", dir)
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// The command line, as a person types it: each script reads as a manual.
func TestScripts(t *testing.T) {
	t.Parallel()
	path := binary(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", env.Getenv("PATH")+":"+dirOf(path))
			return nil
		},
		RequireExplicitExec: true,
	})
}

func dirOf(path string) string { return path[:len(path)-len("/edge")] }
