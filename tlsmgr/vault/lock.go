package vault

import (
	"context"

	"edge/tlsmgr/store"
)

// Locks returns the leases in the storage, held and released.
func (v *Vault) Locks(ctx context.Context) ([]store.LeaseInfo, error) { return v.store.Leases(ctx) }
