package tlsmgr_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"edge/config"
	"edge/hostname"
	"edge/tlsmgr"
)

// planConfig is a configuration of one listener with a route for each host.
func planConfig(hosts ...string) *config.Config {
	cfg := &config.Config{
		Listeners:    map[string]*config.Listener{"https": {Name: "https"}, "http": {Name: "http", Redirect: true}},
		Issuers:      map[string]*config.Issuer{"acme": {Name: "acme", Directory: "https://ca.test/dir"}},
		Certificates: map[string]*config.Certificate{},
		Bundles:      config.Bundles{Issuers: []string{"acme"}, Packing: config.ByZone, MaxNames: 25, KeyTypes: []config.KeyType{config.P256}},
	}
	for n, h := range hosts {
		cfg.Routes = append(cfg.Routes, &config.Route{Name: fmt.Sprintf("routes[%d]", n), Hosts: []string{h}, Path: "/", Listeners: []string{"https"}})
	}
	return cfg
}

func written(names ...string) *config.Certificate {
	return &config.Certificate{Names: names, Issuers: []string{"acme"}, KeyTypes: []config.KeyType{config.P256}}
}

// summary is a plan as "id: names".
func summary(bundles []tlsmgr.Bundle) []string {
	out := []string{}
	for _, b := range bundles {
		out = append(out, b.ID+": "+strings.Join(b.Names, " "))
	}
	return out
}

func ExamplePlan() {
	cfg := planConfig("llm.example.com", "*.models.example.com", "llama.models.example.com", "models.example.com", "chat.example.org")
	bundles, _ := tlsmgr.Plan(cfg)
	for _, b := range bundles {
		fmt.Println(b.ID, b.Names)
	}
	// Output:
	// example.com [*.models.example.com llm.example.com models.example.com]
	// example.org [chat.example.org]
}

func ExampleExplain() {
	cfg := planConfig("llm.example.com", "llama.models.example.com")
	cfg.Certificates["models"] = written("*.models.example.com")
	for _, c := range tlsmgr.Explain(cfg, tlsmgr.Known{}).Covers {
		fmt.Printf("%s is served with %s (%s), for %v\n", c.Host, c.Certificate, c.Name, c.Routes)
	}
	// Output:
	// llama.models.example.com is served with models (*.models.example.com), for [routes[1]]
	// llm.example.com is served with example.com (llm.example.com), for [routes[0]]
}

