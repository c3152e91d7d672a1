package tlsmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"edge/hostname"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// shelf marks the id of a certificate that was replaced by one without some of
// its names. It serves those names until something else does. A second one that
// is needed beside it has the id with a number after that, and so on.
const (
	shelf      = ".old"
	maxShelved = 4
)

// onShelf is the id of the certificate that id was kept of, if it was.
func onShelf(id string) (of string, ok bool) {
	for n := range maxShelved {
		if of, ok = strings.CutSuffix(id, shelfOf("", n)); ok {
			return of, true
		}
	}
	return "", false
}

func shelfOf(id string, n int) string {
	if n == 0 {
		return id + shelf
	}
	return id + shelf + "." + strconv.Itoa(n+1)
}

// roomLocked is the id under which to keep what is stored for id: one that holds
// nothing which is still needed, else the one that ends first.
func (m *Manager) roomLocked(st *state, id string, now time.Time) (room string) {
	var ends time.Time
	for n := range maxShelved {
		kept := shelfOf(id, n)
		l := m.loaded[kept]
		switch {
		case l != nil && untouchable(l.err):
			continue
		case l == nil, l.cert == nil, l.cert.expired(now), !m.neededLocked(st, l.cert, now):
			return kept
		}
		if end := l.cert.leaf().NotAfter; room == "" || end.Before(ends) {
			room, ends = kept, end
		}
	}
	return cmp.Or(room, shelfOf(id, 0))
}

// neededLocked reports whether a name depends on c.
func (m *Manager) neededLocked(st *state, c *certificate, now time.Time) bool {
	return slices.ContainsFunc(c.names, func(n string) bool { return m.dependsLocked(st, c, n, now) })
}

const (
	janitorLease = "janitor"
	janitorRound = 180                // looks at the storage between two clean-ups: half an hour
	keepExpired  = 7 * 24 * time.Hour // a certificate that no plan wants, after its end
)

// shelve keeps what is stored for b beside its successor next, if it alone has
// names that are still wanted: one was moved to another certificate that not
// every replica has loaded yet, or is in quarantine.
func (m *Manager) shelve(ctx context.Context, v *vault.Vault, st *state, l *stored, next *vault.Certificate) error {
	now := time.Now()
	if l.cert == nil || l.version == "" || l.cert.expired(now) {
		return nil
	}
	m.mu.Lock()
	alone := slices.ContainsFunc(l.cert.names, func(n string) bool {
		return !covered(next.Names, n) && m.dependsLocked(st, l.cert, n, now)
	})
	old := *l.cert.object
	old.ID = m.roomLocked(st, l.cert.id, now)
	m.mu.Unlock()
	if !alone {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if err := overwrite(ctx, v, old.ID, &old); err != nil {
		return fmt.Errorf("keep the certificate that still serves some names: %w", err)
	}
	m.log.LogAttrs(ctx, slog.LevelInfo, "the replaced certificate is kept for names that only it has", slog.String("certificate", old.ID))
	return nil
}

// retainLocked goes on serving old, which next has replaced, while it alone has
// names that this process wants. It was renewed without them by a replica with
// another configuration, as in a rolling update, and this one yields to it for a
// while. Or next has expired: the storage went back to what it had some time ago.
func (m *Manager) retainLocked(old, next *certificate, now time.Time) {
	id := old.id + shelf
	_, shelved := onShelf(old.id)
	if kept := m.loaded[id]; shelved || old.object == nil || old.expired(now) || kept != nil && kept.version != "" {
		return
	}
	st := m.state.Load()
	if !slices.ContainsFunc(old.names, func(n string) bool {
		return (next.expired(now) || !covered(next.names, n)) && m.dependsLocked(st, old, n, now)
	}) {
		return
	}
	c, o := *old, *old.object
	c.id, o.ID, c.object = id, id, &o
	m.loaded[id] = &stored{cert: &c}
}

func covered(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return hostname.Covers(n, name) })
}

// dependsLocked reports whether a wanted name n of certificate c has no other
// valid certificate of the plan that every live replica has loaded.
func (m *Manager) dependsLocked(st *state, c *certificate, n string, now time.Time) bool {
	if _, wanted := slices.BinarySearch(st.wanted, n); !wanted {
		return false
	}
	for _, f := range m.files {
		if f.covers(n) && !f.expired(now) {
			return false
		}
	}
	for id, l := range m.loaded {
		if id != c.id && l.cert != nil && st.bundles[id] != nil && l.cert.covers(n) && !l.cert.expired(now) && m.everywhereLocked(id, now) {
			return false
		}
	}
	return true
}

// tidy cleans the storage up, in one replica at a time and not often: what
// vault.Sweep knows, and certificates that nobody needs any more.
func (m *Manager) tidy(ctx context.Context, v *vault.Vault, st *state) {
	lease, ok, err := v.Store().TryAcquire(ctx, janitorLease)
	if err != nil || !ok {
		return
	}
	defer giveUp(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	swept, err := v.Sweep(ctx, time.Now())
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "clean-up of the storage", slog.Any("error", oneError(err)))
	} else {
		m.log.LogAttrs(ctx, slog.LevelDebug, "storage cleaned up", slog.Any("swept", swept))
	}
	for _, id := range m.needless(st, time.Now()) {
		if err := m.discard(ctx, v, id); err != nil && ctx.Err() == nil {
			m.log.LogAttrs(ctx, slog.LevelWarn, "certificate that nobody needs is still stored",
				slog.String("certificate", id), slog.Any("error", oneError(err)))
		}
	}
}

// needless are stored certificates that can go: those that no plan wants, a
// week after their end, and kept ones as soon as all their names are served by
// others.
func (m *Manager) needless(st *state, now time.Time) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for id, l := range m.loaded {
		if l.cert == nil || l.version == "" || l.err != nil || st.bundles[id] != nil {
			continue
		}
		_, kept := onShelf(id)
		if kept && !m.neededLocked(st, l.cert, now) || now.Sub(l.cert.leaf().NotAfter) > keepExpired {
			out = append(out, id)
		}
	}
	return out
}

// discard deletes a stored certificate, if it is still what was loaded, under the
// lease of those who write it.
func (m *Manager) discard(ctx context.Context, v *vault.Vault, id string) error {
	of, kept := onShelf(id)
	if !kept {
		of = id
	}
	lease, ok, err := v.Store().TryAcquire(ctx, leaseOf(of))
	if err != nil || !ok {
		return err
	}
	defer giveUp(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	m.mu.Lock()
	l := m.loaded[id]
	m.mu.Unlock()
	_, version, err := v.Store().LoadVersion(ctx, vault.Certificates.Key(id))
	if err != nil || l == nil || l.version != version {
		return err
	}
	err = v.Store().Remove(ctx, vault.Certificates.Key(id), version)
	if errors.Is(err, store.ErrConflict) { // an import, which takes no lease, was faster
		return nil
	}
	if err != nil {
		return err
	}
	m.log.LogAttrs(ctx, slog.LevelInfo, "a stored certificate that nobody needs was deleted", slog.String("certificate", id))
	return nil
}
