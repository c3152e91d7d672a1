package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	leaseDir  = "locks"
	leaseExt  = ".json"
	maxSweeps = 8 // at a time
)

// LeaseInfo is what the record of a lease says, for people.
type LeaseInfo struct {
	Name  string        // as it was acquired; of records by older versions, the name of the object
	Owner string        // of the last holder
	Held  bool          // not released; the holder may be dead nevertheless
	Fence int64         // acquisitions since there is a record
	TTL   time.Duration // how long the holder may be silent; 0 is unknown
	At    time.Time     // of the last heartbeat or of the release, by the clock of the holder
}

// Leases returns the leases that have a record, held or free, in order of
// their names. It costs a listing and a read each.
func (s *Store) Leases(ctx context.Context) ([]LeaseInfo, error) {
	objects, err := s.ListVersions(ctx, leaseDir)
	if err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	var mu sync.Mutex
	var infos []LeaseInfo
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxRequests)
	for _, o := range objects {
		if !isLease(o.Key) {
			continue
		}
		g.Go(func() error {
			r, version, err := s.readLease(gctx, o.Key)
			if err != nil || version == "" { // swept meanwhile
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			infos = append(infos, r.info(o.Key))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	slices.SortFunc(infos, func(a, b LeaseInfo) int { return cmp.Compare(a.Name, b.Name) })
	return infos, nil
}

// isLease leaves out what else may lie below the directory.
func isLease(key string) bool {
	return path.Dir(key) == leaseDir && path.Ext(key) == leaseExt
}

func (r record) info(key string) LeaseInfo {
	name := r.Name
	if leaseKey(cmp.Or(name, ".")) != key {
		name = strings.TrimSuffix(path.Base(key), leaseExt)
	}
	return LeaseInfo{Name: name, Owner: r.Owner, Held: r.State == stateHeld, Fence: r.Fence, TTL: r.ttl(0), At: r.At}
}

// SweepLeases deletes the records of leases that were released and have not
// changed for olderThan since, and returns how many. Both the storage's clock
// and the one of the last holder must say so; neither has to be right: a sweep
// takes each lease before it deletes its record, so that whoever wants it at
// that moment waits or comes first. Only a sweep that is stopped between the
// two for longer than a TTL can delete the record of an heir, and only in S3,
// whose deletes take no condition; the heir then loses its lease.
//
// A deleted record begins its fence anew. What cannot be swept is left for the
// next sweep; the error is the first.
func (s *Store) SweepLeases(ctx context.Context, olderThan time.Duration) (int, error) {
	objects, err := s.ListVersions(ctx, leaseDir)
	if err != nil {
		return 0, fmt.Errorf("sweep leases: %w", err)
	}
	limit := time.Now().Add(-olderThan)
	var swept atomic.Int64
	var g errgroup.Group
	g.SetLimit(maxSweeps)
	for _, o := range objects {
		if !isLease(o.Key) || o.Modified.After(limit) {
			continue
		}
		g.Go(func() error {
			done, err := s.sweepLease(ctx, o, limit)
			if done {
				swept.Add(1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return int(swept.Load()), fmt.Errorf("sweep leases: %w", err)
	}
	return int(swept.Load()), nil
}

// sweepLease deletes one record, if it is still the free one that was listed.
func (s *Store) sweepLease(ctx context.Context, o Object, limit time.Time) (bool, error) {
	first, err := s.enqueue(ctx, o.Key, false)
	if !first || err != nil {
		return false, err
	}
	l, err := s.claimFree(ctx, o, limit)
	if l == nil {
		s.dequeue(o.Key)
		return false, err
	}
	// Without heartbeats from here on, which would change the version. The
	// lease still holds for a TTL.
	l.stop()
	<-l.done
	within, cancel := context.WithTimeout(ctx, min(l.ttl/2, time.Until(l.expiry())))
	defer cancel()
	if err := l.Err(); err != nil {
		return false, errors.Join(err, l.Release(ctx))
	}
	if err := s.leases.remove(within, o.Key, l.version); err != nil {
		return false, errors.Join(fmt.Errorf("delete %q: %w", o.Key, err), l.Release(ctx))
	}
	l.end(errReleased)
	s.forget(l)
	return true, nil
}

// claimFree takes the lease at o. nil, nil is that there is nothing to sweep.
func (s *Store) claimFree(ctx context.Context, o Object, limit time.Time) (*Lease, error) {
	found, version, err := s.readLease(ctx, o.Key)
	if err != nil || version != o.Version || found.State != stateFree || found.At.After(limit) {
		return nil, err
	}
	return s.claim(ctx, found.info(o.Key).Name, o.Key, found, version)
}
