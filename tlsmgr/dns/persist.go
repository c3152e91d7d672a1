package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	miekg "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

const (
	persistLabel      = "_validation-persist."
	maxPersistIssuers = 10 // of a challenge (draft-ietf-acme-dns-persist-00, section 3.1)
)

// PersistName is where the persistent record of a host name stands. A wildcard
// shares that of the name it stands below.
func PersistName(name string) string {
	return persistLabel + bare(strings.TrimPrefix(name, "*."))
}

// PersistValue is the record's value. wildcard makes it cover *.NAME as well as
// NAME, and lets a CA accept it for names further below.
func PersistValue(issuer, accountURI string, wildcard bool) string {
	value := issuer + "; accounturi=" + accountURI
	if wildcard {
		value += "; policy=wildcard"
	}
	return value
}

// Persist is what dns-persist-01 (draft-ietf-acme-dns-persist) has to prove:
// that these names may be issued to this account. Instead of a record for each
// order there is one that stays, published by whoever owns the zone; edge needs
// no credentials for it.
type Persist struct {
	Names      []string // of the certificate; host names and wildcards
	Issuers    []string // issuer domain names of the challenge, or the CA's identities; any of them will do
	AccountURI string
}

// PersistState is one record that is needed, and what DNS has.
type PersistState struct {
	Record  Record    // to be published; Name has no final dot
	Names   []string  // of the certificate, that it proves
	Present bool      // every server has a record that the CA will accept
	Until   time.Time // when the first of the accepted ones ends by its own persistUntil; zero: never
	Answers []string  // CNAMEs that are followed, then by server: its name and address, and what it has
	Problem string    // why it is not Present, in one line
}

// Records are the TXT records to publish, one for each host name, sorted.
func (p Persist) Records() []Record {
	var out []Record
	for _, name := range p.hosts() {
		out = append(out, Record{Name: PersistName(name), Value: p.value(name)})
	}
	return out
}

