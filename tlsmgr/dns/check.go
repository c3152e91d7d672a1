package dns

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edge/config"
	"edge/hostname"

	miekg "github.com/miekg/dns"
)

// checkTimeout bounds a Check; the waits for servers within it have bounds of
// their own.
const checkTimeout = 5 * time.Minute

// CheckOptions say what Check looks at.
type CheckOptions struct {
	Write        bool             // add a probe record, wait for it and delete it; otherwise nothing is changed
	Challenge    config.Challenge // how the name is going to be proven; "" means dns-01
	CAIdentities []string         // of the CA, for CAA and for dns-persist-01; empty: unknown
	AccountURI   string           // of the account that is going to order; "": unknown
}

// check is one Check under way. A step that cannot be done because an earlier
// one failed is skipped; all others are done.
type check struct {
	*Report
	s       *Solver
	o       CheckOptions
	name    string // as asked for, canonical
	host    string // without "*.", with final dot
	target  string // the end of the CNAME chain of the challenge name
	zone    string // of target; "" is unknown
	servers []nameServer
}

// Check explains step by step whether control of a name can be proven by DNS:
// resolvers, CNAMEs, zone and its delegation, provider, name servers and what
// they answer, a probe record if wanted, CAA. It is what `edge dns check` shows,
// and takes at most a few minutes.
func (s *Solver) Check(ctx context.Context, name string, o CheckOptions) *Report {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if o.Challenge == "" {
		o.Challenge = config.DNS01
	}
	c := &check{Report: &Report{Name: name}, s: s, o: o}
	var err error
	if c.name, err = hostname.Parse(name); err != nil {
		hint := ""
		if _, bad := netip.ParseAddr(name); bad == nil {
			hint = "an IP address has no name in DNS: it is proven by http-01 or tls-alpn-01"
		}
		c.fail("name", err, hint)
		return c.Report
	}
	c.host = miekg.CanonicalName(strings.TrimPrefix(c.name, "*."))
	c.resolvers(ctx)
	switch o.Challenge {
	case config.DNS01:
		c.cname(ctx)
		c.findZone(ctx)
		c.delegation(ctx)
		c.provider()
		c.nameServers(ctx)
		c.answers(ctx)
		c.probe(ctx)
	case config.DNSPersist01:
		c.target = miekg.CanonicalName(PersistName(c.name))
		c.findZone(ctx)
		c.delegation(ctx)
		c.nameServers(ctx)
		c.answers(ctx)
		c.persistent(ctx)
	case config.HTTP01, config.TLSALPN01:
		c.addresses(ctx)
	}
	c.caa(ctx)
	return c.Report
}

// resolvers asks each resolver for the name itself: any answer will do.
func (c *check) resolvers(ctx context.Context) {
	const title = "resolvers answer"
	resolvers, err := c.s.recursive()
	if err != nil {
		c.fail(title, err, "set resolvers in the issuer")
		return
	}
	views := c.s.surveyBy(ctx, []nameServer{{addresses: resolvers}}, c.host, miekg.TypeSOA, true)
	good := 0
	var detail []string
	for _, v := range views {
		said := v.code()
		if v.usable() {
			good++
		}
		detail = append(detail, fmt.Sprintf("%s: SOA %s: %s", v.who(), bare(c.host), said))
	}
	switch {
	case good == 0:
		c.add(title, StateFailed, detail...).Hint = "SERVFAIL is a zone that is broken or fails DNSSEC; for timeouts and refusals see resolvers in the issuer"
	case good < len(views):
		c.add(title, StateWarning, detail...).Hint = "those that answer are used; each of the others costs time"
	default:
		c.add(title, StateOK, detail...)
	}
}

