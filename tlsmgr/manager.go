package tlsmgr

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"edge/config"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// Manager holds the certificates of one process. All methods may be called
// concurrently. It does nothing until Prepare and Commit; Run does its work.
type Manager struct {
	options Options
	log     *slog.Logger
	backoff func(failures int) time.Duration
	tickets tickets
	refuse  *tls.Config // for names without a certificate

	state   atomic.Pointer[state] // the configuration in force; never nil
	index   atomic.Pointer[index] // what handshakes read; never nil
	wake    chan struct{}         // look now
	slots   chan struct{}         // held by orders in flight
	chores  chan struct{}         // held by what is done besides orders
	syncing chan struct{}         // held by whoever compares what is loaded with the storage

	answers *answers    // to CAs that come to look
	telling atomic.Bool // a goroutine is at notice
	tally   tally

	mu        sync.Mutex
	vault     *vault.Vault // of the first Commit that obtains something; closed by Run
	storage   config.Storage
	snapshot  *vault.Snapshot         // nil when there is none
	files     map[string]*certificate // file certificates by name
	loaded    map[string]*stored      // by id, what the storage has
	journals  map[string]*journal     // by id, what the storage has
	jobs      map[string]*job         // by Bundle.ID
	remarks   map[string]remark       // by id of a certificate
	orphans   []orphan
	fleet     fleet
	snapped   map[string]store.Version // by id, what the snapshot has
	unsettled bool                     // the plan may depend on something that changed in the storage
}

// state is one configuration, ready to serve. It is immutable but for sides.
type state struct {
	cfg      *config.Config
	plan     *Planned
	bundles  map[string]*Bundle // of the plan, by ID
	issuers  map[string]*issuer
	sides    atomic.Pointer[sides] // made anew when a client CA file changes
	wanted   []string              // names that certificates are kept for
	replaced chan struct{}         // closed when another state is in force
}

