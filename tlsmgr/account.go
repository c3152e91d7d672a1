package tlsmgr

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"

	"edge/config"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// account is an ACME account with its key, as every replica shares it.
type account struct {
	*acme.Account
	version store.Version // of the object that it was read from
}

// accountID names the account of an issuer.
func accountID(i *config.Issuer) string { return vault.AccountID(i.Directory, i.Email) }

// account returns the account of issuer i from the storage, or registers one
// now under a lease, so that replicas that start together register one. It is
// read for each order, so that one which another replica or the operator
// replaced is used at once.
func (m *Manager) account(ctx context.Context, v *vault.Vault, i *issuer) (*account, error) {
	a, err := loadAccount(ctx, v, accountID(i.config))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errUnregistered) {
		return m.register(ctx, v, i, "")
	}
	return a, err
}

// errUnregistered is an account whose key is stored and that its CA may not
// have seen: a replica died on the way.
var errUnregistered = errors.New("not registered yet")

// register makes a new account in place of the stored version old, "" for none,
// which the CA does not know any more. What is stored is looked at again under
// the lease: another replica may have replaced it already, then theirs is used.
// The key is stored before the CA sees it, so that whoever goes on after a
// death at any step finds the account by it (RFC 8555 section 7.3.1).
func (m *Manager) register(ctx context.Context, v *vault.Vault, i *issuer, old store.Version) (_ *account, err error) {
	id := accountID(i.config)
	lease, err := v.Store().Acquire(ctx, vault.Accounts.Lease(id))
	if err != nil {
		return nil, fmt.Errorf("lease of the ACME account: %w", err)
	}
	defer giveUp(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()

	found, err := loadAccount(ctx, v, id)
	unfinished := errors.Is(err, errUnregistered)
	switch {
	case err == nil && found.version != old:
		return found, nil
	case err == nil, unfinished, errors.Is(err, fs.ErrNotExist):
	default:
		return nil, err
	}
	if !unfinished {
		if found, err = m.newAccount(ctx, v, i, found); err != nil {
			return nil, err
		}
	}
	if found.Account, err = i.ca.Register(ctx, found.Key); err != nil {
		return nil, err
	}
	writeCtx, stop := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout) // it is registered, keep it
	defer stop()
	found.version, err = saveAccount(writeCtx, v, i.config, found)
	if errors.Is(err, store.ErrConflict) { // our lease was lost, and its heir was faster
		return loadAccount(ctx, v, id)
	}
	return found, err
}

// newAccount stores a fresh key in place of the account old, nil for none.
func (m *Manager) newAccount(ctx context.Context, v *vault.Vault, i *issuer, old *account) (_ *account, err error) {
	a := &account{Account: &acme.Account{}}
	if old != nil {
		a.version = old.version
	}
	if a.Key, err = acme.NewKey(config.P256); err != nil {
		return nil, err
	}
	a.version, err = saveAccount(ctx, v, i.config, a)
	return a, err
}

// loadAccount reads a stored account; the error is fs.ErrNotExist when there is
// none. One that cannot be read is not replaced: its key may be the only way to
// revoke certificates.
func loadAccount(ctx context.Context, v *vault.Vault, id string) (*account, error) {
	record, version, err := vault.Load[vault.Account](ctx, v, id)
	if err != nil && !errors.Is(err, vault.ErrDamaged) {
		return nil, fmt.Errorf("load the ACME account: %w", err)
	}
	var key crypto.Signer
	if err == nil {
		key, err = acme.DecodeKey(record.PrivateKey)
	}
	if err != nil {
		return nil, fmt.Errorf("stored ACME account %s: %w (restore the object, or delete it to register a new account)", vault.Accounts.Key(id), err)
	}
	a := &account{Account: &acme.Account{URL: record.Account.Location, Key: key, Contact: record.Account.Contact}, version: version}
	if a.URL == "" {
		return a, errUnregistered
	}
	return a, nil
}

func saveAccount(ctx context.Context, v *vault.Vault, i *config.Issuer, a *account) (store.Version, error) {
	key, err := acme.EncodeKey(a.Key)
	if err != nil {
		return "", err
	}
	record := &vault.Account{Format: vault.Format, Directory: i.Directory, Email: i.Email, PrivateKey: key}
	record.Account.Location, record.Account.Contact = a.URL, a.Contact
	if a.URL != "" {
		record.Account.Status = "valid"
	}
	version, err := vault.Save(ctx, v, accountID(i), record, a.version)
	if err != nil {
		return "", fmt.Errorf("store the ACME account: %w", err)
	}
	return version, nil
}

// rollover replaces the key of the stored account. A key that an earlier
// rollover stored and perhaps told the CA is used first.
func (m *Manager) rollover(ctx context.Context, v *vault.Vault, i *issuer) error {
	id := accountID(i.config)
	record, version, err := vault.Load[vault.Account](ctx, v, id)
	if err != nil {
		return fmt.Errorf("load the ACME account: %w", err)
	}
	if record.NextKey == "" {
		next, err := acme.NewKey(config.P256)
		if err != nil {
			return err
		}
		if record.NextKey, err = acme.EncodeKey(next); err != nil {
			return err
		}
		if version, err = vault.Save(ctx, v, id, record, version); err != nil {
			return fmt.Errorf("store the new key of the ACME account: %w", err)
		}
	}
	old, err := acme.DecodeKey(record.PrivateKey)
	if err != nil {
		return err
	}
	next, err := acme.DecodeKey(record.NextKey)
	if err != nil {
		return err
	}
	a := &acme.Account{URL: record.Account.Location, Key: old, Contact: record.Account.Contact}
	if _, err = i.ca.Rollover(ctx, a, next); err != nil {
		return err
	}
	record.PrivateKey, record.NextKey = record.NextKey, ""
	if _, err := vault.Save(ctx, v, id, record, version); err != nil {
		return fmt.Errorf("store the ACME account: %w", err)
	}
	return nil
}
