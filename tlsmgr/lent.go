package tlsmgr

import "time"

// A certificate that the operator brought from elsewhere serves its names until
// it is due: a move to edge costs no order. Then the bundle of its names is
// ordered as a whole.

// lentLocked is the imported certificate that is due first among those that
// serve the names of b in its stead; nil when one of the names has none.
func (m *Manager) lentLocked(st *state, b *Bundle, now time.Time) (first *certificate) {
	for _, name := range b.Names {
		c := m.lenderLocked(st, name, now)
		if c == nil {
			return nil
		}
		if first == nil || renewAt(c).Before(renewAt(first)) {
			first = c
		}
	}
	return first
}

// lenderLocked is an imported certificate that no bundle is named after, has
// name, and is not due.
func (m *Manager) lenderLocked(st *state, name string, now time.Time) *certificate {
	e := m.index.Load().find(name) // what serves it
	if e == nil {
		return nil
	}
	c := e.best
	if c.object == nil || !c.object.Imported || st.bundles[c.id] != nil || !c.covers(name) || !now.Before(renewAt(c)) {
		return nil
	}
	return c
}

// needLocked is what bundle b needs now.
func (m *Manager) needLocked(st *state, b *Bundle, now time.Time) need {
	why := st.needs(b, m.loaded[b.ID], m.journals[b.ID], now)
	if why == needMissing && m.lentLocked(st, b, now) != nil {
		return needNothing
	}
	return why
}
