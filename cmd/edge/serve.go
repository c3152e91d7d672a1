package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"edge/admin"
	"edge/config"
	"edge/proxy"
	"edge/tlsmgr"
)

// How long a stop waits for work on certificates: after the streams, and after
// a second signal.
const (
	partingTime = 15 * time.Second
	cutTime     = time.Second
)

// app is a running edge: it wires config to tlsmgr, proxy and admin, and owns
// reload and shutdown. tlsmgr and proxy never import each other; they meet here.
type app struct {
	globals *globals
	log     *slog.Logger
	format  *formatHandler
	certs   *tlsmgr.Manager
	proxy   *proxy.Server
	control *admin.Control // nil when there is no control socket
	started time.Time

	telemetry *admin.Telemetry
	webhook   *admin.Webhook

	failed chan error    // a part that should run for ever has ended
	look   chan struct{} // what is missing may have changed

	current atomic.Pointer[config.Config]

	background sync.WaitGroup
	cancel     context.CancelFunc // ends background

	reloading sync.Mutex // one reload at a time
	mu        sync.Mutex
	status    admin.ConfigStatus // guarded by mu
	phase     phase              // guarded by mu
}

func newApp(g *globals, log *logger) *app {
	a := &app{globals: g, log: log.Logger, format: log.format, started: time.Now(), failed: make(chan error, 2), look: make(chan struct{}, 1)}
	a.telemetry = admin.NewTelemetry(admin.TelemetryOptions{Status: a.Status, Ready: a.readiness, Version: build().Version, Logger: a.log})
	a.webhook = admin.NewWebhook(admin.WebhookOptions{Served: a.served, Version: build().Version, Logger: a.log})
	a.certs = tlsmgr.New(tlsmgr.Options{Logger: a.log, Events: a.event, Version: build().Version})
	a.proxy = proxy.New(proxy.Options{
		Logger:  a.log,
		TLS:     a.certs.TLSConfig,
		Admits:  a.certs.Admits,
		HTTP01:  a.certs.HTTP01,
		Observe: a.observe,
	})
	return a
}

// start puts cfg in force, opens the control socket and starts the background
// work. After an error nothing is left running.
func (a *app) start(ctx context.Context, cfg *config.Config) error {
	ln, err := a.listenControl(ctx, cfg)
	if err != nil {
		return err
	}
	warnings, err := a.apply(ctx, cfg)
	if err != nil {
		if ln != nil {
			_ = ln.Close()
		}
		return err
	}
	a.warn(warnings)
	a.mu.Lock() // telemetry may be asked already
	a.status = admin.ConfigStatus{Path: absolute(cfg.Path), Loaded: time.Now(), Warnings: warnings}
	a.mu.Unlock()
	for _, l := range a.proxy.Status().Listeners {
		a.log.InfoContext(ctx, "listening", slog.String("listener", l.Name), slog.String("address", l.Address))
	}

	ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if ln != nil {
		a.control = admin.NewControl(admin.Options{Reload: a.reload, Status: a.Status})
		a.background.Go(func() { a.fail(a.control.Serve(ln)) })
	}
	a.background.Go(func() { a.fail(a.certs.Run(ctx)) })
	a.background.Go(func() { a.fail(a.webhook.Run(ctx)) })
	a.background.Go(func() { a.becomeReady(ctx) })
	a.background.Go(func() { watchdog(ctx, a.log) })
	return nil
}

// absolute is path for readers who are in another folder.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// listenControl binds the control socket. Where the default path cannot be
// used (by this user, in a read-only container, where there is no /run) and
// nobody asked for another, edge runs without one.
func (a *app) listenControl(ctx context.Context, cfg *config.Config) (ln net.Listener, err error) {
	ln, err = admin.Listen(ctx, cfg.Control.Socket)
	unusable := errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EROFS)
	if unusable && cfg.Control.Socket == config.DefaultSocket {
		a.log.WarnContext(ctx, "running without a control socket", slog.Any("error", err))
		return nil, nil
	}
	return ln, err
}

