package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"edge/tlsmgr/acme"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// attempt takes the lease of b, looks again, and orders if that is still
// needed, or if it is forced. The lease makes it one order among all replicas;
// Swap against the version read under the lease makes it safe when a lease was
// lost.
func (m *Manager) attempt(ctx context.Context, v *vault.Vault, st *state, b Bundle, slot *slot, forced bool) error {
	lease, err := m.lease(ctx, v.Store(), b.ID, slot)
	if lease == nil || err != nil {
		return err
	}
	defer giveUp(ctx, lease)
	w := &errand{Manager: m, vault: v, state: st, bundle: b, process: ctx, forced: forced}
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	ctx, cancel = context.WithTimeoutCause(ctx, attemptTimeout, errTooLong)
	defer cancel()
	for range maxRounds {
		again, err := w.round(ctx)
		if err != nil && ctx.Err() != nil { // say why, and at what
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		if err != nil || !again {
			return err
		}
	}
	return nil // what is left to do is seen at the next look
}

// errand is one attempt under the lease of its bundle.
type errand struct {
	*Manager
	vault   *vault.Vault
	state   *state
	bundle  Bundle
	process context.Context //nolint:containedctx // what is issued is stored even when the lease ends meanwhile
	forced  bool            // order although nothing needs it
	cleared bool            // every name had its chance in this attempt
	asked   string          // the issuer
	left    bool            // what was shown to the CA is still to be removed
}

// round looks at what is stored and does one order. It is to be called again
// when an order could not be finished and another one may be.
func (w *errand) round(ctx context.Context) (again bool, err error) {
	l, err := w.read(ctx, w.vault, w.bundle.ID)
	switch {
	case err != nil:
		return false, err
	case untouchable(l.err):
		return false, fmt.Errorf("left as it is: %w", l.err)
	}
	j, err := readJournal(ctx, w.vault, w.bundle.ID)
	if err != nil {
		return false, err
	}
	now := time.Now()
	if w.forced && !w.cleared {
		j.record.Quarantine, w.cleared = nil, true
	}
	j.release(w.bundle.Names, now)
	names := j.admitted(w.bundle.Names, now)
	why := w.state.needs(&w.bundle, l, j, now)
	if why == needMissing {
		w.mu.Lock()
		why = w.needLocked(w.state, &w.bundle, now) // l is what is loaded now
		w.mu.Unlock()
	}
	if why == needNothing && !w.forced || len(names) == 0 {
		return false, w.abandon(ctx, w.vault, w.state, j)
	}
	w.mark(w.bundle.ID, func(j *job) { j.ordering = true })
	o, err := w.obtain(ctx, names, l, j, why)
	if err != nil {
		return w.failed(ctx, j, names, err)
	}
	w.forced = false
	return false, w.finish(ctx, l, j, o)
}

// obtain gets a certificate for names from the issuer whose turn it is.
func (w *errand) obtain(ctx context.Context, names []string, l *stored, j *journal, why need) (*vault.Certificate, error) {
	i := w.state.issuers[w.bundle.pick(l, w.failures(j), j.record.Waits, time.Now())]
	w.asked = i.config.Name
	if i.ca != nil {
		return w.order(ctx, i, names, l, j, why)
	}
	if err := w.abandon(ctx, w.vault, w.state, j); err != nil {
		return nil, err
	}
	return w.issue(ctx, w.vault, i, &w.bundle)
}

// finish stores the certificate o in the place of l, and closes the journal.
func (w *errand) finish(ctx context.Context, l *stored, j *journal, o *vault.Certificate) error {
	// What is issued is worth its patience also when the lease is lost meanwhile,
	// as in an outage of the storage: the version keeps it from doing harm.
	if err := w.shelve(w.process, w.vault, w.state, l, o); err != nil {
		return err
	}
	if err := w.commit(w.process, w.vault, o, l.version); err != nil {
		return err
	}
	if !j.idle() || j.version != "" {
		if j.open() && !w.left {
			j.record.Attempt.Records = nil
		}
		j.settle(o.Names, time.Now())
		if err := w.save(ctx, w.vault, j); err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return w.enough(w.state, w.bundle, j)
}

// failures are those in a row, of all replicas or of this one.
func (w *errand) failures(j *journal) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(j.record.Failures, w.jobLocked(w.bundle.ID).failures)
}

// order finishes the order in the journal, or places one.
func (w *errand) order(ctx context.Context, i *issuer, names []string, l *stored, j *journal, why need) (*vault.Certificate, error) {
	if j.open() && (j.done(l) || !j.resumable(names, &w.bundle, i.config, time.Now())) {
		if err := w.abandon(ctx, w.vault, w.state, j); err != nil {
			return nil, err
		}
	}
	o := &order{m: w.Manager, vault: w.vault, issuer: i, id: w.bundle.ID, journal: j}
	if !j.open() {
		if err := o.begin(ctx, &w.bundle, names, w.replaces(i, l, why)); err != nil {
			return nil, err
		}
	}
	cert, err := o.obtain(ctx)
	w.left = o.left
	return cert, err
}

// replaces identifies the certificate that a renewal replaces, for the CA that
// issued it (RFC 9773 section 5).
func (w *errand) replaces(i *issuer, l *stored, why need) string {
	if l.cert == nil || l.cert.object.Directory != i.config.Directory || l.cert.object.Imported || why == needMissing || why == needKey {
		return ""
	}
	if r := l.cert.object.Renewal; r == nil || r.Start.IsZero() {
		return "" // the CA has no renewal information
	}
	id, err := acme.CertID(l.cert.leaf())
	if err != nil {
		return ""
	}
	return id
}

// failed writes down what an order failed for. Names that the CA refused go into
// quarantine, and the others are ordered at once. It reports whether to go on.
func (w *errand) failed(ctx context.Context, j *journal, names []string, cause error) (again bool, err error) {
	if ctx.Err() != nil || errors.Is(cause, store.ErrConflict) {
		return false, cause // the journal belongs to an heir, or the order can be resumed
	}
	now := time.Now()
	if errors.Is(cause, errAbandoned) {
		w.log.LogAttrs(ctx, slog.LevelInfo, "starting over", slog.String("certificate", w.bundle.ID), slog.Any("reason", cause))
		return true, w.abandon(ctx, w.vault, w.state, j)
	}
	w.tally.failed(cause)
	if out := j.quarantine(names, refusedNames(cause, names), w.backoff, now); len(out) > 0 {
		if len(out) == len(names) {
			j.record.Failures++
			j.record.Error = oneError(cause).Error()
		}
		w.emit(ctx, w.bundle.ID, StepQuarantined, fmt.Sprintf("%s: %s", abridge(out), oneError(cause)))
		if err := w.close(ctx, j); err != nil {
			return false, errors.Join(cause, err)
		}
		if len(out) == len(names) {
			return false, cause
		}
		return true, nil
	}
	if !verdict(cause) {
		return false, cause // this replica's trouble; the order can be resumed
	}
	j.record.Failures++
	j.record.Error = oneError(cause).Error()
	cause = w.postpone(j, cause, now)
	over := false // what the CA refuses now it refuses again
	if e, ok := errors.AsType[*acme.Error](cause); ok {
		over = e.Kind != acme.ServerError && e.Kind != acme.RateLimited
	}
	if over {
		err = w.close(ctx, j)
	} else {
		err = w.save(ctx, w.vault, j)
	}
	if err != nil {
		return false, errors.Join(cause, err)
	}
	return false, cause
}

// postpone writes down when to try again, and tells it to this process, too.
func (w *errand) postpone(j *journal, cause error, now time.Time) error {
	soonest, wait := now.Add(w.backoff(j.record.Failures)), patienceFor(cause)
	maps.DeleteFunc(j.record.Waits, func(_ string, until time.Time) bool { return !until.After(now) })
	if wait == 0 {
		j.record.Next = soonest.UTC()
		return cause
	}
	if j.record.Waits == nil {
		j.record.Waits = map[string]time.Time{}
	}
	j.record.Waits[w.asked] = now.Add(wait).UTC()
	_, ours := errors.AsType[*paused](cause)
	w.mu.Lock()
	l := w.loaded[w.bundle.ID]
	w.mu.Unlock()
	j.record.Next = w.bundle.postpone(l, j.record.Waits, soonest, ours, now).UTC()
	return &postponed{cause, j.record.Next.Sub(now)}
}

// close ends the attempt in j, if there is one, and writes j down.
func (w *errand) close(ctx context.Context, j *journal) error {
	if j.open() {
		return w.abandon(ctx, w.vault, w.state, j)
	}
	return w.save(ctx, w.vault, j)
}
