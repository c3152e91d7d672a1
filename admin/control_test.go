package admin_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"edge/admin"
)

// start serves a control socket until the test ends.
func start(t *testing.T, o admin.Options) *admin.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	ln, err := admin.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c := admin.NewControl(o)
	done := make(chan error, 1)
	go func() { done <- c.Serve(ln) }()
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), <-done); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket mode %v, %v; want 0660", info.Mode().Perm(), err)
	}
	return admin.NewClient(path)
}

func TestStatusCrossesTheSocket(t *testing.T) {
	client := start(t, admin.Options{Status: func() admin.Status {
		return admin.Status{Version: "1.2.3", Ready: true, Config: admin.ConfigStatus{Warnings: []string{"w"}}}
	}})
	got, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Version != "1.2.3" || !got.Ready || len(got.Config.Warnings) != 1 {
		t.Errorf("status %+v", got)
	}
}

func TestARefusedReloadTellsItsProblems(t *testing.T) {
	var answer admin.Reloaded
	client := start(t, admin.Options{Reload: func(context.Context) admin.Reloaded { return answer }})
	got, err := client.Reload(t.Context())
	if err != nil || len(got.Problems) != 0 {
		t.Errorf("good reload: %+v, %v", got, err)
	}
	answer = admin.Reloaded{Problems: []string{"routes.yaml:1:1: version: missing"}, Invalid: true}
	got, err = client.Reload(t.Context())
	if err != nil || len(got.Problems) != 1 || !got.Invalid {
		t.Errorf("refused reload: %+v, %v", got, err)
	}
}

func TestAnUnreachableSocketHasAHint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.sock")
	_, err := admin.NewClient(path).Status(t.Context())
	if !errors.Is(err, admin.ErrUnreachable) {
		t.Fatalf("error %v, want ErrUnreachable", err)
	}
	for _, want := range []string{path, "is edge running?"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "http://") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q shows its plumbing", err)
	}
}

func TestAStaleSocketIsReplacedAndALiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = dead.Close()
	live, err := admin.Listen(t.Context(), path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	defer live.Close()
	if _, err := admin.Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another edge") {
		t.Errorf("live socket: %v, want a refusal", err)
	}
}

func TestAFileInTheSocketsPlaceIsNeverRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Listen(t.Context(), path); err == nil {
		t.Error("a socket took the place of a file")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("file is now %q, %v", b, err)
	}
}

func TestOfManyThatStartAtOnceOneGetsTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	for range 200 { // a race
		dead, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		dead.(*net.UnixListener).SetUnlinkOnClose(false)
		_ = dead.Close() // the stale socket is what they fall over each other for
		got := make(chan net.Listener, 4)
		var starting sync.WaitGroup
		for range cap(got) {
			starting.Go(func() {
				ln, err := admin.Listen(t.Context(), path)
				switch {
				case err == nil:
					got <- ln
				case !strings.Contains(err.Error(), "another edge"):
					t.Error(err)
				}
			})
		}
		starting.Wait()
		close(got)
		if len(got) != 1 {
			t.Fatalf("%d got the socket, want 1", len(got))
		}
		_ = (<-got).Close()
	}
}

func TestAPathThatCannotBeUsedHasAHint(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "none", "none", "s"), filepath.Join(dir, "file", "s"), filepath.Join(dir, strings.Repeat("x", 120))} {
		_, err := admin.Listen(t.Context(), path)
		if err == nil || !strings.HasPrefix(err.Error(), "control socket "+path+": ") || !strings.HasSuffix(err.Error(), "(set control.socket to a path that edge may write)") {
			t.Errorf("error %v", err)
		}
	}
}
