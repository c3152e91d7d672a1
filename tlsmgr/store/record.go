package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"time"

	"github.com/caddyserver/certmagic"
)

const (
	recordFormat = 1
	maxWatches   = 4096 // leases that a process remembers, of others and orphans
	maxLeaseName = 512  // bytes of a name that its record repeats
	stateHeld    = "held"
	stateFree    = "free"
)

// record is the lease object in the storage. Every write differs from the one
// before in nonce, beat or state, so its version tells them apart.
type record struct {
	Format int       `json:"format"`
	State  string    `json:"state"`          // held or free
	Nonce  string    `json:"nonce"`          // random, per acquisition
	Name   string    `json:"name,omitempty"` // for people, since keys may hold a digest instead
	Owner  string    `json:"owner"`          // for people
	Beat   int64     `json:"beat"`           // heartbeats of this acquisition
	Fence  int64     `json:"fence"`          // acquisitions of this lease so far
	TTL    int64     `json:"ttl_ms"`         // a duration: clocks of two machines are never compared
	At     time.Time `json:"at"`             // for people
}

func newRecord(name, owner string, ttl time.Duration, fence int64) record {
	r := record{
		Format: recordFormat, State: stateHeld, Nonce: rand.Text(), Name: name, Owner: owner,
		Fence: fence, TTL: ttl.Milliseconds(), At: time.Now().UTC(),
	}
	if len(name) > maxLeaseName {
		r.Name = ""
	}
	return r
}

func (r record) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // a year beyond 9999
	}
	return append(b, '\n')
}

// ttl is how long the holder may be silent; fallback when the record does not
// say.
func (r record) ttl(fallback time.Duration) time.Duration {
	if r.TTL <= 0 {
		return fallback
	}
	return min(time.Duration(min(r.TTL, maxLeaseTTL.Milliseconds()))*time.Millisecond, maxLeaseTTL)
}

func (r record) holder() string {
	return fmt.Sprintf("%q, fence %d, %s", r.Owner, r.Fence, r.State)
}

// readLease returns the record at key; a missing one is free with version "".
// What cannot be understood, be it damage or a newer format, is somebody's:
// it may be taken over when it does not change for a TTL.
func (s *Store) readLease(ctx context.Context, key string) (record, Version, error) {
	b, v, err := s.leases.get(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return record{State: stateFree}, "", nil
	}
	if err != nil {
		return record{}, "", err
	}
	var r record
	if json.Unmarshal(b, &r) != nil || r.Format != recordFormat || r.State != stateFree && r.State != stateHeld {
		return record{State: stateHeld, Owner: "unreadable record", Fence: r.Fence}, v, nil
	}
	return r, v, nil
}

// leaseKey is where the lease called name lives. Names that are not safe
// component names as they are carry a digest, so that no two share an object.
func leaseKey(name string) string {
	const maxName = 100
	safe := certmagic.StorageKeys.Safe(name)
	if safe != name || len(safe) > maxName || safe[0] == '.' {
		sum := sha256.Sum256([]byte(name))
		safe = safe[:min(len(safe), maxName)] + "-" + hex.EncodeToString(sum[:8])
	}
	return leaseDir + "/" + safe + leaseExt
}

// stopwatch is the version of a lease and when we saw it first, by our own
// monotonic clock.
type stopwatch struct {
	version Version
	since   time.Time
}

// idle returns for how long the lease at key has been seen unchanged. It
// remembers that between calls, or a lease that is only ever tried would never
// be seen to lapse. Forgetting one, when there are many, costs another TTL.
func (s *Store) idle(key string, v Version) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	w, ok := s.watches[key]
	if !ok || w.version != v {
		makeRoom(s.watches)
		w = stopwatch{version: v, since: now}
		s.watches[key] = w
	}
	return now.Sub(w.since)
}

// orphan remembers a record of ours that may stand in the storage although
// nobody works under it any more, because the storage failed when it was to be
// given up. Others must wait until it lapses; we need not.
func (s *Store) orphan(key string, r record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	makeRoom(s.orphans)
	s.orphans[key] = r.Nonce
}

func (s *Store) isOrphan(key string, r record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	nonce, ok := s.orphans[key]
	return ok && nonce == r.Nonce
}

// makeRoom forgets one entry when there are maxWatches.
func makeRoom[V any](m map[string]V) {
	if len(m) < maxWatches {
		return
	}
	for key := range m {
		delete(m, key)
		return
	}
}

// pollInterval is 0.25 to 0.75 s at the default TTL, and less for a smaller.
func pollInterval(ttl time.Duration) time.Duration {
	mean := max(ttl/60, minPoll)
	return mean/2 + mathrand.N(mean) //nolint:gosec // jitter, nothing depends on it being unpredictable
}

// queue is the line of one process for one lease.
type queue struct {
	slot    chan struct{} // full while somebody contends or holds
	waiting int           // holders of a reference, guarded by Store.mu
}

// enqueue waits until this caller is the only one of its process to contend
// for key. Without wait it reports false instead of waiting.
func (s *Store) enqueue(ctx context.Context, key string, wait bool) (bool, error) {
	s.mu.Lock()
	q := s.queues[key]
	if q == nil {
		q = &queue{slot: make(chan struct{}, 1)}
		s.queues[key] = q
	}
	q.waiting++
	s.mu.Unlock()

	err := context.Cause(ctx)
	if err == nil {
		select {
		case q.slot <- struct{}{}:
			return true, nil
		default:
		}
		if wait {
			select {
			case q.slot <- struct{}{}:
				return true, nil
			case <-ctx.Done():
				err = context.Cause(ctx)
			case <-s.closing:
				err = ErrClosed
			}
		}
	}
	s.leaveQueue(key, q)
	return false, err
}

// dequeue undoes a successful enqueue.
func (s *Store) dequeue(key string) {
	s.mu.Lock()
	q := s.queues[key]
	s.mu.Unlock()
	<-q.slot
	s.leaveQueue(key, q)
}

func (s *Store) leaveQueue(key string, q *queue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.waiting--; q.waiting == 0 {
		delete(s.queues, key)
	}
}
