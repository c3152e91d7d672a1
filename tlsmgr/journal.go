package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"edge/config"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// A journal is what replicas tell each other about the work on one bundle: the
// order under way, so that an heir goes on with it; the names that the CA did
// not want to certify; and when to try again. It is written before each step,
// under the bundle's lease, by Swap. nil is an empty one.
type journal struct {
	version store.Version // "" when it is not stored yet
	record  vault.Order
	err     error // why the object is not usable
}

// maxAttemptAge is after how long an order is not worth resuming. CAs keep
// pending orders for about a week (RFC 8555 section 7.1.3 lets them say).
const maxAttemptAge = 3 * 24 * time.Hour

// maxLeftovers bounds the ended attempts whose records could not be removed.
const maxLeftovers = 32

// keepUnwanted is for how long a name may stay in quarantine that nobody tries.
const keepUnwanted = 24 * time.Hour

// readJournal loads the journal of a bundle; one that does not exist is empty.
func readJournal(ctx context.Context, v *vault.Vault, id string) (*journal, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	record, version, err := vault.Load[vault.Order](ctx, v, id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &journal{record: vault.Order{ID: id}}, nil
	case err != nil && untouchable(err):
		return nil, fmt.Errorf("journal of the order: %w", err)
	case err != nil && version != "": // torn: what it said is lost
		return &journal{version: version, record: vault.Order{ID: id}}, nil
	case err != nil:
		return nil, fmt.Errorf("journal of the order: %w", err)
	}
	return &journal{version: version, record: *record}, nil
}

// save writes j down; store.ErrConflict means that the lease has an heir.
func (m *Manager) save(ctx context.Context, v *vault.Vault, j *journal) error {
	j.record.Format, j.record.Owner, j.record.UpdatedAt = vault.Format, m.options.Owner, time.Now().UTC()
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	version, err := vault.Save(ctx, v, j.record.ID, &j.record, j.version)
	if err != nil {
		return fmt.Errorf("write the journal of the order: %w", err)
	}
	j.version = version
	m.mu.Lock()
	defer m.mu.Unlock()
	m.journals[j.record.ID], m.unsettled = &journal{version: version, record: j.clone()}, true
	return nil
}

// clone is the record for readers: what is worked on changes.
func (j *journal) clone() vault.Order {
	r := j.record
	r.Quarantine, r.Waits = maps.Clone(r.Quarantine), maps.Clone(r.Waits)
	if r.Attempt != nil {
		r.Attempt = new(*r.Attempt)
	}
	return r
}

// open reports whether an order is under way, or died under way.
func (j *journal) open() bool { return j != nil && j.record.Attempt != nil }

// admitted are the names that are not in quarantine at now.
func (j *journal) admitted(names []string, now time.Time) []string {
	if j == nil || len(j.record.Quarantine) == 0 {
		return names
	}
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		return now.Before(j.record.Quarantine[n].Next)
	})
}

// next is when something that was put off is due: the next attempt, or the
// first name that leaves quarantine. Zero is never.
func (j *journal) next(now time.Time) time.Time {
	if j == nil {
		return time.Time{}
	}
	next := j.record.Next
	for _, q := range j.record.Quarantine {
		if q.Next.After(now) && (next.IsZero() || q.Next.Before(next)) {
			next = q.Next
		}
	}
	return next
}

// leftOut are those of names that are in quarantine, sorted as they are.
func (j *journal) leftOut(names []string) (out []string) {
	for _, n := range names {
		if j == nil {
			break
		}
		if _, ok := j.record.Quarantine[n]; ok {
			out = append(out, n)
		}
	}
	return out
}

// reason is why some of names are missing, one line; "" when none are.
func (j *journal) reason(names []string) string {
	var texts []string
	for _, n := range j.leftOut(names) {
		texts = append(texts, n+" is left out: "+j.record.Quarantine[n].Reason)
	}
	slices.Sort(texts)
	return firstFew(texts)
}

// release forgets the quarantine of what is not among names and should have been
// tried again a day ago: no replica wants it any more.
func (j *journal) release(names []string, now time.Time) {
	maps.DeleteFunc(j.record.Quarantine, func(n string, q vault.Quarantined) bool {
		return now.Sub(q.Next) > keepUnwanted && !slices.Contains(names, n)
	})
}

// quarantine leaves names out of orders for a while, so that they do not keep
// the others of their bundle from being issued. It reports which names of the
// bundle that are.
func (j *journal) quarantine(all []string, refused map[string]string, pause func(failures int) time.Duration, now time.Time) []string {
	var out []string
	for n, reason := range namesAmong(all, refused) {
		if j.record.Quarantine == nil {
			j.record.Quarantine = map[string]vault.Quarantined{}
		}
		q := j.record.Quarantine[n]
		if q.Since.IsZero() {
			q.Since = now
		}
		q.Failures++
		q.Reason, q.Next = oneLine(reason), now.Add(quarantineFor(q.Failures, pause))
		j.record.Quarantine[n] = q
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// quarantineFor is how long a name stays out after so many refusals: as long as
// a bundle at first, a day in the end. Every look at it costs an order.
func quarantineFor(failures int, pause func(int) time.Duration) time.Duration {
	d := pause(failures)
	switch {
	case failures > 12:
		return 24 * d
	case failures > 6:
		return 6 * d
	default:
		return d
	}
}

// settle ends the work without a failure: names were issued.
func (j *journal) settle(issued []string, now time.Time) {
	if j.open() {
		j.leave(now)
	}
	j.record.Failures, j.record.Error, j.record.Next, j.record.Waits = 0, "", time.Time{}, nil
	for _, n := range issued {
		delete(j.record.Quarantine, n)
	}
}

// done reports whether the attempt in j has become the certificate that is
// stored: a replica died before it wrote that down, or its records are left.
func (j *journal) done(l *stored) bool {
	a := j.record.Attempt
	return a != nil && a.URL != "" && l != nil && l.version != "" && l.cert != nil && l.cert.object.OrderURL == a.URL
}

// idle reports whether there is nothing worth remembering.
func (j *journal) idle() bool {
	return j == nil || j.record.Attempt == nil && j.record.Failures == 0 && len(j.record.Quarantine) == 0 && len(j.record.Leftovers) == 0
}

// untidy reports whether something of an earlier attempt stands in DNS, or may.
func (j *journal) untidy() bool { return j != nil && (j.open() || len(j.record.Leftovers) > 0) }

// leave moves the records of the attempt, which ends, to what is to be removed.
func (j *journal) leave(now time.Time) {
	a := j.record.Attempt
	if len(a.Records) > 0 && len(j.record.Leftovers) < maxLeftovers {
		j.record.Leftovers = append(slices.Clone(j.record.Leftovers), vault.Leftover{Issuer: a.Issuer, Records: a.Records, Since: now.UTC()})
	}
	j.record.Attempt = nil
}

// resumable reports whether the attempt in j is what is wanted now: an heir
// goes on with it instead of placing another order.
func (j *journal) resumable(names []string, b *Bundle, issuer *config.Issuer, now time.Time) bool {
	a := j.record.Attempt
	return a != nil && slices.Equal(a.Names, names) && a.KeyType == b.KeyType && a.Issuer == issuer.Name &&
		a.Directory == issuer.Directory && a.Challenge == challengeOf(issuer) && a.PrivateKey != "" && now.Sub(a.StartedAt) < maxAttemptAge
}
