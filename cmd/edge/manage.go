package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// Commands that work on certificates need no running edge: each is one more
// replica for as long as it lasts, kept apart from the others by leases.

// access is what a command needs of the configuration.
type access int

const (
	reads  access = iota // the storage; no DNS credentials, no CA
	orders               // everything that an order needs
)

// certificates calls f with a Manager for the configuration, which ends with it.
// ctx ends at the first signal, so that challenge records are removed; the second
// one ends the process.
func (g *globals) certificates(cmd *cobra.Command, a access, f func(ctx context.Context, cfg *config.Config, m *tlsmgr.Manager) error) error {
	cfg, err := config.Load(g.config)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	return interrupted(ctx, g.manage(ctx, cmd, cfg, a, tlsmgr.Options{}, func(m *tlsmgr.Manager) error { return f(ctx, cfg, m) }))
}

// manage calls f with a Manager for cfg.
func (g *globals) manage(ctx context.Context, cmd *cobra.Command, cfg *config.Config, a access, o tlsmgr.Options, f func(*tlsmgr.Manager) error) error {
	mine := *cfg
	mine.Storage.Snapshot = "" // it is the service's, perhaps of another user
	if a == reads {
		mine.ServeOnly = true
	}
	p := g.progress(cmd)
	o.Logger, o.Events, o.Version, o.Owner = p.logger(), p.event, build().Version, owner()
	m := tlsmgr.New(o)
	change, err := m.Prepare(ctx, &mine)
	if err != nil {
		return invalid(err)
	}
	change.Commit()
	defer m.Close()
	return f(m)
}

// owner is this process in leases and in what it stores.
func owner() string {
	host, _ := os.Hostname() // "" is as good a name as any
	return fmt.Sprintf("%s/%d (command line)", host, os.Getpid())
}

// openVault opens a storage with the keys of cfg; "" is the one of cfg.
func (g *globals) openVault(ctx context.Context, cmd *cobra.Command, cfg *config.Config, url string) (*vault.Vault, error) {
	if url == "" {
		url = cfg.Storage.URL
	}
	keys, err := vault.NewKeyring(cfg.Storage.Keys)
	if err != nil {
		return nil, invalid(err)
	}
	log := g.progress(cmd).logger()
	s, err := store.Open(ctx, url, store.Options{Logger: log, Owner: owner()})
	if err != nil {
		return nil, err
	}
	return vault.New(s, vault.Options{Keys: keys, Logger: log}), nil
}

// inVault calls f with the storage of the configuration.
func (g *globals) inVault(cmd *cobra.Command, f func(ctx context.Context, cfg *config.Config, v *vault.Vault) error) error {
	cfg, err := config.Load(g.config)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	v, err := g.openVault(ctx, cmd, cfg, "")
	if err != nil {
		return err
	}
	return interrupted(ctx, errors.Join(f(ctx, cfg, v), v.Store().Close()))
}

var errInterrupted = errors.New("interrupted")

// interruptible ends its context at the first signal and leaves the second one
// to the operating system.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(cmd.Context())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
			signal.Stop(signals)
			fmt.Fprintln(cmd.ErrOrStderr(), "interrupted, cleaning up (again to stop at once)")
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// interrupted is err, or in its place that the operator wanted it.
func interrupted(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return errInterrupted
	}
	return err
}

// plannedIDs are the certificates of the plan, and an error for an id that is
// none of them.
func plannedIDs(m *tlsmgr.Manager, ids []string) ([]string, error) {
	var all []string
	for _, b := range m.Planned().Bundles {
		all = append(all, b.ID)
	}
	for _, id := range ids {
		if !slices.Contains(all, id) {
			return nil, fmt.Errorf("the plan has no certificate %q (certificates: %s)", id, orNone(all))
		}
	}
	if len(all) == 0 {
		return nil, errors.New("the configuration obtains no certificate")
	}
	return all, nil
}

func orNone(words []string) string {
	const most = 20
	switch {
	case len(words) == 0:
		return "none"
	case len(words) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
	}
	return strings.Join(words, ", ")
}

// find is the certificate called what, or that serves the host what.
func find(ctx context.Context, m *tlsmgr.Manager, what string) (tlsmgr.Detail, error) {
	all, err := m.Details(ctx)
	if err != nil {
		return tlsmgr.Detail{}, err
	}
	d, ok := tlsmgr.Find(all, what)
	if !ok {
		var ids []string
		for _, d := range all {
			ids = append(ids, d.ID)
		}
		return d, fmt.Errorf("no certificate is called %q or serves it (certificates: %s)", what, orNone(ids))
	}
	return d, nil
}
