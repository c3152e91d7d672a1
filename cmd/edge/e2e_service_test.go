package main_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/internal/edgetest"
	"edge/internal/modelserver"
)

// A service manager learns of readiness, reloads and the stop (sd_notify(3)),
// and the watchdog is fed.
func TestAServiceManagerIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	path := filepath.Join(w.dir, "notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	next := func(want string) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
		}
	}
	p := w.launch(w.config("a", settings{}), "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=1000000")
	next("READY=1")
	w.leaf(w.ready(p), "example.test") // ready means that this is served
	next("WATCHDOG=1")
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	next("RELOADING=1\nMONOTONIC_USEC=")
	next("READY=1")
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	next("STOPPING=1")
	if err := p.Wait(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "a.sock")); !os.IsNotExist(err) {
		t.Errorf("the control socket is left behind: %v", err)
	}
}

// While certificates are missing, a reload does not end the start for systemd,
// and a stop ends it at once.
func TestSignalsDuringTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	w.lab.CA.SetDown(true)
	path := filepath.Join(w.dir, "notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := w.launch(w.config("a", settings{}), "NOTIFY_SOCKET="+path)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if s, err := p.Status(ctx); err != nil || s.Ready {
		t.Fatalf("ready without a certificate: %v, %v", s.Ready, err)
	}
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := p.WaitLine(ctx, func(l edgetest.Line) bool { return l.Message() == "reloaded" }); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the stop took %v", d)
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 4096)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "STOPPING=1" {
		t.Errorf("systemd heard %q first, %v; want the stop", buf[:n], err)
	}
}

// What edge writes on disk is for its user alone.
func TestStoredKeysAreForTheOwnerAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	dir := filepath.Join(w.dir, "store")
	_, addr := w.start(w.config("a", settings{storage: "file://" + dir}))
	w.leaf(addr, "example.test")
	files := 0
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if info.IsDir() {
			want = 0o700
		} else {
			files++
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files, %v", files, err)
	}
}