// hosts are the names without wildcards, canonical, each once.
func (p Persist) hosts() []string {
	var out []string
	for _, name := range p.Names {
		out = append(out, bare(miekg.CanonicalName(strings.TrimPrefix(name, "*."))))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p Persist) wildcard(host string) bool {
	return slices.ContainsFunc(p.Names, func(n string) bool { return strings.HasPrefix(n, "*.") && sameName(n[2:], host) })
}

func (p Persist) value(host string) string {
	issuer := ""
	if len(p.Issuers) > 0 {
		issuer = p.Issuers[0]
	}
	return PersistValue(issuer, p.AccountURI, p.wildcard(host))
}

func (p Persist) check() error {
	switch {
	case len(p.Names) == 0 || len(p.Names) > maxRecords:
		return fmt.Errorf("persistent records of %d names (1 to %d are allowed)", len(p.Names), maxRecords)
	case len(p.Issuers) == 0 || len(p.Issuers) > maxPersistIssuers:
		return fmt.Errorf("persistent records: the CA gives %d issuer domain names (1 to %d are allowed)", len(p.Issuers), maxPersistIssuers)
	case p.AccountURI == "":
		return errors.New("persistent records: no account yet")
	}
	for _, host := range p.hosts() {
		if _, ok := miekg.IsDomainName(persistLabel + host); !ok || host == "" {
			return fmt.Errorf("persistent record of %q: no host name", host)
		}
	}
	return nil
}

// CheckPersist returns nil when the records of all names stand where the CA will
// look for them: then an order may be placed. It looks once, for a record that
// is missing comes by a person's hand. The error has a line for each of the
// first names and gives the record to publish.
func (s *Solver) CheckPersist(ctx context.Context, p Persist) error {
	states, err := s.PersistReport(ctx, p)
	if err != nil {
		return err
	}
	errs := make([]error, 0, len(states))
	for _, st := range states {
		if !st.Present {
			errs = append(errs, fmt.Errorf("persistent record of %s: %s (publish %s. TXT %q)",
				strings.Join(st.Names, " and "), st.Problem, st.Record.Name, st.Record.Value))
		}
	}
	return some(errs)
}

// PersistReport looks for the record of every name on all servers that Wait
// would ask. The error is about p; what DNS has is in the states, which are in
// the order of Persist.Records.
func (s *Solver) PersistReport(ctx context.Context, p Persist) ([]PersistState, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	hosts := p.hosts()
	states := make([]PersistState, len(hosts))
	var eg errgroup.Group
	eg.SetLimit(maxParallel)
	for i, host := range hosts {
		st := &states[i]
		st.Record = Record{Name: PersistName(host), Value: p.value(host)}
		if slices.ContainsFunc(p.Names, func(n string) bool { return sameName(n, host) }) {
			st.Names = append(st.Names, host)
		}
		if p.wildcard(host) {
			st.Names = append(st.Names, "*."+host)
		}
		eg.Go(func() error {
			s.inspect(ctx, p, host, st)
			return nil
		})
	}
	_ = eg.Wait() // each name has its own problem
	return states, nil
}

// inspect asks all servers for the record of host.
func (s *Solver) inspect(ctx context.Context, p Persist, host string, st *PersistState) {
	chain, err := s.chase(ctx, miekg.CanonicalName(st.Record.Name))
	if err != nil {
		st.Problem = err.Error()
		return
	}
	target := chain[len(chain)-1]
	for i := 1; i < len(chain); i++ {
		st.Answers = append(st.Answers, bare(chain[i-1])+" CNAME "+bare(chain[i]))
	}
	servers, err := s.serversOf(ctx, target)
	if err != nil {
		st.Problem = "name servers: " + flat(err)
		return
	}
	now := time.Now()
	good := map[int]bool{} // by server
	var problems []string
	views := s.survey(ctx, servers, target, miekg.TypeTXT)
	for _, v := range views {
		said, until, err := p.view(v, host, now)
		st.Answers = append(st.Answers, v.who()+": "+said)
		switch {
		case err == nil:
			good[v.index] = true
			if !until.IsZero() && (st.Until.IsZero() || until.Before(st.Until)) {
				st.Until = until
			}
		case v.err == nil:
			problems = append(problems, v.who()+": "+said)
		}
	}
	for _, v := range views { // a server that answers at one address may be silent at others
		if v.err != nil && !good[v.index] {
			problems = append(problems, v.who()+": "+reason(v.err))
		}
	}
	st.Present = len(problems) == 0
	st.Problem = strings.Join(problems[:min(len(problems), maxErrors)], "; ")
}

// serversOf finds who has to show the records of name.
func (s *Solver) serversOf(ctx context.Context, name string) ([]nameServer, error) {
	zone := ""
	if !s.authoritative.Off && len(s.authoritative.Servers) == 0 {
		var err error
		if zone, err = s.zoneOf(ctx, name); err != nil {
			return nil, err
		}
	}
	return s.discover(ctx, zone)
}

// view says what one address has for host. err is nil when it is a record that
// the CA will accept, and then until is when that ends.
func (p Persist) view(v seen, host string, now time.Time) (said string, until time.Time, err error) {
	if v.err != nil {
		return reason(v.err), until, v.err
	}
	if v.answer.Rcode != miekg.RcodeSuccess {
		said = rcode(v.answer.Rcode)
		return said, until, errors.New(said)
	}
	var complaint error
	for _, rr := range v.answer.Answer {
		t, ok := rr.(*miekg.TXT)
		if !ok {
			continue
		}
		until, ours, err := p.accepts(strings.Join(t.Txt, ""), p.wildcard(host), now)
		switch {
		case err == nil && until.IsZero():
			return "has it", until, nil
		case err == nil:
			return "has it, until " + until.UTC().Format(time.DateOnly), until, nil
		case ours || complaint == nil:
			complaint = err
		}
	}
	if complaint == nil {
		complaint = errors.New("no TXT record")
	}
	return complaint.Error(), until, complaint
}

// accepts judges one value as a CA does (draft-ietf-acme-dns-persist-00, section
// 4). ours says that it is meant for this CA: then its complaint counts most.
// Issuer names are compared byte for byte, as CAs do.
func (p Persist) accepts(text string, wildcard bool, now time.Time) (until time.Time, ours bool, err error) {
	v, err := parseIssueValue(text)
	if !slices.Contains(p.Issuers, v.issuer) {
		return until, false, fmt.Errorf("no record for %s", strings.Join(p.Issuers, " or "))
	}
	if err != nil {
		return until, true, fmt.Errorf("malformed: %w", err)
	}
	account, _, err := v.get("accounturi")
	policy, _, err2 := v.get("policy")
	end, ends, err3 := v.get("persistuntil")
	if err := errors.Join(err, err2, err3); err != nil {
		return until, true, fmt.Errorf("malformed: %s", flat(err))
	}
	if ends {
		sec, err := strconv.ParseInt(end, 10, 64)
		if err != nil {
			return until, true, fmt.Errorf("malformed: persistUntil=%s is no UNIX time", oneLine(end))
		}
		until = time.Unix(sec, 0)
	}
	switch {
	case account == "":
		return until, true, errors.New("malformed: accounturi is missing")
	case account != p.AccountURI:
		return until, true, fmt.Errorf("it is for account %s, not %s", oneLine(account), p.AccountURI)
	case wildcard && !strings.EqualFold(policy, "wildcard"):
		return until, true, errors.New("it lacks policy=wildcard")
	case ends && !now.Before(until):
		return until, true, fmt.Errorf("it ended on %s (persistUntil)", until.UTC().Format(time.DateOnly))
	}
	return until, true, nil
}
