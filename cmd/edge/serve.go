package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"edge/admin"
	"edge/config"
	"edge/proxy"
	"edge/tlsmgr"
)

const (
	loadTimeout = 20 * time.Second // first look into storage
	startGrace  = 60 * time.Second // for certificates that no storage has yet
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
	failed  chan error    // a part that should run for ever has ended
	loaded  chan struct{} // a certificate has been loaded

	current atomic.Pointer[config.Config]
	ready   atomic.Bool

	background sync.WaitGroup
	cancel     context.CancelFunc // ends background

	reloading sync.Mutex // one reload at a time
	mu        sync.Mutex
	status    admin.ConfigStatus // guarded by mu
}

func newApp(g *globals, log *logger) *app {
	a := &app{globals: g, log: log.Logger, format: log.format, started: time.Now(), failed: make(chan error, 2), loaded: make(chan struct{}, 1)}
	a.certs = tlsmgr.New(tlsmgr.Options{Logger: a.log, Events: a.event})
	a.proxy = proxy.New(proxy.Options{
		Logger:  a.log,
		TLS:     a.certs.TLSConfig,
		Same:    a.certs.Same,
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
	a.status = admin.ConfigStatus{Path: cfg.Path, Loaded: time.Now(), Warnings: warnings}

	ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if ln != nil {
		a.control = admin.NewControl(admin.Options{Reload: a.reload, Status: a.Status})
		a.background.Go(func() { a.fail(a.control.Serve(ln)) })
	}
	a.background.Go(func() { a.fail(a.certs.Run(ctx)) })
	a.background.Go(func() { a.becomeReady(ctx) })
	a.background.Go(func() { watchdog(ctx, a.log) })
	return nil
}

// listenControl binds the control socket. Where the default path cannot be
// used and nobody asked for another, edge runs without one.
func (a *app) listenControl(ctx context.Context, cfg *config.Config) (ln net.Listener, err error) {
	ln, err = admin.Listen(ctx, cfg.Control.Socket)
	if err != nil && cfg.Control.Socket == config.DefaultSocket && errors.Is(err, os.ErrPermission) {
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
	server, err := a.proxy.Prepare(ctx, cfg)
	if err != nil {
		return nil, &failure{exitFailure, err}
	}
	certs.Commit()
	server.Commit()
	a.format.json.Store(cfg.Log.Format == "json")
	a.current.Store(cfg)
	return append(admin.Texts(cfg.Warnings), admin.Texts(certs.Warnings())...), nil
}

// reload reads the configuration again. What is refused changes nothing.
func (a *app) reload(ctx context.Context) admin.Reloaded {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	notify("RELOADING=1", monotonic())
	defer notify("READY=1")

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

// becomeReady says ready once what storage holds is loaded and no certificate
// is missing; a first start waits for those at most startGrace.
func (a *app) becomeReady(ctx context.Context) {
	load, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := a.certs.Load(load); err != nil {
		a.log.ErrorContext(ctx, "certificates could not be loaded, trying again", slog.Any("error", err))
	}
	grace, cancel := context.WithTimeout(ctx, startGrace)
	defer cancel()
	missing := a.complete(grace)
	if ctx.Err() != nil {
		return
	}
	if len(missing) > 0 {
		a.log.WarnContext(ctx, "names without a certificate", slog.Any("names", missing))
	}
	a.ready.Store(true)
	notify("READY=1")
	a.log.InfoContext(ctx, "ready", slog.Duration("after", time.Since(a.started).Round(time.Millisecond)))
}

// complete waits until no certificate is missing and returns those that still
// are at the end of ctx.
func (a *app) complete(ctx context.Context) []string {
	for {
		status := a.certs.Status()
		missing := status.Missing()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-a.loaded:
		case <-ctx.Done():
			return missing
		}
	}
}

// event wakes complete when a certificate has been loaded.
func (a *app) event(e tlsmgr.Event) {
	if e.Step == tlsmgr.StepLoaded {
		select {
		case a.loaded <- struct{}{}:
		default: // it has not seen the last one yet and will look at both
		}
	}
}

// drain stops: readiness first, then listeners, then streams, then the rest.
func (a *app) drain(ctx context.Context, d config.Drain) error {
	a.ready.Store(false)
	notify("STOPPING=1")
	if d.Delay > 0 {
		select {
		case <-time.After(d.Delay):
		case <-ctx.Done():
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
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
	a.background.Wait()
	return err
}

// Status tells all that edge knows of itself. It may be called concurrently.
func (a *app) Status() admin.Status {
	a.mu.Lock()
	cfg := a.status
	a.mu.Unlock()
	return admin.Status{
		Version: build().Version, PID: os.Getpid(), Started: a.started, Ready: a.ready.Load(),
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
