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

// How long what nobody needs any more is kept.
const (
	keepLeases     = 7 * 24 * time.Hour  // released, since then unchanged
	keepReplicas   = 24 * time.Hour      // since the last heartbeat
	keepOrders     = 24 * time.Hour      // since nothing is open, and no name in quarantine was due again
	keepChallenges = time.Hour           // since they expired
	keepBudgets    = 31 * 24 * time.Hour // each event; longer than any limit of a CA looks back
)

// sweepLease is held while sweeping: one replica at a time is enough.
const sweepLease = "sweep"

// Swept says what Sweep deleted; of budgets, how many were shortened.
type Swept struct {
	Leases     int `json:"leases"`
	Replicas   int `json:"replicas"`
	Orders     int `json:"orders"`
	Challenges int `json:"challenges"`
	Budgets    int `json:"budgets"`
}

// Sweep deletes what nobody needs any more: leases released a week ago, replicas
// silent for a day, orders without anything open or quarantined for a day,
// challenges an hour after they expired. It shortens budgets. now is compared
// with times that other machines wrote; both those and the storage's own times
// of change must agree that the object is old.
//
// Orders and challenges are read again and deleted under their lease
// (Kind.Lease), so whoever changes them under it loses nothing. A replica that
// wakes after a day may find its heartbeat deleted; it writes it anew. While
// another process sweeps, Sweep does nothing. It costs one paged LIST and one
// for the leases, and some requests for each object that is due.
func (v *Vault) Sweep(ctx context.Context, now time.Time) (_ Swept, err error) {
	lease, ok, err := v.store.TryAcquire(ctx, sweepLease)
	if err != nil || !ok {
		return Swept{}, err
	}
	defer func() { err = errors.Join(err, lease.Release(ctx)) }()
	ctx, cancel := lease.Context(ctx)
	defer cancel()

	ours, _, err := v.list(ctx)
	if err != nil {
		return Swept{}, fmt.Errorf("sweep: %w", err)
	}
	old := ours[:0]
	for _, e := range ours {
		if keep, ok := keeps(e.kind); ok && now.Sub(e.Modified) > keep {
			old = append(old, e)
		}
	}
	var c counter
	err = each(ctx, old, nil, func(ctx context.Context, e entry) error {
		done, err := v.sweep(ctx, e, now)
		if done {
			c.count(e.kind)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.Key, err)
		}
		return nil
	})
	swept := c.swept()
	leases, leasesErr := v.store.SweepLeases(ctx, keepLeases)
	swept.Leases = leases
	if err := errors.Join(err, leasesErr); err != nil {
		return swept, fmt.Errorf("sweep: %w", err)
	}
	return swept, nil
}

// keeps is for how long an object of this kind is not even looked at after it
// was written; false for those that stay.
func keeps(kind Kind) (time.Duration, bool) {
	switch kind {
	case Replicas:
		return keepReplicas, true
	case Orders:
		return keepOrders, true
	case Challenges:
		return keepChallenges, true
	case Budgets:
		return keepReplicas, true // one that is used is shortened by its users
	case Certificates, Accounts, Authorities:
		return 0, false
	}
	return 0, false
}

// sweep deletes or shortens e when it is due.
func (v *Vault) sweep(ctx context.Context, e entry, now time.Time) (done bool, err error) {
	switch e.kind {
	case Budgets:
		_, _, err = Update(ctx, v, e.id, func(b *Budget) (bool, error) {
			*b, done = b.Pruned(now.Add(-keepBudgets))
			return done, nil
		})
	case Replicas:
		var version store.Version
		if done, version, err = v.due(ctx, e, now); done {
			err = v.store.Remove(ctx, e.Key, version)
		}
	case Orders, Challenges:
		done, err = v.sweepLeased(ctx, e, now)
	case Certificates, Accounts, Authorities:
	}
	if errors.Is(err, ErrNewer) || errors.Is(err, ErrNoKey) || errors.Is(err, ErrDamaged) {
		return false, nil // stays; Verify tells
	}
	if errors.Is(err, store.ErrConflict) {
		return false, nil // it is used again
	}
	return done && err == nil, err
}

