package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"edge/config"
	"edge/tlsmgr"
)

// Bounds of the telemetry endpoint. It may be bound to any address.
const (
	maxTelemetryConns = 64
	replyTimeout      = 30 * time.Second
	idleTimeout       = 2 * time.Minute // Prometheus asks every minute or more often and keeps its connection
	retireTimeout     = 5 * time.Second // for replies under way when the address changes
)

// Telemetry is the read-only HTTP endpoint: /livez, /readyz, /metrics and
// /v1/status. It listens where telemetry.address says, and nowhere without it.
// It changes nothing and shows no secret, but names, addresses and errors of the
// configuration: it belongs on a network that only operators reach.
type Telemetry struct {
	options TelemetryOptions
	log     *slog.Logger
	metrics *metrics

	work sync.WaitGroup

	mu     sync.Mutex
	door   *door // nil while there is none
	closed bool
}

// TelemetryOptions are what a Telemetry needs of the program. The functions may
// be called concurrently.
type TelemetryOptions struct {
	Status  func() Status
	Ready   func() Readiness
	Version string       // of edge
	Logger  *slog.Logger // nil is slog.Default()
}

// Readiness is whether edge takes requests, and if not, why: one line each.
type Readiness struct {
	Ready   bool
	Reasons []string
}

// door is one bound address. It outlives configurations that keep it.
type door struct {
	address string // as configured
	ln      net.Listener
	server  *http.Server
}

// NewTelemetry returns a Telemetry that listens nowhere until a change is
// committed.
func NewTelemetry(o TelemetryOptions) *Telemetry {
	t := &Telemetry{options: o, log: o.Logger}
	if t.log == nil {
		t.log = slog.Default()
	}
	t.metrics = newMetrics(o, t.log)
	return t
}

// Event counts a step of a certificate. It never blocks.
func (t *Telemetry) Event(e tlsmgr.Event) { t.metrics.event(e) }

// Address is where it listens; "" is nowhere.
func (t *Telemetry) Address() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.door == nil {
		return ""
	}
	return t.door.ln.Addr().String()
}

// TelemetryChange is another address, bound and ready. Exactly one of Commit and
// Abort must be called.
type TelemetryChange struct {
	telemetry *Telemetry
	next      *door // nil is no endpoint
	bound     bool  // next is new
}

// Prepare binds the address of cfg, unless it is bound already: then the listener
// stays, and no scrape is refused. An error has changed nothing. Changes must not
// overlap.
func (t *Telemetry) Prepare(ctx context.Context, cfg *config.Config) (*TelemetryChange, error) {
	t.mu.Lock()
	old := t.door
	t.mu.Unlock()
	address := cfg.Telemetry.Address
	switch {
	case address == "":
		return &TelemetryChange{telemetry: t}, nil
	case old != nil && old.address == address:
		return &TelemetryChange{telemetry: t, next: old}, nil
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("telemetry.address %s: %w%s", address, cause(err), bindHint(err))
	}
	return &TelemetryChange{telemetry: t, next: t.newDoor(address, ln), bound: true}, nil
}

func bindHint(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return " (another process listens there, or edge itself does until this change is made; find it with: ss -ltnp)"
	case errors.Is(err, syscall.EACCES):
		return " (ports below 1024 need root or CAP_NET_BIND_SERVICE)"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return " (no interface of this machine has that address)"
	}
	return " (host:port of this machine)"
}

func (t *Telemetry) newDoor(address string, ln net.Listener) *door {
	host, _, _ := net.SplitHostPort(address) // config has seen to it
	return &door{address: address, ln: ln, server: &http.Server{
		Handler:                      t.handler(host),
		ReadHeaderTimeout:            requestTimeout,
		ReadTimeout:                  requestTimeout,
		WriteTimeout:                 replyTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader,
		ErrorLog:                     slog.NewLogLogger(t.log.Handler(), slog.LevelDebug),
		DisableGeneralOptionsHandler: true,
	}}
}

// Abort gives up what Prepare bound.
func (c *TelemetryChange) Abort() {
	if c.bound {
		_ = c.next.ln.Close()
	}
}

// Commit serves the new address and then closes the old one. It cannot fail.
func (c *TelemetryChange) Commit() {
	t := c.telemetry
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		c.Abort()
		return
	}
	if c.bound {
		t.log.LogAttrs(context.Background(), slog.LevelInfo, "telemetry", slog.String("address", c.next.ln.Addr().String()))
		t.work.Go(func() { t.serve(c.next) })
	}
	t.turnLocked(c.next)
}

// turnLocked makes next the door and lets the one before end.
func (t *Telemetry) turnLocked(next *door) {
	old := t.door
	t.door = next
	if old != nil && old != next {
		t.work.Go(old.retire)
	}
}

// serve answers until the door is closed. Without telemetry edge still serves:
// that it ended is told, and no reason to stop.
func (t *Telemetry) serve(d *door) {
	ln := netutil.LimitListener(d.ln, maxTelemetryConns)
	if err := d.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		t.log.LogAttrs(context.Background(), slog.LevelError, "telemetry ended", slog.String("address", d.address), slog.Any("error", err))
	}
}

// retire lets replies under way end.
func (d *door) retire() {
	ctx, cancel := context.WithTimeout(context.Background(), retireTimeout)
	defer cancel()
	if d.server.Shutdown(ctx) != nil {
		_ = d.server.Close()
	}
	_ = d.ln.Close() // of a door that was closed before it was served
}

// Close stops listening, for good, and waits for replies under way, at most five
// seconds.
func (t *Telemetry) Close() {
	t.mu.Lock()
	t.closed = true
	t.turnLocked(nil)
	t.mu.Unlock()
	t.work.Wait()
}
