package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"edge/hostname"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// shelf marks the id of a certificate that was replaced by one without some of
// its names. It serves those names until something else does.
const shelf = ".old"

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
	m.mu.Unlock()
	if !alone {
		return nil
	}
	old := *l.cert.object
	old.ID = l.cert.id + shelf
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
	if kept := m.loaded[id]; strings.HasSuffix(old.id, shelf) || old.object == nil || old.expired(now) || kept != nil && kept.version != "" {
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
		kept := strings.HasSuffix(id, shelf) && !slices.ContainsFunc(l.cert.names, func(n string) bool { return m.dependsLocked(st, l.cert, n, now) })
		if kept || now.Sub(l.cert.leaf().NotAfter) > keepExpired {
			out = append(out, id)
		}
	}
	return out
}

// discard deletes a stored certificate under its lease, if it is still what was
// loaded.
func (m *Manager) discard(ctx context.Context, v *vault.Vault, id string) error {
	lease, ok, err := v.Store().TryAcquire(ctx, leaseOf(id))
	if err != nil || !ok {
		return err
	}
	defer giveUp(ctx, lease)
	m.mu.Lock()
	l := m.loaded[id]
	m.mu.Unlock()
	_, version, err := v.Store().LoadVersion(ctx, vault.Certificates.Key(id))
	if err != nil || l == nil || l.version != version {
		return err
	}
	if err := v.Store().Delete(ctx, vault.Certificates.Key(id)); err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	m.log.LogAttrs(ctx, slog.LevelInfo, "a stored certificate that nobody needs was deleted", slog.String("certificate", id))
	return nil
}