// cname follows the challenge name to where its record belongs.
func (c *check) cname(ctx context.Context) {
	const title = "CNAME of the challenge name"
	name := "_acme-challenge." + c.host
	c.target = name
	_, by, err := c.s.askBy(ctx, name, miekg.TypeCNAME)
	if err != nil {
		c.fail(title, err, "the record is written at the name itself if the zone is known from the provider")
		return
	}
	chain, _ := c.s.chase(ctx, name) // shown as far as it goes
	var detail []string
	for i := 1; i < len(chain); i++ {
		detail = append(detail, fmt.Sprintf("%s: %s CNAME %s", by, bare(chain[i-1]), bare(chain[i])))
	}
	target, err := c.s.follow(ctx, name)
	if err != nil {
		c.fail(title, err, "correct the CNAME records: a CA follows them and finds nothing", detail...)
		return
	}
	c.target = target
	switch {
	case len(chain) == 1:
		detail = append(detail, fmt.Sprintf("%s: %s has none, so the record belongs there", by, bare(name)))
	case target != chain[len(chain)-1]:
		detail = append(detail, fmt.Sprintf("%s is covered by a wildcard, which is not followed: the record belongs there", bare(target)))
	default:
		detail = append(detail, "the record belongs at "+bare(target))
	}
	c.add(title, StateOK, detail...)
}

// findZone finds the zone of the target, or takes it from the provider.
func (c *check) findZone(ctx context.Context) {
	const title = "zone"
	zone, err := c.s.zoneOf(ctx, c.target)
	if err == nil {
		c.zone = zone
		c.add(title, StateOK, fmt.Sprintf("%s is in zone %s (the closest SOA record)", bare(c.target), bare(zone)))
		return
	}
	if _, configured := c.s.pick(c.target); configured != "" {
		c.zone = configured
		c.add(title, StateWarning, flat(err), "the provider says "+bare(configured)).Hint = "edge uses the zone that the provider is configured with"
		return
	}
	c.fail(title, err, "no name server above the name answers; is it registered, and are the resolvers right?")
}

// provider picks the credentials that are used for the target.
func (c *check) provider() {
	const title = "provider"
	p, _ := c.s.pick(c.target)
	switch {
	case p != nil && c.zone == "":
		c.add(title, StateSkipped, fmt.Sprintf("%s (%s) writes any zone, but this one is not known", p.name, p.kind))
	case p != nil:
		c.add(title, StateOK, fmt.Sprintf("%s (%s) writes zone %s", p.name, p.kind, bare(c.zone)))
	case c.zone == "":
		c.fail(title, c.s.noProvider("_acme-challenge."+c.host, c.target, "?"), "")
	default:
		c.fail(title, c.s.noProvider("_acme-challenge."+c.host, c.target, c.zone), "or delegate the name by a CNAME into a zone that edge may write, or use dns-persist-01")
	}
}

// probe adds a record, waits until it is seen everywhere, and deletes it.
func (c *check) probe(ctx context.Context) {
	const write, visible, remove = "probe record is added", "probe record is seen", "probe record is deleted"
	if p, _ := c.s.pick(c.target); !c.o.Write || p == nil {
		why := "nothing was written (edge dns check --write adds a probe record and deletes it again)"
		if p == nil {
			why = "no provider"
		}
		c.skip(write, why)
		return
	}
	record := Record{Name: "_acme-challenge." + bare(c.host), Value: "edge-check-" + strings.ToLower(rand.Text())}
	presented, err := c.s.Present(ctx, []Record{record})
	if err != nil {
		c.fail(write, err, "")
		return
	}
	g := presented.groups[0]
	c.add(write, StateOK, fmt.Sprintf("provider %s: TXT %s %q in zone %s", g.provider.name, bare(g.records[0].Name), record.Value, bare(g.zone)))
	if err := presented.Wait(ctx); err != nil {
		c.fail(visible, err, "")
	} else {
		c.add(visible, StateOK, c.show(ctx, record.Value)...)
	}
	done, cancel := context.WithTimeout(context.WithoutCancel(ctx), providerTimeout)
	defer cancel()
	if err := presented.CleanUp(done); err != nil {
		c.fail(remove, err, fmt.Sprintf("delete TXT %s %q by hand", bare(g.records[0].Name), record.Value))
		return
	}
	detail, state := c.show(done, record.Value), StateOK
	for i, line := range detail {
		if who, had := strings.CutSuffix(line, hasIt); had {
			detail[i], state = who+": still shows it", StateWarning
		}
	}
	st := c.add(remove, state, detail...)
	if state == StateWarning {
		st.Hint = "secondary servers follow soon, resolvers remember it for a minute: there is nothing to do"
	}
}

