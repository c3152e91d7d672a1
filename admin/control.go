package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	socketMode     = 0o660 // owner and group; systemd's Group= says who that is
	requestTimeout = 5 * time.Second
	reloadTimeout  = 2 * time.Minute // binding, reading key files; nothing here waits for a CA
	lockPoll       = 5 * time.Millisecond
	maxHeader      = 8 << 10
)

// Control answers on the control socket.
type Control struct {
	options Options
	server  *http.Server
}

// NewControl returns a Control that does nothing until Serve.
func NewControl(o Options) *Control {
	c := &Control{options: o}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", c.status)
	mux.HandleFunc("POST /v1/reload", c.reload)
	c.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: requestTimeout, // no ReadTimeout: it would cancel a reload that takes longer
		WriteTimeout:      reloadTimeout + requestTimeout,
		MaxHeaderBytes:    maxHeader,
	}
	return c
}

// Listen binds the control socket with mode 0660. A socket that a dead process
// left behind is replaced; one that answers belongs to another edge and is an
// error. The directory is made if its parent exists. Of several processes that
// start at once, one gets the socket.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, unusable(path, err)
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return nil, unusable(path, err)
	}
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, unusable(path, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(unusable(path, err), ln.Close())
	}
	return ln, nil
}

func unusable(path string, err error) error {
	return fmt.Errorf("control socket %s: %w (set control.socket to a path that edge may write)", path, cause(err))
}

// lock holds dir until unlock, so that nobody else looks for a stale socket
// between the look and the bind of this process. It polls, because a blocked
// flock outlives ctx.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir) //nolint:gosec // the operator names it
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*requestTimeout)
	defer cancel()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) { // a file system without locks is no reason to stop
			return func() { _ = f.Close() }, nil // which unlocks
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
	}
}

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return unusable(path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("control socket %s: there is a file in its place (remove it, or set control.socket)", path)
	}
	d := net.Dialer{Timeout: requestTimeout}
	if conn, err := d.DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close() // only asked whether somebody answers
		return fmt.Errorf("control socket %s: another edge answers there (stop it, or set control.socket)", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // its owner may just have ended
		return unusable(path, err)
	}
	return nil
}

// Serve answers until Close. It returns nil after Close.
func (c *Control) Serve(ln net.Listener) error {
	if err := c.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// Close stops Serve, removes the socket and cuts requests in progress.
func (c *Control) Close() error { return c.server.Close() }

func (c *Control) status(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, c.options.Status())
}

func (c *Control) reload(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), reloadTimeout)
	defer cancel()
	result := c.options.Reload(ctx)
	code := http.StatusOK
	if len(result.Problems) > 0 {
		code = http.StatusUnprocessableEntity
	}
	reply(w, code, result)
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}
