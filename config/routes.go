package config

import (
	"fmt"

	"edge/hostname"
)

// policyUse is one name in the policies of a route.
type policyUse struct {
	route  *Route
	policy string
	path   string
}

// readPolicies reads what routes may demand on top of their listeners.
func (b *builder) readPolicies(v value) {
	v.named("policy", func(name string, v value) {
		var t TLS
		present := v.object(fields{
			"tls": func(v value) {
				v.need(v.object(fields{"min_version": tlsVersion(&t.MinVersion)}), "min_version")
			},
			"client_certificates": func(v value) {
				v.need(v.object(fields{"ca": as(&t.ClientCA, b.existing)}), "ca")
			},
		}, "api_keys", "jwt", "rate_limits", "allow", "response_headers", "cors")
		if present != nil && len(present) == 0 {
			v.refuse(emptyPolicy())
		}
		b.policies[name] = t
	})
}

func (b *builder) routes(v value) {
	for i, item := range v.items() {
		b.route(i, item)
	}
}

func (b *builder) route(i int, v value) {
	r := &Route{Name: fmt.Sprintf("routes[%d]", i), Path: "/", Timeouts: b.timeouts, Limits: b.limits, Pos: v.pos()}
	b.cfg.Routes = append(b.cfg.Routes, r)
	match := fields{
		"host": oneOrMore(&r.Hosts, host),
		"path": r.matchPath,
	}
	present := v.object(fields{
		"name": as(&r.Name, word),
		"host": match["host"],
		"path": match["path"],
		"match": func(v value) {
			v.object(fields{"host": match["host"], "path": match["path"]}, "headers", "methods", "sni")
		},
		"policies":  func(v value) { b.usePolicies(r, v) },
		"pool":      ref("pool", &r.Pool),
		"endpoints": hold, // read below, when the name of the route is known
		"listeners": refs("listener", &r.Listeners),
		"timeouts": func(v value) {
			known := timeoutFields(&r.Timeouts)
			known["connect"] = func(v value) { v.refuseKey(setInDefaults("timeouts", "connect")) }
			v.object(known)
		},
		"limits": func(v value) {
			v.object(fields{
				"body":    as(&r.Limits.Body, sizeOrOff(1, 1024*gib)),
				"headers": func(v value) { v.refuseKey(setInDefaults("limits", "headers")) },
			})
		},
	}, "models", "otherwise", "rewrite", "redirect", "mirror", "passthrough")
	b.routeShape(r, v, present)
}

func (r *Route) matchPath(v value) {
	var p pattern
	as(&p, matchPath)(v)
	if p.path != "" {
		r.Path, r.Exact = p.path, p.exact
	}
}

// routeShape checks which keys go together and makes the inline pool.
func (b *builder) routeShape(r *Route, v value, present keys) {
	if present.any("match") {
		for _, key := range []string{"host", "path"} {
			if short, both := present[key]; both {
				short.refuseKey(exclusive(key, "match", "write match: {host: NAME, path: PATH}"))
			}
		}
	}
	endpoints, inline := present["endpoints"]
	_, named := present["pool"]
	switch {
	case inline && named:
		endpoints.refuseKey(exclusive("endpoints", "pool", "put the endpoints in the pool"))
	case inline:
		p := b.newPool(r.Name, endpoints.pos())
		p.endpoints(endpoints)
		r.Pool = p.Name
		if _, taken := b.cfg.Pools[p.Name]; taken {
			endpoints.refuseKey(nameTaken(p.Name, "a pool; the route and its inline pool need another"))
			return
		}
		b.cfg.Pools[p.Name] = p
	case !named && present != nil && !present.any("models", "redirect", "passthrough"):
		v.refuse(noBackend())
	}
}

// usePolicies applies the policies of a route, which add up. Their names may be
// wrong.
func (b *builder) usePolicies(r *Route, v value) {
	var names []string
	refs("policy", &names)(v)
	version, ca := "", "" // the policies that demand them
	for i, name := range names {
		t, ok := b.policies[name]
		if !ok || t == (TLS{}) {
			continue
		}
		path := fmt.Sprintf("%s[%d]", v.path, i)
		switch {
		case version != "" && t.MinVersion != 0 && r.TLS.MinVersion != t.MinVersion:
			b.refuse(path, conflictingPolicies(version, name))
			continue
		case ca != "" && t.ClientCA != "" && r.TLS.ClientCA != t.ClientCA:
			b.refuse(path, conflictingPolicies(ca, name))
			continue
		}
		if t.MinVersion != 0 {
			version, r.TLS.MinVersion = name, t.MinVersion
		}
		if t.ClientCA != "" {
			ca, r.TLS.ClientCA = name, t.ClientCA
		}
		b.used = append(b.used, policyUse{r, name, path})
	}
}

