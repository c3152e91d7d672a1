package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"edge/tlsmgr/store"
)

// rotateWait is how long Rotate waits for whoever is at work on an object. An
// order takes seconds to minutes; a lease without a holder lapses sooner.
const rotateWait = 2 * time.Minute

// errBusy is an object that others were at work on for all of rotateWait.
var errBusy = fmt.Errorf("in use for %s, as while an order is under way (run it again later)", rotateWait)

// stale reports whether an object that was sealed by this key, "" for none, is
// to be sealed again.
func (k *Keyring) stale(sealedBy string) bool { return k != nil && sealedBy != k.keys[0].id }

// Rotate seals again, with the first key, what is plain or sealed by another,
// and returns how many objects it wrote. Content is kept as it is. It may run
// while edge works, and be repeated: what is done stays done. Objects that
// cannot be read, or are in use for long, are left alone and told in the error,
// after all others had their turn. progress may be nil.
//
// It writes under the lease of each object (Kind.Lease). By Swap alone nothing
// would be lost in the storage, but whoever is at work on the object would take
// the new version for somebody else's work and drop its own: a certificate that
// was just issued, for example.
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
	_, sealedBy, _, err := v.load(ctx, e)
	switch {
	case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
		return false, nil
	case err != nil:
		return false, fmt.Errorf("%s: %w", e.Key, err)
	case !v.keys.stale(sealedBy): // most are not: no lease for them
		return false, nil
	}
	lease, err := v.wait(ctx, e)
	if err != nil {
		return false, fmt.Errorf("%s: %w", e.Key, err)
	}
	defer func() { err = errors.Join(err, lease.Release(ctx)) }()
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	return v.reseal(ctx, e)
}

// wait acquires the lease of e.
func (v *Vault) wait(ctx context.Context, e entry) (*store.Lease, error) {
	bounded, cancel := context.WithTimeoutCause(ctx, rotateWait, errBusy)
	defer cancel()
	return v.store.Acquire(bounded, e.kind.Lease(e.id))
}

// reseal seals e again, whatever it holds now.
func (v *Vault) reseal(ctx context.Context, e entry) (wrote bool, err error) {
	err = again(ctx, func() error {
		plain, sealedBy, version, err := v.load(ctx, e)
		switch {
		case errors.Is(err, fs.ErrNotExist):
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
