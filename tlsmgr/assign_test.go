package tlsmgr_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"edge/config"
	"edge/hostname"
	"edge/tlsmgr"
)

// holdings is what a storage holds, or what a plan wants: names by bundle.
type holdings map[string][]string

func planned(cfg *config.Config, stored holdings) holdings {
	out := holdings{}
	for _, b := range tlsmgr.Explain(cfg, tlsmgr.Known{Stored: stored}).Bundles {
		out[b.ID] = b.Names
	}
	return out
}

// missing are the bundles of want that hold a name which have lacks: what has to
// be ordered.
func missing(want, have holdings) []string {
	var out []string
	for id, names := range want {
		if slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(have[id], n) }) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// changed are the bundles that differ.
func changed(a, b holdings) []string {
	var out []string
	for id := range a {
		if !slices.Equal(a[id], b[id]) {
			out = append(out, id)
		}
	}
	for id := range b {
		if a[id] == nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func hosts(format string, from, to int) []string {
	var out []string
	for n := from; n <= to; n++ {
		out = append(out, fmt.Sprintf(format, n))
	}
	return out
}

func ExampleExplain_sticky() {
	cfg := planConfig("a.example.com", "b.example.com", "c.example.com")
	cfg.Bundles.MaxNames = 2
	stored := map[string][]string{"example.com": {"b.example.com", "c.example.com"}}
	for _, b := range tlsmgr.Explain(cfg, tlsmgr.Known{Stored: stored}).Bundles {
		fmt.Println(b.ID, b.Names)
	}
	// Output:
	// example.com [b.example.com c.example.com]
	// example.com-2 [a.example.com]
}

func TestNamesStayWhereTheyAreStored(t *testing.T) {
	for name, c := range map[string]struct {
		hosts  []string
		limit  int
		edit   func(*config.Config)
		stored holdings
		want   holdings
	}{
		"a new name goes where there is room first": {
			hosts: []string{"a.example.com", "b.example.com", "c.example.com", "d.example.com"}, limit: 2,
			stored: holdings{"example.com": {"c.example.com", "d.example.com"}, "example.com-2": {"b.example.com"}},
			want:   holdings{"example.com": {"c.example.com", "d.example.com"}, "example.com-2": {"a.example.com", "b.example.com"}},
		},
		"or into the smallest number that is free": {
			hosts: []string{"a.example.com", "b.example.com", "c.example.com"}, limit: 1,
			stored: holdings{"example.com": {"c.example.com"}, "example.com-3": {"b.example.com"}},
			want:   holdings{"example.com": {"c.example.com"}, "example.com-2": {"a.example.com"}, "example.com-3": {"b.example.com"}},
		},
		"a name less moves nothing": {
			hosts: []string{"a.example.com", "d.example.com"}, limit: 2,
			stored: holdings{"example.com": {"a.example.com", "b.example.com"}, "example.com-2": {"c.example.com", "d.example.com"}},
			want:   holdings{"example.com": {"a.example.com"}, "example.com-2": {"d.example.com"}},
		},
		"a wildcard joins its domain": {
			hosts: []string{"a.example.com", "z.example.com", "*.z.example.com"}, limit: 2,
			stored: holdings{"example.com": {"a.example.com"}, "example.com-2": {"z.example.com"}},
			want:   holdings{"example.com": {"a.example.com"}, "example.com-2": {"*.z.example.com", "z.example.com"}},
		},
		"a domain joins its wildcard": {
			hosts: []string{"a.example.com", "z.example.com", "*.z.example.com"}, limit: 2,
			stored: holdings{"example.com": {"a.example.com"}, "example.com-2": {"*.z.example.com"}},
			want:   holdings{"example.com": {"a.example.com"}, "example.com-2": {"*.z.example.com", "z.example.com"}},
		},
		"both move together when there is no room: one order, not two": {
			hosts: []string{"a.example.com", "z.example.com", "*.z.example.com"}, limit: 2,
			stored: holdings{"example.com": {"a.example.com", "z.example.com"}},
			want:   holdings{"example.com": {"a.example.com"}, "example.com-2": {"*.z.example.com", "z.example.com"}},
		},
		"and stay there although the old certificate has one of them yet": {
			hosts: []string{"a.example.com", "z.example.com", "*.z.example.com"}, limit: 3,
			stored: holdings{"example.com": {"a.example.com", "z.example.com"}, "example.com-2": {"*.z.example.com", "z.example.com"}},
			want:   holdings{"example.com": {"a.example.com"}, "example.com-2": {"*.z.example.com", "z.example.com"}},
		},
		"a certificate that is written takes its names and its id": {
			hosts: []string{"a.example.com", "b.example.com"},
			edit:  func(c *config.Config) { c.Certificates["example.com"] = written("a.example.com") },
			stored: holdings{
				"example.com": {"a.example.com", "b.example.com"},
			},
			want: holdings{"example.com": {"a.example.com"}, "example.com-2": {"b.example.com"}},
		},
		"a certificate of another zone or with another id is nobody's home": {
			hosts: []string{"a.example.com", "b.example.com"}, limit: 1,
			stored: holdings{"example.org": {"b.example.com"}, "example.com-1": {"b.example.com"}, "example.com-02": {"b.example.com"}, "x": {"b.example.com"}},
			want:   holdings{"example.com": {"a.example.com"}, "example.com-2": {"b.example.com"}},
		},
		"an id that reads in two ways belongs to the zone of its names": {
			hosts: []string{"a", "*.a", "a-2"}, limit: 1,
			stored: holdings{"a": {"a"}, "a-2": {"*.a"}},
			want:   holdings{"a": {"a"}, "a-2": {"*.a"}, "a-2-2": {"a-2"}},
		},
		"what is stored under a number beyond reason is found": {
			hosts:  []string{"a.example.com", "b.example.com"},
			stored: holdings{"example.com-999999999": {"b.example.com"}},
			want:   holdings{"example.com": {"a.example.com"}, "example.com-999999999": {"b.example.com"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := planConfig(c.hosts...)
			if c.limit > 0 {
				cfg.Bundles.MaxNames = c.limit
			}
			if c.edit != nil {
				c.edit(cfg)
			}
			if got := planned(cfg, c.stored); len(changed(got, c.want)) > 0 {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
		})
	}
}

func TestSmallerLimitSplitsOnlyWhatIsOver(t *testing.T) {
	cfg := planConfig(append(hosts("n%03d.example.com", 1, 110), hosts("n%03d.example.org", 1, 20)...)...)
	cfg.Bundles.MaxNames = 100
	stored := planned(cfg, nil)
	cfg.Bundles.MaxNames = 25
	got := planned(cfg, stored)
	if !slices.Equal(got["example.com"], stored["example.com"][:25]) {
		t.Errorf("example.com keeps %v, want its first 25", got["example.com"])
	}
	if last := stored["example.com-2"]; !slices.Equal(got["example.com-2"][15:], last) {
		t.Errorf("example.com-2 is %v, want room for 15 more filled and %v kept", got["example.com-2"], last)
	}
	if len(got) != 6 || len(got["example.com-5"]) != 10 || !slices.Equal(got["example.org"], stored["example.org"]) {
		t.Errorf("got %v, want five for example.com, the last with 10, and example.org as it was", got)
	}
}

func TestKeyTypesShareThePlan(t *testing.T) {
	cfg := planConfig("a.example.com", "b.example.com", "c.example.com")
	cfg.Bundles.MaxNames = 2
	cfg.Bundles.KeyTypes = []config.KeyType{config.P256, config.RSA2048}
	got := planned(cfg, holdings{"example.com": {"b.example.com", "c.example.com"}, "example.com.rsa2048": {"a.example.com"}})
	want := holdings{
		"example.com": {"b.example.com", "c.example.com"}, "example.com.rsa2048": {"b.example.com", "c.example.com"},
		"example.com-2": {"a.example.com"}, "example.com-2.rsa2048": {"a.example.com"},
	}
	if len(changed(got, want)) > 0 {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// A life is a configuration that changes and a storage that follows it.
type life struct {
	cfg    *config.Config
	hosts  map[string]bool
	stored holdings
}

func newLife(limit int) *life {
	l := &life{cfg: planConfig(), hosts: map[string]bool{}, stored: holdings{}}
	l.cfg.Bundles.MaxNames = limit
	return l
}

func (l *life) plan() holdings {
	l.cfg.Routes = planConfig(slices.Sorted(maps.Keys(l.hosts))...).Routes
	return planned(l.cfg, l.stored)
}

// wanted are the names that need a place: what no wildcard covers.
func (l *life) wanted() []string {
	var out []string
	for h := range l.hosts {
		if w := hostname.Wildcard(h); w == h || !l.hosts[w] {
			out = append(out, h)
		}
	}
	slices.Sort(out)
	return out
}

// check holds a plan against the laws that hold for every storage.
func (l *life) check(t *rapid.T, plan holdings) {
	var all []string
	home := map[string]string{}
	for id, names := range plan {
		if len(names) == 0 || len(names) > l.cfg.Bundles.MaxNames {
			t.Fatalf("%s has %d names, want 1 to %d", id, len(names), l.cfg.Bundles.MaxNames)
		}
		for _, n := range names {
			home[n] = id
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	if want := l.wanted(); !slices.Equal(all, want) {
		t.Fatalf("planned %v, want exactly %v", all, want)
	}
	for n, id := range home {
		if w := "*." + n; l.cfg.Bundles.MaxNames > 1 && home[w] != "" && home[w] != id {
			t.Fatalf("%s is in %s and %s in %s", n, id, w, home[w])
		}
	}
}

// paired reports whether the other half of host, its domain or its wildcard, is
// wanted too.
func (l *life) paired(host string) bool {
	if apex, ok := strings.CutPrefix(host, "*."); ok {
		return slices.Contains(l.wanted(), apex)
	}
	return l.hosts["*."+host]
}

func drawHost(t *rapid.T) string {
	host := rapid.SampledFrom([]string{"example.com", "example.org"}).Draw(t, "zone")
	if n := rapid.IntRange(0, 12).Draw(t, "label"); n > 0 {
		host = fmt.Sprintf("n%02d.%s", n, host)
	}
	if rapid.IntRange(0, 3).Draw(t, "wild") == 0 {
		host = "*." + host
	}
	return host
}

// Whatever is added and removed, one after the other and each carried out: an
// added name changes one certificate and costs at most one order, two change
// only where a domain and its wildcard have to come together, and a removed one
// changes none but its own.
func TestOneNameMoreOrLessChangesOneCertificate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLife(rapid.IntRange(1, 5).Draw(t, "limit"))
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			host := drawHost(t)
			before := l.wanted()
			add := !l.hosts[host]
			if add {
				l.hosts[host] = true
			} else {
				delete(l.hosts, host)
			}
			plan := l.plan()
			l.check(t, plan)
			gone := slices.DeleteFunc(slices.Clone(before), func(n string) bool { return slices.Contains(l.wanted(), n) })
			rest := holdings{} // the storage without what is not wanted any more
			for id, names := range l.stored {
				if left := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(gone, n) }); len(left) > 0 {
					rest[id] = left
				}
			}
			allowed, orders := 0, 0
			switch uncovered := len(l.wanted()) + len(gone) - len(before); {
			case add && l.paired(host) && l.cfg.Bundles.MaxNames > 1:
				allowed, orders = 2, 1
			case add:
				allowed, orders = 1, 1
			case uncovered > 0: // a wildcard went, and what it covered needs places
				allowed, orders = 2*uncovered, 2*uncovered
			}
			if c := changed(rest, plan); len(c) > allowed {
				t.Fatalf("%s (added: %v) changed %v, want at most %d\nbefore %v\nafter  %v", host, add, c, allowed, rest, plan)
			}
			if o := missing(plan, l.stored); len(o) > orders {
				t.Fatalf("%s (added: %v) orders %v, want at most %d\nstored %v\nplan   %v", host, add, o, orders, l.stored, plan)
			}
			l.stored = plan
		}
	})
}

// A storage keeps names that are not wanted any more until the renewal. That
// costs no order: an added name still costs at most one, a removed one none.
func TestNamesThatLingerCostNoOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLife(rapid.IntRange(2, 5).Draw(t, "limit"))
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			host := drawHost(t)
			before := len(l.wanted())
			add, wild := !l.hosts[host], hostname.IsWildcard(host)
			if add {
				l.hosts[host] = true
			} else {
				delete(l.hosts, host)
			}
			plan := l.plan()
			l.check(t, plan)
			orders := missing(plan, l.stored)
			if add && len(orders) > 1 || !add && !wild && len(orders) > 0 {
				t.Fatalf("%s (added: %v) orders %v\nstored %v\nplan   %v\nwanted %d before", host, add, orders, l.stored, plan, before)
			}
			for _, id := range orders {
				l.stored[id] = plan[id]
			}
			for id := range l.stored { // edge deletes nothing; somebody may
				switch {
				case plan[id] == nil && rapid.Bool().Draw(t, "swept"):
					delete(l.stored, id)
				case plan[id] != nil && rapid.IntRange(0, 3).Draw(t, "renewed") == 0:
					l.stored[id] = plan[id]
				}
			}
		}
	})
}