// sweepLeased deletes e under its lease when it is due. One whose lease is held
// is in use.
func (v *Vault) sweepLeased(ctx context.Context, e entry, now time.Time) (done bool, err error) {
	if due, _, err := v.due(ctx, e, now); err != nil || !due {
		return false, err // most are not: no lease for them
	}
	lease, ok, err := v.store.TryAcquire(ctx, e.kind.Lease(e.id))
	if err != nil || !ok {
		return false, err
	}
	defer func() { err = errors.Join(err, lease.Release(ctx)) }()
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	due, version, err := v.due(ctx, e, now)
	if err != nil || !due {
		return false, err
	}
	if err := lease.Err(); err != nil { // this process slept
		return false, err
	}
	return true, v.store.Remove(ctx, e.Key, version)
}

// due reads e again and reports whether it can go, and which version.
func (v *Vault) due(ctx context.Context, e entry, now time.Time) (bool, store.Version, error) {
	plain, _, version, err := v.load(ctx, e)
	if errors.Is(err, fs.ErrNotExist) {
		return false, "", nil
	}
	if err != nil {
		return false, "", err
	}
	o, err := read(e.kind, e.id, plain)
	if err != nil {
		return false, "", err
	}
	return over(o, now), version, nil
}

// over reports whether nobody needs o any more.
func over(o object, now time.Time) bool {
	switch o := o.(type) {
	case Replica:
		silent := now.Sub(o.Beat)
		return silent > keepReplicas || silent < -keepReplicas // or its clock was wrong
	case Order:
		idle := o.Attempt == nil && len(o.Leftovers) == 0
		for _, q := range o.Quarantine { // one that is wanted is tried again when it is due
			idle = idle && now.Sub(q.Next) > keepOrders
		}
		return idle && now.Sub(o.UpdatedAt) > keepOrders && now.After(o.Next)
	case Challenge:
		return now.Sub(o.Expires) > keepChallenges
	default:
		return false
	}
}

// Pruned is b without the events before since, and whether there were any.
func (b Budget) Pruned(since time.Time) (_ Budget, some bool) {
	var more bool
	b.Orders, some = after(b.Orders, since)
	b.Domains, more = afterEach(b.Domains, since)
	some = some || more
	b.Sets, more = afterEach(b.Sets, since)
	some = some || more
	b.Failed, more = afterEach(b.Failed, since)
	return b, some || more
}

func afterEach(events map[string][]time.Time, since time.Time) (left map[string][]time.Time, some bool) {
	left = map[string][]time.Time{}
	for name, times := range events {
		kept, fewer := after(times, since)
		some = some || fewer || len(kept) == 0
		if len(kept) > 0 {
			left[name] = kept
		}
	}
	return left, some
}

// after returns those of times that are not before since, and whether others
// were among them.
func after(times []time.Time, since time.Time) (left []time.Time, some bool) {
	for _, t := range times {
		if !t.Before(since) {
			left = append(left, t)
		}
	}
	return left, len(left) < len(times)
}

// counter counts deletions of several goroutines.
type counter struct{ replicas, orders, challenges, budgets atomic.Int64 }

func (c *counter) count(kind Kind) {
	switch kind {
	case Replicas:
		c.replicas.Add(1)
	case Orders:
		c.orders.Add(1)
	case Challenges:
		c.challenges.Add(1)
	case Budgets:
		c.budgets.Add(1)
	case Certificates, Accounts, Authorities:
	}
}

func (c *counter) swept() Swept {
	return Swept{
		Replicas: int(c.replicas.Load()), Orders: int(c.orders.Load()),
		Challenges: int(c.challenges.Load()), Budgets: int(c.budgets.Load()),
	}
}