func TestPlanPacksByRegistrableDomain(t *testing.T) {
	for name, c := range map[string]struct {
		hosts []string
		edit  func(*config.Config)
		files map[string][]string
		want  []string
	}{
		"a bundle for each zone": {
			hosts: []string{"a.example.com", "b.x.example.com", "example.co.uk", "a.example.co.uk"},
			want:  []string{"example.co.uk: a.example.co.uk example.co.uk", "example.com: a.example.com b.x.example.com"},
		},
		"a wildcard of a route covers one label and not the apex": {
			hosts: []string{"*.example.com", "a.example.com", "example.com", "a.b.example.com"},
			want:  []string{"example.com: *.example.com a.b.example.com example.com"},
		},
		"a wildcard is never invented": {
			hosts: []string{"a.example.com", "b.example.com"},
			want:  []string{"example.com: a.example.com b.example.com"},
		},
		"a written certificate covers its names": {
			hosts: []string{"a.example.com", "b.example.com", "c.m.example.com"},
			edit: func(c *config.Config) {
				c.Certificates["bundle"] = written("a.example.com", "*.m.example.com")
			},
			want: []string{"bundle: *.m.example.com a.example.com", "example.com: b.example.com"},
		},
		"a name beside its wildcard is dropped from a written certificate": {
			edit: func(c *config.Config) {
				c.Certificates["bundle"] = written("a.example.com", "*.example.com", "example.com", "a.example.com")
			},
			want: []string{"bundle: *.example.com example.com"},
		},
		"a file covers what it names": {
			hosts: []string{"a.example.com", "b.example.com", "a.example.org"},
			edit: func(c *config.Config) {
				c.Certificates["corp"] = &config.Certificate{Name: "corp", File: &config.CertificateFile{}}
			},
			files: map[string][]string{"corp": {"*.example.com"}},
			want:  []string{"example.org: a.example.org"},
		},
		"one each": {
			hosts: []string{"a.example.com", "*.example.com", "*.x.example.com", "example.com", "b.y.example.com"},
			edit:  func(c *config.Config) { c.Bundles.Packing = config.PerName },
			want:  []string{"_.x.example.com: *.x.example.com", "b.y.example.com: b.y.example.com", "example.com: *.example.com example.com"},
		},
		"a full bundle is followed by another": {
			hosts: []string{"a.example.com", "b.example.com", "c.example.com", "*.d.example.com", "d.example.com", "e.example.com"},
			edit:  func(c *config.Config) { c.Bundles.MaxNames = 2 },
			want: []string{
				"example.com: a.example.com b.example.com", "example.com-2: c.example.com e.example.com",
				"example.com-3: *.d.example.com d.example.com",
			},
		},
		"an id that is taken is left alone": {
			hosts: []string{"a.example.com"},
			edit:  func(c *config.Config) { c.Certificates["example.com"] = written("other.example.org") },
			want:  []string{"example.com: other.example.org", "example.com-2: a.example.com"},
		},
		"routes on redirect listeners and for any host need none": {
			hosts: []string{"a.example.com"},
			edit: func(c *config.Config) {
				c.Routes[0].Listeners = []string{"http"}
				c.Routes = append(c.Routes, &config.Route{Name: "any", Listeners: []string{"https"}})
			},
			want: []string{},
		},
		"local names go to a private CA": {
			hosts: []string{"localhost", "a.example.test"},
			want:  []string{"example.test: a.example.test", "localhost: localhost"},
		},
		"an IP address is never packed with names or other addresses": {
			hosts: []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "a.example.com"},
			want:  []string{"192.0.2.1: 192.0.2.1", "192.0.2.2: 192.0.2.2", "2001:db8::1: 2001:db8::1", "example.com: a.example.com"},
		},
		"an IP address that is written with names stays with them": {
			hosts: []string{"192.0.2.1", "a.example.com"},
			edit:  func(c *config.Config) { c.Certificates["both"] = written("192.0.2.1", "a.example.com") },
			want:  []string{"both: 192.0.2.1 a.example.com"},
		},
		"one certificate for each key type": {
			hosts: []string{"a.example.com", "b.example.org"},
			edit: func(c *config.Config) {
				c.Bundles.KeyTypes = []config.KeyType{config.P256, config.RSA2048}
				c.Certificates["own"] = written("b.example.org")
				c.Certificates["own"].KeyTypes = []config.KeyType{config.P384, config.RSA2048, config.P256}
				c.Certificates["own.p256"] = written("other.example.org")
			},
			want: []string{
				"example.com: a.example.com", "example.com.rsa2048: a.example.com",
				"own: b.example.org", "own.p256: other.example.org", "own.p256-2: b.example.org", "own.rsa2048: b.example.org",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := planConfig(c.hosts...)
			if c.edit != nil {
				c.edit(cfg)
			}
			p := tlsmgr.Explain(cfg, tlsmgr.Known{Files: c.files})
			if got := summary(p.Bundles); !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if len(p.Problems) > 0 {
				t.Errorf("problems: %v", p.Problems)
			}
		})
	}
}

func TestPlanReportsWhatCannotWork(t *testing.T) {
	letsencrypt := func(c *config.Config) { c.Issuers["acme"].Directory = "https://acme-v02.api.letsencrypt.org/directory" }
	many := make([]string, 26)
	for n := range many {
		many[n] = fmt.Sprintf("n%d.example.com", n)
	}
	for name, c := range map[string]struct {
		hosts   []string
		edit    func(*config.Config)
		problem string
		bundles int
	}{
		"no issuer": {
			hosts: []string{"a.example.com"}, edit: func(c *config.Config) { c.Bundles.Issuers = nil },
			problem: "no certificate covers a.example.com (add an acme section",
		},
		"a written certificate without an issuer": {
			edit: func(c *config.Config) {
				c.Bundles.Issuers = nil
				c.Certificates["x"] = &config.Certificate{Names: []string{"a.example.com"}}
			},
			problem: "certificates.x: no issuer",
		},
		"a written local name at a public CA": {
			edit: func(c *config.Config) {
				letsencrypt(c)
				c.Certificates["x"] = written("a.example.com", "llm.internal")
			},
			problem: "certificates.x.names: no public CA issues a certificate for llm.internal", bundles: 1,
		},
		"more names than the profile allows": {
			edit: func(c *config.Config) {
				letsencrypt(c)
				c.Certificates["big"] = written(many...)
			},
			problem: `26 names; issuer "acme" allows 25`, bundles: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := planConfig(c.hosts...)
			c.edit(cfg)
			bundles, problems := tlsmgr.Plan(cfg)
			if len(problems) != 1 || !strings.Contains(problems[0].Error(), c.problem) {
				t.Errorf("problems %v, want one with %q", problems, c.problem)
			}
			if len(bundles) != c.bundles {
				t.Errorf("bundles %q, want %d", summary(bundles), c.bundles)
			}
		})
	}
}

