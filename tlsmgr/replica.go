package tlsmgr

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// Replicas tell each other which certificates they have loaded, by an object
// each, so that none is retired while one of them still serves it.

const (
	beatEvery = 3 // looks at the storage between two heartbeats
	silence   = 3 // heartbeats that a replica may miss before it counts as gone
)

// fleet is what this process knows about the replicas, itself included. It is
// guarded by Manager.mu.
type fleet struct {
	id      string // of this process
	started time.Time
	seq     int64
	version store.Version // of its own object
	looks   int           // since the last heartbeat
	recent  []string      // ids of certificates, the latest last
	denied  bool          // the storage does not let this process write; said once
	peers   map[string]*peer
}

// A peer is another replica. Its heart beats when its object changes: clocks of
// two machines are never compared.
type peer struct {
	version store.Version
	record  vault.Replica
	seen    time.Time // when this version was seen first, by our own clock
}

func newFleet(owner string) fleet {
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' {
			return '-'
		}
		return r
	}, owner)
	return fleet{id: shorten(name, 80) + "-" + strings.ToLower(rand.Text()[:8]), started: time.Now(), looks: beatEvery, peers: map[string]*peer{}}
}

// heard notes the object of a peer.
func (f *fleet) heard(id string, version store.Version, record vault.Replica) {
	if p := f.peers[id]; p == nil || p.version != version {
		f.peers[id] = &peer{version: version, record: record, seen: time.Now()}
	}
}

// live are the peers whose hearts beat.
func (f *fleet) live(now time.Time) []*peer {
	var out []*peer
	for id, p := range f.peers {
		if id != f.id && now.Sub(p.seen) < silence*max(p.record.Interval, time.Second) {
			out = append(out, p)
		}
	}
	return out
}

// loaded notes that this process serves certificate id from now on.
func (f *fleet) loaded(id string) {
	f.recent = append(slices.DeleteFunc(f.recent, func(other string) bool { return other == id }), id)
	if extra := len(f.recent) - vault.MaxRecent; extra > 0 {
		f.recent = slices.Delete(f.recent, 0, extra)
	}
	f.looks = beatEvery // tell it at the next look
}

// everywhereLocked reports whether every live replica serves what this process
// has loaded for id.
func (m *Manager) everywhereLocked(id string, now time.Time) bool {
	l := m.loaded[id]
	if l == nil || l.cert == nil {
		return false
	}
	digest := ""
	for _, p := range m.fleet.live(now) {
		if p.record.Recent[id] == l.cert.serial() {
			continue
		}
		if digest == "" {
			digest = m.digestLocked()
		}
		if p.record.Digest != digest {
			return false
		}
	}
	return true
}

// digestLocked is a digest of all certificates that are loaded from the storage.
func (m *Manager) digestLocked() string {
	h := sha256.New()
	for _, id := range slices.Sorted(maps.Keys(m.loaded)) {
		l := m.loaded[id]
		if c := l.cert; c != nil && l.version != "" { // what only this process has is nothing to compare
			_, _ = h.Write([]byte(id + "\n" + c.serial() + "\n"))
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// beat writes this process's heartbeat when it is time. A storage that may only
// be read, as a serving replica's may, is complained about once.
func (m *Manager) beat(ctx context.Context, v *vault.Vault) {
	m.mu.Lock()
	f := &m.fleet
	if f.looks++; f.looks < beatEvery {
		m.mu.Unlock()
		return
	}
	f.looks = 0
	f.seq++
	record := vault.Replica{
		ID: f.id, Owner: m.options.Owner, Version: m.options.Version, Started: f.started.UTC(), Beat: time.Now().UTC(), Seq: f.seq,
		Interval: beatEvery * m.options.Interval, Digest: m.digestLocked(), Recent: map[string]string{}, Role: roleOf(m.state.Load()),
	}
	for _, id := range f.recent {
		if l := m.loaded[id]; l != nil && l.cert != nil {
			record.Recent[id] = l.cert.serial()
		}
	}
	old := f.version
	m.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	version, err := vault.Save(ctx, v, record.ID, &record, old)
	if errors.Is(err, store.ErrConflict) { // removed by a clean-up while this process slept
		if _, old, err = v.Store().LoadVersion(ctx, vault.Replicas.Key(record.ID)); errors.Is(err, fs.ErrNotExist) {
			old, err = "", nil
		}
		if err == nil {
			version, err = vault.Save(ctx, v, record.ID, &record, old)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		f.version, f.denied = version, false
	case !f.denied && ctx.Err() == nil:
		f.denied = true
		m.log.LogAttrs(ctx, slog.LevelWarn, "heartbeat not written: other replicas do not see this one", slog.Any("error", oneError(err)))
	}
}

// leave removes this process's heartbeat, so that nobody waits for it.
func (m *Manager) leave(v *vault.Vault) {
	m.mu.Lock()
	id, written := m.fleet.id, m.fleet.version != ""
	m.mu.Unlock()
	if !written {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	_ = v.Store().Delete(ctx, vault.Replicas.Key(id)) // it counts as gone soon anyway
}

func roleOf(st *state) string {
	if st.cfg.ServeOnly {
		return "serve"
	}
	return "issue"
}
