package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"edge/config"
	"edge/tlsmgr/ca"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// authority returns the CA of an internal issuer from the storage. The first
// replica that needs it makes it, and its intermediate is replaced in time, both
// under a lease: there is one for all replicas.
func (m *Manager) authority(ctx context.Context, v *vault.Vault, i *config.Issuer) (*ca.Authority, error) {
	a, _, err := loadAuthority(ctx, v, i.Name)
	if err == nil && a.RootDue(time.Now()) {
		m.log.LogAttrs(ctx, slog.LevelWarn, "the root of the internal CA ends within a year; clients need its successor before",
			slog.String("issuer", i.Name), slog.Time("ends", a.RootEnd()))
	}
	if err == nil && !a.Due(time.Now()) {
		return a, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	lease, err := v.Store().Acquire(ctx, vault.Authorities.Lease(i.Name))
	if err != nil {
		return nil, fmt.Errorf("lease of the CA %q: %w", i.Name, err)
	}
	defer giveUp(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	now := time.Now()
	a, version, err := loadAuthority(ctx, v, i.Name)
	switch {
	case err == nil && !a.Due(now):
		return a, nil
	case err == nil:
		a, err = a.Renewed(now)
	case errors.Is(err, fs.ErrNotExist):
		a, err = ca.Create(i.Name, now)
	}
	if err != nil {
		return nil, err
	}
	record := &vault.Authority{Format: vault.Format, Issuer: i.Name}
	record.RootChain, record.RootKey, record.Chain, record.Key = a.PEM()
	if _, err := vault.Save(ctx, v, i.Name, record, version); err != nil {
		return nil, fmt.Errorf("store the CA %q: %w", i.Name, err)
	}
	return a, nil
}

func loadAuthority(ctx context.Context, v *vault.Vault, name string) (*ca.Authority, store.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	record, version, err := vault.Load[vault.Authority](ctx, v, name)
	if err != nil {
		return nil, version, fmt.Errorf("load the CA %q: %w", name, err)
	}
	a, err := ca.Parse(record.RootChain, record.RootKey, record.Chain, record.Key)
	if err != nil {
		return nil, version, fmt.Errorf("stored CA %q: %w (restore %s, or delete it and give clients the new root)", name, err, vault.Authorities.Key(name))
	}
	return a, version, nil
}

// Root is the root certificate of an internal issuer, PEM, for clients to
// trust. It is made when nobody needed it before.
func (m *Manager) Root(ctx context.Context, issuerName string) (string, error) {
	i := m.state.Load().cfg.Issuers[issuerName]
	v := m.vaultInUse()
	if i == nil || i.Internal == nil || v == nil {
		return "", fmt.Errorf("no internal issuer %q", issuerName)
	}
	a, err := m.authority(ctx, v, i)
	if err != nil {
		return "", err
	}
	return a.Root(), nil
}