const hasIt = ": has it"

// show tells which servers have the value.
func (c *check) show(ctx context.Context, value string) []string {
	var out []string
	for _, v := range c.s.survey(ctx, c.servers, c.target, miekg.TypeTXT) {
		said := ": does not have it"
		switch {
		case v.err != nil:
			said = ": " + reason(v.err)
		case lacks(v.answer, []string{value}, true) == "":
			said = hasIt
		}
		out = append(out, v.who()+said)
	}
	return out
}

// persistent looks for the record that dns-persist-01 needs.
func (c *check) persistent(ctx context.Context) {
	const title = "persistent record"
	p := Persist{Names: []string{c.name}, Issuers: c.o.CAIdentities, AccountURI: c.o.AccountURI}
	if len(p.Issuers) == 0 || p.AccountURI == "" {
		c.skip(title, "the CA's identities or the account are not known")
		return
	}
	states, err := c.s.PersistReport(ctx, p)
	if err != nil {
		c.fail(title, err, "")
		return
	}
	const soon = 30 * 24 * time.Hour
	st := states[0]
	switch {
	case !st.Present:
		detail := st.Answers
		if len(detail) == 0 {
			detail = []string{st.Problem}
		}
		c.add(title, StateFailed, detail...).Hint = fmt.Sprintf("publish %s. TXT %q", st.Record.Name, st.Record.Value)
	case !st.Until.IsZero() && time.Until(st.Until) < soon:
		c.add(title, StateWarning, st.Answers...).Hint = "its persistUntil comes soon: publish it with a later one"
	default:
		c.add(title, StateOK, st.Answers...)
	}
}

// addresses looks for where the CA connects to.
func (c *check) addresses(ctx context.Context) {
	const title = "addresses"
	if strings.HasPrefix(c.name, "*.") {
		c.fail(title, fmt.Errorf("%s is a wildcard, which %s cannot prove", c.name, c.o.Challenge), "use dns-01 or dns-persist-01")
		return
	}
	var detail []string
	var errs []error
	for _, qtype := range []uint16{miekg.TypeA, miekg.TypeAAAA} {
		answer, by, err := c.s.askBy(ctx, c.host, qtype)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, rr := range answer.Answer {
			if text := strings.Fields(rr.String()); len(text) > 4 {
				detail = append(detail, fmt.Sprintf("%s: %s %s %s", by, bare(text[0]), text[3], bare(text[4])))
			}
		}
	}
	switch {
	case len(detail) > 0:
		c.add(title, StateOK, detail...)
	case len(errs) > 0:
		c.fail(title, errors.Join(errs...), "")
	default:
		c.add(title, StateFailed, bare(c.host)+" has neither A nor AAAA records").Hint = "the CA connects to the name: point it at edge"
	}
}

// caa judges the CAA records that govern the name.
func (c *check) caa(ctx context.Context) {
	const title = "CAA"
	verdict, err := c.s.CAA(ctx, Issuance{Name: c.name, Identities: c.o.CAIdentities, AccountURI: c.o.AccountURI, Challenge: c.o.Challenge})
	detail := slices.Concat(verdict.Asked, verdict.Records)
	switch {
	case err != nil:
		c.fail(title, err, "a CA refuses to issue when it cannot look up CAA: every name server must answer that type, NOERROR and empty will do", verdict.Asked...)
	case !verdict.Allowed:
		c.add(title, StateFailed, slices.Concat(verdict.Asked, verdict.Reasons)...).Hint = fmt.Sprintf("add a record at %s that authorises the CA, or narrow the one that forbids", verdict.At)
	case verdict.Doubt != "":
		c.add(title, StateWarning, append(detail, verdict.Doubt)...)
	case verdict.At == "":
		c.add(title, StateOK, append(detail, "no records: every CA may issue")...)
	default:
		c.add(title, StateOK, detail...)
	}
}
