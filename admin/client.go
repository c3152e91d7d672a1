package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
)

// maxReply bounds what a client reads: 10,000 certificates are about 4 MiB.
const maxReply = 64 << 20

// ErrUnreachable says that nobody answers on the control socket.
var ErrUnreachable = errors.New("control socket unreachable")

// Client talks to a running edge. It may be used concurrently.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client for the control socket at path. It connects at
// each call.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := net.Dialer{Timeout: requestTimeout}
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: &http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
		Timeout:   reloadTimeout + requestTimeout,
	}}
}

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/v1/status", &s)
	return s, err
}

// Reload asks edge to read its configuration again. A refused reload is no
// error: its Problems say why.
func (c *Client) Reload(ctx context.Context) (Reloaded, error) {
	var r Reloaded
	err := c.call(ctx, http.MethodPost, "/v1/reload", &r)
	return r, err
}

func (c *Client) call(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %s: %w (%s)", ErrUnreachable, c.path, cause(err), hint(err))
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnprocessableEntity {
		return fmt.Errorf("control socket %s: %s (is it an edge of another version?)", c.path, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(into); err != nil {
		return fmt.Errorf("control socket %s: %w", c.path, err)
	}
	return nil
}

// cause strips the URL and the path around an error of the socket.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	if op, ok := errors.AsType[*fs.PathError](err); ok {
		return op.Err
	}
	return err
}

func hint(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "run as the user or group of edge"
	}
	return "is edge running? --socket names another one"
}