// checkRoutes looks at all routes together: names, listeners, what is never
// reached, and what cannot be agreed on before there is a path.
func (b *builder) checkRoutes() {
	names := map[string]int{}
	for i, r := range b.cfg.Routes {
		if first, taken := names[r.Name]; taken {
			b.refuse(fmt.Sprintf("routes[%d].name", i), nameTaken(r.Name, fmt.Sprintf("routes[%d]", first)))
		} else {
			names[r.Name] = i
		}
		for j, name := range r.Listeners {
			if l := b.cfg.Listeners[name]; l != nil && l.Redirect {
				b.refuse(fmt.Sprintf("routes[%d].listeners[%d]", i, j), routeOnRedirect(name))
			}
		}
	}
	b.checkShadows()
	b.checkTLS()
}

// binding is what a route is looked up by.
type binding struct {
	listener, host, path string
	exact                bool
}

func (b *builder) checkShadows() {
	first := map[binding]*Route{}
	for i, r := range b.cfg.Routes {
		told := false
		for j, host := range r.patterns() {
			for _, listener := range r.Listeners {
				key := binding{listener, host, r.Path, r.Exact}
				earlier, taken := first[key]
				switch {
				case host == "": // refused
				case !taken:
					first[key] = r
				case earlier != r && !told:
					told = true
					b.refuse(b.hostPath(i, j), shadowed(earlier.Name))
				}
			}
		}
	}
}

// checkTLS demands that all routes of a host on a listener agree, because the
// handshake knows the host only, and that no policy is weaker than a listener.
func (b *builder) checkTLS() {
	first := map[site]*Route{}
	for i, r := range b.cfg.Routes {
		told := false
		for j, host := range r.patterns() {
			for _, listener := range r.Listeners {
				at := site{listener, host}
				earlier, taken := first[at]
				switch {
				case host == "": // refused
				case !taken:
					first[at] = r
				case earlier.TLS != r.TLS && !told:
					told = true
					b.refuse(b.hostPath(i, j), conflictingTLS(host, earlier.Name))
				}
			}
		}
	}
	b.checkClientCAs(first)
	for _, use := range b.used {
		demanded := b.policies[use.policy].MinVersion
		for _, name := range use.route.Listeners {
			if l := b.cfg.Listeners[name]; l != nil && !l.Redirect && demanded != 0 && demanded < l.TLS.MinVersion {
				b.refuse(use.path, weakerThanListener(use.policy, name))
			}
		}
	}
}

// site is a host pattern on a listener.
type site struct{ listener, host string }

// anyHost stands for the routes without a host.
const anyHost = "any host"

// patterns are the hosts of a route, or anyHost.
func (r *Route) patterns() []string {
	if r.Hosts == nil { // an empty list is refused
		return []string{anyHost}
	}
	return r.Hosts
}

// checkClientCAs demands one CA of all routes that a connection can reach: the
// paths that a host's routes do not take fall to those of its wildcard and of
// any host, and a certificate of one CA opens no door of another.
func (b *builder) checkClientCAs(first map[site]*Route) {
	whole := map[site]bool{} // nothing falls through
	for _, r := range b.cfg.Routes {
		for _, host := range r.patterns() {
			for _, listener := range r.Listeners {
				at := site{listener, host}
				whole[at] = whole[at] || r.Path == "/" && !r.Exact
			}
		}
	}
	for i, r := range b.cfg.Routes {
		for j, host := range r.patterns() {
			if other := r.otherCA(host, first, whole); other != nil {
				b.refuse(b.hostPath(i, j), conflictingCAs(host, other.Name))
				break
			}
		}
	}
}

// otherCA returns a route that takes what r leaves of host and demands another
// client CA than r.
func (r *Route) otherCA(host string, first map[site]*Route, whole map[site]bool) *Route {
	if r.TLS.ClientCA == "" || host == anyHost {
		return nil
	}
	for _, listener := range r.Listeners {
		at := site{listener, host}
		for _, wider := range []string{hostname.Wildcard(host), anyHost} {
			if wider == host {
				continue
			}
			if whole[at] {
				break
			}
			at = site{listener, wider}
			other := first[at]
			if other != nil && other.TLS.ClientCA != "" && other.TLS.ClientCA != r.TLS.ClientCA {
				return other
			}
		}
	}
	return nil
}

// hostPath is the path of a host of a route, in either form.
func (b *builder) hostPath(route, host int) string {
	path := fmt.Sprintf("routes[%d].", route)
	if _, long := b.at[path+"match"]; long {
		path += "match."
	}
	return fmt.Sprintf("%shost[%d]", path, host)
}
