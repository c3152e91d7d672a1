package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	fileMode = 0o600
	dirMode  = 0o700

	// guardFile is locked with flock around every change, by all processes.
	// incomingFile is the one being written, under the guard: a crash leaves
	// at most this file behind and the next writer removes it.
	guardFile    = private + "/guard"
	incomingFile = private + "/incoming"
)

// fileDriver keeps objects as files below one directory, for the processes of
// one machine, or of several over a file system where flock and rename are
// atomic for all of them, as on NFS 4.
//
// Readers take no lock: a file is written aside, synced and renamed, so its
// name always leads to a whole value. Writers take the guard, compare what is
// there and rename; a process that dies gives the guard back to the kernel. A
// version is the digest of the content, so it survives copies and restores.
//
// All access goes through os.Root: no key and no link leads out of the
// directory. Symbolic links, sockets and the like are not objects.
type fileDriver struct {
	dir  string
	turn chan struct{} // the guard among goroutines, so that they need not poll

	mu   sync.Mutex
	root *tree // opened at first use
}

func openFile(u *url.URL) (driver, string, error) {
	const hint = "file:///var/lib/edge"
	switch {
	case u.User != nil || u.Host != "" && u.Host != "localhost" || u.Opaque != "" || !path.IsAbs(u.Path):
		return nil, "", &fault{message: "a file URL needs an absolute path after three slashes", hint: hint}
	case u.RawQuery != "" || u.Fragment != "":
		return nil, "", &fault{message: "a file URL takes no options", hint: hint}
	}
	dir := path.Clean(u.Path)
	safe := url.URL{Scheme: "file", Path: dir}
	return &fileDriver{dir: dir, turn: make(chan struct{}, 1)}, safe.String(), nil
}

// open returns the root directory, made when it is missing.
func (d *fileDriver) open(ctx context.Context) (*tree, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root != nil {
		return d.root, nil
	}
	root, err := makeTree(d.dir)
	if missing(err) {
		return nil, &fault{message: fmt.Sprintf("directory %s cannot be made", d.dir), hint: "is a parent of it a file?"}
	}
	if err != nil {
		return nil, d.explain(err)
	}
	d.root = root
	return root, nil
}

func (d *fileDriver) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return nil
	}
	return d.root.Close()
}

func (d *fileDriver) get(ctx context.Context, key string) ([]byte, Version, error) {
	root, err := d.open(ctx)
	if err != nil {
		return nil, "", err
	}
	value, err := read(root, key)
	switch {
	case missing(err):
		return nil, "", fs.ErrNotExist
	case err != nil:
		return nil, "", d.explain(err)
	}
	return value, digest(value), nil
}

func read(root *tree, key string) ([]byte, error) {
	if info, err := root.Lstat(key); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fs.ErrNotExist
	}
	// Without O_NONBLOCK a pipe that took the file's place would hang us.
	f, err := root.OpenFile(key, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	value, err := io.ReadAll(io.LimitReader(f, MaxObject+1))
	if err == nil && len(value) > MaxObject {
		err = ErrTooLarge
	}
	return value, err
}

func digest(value []byte) Version {
	sum := sha256.Sum256(value)
	return Version(hex.EncodeToString(sum[:16]))
}

func (d *fileDriver) put(ctx context.Context, key string, value []byte, cond condition) (Version, bool, error) {
	root, unlock, err := d.guard(ctx)
	if err != nil {
		return "", false, err
	}
	defer unlock()
	if err := holds(root, key, cond); err != nil {
		return "", false, d.explain(err)
	}
	if err := replace(root, key, value); err != nil {
		return "", true, d.explain(err)
	}
	return digest(value), false, nil
}

// holds returns ErrConflict when cond is not met.
func holds(root *tree, key string, cond condition) error {
	if cond == (condition{}) {
		return nil
	}
	current, err := read(root, key)
	switch {
	case missing(err):
		if cond.absent {
			return nil
		}
		return ErrConflict
	case err != nil:
		return err
	case cond.absent || digest(current) != cond.match:
		return ErrConflict
	}
	return nil
}