// However far a plan has been carried out, in whatever order, it is still the
// plan: certificates that come one by one, or not at all, move no name.
func TestPlanStandsWhileItIsCarriedOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLife(rapid.IntRange(1, 5).Draw(t, "limit"))
		for range rapid.IntRange(1, 4).Draw(t, "reloads") {
			for range rapid.IntRange(1, 15).Draw(t, "steps") {
				if host := drawHost(t); l.hosts[host] {
					delete(l.hosts, host)
				} else {
					l.hosts[host] = true
				}
			}
			l.cfg.Bundles.MaxNames = rapid.IntRange(1, 5).Draw(t, "limit")
			plan := l.plan()
			l.check(t, plan)
			for _, id := range rapid.Permutation(slices.Sorted(maps.Keys(plan))).Draw(t, "order") {
				if rapid.IntRange(0, 4).Draw(t, "failed") == 0 {
					continue
				}
				l.stored[id] = plan[id]
				if now := l.plan(); len(changed(plan, now)) > 0 {
					t.Fatalf("once %s is stored the plan is another\nbefore %v\nafter  %v\nstored %v", id, plan, now, l.stored)
				}
			}
		}
	})
}

func TestTenThousandNamesOfOneZoneArePlannedAtOnce(t *testing.T) {
	cfg := planConfig(hosts("n%05d.example.com", 1, 10_000)...)
	stored := planned(cfg, nil)
	if len(stored) != 400 {
		t.Fatalf("%d bundles, want 400", len(stored))
	}
	cfg = planConfig(hosts("n%05d.example.com", 0, 10_000)...)
	got := planned(cfg, stored)
	if c := changed(stored, got); !slices.Equal(c, []string{"example.com-401"}) {
		t.Errorf("one name more changed %v, want a new bundle", c)
	}
}
