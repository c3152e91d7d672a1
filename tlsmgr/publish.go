package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"edge/config"
	"edge/hostname"
	"edge/tlsmgr/dns"
	"edge/tlsmgr/vault"
)

// What has to stand in DNS, for the command line: where challenge records go,
// what a person publishes, and whether a name can be proven at all.

const (
	locateTimeout = 15 * time.Second // for all names together
	maxLocate     = 16               // names at once
	maxPersist    = 100              // hosts in one look at persistent records
)

// Delegation is where the challenge record of a name belongs, or why that is
// not known.
type Delegation struct {
	dns.Place

	Issuer string `json:"issuer"`
	Error  string `json:"error,omitempty"`
}

// Delegations finds where the challenge records of the plan belong, by name. It
// asks resolvers for a bounded time and writes nothing. Names that are proven
// in another way than dns-01 are left out.
func (m *Manager) Delegations(ctx context.Context) map[string]Delegation {
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	var (
		mu   sync.Mutex
		work sync.WaitGroup
		out  = map[string]Delegation{}
		free = make(chan struct{}, maxLocate)
	)
	st := m.state.Load()
	for _, b := range st.plan.Bundles {
		i := st.issuers[b.Issuer]
		if i == nil || i.solver == nil || challengeOf(i.config) != config.DNS01 {
			continue
		}
		for _, n := range b.Names {
			if hostname.IsIP(n) {
				continue
			}
			work.Go(func() {
				free <- struct{}{}
				defer func() { <-free }()
				place, err := i.solver.Locate(ctx, n)
				d := Delegation{Place: place, Issuer: i.config.Name}
				if err != nil {
					d.Error = oneError(err).Error()
				}
				mu.Lock()
				defer mu.Unlock()
				out[n] = d
			})
		}
	}
	work.Wait()
	return out
}

// Publication is what has to stand in DNS for one issuer of the plan, by
// somebody's hand.
type Publication struct {
	Issuer     string           `json:"issuer"`
	Directory  string           `json:"directory"`
	Challenge  config.Challenge `json:"challenge"`
	Account    string           `json:"account"`    // URL
	Registered bool             `json:"registered"` // the account was registered just now
	Identities []string         `json:"identities"` // names of the CA in CAA records; empty when it does not say
	Records    []PersistRecord  `json:"records"`    // for dns-persist-01
	CAA        []CAARecord      `json:"caa"`        // recommended, not needed
}

// PersistRecord is a TXT record that proves names to dns-persist-01.
type PersistRecord struct {
	Name      string    `json:"name"`
	Value     string    `json:"value"`
	Proves    []string  `json:"proves"`
	Published bool      `json:"published"`        // every server has it
	Until     time.Time `json:"until,omitzero"`   // its own end, when it has one
	Problem   string    `json:"problem,omitzero"` // why it does not count as published
}

// CAARecord lets one account of one CA issue for a domain and all below it, and
// nobody else unless another record does (RFC 8659, RFC 8657).
type CAARecord struct {
	Name  string `json:"name"`
	Value string `json:"value"` // of the property issue
}

// Publications says what is to be published for each ACME issuer of the plan,
// fallbacks included. It needs the account of each, and registers it when there
// is none.
func (m *Manager) Publications(ctx context.Context) ([]Publication, error) {
	v, st := m.vaultInUse(), m.state.Load()
	if v == nil {
		return nil, errNothing
	}
	if st.cfg.ServeOnly {
		return nil, errServes
	}
	names := map[string][]string{}
	var issuers []string
	for _, b := range st.plan.Bundles {
		for _, name := range b.issuers() {
			if i := st.issuers[name]; i == nil || i.ca == nil {
				continue
			}
			if names[name] == nil {
				issuers = append(issuers, name)
			}
			names[name] = append(names[name], b.Names...)
		}
	}
	slices.Sort(issuers)
	var out []Publication
	for _, name := range issuers {
		p, err := m.publication(ctx, v, st.issuers[name], names[name])
		if err != nil {
			return out, fmt.Errorf("issuers.%s: %w", name, oneError(err))
		}
		out = append(out, p)
	}
	return out, nil
}

