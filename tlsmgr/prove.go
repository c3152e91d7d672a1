package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"edge/config"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/dns"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// present makes the proofs visible to the CA, and withdraw takes them back.
func (o *order) present(ctx context.Context, kind config.Challenge, proofs []acme.Proof) (withdraw func(), err error) {
	switch kind {
	case config.DNSPersist01:
		return func() {}, o.checkPersistent(ctx, proofs)
	case config.HTTP01, config.TLSALPN01:
		return o.answer(ctx, kind, proofs)
	case config.DNS01:
	}
	return o.presentRecords(ctx, proofs)
}

// presentRecords adds all TXT records and waits until the world sees them. They
// stand in the journal before they stand in DNS, so that none is left behind.
func (o *order) presentRecords(ctx context.Context, proofs []acme.Proof) (withdraw func(), err error) {
	records := make([]dns.Record, 0, len(proofs))
	a := o.attempt()
	before := slices.Clone(a.Records) // of a replica that died
	for _, p := range proofs {
		c := p.Challenges[config.DNS01]
		records = append(records, dns.Record{Name: c.DNSName, Value: c.DNSValue})
		if r := (vault.Record{Name: c.DNSName, Value: c.DNSValue}); !slices.Contains(a.Records, r) {
			a.Records = append(a.Records, r) // names of the others may be proven meanwhile
		}
	}
	if err := o.m.save(ctx, o.vault, o.journal); err != nil {
		return nil, err
	}
	presented, err := o.issuer.solver.Present(ctx, records)
	if err != nil {
		if e, ok := errors.AsType[*dns.RecordsError](err); ok && e.Untouched {
			a.Records = before
		}
		o.orphan(ctx, records)
		return nil, oneError(err)
	}
	withdraw = func() { o.takeBack(ctx, presented, records) }
	o.say(ctx, StepPresent, "%d TXT records", len(records))
	if err := presented.Wait(ctx); err != nil {
		withdraw()
		return nil, oneError(err)
	}
	o.say(ctx, StepWait, "all authoritative servers show them")
	return withdraw, nil
}

// takeBack removes the challenge records, also after a cancelled attempt, unless
// the lease was lost: an heir may need the very same ones.
func (o *order) takeBack(ctx context.Context, presented *dns.Presented, records []dns.Record) {
	if o.orphan(ctx, records) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	o.removed(ctx, presented.CleanUp(ctx))
	o.mine = records
}

// sweep takes back what replicas that died over this order have shown to the CA
// for names that it asks about no more.
func (o *order) sweep(ctx context.Context) {
	if ctx.Err() != nil {
		return // the heir goes on from the journal
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	a := o.attempt()
	o.m.retract(ctx, o.vault, a.Tokens)
	records := slices.DeleteFunc(asRecords(a.Records), func(r dns.Record) bool { return slices.Contains(o.mine, r) })
	if len(records) > 0 && o.issuer.solver != nil {
		o.removed(ctx, o.issuer.solver.Sweep(ctx, records))
	}
}

// removed notes whether challenge records are left. Then the attempt stays in
// the journal for a later look to remove them.
func (o *order) removed(ctx context.Context, err error) {
	if err == nil {
		return
	}
	o.left = true
	o.m.log.LogAttrs(ctx, slog.LevelWarn, "challenge records are left, to be removed later",
		slog.String("certificate", o.id), slog.Any("error", oneError(err)))
}

// orphan notes records for later when the lease was lost while they were
// presented, and reports whether it was.
func (o *order) orphan(ctx context.Context, records []dns.Record) bool {
	if !errors.Is(context.Cause(ctx), store.ErrLeaseLost) {
		return false
	}
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	if len(o.m.orphans) < maxOrphans {
		o.m.orphans = append(o.m.orphans, orphan{id: o.id, url: o.attempt().URL, solver: o.issuer.solver, records: records, since: time.Now()})
	}
	return true
}

// An orphan is a set of challenge records whose order has an heir. A write that
// was under way when this process was stopped may have come after the heir had
// removed them.
type orphan struct {
	id, url string
	solver  *dns.Solver
	records []dns.Record
	since   time.Time
}

// adopt removes orphans whose orders have ended. It tries for as long as an order
// may live.
func (m *Manager) adopt(ctx context.Context, v *vault.Vault) {
	m.mu.Lock()
	orphans := m.orphans
	m.orphans = nil
	m.mu.Unlock()
	for _, r := range orphans {
		if !m.adoptOne(ctx, v, r) && time.Since(r.since) < maxAttemptAge {
			m.mu.Lock()
			m.orphans = append(m.orphans, r)
			m.mu.Unlock()
		}
	}
}

func (m *Manager) adoptOne(ctx context.Context, v *vault.Vault, r orphan) (done bool) {
	ctx, stop := context.WithTimeout(ctx, cleanupTimeout)
	defer stop()
	lease, ok, err := v.Store().TryAcquire(ctx, leaseOf(r.id))
	if err != nil || !ok {
		return false
	}
	defer giveUp(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()
	j, err := readJournal(ctx, v, r.id)
	if err != nil {
		return false
	}
	if j.open() && j.record.Attempt.URL == r.url {
		return true // the heir died too; whoever goes on removes them
	}
	return r.solver.Sweep(ctx, r.records) == nil
}

// abandon ends the attempt in j without a certificate: what it left in DNS and
// in the storage is removed. What cannot be removed now is tried again later; it
// is no reason to keep names from being issued.
func (m *Manager) abandon(ctx context.Context, v *vault.Vault, st *state, j *journal) error {
	if !j.untidy() {
		return nil
	}
	if a := j.record.Attempt; a != nil {
		m.mu.Lock()
		done := j.done(m.loaded[j.record.ID])
		m.mu.Unlock()
		if !done {
			m.refund(ctx, v, a)
		}
		m.retract(ctx, v, a.Tokens)
		j.leave(time.Now())
	}
	var left []vault.Leftover
	for _, l := range j.record.Leftovers {
		err := m.remove(ctx, st, l)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return err
		}
		keep := time.Since(l.Since) < maxAttemptAge
		m.log.LogAttrs(ctx, slog.LevelWarn, "challenge records left behind", slog.String("certificate", j.record.ID),
			slog.Bool("again", keep), slog.Any("error", oneError(err)))
		if keep {
			left = append(left, l)
		}
	}
	j.record.Leftovers = left
	return m.save(ctx, v, j)
}

// remove deletes records from DNS.
func (m *Manager) remove(ctx context.Context, st *state, l vault.Leftover) error {
	i := st.issuers[l.Issuer]
	if i == nil || i.solver == nil {
		return fmt.Errorf("issuer %q, whose order it was, is not in use any more", l.Issuer)
	}
	return i.solver.Sweep(ctx, asRecords(l.Records))
}

// asRecords are stored records as package dns takes them.
func asRecords(stored []vault.Record) []dns.Record {
	records := make([]dns.Record, 0, len(stored))
	for _, r := range stored {
		records = append(records, dns.Record{Name: r.Name, Value: r.Value})
	}
	return records
}

// checkPersistent makes sure that the records of dns-persist-01 stand in DNS:
// without them the CA would count a failure.
func (o *order) checkPersistent(ctx context.Context, proofs []acme.Proof) error {
	want := dns.Persist{AccountURI: o.account.URL}
	for _, p := range proofs {
		want.Names = append(want.Names, p.Identifier())
		want.Issuers = p.Challenges[config.DNSPersist01].Issuers
	}
	return o.issuer.solver.CheckPersist(ctx, want)
}
