package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"edge/tlsmgr/store"
	"edge/tlsmgr/store/storetest"
)

func TestFileStoreKeepsTheContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return "file://" + t.TempDir()
	})
}

func newFile(t *testing.T) (*store.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	return newStore(t, "file://"+dir, store.Options{}), dir
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	s, dir := newFile(t)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open touched the disk: %v", err)
	}
	if err := s.Store(t.Context(), "a/b/key", nil); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = fs.ModeDir | 0o700
		}
		if info.Mode() != want {
			t.Errorf("%s: got mode %s, want %s", path, info.Mode(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLinksAndPipesAreNotObjects(t *testing.T) {
	s, dir := newFile(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "key"), []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Store(t.Context(), "real", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Symlink(filepath.Join(outside, "key"), filepath.Join(dir, "link")),
		os.Symlink(outside, filepath.Join(dir, "out")),
		os.Symlink("real", filepath.Join(dir, "inside")),
		syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"link", "inside", "pipe"} {
		if _, err := s.Load(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("load %s: got %v, want not exist", key, err)
		}
		if s.Exists(t.Context(), key) {
			t.Errorf("%s exists", key)
		}
	}
	if got, err := s.Load(t.Context(), "out/key"); err == nil {
		t.Errorf("read %q through a link that leads out", got)
	}
	if err := s.Store(t.Context(), "out/new", nil); err == nil {
		t.Error("wrote through a link that leads out")
	}
	if err := s.Delete(t.Context(), "out"); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadDir(outside); err != nil || len(got) != 1 {
		t.Errorf("outside: got %v, %v; want it untouched", got, err)
	}
	if got, err := s.List(t.Context(), "", true); err != nil || len(got) != 1 || got[0] != "real" {
		t.Errorf("got %q, %v; want only the real object", got, err)
	}
}

func TestObjectAndDirectoryCannotShareAName(t *testing.T) {
	s, _ := newFile(t)
	for _, key := range []string{"object", "dir/object"} {
		if err := s.Store(t.Context(), key, nil); err != nil {
			t.Fatal(err)
		}
	}
	wantText(t, s.Store(t.Context(), "object/below", nil), `store "object/below": a parent of the key is an object (`)
	wantText(t, s.Store(t.Context(), "dir", nil), `store "dir": the key is a directory (`)
	_, err := s.Swap(t.Context(), "object/below", nil, "version")
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("swap below an object: got %v, want a conflict", err)
	}
}

const nobody = 65534

// asNobody runs f without the rights of root.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its rights
		for _, call := range []uintptr{syscall.SYS_SETFSGID, syscall.SYS_SETFSUID} {
			if _, _, errno := syscall.RawSyscall(call, nobody, 0, 0); errno != 0 {
				t.Errorf("setfsuid: %v", errno)
				return
			}
		}
		f()
	}()
	<-done
}

func TestWhatRootWritesBelongsToTheOwnerOfTheDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	parent := t.TempDir()
	for dir := parent; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(parent, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{parent, filepath.Join(parent, "new", "store")} {
		root := newStore(t, "file://"+dir, store.Options{})
		if err := errors.Join(root.Store(t.Context(), "a/b/root", []byte("1")), root.Store(t.Context(), "top", nil)); err != nil {
			t.Fatal(err)
		}
		l, err := root.Acquire(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantOwner(t, dir, nobody)
		service := newStore(t, "file://"+dir, store.Options{})
		asNobody(t, func() {
			if got, err := service.Load(t.Context(), "a/b/root"); err != nil || string(got) != "1" {
				t.Errorf("the service reads %q, %v; want what root wrote", got, err)
			}
			if err := errors.Join(service.Store(t.Context(), "a/b/own", nil), service.Delete(t.Context(), "a"), service.Delete(t.Context(), "top")); err != nil {
				t.Errorf("the service: %v", err)
			}
		})
	}
	own := t.TempDir()
	if err := newStore(t, "file://"+own, store.Options{}).Store(t.Context(), "a/b", nil); err != nil {
		t.Fatal(err)
	}
	wantOwner(t, own, 0)
}

// A guard that was there is not given away: it may be a link to another file.
func TestRootGivesAwayOnlyWhatItMade(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	for _, err := range []error{
		os.WriteFile(secret, nil, 0o600), os.Mkdir(filepath.Join(dir, ".edge"), 0o700),
		os.Link(secret, filepath.Join(dir, ".edge", "guard")), os.Chown(dir, nobody, nobody),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := newStore(t, "file://"+dir, store.Options{}).Store(t.Context(), "key", nil); err != nil {
		t.Fatal(err)
	}
	wantOwner(t, secret, 0)
}

func wantOwner(t *testing.T, root string, want uint32) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); !ok || s.Uid != want || s.Gid != want {
			t.Errorf("%s belongs to %d:%d, want %d", path, s.Uid, s.Gid, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDirectoryWithoutPermissionIsExplained(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, "file://"+dir, store.Options{})
	if err := s.Store(t.Context(), "key", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, ".edge"), 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, ".edge"), 0o700) })
	missing := newStore(t, "file://"+dir+"/.edge/sub", store.Options{})
	asNobody(t, func() {
		for _, err := range []error{
			s.Store(t.Context(), "key", []byte("new")), s.Probe(t.Context()), missing.Probe(t.Context()),
		} {
			wantText(t, err, "no permission in directory "+dir, "(it must belong to user ")
		}
	})
}

