package tlsmgr

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"edge/tlsmgr/vault"
)

// Detail is all that is known about one certificate: of the plan, of the
// storage, or a file. Times are zero and texts empty where there is nothing.
type Detail struct {
	ID          string         `json:"id"`
	Source      string         `json:"source"`            // "file", "written", "inferred", or "stored" when the plan does not want it
	Names       []string       `json:"names"`             // in the certificate, or the wanted ones while it is missing
	Missing     []string       `json:"missing,omitempty"` // wanted and not in it
	Need        string         `json:"need,omitempty"`    // why it would be ordered now; "" when it would not
	Issuer      string         `json:"issuer,omitempty"`  // name in the configuration
	Directory   string         `json:"directory,omitempty"`
	IssuedBy    string         `json:"issued_by,omitempty"` // common name of the CA
	Profile     string         `json:"profile,omitempty"`
	KeyType     config.KeyType `json:"key_type,omitempty"`
	Serial      string         `json:"serial,omitempty"`      // "" when there is no certificate
	Fingerprint string         `json:"fingerprint,omitempty"` // SHA-256 of the leaf, in hex
	NotBefore   time.Time      `json:"not_before,omitzero"`
	NotAfter    time.Time      `json:"not_after,omitzero"`
	Left        float64        `json:"left"` // fraction of the lifetime, negative when it has expired
	Renewal     time.Time      `json:"renewal,omitzero"`
	RenewalWhy  string         `json:"renewal_why,omitempty"`
	Replace     string         `json:"replace,omitempty"` // why the CA wants it replaced at once
	OrderURL    string         `json:"order_url,omitempty"`
	Owner       string         `json:"owner,omitempty"` // replica that obtained it
	ObtainedAt  time.Time      `json:"obtained_at,omitzero"`
	Imported    bool           `json:"imported,omitempty"`
	Journal     *Journal       `json:"journal,omitempty"`  // nil when there is nothing to tell
	Replicas    []Loaded       `json:"replicas,omitempty"` // that have written a heartbeat
	Error       string         `json:"error,omitempty"`    // why what is stored cannot be used
}

// Journal is what replicas wrote down about the work on a certificate.
type Journal struct {
	Open       bool                         `json:"open"` // an order is under way, or was interrupted
	Names      []string                     `json:"names,omitempty"`
	Issuer     string                       `json:"issuer,omitempty"`
	OrderURL   string                       `json:"order_url,omitempty"` // "" before the CA took the order
	StartedAt  time.Time                    `json:"started_at,omitzero"`
	Failures   int                          `json:"failures,omitempty"` // in a row
	Error      string                       `json:"error,omitempty"`
	Next       time.Time                    `json:"next,omitzero"` // not tried before
	Quarantine map[string]vault.Quarantined `json:"quarantine,omitempty"`
	Owner      string                       `json:"owner,omitempty"` // replica that wrote it
	UpdatedAt  time.Time                    `json:"updated_at,omitzero"`
}

// Loaded says whether a replica serves what is stored.
type Loaded struct {
	ReplicaStatus
	Beat   time.Time `json:"beat"`   // of its last heartbeat, by its own clock
	Silent bool      `json:"silent"` // it missed several, if its clock is right: it has probably ended
	Loaded bool      `json:"loaded"`
}

// Planned is the plan in force with its explanation.
func (m *Manager) Planned() *Planned { return m.state.Load().plan }

