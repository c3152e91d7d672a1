package dns

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	miekg "github.com/miekg/dns"
)

// parentServers bounds how many name servers of the parent zone are asked: a
// top-level domain has a dozen, with the same data.
const parentServers = 4

// believed says why the name servers are not looked for in DNS; "" when they are.
func (s *Solver) believed() string {
	switch {
	case len(s.authoritative.Servers) > 0:
		return "authoritative in the issuer names the servers"
	case s.authoritative.Off:
		return "authoritative: off in the issuer: the resolvers are asked instead"
	}
	return ""
}

// delegation asks the parent zone whether it leads to this one: a resolver of a
// private network may know a zone that nobody outside can find.
func (c *check) delegation(ctx context.Context) {
	const title = "delegation by the parent zone"
	if why := c.s.believed(); why != "" || c.zone == "" {
		if why == "" {
			why = "the zone is not known"
		}
		c.skip(title, why)
		return
	}
	off, end := miekg.NextLabel(c.zone, 0)
	if end {
		c.skip(title, bare(c.zone)+" is a top-level domain")
		return
	}
	parent, err := c.s.zoneOf(ctx, c.zone[off:])
	if err != nil {
		c.skip(title, "the parent zone was not found: "+flat(err))
		return
	}
	servers, err := c.s.nameServers(ctx, parent)
	if err != nil {
		c.skip(title, flat(err))
		return
	}
	for i := range servers {
		servers[i].addresses = servers[i].addresses[:1]
	}
	c.compare(ctx, title, c.s.survey(ctx, servers[:min(len(servers), parentServers)], c.zone, miekg.TypeNS))
}

// compare reads what the parent's servers said; the first that answers counts.
func (c *check) compare(ctx context.Context, title string, views []seen) {
	var detail []string
	for _, v := range views {
		if !v.usable() {
			detail = append(detail, v.who()+": "+v.code())
			continue
		}
		given := hosts(slices.Concat(v.answer.Answer, v.answer.Ns), c.zone)
		if len(given) == 0 {
			detail = append(detail, fmt.Sprintf("%s: NS %s: %s, no name servers", v.who(), bare(c.zone), v.code()))
			c.add(title, StateFailed, detail...).Hint = fmt.Sprintf("nobody outside finds zone %s: publish its name servers in the parent zone, or, if it is private, use the issuer internal", bare(c.zone))
			return
		}
		detail = append(detail, fmt.Sprintf("%s: NS %s: %s", v.who(), bare(c.zone), list(given)))
		answer, by, err := c.s.askBy(ctx, c.zone, miekg.TypeNS)
		if own := hostsOf(answer, c.zone); err == nil && len(own) > 0 && !slices.Equal(own, given) {
			detail = append(detail, fmt.Sprintf("%s: NS %s: %s", by, bare(c.zone), list(own)))
			c.add(title, StateWarning, detail...).Hint = "parent and zone name different servers: a CA may ask either"
			return
		}
		c.add(title, StateOK, detail...)
		return
	}
	c.add(title, StateSkipped, append(detail, "no server of the parent zone can be asked from here")...)
}

func hostsOf(answer *miekg.Msg, zone string) []string {
	if answer == nil {
		return nil
	}
	return hosts(answer.Answer, zone)
}

func list(names []string) string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		out = append(out, bare(n))
	}
	return strings.Join(out, " ")
}

// nameServers lists the servers that have to show a record, and their addresses.
// Those without an address are told about; the others are used.
func (c *check) nameServers(ctx context.Context) {
	const title = "name servers"
	if why := c.s.believed(); why != "" {
		servers, err := c.s.discover(ctx, c.zone)
		if err != nil {
			c.fail(title, err, "set resolvers in the issuer")
			return
		}
		c.servers = servers
		var all []string
		for _, ns := range servers {
			all = append(all, ns.addresses...)
		}
		c.add(title, StateOK, why+": "+strings.Join(all, " "))
		return
	}
	if c.zone == "" {
		c.skip(title, "the zone is not known")
		return
	}
	answer, by, err := c.s.askBy(ctx, c.zone, miekg.TypeNS)
	if err != nil {
		c.fail(title, err, "")
		return
	}
	names := hosts(answer.Answer, c.zone)
	if len(names) == 0 {
		c.add(title, StateFailed, fmt.Sprintf("%s: NS %s: %s, no records", by, bare(c.zone), rcode(answer.Rcode))).Hint = "is this really the zone, or does a resolver make up answers?"
		return
	}
	c.locate(ctx, title, by, names)
}

// locate finds the addresses of the name servers.
func (c *check) locate(ctx context.Context, title, by string, names []string) {
	found := make([][]string, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { found[i], errs[i] = c.s.addresses(ctx, name) })
	}
	wg.Wait()
	detail := []string{fmt.Sprintf("%s: NS %s: %s", by, bare(c.zone), list(names))}
	left := maxAddresses
	for i, name := range names {
		if errs[i] != nil {
			detail = append(detail, flat(errs[i]))
			continue
		}
		addresses := found[i][:min(len(found[i]), left)]
		left -= len(addresses)
		detail = append(detail, fmt.Sprintf("%s: %s", bare(name), strings.Join(addresses, " ")))
		if len(addresses) > 0 {
			c.servers = append(c.servers, nameServer{name: name, addresses: addresses})
		}
	}
	if len(c.servers) < len(names) && left > 0 {
		c.add(title, StateFailed, detail...).Hint = "give every name server an address (A or AAAA), or take it out of the zone and its delegation: edge and CAs wait for all of them"
		return
	}
	c.add(title, StateOK, detail...)
}

// answers asks each address of each server for the target: a server that is not
// authoritative (lame), or silent, makes some validations fail.
func (c *check) answers(ctx context.Context) {
	const title = "name servers answer"
	if len(c.servers) == 0 {
		c.skip(title, "no name server is known")
		return
	}
	alive := map[int]bool{}
	var detail []string
	views := c.s.survey(ctx, c.servers, c.target, miekg.TypeTXT)
	lame := false
	for _, v := range views {
		said := v.code()
		switch {
		case v.usable() && !c.s.authoritative.Off && !v.answer.Authoritative:
			said, lame = said+", not authoritative", true
		case v.usable():
			alive[v.index] = true
		default:
			lame = lame || v.err == nil
		}
		detail = append(detail, fmt.Sprintf("%s: TXT %s: %s", v.who(), bare(c.target), said))
	}
	quiet := func(v seen) bool { return v.err != nil }
	silent := slices.ContainsFunc(views, func(v seen) bool { return quiet(v) && !alive[v.index] })
	switch {
	case lame:
		c.add(title, StateFailed, detail...).Hint = "a server does not serve this zone: correct it, or take it out of the NS records"
	case silent:
		c.add(title, StateFailed, detail...).Hint = "a server is silent, or port 53 to it is blocked from here: UDP and TCP; then see authoritative in the issuer"
	case slices.ContainsFunc(views, quiet):
		c.add(title, StateWarning, detail...).Hint = "every server answers at one address at least, which suffices here; a CA may ask the others"
	default:
		c.add(title, StateOK, detail...)
	}
}
