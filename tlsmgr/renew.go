package tlsmgr

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"time"

	"edge/tlsmgr/acme"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// The fractions of a lifetime that count. Never a number of days: CAs shorten
// lifetimes.
const (
	shortLife  = 10 * 24 * time.Hour // below it, certificates are renewed at half their life: a third is little time for repairs
	fallbackAt = 0.25                // what is left when another issuer may be asked, and a warning is due
	criticalAt = 0.10                // what is left when it is urgent
	latestAt   = 6                   // a sixth of the life is left at the latest, whatever the CA advises
)

const (
	askAgain   = 15 * time.Minute // for renewal information, after the CA could not be asked
	askRarely  = 24 * time.Hour   // where the CA has none
	replaceGap = time.Hour        // between two replacements because the CA wanted them at once; less for short lives
)

// left is the fraction of the lifetime of c that is left at now; negative when
// it has expired.
func left(c *certificate, now time.Time) float64 {
	leaf := c.leaf()
	return float64(leaf.NotAfter.Sub(now)) / float64(leaf.NotAfter.Sub(leaf.NotBefore))
}

// leftAt is when a share of the lifetime of c is left.
func leftAt(c *certificate, share float64) time.Time {
	leaf := c.leaf()
	return leaf.NotAfter.Add(-time.Duration(share * float64(leaf.NotAfter.Sub(leaf.NotBefore))))
}

// spread is a number in [0, 1) that all replicas compute alike for a
// certificate, and differently for another.
func spread(c *certificate) float64 {
	h := fnv.New32a()
	_, _ = h.Write(c.leaf().Raw)
	return float64(h.Sum32()) / (1 << 32)
}

// renewAt is when certificate c is due: at the moment in the window that the CA
// suggests (RFC 9773), or without one when a third of its life is left, half of
// a short life, and up to a twentieth earlier so that what was ordered together
// is not renewed together. Replicas agree on it.
func renewAt(c *certificate) time.Time {
	leaf := c.leaf()
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if r := renewalOf(c); r != nil && !r.Selected.IsZero() {
		at := later(r.Selected, replaceAt(c)) // windows of a CA that is wrong may lie in the past for ever
		if latest := leaf.NotAfter.Add(-life / latestAt); latest.Before(at) {
			return latest
		}
		return at
	}
	rest := life / 3
	if life < shortLife {
		rest = life / 2
	}
	return leaf.NotAfter.Add(-rest - time.Duration(float64(life)/20*spread(c)))
}

// replaceAt is when c may be replaced because the CA wants it at once. A CA that
// says so of every certificate would otherwise be given orders without a pause.
func replaceAt(c *certificate) time.Time {
	life := c.leaf().NotAfter.Sub(c.leaf().NotBefore)
	return c.object.ObtainedAt.Add(min(replaceGap, life/20))
}

func renewalOf(c *certificate) *vault.Renewal {
	if c == nil || c.object == nil {
		return nil
	}
	return c.object.Renewal
}

// askAt is when the CA is to be asked for renewal information; zero is never.
func (st *state) askAt(b *Bundle, l *stored) time.Time {
	if l == nil || l.cert == nil || l.version == "" || l.err != nil || st.issuerOf(l.cert.object, b) == nil {
		return time.Time{}
	}
	if r := l.cert.object.Renewal; r != nil {
		return r.Next
	}
	return l.cert.object.ObtainedAt // not asked yet
}

// issuerOf is the configured ACME issuer that a certificate came from, nil when
// there is none: an internal or imported one, or a former issuer.
func (st *state) issuerOf(o *vault.Certificate, b *Bundle) *issuer {
	for _, name := range b.issuers() {
		if i := st.issuers[name]; i != nil && i.ca != nil && i.config.Directory == o.Directory {
			return i
		}
	}
	return nil
}

// ask asks the CA for renewal information and stores the answer for all
// replicas. One of them asks: the one that gets the lease.
func (m *Manager) ask(ctx context.Context, v *vault.Vault, st *state, b *Bundle) error {
	lease, ok, err := v.Store().TryAcquire(ctx, leaseOf(b.ID))
	if !ok || err != nil {
		return err
	}
	defer giveUp(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, askTimeout)
	defer cancel()
	l, err := m.read(ctx, v, b.ID)
	if err != nil {
		return err
	}
	now := time.Now()
	if at := st.askAt(b, l); at.IsZero() || now.Before(at) {
		return nil
	}
	r := m.renewal(ctx, st.issuerOf(l.cert.object, b), l.cert, now)
	if r == nil {
		return ctx.Err()
	}
	next := *l.cert.object
	next.Renewal = r
	version, err := vault.Save(ctx, v, b.ID, &next, l.version)
	if errors.Is(err, store.ErrConflict) {
		return nil // another look will come
	}
	if err != nil {
		return err
	}
	c := *l.cert
	c.object = &next
	m.keep(ctx, b.ID, &stored{version: version, cert: &c})
	return nil
}

// renewal is what the CA says about c now; what it said before when it cannot
// be asked.
func (m *Manager) renewal(ctx context.Context, i *issuer, c *certificate, now time.Time) *vault.Renewal {
	r := &vault.Renewal{Checked: now.UTC()}
	info, err := i.ca.RenewalInfo(ctx, c.leaf())
	wait := info.RetryAfter
	switch {
	case errors.Is(err, acme.ErrNoRenewalInfo):
		wait = askRarely
	case ctx.Err() != nil:
		return nil
	case err != nil:
		m.log.LogAttrs(ctx, slog.LevelWarn, "renewal information not available, keeping to what is known",
			slog.String("certificate", c.id), slog.Any("error", oneError(err)))
		if c.object.Renewal != nil {
			*r = *c.object.Renewal
		}
		wait = askAgain
	default:
		window := info.End.Sub(info.Start)
		r.Start, r.End, r.Explanation = info.Start.UTC(), info.End.UTC(), oneLine(info.Explanation)
		r.Selected = info.Start.Add(time.Duration(float64(window) * spread(c))).UTC()
		r.Replace = !info.End.After(now)
		if r.Replace {
			m.emit(ctx, c.id, StepReplace, "the CA wants it replaced now: "+oneLine(info.Explanation))
		}
	}
	r.Next = now.Add(wait + time.Duration(float64(wait)/10*spread(c))).UTC()
	return r
}