// New makes a Manager that serves nothing yet.
func New(o Options) *Manager {
	m := &Manager{
		options: o, log: o.Logger, backoff: o.Backoff, refuse: newRefusal(),
		wake: make(chan struct{}, 1), slots: make(chan struct{}, maxOrders), chores: make(chan struct{}, maxChores), syncing: make(chan struct{}, 1),
		files: map[string]*certificate{}, loaded: map[string]*stored{}, jobs: map[string]*job{},
		journals: map[string]*journal{}, remarks: map[string]remark{}, snapped: map[string]store.Version{}, answers: newAnswers(),
	}
	if m.log == nil {
		m.log = slog.Default()
	}
	if m.backoff == nil {
		m.backoff = backoff
	}
	if m.options.Interval <= 0 {
		m.options.Interval = defaultInterval
	}
	if m.options.Owner == "" {
		host, _ := os.Hostname() // "" is as good a name as any
		m.options.Owner = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	m.fleet = newFleet(m.options.Owner)
	m.state.Store(&state{cfg: &config.Config{}, plan: &Planned{}, replaced: make(chan struct{})})
	m.index.Store(buildIndex(nil, nil, time.Now()))
	return m
}

// Change is a configuration that is ready to be put in force by Commit, or
// dropped.
type Change struct {
	m        *Manager
	next     *state
	files    map[string]*certificate
	vault    *vault.Vault    // opened for this change; nil when there is one already
	keys     *vault.Keyring  // of vault; nil when nothing is sealed
	snapshot *vault.Snapshot // likewise
	warnings []config.Problem
}

// Warnings are what the operator should know about the configuration: hosts
// without a certificate, and changes that need a restart.
func (c *Change) Warnings() []config.Problem { return c.warnings }

// Prepare gets ready for cfg: it plans, reads file certificates, CA files and
// secrets, and opens the storage if none is open. It touches no network and
// changes nothing that is in force; the error joins all problems.
func (m *Manager) Prepare(ctx context.Context, cfg *config.Config) (*Change, error) {
	files, err := readPairs(cfg)
	problems := []error{err}
	m.mu.Lock()
	known := m.knownLocked(files)
	m.mu.Unlock()
	plan := Explain(cfg, known)
	st := &state{
		cfg: cfg, plan: plan, bundles: map[string]*Bundle{}, issuers: map[string]*issuer{},
		wanted: wantedNames(plan, known.Files), replaced: make(chan struct{}),
	}
	for n := range plan.Bundles {
		b := &plan.Bundles[n]
		st.bundles[b.ID] = b
		for _, name := range b.issuers() {
			if _, tried := st.issuers[name]; !tried && !cfg.ServeOnly {
				st.issuers[name], err = m.newIssuer(cfg, name)
				problems = append(problems, err)
			}
		}
	}
	sides, warnings, err := m.prepareSides(cfg)
	problems = append(problems, err)
	st.sides.Store(sides)
	change := &Change{m: m, next: st, files: files, warnings: append(warnings, plan.Problems...)}
	if len(plan.Bundles) > 0 {
		problems = append(problems, change.openStorage(ctx, cfg))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return change, nil
}

// openStorage opens the storage once. Leases and what is loaded belong to the
// storage of the start, so a change of it waits for a restart.
func (c *Change) openStorage(ctx context.Context, cfg *config.Config) error {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.vault != nil {
		if !sameStorage(m.storage, cfg.Storage) {
			c.warnings = append(c.warnings, config.Problem{
				File: cfg.Path, Pos: cfg.Storage.Pos, Path: "storage",
				Message: "storage changed, still using " + m.vault.Store().URL(), Hint: "restart to apply",
			})
		}
		return nil
	}
	keys, err := vault.NewKeyring(cfg.Storage.Keys)
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, cfg.Storage.URL, store.Options{Logger: m.log, Owner: m.options.Owner, LeaseTTL: m.options.LeaseTTL})
	if err != nil {
		return err
	}
	c.keys = keys
	c.vault = vault.New(s, vault.Options{Keys: keys, Logger: m.log})
	if cfg.Storage.Snapshot != "" {
		if c.snapshot, err = vault.OpenSnapshot(cfg.Storage.Snapshot, keys); err != nil {
			return fmt.Errorf("storage.snapshot: %w", err)
		}
	}
	return nil
}

func sameStorage(a, b config.Storage) bool {
	return a.URL == b.URL && a.Snapshot == b.Snapshot && slices.Equal(a.Keys, b.Keys)
}

// knownLocked is what the plan has to know of certificates that exist.
func (m *Manager) knownLocked(files map[string]*certificate) Known {
	known := Known{Files: namesIn(files), Stored: map[string][]string{}}
	for id, l := range m.loaded {
		if l.cert != nil && l.version != "" {
			known.Stored[id] = l.cert.names
		}
	}
	for id, j := range m.journals {
		names := known.Stored[id]
		if j.open() {
			names = append(slices.Clone(names), j.record.Attempt.Names...)
		}
		for n := range j.record.Quarantine {
			names = append(slices.Clone(names), n)
		}
		if len(names) > 0 {
			slices.Sort(names)
			known.Stored[id] = slices.Compact(names)
		}
	}
	return known
}

// replan makes the plan again when the storage has news about which names are
// in which certificate: names stay where they are.
func (m *Manager) replan() {
	m.mu.Lock()
	st, stale := m.state.Load(), m.unsettled
	m.unsettled = false
	known := m.knownLocked(m.files)
	m.mu.Unlock()
	if !stale {
		return
	}
	plan := Explain(st.cfg, known)
	if slices.EqualFunc(plan.Bundles, st.plan.Bundles, func(a, b Bundle) bool { return a.equal(&b) }) {
		return
	}
	next := &state{
		cfg: st.cfg, plan: plan, bundles: map[string]*Bundle{}, issuers: st.issuers,
		wanted: wantedNames(plan, known.Files), replaced: make(chan struct{}),
	}
	for n := range plan.Bundles {
		next.bundles[plan.Bundles[n].ID] = &plan.Bundles[n]
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Load() != st {
		m.unsettled = true // another configuration, another plan
		return
	}
	next.sides.Store(st.sides.Load())
	m.state.Store(next)
	m.rebuildLocked(time.Now())
	close(st.replaced)
}

// wantedNames are all names that a certificate is worth keeping for.
func wantedNames(plan *Planned, files map[string][]string) []string {
	var out []string
	for _, c := range plan.Covers {
		out = append(out, c.Host)
	}
	for _, b := range plan.Bundles {
		out = append(out, b.Names...)
	}
	for _, names := range files {
		out = append(out, names...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Commit puts the change in force. It cannot fail. What handshakes see changes
// at once; new certificates are ordered by Run. Failed certificates are tried
// again now, unless the CA asked for patience: the operator may just have
// repaired the cause. One that another replica replaced is left to it unless it
// changes: a reload is no reason to go on with the quarrel.
func (c *Change) Commit() {
	m := c.m
	m.mu.Lock()
	old := m.state.Load()
	m.state.Store(c.next)
	m.files = c.files
	if m.vault == nil && c.vault != nil {
		m.vault, m.snapshot, m.storage = c.vault, c.snapshot, c.next.cfg.Storage
		m.tickets.share(c.keys.Secrets(ticketSecret))
	}
	m.unsettled = true
	for id, j := range m.jobs {
		b := c.next.bundles[id]
		if b == nil && !j.busy {
			delete(m.jobs, id)
			continue
		}
		if b == nil || !b.equal(old.bundles[id]) {
			j.settled, j.yields, j.contests = false, false, 0
		}
		if !j.patient && !j.yields {
			j.next, j.urgent = time.Time{}, true
		}
		if j.waiting != nil {
			j.waiting()
		}
	}
	m.rebuildLocked(time.Now())
	m.mu.Unlock()
	close(old.replaced)
	for _, b := range c.next.plan.Bundles {
		if !b.equal(old.bundles[b.ID]) {
			m.emit(context.Background(), b.ID, StepPlanned, abridge(b.Names))
		}
	}
	m.look()
}

// look makes Run look at once.
func (m *Manager) look() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// rebuildLocked makes a new index of what is loaded for the state in force.
func (m *Manager) rebuildLocked(now time.Time) {
	st := m.state.Load()
	all := make([]candidate, 0, len(m.files)+len(m.loaded))
	for _, c := range m.files {
		all = append(all, candidate{c, true})
	}
	for id, s := range m.loaded {
		if s.cert != nil {
			all = append(all, candidate{s.cert, st.bundles[id] != nil})
		}
	}
	m.index.Store(buildIndex(all, st.wanted, now))
}
