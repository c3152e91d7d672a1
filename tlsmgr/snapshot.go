package tlsmgr

import (
	"context"
	"log/slog"
	"maps"

	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// loadSnapshot serves what the snapshot has, when the storage cannot be read at
// the start, also when ctx has ended by waiting for it. It replaces nothing that
// is loaded.
func (m *Manager) loadSnapshot(ctx context.Context) {
	m.mu.Lock()
	s := m.snapshot
	m.mu.Unlock()
	if s == nil {
		return
	}
	ctx = context.WithoutCancel(ctx) // it is a local disk
	certificates, err := s.Certificates(ctx)
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "snapshot not read", slog.Any("error", oneError(err)))
		return
	}
	var news []string
	for id, o := range certificates {
		c, err := newStored(o)
		if err != nil {
			continue // a copy; the storage has the original
		}
		m.mu.Lock()
		if m.loaded[id] == nil {
			m.loaded[id] = &stored{cert: c}
			news = append(news, id)
		}
		m.mu.Unlock()
	}
	if len(news) > 0 {
		m.log.LogAttrs(ctx, slog.LevelWarn, "serving from the snapshot until the storage answers", slog.Int("certificates", len(news)))
	}
	m.serve(ctx, news...)
}

// snap brings the snapshot up to what is loaded: what changed is written, and
// after a complete look what is gone is removed.
func (m *Manager) snap(ctx context.Context, complete bool) {
	m.mu.Lock()
	s := m.snapshot
	var news []*vault.Certificate
	var ids []string
	if s != nil {
		for id, l := range m.loaded {
			if l.cert == nil || l.version == "" {
				continue
			}
			ids = append(ids, id)
			if m.snapped[id] != l.version {
				m.snapped[id] = l.version
				news = append(news, l.cert.object)
			}
		}
		maps.DeleteFunc(m.snapped, func(id string, _ store.Version) bool { return m.loaded[id] == nil })
	}
	m.mu.Unlock()
	for _, o := range news {
		if err := s.PutCertificate(o); err != nil {
			m.log.LogAttrs(ctx, slog.LevelWarn, "snapshot not written", slog.String("certificate", o.ID), slog.Any("error", oneError(err)))
			m.mu.Lock()
			delete(m.snapped, o.ID)
			m.mu.Unlock()
		}
	}
	if len(news) > 0 && complete {
		if err := s.Keep(ids); err != nil {
			m.log.LogAttrs(ctx, slog.LevelWarn, "snapshot not tidied", slog.Any("error", oneError(err)))
		}
	}
}
