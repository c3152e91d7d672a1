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
// that the CA caused and those of this replica.
func (b *Bundle) pick(s *stored, failures int, now time.Time) string {
	all := b.issuers()
	if failures == 0 || len(all) == 1 {
		return b.Issuer
	}
	if s != nil && s.cert != nil && s.version != "" && left(s.cert, now) > fallbackAt {
		return b.Issuer
	}
	return all[failures%len(all)]
}