// apply puts cfg in force, or changes nothing and returns why not. The
// warnings are lines for the operator.
func (a *app) apply(ctx context.Context, cfg *config.Config) (warnings []string, err error) {
	certs, err := a.certs.Prepare(ctx, cfg)
	if err != nil {
		return nil, invalid(err)
	}
	webhook, err := a.webhook.Prepare(cfg)
	if err != nil {
		return nil, invalid(err)
	}
	telemetry, err := a.telemetry.Prepare(ctx, cfg)
	if err != nil {
		return nil, &failure{exitFailure, err}
	}
	server, err := a.proxy.Prepare(ctx, cfg)
	if err != nil {
		telemetry.Abort()
		return nil, &failure{exitFailure, err}
	}
	a.current.Store(cfg) // before the first request that may read it
	a.format.json.Store(cfg.Log.Format == "json")
	webhook() // before the first event of the new plan
	certs.Commit()
	server.Commit()
	telemetry.Commit()
	a.wake()
	return append(admin.Texts(cfg.Warnings), admin.Texts(certs.Warnings())...), nil
}

// reload reads the configuration again. What is refused changes nothing.
func (a *app) reload(ctx context.Context) admin.Reloaded {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	a.tell("RELOADING=1", monotonic())
	defer a.tell("READY=1")

	result := admin.Reloaded{}
	cfg, err := config.Load(a.globals.config)
	if err == nil {
		if old := a.current.Load().Control.Socket; cfg.Control.Socket != old && a.globals.socket == "" {
			result.Warnings = append(result.Warnings, "control.socket changed: restart edge to use it")
		}
		var warnings []string
		warnings, err = a.apply(ctx, cfg)
		result.Warnings = append(result.Warnings, warnings...)
	}
	if err != nil {
		result.Problems, result.Invalid = lines(err), exitCode(err) == exitConfig || errors.As(err, new(config.Problems))
		a.log.ErrorContext(ctx, "reload refused, the last good configuration stays in force", slog.Any("error", err))
	} else {
		a.warn(result.Warnings)
		a.log.InfoContext(ctx, "reloaded", slog.Int("routes", len(cfg.Routes)), slog.Int("pools", len(cfg.Pools)))
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Reloads++
	if err != nil {
		a.status.Refused = err.Error()
	} else {
		a.status.Refused, a.status.Loaded, a.status.Warnings = "", time.Now(), result.Warnings
	}
	return result
}

// lines splits an error into one line for each problem.
func lines(err error) []string {
	if problems, ok := errors.AsType[config.Problems](err); ok {
		return admin.Texts(problems)
	}
	return []string{err.Error()}
}

// drain stops: readiness first, then listeners, then streams, then the rest.
// When now ends it hurries.
func (a *app) drain(now context.Context, d config.Drain) error {
	a.enter(stopping, "STOPPING=1")
	if d.Delay > 0 {
		select {
		case <-time.After(d.Delay):
		case <-now.Done():
		}
	}
	ctx, cancel := context.WithTimeout(now, d.Timeout)
	defer cancel()
	err := a.proxy.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		a.log.WarnContext(ctx, "streams were cut at the end of the drain", slog.Duration("timeout", d.Timeout))
		err = nil
	}
	a.cancel()
	if a.control != nil {
		err = errors.Join(err, a.control.Close())
	}
	a.await(now)
	a.telemetry.Close() // last, so that a drain can be watched
	return err
}

// await waits for the background work, which may have challenge records to
// delete. It ends when its context does, but for a DNS provider that does not
// answer and cannot be interrupted: the process need not wait for that.
func (a *app) await(now context.Context) {
	ended := make(chan struct{})
	go func() { a.background.Wait(); close(ended) }()
	select {
	case <-ended:
		return
	case <-now.Done():
	case <-time.After(partingTime):
	}
	select {
	case <-ended:
	case <-time.After(cutTime):
		a.log.WarnContext(now, "work on certificates was cut", slog.String("hint", "another replica, or the next start, takes it up"))
	}
}

// Status tells all that edge knows of itself. It may be called concurrently.
func (a *app) Status() admin.Status {
	a.mu.Lock()
	cfg, isReady := a.status, a.phase == ready
	a.mu.Unlock()
	return admin.Status{
		Version: build().Version, PID: os.Getpid(), Started: a.started, Ready: isReady, Telemetry: a.telemetry.Address(),
		Config: cfg, Proxy: a.proxy.Status(), Certificates: a.certs.Status(),
	}
}

func (a *app) observe(r *proxy.Record) {
	if a.current.Load().Log.Access {
		a.log.LogAttrs(context.Background(), slog.LevelInfo, "request", r.LogAttrs()...)
	}
}

func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		a.log.LogAttrs(context.Background(), slog.LevelWarn, "configuration", slog.String("warning", w))
	}
}

func (a *app) fail(err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		a.failed <- fmt.Errorf("edge cannot go on: %w", err)
	}
}
