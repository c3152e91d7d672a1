package transfer

import (
	"fmt"
	"slices"
	"strings"

	"edge/hostname"
	"edge/tlsmgr/vault"
)

// A target is where a certificate that was found goes.
type target struct {
	found  *found
	id     string
	action Action // Imported or Skipped
	reason string
	wanted *Wanted // what it satisfies
}

// certificate is what is to be stored.
func (t *target) certificate(owner string) *vault.Certificate {
	c := t.found.pair.certificate(t.id, owner)
	c.Directory = t.found.directory
	if w := t.wanted; w != nil && w.Directory != "" {
		if c.Directory == "" && issuerKey(w.Directory) == t.found.issuer {
			c.Directory = w.Directory
		}
		if c.Directory == w.Directory {
			c.Issuer = w.Issuer
		}
	}
	return c
}

// assign decides under which ids what was found is stored.
func assign(all []*found, o Options) []target {
	satisfied, better := match(all, o.Wanted)
	useful := map[string]*Wanted{} // by each name, and each wildcard that covers it
	taken := map[string]bool{}
	for n := range o.Wanted {
		w := &o.Wanted[n]
		taken[w.ID] = true
		for _, name := range w.Names {
			useful[name], useful[hostname.Wildcard(name)] = w, w
		}
	}
	var out []target
	for _, f := range all {
		for _, w := range satisfied[f] {
			out = append(out, target{found: f, id: w.ID, action: Imported, wanted: w})
		}
		if len(satisfied[f]) > 0 {
			continue
		}
		var serves *Wanted
		for _, name := range f.pair.names {
			if serves == nil {
				serves = useful[name]
			}
		}
		switch {
		case o.All && serves == nil:
			out = append(out, target{found: f, id: ownID(f.pair, taken), action: Imported, reason: "the configuration wants none of its names"})
		case serves == nil:
			out = append(out, target{found: f, action: Skipped, reason: "the configuration wants none of its names"})
		case better[f] != "" && !o.All:
			out = append(out, target{found: f, action: Skipped, reason: better[f] + " is newer and has all that is wanted of it"})
		case better[f] != "":
			out = append(out, target{found: f, id: ownID(f.pair, taken), action: Imported})
		default:
			reason := fmt.Sprintf("serves until edge has ordered %s: %s", serves.ID, serves.lacks(f.pair))
			out = append(out, target{found: f, id: ownID(f.pair, taken), action: Imported, reason: reason})
		}
	}
	return out
}

// match finds the newest certificate for each that is wanted, and for the others
// that would do which one was better.
func match(all []*found, wanted []Wanted) (satisfied map[*found][]*Wanted, better map[*found]string) {
	byName := map[string][]*found{}
	for _, f := range all {
		for _, n := range f.pair.names {
			byName[n] = append(byName[n], f)
		}
	}
	satisfied, better = map[*found][]*Wanted{}, map[*found]string{}
	for n := range wanted {
		w := &wanted[n]
		if len(w.Names) == 0 {
			continue
		}
		var best *found
		var others []*found
		for _, f := range byName[w.Names[0]] {
			switch {
			case w.lacks(f.pair) != "":
			case best == nil:
				best = f
			case f.pair.newer(best.pair.leaf):
				best, others = f, append(others, best)
			default:
				others = append(others, f)
			}
		}
		if best != nil {
			satisfied[best] = append(satisfied[best], w)
		}
		for _, f := range others {
			better[f] = best.source
		}
	}
	return satisfied, better
}

// lacks says what p would have to have to be what is wanted, "" when it is.
func (w *Wanted) lacks(p *pair) string {
	for _, n := range w.Names {
		if !slices.Contains(p.names, n) {
			return "it lacks " + n
		}
	}
	if w.KeyType != p.keyType() {
		return fmt.Sprintf("its key type is %s, not %s", p.keyType(), w.KeyType)
	}
	return ""
}

// ownID names a certificate after its first name, apart from what is planned.
func ownID(p *pair, taken map[string]bool) string {
	base := strings.Replace(p.names[0], "*", "_", 1)
	id := base
	for n := 1; taken[id]; n++ {
		if id = base + ".imported"; n > 1 {
			id = fmt.Sprintf("%s-%d", id, n)
		}
	}
	taken[id] = true
	return id
}
