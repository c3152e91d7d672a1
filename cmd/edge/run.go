package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"edge/config"
)

func runCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Serve the configuration until a signal ends it",
		Long: "Serve the configuration in the foreground.\n\n" +
			"SIGHUP reads the configuration again, all or nothing; SIGTERM and SIGINT let streams end and stop;\n" +
			"a second one stops at once.",
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			signals := listen() // first of all: a signal during the start waits, it does not kill
			defer signals.close()
			cfg, err := config.Load(g.config)
			if err != nil {
				return err
			}
			if g.socket != "" {
				cfg.Control.Socket = g.socket
			}
			log := newLog(cmd.ErrOrStderr(), cfg.Log)
			log.libraries()
			limitMemory(cmd.Context(), log.Logger)
			a := newApp(g, log)
			if err := a.start(cmd.Context(), cfg); err != nil {
				return err
			}
			return serve(cmd.Context(), a, signals)
		}),
	}
}

// signals are what the operating system asks for. They come by two channels, so
// that no number of SIGHUPs crowds out a SIGTERM; many SIGHUPs are one reload.
type signals struct{ reload, stop chan os.Signal }

func listen() signals {
	s := signals{reload: make(chan os.Signal, 1), stop: make(chan os.Signal, 2)}
	signal.Notify(s.reload, syscall.SIGHUP)
	signal.Notify(s.stop, syscall.SIGTERM, syscall.SIGINT)
	return s
}

func (s signals) close() {
	signal.Stop(s.reload)
	signal.Stop(s.stop)
}

// serve turns signals into calls of a until it has stopped.
func serve(ctx context.Context, a *app, on signals) error {
	for {
		select {
		case err := <-a.failed:
			return errors.Join(err, a.stop(ctx, on.stop))
		case <-on.reload:
			a.reload(ctx)
		case s := <-on.stop:
			a.log.InfoContext(ctx, "stopping", slog.String("signal", s.String()))
			return a.stop(ctx, on.stop)
		}
	}
}

// stop drains until the configured time is over or a second signal comes.
func (a *app) stop(ctx context.Context, again <-chan os.Signal) error {
	drain := a.current.Load().Drain
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.drain(ctx, drain) }()
	for {
		select {
		case err := <-done:
			a.log.InfoContext(ctx, "stopped")
			if err != nil {
				return fmt.Errorf("stop: %w", err)
			}
			return nil
		case s := <-again:
			a.log.WarnContext(ctx, "stopping now", slog.String("signal", s.String()))
			cancel()
		}
	}
}