// replace makes value the content of key for good: when it returns nil, a
// power failure does not undo it.
func replace(root *tree, key string, value []byte) error {
	if err := root.Remove(incomingFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.create(incomingFile, os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = rename(root, key)
	}
	if err != nil {
		_ = root.Remove(incomingFile) // or the next writer does
	}
	return err
}

func rename(root *tree, key string) error {
	dir := path.Dir(key)
	_, err := root.Lstat(dir)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := root.mkdirAll(dir); err != nil {
		return err
	}
	if err := root.Rename(incomingFile, key); err != nil {
		return err
	}
	for {
		if err := syncDir(root, dir); err != nil {
			return err
		}
		if !fresh || dir == "." {
			return nil
		}
		dir = path.Dir(dir)
	}
}

func syncDir(root *tree, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *fileDriver) remove(ctx context.Context, key string, match Version) error {
	root, unlock, err := d.guard(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	info, err := root.Lstat(key)
	switch {
	case missing(err):
		return nil
	case err != nil:
		return d.explain(err)
	case !info.Mode().IsRegular():
		return nil
	}
	if err := holds(root, key, condition{match: match}); err != nil {
		return d.explain(err)
	}
	if err := root.Remove(key); err != nil {
		return d.explain(err)
	}
	// A directory is there only as long as there is something below it.
	dir := path.Dir(key)
	for dir != "." && root.Remove(dir) == nil {
		dir = path.Dir(dir)
	}
	return d.explain(syncDir(root, dir))
}

// guard excludes every other writer, in this process and in others, until
// unlock is called.
func (d *fileDriver) guard(ctx context.Context) (_ *tree, unlock func(), err error) {
	root, err := d.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	f, err := lockGuard(ctx, root)
	if errors.Is(err, context.DeadlineExceeded) { // never because of work, which takes milliseconds
		err = &fault{
			message: fmt.Sprintf("another process keeps %s/%s locked", d.dir, guardFile),
			hint:    "is one that uses the directory stopped? lslocks names it", cause: err,
		}
	}
	if err != nil {
		<-d.turn
		return nil, nil, d.explain(err)
	}
	return root, func() { _ = f.Close(); <-d.turn }, nil // closing unlocks
}

func lockGuard(ctx context.Context, root *tree) (*os.File, error) {
	if err := root.mkdir(private); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	for {
		f, err := root.create(guardFile, os.O_RDWR)
		if errors.Is(err, fs.ErrExist) {
			f, err = root.OpenFile(guardFile, os.O_RDWR, 0)
			if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
				continue // deleted in between
			}
		}
		if err != nil {
			return nil, err
		}
		if err := flock(ctx, f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// Somebody may have emptied the directory while we waited: then the
		// lock is on a file that nobody else will find.
		mine, err := f.Stat()
		if err == nil {
			var there fs.FileInfo
			if there, err = root.Lstat(guardFile); err == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
			return nil, cmp.Or(err, context.Cause(ctx))
		}
	}
}

// flock polls, because a blocked flock cannot be given up when ctx ends. The
// guard is held for as long as it takes to write one small file.
func flock(ctx context.Context, f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		wait := time.Millisecond + rand.N(4*time.Millisecond) //nolint:gosec // jitter, nothing depends on it being unpredictable
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *fileDriver) stat(ctx context.Context, key string) (Object, bool, error) {
	root, err := d.open(ctx)
	if err != nil {
		return Object{}, false, err
	}
	info, err := root.Lstat(key)
	switch {
	case missing(err):
		return Object{}, false, fs.ErrNotExist
	case err != nil:
		return Object{}, false, d.explain(err)
	case info.Mode().IsRegular():
		return Object{Key: key, Size: info.Size(), Modified: info.ModTime()}, true, nil
	case info.IsDir():
		if hasObject(ctx, root, key) {
			return Object{Key: key}, false, nil
		}
	}
	return Object{}, false, fs.ErrNotExist
}

// list reads every file for its version, in one page: a directory that is
// shared by the processes of one machine is small enough for that.
func (d *fileDriver) list(ctx context.Context, dir, _ string) (page, error) {
	root, err := d.open(ctx)
	if err != nil {
		return page{}, err
	}
	var p page
	err = walkDir(ctx, root, dir, func(e fs.DirEntry, key string) error {
		if len(p.objects) > maxList {
			return nil // Store refuses the page
		}
		o, err := describe(root, e, key)
		if err == nil {
			p.objects = append(p.objects, o)
		}
		return err
	})
	if err != nil && !missing(err) {
		return page{}, d.explain(err)
	}
	// A bucket sorts whole keys, where "a-b" is before "a/b".
	slices.SortFunc(p.objects, func(a, b Object) int { return strings.Compare(a.Key, b.Key) })
	return p, nil
}

// hasObject reports whether there is anything below a directory; one that a
// crash left empty does not exist.
func hasObject(ctx context.Context, root *tree, dir string) bool {
	found := errors.New("found")
	return errors.Is(walkDir(ctx, root, dir, func(fs.DirEntry, string) error { return found }), found)
}

// describe returns what ListVersions says about a file.
func describe(root *tree, e fs.DirEntry, key string) (Object, error) {
	info, err := e.Info()
	if err != nil {
		return Object{}, err
	}
	o := Object{Key: key, Size: info.Size(), Modified: info.ModTime()}
	value, err := read(root, key)
	switch {
	case errors.Is(err, ErrTooLarge):
		o.Version = "too-large" // nothing that Load or Swap would accept
	case err != nil:
		return Object{}, err
	default:
		o.Version, o.Size = digest(value), int64(len(value))
	}
	return o, nil
}

// walkDir calls visit for every object below dir and stops at its first error.
// What vanishes meanwhile is left out, and so is what no key can name.
func walkDir(ctx context.Context, root *tree, dir string, visit func(e fs.DirEntry, key string) error) error {
	entries, err := readDir(root, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		key := path.Join(dir, e.Name())
		err = nil
		switch {
		case checkKey(key) != nil:
		case e.IsDir():
			err = walkDir(ctx, root, key, visit)
		case e.Type().IsRegular():
			err = visit(e, key)
		}
		if err != nil && !missing(err) {
			return err
		}
	}
	return nil
}

func readDir(root *tree, dir string) ([]fs.DirEntry, error) {
	dir = cmp.Or(dir, ".")
	if info, err := root.Lstat(dir); err != nil {
		return nil, err
	} else if !info.IsDir() { // nor do links to directories lead anywhere
		return nil, fs.ErrNotExist
	}
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	entries, err := f.ReadDir(maxList + 1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return entries, err
}

// missing reports whether err says that there is nothing of that name, be it
// because a parent is a file.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// explain turns an error of the operating system into one that says what to
// do. Readers look for missing errors before.
func (d *fileDriver) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return &fault{
			message: fmt.Sprintf("no permission in directory %s", d.dir),
			hint:    fmt.Sprintf("it must belong to user %d and have mode 0700", os.Geteuid()), cause: err,
		}
	case errors.Is(err, syscall.EROFS):
		return &fault{message: fmt.Sprintf("directory %s is read-only", d.dir), hint: "mount it writable or use another storage URL", cause: err}
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return &fault{message: fmt.Sprintf("no space left in directory %s", d.dir), hint: "free some", cause: err}
	case errors.Is(err, syscall.EISDIR) || errors.Is(err, fs.ErrExist):
		return &fault{message: "the key is a directory", hint: "an object and a directory cannot have one name", cause: err}
	case errors.Is(err, syscall.ENOTDIR):
		return &fault{message: "a parent of the key is an object", hint: "an object and a directory cannot have one name", cause: err}
	case errors.Is(err, fs.ErrNotExist):
		// Not the cause: to callers fs.ErrNotExist is an answer about a key.
		return &fault{message: fmt.Sprintf("directory %s was removed while in use", d.dir), hint: "restart edge"}
	}
	return err
}