// Details reads the storage and tells about every certificate that is in it or
// in the plan, and about those in files, sorted by ID. An error is the storage's;
// what is known without it is told nevertheless.
func (m *Manager) Details(ctx context.Context) ([]Detail, error) {
	var err error
	if v := m.vaultInUse(); v != nil {
		err = m.sync(ctx, v)
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.state.Load()
	var out []Detail
	for _, c := range m.files {
		d := Detail{ID: c.id, Source: "file"}
		d.fill(c, now)
		out = append(out, d)
	}
	ids := slices.Collect(maps.Keys(m.loaded))
	for id := range st.bundles {
		if m.loaded[id] == nil {
			ids = append(ids, id)
		}
	}
	digest := sync.OnceValue(m.digestLocked) // of everything: once for all
	for _, id := range ids {
		if l := m.loaded[id]; st.bundles[id] != nil || l.cert != nil || l.err != nil {
			out = append(out, m.detailLocked(st, id, digest, now))
		}
	}
	slices.SortFunc(out, func(a, b Detail) int { return strings.Compare(a.ID, b.ID) })
	return out, err
}

func (m *Manager) detailLocked(st *state, id string, digest func() string, now time.Time) Detail {
	d := Detail{ID: id, Source: "stored"}
	l, j := m.loaded[id], m.journals[id]
	if l != nil && l.err != nil {
		d.Error = oneError(l.err).Error()
	}
	if l != nil && l.cert != nil {
		d.fill(l.cert, now)
		d.Replicas = m.loadedByLocked(l.cert, digest, now)
	}
	if b := st.bundles[id]; b != nil {
		d.want(b)
		d.Need = string(m.needLocked(st, b, now))
	}
	if j != nil && (j.open() || !j.idle()) {
		d.Journal = j.tell()
	}
	return d
}

// want adds what the plan says about the certificate.
func (d *Detail) want(b *Bundle) {
	d.Source = "written"
	if b.Inferred {
		d.Source = "inferred"
	}
	if d.Serial == "" {
		d.Names, d.Issuer, d.KeyType = b.Names, b.Issuer, b.KeyType
		d.Missing = b.Names
		return
	}
	for _, n := range b.Names {
		if !slices.Contains(d.Names, n) {
			d.Missing = append(d.Missing, n)
		}
	}
}

// fill copies what the certificate and its object say.
func (d *Detail) fill(c *certificate, now time.Time) {
	leaf := c.leaf()
	sum := sha256.Sum256(leaf.Raw)
	d.Names, d.Serial, d.Fingerprint, d.IssuedBy = c.names, c.serial(), hex.EncodeToString(sum[:]), leaf.Issuer.CommonName
	d.NotBefore, d.NotAfter, d.Left = leaf.NotBefore, leaf.NotAfter, left(c, now)
	o := c.object
	if o == nil {
		return
	}
	d.Issuer, d.Directory, d.Profile, d.KeyType = o.Issuer, o.Directory, o.Profile, o.KeyType
	d.OrderURL, d.Owner, d.ObtainedAt, d.Imported = o.OrderURL, o.Owner, o.ObtainedAt, o.Imported
	d.Renewal, d.RenewalWhy = renewAt(c).UTC(), whyThen(c)
	if r := o.Renewal; r != nil && r.Replace {
		d.Replace = cmp.Or(r.Explanation, "the CA gives no reason")
	}
}

// whyThen explains renewAt.
func whyThen(c *certificate) string {
	leaf := c.leaf()
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	r := renewalOf(c)
	switch {
	case r != nil && !r.Selected.IsZero() && leaf.NotAfter.Add(-life/latestAt).Before(r.Selected):
		return "a sixth of the lifetime is left; the CA suggests later"
	case r != nil && !r.Selected.IsZero():
		return fmt.Sprintf("in the window that the CA suggests, %s to %s", r.Start.UTC().Format(time.RFC3339), r.End.UTC().Format(time.RFC3339))
	case life < shortLife:
		return "half of the lifetime is left"
	default:
		return "a third of the lifetime is left"
	}
}

func (j *journal) tell() *Journal {
	r := j.clone()
	out := &Journal{
		Open: j.open(), Failures: r.Failures, Error: r.Error, Next: r.Next,
		Quarantine: r.Quarantine, Owner: r.Owner, UpdatedAt: r.UpdatedAt,
	}
	if a := r.Attempt; a != nil {
		out.Names, out.Issuer, out.OrderURL, out.StartedAt = a.Names, a.Issuer, a.URL, a.StartedAt
	}
	return out
}

// loadedByLocked tells which replicas serve c. A process that has just started
// knows only from their clocks which of them have ended.
func (m *Manager) loadedByLocked(c *certificate, digest func() string, now time.Time) []Loaded {
	var out []Loaded
	for _, p := range m.fleet.peers {
		r := p.record
		serves := r.Recent[c.id] == c.serial()
		if _, recent := r.Recent[c.id]; !recent {
			serves = r.Digest == digest()
		}
		out = append(out, Loaded{
			ReplicaStatus: ReplicaStatus{ID: r.ID, Owner: r.Owner, Version: r.Version, Started: r.Started, Role: r.Role},
			Beat:          r.Beat, Silent: now.Sub(r.Beat) > silence*max(r.Interval, time.Second), Loaded: serves,
		})
	}
	slices.SortFunc(out, func(a, b Loaded) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Find is the certificate that is called what, or that serves the host what:
// one that the plan wants before others. ok is false when there is none.
func Find(all []Detail, what string) (_ Detail, ok bool) {
	if i := slices.IndexFunc(all, func(d Detail) bool { return d.ID == what }); i >= 0 {
		return all[i], true
	}
	host, err := hostname.Parse(what)
	if ip, isIP := hostname.ParseIP(what); isIP {
		host, err = ip, nil
	}
	if err != nil {
		return Detail{}, false
	}
	for _, exactly := range []bool{true, false} {
		for _, planned := range []bool{true, false} {
			for _, d := range all {
				if planned == (d.Source != "stored") && slices.ContainsFunc(d.Names, func(n string) bool { return n == host || !exactly && hostname.Covers(n, host) }) {
					return d, true
				}
			}
		}
	}
	return Detail{}, false
}

// Used is how much of a budget is used.
type Used struct {
	Issuer string        `json:"issuer"`
	Limit  string        `json:"limit"`        // "orders", "per_domain": as under limits in the configuration
	For    string        `json:"for,omitzero"` // registered domain
	Used   int           `json:"used"`
	Count  int           `json:"count"` // allowed in Per
	Per    time.Duration `json:"per_ns"`
}

// Budgets tells how much is used of what edge allows itself at each CA of the
// plan: orders in all, and certificates for each registered domain of the plan.
func (m *Manager) Budgets(ctx context.Context) ([]Used, error) {
	v, st := m.vaultInUse(), m.state.Load()
	if v == nil {
		return nil, nil
	}
	var out []Used
	now := time.Now()
	for _, name := range slices.Sorted(maps.Keys(st.issuers)) {
		i := st.issuers[name]
		if i == nil || i.ca == nil {
			continue
		}
		b, _, err := vault.Load[vault.Budget](ctx, v, vault.BudgetID(i.config.Directory))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, vault.ErrDamaged):
			b = &vault.Budget{}
		case err != nil:
			return out, fmt.Errorf("budget of the CA: %w", err)
		}
		settle(b, i.quotas, now)
		if q := i.quotas.Orders; limited(q) {
			out = append(out, Used{Issuer: name, Limit: "orders", Used: used(b.Orders, q, now), Count: q.Count, Per: q.Per})
		}
		if q := i.quotas.Domain; limited(q) {
			for _, d := range st.domains(name) {
				out = append(out, Used{Issuer: name, Limit: "per_domain", For: d, Used: used(b.Domains[d], q, now), Count: q.Count, Per: q.Per})
			}
		}
	}
	return out, nil
}

// domains are the registered domains that the plan orders from an issuer.
func (st *state) domains(issuer string) []string {
	var names []string
	for _, b := range st.bundles {
		if slices.Contains(b.issuers(), issuer) {
			names = append(names, b.Names...)
		}
	}
	return registered(names)
}