func (m *Manager) publication(ctx context.Context, v *vault.Vault, i *issuer, names []string) (Publication, error) {
	p := Publication{
		Issuer: i.config.Name, Directory: i.config.Directory, Challenge: challengeOf(i.config),
		Records: []PersistRecord{}, CAA: []CAARecord{},
	}
	meta, err := i.ca.Meta(ctx)
	if err != nil {
		return p, err
	}
	p.Identities = append([]string{}, meta.CAAIdentities...)
	_, err = loadAccount(ctx, v, accountID(i.config))
	p.Registered = errors.Is(err, fs.ErrNotExist) || errors.Is(err, errUnregistered)
	if p.Registered {
		if err := v.Store().Probe(ctx); err != nil {
			return p, err
		}
	}
	a, err := m.account(ctx, v, i)
	if err != nil {
		return p, err
	}
	p.Account = a.URL
	if len(p.Identities) == 0 {
		return p, nil
	}
	names = slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(names))), hostname.IsIP)
	if p.Challenge == config.DNSPersist01 {
		if p.Records, err = i.persistent(ctx, names, p.Identities, p.Account); err != nil {
			return p, err
		}
	}
	for _, domain := range registered(names) {
		p.CAA = append(p.CAA, CAARecord{domain, p.Identities[0] + "; accounturi=" + p.Account})
	}
	return p, nil
}

// persistent are the records that prove names, with what DNS has of them.
func (i *issuer) persistent(ctx context.Context, names, identities []string, account string) ([]PersistRecord, error) {
	byHost := map[string][]string{} // a wildcard and its domain share a record
	for _, n := range names {
		host := strings.TrimPrefix(n, "*.")
		byHost[host] = append(byHost[host], n)
	}
	out := []PersistRecord{}
	for hosts := range slices.Chunk(slices.Sorted(maps.Keys(byHost)), maxPersist) {
		want := dns.Persist{Issuers: identities, AccountURI: account}
		for _, h := range hosts {
			want.Names = append(want.Names, byHost[h]...)
		}
		states, err := i.solver.PersistReport(ctx, want)
		if err != nil {
			return out, err
		}
		for _, s := range states {
			out = append(out, PersistRecord{s.Record.Name, s.Record.Value, s.Names, s.Present, s.Until, s.Problem})
		}
	}
	return out, nil
}

// CheckDNS explains step by step whether name can be proven to the issuer that
// the plan, or else the configuration, has for it. With write a probe record is
// added and deleted. What is not known of the CA and the account is left out: no
// account is registered.
func (m *Manager) CheckDNS(ctx context.Context, name string, write bool) (report *dns.Report, issuerName string, err error) {
	st := m.state.Load()
	if _, err := hostname.Parse(name); err != nil && !hostname.IsIP(name) {
		return nil, "", err
	}
	issuerName = st.issuerFor(name)
	if issuerName == "" {
		return nil, "", errors.New("no issuer (set acme)")
	}
	i, err := m.newIssuer(st.cfg, issuerName)
	if err != nil {
		return nil, issuerName, err
	}
	if i.ca == nil {
		return nil, issuerName, fmt.Errorf("%s is certified by edge's own CA %q, which asks for no proof", name, issuerName)
	}
	if i.solver == nil {
		if i.solver, err = m.newSolver(st.cfg, i.config); err != nil {
			return nil, issuerName, err
		}
	}
	o := dns.CheckOptions{Write: write, Challenge: challengeOf(i.config)}
	var unknown []string
	if meta, err := i.ca.Meta(ctx); err == nil {
		o.CAIdentities = meta.CAAIdentities
	} else {
		unknown = append(unknown, oneError(err).Error())
	}
	if v := m.vaultInUse(); v != nil {
		loadCtx, cancel := context.WithTimeout(ctx, storageTimeout)
		a, err := loadAccount(loadCtx, v, accountID(i.config))
		cancel()
		switch {
		case err == nil:
			o.AccountURI = a.URL
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errUnregistered):
			unknown = append(unknown, oneError(err).Error())
		}
	}
	report = i.solver.Check(ctx, name, o)
	if len(unknown) > 0 {
		report.Steps = append(report.Steps, dns.Step{Title: "CA and account", State: dns.StateWarning, Detail: unknown})
	}
	return report, issuerName, nil
}

// issuerFor is the issuer of the certificate that has or covers name, or that
// would be planned for it.
func (st *state) issuerFor(name string) string {
	if parsed, err := hostname.Parse(name); err == nil {
		name = parsed
	}
	for _, exactly := range []bool{true, false} {
		for _, b := range st.plan.Bundles {
			if slices.ContainsFunc(b.Names, func(n string) bool { return n == name || !exactly && hostname.Covers(n, name) }) {
				return b.Issuer
			}
		}
	}
	if issuers := st.cfg.IssuersFor(strings.ToLower(name)); len(issuers) > 0 {
		return issuers[0]
	}
	return ""
}

var (
	errNothing = errors.New("the configuration obtains no certificate")
	errServes  = errors.New("certificates_role is serve: this replica orders nothing")
)
