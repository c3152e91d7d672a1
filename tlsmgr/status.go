package tlsmgr

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// State is what a certificate is doing.
type State string

// The states of a certificate.
const (
	StateValid    State = "valid"    // served; nothing to do
	StateExpired  State = "expired"  // served for want of a better one
	StateMissing  State = "missing"  // not there yet, nobody works on it now
	StateWaiting  State = "waiting"  // another replica works on it
	StateOrdering State = "ordering" // this process orders it for the first time
	StateRenewing State = "renewing" // this process orders its successor; the old one serves
	StateFailed   State = "failed"   // the last attempt failed; what was there before serves
)

// Status is a snapshot of all certificates, sorted by ID.
type Status struct {
	Storage      string              `json:"storage"` // without secrets; "" when nothing is obtained
	Certificates []CertificateStatus `json:"certificates"`
	Replicas     []ReplicaStatus     `json:"replicas,omitempty"` // the live ones that share the storage, without this one
}

// ReplicaStatus is another live replica.
type ReplicaStatus struct {
	ID      string    `json:"id"`
	Owner   string    `json:"owner"`
	Version string    `json:"version,omitempty"`
	Started time.Time `json:"started"`
	Role    string    `json:"role"` // issue or serve
}

// CertificateStatus is one certificate of the configuration. Times are zero
// when there is none.
type CertificateStatus struct {
	ID          string    `json:"id"`
	Names       []string  `json:"names"`  // of the certificate, or the wanted ones while it is missing
	Source      string    `json:"source"` // "file", "written" under certificates, or "inferred" from routes
	Issuer      string    `json:"issuer"` // key in issuers; "" for a file
	IssuedBy    string    `json:"issued_by,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	NotBefore   time.Time `json:"not_before,omitzero"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	State       State     `json:"state"`
	NextAttempt time.Time `json:"next_attempt,omitzero"` // of a failed one, else when it is renewed
	Failures    int       `json:"failures,omitempty"`    // in a row
	LeftOut     []string  `json:"left_out,omitempty"`    // names that are wanted and not in it, and in quarantine
	Replaces    string    `json:"replace,omitempty"`     // why the CA wants it replaced now
	Error       string    `json:"error,omitempty"`       // one line
}

// Missing are the bundles of the plan that have no certificate to serve yet.
func (s *Status) Missing() []string {
	var out []string
	for _, c := range s.Certificates {
		if c.Serial == "" {
			out = append(out, c.ID)
		}
	}
	return out
}

// Status reports all certificates of the configuration in force.
func (m *Manager) Status() Status {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.state.Load()
	var out Status
	if m.vault != nil {
		out.Storage = m.vault.Store().URL()
	}
	out.Replicas = m.replicasLocked(now)
	for _, c := range m.files {
		s := CertificateStatus{ID: c.id, Source: "file"}
		s.fill(c, now)
		out.Certificates = append(out.Certificates, s)
	}
	for n := range st.plan.Bundles {
		out.Certificates = append(out.Certificates, m.statusLocked(&st.plan.Bundles[n], now))
	}
	slices.SortFunc(out.Certificates, func(a, b CertificateStatus) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (m *Manager) statusLocked(b *Bundle, now time.Time) CertificateStatus {
	s := CertificateStatus{ID: b.ID, Names: b.Names, Source: "written", Issuer: b.Issuer, State: StateMissing}
	if b.Inferred {
		s.Source = "inferred"
	}
	l, j, jr := m.loaded[b.ID], m.jobs[b.ID], m.journals[b.ID]
	has := l != nil && l.cert != nil
	if has {
		s.fill(l.cert, now)
		s.NextAttempt = renewAt(l.cert)
		if r := l.cert.object.Renewal; r != nil && r.Replace {
			s.Replaces = r.Explanation
		}
	}
	if reason := jr.reason(); reason != "" {
		s.Error = reason
		s.LeftOut = slices.Sorted(maps.Keys(jr.record.Quarantine))
		if !has {
			s.State, s.NextAttempt = StateFailed, jr.next(now)
		}
	}
	if j == nil {
		return s
	}
	s.Failures = j.failures
	switch {
	case j.ordering && has:
		s.State = StateRenewing
	case j.ordering:
		s.State = StateOrdering
	case j.waiting != nil && !has:
		s.State = StateWaiting
	case j.err != nil:
		s.State, s.NextAttempt = StateFailed, j.next
	}
	if j.err != nil {
		s.Error = j.err.Error()
	}
	return s
}

func (m *Manager) replicasLocked(now time.Time) []ReplicaStatus {
	var out []ReplicaStatus
	for _, p := range m.fleet.live(now) {
		r := p.record
		out = append(out, ReplicaStatus{ID: r.ID, Owner: r.Owner, Version: r.Version, Started: r.Started, Role: r.Role})
	}
	slices.SortFunc(out, func(a, b ReplicaStatus) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// fill copies what the certificate itself says.
func (s *CertificateStatus) fill(c *certificate, now time.Time) {
	leaf := c.leaf()
	s.Names, s.Serial = c.names, c.serial()
	s.IssuedBy = leaf.Issuer.CommonName
	s.NotBefore, s.NotAfter = leaf.NotBefore, leaf.NotAfter
	s.State = StateValid
	if c.expired(now) {
		s.State = StateExpired
	}
}
