package vault_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

func snapshot(tb testing.TB, dir string, keys ...string) (*vault.Snapshot, *bytes.Buffer) {
	tb.Helper()
	s, err := vault.OpenSnapshot(dir, ring(tb, keys...))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	var log bytes.Buffer
	s.Logger = slog.New(slog.NewTextHandler(&log, nil))
	return s, &log
}

func TestSnapshotBringsCertificatesBackWithoutTheStorage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	s, _ := snapshot(t, dir, "a")
	v := open(t, "file://"+t.TempDir(), "a")
	wild, plain := certificate(t, "*.a b/ä", "*.a.test"), certificate(t, "plain", "p.test")
	save(t, v, wild.ID, wild)
	sealedRaw := raw(t, v, vault.CertificateKey(wild.ID))
	if err := s.Put(wild.ID, sealedRaw); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("example.com", testdata(t, "certificate.json")); err != nil { // plain in the storage
		t.Fatal(err)
	}
	if err := s.PutCertificate(plain); err != nil {
		t.Fatal(err)
	}
	again, log := snapshot(t, dir, "b", "a") // by the next process
	found, err := again.Certificates(t.Context())
	if err != nil || log.Len() > 0 {
		t.Fatalf("%v, %s", err, log)
	}
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, []string{"*.a b/ä", "example.com", "plain"}) {
		t.Fatalf("got %q", got)
	}
	if !reflect.DeepEqual(found[wild.ID], wild) || !reflect.DeepEqual(found["plain"], plain) {
		t.Error("a certificate differs")
	}
	if onDisk, err := os.ReadFile(filepath.Join(dir, "%2A.a%20b%2F%C3%A4.json")); err != nil || !bytes.Equal(onDisk, sealedRaw) {
		t.Errorf("what was sealed already is sealed again: %v", err)
	}
}

func TestSnapshotShowsNothingToOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	if err := os.Mkdir(dir, 0o755); err != nil { // wider than it should be
		t.Fatal(err)
	}
	s, _ := snapshot(t, dir, "a")
	if err := s.Put("example.com", testdata(t, "certificate.json")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "example.com.json")
	for path, want := range map[string]os.FileMode{dir: 0o700, file: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if content, err := os.ReadFile(file); err != nil || bytes.Contains(content, []byte("PRIVATE")) || !bytes.Contains(content, []byte(`"sealed"`)) {
		t.Errorf("%v, %.80s", err, content)
	}
}

func TestSnapshotIsRefused(t *testing.T) {
	if _, err := vault.OpenSnapshot(t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "set storage.encrypt.keys, or remove storage.snapshot") {
		t.Errorf("without keys: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.OpenSnapshot(file, ring(t, "a")); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file: %v", err)
	}
}

func TestSnapshotSkipsWhatItCannotUseWithAWarning(t *testing.T) {
	dir := t.TempDir()
	s, log := snapshot(t, dir, "a")
	good := certificate(t, "good", "a.test")
	if err := s.PutCertificate(good); err != nil {
		t.Fatal(err)
	}
	sealedGood, err := os.ReadFile(filepath.Join(dir, "good.json"))
	if err != nil {
		t.Fatal(err)
	}
	other, _ := snapshot(t, dir, "other")
	if err := other.PutCertificate(certificate(t, "otherkey", "a.test")); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside.json")
	for path, content := range map[string][]byte{
		"torn.json": sealedGood[:100], "moved.json": sealedGood, "plain.json": testdata(t, "certificate.json"), "empty.json": nil,
		"large.json": bytes.Repeat([]byte(" "), store.MaxObject+1), "note.txt": []byte("ours is not the only one"), ".tmp-x": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, path), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outside, sealedGood, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	found, err := s.Certificates(t.Context())
	if err != nil || len(found) != 1 || !reflect.DeepEqual(found["good"], good) {
		t.Errorf("got %v, %v", slices.Collect(maps.Keys(found)), err)
	}
	for _, id := range []string{"torn", "moved", "plain", "empty", "large", "link", "dir", "otherkey"} {
		if !strings.Contains(log.String(), "certificate="+id) {
			t.Errorf("no warning of %s in\n%s", id, log)
		}
	}
	if strings.Contains(log.String(), "note") || strings.Contains(log.String(), "tmp") {
		t.Errorf("warns of foreign files:\n%s", log)
	}
}

func TestPutRefusesWhatIsNoCertificateOfOurs(t *testing.T) {
	dir := t.TempDir()
	s, _ := snapshot(t, dir, "a")
	for name, content := range map[string][]byte{
		"torn": []byte("{"), "newer": []byte(`{"format":2}`), "moved": testdata(t, "sealed-by-a.json"), "locked": testdata(t, "sealed-by-b.json"),
	} {
		if err := s.Put(name, content); err == nil {
			t.Errorf("%s was kept", name)
		}
	}
	if err := s.Put(strings.Repeat("n", 300), testdata(t, "certificate.json")); err == nil {
		t.Error("a name that is too long was kept")
	}
	if err := s.PutCertificate(&vault.Certificate{ID: strings.Repeat("n", 300)}); err == nil {
		t.Error("a name that is too long was kept")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestKeepRemovesTheOthersAndWhatCrashedWritersLeft(t *testing.T) {
	dir := t.TempDir()
	s, _ := snapshot(t, dir, "a")
	for i := range 5 {
		if err := s.PutCertificate(certificate(t, fmt.Sprint(i), "a.test")); err != nil {
			t.Fatal(err)
		}
	}
	tricky := certificate(t, ".tmp-like", "a.test")
	if err := s.PutCertificate(tricky); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".tmp-old", ".tmp-new", "note.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-time.Hour)
	for _, name := range []string{".tmp-old", ".tmp-like.json", "note.txt"} {
		if err := os.Chtimes(filepath.Join(dir, name), past, past); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Keep([]string{"1", "3", ".tmp-like", "not there"}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{".tmp-like.json", ".tmp-new", "1.json", "3.json", "note.txt"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

// A reader must find the old certificate or the new one, whenever it looks.
func TestPutIsAtomicForReaders(t *testing.T) {
	dir := t.TempDir()
	s, log := snapshot(t, dir, "a")
	c := certificate(t, "a", "a.test")
	if err := s.PutCertificate(c); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 100 {
			if err := s.PutCertificate(c); err != nil {
				t.Error(err)
			}
		}
	})
	for range 100 {
		if found, err := s.Certificates(t.Context()); err != nil || len(found) != 1 {
			t.Errorf("%d, %v, %s", len(found), err, log)
		}
	}
	wg.Wait()
}

func TestPipeInTheSnapshotKeepsNobodyFromStarting(t *testing.T) {
	dir := t.TempDir()
	s, log := snapshot(t, dir, "a")
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := s.Certificates(t.Context()); err != nil || len(found) > 0 || !strings.Contains(log.String(), "not a regular file") {
		t.Errorf("got %v, %v, log %s", found, err, log)
	}
}
