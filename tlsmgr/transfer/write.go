package transfer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"edge/tlsmgr/store"
)

// Write puts files below dir, which is made when it is missing. Each replaces
// what was there at once and for good; what holds a private key can be read by
// its owner only. Nothing is written outside dir.
func Write(dir string, files []File) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, f := range files {
		if err := write(root, f); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Join(dir, filepath.FromSlash(f.Path)), err)
		}
	}
	return nil
}

func write(root *os.Root, f File) (err error) {
	if err := root.MkdirAll(path.Dir(f.Path), 0o700); err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if strings.HasSuffix(f.Path, ".crt") || strings.HasSuffix(f.Path, ".json") {
		mode = 0o644
	}
	aside := path.Join(path.Dir(f.Path), ".edge-"+rand.Text())
	out, err := root.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = out.Write(f.Data)
	if err = errors.Join(err, out.Sync(), out.Close()); err == nil {
		err = root.Rename(aside, f.Path)
	}
	if err != nil {
		_ = root.Remove(aside)
	}
	return err
}

// Upload puts files into a storage, replacing what is there: certmagic's layout
// into Caddy's bucket.
func Upload(ctx context.Context, to *store.Store, files []File) error {
	for _, f := range files {
		if err := to.Store(ctx, f.Path, f.Data); err != nil {
			return err
		}
	}
	return nil
}
