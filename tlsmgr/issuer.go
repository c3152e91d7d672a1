package tlsmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"edge/config"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/dns"
	"edge/tlsmgr/store"
)

// issuer is a source of certificates with what it takes to convince it. It is
// made anew by each Prepare, so that it sees changed secrets.
type issuer struct {
	config *config.Issuer
	ca     *acme.CA    // nil for a CA of edge's own
	solver *dns.Solver // nil where no DNS record takes part
	quotas config.Quotas
}

// newIssuer reads the files and secrets of an issuer. It touches no network.
func (m *Manager) newIssuer(cfg *config.Config, issuerName string) (*issuer, error) {
	c := cfg.Issuers[issuerName]
	if c == nil {
		return nil, fmt.Errorf("no issuer %q (issuers: %s)", issuerName, strings.Join(slices.Sorted(maps.Keys(cfg.Issuers)), ", "))
	}
	if c.Internal != nil {
		return &issuer{config: c}, nil
	}
	ca, err := acme.New(c, acme.Options{Version: cmp.Or(m.options.Version, "dev"), Logger: m.log, HTTPClient: m.options.ACMEClient})
	if err != nil {
		return nil, err // names the issuer
	}
	i := &issuer{config: c, ca: ca, quotas: acme.QuotasOf(c)}
	if kind := challengeOf(c); kind == config.DNS01 || kind == config.DNSPersist01 {
		if i.solver, err = m.newSolver(cfg, c); err != nil {
			return nil, fmt.Errorf("issuers.%s: %w", c.Name, err)
		}
	}
	return i, nil
}

func (m *Manager) newSolver(cfg *config.Config, c *config.Issuer) (*dns.Solver, error) {
	o := dns.Options{
		Logger: m.log, Resolvers: c.Resolvers, Authoritative: c.Authoritative,
		Poll: m.options.DNSPoll, Timeout: m.options.DNSTimeout, Lease: m.dnsLease,
		Lost: func(cause error) bool { return errors.Is(cause, store.ErrLeaseLost) },
	}
	if m.options.DNSClient != nil {
		o.HTTPClient = m.options.DNSClient
	}
	for _, name := range c.Providers {
		if p := cfg.Providers[name]; p != nil {
			o.Providers = append(o.Providers, p)
		}
	}
	return dns.New(o)
}

// dnsLease keeps replicas apart that change the values of one name at a DNS
// provider which can only replace all of them.
func (m *Manager) dnsLease(ctx context.Context, name string) (release func(), err error) {
	if m.options.DNSLease != nil {
		return m.options.DNSLease(ctx, name)
	}
	v := m.vaultInUse()
	if v == nil {
		return func() {}, nil
	}
	lease, err := v.Store().Acquire(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("lease of %s: %w", name, err)
	}
	return func() { giveUp(ctx, lease) }, nil
}

// challengeOf is how control of names is proven to i.
func challengeOf(i *config.Issuer) config.Challenge { return cmp.Or(i.Challenge, config.DNS01) }

// directoryOf names the CA of an issuer in stored certificates.
func directoryOf(i *config.Issuer) string {
	if i.Internal != nil {
		return "internal:" + i.Name
	}
	return i.Directory
}

// pick is the issuer that a bundle is ordered from now. It is the first one,
// and the others in turn once it has failed while nothing valid is left to
// serve, or no more than a quarter of the lifetime. Failures are in a row, those
// that the CA caused and those of this replica. One that is not to be asked
// before a time in waits is passed over while there is another.
func (b *Bundle) pick(s *stored, failures int, waits map[string]time.Time, now time.Time) string {
	all := b.issuers()
	if failures == 0 || !b.turnsAway(s, now) {
		return b.Issuer
	}
	turn := failures % len(all)
	all = append(slices.Clone(all[turn:]), all[:turn]...)
	return slices.MinFunc(all, func(a, b string) int { // the first of the equal ones
		return later(waits[a], now).Compare(later(waits[b], now))
	})
}

// turnsAway reports whether another issuer than the first may be asked when that
// one fails.
func (b *Bundle) turnsAway(s *stored, now time.Time) bool {
	return len(b.Fallbacks) > 0 && (s == nil || s.cert == nil || s.version == "" || left(s.cert, now) <= fallbackAt)
}

// postpone is when to try again after an attempt that failed at one issuer and
// has to wait for it. Another issuer needs no patience, once it may be asked,
// and edge's own budget (ours) does not count in the last hours.
func (b *Bundle) postpone(s *stored, waits map[string]time.Time, soonest time.Time, ours bool, now time.Time) time.Time {
	next := later(waits[b.Issuer], soonest)
	if b.turnsAway(s, now) {
		for _, name := range b.Fallbacks {
			if at := later(waits[name], soonest); at.Before(next) {
				next = at
			}
		}
	}
	if s == nil || s.cert == nil || s.version == "" {
		return next
	}
	for share, opens := range map[float64]bool{fallbackAt: len(b.Fallbacks) > 0, criticalAt: ours} {
		if at := leftAt(s.cert, share); opens && at.After(now) && at.Before(next) {
			next = later(at, soonest)
		}
	}
	if ours && left(s.cert, now) <= criticalAt {
		return soonest
	}
	return next
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
