package tlsmgr

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// A unit is what may not be taken apart: a name, or a domain and its wildcard,
// which share the name of the challenge record.
type unit struct {
	names []string // never empty; the apex first
	homes []home   // stored certificates that hold some of names, the best first
}

// A home is a stored certificate with some names of a unit.
type home struct {
	bin  *bin
	held int
}

// full reports whether one stored certificate holds the whole unit.
func (u *unit) full() bool { return len(u.homes) > 0 && u.homes[0].held == len(u.names) }

// A bin is a certificate of a zone while it is filled.
type bin struct {
	id    string
	names []string
}

func (b *bin) take(u *unit, limit int) bool {
	if len(b.names)+len(u.names) > limit {
		return false
	}
	b.names = append(b.names, u.names...)
	return true
}

// A packing puts the names of one zone into certificates of at most limit
// names, so that what is stored changes least:
//
//   - A unit stays in the stored certificate that has it. One that outgrew its
//     place, because its wildcard was added, moves as a whole: then one
//     certificate is ordered, while making room for it would order two.
//   - Of a certificate that holds too many, since the limit shrank, the first
//     ones stay.
//   - Everything else goes where it fits first, by number: zone, zone-2, …
//     whether that certificate is stored yet or not.
//
// The last rule makes a plan stand while it is being carried out: when zone-2
// was issued before zone, or when zone failed, the names of zone do not move
// into the room of zone-2.
type packing struct {
	zone  string
	limit int
	units []*unit
	bins  map[int]*bin // by number
}

// newPacking finds where names are stored. It claims the ids of the certificates
// that hold some of them, so that no other zone may take those.
func (p *planner) newPacking(zone string, names []string, limit int) *packing {
	k := &packing{zone: zone, limit: limit, units: units(names, limit), bins: map[int]*bin{}}
	byName := map[string]*unit{}
	for _, u := range k.units {
		for _, n := range u.names {
			byName[n] = u
		}
	}
	for _, s := range p.stored[zone] {
		if p.ids[s.id] {
			continue
		}
		b := &bin{id: s.id}
		for _, n := range p.known.Stored[s.id] {
			u := byName[n]
			if u == nil {
				continue
			}
			k.bins[s.number], p.ids[s.id] = b, true
			if last := len(u.homes) - 1; last < 0 || u.homes[last].bin != b {
				u.homes = append(u.homes, home{bin: b})
			}
			u.homes[len(u.homes)-1].held++
		}
	}
	for _, u := range k.units {
		slices.SortStableFunc(u.homes, func(a, b home) int { return cmp.Compare(b.held, a.held) })
	}
	return k
}

// fill gives every unit its place and returns the certificates by number.
func (k *packing) fill(p *planner) []*bin {
	left := k.stay(k.units)
	open := 1 // the lowest number that is not full
	for _, u := range left {
		for n := open; ; n++ {
			b := k.bins[n]
			if b == nil {
				id := numbered(k.zone, n)
				if p.ids[id] {
					continue
				}
				b = &bin{id: id}
				k.bins[n], p.ids[id] = b, true
			}
			if b.take(u, k.limit) {
				break
			}
			if n == open && len(b.names) >= k.limit {
				open++
			}
		}
	}
	out := make([]*bin, 0, len(k.bins))
	for _, b := range k.bins {
		if len(b.names) > 0 {
			slices.Sort(b.names)
			out = append(out, b)
		}
	}
	return out
}

// stay puts units where they are stored and returns the others, in order. Those
// that lie in one certificate as a whole come first, so that no other takes
// their room.
func (k *packing) stay(all []*unit) (left []*unit) {
	placed := map[*unit]bool{}
	ordered := slices.Clone(all)
	slices.SortStableFunc(ordered, func(a, b *unit) int {
		switch {
		case a.full() == b.full():
			return 0
		case a.full():
			return -1
		default:
			return 1
		}
	})
	for _, u := range ordered {
		placed[u] = slices.ContainsFunc(u.homes, func(h home) bool { return h.bin.take(u, k.limit) })
	}
	for _, u := range all {
		if !placed[u] {
			left = append(left, u)
		}
	}
	return left
}

// units sorts names and joins each domain with its wildcard, unless a
// certificate holds one name only.
func units(names []string, limit int) []*unit {
	apex := func(n string) string { return strings.TrimPrefix(n, "*.") }
	names = slices.Clone(names)
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(apex(a), apex(b)), cmp.Compare(b, a)) // the apex before its wildcard: '*' sorts first
	})
	var out []*unit
	for _, n := range names {
		last := len(out) - 1
		if last >= 0 && limit > 1 && apex(out[last].names[0]) == apex(n) {
			out[last].names = append(out[last].names, n)
			continue
		}
		out = append(out, &unit{names: []string{n}})
	}
	return out
}

// A place is a stored certificate by the number in its id.
type place struct {
	id     string
	number int
}

// byZone says which stored certificates may be those of a zone: zone, zone-2 and
// so on, by number. An id that can be read in two ways is in both lists; what
// the certificate holds decides.
func byZone(stored map[string][]string) map[string][]place {
	out := map[string][]place{}
	for id := range stored {
		out[id] = append(out[id], place{id, 1})
		dash := strings.LastIndexByte(id, '-')
		if dash < 0 {
			continue
		}
		if n, err := strconv.Atoi(id[dash+1:]); err == nil && n > 1 && numbered(id[:dash], n) == id {
			out[id[:dash]] = append(out[id[:dash]], place{id, n})
		}
	}
	for _, places := range out {
		slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.number, b.number) })
	}
	return out
}

// numbered is base, or base-2, base-3 … for the second and later ones.
func numbered(base string, n int) string {
	if n == 1 {
		return base
	}
	return base + "-" + strconv.Itoa(n)
}
