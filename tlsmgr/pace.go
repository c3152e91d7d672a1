package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"edge/tlsmgr/vault"
)

// afford charges one order to the budget that replicas share at a CA. The error
// is *paused when the budget is spent: the CA would refuse, and count that too.
func (m *Manager) afford(ctx context.Context, v *vault.Vault, i *issuer, a *vault.Attempt) error {
	return changeBudget(ctx, v, i, func(b *vault.Budget) error {
		if wait, reason := reserve(b, i.quotas, a.Names, a.Replaces != "", time.Now()); wait > 0 {
			return &paused{wait, reason}
		}
		return nil
	})
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
	err := changeBudget(ctx, v, i, func(b *vault.Budget) error {
		failed(b, i.quotas, names, time.Now())
		return nil
	})
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "failed validations are not counted", slog.Any("error", oneError(err)))
	}
}

// changeBudget applies change to the stored budget of i. A budget that cannot be
// read is started anew: it saves refusals, it is not worth an expired certificate.
func changeBudget(ctx context.Context, v *vault.Vault, i *issuer, change func(*vault.Budget) error) error {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	id := vault.BudgetID(i.config.Directory)
	_, _, err := vault.Update(ctx, v, id, func(b *vault.Budget) (write bool, err error) { return true, change(b) })
	switch {
	case untouchable(err):
		return nil
	case errors.Is(err, vault.ErrDamaged):
		if err = v.Store().Delete(ctx, vault.Budgets.Key(id)); err == nil {
			return change(&vault.Budget{})
		}
		fallthrough
	case err != nil:
		return fmt.Errorf("budget of the CA: %w", err)
	}
	return nil
}
