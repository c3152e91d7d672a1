package config

import (
	"fmt"
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
		}, "api_keys", "jwt", "client_certificates", "rate_limits", "allow", "response_headers", "cors")
		if len(present) == 0 {
			v.need(present, "tls")
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

// usePolicies applies the policies of a route. Their names may be wrong.
func (b *builder) usePolicies(r *Route, v value) {
	var names []string
	refs("policy", &names)(v)
	chosen := ""
	for i, name := range names {
		t, ok := b.policies[name]
		if !ok || t == (TLS{}) {
			continue
		}
		path := fmt.Sprintf("%s[%d]", v.path, i)
		if chosen != "" && r.TLS != t {
			b.refuse(path, conflictingPolicies(chosen, name))
			continue
		}
		chosen, r.TLS = name, t
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
		hosts := r.Hosts
		if hosts == nil {
			hosts = []string{"any host"}
		}
		told := false
		for j, host := range hosts {
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
	type site struct{ listener, host string }
	first := map[site]*Route{}
	for i, r := range b.cfg.Routes {
		told := false
		for j, host := range r.Hosts {
			for _, listener := range r.Listeners {
				earlier, taken := first[site{listener, host}]
				switch {
				case host == "": // refused
				case !taken:
					first[site{listener, host}] = r
				case earlier.TLS != r.TLS && !told:
					told = true
					b.refuse(b.hostPath(i, j), conflictingTLS(host, earlier.Name))
				}
			}
		}
	}
	for _, use := range b.used {
		for _, name := range use.route.Listeners {
			if l := b.cfg.Listeners[name]; l != nil && !l.Redirect && b.policies[use.policy].MinVersion < l.TLS.MinVersion {
				b.refuse(use.path, weakerThanListener(use.policy, name))
			}
		}
	}
}

// hostPath is the path of a host of a route, in either form.
func (b *builder) hostPath(route, host int) string {
	path := fmt.Sprintf("routes[%d].", route)
	if _, long := b.at[path+"match"]; long {
		path += "match."
	}
	return fmt.Sprintf("%shost[%d]", path, host)
}
