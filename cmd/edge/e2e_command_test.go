package main_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/internal/modelserver"
)

// command runs edge once and returns what it printed.
func (w *world) command(config string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	cmd, out, errs := w.prepare(config, args...)
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (w *world) prepare(config string, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	w.t.Helper()
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd = exec.CommandContext(w.t.Context(), binary(w.t), append(args, "-c", config)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = w.dir, append(os.Environ(), w.env()...), stdout, stderr
	return cmd, stdout, stderr
}

// Whoever loses patience leaves nothing in DNS, in the real storage and in the
// throwaway one.
func TestAnInterruptedOrderRemovesItsChallengeRecords(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"certs", "obtain"}, {"certs", "obtain", "--staging"}, {"dns", "check", "example.test", "--write"}} {
		for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
			t.Run(strings.Join(args, " ")+" "+sig.String(), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, acmelab.Options{}, modelserver.Options{})
				w.lab.DNS.SetLag(func(acmelab.Query, time.Duration) bool { return false }) // the wait for DNS has no end
				config := w.config("a", settings{})
				edit(t, config, "email: ops@example.test", "staging: \""+w.lab.CA.Directory+"\", email: ops@example.test")
				cmd, _, stderr := w.prepare(config, args...)
				cmd.Env = append(cmd.Env, "TMPDIR="+w.dir)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				for ; len(w.lab.DNS.TXTNames()) == 0 && time.Since(begin) < patience; time.Sleep(10 * time.Millisecond) {
				}
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.HasSuffix(stderr.String(), "\nedge: interrupted\n") {
					t.Errorf("exit %d:\n%s", code, stderr)
				}
				if left := w.lab.DNS.TXTNames(); len(left) != 0 {
					t.Errorf("challenge records left behind: %q", left)
				}
				if left, _ := filepath.Glob(filepath.Join(w.dir, "edge-staging-*")); len(left) != 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	}
}

func edit(t *testing.T, path, old, with string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(old)) {
		t.Fatalf("%s has no %q", path, old)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte(old), []byte(with), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A person who is root leaves nothing behind that the service, with a user of its
// own, cannot read or replace.
func TestCommandsOfRootDoNotLockTheServiceOut(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const nobody = 65534
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	store, snapshot := filepath.Join(w.dir, "store"), filepath.Join(w.dir, "snapshot")
	for _, dir := range []string{store, snapshot} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	w.file("kek", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
	config := w.config("a", settings{storage: "STORAGE"})
	edit(t, config, `storage: "STORAGE"`, `storage: {url: "file://`+store+`", encrypt: {keys: ["file:kek"]}, snapshot: "`+snapshot+`"}`)
	for _, args := range [][]string{
		{"certs", "obtain"},
		{"certs", "renew", "--all"},
		{"storage", "rotate"},
		{"dns", "records"},
		{"certs", "account", "rollover", "lab"},
		{"certs", "show", "example.test"},
		{"storage", "verify"},
	} {
		if out, errs, code := w.command(config, args...); code != 0 {
			t.Fatalf("%q: exit %d\n%s%s", args, code, out, errs)
		}
	}
	files := 0
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasPrefix(path, store) && !strings.HasPrefix(path, snapshot) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != nobody {
			t.Errorf("%s belongs to %d", path, uid)
		}
		if !d.IsDir() {
			files++
			if strings.HasPrefix(path, snapshot) {
				t.Errorf("%s: a command wrote into the snapshot of the service", path)
			}
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Errorf("%d files, %v", files, err)
	}
}

// Two commands and a replica at once place one order among them.
func TestCommandsAndAReplicaPlaceOneOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	config := w.config("a", settings{})
	p := w.launch(config)
	type result struct {
		out, errs string
		code      int
	}
	results := make(chan result, 2)
	for range 2 {
		go func() {
			out, errs, code := w.command(config, "certs", "obtain", "--json")
			results <- result{out, errs, code}
		}()
	}
	for range 2 {
		r := <-results
		var outcomes []struct{ Serial string }
		if err := json.Unmarshal([]byte(r.out), &outcomes); err != nil || r.code != 0 || len(outcomes) != 1 || outcomes[0].Serial == "" {
			t.Errorf("exit %d, %v\n%s%s", r.code, err, r.out, r.errs)
		}
	}
	w.leaf(w.ready(p), "chat.example.test")
	if n := w.lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}
