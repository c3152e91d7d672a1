package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"edge/config"

	miekg "github.com/miekg/dns"
)

// maxCAA bounds the records of one name that are looked at; the largest answer
// in use has about a dozen.
const maxCAA = 64

// Issuance is what a CA is going to be asked for.
type Issuance struct {
	Name       string           // a host name, or a wildcard, which issuewild may govern
	Identities []string         // the domain names by which the CA knows itself in CAA records; empty: unknown
	AccountURI string           // of the account that orders; "": unknown
	Challenge  config.Challenge // "": unknown
}

// CAA tells whether CAA records (RFC 8659) let a CA issue.
type CAA struct {
	Allowed bool
	Doubt   string   // what could not be judged, because Issuance does not say it; "" is nothing
	At      string   // the name whose records count: that of the host or an ancestor; "" when there are none
	Via     []string // CNAMEs that lead from At to where the records stand
	Records []string // the records, in the form of a zone file
	Reasons []string // why it is not allowed: each record that forbids, and how
	Asked   []string // what was asked of whom, and the answer
}

// CAA looks for the CAA records that govern in and judges them as a CA does: the
// closest ancestor that has any counts (RFC 8659, section 3), a CNAME is followed
// at each name but its target's ancestors do not count, issuewild governs
// wildcards where there is one, and accounturi and validationmethods (RFC 8657)
// narrow what a record allows. An error means that some name could not be looked
// up; a CA refuses to issue then too.
func (s *Solver) CAA(ctx context.Context, in Issuance) (CAA, error) {
	var c CAA
	host, wildcard := strings.CutPrefix(in.Name, "*.")
	if _, ok := miekg.IsDomainName(host); !ok || host == "" {
		return c, fmt.Errorf("CAA of %q: no host name", in.Name)
	}
	name := miekg.CanonicalName(host)
	for off, end := 0, false; !end; off, end = miekg.NextLabel(name, off) {
		at := name[off:]
		records, via, err := s.caaAt(ctx, at, &c)
		if err != nil {
			return c, fmt.Errorf("CAA of %s: %w", bare(at), err)
		}
		if len(records) > 0 {
			c.At, c.Via = bare(at), via
			c.judge(records, in, wildcard)
			return c, nil
		}
	}
	c.Allowed = true
	return c, nil
}

// caaAt returns the CAA records of one name, through CNAMEs. A resolver follows
// them by itself; a server that is authoritative for one side only does not.
func (s *Solver) caaAt(ctx context.Context, name string, c *CAA) (records []*miekg.CAA, via []string, err error) {
	at := name
	for {
		answer, by, err := s.askBy(ctx, at, miekg.TypeCAA)
		if err != nil {
			return nil, nil, err
		}
		start := at
		for next := alias(answer, at); next != ""; next = alias(answer, at) {
			at = next
			if slices.Contains(via, bare(at)) || at == name {
				return nil, nil, fmt.Errorf("CNAME loop at %s", bare(at))
			}
			if via = append(via, bare(at)); len(via) > maxCNAMEs {
				return nil, nil, fmt.Errorf("CNAME chain of more than %d links", maxCNAMEs)
			}
		}
		for _, rr := range answer.Answer {
			if r, ok := rr.(*miekg.CAA); ok && sameName(r.Hdr.Name, at) && len(records) < maxCAA {
				records = append(records, r)
			}
		}
		c.Asked = append(c.Asked, fmt.Sprintf("%s: CAA %s: %s", by, bare(start), caaAnswer(answer, records, via)))
		if len(records) > 0 || at == start || slices.ContainsFunc(answer.Ns, isSOA) {
			return records, via, nil
		}
	}
}

func isSOA(rr miekg.RR) bool { return rr.Header().Rrtype == miekg.TypeSOA }

func caaAnswer(answer *miekg.Msg, records []*miekg.CAA, via []string) string {
	text := fmt.Sprintf("%d records", len(records))
	switch {
	case answer.Rcode != miekg.RcodeSuccess:
		text = rcode(answer.Rcode)
	case len(records) == 0:
		text = "none"
	case len(records) == 1:
		text = "1 record"
	}
	if len(via) > 0 {
		text += ", by CNAME " + strings.Join(via, ", ")
	}
	return text
}

// judge applies the records. Property tags are compared without case; those that
// are unknown do not matter unless they are critical (RFC 8659, section 4.1).
func (c *CAA) judge(records []*miekg.CAA, in Issuance, wildcard bool) {
	byTag := map[string][]*miekg.CAA{}
	for _, r := range records {
		c.Records = append(c.Records, caaText(r))
		tag := strings.ToLower(r.Tag)
		byTag[tag] = append(byTag[tag], r)
		if r.Flag&128 != 0 && !slices.Contains([]string{"issue", "issuewild", "iodef", "contactemail", "contactphone", "issuemail", "issuevmc"}, tag) {
			c.Reasons = append(c.Reasons, caaText(r)+": it is critical and of an unknown kind, so no CA may issue")
		}
	}
	governing := byTag["issue"]
	if wild := byTag["issuewild"]; wildcard && len(wild) > 0 {
		governing = wild
	}
	if len(c.Reasons) > 0 {
		return
	}
	c.Allowed = len(governing) == 0
	for _, r := range governing {
		doubt, err := in.fits(r.Value)
		if err != nil {
			c.Reasons = append(c.Reasons, fmt.Sprintf("%s: %s", caaText(r), err))
			continue
		}
		if !c.Allowed || doubt == "" {
			c.Doubt = doubt
		}
		c.Allowed = true
	}
	if c.Allowed {
		c.Reasons = nil
	}
}

// fits says why a value does not authorise the issuance; nil when it does, or
// when that depends on what doubt says.
func (in Issuance) fits(value string) (doubt string, err error) {
	v, err := parseIssueValue(value)
	switch {
	case err != nil:
		return "", fmt.Errorf("authorises nobody: %w", err)
	case v.issuer == "":
		return "", errors.New("authorises nobody")
	case len(in.Identities) == 0:
		return "the CA does not say under which names it looks for itself; a record authorises " + strings.ToLower(v.issuer), nil
	case !slices.ContainsFunc(in.Identities, func(id string) bool { return sameName(id, v.issuer) }):
		return "", fmt.Errorf("authorises %s and not %s", strings.ToLower(v.issuer), strings.Join(in.Identities, ", "))
	}
	account, limited, err := v.get("accounturi")
	switch {
	case err != nil:
		return "", fmt.Errorf("authorises nobody: %w", err)
	case limited && in.AccountURI == "":
		doubt = "the record is limited to account " + oneLine(account)
	case limited && account != in.AccountURI:
		return "", fmt.Errorf("is limited to account %s; this one is %s", oneLine(account), in.AccountURI)
	}
	methods, limited, err := v.get("validationmethods")
	switch {
	case err != nil:
		return "", fmt.Errorf("authorises nobody: %w", err)
	case limited && in.Challenge == "":
		doubt = strings.Trim(doubt+"; the record is limited to challenges "+oneLine(methods), "; ")
	case limited && !slices.Contains(strings.Split(methods, ","), string(in.Challenge)):
		return "", fmt.Errorf("is limited to challenges %s; this one is %s", oneLine(methods), in.Challenge)
	}
	return doubt, nil
}

func caaText(r *miekg.CAA) string {
	return fmt.Sprintf("%s CAA %d %s %q", bare(r.Hdr.Name), r.Flag, oneLine(r.Tag), oneLine(r.Value))
}
