package tlsmgr

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"edge/config"

	"github.com/fsnotify/fsnotify"
)

const (
	maxCertificateFile = 1 << 20 // bytes; a chain is some kilobytes
	filePoll           = 30 * time.Second
	fileSettle         = 200 * time.Millisecond // writers replace two files, so wait for the second
	filePatience       = 2 * time.Second        // before a bad pair is worth a warning
)

// FileNames reads the file certificates of cfg and returns the names in each,
// for Explain. The error joins every pair that cannot be used.
func FileNames(cfg *config.Config) (map[string][]string, error) {
	pairs, err := readPairs(cfg)
	return namesIn(pairs), err
}

func namesIn(files map[string]*certificate) map[string][]string {
	names := map[string][]string{}
	for id, c := range files {
		names[id] = c.names
	}
	return names
}

// readPairs reads every file certificate of cfg; the error joins all problems.
func readPairs(cfg *config.Config) (map[string]*certificate, error) {
	out := map[string]*certificate{}
	var problems []error
	for _, id := range slices.Sorted(maps.Keys(cfg.Certificates)) {
		f := cfg.Certificates[id].File
		if f == nil {
			continue
		}
		c, err := readPair(id, f)
		if err != nil {
			problems = append(problems, fmt.Errorf("certificates.%s: %w", id, err))
			continue
		}
		out[id] = c
	}
	return out, errors.Join(problems...)
}

// readPair reads a chain and its key and checks that they belong together.
func readPair(id string, f *config.CertificateFile) (*certificate, error) {
	chain, err := readBounded(f.Certificate)
	if err != nil {
		return nil, err
	}
	key, err := f.PrivateKey.Load()
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(chain, []byte(key))
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w (want a PEM chain, leaf first, and its PEM private key)", f.Certificate, f.PrivateKey, err)
	}
	c, err := newCertificate(id, pair)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (clients look at subject alternative names only)", f.Certificate, err)
	}
	c.file = true
	c.digest = sha256.Sum256(slices.Concat(chain, []byte{0}, []byte(key)))
	return c, nil
}

func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path) //nolint:gosec // the operator's configuration names it
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (check the path, or remove the entry)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (edge must be able to read it)", err)
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxCertificateFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w (want a file)", err)
	}
	if len(data) > maxCertificateFile {
		return nil, fmt.Errorf("%s is larger than %d bytes (want a PEM chain)", path, maxCertificateFile)
	}
	return data, nil
}

// watchFiles reloads file certificates when their directories change, until ctx
// ends. It watches directories, because files are replaced by rename and
// Kubernetes swaps a symbolic link beside them (..data), and it looks every
// 30 s anyway, because network file systems send no events.
func (m *Manager) watchFiles(ctx context.Context) {
	for ctx.Err() == nil {
		m.watchState(ctx, m.state.Load())
	}
}

// watchState watches the files of one state, until another is committed.
func (m *Manager) watchState(ctx context.Context, st *state) {
	events, errs, stop := m.watchDirs(ctx, fileDirs(st.cfg))
	defer stop()
	poll := time.NewTicker(filePoll)
	defer poll.Stop()
	settle, pending := time.NewTimer(0), true // at once: something may have changed before the watch
	defer settle.Stop()
	changed := func() {
		if !pending { // else a directory with much traffic would put the look off for ever
			settle.Reset(fileSettle)
			pending = true
		}
	}
	bad := map[string]complaint{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-st.replaced:
			return
		case <-events:
			changed()
		case <-errs: //nolint:errcheck // whatever it is, events were lost
			changed()
		case <-poll.C:
			changed()
		case <-settle.C:
			pending = false
			if m.reloadFiles(ctx, st, bad) {
				settle.Reset(filePatience)
			}
		}
	}
}

// fileDirs are the directories that hold cfg's file certificates and client CAs.
func fileDirs(cfg *config.Config) []string {
	var dirs []string
	for _, c := range cfg.Certificates {
		if c.File == nil {
			continue
		}
		dirs = append(dirs, filepath.Dir(c.File.Certificate))
		if path, ok := strings.CutPrefix(c.File.PrivateKey.Ref, "file:"); ok {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	dirs = append(dirs, clientCADirs(cfg)...)
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// watchDirs gives an event for each change in dirs. Where the system cannot
// watch, the poll has to do.
func (m *Manager) watchDirs(ctx context.Context, dirs []string) (events <-chan fsnotify.Event, errs <-chan error, stop func()) {
	if len(dirs) == 0 {
		return nil, nil, func() {}
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "cannot watch certificate files, looking at them periodically",
			slog.Duration("every", filePoll), slog.Any("error", err))
		return nil, nil, func() {}
	}
	for _, dir := range dirs {
		if err := w.Add(dir); err != nil {
			m.log.LogAttrs(ctx, slog.LevelWarn, "cannot watch certificate directory, looking at it periodically",
				slog.String("directory", dir), slog.Duration("every", filePoll), slog.Any("error", err))
		}
	}
	return w.Events, w.Errors, func() { _ = w.Close() }
}

// A complaint is a bad pair: said once per text, and only when it stayed bad.
type complaint struct {
	text string
	said bool
}

// reloadFiles reads the pairs of st again and serves what changed. A bad pair
// changes nothing: the last good one stays. It reports whether a pair is newly
// bad, and worth a second look before a warning.
func (m *Manager) reloadFiles(ctx context.Context, st *state, bad map[string]complaint) (again bool) {
	for _, id := range slices.Sorted(maps.Keys(st.cfg.Certificates)) {
		f := st.cfg.Certificates[id].File
		if f == nil {
			continue
		}
		c, err := readPair(id, f)
		if err == nil {
			delete(bad, id)
			m.swapFile(ctx, st, c)
			continue
		}
		switch was := bad[id]; {
		case was.text != err.Error():
			bad[id] = complaint{text: err.Error()}
			again = true
		case !was.said:
			bad[id] = complaint{text: was.text, said: true}
			m.log.LogAttrs(ctx, slog.LevelWarn, "certificate files are not usable, the last good pair stays",
				slog.String("certificate", id), slog.Any("error", err))
		}
	}
	return m.reloadClientCAs(ctx, st, bad) || again
}

// swapFile serves c unless it is what is served already or st is not in force any more.
func (m *Manager) swapFile(ctx context.Context, st *state, c *certificate) {
	m.mu.Lock()
	old := m.files[c.id]
	stale := m.state.Load() != st || old != nil && old.digest == c.digest
	if !stale {
		m.files[c.id] = c
		m.rebuildLocked(time.Now())
	}
	m.mu.Unlock()
	if !stale {
		m.emit(ctx, c.id, StepLoaded, "file, valid until "+c.leaf().NotAfter.UTC().Format(time.RFC3339))
	}
}