func TestPlanGivesLocalNamesToOnesOwnCA(t *testing.T) {
	own := &config.Issuer{Name: config.InternalIssuer, Internal: &config.Internal{}}
	for name, c := range map[string]struct {
		edit func(*config.Config)
		want map[string]string // bundle: its issuers
	}{
		"the internal one when the default is a public CA": {
			want: map[string]string{"example.com": "acme", "nas": "internal", "10.0.0.7": "internal", "x.internal": "internal"},
		},
		"the internal one when there is no other": {
			edit: func(c *config.Config) {
				c.Routes = c.Routes[1:]
				c.Bundles.Issuers = nil
			},
			want: map[string]string{"nas": "internal", "10.0.0.7": "internal", "x.internal": "internal"},
		},
		"one that speaks ACME": {
			edit: func(c *config.Config) {
				c.Issuers["corp"] = &config.Issuer{Name: "corp", Directory: "https://ca.corp.internal/dir"}
				c.Bundles.Issuers = []string{"corp", "acme"}
			},
			want: map[string]string{"example.com": "corp acme", "nas": "corp", "10.0.0.7": "corp", "x.internal": "corp"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := planConfig("a.example.com", "nas", "10.0.0.7", "x.internal", "*.x.internal")
			cfg.Issuers["acme"].Directory = "https://acme-v02.api.letsencrypt.org/directory"
			cfg.Issuers[config.InternalIssuer] = own
			cfg.Bundles.MaxNames = 100
			if c.edit != nil {
				c.edit(cfg)
			}
			bundles, problems := tlsmgr.Plan(cfg)
			got := map[string]string{}
			for _, b := range bundles {
				got[b.ID] = strings.Join(append([]string{b.Issuer}, b.Fallbacks...), " ")
				want := 100
				if strings.Contains(got[b.ID], "acme") {
					want = 25
				}
				if b.MaxNames != want {
					t.Errorf("%s holds up to %d names, want %d", b.ID, b.MaxNames, want)
				}
			}
			if !maps.Equal(got, c.want) || len(problems) > 0 {
				t.Errorf("got %v, problems %v; want %v", got, problems, c.want)
			}
		})
	}
}

func TestPlanPacksForTheFallbackToo(t *testing.T) {
	hosts := make([]string, 30)
	for n := range hosts {
		hosts[n] = fmt.Sprintf("n%02d.example.com", n)
	}
	cfg := planConfig(hosts...)
	cfg.Bundles.MaxNames = 100
	cfg.Issuers["le"] = &config.Issuer{Name: "le", Directory: "https://acme-v02.api.letsencrypt.org/directory"}
	cfg.Bundles.Issuers = []string{"acme", "le"}
	bundles, _ := tlsmgr.Plan(cfg)
	if len(bundles) != 2 || !slices.Equal(bundles[1].Fallbacks, []string{"le"}) || bundles[0].MaxNames != 25 {
		t.Errorf("got %+v, want two that le would sign as well", bundles)
	}
}

func TestPlanKeepsWithinTheProfile(t *testing.T) {
	hosts := make([]string, 30)
	for n := range hosts {
		hosts[n] = fmt.Sprintf("n%02d.example.com", n)
	}
	cfg := planConfig(hosts...)
	cfg.Issuers["acme"].Directory = "https://acme-v02.api.letsencrypt.org/directory"
	cfg.Bundles.MaxNames = 100
	for profile, want := range map[string]int{"": 2, "tlsserver": 2, "shortlived": 2, "classic": 1} {
		cfg.Issuers["acme"].Profile = profile
		if bundles, _ := tlsmgr.Plan(cfg); len(bundles) != want {
			t.Errorf("profile %q: %d bundles, want %d", profile, len(bundles), want)
		}
	}
}

