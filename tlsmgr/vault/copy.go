package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
)

// ErrDiffers is an object that Copy leaves alone, because the target holds
// another under its key.
var ErrDiffers = errors.New("the target holds another")

// Copy copies everything to another vault and returns how many objects it wrote
// there. Each is opened with our keys and sealed with the first of the target's;
// a target without keys gets it plain. What the target has already is kept: when
// it differs, that is told in the error, after all others had their turn. So
// Copy may be repeated. Leases and replicas are not copied; they are of the
// processes that use this storage. progress may be nil.
func (v *Vault) Copy(ctx context.Context, to *Vault, progress func(done, total int)) (n int, err error) {
	return v.copy(ctx, to, false, progress)
}

// CopyOver is Copy that overwrites what differs. What a newer edge wrote and
// what no key of the target opens stays nevertheless.
func (v *Vault) CopyOver(ctx context.Context, to *Vault, progress func(done, total int)) (n int, err error) {
	return v.copy(ctx, to, true, progress)
}

func (v *Vault) copy(ctx context.Context, to *Vault, force bool, progress func(done, total int)) (n int, err error) {
	ours, _, err := v.list(ctx)
	if err != nil {
		return 0, fmt.Errorf("copy: %w", err)
	}
	lasting := ours[:0]
	for _, e := range ours {
		if e.kind != Replicas {
			lasting = append(lasting, e)
		}
	}
	var count atomic.Int64
	err = each(ctx, lasting, progress, func(ctx context.Context, e entry) error {
		wrote, err := v.copyOne(ctx, to, e, force)
		if wrote {
			count.Add(1)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("copy: %w", err)
	}
	return int(count.Load()), err
}

func (v *Vault) copyOne(ctx context.Context, to *Vault, e entry, force bool) (wrote bool, err error) {
	plain, _, _, err := v.load(ctx, e)
	if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
		return false, nil
	}
	if err == nil {
		_, err = read(e.kind, e.id, plain)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", e.Key, err)
	}
	err = again(ctx, func() error {
		there, _, version, err := to.load(ctx, e)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, ErrDamaged) && force:
		case errors.Is(err, ErrDamaged):
			return fmt.Errorf("%s: %w, which is %w", e.Key, ErrDiffers, err)
		case err != nil:
			return fmt.Errorf("%s in the target: %w", e.Key, err)
		case bytes.Equal(plain, there):
			return nil
		case !force:
			return fmt.Errorf("%s: %w", e.Key, ErrDiffers)
		}
		raw := plain
		if to.keys != nil && e.kind.Secret() {
			if raw, err = to.keys.Seal(e.Key, plain); err != nil {
				return err
			}
		}
		_, err = to.store.Swap(ctx, e.Key, raw, version)
		wrote = err == nil
		return err
	})
	return wrote, err
}
