package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"edge/tlsmgr/store"
)

// Bounds of a Snapshot.
const (
	maxSnapshot   = 1 << 17 // files in its directory
	snapshotReads = 4096    // names of a directory at a time
	keepTemporary = 10 * time.Minute
)

// Names in the directory of a Snapshot: one file a certificate, named like its
// object, and what is being written.
const (
	fileSuffix      = ".json"
	temporaryPrefix = ".tmp-"
)

// Snapshot is a copy of certificates on a local disk, sealed as in the storage,
// that edge starts from when the storage is down. Several processes may share
// one. It may be used concurrently. Close it.
type Snapshot struct {
	Logger *slog.Logger // set before use; nil is slog.Default()

	dir  string
	root *os.Root // nothing outside dir can be reached through it
	keys *Keyring
}

// OpenSnapshot opens the snapshot in dir and makes the directory. It needs keys:
// private keys do not stand on a local disk as they are.
func OpenSnapshot(dir string, keys *Keyring) (*Snapshot, error) {
	if keys == nil {
		return nil, errors.New("snapshot: no keys (set storage.encrypt.keys, or remove storage.snapshot)")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("snapshot: %w (edge must be able to write there)", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	// A volume that Kubernetes mounts belongs to root; then this fails, and the
	// files are sealed and readable by us alone anyway.
	_ = root.Chmod(".", 0o700)
	return &Snapshot{dir: dir, root: root, keys: keys}, nil
}

// Close ends the use of the directory.
func (s *Snapshot) Close() error { return s.root.Close() }

// Put keeps raw, the content of the object of the certificate called id, sealed
// or plain; on disk it is always sealed. It replaces what is there in one step.
func (s *Snapshot) Put(id string, raw []byte) error {
	key := CertificateKey(id)
	plain, sealedBy, err := s.keys.unwrap(key, raw)
	if err == nil && s.keys.stale(sealedBy) {
		raw, err = s.keys.Seal(key, plain)
	}
	if err != nil {
		return fmt.Errorf("snapshot of %q: %w", id, err)
	}
	if err := s.write(fileName(id), raw); err != nil {
		return fmt.Errorf("snapshot of %q in %s: %w", id, s.dir, err)
	}
	return nil
}

// PutCertificate is Put of c.
func (s *Snapshot) PutCertificate(c *Certificate) error {
	raw, err := encode(s.keys, c.ID, c)
	if err != nil {
		return err
	}
	return s.Put(c.ID, raw)
}

func fileName(id string) string { return path.Base(CertificateKey(id)) }

// fileID is the inverse of fileName.
func fileID(name string) (string, bool) {
	id, err := url.PathUnescape(strings.TrimSuffix(name, fileSuffix))
	return id, err == nil && fileName(id) == name
}

// write replaces a file atomically. A crash leaves the old one or the new one.
func (s *Snapshot) write(name string, content []byte) (err error) {
	temporary := temporaryPrefix + rand.Text()
	f, err := s.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = s.root.Remove(temporary)
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.root.Rename(temporary, name)
}

// Certificates returns all certificates that can be read, by id. What cannot be
// opened is skipped with a warning: it is a copy, and a later Put replaces it.
func (s *Snapshot) Certificates(ctx context.Context) (map[string]*Certificate, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, name := range names {
		if id, ok := fileID(name); ok {
			entries = append(entries, entry{Object: store.Object{Key: name}, kind: Certificates, id: id})
		}
	}
	var mu sync.Mutex
	found := make(map[string]*Certificate, len(entries))
	err = each(ctx, entries, nil, func(ctx context.Context, e entry) error {
		c, err := s.read(e)
		if err != nil {
			s.logger().LogAttrs(ctx, slog.LevelWarn, "certificate in the snapshot cannot be used",
				slog.String("certificate", e.id), slog.String("error", oneLine(err)))
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		found[e.id] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot in %s: %w", s.dir, err)
	}
	return found, nil
}

func (s *Snapshot) read(e entry) (*Certificate, error) {
	// Without O_NONBLOCK a pipe in a file's place would keep edge from starting.
	f, err := s.root.OpenFile(e.Key, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > store.MaxObject {
		return nil, errors.New("not a regular file of a certificate's size")
	}
	raw, err := io.ReadAll(io.LimitReader(f, store.MaxObject))
	if err != nil {
		return nil, err
	}
	plain, err := s.keys.Open(CertificateKey(e.id), raw)
	if err != nil {
		return nil, err
	}
	if _, err := readHead(plain); err != nil {
		return nil, err
	}
	return decode[Certificate](e.id, plain)
}

// Keep deletes all certificates but those called ids, and what writers that
// crashed left behind.
func (s *Snapshot) Keep(ids []string) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	wanted := make(map[string]bool, len(ids))
	for _, id := range ids {
		wanted[fileName(id)] = true
	}
	var errs []error
	for _, name := range names {
		_, ours := fileID(name)
		if ours && !wanted[name] || !ours && s.abandoned(name) {
			if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		if len(errs) == maxErrors {
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("snapshot in %s: %w", s.dir, err)
	}
	return nil
}

// abandoned reports whether name is a temporary file that nobody writes any more.
func (s *Snapshot) abandoned(name string) bool {
	if !strings.HasPrefix(name, temporaryPrefix) {
		return false
	}
	info, err := s.root.Lstat(name)
	return err == nil && time.Since(info.ModTime()) > keepTemporary
}

// names lists the directory.
func (s *Snapshot) names() (names []string, err error) {
	d, err := s.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("snapshot in %s: %w", s.dir, err)
	}
	defer func() { _ = d.Close() }()
	for {
		some, err := d.Readdirnames(snapshotReads)
		names = append(names, some...)
		switch {
		case errors.Is(err, io.EOF):
			return names, nil
		case err != nil:
			return nil, fmt.Errorf("snapshot in %s: %w", s.dir, err)
		case len(names) > maxSnapshot:
			return nil, fmt.Errorf("snapshot in %s: more than %d files (give it a directory of its own)", s.dir, maxSnapshot)
		}
	}
}

func (s *Snapshot) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}
