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
			cfg, err := config.Load(g.config)
			if err != nil {
				return err
			}
			if g.socket != "" {
				cfg.Control.Socket = g.socket
			}
			log := newLog(cmd.ErrOrStderr(), cfg.Log)
			a := newApp(g, log)
			if err := a.start(cmd.Context(), cfg); err != nil {
				return err
			}
			return serve(cmd.Context(), a)
		}),
	}
}

// serve turns signals into calls of a until it has stopped.
func serve(ctx context.Context, a *app) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	for {
		select {
		case err := <-a.failed:
			return errors.Join(err, a.stop(ctx, signals))
		case s := <-signals:
			if s == syscall.SIGHUP {
				a.reload(ctx)
				continue
			}
			a.log.InfoContext(ctx, "stopping", slog.String("signal", s.String()))
			return a.stop(ctx, signals)
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
			if s == syscall.SIGHUP {
				continue // too late to matter
			}
			a.log.WarnContext(ctx, "stopping now, streams are cut", slog.String("signal", s.String()))
			cancel()
		}
	}
}
