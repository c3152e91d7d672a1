package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// tree is a directory and who new entries of it belong to. That is the user of
// the process; but when root works in the directory of somebody else, as with
// edge's commands beside a service with a user of its own, it is the owner of
// the directory. Else the service could not read what root wrote.
//
// Only what this process has made is given away, by its descriptor: a name
// might be a link by then to something that root must keep.
type tree struct {
	*os.Root
	foreign bool // the directory is not ours, and we may give away
	uid     int
	gid     int
}

func openTree(dir string) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	t := &tree{Root: root}
	if os.Geteuid() != 0 {
		return t, nil
	}
	info, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 {
		t.foreign, t.uid, t.gid = true, int(s.Uid), int(s.Gid)
	}
	return t, nil
}

// makeTree opens dir, made when it is missing. What is made belongs to the
// owner of the directory that was there.
func makeTree(dir string) (*tree, error) {
	there := dir
	info, err := os.Stat(there)
	for errors.Is(err, fs.ErrNotExist) && there != filepath.Dir(there) {
		there = filepath.Dir(there)
		info, err = os.Stat(there)
	}
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, syscall.ENOTDIR
	}
	if there != dir {
		t, err := openTree(there)
		if err != nil {
			return nil, err
		}
		rest, err := filepath.Rel(there, dir)
		if err == nil {
			err = t.mkdirAll(filepath.ToSlash(rest))
		}
		if err := errors.Join(err, t.Close()); err != nil {
			return nil, err
		}
	}
	return openTree(dir)
}

// create makes a file that is not there yet.
func (t *tree) create(name string, flags int) (*os.File, error) {
	f, err := t.OpenFile(name, flags|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	if err := t.give(f); err != nil {
		return nil, errors.Join(err, f.Close(), t.Remove(name))
	}
	return f, nil
}

// mkdir makes a directory, whose parents are there.
func (t *tree) mkdir(name string) error {
	if err := t.Mkdir(name, dirMode); err != nil || !t.foreign {
		return err
	}
	f, err := t.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(t.give(f), f.Close())
}

// mkdirAll makes a directory and its parents. A parent that is a file is
// ENOTDIR.
func (t *tree) mkdirAll(dir string) error {
	for i := range len(dir) + 1 {
		if i < len(dir) && dir[i] != '/' || dir[:i] == "." {
			continue
		}
		err := t.mkdir(dir[:i])
		if errors.Is(err, fs.ErrExist) {
			var info fs.FileInfo
			if info, err = t.Lstat(dir[:i]); err == nil && !info.IsDir() && info.Mode().Type() != fs.ModeSymlink {
				err = syscall.ENOTDIR
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) give(f *os.File) error {
	if !t.foreign {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) == t.uid && int(s.Gid) == t.gid {
		return nil
	}
	return f.Chown(t.uid, t.gid)
}
