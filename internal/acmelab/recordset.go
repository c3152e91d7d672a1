package acmelab

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// quotedText is one character string of a TXT record, as Route 53 wants it.
const quotedText = `"(?:[^"\\]|\\.)*"`

var txtValue = regexp.MustCompile(`^` + quotedText + `(?: ` + quotedText + `)*$`)

// check refuses what is not known and what must be there.
func (r *changeRequest) check() error {
	unknowns := slices.Concat(r.Unknown, r.Batch.Unknown, r.Batch.Changes.Unknown)
	changes := r.Batch.Changes.Change
	if len(changes) == 0 {
		return errors.New("ChangeBatch has no Change")
	}
	for _, c := range changes {
		unknowns = slices.Concat(unknowns, c.Unknown, c.Set.Unknown)
		for _, record := range c.Set.Records {
			unknowns = append(unknowns, record.Unknown...)
		}
		if !slices.Contains([]string{"CREATE", "DELETE", "UPSERT"}, c.Action) {
			return fmt.Errorf("action %q is not one of CREATE, DELETE, UPSERT", c.Action)
		}
		if c.Set.Name == "" || c.Set.Type == "" || c.Set.TTL == nil || len(c.Set.Records) == 0 {
			return errors.New("Name, Type, TTL or ResourceRecords is missing") //nolint:staticcheck // the names of XML elements
		}
		if ttl := *c.Set.TTL; ttl < 0 || ttl > 1<<31-1 {
			return fmt.Errorf("TTL %d is out of range", ttl)
		}
	}
	if len(unknowns) > 0 {
		return fmt.Errorf("element %q is not known here", unknowns[0].XMLName.Local)
	}
	return nil
}

// apply makes the change in sets and returns what is wrong with it, "" if
// nothing is, in the words of Route 53.
func (c *setChange) apply(zone string, sets map[setKey]recordSet) (problem string) {
	set := c.Set
	set.Name = escapeName(unescapeName(dns.CanonicalName(set.Name)))
	key := setKey{unescapeName(set.Name), set.Type}
	which := fmt.Sprintf("resource record set [name='%s', type='%s']", set.Name, set.Type)
	if !dns.IsSubDomain(zone, key.name) {
		return fmt.Sprintf("RRSet with DNS name %s is not permitted in zone %s", set.Name, zone)
	}
	if problem := set.invalid(); problem != "" {
		return problem
	}
	if c.Action == "DELETE" {
		problem = set.undeletable(zone, key, sets)
	} else {
		problem = set.unwritable(c.Action, zone, key, sets)
	}
	switch {
	case problem != "":
		return strings.ReplaceAll(problem, "%s", which)
	case c.Action == "DELETE":
		delete(sets, key)
	default:
		sets[key] = set
	}
	return ""
}

// undeletable returns why the set cannot be deleted; "%s" stands for its name.
func (s *recordSet) undeletable(zone string, key setKey, sets map[setKey]recordSet) string {
	old, exists := sets[key]
	switch {
	case !exists:
		return "Tried to delete %s but it was not found"
	case !old.equal(*s):
		return "Tried to delete %s but the values provided do not match the current values"
	case key.name == zone && (s.Type == "NS" || s.Type == "SOA"):
		return "A HostedZone must contain exactly one SOA record and at least one NS record for the zone itself"
	}
	return ""
}

// unwritable returns why the set cannot be written; "%s" stands for its name.
func (s *recordSet) unwritable(action, zone string, key setKey, sets map[setKey]recordSet) string {
	if _, exists := sets[key]; exists && action == "CREATE" {
		return "Tried to create %s but it already exists"
	}
	if _, alias := sets[setKey{key.name, "CNAME"}]; alias && s.Type != "CNAME" {
		return "RRSet of type " + s.Type + " with DNS name " + s.Name +
			" is not permitted because a conflicting RRSet of type CNAME with the same DNS name already exists in zone " + zone
	}
	return ""
}

// invalid returns what is wrong with the values, "" if nothing is.
func (s *recordSet) invalid() string {
	seen := map[string]bool{}
	for _, r := range s.Records {
		if seen[r.Value] {
			return "Duplicate Resource Record: '" + r.Value + "'"
		}
		seen[r.Value] = true
		if s.Type != "TXT" {
			continue
		}
		if !txtValue.MatchString(r.Value) {
			return "Invalid Resource Record: 'FATAL problem: InvalidCharacterString (Value should be enclosed in quotation marks) encountered with '" + r.Value + "''"
		}
		for _, part := range regexp.MustCompile(quotedText).FindAllString(r.Value, -1) {
			if len(part) > 257 {
				return "Invalid Resource Record: 'FATAL problem: CharacterStringTooLong (Value is too long) encountered with '" + r.Value + "''"
			}
		}
	}
	return ""
}

// equal compares TTL and values; their order does not matter.
func (s *recordSet) equal(other recordSet) bool {
	return *s.TTL == *other.TTL && slices.Equal(s.sorted(), other.sorted())
}

func (s *recordSet) sorted() []string {
	values := make([]string, 0, len(s.Records))
	for _, r := range s.Records {
		values = append(values, r.Value)
	}
	slices.Sort(values)
	return values
}

// zoneLines writes the record sets of a that are not the same in b as lines of
// a zone file.
func zoneLines(a, b map[setKey]recordSet) []string {
	var lines []string
	for key, set := range a {
		if other, ok := b[key]; ok && other.equal(set) {
			continue
		}
		for _, r := range set.Records {
			lines = append(lines, key.name+" "+strconv.FormatInt(*set.TTL, 10)+" IN "+key.kind+" "+r.Value)
		}
	}
	return lines
}

// replace removes and adds records in one step.
func (d *DNS) replace(remove, add []string) error {
	var rrs []dns.RR
	for _, s := range slices.Concat(remove, add) {
		rr, err := parseRR(s)
		if err != nil {
			return err
		}
		rrs = append(rrs, rr)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, rr := range rrs {
		if i < len(remove) {
			// A value that stays keeps its age: DNS shows it all the while.
			if !slices.ContainsFunc(rrs[len(remove):], func(n dns.RR) bool { return dns.IsDuplicate(n, rr) }) {
				d.removeLocked(rr)
			}
			continue
		}
		d.insertLocked(rr)
	}
	return nil
}

// compareNames orders names as Route 53 does, by their labels from the right.
func compareNames(a, b string) int {
	x, y := dns.SplitDomainName(a), dns.SplitDomainName(b)
	slices.Reverse(x)
	slices.Reverse(y)
	return slices.Compare(x, y)
}

func compareKeys(a, b setKey) int {
	return cmp.Or(compareNames(a.name, b.name), cmp.Compare(a.kind, b.kind))
}

// escapeName and unescapeName turn "*" into "\052", as Route 53 writes it, and
// back.
func escapeName(name string) string   { return strings.ReplaceAll(name, "*", `\052`) }
func unescapeName(name string) string { return strings.ReplaceAll(name, `\052`, "*") }
