package tlsmgr

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"edge/tlsmgr/vault"

	"golang.org/x/sync/errgroup"
)

// maxNotices are the certificates that one look tells about.
const maxNotices = 64

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

// tell has notice done beside the looks, which renew what it warns of: with a slow
// storage and many certificates it takes minutes.
func (m *Manager) tell(ctx context.Context, v *vault.Vault, now time.Time, work *sync.WaitGroup) {
	if ctx.Err() != nil || m.telling.Swap(true) {
		return
	}
	work.Go(func() {
		defer m.telling.Store(false)
		m.notice(ctx, v, now)
	})
}

// notice says, once for each certificate and level, that its end is near. One of
// the replicas tells the operator (Event.Notify); all of them log it.
//
// It costs some calls to the storage each, and after a long outage of a CA there
// is news about thousands: so a few at once, and not all at one look.
func (m *Manager) notice(ctx context.Context, v *vault.Vault, now time.Time) {
	news := m.unnoticed(now)
	slices.SortFunc(news, func(a, b *certificate) int { return a.leaf().NotAfter.Compare(b.leaf().NotAfter) })
	group := errgroup.Group{}
	group.SetLimit(maxLoads)
	for _, c := range news[:min(len(news), maxNotices)] {
		group.Go(func() error {
			m.remark(ctx, v, c, now)
			return nil
		})
	}
	_ = group.Wait() // none fails
}

func (m *Manager) remark(ctx context.Context, v *vault.Vault, c *certificate, now time.Time) {
	l, tell := levelOf(c, now), true
	if v != nil && !c.file {
		var ok bool
		if tell, ok = m.firstToTell(ctx, v, c, l); !ok {
			return // at the next look
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

// unnoticed are the served certificates of the plan that there is news about.
func (m *Manager) unnoticed(now time.Time) []*certificate {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*certificate
	look := func(c *certificate) {
		if j := m.jobs[c.id]; j != nil && j.busy {
			return // its lease is wanted for better; there may be no news then
		}
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
	tryCtx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	lease, got, err := v.Store().TryAcquire(tryCtx, leaseOf(c.id))
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
