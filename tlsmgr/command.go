package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"edge/tlsmgr/acme"
	"edge/tlsmgr/vault"
)

// What the command line asks of a Manager that does not Run: it works on the
// storage like one more replica, so it needs no running edge, and leases keep it
// apart from those that run.

// Preview is what edge would do now about one bundle of the plan.
type Preview struct {
	Bundle
	Need      string    `json:"need,omitempty"`       // why it would be ordered; "" when it would not
	From      string    `json:"from,omitempty"`       // issuer that it would be ordered from
	NotAfter  time.Time `json:"not_after,omitzero"`   // of what is stored
	Renewal   time.Time `json:"renewal,omitzero"`     // when what is stored is due
	NotBefore time.Time `json:"not_before,omitzero"`  // when the budget or an earlier failure allows it
	Reason    string    `json:"reason,omitempty"`     // why not before
	LeftOut   []string  `json:"left_out,omitempty"`   // names in quarantine
	OpenOrder string    `json:"open_order,omitempty"` // URL of an order that would be resumed
	Error     string    `json:"error,omitempty"`      // why what is stored is neither used nor replaced: nothing would be ordered
}

// Preview reads the storage and says what would be ordered, and why. It writes
// nothing and asks no CA.
func (m *Manager) Preview(ctx context.Context) ([]Preview, error) {
	v := m.vaultInUse()
	if v == nil {
		return nil, nil
	}
	if err := m.sync(ctx, v); err != nil {
		return nil, err
	}
	now := time.Now()
	st := m.state.Load()
	out := make([]Preview, 0, len(st.plan.Bundles))
	for _, b := range st.plan.Bundles {
		p, err := m.preview(ctx, v, st, b, now)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (m *Manager) preview(ctx context.Context, v *vault.Vault, st *state, b Bundle, now time.Time) (Preview, error) {
	m.mu.Lock()
	l, j := m.loaded[b.ID], m.journals[b.ID]
	p := Preview{Bundle: b, Need: string(m.needLocked(st, &b, now))}
	m.mu.Unlock()
	if l != nil && l.cert != nil {
		p.NotAfter, p.Renewal = l.cert.leaf().NotAfter, renewAt(l.cert)
	}
	if l != nil && untouchable(l.err) {
		p.Error = oneError(l.err).Error()
	}
	failures, waits := 0, map[string]time.Time(nil)
	if j != nil {
		failures, waits = j.record.Failures, j.record.Waits
		admitted := j.admitted(b.Names, now)
		p.LeftOut = slices.DeleteFunc(slices.Clone(b.Names), func(n string) bool { return slices.Contains(admitted, n) })
		if now.Before(j.record.Next) {
			p.NotBefore, p.Reason = j.record.Next, j.record.Error
		}
		if j.open() {
			p.OpenOrder = j.record.Attempt.URL
		}
	}
	if p.Need == "" || p.Error != "" {
		return p, nil
	}
	p.From = b.pick(l, failures, waits, now)
	i := st.issuers[p.From]
	if i == nil || i.ca == nil || p.OpenOrder != "" {
		return p, nil
	}
	err := changeBudget(ctx, v, i.config.Directory, func(budget *vault.Budget) error {
		if wait, reason := reserve(budget, i.quotas, b.Names, false, now); wait > 0 {
			p.NotBefore, p.Reason = now.Add(wait), reason
		}
		return errOnlyLooking
	})
	if !errors.Is(err, errOnlyLooking) {
		return p, err
	}
	return p, nil
}

// errOnlyLooking keeps a change from being written.
var errOnlyLooking = errors.New("only looking")

// CertificateError is what went wrong with one certificate, in one line.
type CertificateError struct {
	ID  string
	Err error
}

func (e *CertificateError) Error() string { return e.ID + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *CertificateError) Unwrap() error { return e.Err }

// Obtain brings the certificates ids in order now, all of the plan when there
// are none. With force they are ordered although nothing needs it. The error is
// the storage's, or joins a CertificateError for each certificate that failed.
func (m *Manager) Obtain(ctx context.Context, ids []string, force bool) error {
	v := m.vaultInUse()
	if v == nil {
		return errors.New("the configuration obtains no certificate")
	}
	if err := m.sync(ctx, v); err != nil {
		return err
	}
	if err := v.Store().Probe(ctx); err != nil {
		return err
	}
	st := m.state.Load()
	if st.cfg.ServeOnly {
		return errors.New("certificates_role is serve: this replica orders nothing")
	}
	if len(ids) == 0 {
		ids = slices.Sorted(maps.Keys(st.bundles))
	}
	errs := make([]error, len(ids))
	var work sync.WaitGroup
	for n, id := range ids {
		b := st.bundles[id]
		if b == nil {
			errs[n] = &CertificateError{id, fmt.Errorf("no certificate %q (certificates: %s)", id, strings.Join(slices.Sorted(maps.Keys(st.bundles)), ", "))}
			continue
		}
		work.Go(func() {
			if err := m.obtainOne(ctx, v, st, b, force); err != nil {
				errs[n] = &CertificateError{id, oneError(err)}
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

func (m *Manager) obtainOne(ctx context.Context, v *vault.Vault, st *state, b *Bundle, force bool) error {
	slot := &slot{pool: m.slots}
	if err := slot.take(ctx); err != nil {
		return err
	}
	defer slot.free()
	m.mu.Lock()
	m.jobLocked(b.ID).busy = true
	m.mu.Unlock()
	defer m.mark(b.ID, func(j *job) { j.busy = false })
	if err := m.attempt(ctx, v, st, *b, slot, force); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if reason := m.journals[b.ID].reason(b.Names); reason != "" {
		return errors.New(reason)
	}
	if why := m.needLocked(st, b, time.Now()); why != needNothing {
		return fmt.Errorf("%s: another replica is at work on it, or the storage did not answer (try again)", why)
	}
	return nil
}

// Revoke tells the CA that a stored certificate must not be trusted any more
// (RFC 8555 section 7.6), with a reason code of RFC 5280 section 5.3.1. If the
// plan wants the certificate it is replaced first, and revoked when every live
// replica has loaded the new one.
func (m *Manager) Revoke(ctx context.Context, id string, reason int) error {
	v := m.vaultInUse()
	if v == nil {
		return errors.New("the configuration obtains no certificate")
	}
	if err := m.sync(ctx, v); err != nil {
		return err
	}
	m.mu.Lock()
	l, b := m.loaded[id], m.state.Load().bundles[id]
	m.mu.Unlock()
	if l == nil || l.cert == nil {
		return fmt.Errorf("no certificate %q is stored", id)
	}
	old := l.cert
	i, err := m.issuerFor(old)
	if err != nil {
		return err
	}
	if b != nil {
		if err := m.Obtain(ctx, []string{id}, true); err != nil {
			return fmt.Errorf("not revoked, because it cannot be replaced: %w", err)
		}
		if err := m.everywhere(ctx, v, id); err != nil {
			return fmt.Errorf("replaced, not revoked: %w", err)
		}
	}
	a, err := m.account(ctx, v, i)
	if err != nil {
		return err
	}
	key, err := acme.DecodeKey(old.object.PrivateKey)
	if err != nil {
		return err
	}
	if err := i.ca.Revoke(ctx, a.Account, old.leaf(), nil, reason); err != nil {
		// Another account ordered it: the certificate's own key is proof enough.
		if keyErr := i.ca.Revoke(ctx, nil, old.leaf(), key, reason); keyErr != nil {
			return err
		}
	}
	m.emit(ctx, id, StepRevoked, "serial "+old.serial())
	return nil
}

// issuerFor is the configured ACME issuer that c came from.
func (m *Manager) issuerFor(c *certificate) (*issuer, error) {
	st := m.state.Load()
	for _, name := range slices.Sorted(maps.Keys(st.issuers)) {
		if i := st.issuers[name]; i.ca != nil && c.object != nil && i.config.Directory == c.object.Directory {
			return i, nil
		}
	}
	for _, i := range st.issuers {
		if i.ca == nil && c.object != nil && c.object.Directory == directoryOf(i.config) {
			return nil, fmt.Errorf("certificate %s is from edge's own CA, which publishes no revocations (certs renew %s replaces it)", c.id, c.id)
		}
	}
	return nil, fmt.Errorf("certificate %s came from %q, which is no ACME issuer in use (%s)", c.id, c.object.Directory, st.acmeIssuers())
}

// everywhere waits until every live replica has loaded what is stored for id.
func (m *Manager) everywhere(ctx context.Context, v *vault.Vault, id string) error {
	ctx, cancel := context.WithTimeout(ctx, everywhereTimeout)
	defer cancel()
	for {
		if err := m.sync(ctx, v); err != nil {
			return err
		}
		m.mu.Lock()
		all := m.everywhereLocked(id, time.Now())
		m.mu.Unlock()
		if all {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("not every live replica has loaded the new one yet (try again)")
		case <-time.After(min(m.options.Interval, 2*time.Second)):
		}
	}
}

// acmeIssuers says which ACME issuers the plan uses, for a hint.
func (st *state) acmeIssuers() string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(st.issuers)) {
		if i := st.issuers[name]; i != nil && i.ca != nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "the plan uses none"
	}
	return "the plan uses " + strings.Join(names, ", ")
}

// Rollover gives the account of an issuer a new key (RFC 8555 section 7.3.5).
// The new key is stored before the CA learns it.
func (m *Manager) Rollover(ctx context.Context, issuerName string) error {
	v, i := m.vaultInUse(), m.state.Load().issuers[issuerName]
	if v == nil || i == nil || i.ca == nil {
		return fmt.Errorf("no ACME issuer %q is in use (%s)", issuerName, m.state.Load().acmeIssuers())
	}
	lease, err := v.Store().Acquire(ctx, vault.Accounts.Lease(accountID(i.config)))
	if err != nil {
		return err
	}
	defer giveUp(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	return m.rollover(ctx, v, i)
}
