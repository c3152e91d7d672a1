package store

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/sync/errgroup"
)

var (
	_ certmagic.Storage          = (*Store)(nil)
	_ certmagic.TryLocker        = (*Store)(nil)
	_ certmagic.LockLeaseRenewer = (*Store)(nil)
)

// Store puts value at key, whatever is there.
func (s *Store) Store(ctx context.Context, key string, value []byte) error {
	if err := s.checkWrite(key, value); err != nil {
		return fmt.Errorf("store %q: %w", key, err)
	}
	if _, _, err := s.objects.put(ctx, key, value, condition{}); err != nil {
		return fmt.Errorf("store %q: %w", key, err)
	}
	return nil
}

// Load returns the value at key, or an error that is fs.ErrNotExist.
func (s *Store) Load(ctx context.Context, key string) ([]byte, error) {
	value, _, err := s.LoadVersion(ctx, key)
	return value, err
}

// Delete removes the object at key and, when key is a directory, everything
// below it. A key that is not there is no error.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := s.check(key); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	if err := s.objects.remove(ctx, key, ""); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	below, err := s.walk(ctx, key)
	if err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxDeletes)
	for _, o := range below {
		g.Go(func() error { return s.objects.remove(gctx, o.Key, "") })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return nil
}

// Exists reports whether key is an object or a directory. Any error is false,
// since the interface has no room for one; Stat tells more.
func (s *Store) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// List returns the keys of objects and directories below dir in order: those
// directly below, or with recursive all of them; either costs a listing of all.
// "" is the root. A dir that does not exist is fs.ErrNotExist, one that is an
// object has nothing below.
func (s *Store) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	if err := s.checkDir(dir); err != nil {
		return nil, fmt.Errorf("list %q: %w", dir, err)
	}
	objects, err := s.walk(ctx, dir)
	if err == nil && len(objects) == 0 && dir != "" {
		_, _, err = s.objects.stat(ctx, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", dir, err)
	}
	above := cmp.Or(dir, ".") // as path.Dir says it
	keys := map[string]struct{}{}
	for _, o := range objects {
		// certmagic's own file storage lists the directories too.
		for key := o.Key; key != above; key = path.Dir(key) {
			if recursive || path.Dir(key) == above {
				keys[key] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(keys)), nil
}

// Stat describes the object or directory at key, or returns fs.ErrNotExist.
func (s *Store) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	if err := s.check(key); err != nil {
		return certmagic.KeyInfo{}, fmt.Errorf("stat %q: %w", key, err)
	}
	o, terminal, err := s.objects.stat(ctx, key)
	if err != nil {
		return certmagic.KeyInfo{}, fmt.Errorf("stat %q: %w", key, err)
	}
	return certmagic.KeyInfo{Key: key, Modified: o.Modified, Size: o.Size, IsTerminal: terminal}, nil
}

// Lock acquires the lease called name and keeps it until Unlock. It blocks
// until the lease is free or ctx ends.
func (s *Store) Lock(ctx context.Context, name string) error {
	l, err := s.Acquire(ctx, name)
	if err != nil {
		return err
	}
	s.keepLock(name, l)
	return nil
}

// TryLock is Lock that reports false instead of waiting for another holder.
func (s *Store) TryLock(ctx context.Context, name string) (bool, error) {
	l, ok, err := s.TryAcquire(ctx, name)
	if err != nil || !ok {
		return false, err
	}
	s.keepLock(name, l)
	return true, nil
}

// Unlock releases what Lock or TryLock acquired.
func (s *Store) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	l := s.locked[name]
	delete(s.locked, name)
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("unlock %q: %w", name, errNotHeld)
	}
	return l.Release(ctx)
}

// RenewLockLease writes a heartbeat now and fails when the lease is lost. It
// is a check before expensive work; between calls the lease renews itself, so
// the duration that certmagic asks for is not needed.
func (s *Store) RenewLockLease(ctx context.Context, name string, _ time.Duration) error {
	s.mu.Lock()
	l := s.locked[name]
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("renew lease %q: %w", name, errNotHeld)
	}
	return l.Renew(ctx)
}

func (s *Store) keepLock(name string, l *Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locked[name] = l
}

var errNotHeld = &fault{message: "lease is not held by this process", cause: fs.ErrInvalid}
