package proxy

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"edge/config"
	"edge/hostname"
)

// tableOf compiles routes for one listener "https". Route names are their
// places in the list.
func tableOf(routes ...*config.Route) *site {
	cfg := &config.Config{Listeners: map[string]*config.Listener{"https": {Name: "https"}}, Routes: routes}
	for i, r := range routes {
		r.Name = fmt.Sprintf("routes[%d]", i)
		if r.Listeners == nil {
			r.Listeners = []string{"https"}
		}
	}
	return newTable(cfg, func(c *config.Route) *route { return &route{config: c} }).sites["https"]
}

func nameOf(r *route) string {
	if r == nil {
		return ""
	}
	return r.config.Name
}

func TestMostSpecificRouteWins(t *testing.T) {
	table := tableOf(
		&config.Route{Path: "/"}, // 0
		&config.Route{Hosts: []string{"*.models.example.com"}, Path: "/"},                    // 1
		&config.Route{Hosts: []string{"a.models.example.com"}, Path: "/v1"},                  // 2
		&config.Route{Hosts: []string{"a.models.example.com"}, Path: "/v1/chat"},             // 3
		&config.Route{Hosts: []string{"a.models.example.com"}, Path: "/v1", Exact: true},     // 4
		&config.Route{Hosts: []string{"b.example.com", "c.example.com"}, Path: "/only/this"}, // 5
		&config.Route{Hosts: []string{"b.example.com"}, Path: "/only/this"},                  // 6, shadowed
		&config.Route{Hosts: []string{"d.example.com"}, Path: "/v1/"},                        // 7
	)
	for _, c := range []struct{ host, path, want string }{
		{"x.example.org", "/", "routes[0]"},
		{"x.example.org", "/anything/at/all", "routes[0]"},
		{"z.models.example.com", "/v1", "routes[1]"},
		{"models.example.com", "/v1", "routes[0]"},
		{"y.z.models.example.com", "/v1", "routes[0]"},
		{"a.models.example.com", "/v1", "routes[4]"},
		{"a.models.example.com", "/v1/", "routes[2]"},
		{"a.models.example.com", "/v1/models", "routes[2]"},
		{"a.models.example.com", "/v1/chat/completions", "routes[3]"},
		{"a.models.example.com", "/v1/chatty", "routes[2]"},
		{"a.models.example.com", "/v1beta", "routes[1]"},
		{"a.models.example.com", "/", "routes[1]"},
		{"b.example.com", "/only/this", "routes[5]"},
		{"b.example.com", "/only/this/too", "routes[5]"},
		{"c.example.com", "/only", "routes[0]"},
		{"d.example.com", "/v1", "routes[7]"},
		{"d.example.com", "/v1/x", "routes[7]"},
		{"d.example.com", "/v1x", "routes[0]"},
	} {
		if got := nameOf(table.match(c.host, c.path)); got != c.want {
			t.Errorf("match(%q, %q) = %q, want %q", c.host, c.path, got, c.want)
		}
	}
}

func TestUnroutedHostHasNoRoute(t *testing.T) {
	table := tableOf(&config.Route{Hosts: []string{"a.example.com", "*.b.example.com"}, Path: "/v1"})
	for host, want := range map[string]bool{
		"a.example.com": true, "x.b.example.com": true,
		"b.example.com": false, "example.com": false, "x.y.b.example.com": false, "com": false, "": false,
	} {
		if got := table.routed(host); got != want {
			t.Errorf("routed(%q) = %v, want %v", host, got, want)
		}
		if r := table.match(host, "/v2"); r != nil {
			t.Errorf("match(%q, /v2) = %q, want none", host, nameOf(r))
		}
	}
}

func TestListenerServesItsOwnRoutesOnly(t *testing.T) {
	cfg := &config.Config{
		Listeners: map[string]*config.Listener{"https": {Name: "https"}, "grpc": {Name: "grpc"}, "http": {Name: "http", Redirect: true}},
		Routes: []*config.Route{
			{Name: "both", Hosts: []string{"a.example.com"}, Path: "/", Listeners: []string{"https", "grpc"}},
			{Name: "grpc only", Hosts: []string{"b.example.com"}, Path: "/", Listeners: []string{"grpc"}},
		},
	}
	builds := 0
	table := newTable(cfg, func(c *config.Route) *route { builds++; return &route{config: c} })
	if builds != 2 {
		t.Errorf("got %d routes built, want each once", builds)
	}
	if table.sites["http"] != nil {
		t.Error("a redirect listener has routes")
	}
	if table.sites["https"].routed("b.example.com") || !table.sites["grpc"].routed("b.example.com") {
		t.Error("b.example.com: want it on grpc only")
	}
	if table.sites["https"].match("a.example.com", "/") != table.sites["grpc"].match("a.example.com", "/") {
		t.Error("a.example.com: want the same route on both listeners")
	}
}

