package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"edge/tlsmgr/vault"
)

// afford charges the order that a is to become to the budget that replicas share
// at a CA. The error is *paused when the budget is spent: the CA would refuse, and
// count that too. What is exempt is charged and does not wait.
func (m *Manager) afford(ctx context.Context, v *vault.Vault, i *issuer, a *vault.Attempt, exempt bool) error {
	var now time.Time
	err := changeBudget(ctx, v, i.config.Directory, func(b *vault.Budget) error {
		now = time.Now()
		if wait, reason := reserve(b, i.quotas, a.Names, exempt, now); wait > 0 {
			return &paused{wait, reason}
		}
		return nil
	})
	if err == nil {
		a.Charged = moment(now)
	}
	return err
}

// refund takes back what a was charged when it ends without a certificate: CAs
// count certificates by domain and by names, not the orders that failed. What
// the CA has never heard of is no order either.
func (m *Manager) refund(ctx context.Context, v *vault.Vault, a *vault.Attempt) {
	if a.Charged.IsZero() {
		return
	}
	err := changeBudget(ctx, v, a.Directory, func(b *vault.Budget) error {
		unenter(b, a.Names, a.Charged, a.URL == "")
		return nil
	})
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "an order that failed counts like a certificate", slog.Any("error", oneError(err)))
	}
	a.Charged = time.Time{}
}

// lastHours reports whether certificate id ends so soon that an order is worth a
// refusal. Without a certificate nothing ends.
func (m *Manager) lastHours(id string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.loaded[id]
	return l != nil && l.cert != nil && left(l.cert, now) <= criticalAt
}

// spoiled notes names that the CA failed to validate.
func (m *Manager) spoiled(ctx context.Context, v *vault.Vault, i *issuer, refused map[string]string) {
	if len(refused) == 0 {
		return
	}
	names := make([]string, 0, len(refused))
	for n := range refused {
		names = append(names, n)
	}
	err := changeBudget(ctx, v, i.config.Directory, func(b *vault.Budget) error {
		failed(b, i.quotas, names, time.Now())
		return nil
	})
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "failed validations are not counted", slog.Any("error", oneError(err)))
	}
}

// changeBudget applies change to the stored budget of a CA. A budget that cannot be
// read is started anew: it saves refusals, it is not worth an expired certificate.
func changeBudget(ctx context.Context, v *vault.Vault, directory string, change func(*vault.Budget) error) error {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	id := vault.BudgetID(directory)
	_, _, err := vault.Update(ctx, v, id, func(b *vault.Budget) (write bool, err error) { return true, change(b) })
	switch {
	case untouchable(err):
		return nil
	case errors.Is(err, vault.ErrDamaged):
		if err := change(&vault.Budget{}); err != nil {
			return err
		}
		if err = v.Store().Delete(ctx, vault.Budgets.Key(id)); err == nil {
			return nil
		}
		fallthrough
	case err != nil:
		return fmt.Errorf("budget of the CA: %w", err)
	}
	return nil
}
