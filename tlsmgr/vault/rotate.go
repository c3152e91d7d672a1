package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
)

// stale reports whether an object that was sealed by this key, "" for none, is
// to be sealed again.
func (k *Keyring) stale(sealedBy string) bool { return k != nil && sealedBy != k.keys[0].id }

// Rotate seals again, with the first key, what is plain or sealed by another,
// and returns how many objects it wrote. Content is kept as it is. It may run
// while edge works, and be repeated: what is done stays done. Objects that
// cannot be read are left alone and told in the error, after all others had
// their turn. progress may be nil.
//
// A key may be removed from the configuration when Rotate has run without an
// error since every edge has the new one first.
func (v *Vault) Rotate(ctx context.Context, progress func(done, total int)) (n int, err error) {
	if v.keys == nil {
		return 0, errors.New("rotate: no keys (set storage.encrypt.keys)")
	}
	ours, _, err := v.list(ctx)
	if err != nil {
		return 0, fmt.Errorf("rotate: %w", err)
	}
	secret := ours[:0]
	for _, e := range ours {
		if e.kind.Secret() {
			secret = append(secret, e)
		}
	}
	var count atomic.Int64
	err = each(ctx, secret, progress, func(ctx context.Context, e entry) error {
		wrote, err := v.rotate(ctx, e)
		if wrote {
			count.Add(1)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("rotate: %w", err)
	}
	return int(count.Load()), err
}

func (v *Vault) rotate(ctx context.Context, e entry) (wrote bool, err error) {
	err = again(ctx, func() error {
		plain, sealedBy, version, err := v.load(ctx, e)
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", e.Key, err)
		case !v.keys.stale(sealedBy):
			return nil
		}
		if _, err := read(e.kind, e.id, plain); err != nil {
			return fmt.Errorf("%s: %w", e.Key, err)
		}
		sealed, err := v.keys.Seal(e.Key, plain)
		if err != nil {
			return err
		}
		_, err = v.store.Swap(ctx, e.Key, sealed, version)
		wrote = err == nil
		return err
	})
	return wrote, err
}
