package main

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// listenNotify stands in for systemd and returns what it was told, in order.
func listenNotify(t *testing.T) (heard func() []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() (all []string) {
		buf := make([]byte, 4096)
		for {
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // what was sent is there
			n, err := conn.Read(buf)
			if err != nil {
				return all
			}
			all = append(all, string(buf[:n]))
		}
	}
}

func TestWhoStopsDoesNotBecomeReadyAnyMore(t *testing.T) {
	heard := listenNotify(t)
	a := &app{}
	if !a.enter(stopping, "STOPPING=1") || a.enter(ready, "READY=1") {
		t.Error("an app that stops became ready")
	}
	a.tell("READY=1") // the end of a reload
	if got := heard(); len(got) != 1 || got[0] != "STOPPING=1" {
		t.Errorf("systemd heard %q, want the stop only", got)
	}
}

// A reload during the start must not tell systemd that the start is over.
func TestAReloadIsToldOnlyWhenReady(t *testing.T) {
	heard := listenNotify(t)
	a := &app{}
	a.tell("RELOADING=1")
	a.tell("READY=1")
	if got := heard(); len(got) != 0 {
		t.Errorf("systemd heard %q before the start was over", got)
	}
	a.enter(ready, "READY=1")
	a.tell("RELOADING=1")
	a.tell("READY=1")
	if got := heard(); len(got) != 3 {
		t.Errorf("systemd heard %q", got)
	}
}

func TestReloadSignalsNeverCrowdOutAStop(t *testing.T) {
	on := listen()
	defer on.close()
	for range 100 {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for name, signals := range map[string]<-chan os.Signal{"SIGHUP": on.reload, "SIGTERM": on.stop} {
		select {
		case <-signals:
		case <-time.After(10 * time.Second):
			t.Errorf("%s got lost", name)
		}
	}
}