// drawPlan draws a configuration with hosts, written certificates and files
// that overlap in every way.
func drawPlan(t *rapid.T) (*config.Config, map[string][]string) {
	name := rapid.Custom(func(t *rapid.T) string {
		labels := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 2).Draw(t, "labels")
		zone := rapid.SampledFrom([]string{"example.com", "example.org", "example.co.uk"}).Draw(t, "zone")
		n := strings.Join(append(labels, zone), ".")
		if rapid.IntRange(0, 3).Draw(t, "wild") == 0 {
			n = "*." + n
		}
		return n
	})
	cfg := planConfig(rapid.SliceOfN(name, 0, 20).Draw(t, "hosts")...)
	cfg.Bundles.MaxNames = rapid.IntRange(2, 6).Draw(t, "max")
	cfg.Bundles.Packing = rapid.SampledFrom([]config.Packing{config.ByZone, config.PerName}).Draw(t, "packing")
	for _, id := range []string{"one", "example.com"} {
		if rapid.Bool().Draw(t, "written") {
			cfg.Certificates[id] = written(rapid.SliceOfN(name, 1, 3).Draw(t, id)...)
		}
	}
	files := map[string][]string{}
	if rapid.Bool().Draw(t, "file") {
		cfg.Certificates["file"] = &config.Certificate{Name: "file", File: &config.CertificateFile{}}
		files["file"] = rapid.SliceOfN(name, 1, 2).Draw(t, "file names")
	}
	return cfg, files
}

// The laws of a plan: every host is covered by exactly the certificate that the
// plan says; what is covered anyway gets none; no bundle is too large; the apex
// and the wildcard of a domain are together; ids are unique.
func TestPlanLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg, files := drawPlan(t)
		p := tlsmgr.Explain(cfg, tlsmgr.Known{Files: files})
		if len(p.Problems) > 0 {
			t.Fatalf("problems: %v", p.Problems)
		}
		names := map[string][]string{}
		for _, b := range p.Bundles {
			if names[b.ID] != nil || files[b.ID] != nil {
				t.Fatalf("id %s is used twice", b.ID)
			}
			names[b.ID] = b.Names
			checkBundle(t, cfg, b)
		}
		maps.Copy(names, files)
		owner := map[string]string{} // of inferred names
		for _, b := range p.Bundles {
			if !b.Inferred {
				continue
			}
			for _, n := range b.Names {
				if owner[n] != "" {
					t.Fatalf("%s is in %s and %s", n, owner[n], b.ID)
				}
				owner[n] = b.ID
				for id, others := range names {
					if id == b.ID {
						continue
					}
					for _, o := range others {
						if hostname.Covers(o, n) {
							t.Fatalf("%s got a place in %s although %s of %s covers it", n, b.ID, o, id)
						}
					}
				}
			}
		}
		for n, id := range owner {
			apex, ok := strings.CutPrefix(n, "*.")
			if ok && owner[apex] != "" && owner[apex] != id {
				t.Fatalf("%s is in %s, %s in %s", n, id, apex, owner[apex])
			}
		}
		if len(p.Covers) != len(hostsOf(cfg)) {
			t.Fatalf("%d covers for %d hosts", len(p.Covers), len(hostsOf(cfg)))
		}
		for _, c := range p.Covers {
			if !slices.Contains(names[c.Certificate], c.Name) || !hostname.Covers(c.Name, c.Host) {
				t.Fatalf("host %s is said to be covered by %q of %q %v", c.Host, c.Name, c.Certificate, names[c.Certificate])
			}
		}
	})
}

func checkBundle(t *rapid.T, cfg *config.Config, b tlsmgr.Bundle) {
	if len(b.Names) == 0 || !slices.IsSorted(b.Names) || len(slices.Compact(slices.Clone(b.Names))) != len(b.Names) {
		t.Fatalf("%s: names %v are empty, unsorted or double", b.ID, b.Names)
	}
	if b.Inferred && len(b.Names) > cfg.Bundles.MaxNames {
		t.Fatalf("%s has %d names, more than %d", b.ID, len(b.Names), cfg.Bundles.MaxNames)
	}
	for _, n := range b.Names {
		if w := hostname.Wildcard(n); w != n && slices.Contains(b.Names, w) {
			t.Fatalf("%s has both %s and %s", b.ID, n, w)
		}
	}
}

func hostsOf(cfg *config.Config) map[string]bool {
	out := map[string]bool{}
	for _, r := range cfg.Routes {
		for _, h := range r.Hosts {
			out[h] = true
		}
	}
	return out
}

func TestPlanDoesNotDependOnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg, files := drawPlan(t)
		want := summary(tlsmgr.Explain(cfg, tlsmgr.Known{Files: files}).Bundles)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		r.Shuffle(len(cfg.Routes), reflect.Swapper(cfg.Routes))
		for _, c := range cfg.Certificates {
			r.Shuffle(len(c.Names), reflect.Swapper(c.Names))
		}
		if got := summary(tlsmgr.Explain(cfg, tlsmgr.Known{Files: files}).Bundles); !slices.Equal(got, want) {
			t.Fatalf("after shuffling got %q, want %q", got, want)
		}
	})
}
