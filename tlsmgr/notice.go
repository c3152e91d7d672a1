package tlsmgr

import (
	"context"
	"fmt"
	"time"

	"edge/tlsmgr/vault"
)

// level is how little of a certificate's life is left.
type level int

const (
	calm     level = iota
	expiring       // a quarter: the renewal should be long done
	critical       // a tenth
	expired
)

func levelOf(c *certificate, now time.Time) level {
	switch rest := left(c, now); {
	case rest <= 0:
		return expired
	case rest <= criticalAt:
		return critical
	case rest <= fallbackAt:
		return expiring
	default:
		return calm
	}
}

// step is the word for a level in events.
func (l level) step() Step {
	switch l {
	case expired:
		return StepExpired
	case critical:
		return StepCritical
	case expiring, calm:
	}
	return StepExpiring
}

// A remark is what was said about a certificate last.
type remark struct {
	serial string
	level  level
}

// notice says, once for each certificate and level, that its end is near. One of
// the replicas tells the operator (Event.Notify); all of them log it.
func (m *Manager) notice(ctx context.Context, v *vault.Vault, now time.Time) {
	for _, c := range m.unnoticed(now) {
		l := levelOf(c, now)
		tell := true
		if v != nil && !c.file {
			var ok bool
			if tell, ok = m.firstToTell(ctx, v, c, l); !ok {
				continue // at the next look
			}
		}
		m.mu.Lock()
		m.remarks[c.id] = remark{c.serial(), l}
		why := ""
		if j := m.jobs[c.id]; j != nil && j.err != nil {
			why = ": " + j.err.Error()
		}
		m.mu.Unlock()
		m.emitEvent(ctx, Event{Certificate: c.id, Step: l.step(), Notify: tell, Detail: fmt.Sprintf(
			"%.0f%% of its lifetime is left, valid until %s%s", max(0, 100*left(c, now)), c.leaf().NotAfter.UTC().Format(time.RFC3339), why)})
	}
}

// unnoticed are the served certificates of the plan that there is news about.
func (m *Manager) unnoticed(now time.Time) []*certificate {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*certificate
	look := func(c *certificate) {
		if l := levelOf(c, now); l > calm && m.remarks[c.id] != (remark{c.serial(), l}) {
			out = append(out, c)
		}
	}
	for _, c := range m.files {
		look(c)
	}
	for id := range m.state.Load().bundles {
		if l := m.loaded[id]; l != nil && l.cert != nil {
			look(l.cert)
		}
	}
	return out
}

// firstToTell reports whether no other replica has told the operator about c at
// this level. It is not ok when that cannot be known now.
func (m *Manager) firstToTell(ctx context.Context, v *vault.Vault, c *certificate, l level) (first, ok bool) {
	if m.state.Load().cfg.ServeOnly {
		return false, true // the ones that order tell
	}
	lease, got, err := v.Store().TryAcquire(ctx, leaseOf(c.id))
	if err != nil || !got {
		return err != nil, err != nil && ctx.Err() == nil // without the storage everyone tells
	}
	defer giveUp(ctx, lease)
	j, err := readJournal(ctx, v, c.id)
	if err != nil {
		return true, true
	}
	mark := fmt.Sprintf("%s/%d", c.serial(), l)
	if j.record.Noticed == mark {
		return false, true
	}
	j.record.Noticed = mark
	return m.save(ctx, v, j) == nil, true
}
