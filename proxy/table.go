package proxy

import (
	"strings"

	"edge/config"
	"edge/hostname"
)

// table is one configuration as requests see it. It is immutable: a request
// loads it once and keeps it to its end, whatever is reloaded meanwhile, and
// the garbage collector does the rest.
type table struct {
	sites     map[string]*site // by listener name; TLS listeners only
	httpsPort int              // where redirects point to; 0 when no listener speaks TLS
}

// site is what one listener serves. Two listeners may share routes, but never
// a site, because a route can name the listeners it is for.
type site struct {
	listener  *config.Listener
	names     map[string]*paths // exact host
	wildcards map[string]*paths // parent of "*.parent"
	any       *paths            // routes without a host
}

// paths are the routes of one host. The map look-ups make the cost of a match
// depend on the depth of the path, not on the number of routes.
type paths struct {
	exact  map[string]*route
	prefix map[string]*route // without final slash; "" is the root
	deep   int               // length of the longest prefix: nothing longer is looked up
}

// newTable compiles the routes of cfg. build makes the live route of a
// configured one and is called once for each.
func newTable(cfg *config.Config, build func(*config.Route) *route) *table {
	t := &table{sites: make(map[string]*site, len(cfg.Listeners))}
	for name, l := range cfg.Listeners {
		if !l.Redirect {
			t.sites[name] = &site{listener: l, names: map[string]*paths{}, wildcards: map[string]*paths{}, any: newPaths()}
		}
	}
	for _, c := range cfg.Routes {
		r := build(c)
		for _, name := range c.Listeners {
			if s := t.sites[name]; s != nil {
				s.add(r)
			}
		}
	}
	return t
}

func newPaths() *paths {
	return &paths{exact: map[string]*route{}, prefix: map[string]*route{}, deep: -1}
}

// add puts r under each of its hosts. Routes come in file order, and the first
// one keeps its place.
func (s *site) add(r *route) {
	if len(r.config.Hosts) == 0 {
		s.any.add(r)
	}
	for _, host := range r.config.Hosts {
		group := s.names
		if hostname.IsWildcard(host) {
			group, host = s.wildcards, hostname.Parent(host)
		}
		if group[host] == nil {
			group[host] = newPaths()
		}
		group[host].add(r)
	}
}

func (p *paths) add(r *route) {
	group, path := p.exact, r.config.Path
	if !r.config.Exact {
		group, path = p.prefix, strings.TrimRight(path, "/")
		p.deep = max(p.deep, len(path))
	}
	if _, taken := group[path]; !taken {
		group[path] = r
	}
}

// match returns the most specific route of those that match, or nil: exact
// host before wildcard before any host, then exact path before the longest
// prefix of whole segments, then file order. host is canonical. A host that has
// routes, none of which matches the path, does not hide those of the wildcard.
func (s *site) match(host, path string) *route {
	if r := s.names[host].match(path); r != nil {
		return r
	}
	if r := s.wildcards[hostname.Parent(host)].match(path); r != nil {
		return r
	}
	return s.any.match(path)
}

// routed reports whether any path of host leads anywhere.
func (s *site) routed(host string) bool {
	return s.names[host] != nil || s.wildcards[hostname.Parent(host)] != nil || !s.any.empty()
}

func (p *paths) empty() bool { return len(p.exact) == 0 && len(p.prefix) == 0 }

// match accepts a nil receiver, which has no routes. It cuts the path down
// segment by segment, from the longest prefix that any route has, so that a
// client cannot make it work harder by sending a path of a thousand slashes.
func (p *paths) match(path string) *route {
	if p == nil {
		return nil
	}
	if r := p.exact[path]; r != nil {
		return r
	}
	if len(path) > p.deep {
		if p.deep < 0 {
			return nil
		}
		if path[p.deep] != '/' {
			path = path[:max(strings.LastIndexByte(path[:p.deep], '/'), 0)]
		} else {
			path = path[:p.deep]
		}
	}
	for {
		if r := p.prefix[path]; r != nil {
			return r
		}
		cut := strings.LastIndexByte(path, '/')
		if cut < 0 {
			return nil
		}
		path = path[:cut]
	}
}