func TestUnusableDirectoriesAreExplained(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, file + "/below", "/proc/edge-store"} {
		err := newStore(t, "file://"+dir, store.Options{}).Probe(t.Context())
		wantText(t, err, "probe storage file://"+dir+": ", "directory "+dir+" cannot be made (is a parent of it a file?)")
	}
	s, dir := newFile(t)
	if err := s.Store(t.Context(), "key", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	err := s.Store(t.Context(), "key", nil)
	wantText(t, err, "directory "+dir+" was removed while in use (restart edge)")
	if errors.Is(err, fs.ErrNotExist) {
		t.Error("a vanished directory reads like a missing key")
	}
}

func TestGuardIsFoundAgainWhenItWasDeleted(t *testing.T) {
	s, dir := newFile(t)
	for range 3 {
		if err := s.Store(t.Context(), "key", nil); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(dir, ".edge")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWaitingForTheGuardEndsWithTheContext(t *testing.T) {
	s, dir := newFile(t)
	if err := s.Store(t.Context(), "key", []byte("old")); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, ".edge", "guard"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil { // a stopped process
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 3 { // one polls, two queue
		wg.Go(func() {
			if err := s.Store(ctx, "key", nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the deadline", err)
			}
		})
	}
	wg.Wait()
	again, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantText(t, s.Store(again, "key", nil), "another process keeps "+dir+"/.edge/guard locked (is one that uses the directory stopped?")
	if got, err := s.Load(t.Context(), "key"); err != nil || string(got) != "old" {
		t.Errorf("reading meanwhile: got %q, %v", got, err)
	}
}

func TestDirectoriesComeAndGoUnderConcurrentWriters(t *testing.T) {
	s, dir := newFile(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			key := "a/b/" + strconv.Itoa(i) + "/key"
			for range 50 {
				if err := errors.Join(s.Store(t.Context(), key, nil), s.Delete(t.Context(), key)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, err := s.List(t.Context(), "", true); err != nil || len(got) > 0 {
		t.Errorf("left: %q, %v", got, err)
	}
	if got, err := os.ReadDir(dir); err != nil || len(got) != 1 {
		t.Errorf("left on disk: %v, %v; want .edge alone", got, err)
	}
}

func TestFileTooLargeToLoadIsListedButNotServed(t *testing.T) {
	s, dir := newFile(t)
	if err := s.Store(t.Context(), "key", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "huge"), make([]byte, store.MaxObject+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), "huge"); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("got %v, want %v", err, store.ErrTooLarge)
	}
	objects, err := s.ListVersions(t.Context(), "")
	if err != nil || len(objects) != 2 || objects[0].Size != store.MaxObject+1 {
		t.Errorf("got %+v, %v", objects, err)
	}
	if err := s.Delete(t.Context(), "huge"); err != nil {
		t.Error(err)
	}
}

func TestTwoProcessesLoseNoUpdate(t *testing.T) {
	s, dir := newFile(t)
	if err := s.Store(t.Context(), "counter", []byte("0")); err != nil {
		t.Fatal(err)
	}
	cmd, _, stderr := start(t, "count", "file://"+dir)
	for range childCounts {
		if err := count(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("child: %v\n%s", err, stderr)
	}
	if got, err := s.Load(t.Context(), "counter"); err != nil || string(got) != strconv.Itoa(2*childCounts) {
		t.Errorf("got %q, %v; want %d", got, err, 2*childCounts)
	}
}

// kill ends a child that has said that it is ready.
func kill(t *testing.T, job, rawURL string, after time.Duration) {
	t.Helper()
	cmd, out, stderr := start(t, job, rawURL)
	if !bufio.NewScanner(out).Scan() {
		t.Fatalf("child: %v\n%s", cmd.Wait(), stderr)
	}
	time.Sleep(after) // anywhere in its work
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
}

func TestKilledWriterLeavesAWholeObjectAndNoLock(t *testing.T) {
	s, dir := newFile(t)
	for i := range 8 {
		kill(t, "write", "file://"+dir, time.Duration(i)*3*time.Millisecond)
		value, err := s.Load(t.Context(), "certs/a")
		if err != nil || len(value) != 64<<10 || !bytes.Equal(value, bytes.Repeat(value[:1], len(value))) {
			t.Errorf("got %d bytes, %v; want a whole value", len(value), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := s.Store(ctx, "other", nil); err != nil {
			t.Errorf("the next writer: %v", err)
		}
		cancel()
		keys, err := s.List(t.Context(), "", true)
		if err != nil || len(keys) != 3 { // certs, certs/a, other
			t.Errorf("got %q, %v; want no leftovers", keys, err)
		}
		left, err := os.ReadDir(filepath.Join(dir, ".edge"))
		if err != nil || len(left) != 1 {
			t.Errorf("private files: got %v, %v; want the guard alone", left, err)
		}
	}
}

func TestKilledHolderHasAnHeir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kill(t, "hold", "file://"+dir, 0)
	s := newStore(t, "file://"+dir, store.Options{LeaseTTL: childTTL})
	killed := time.Now()
	l, err := s.Acquire(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(killed); waited < childTTL {
		t.Errorf("taken over after %s, before the TTL of %s", waited, childTTL)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
}
