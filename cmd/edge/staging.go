package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/store"
)

// staging orders certificates as the plan has them from staging CAs, into a
// storage that is thrown away.
type staging struct {
	on     bool
	issuer string
}

func (s *staging) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.on, "staging", false, "really order, from the staging directories of the issuers, and keep nothing")
	cmd.Flags().StringVar(&s.issuer, "issuer", "", "with --staging: order everything from this `issuer`, to try one that is only a fallback")
}

// run orders the certificates ids, all of the plan when there are none.
func (s *staging) run(g *globals, cmd *cobra.Command, ids []string) error {
	cfg, err := config.Load(g.config)
	if err != nil {
		return err
	}
	if cfg.ServeOnly {
		return errors.New("certificates_role is serve: this replica orders nothing")
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	var bundles []tlsmgr.Bundle
	err = g.manage(ctx, cmd, cfg, reads, tlsmgr.Options{}, func(m *tlsmgr.Manager) error {
		bounded, cancel := context.WithTimeout(ctx, planTimeout)
		defer cancel()
		if _, err := m.Preview(bounded); err != nil { // reads where names are
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: planned without the storage: %v\n", err)
		}
		if _, err := plannedIDs(m, ids); err != nil {
			return err
		}
		bundles = m.Planned().Bundles
		return nil
	})
	if err != nil {
		return interrupted(ctx, err)
	}
	dir, err := os.MkdirTemp("", "edge-staging-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	throwaway, err := s.config(cfg, bundles, ids, dir)
	if err != nil {
		return err
	}
	leases, err := g.dnsLeases(ctx, cmd, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = leases.Close() }()
	o := tlsmgr.Options{DNSLease: func(ctx context.Context, name string) (func(), error) {
		lease, err := leases.Acquire(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("lease of %s: %w", name, err)
		}
		return func() { _ = lease.Release(ctx) }, nil
	}}
	return interrupted(ctx, g.manage(ctx, cmd, throwaway, orders, o, func(m *tlsmgr.Manager) error {
		return obtain(ctx, g, cmd, m, ids, false)
	}))
}

// dnsLeases is the storage of the configuration: replicas that are at work take
// leases there for records of DNS providers that need it, and so does staging.
func (g *globals) dnsLeases(ctx context.Context, cmd *cobra.Command, cfg *config.Config) (*store.Store, error) {
	return store.Open(ctx, cfg.Storage.URL, store.Options{Logger: g.progress(cmd).logger(), Owner: owner()})
}

// config is cfg with the certificates as they are planned, staging directories
// in place of the real ones, and a storage in dir.
func (s *staging) config(cfg *config.Config, bundles []tlsmgr.Bundle, ids []string, dir string) (*config.Config, error) {
	out := *cfg
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	out.Storage = config.Storage{URL: (&url.URL{Scheme: "file", Path: filepath.ToSlash(abs)}).String(), Pos: cfg.Storage.Pos}
	out.Issuers, out.Certificates, out.Routes, out.Webhook = map[string]*config.Issuer{}, map[string]*config.Certificate{}, nil, config.Secret{}
	for _, b := range bundles {
		if len(ids) > 0 && !slices.Contains(ids, b.ID) {
			continue
		}
		name := b.Issuer
		if s.issuer != "" {
			name = s.issuer
		}
		if out.Issuers[name], err = stagingOf(cfg, name); err != nil {
			return nil, err
		}
		out.Certificates[b.ID] = &config.Certificate{Name: b.ID, Names: b.Names, Issuers: []string{name}, KeyTypes: []config.KeyType{b.KeyType}}
	}
	return &out, nil
}

// stagingOf is an issuer at its staging directory.
func stagingOf(cfg *config.Config, name string) (*config.Issuer, error) {
	i := cfg.Issuers[name]
	if i == nil {
		return nil, fmt.Errorf("no issuer %q (issuers: %s)", name, orNone(slices.Sorted(maps.Keys(cfg.Issuers))))
	}
	if i.Internal != nil {
		return i, nil
	}
	next := *i
	next.Quotas = config.Quotas{} // those of the staging directory
	if next.Directory = i.Staging; next.Directory == "" {
		next.Directory = acme.StagingOf(i.Directory)
	}
	if next.Directory == "" {
		return nil, fmt.Errorf("issuer %q has no staging directory (set issuers.%s.acme.staging, or leave its certificates out: certs obtain --staging ID…)", name, name)
	}
	return &next, nil
}