// slowMatch is the rule of config.Route, word for word.
func slowMatch(routes []*config.Route, host, path string) string {
	best, bestRank := "", -1
	for _, r := range routes {
		prefix := strings.TrimRight(r.Path, "/")
		if r.Exact && path != r.Path || !r.Exact && path != prefix && !strings.HasPrefix(path, prefix+"/") {
			continue
		}
		hostRank := -1
		if len(r.Hosts) == 0 {
			hostRank = 0
		}
		for _, pattern := range r.Hosts {
			switch {
			case pattern == host:
				hostRank = 2
			case hostname.Covers(pattern, host):
				hostRank = max(hostRank, 1)
			}
		}
		if hostRank < 0 {
			continue
		}
		rank := hostRank * 10000
		if r.Exact {
			rank += 1000
		} else {
			rank += len(prefix)
		}
		if rank > bestRank {
			best, bestRank = r.Name, rank
		}
	}
	return best
}

func TestTableEqualsTheRuleOnAnyRoutes(t *testing.T) {
	label := rapid.SampledFrom([]string{"a", "b", "c"})
	path := rapid.Custom(func(t *rapid.T) string {
		return "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"v", "v1", "v1x", "x", ""}), 0, 4).Draw(t, "segments"), "/")
	})
	host := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(label, 1, 3).Draw(t, "labels"), ".") + ".example.com"
	})
	pattern := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{"", "*."}).Draw(t, "wildcard") + host.Draw(t, "host")
	})
	one := rapid.Custom(func(t *rapid.T) *config.Route {
		r := &config.Route{Hosts: rapid.SliceOfN(pattern, 0, 2).Draw(t, "hosts"), Exact: rapid.Bool().Draw(t, "exact"), Path: path.Draw(t, "path")}
		if !r.Exact { // as config writes prefixes
			r.Path = "/" + strings.Trim(r.Path, "/")
		}
		return r
	})
	rapid.Check(t, func(t *rapid.T) {
		routes := rapid.SliceOfN(one, 0, 8).Draw(t, "routes")
		table := tableOf(routes...)
		for range 10 {
			h, p := host.Draw(t, "request host"), path.Draw(t, "request path")
			if got, want := nameOf(table.match(h, p)), slowMatch(routes, h, p); got != want {
				t.Fatalf("match(%q, %q) = %q, want %q", h, p, got, want)
			}
		}
	})
}

// manyRoutes is a site with n hosts of two routes each.
func manyRoutes(n int) *site {
	var routes []*config.Route
	for i := range n {
		host := fmt.Sprintf("h%d.example.com", i)
		routes = append(routes,
			&config.Route{Hosts: []string{host}, Path: "/v1"},
			&config.Route{Hosts: []string{host, "*." + host}, Path: "/v1/chat"})
	}
	return tableOf(routes...)
}

func TestMatchDoesNotAllocate(t *testing.T) {
	table := manyRoutes(100)
	deep := "/v1/chat/" + strings.Repeat("x/", 1000)
	for _, c := range []struct{ host, path string }{
		{"h7.example.com", "/v1/chat/completions"},
		{"x.h7.example.com", "/v1/chat/completions"},
		{"none.example.org", "/v1/chat/completions"},
		{"h7.example.com", deep},
	} {
		var r *route
		if n := testing.AllocsPerRun(100, func() {
			if plainPath(c.path) {
				r = table.match(c.host, c.path)
			}
		}); n != 0 {
			t.Errorf("match(%q, %.20q) to %q: got %v allocations, want 0", c.host, c.path, nameOf(r), n)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		table := manyRoutes(n)
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if table.match("h0.example.com", "/v1/chat/completions") == nil {
					b.Fatal("no route")
				}
			}
		})
	}
}
