package tlsmgr

import (
	"slices"
	"strings"
	"time"

	"edge/tlsmgr/acme"
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
	Storage      string              `json:"storage"`    // without secrets; "" when nothing is obtained
	StorageUp    bool                `json:"storage_up"` // the last look at it succeeded; false before the first
	LeasesLost   int64               `json:"leases_lost,omitempty"`
	ACMEErrors   map[acme.Kind]int64 `json:"acme_errors,omitempty"` // orders that failed since the start, by what failed; every kind is there
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

// view is what there is about one certificate, taken under the lock. What it
// points to does not change.
type view struct {
	bundle  *Bundle      // nil for a file certificate
	cert    *certificate // nil when there is none
	journal *journal     // nil when there is none
	job     job          // zero when there is none
}

// Status reports all certificates of the configuration in force. The lock is held
// only to look them up; what there is to say about them takes longer.
func (m *Manager) Status() Status {
	now := time.Now()
	var out Status
	views := m.views(&out, now)
	out.Certificates = make([]CertificateStatus, 0, len(views))
	for n := range views {
		out.Certificates = append(out.Certificates, views[n].status(now))
	}
	slices.SortFunc(out.Certificates, func(a, b CertificateStatus) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// views looks up all certificates, and fills in what out says beside them.
func (m *Manager) views(out *Status, now time.Time) []view {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.state.Load()
	if m.vault != nil {
		out.Storage, out.StorageUp = m.vault.Store().URL(), m.tally.reached.Load()
		out.LeasesLost, out.ACMEErrors = m.vault.Store().LeasesLost(), m.tally.counts()
	}
	out.Replicas = m.replicasLocked(now)
	views := make([]view, 0, len(m.files)+len(st.plan.Bundles))
	for _, c := range m.files {
		views = append(views, view{cert: c})
	}
	for n := range st.plan.Bundles {
		b := &st.plan.Bundles[n]
		v := view{bundle: b, journal: m.journals[b.ID]}
		if l := m.loaded[b.ID]; l != nil {
			v.cert = l.cert
		}
		if v.cert == nil {
			v.cert = m.lentLocked(st, b, now) // serves in its stead
		}
		if j := m.jobs[b.ID]; j != nil {
			v.job = *j
		}
		views = append(views, v)
	}
	return views
}

func (v *view) status(now time.Time) CertificateStatus {
	if v.bundle == nil {
		s := CertificateStatus{ID: v.cert.id, Source: "file"}
		s.fill(v.cert, now)
		return s
	}
	b := v.bundle
	s := CertificateStatus{ID: b.ID, Names: b.Names, Source: "written", Issuer: b.Issuer, State: StateMissing}
	if b.Inferred {
		s.Source = "inferred"
	}
	if v.cert != nil {
		s.fill(v.cert, now)
		s.NextAttempt = renewAt(v.cert)
		if r := v.cert.object.Renewal; r != nil && r.Replace {
			s.Replaces = r.Explanation
		}
	}
	s.leaveOut(v.journal, b.Names, now)
	s.working(&v.job, v.cert != nil)
	return s
}

// leaveOut says which names are missing and why.
func (s *CertificateStatus) leaveOut(jr *journal, names []string, now time.Time) {
	reason := jr.reason(names)
	if reason == "" {
		return
	}
	s.Error, s.LeftOut = reason, jr.leftOut(names)
	if s.Serial == "" {
		s.State, s.NextAttempt = StateFailed, jr.next(now)
	}
}

// working says what this process does about the certificate.
func (s *CertificateStatus) working(j *job, has bool) {
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
