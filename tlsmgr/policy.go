package tlsmgr

import (
	"crypto/tls"
	"fmt"
	"maps"
	"slices"

	"edge/config"
	"edge/hostname"
)

// A demand is what a TLS policy asks of a connection. Two hosts with equal
// demands may share a connection; it is comparable for that.
type demand struct {
	minVersion uint16
}

// A policy is a demand on one listener, ready for handshakes.
type policy struct {
	demand
	config *tls.Config // immutable, shared by all handshakes
}

// A listener is the TLS side of one listener: which policy each server name
// falls under. It is immutable.
type listener struct {
	fallback string             // certificate for clients without a server name; "" refuses them
	exact    map[string]*policy // by host
	below    map[string]*policy // policies of *.parent, by parent
	any      *policy            // of every other name
}

// policyOf finds the policy of name, which is canonical or "".
func (l *listener) policyOf(name string) *policy {
	if p := l.exact[name]; p != nil {
		return p
	}
	if p := l.below[hostname.Parent(name)]; p != nil {
		return p
	}
	return l.any
}

// newListeners builds the TLS side of cfg's listeners.
func (m *Manager) newListeners(cfg *config.Config) map[string]*listener {
	out := map[string]*listener{}
	for _, name := range slices.Sorted(maps.Keys(cfg.Listeners)) {
		if c := cfg.Listeners[name]; !c.Redirect {
			out[name] = m.newListener(name, c, cfg.Routes)
		}
	}
	return out
}

func (m *Manager) newListener(name string, c *config.Listener, routes []*config.Route) *listener {
	l := &listener{fallback: c.DefaultCertificate, exact: map[string]*policy{}, below: map[string]*policy{}}
	made := map[demand]*policy{}
	get := func(t config.TLS) *policy {
		d := demand{minVersion: max(t.MinVersion, c.TLS.MinVersion, tls.VersionTLS12)}
		if made[d] == nil {
			made[d] = m.newPolicy(name, d, c)
		}
		return made[d]
	}
	hosts := hostsOf(name, routes)
	l.any = get(hosts[""].tls)
	for h := range hosts {
		if hostname.IsWildcard(h) {
			l.below[hostname.Parent(h)] = get(reach(hosts, h, ""))
		} else if h != "" {
			l.exact[h] = get(reach(hosts, h, hostname.Wildcard(h), ""))
		}
	}
	return l
}

// site is what the routes of one host pattern ask for.
type site struct {
	tls   config.TLS
	whole bool // one of them takes every path
}

// hostsOf collects the routes on a listener by host pattern; "" is any host.
// Those of one pattern ask alike, or config refuses them.
func hostsOf(listenerName string, routes []*config.Route) map[string]site {
	out := map[string]site{}
	for _, r := range routes {
		if !slices.Contains(r.Listeners, listenerName) {
			continue
		}
		hosts := r.Hosts
		if len(hosts) == 0 {
			hosts = []string{""}
		}
		for _, h := range hosts {
			s := out[h]
			s.tls.MinVersion = max(s.tls.MinVersion, r.TLS.MinVersion)
			s.whole = s.whole || r.Path == "/" && !r.Exact
			out[h] = s
		}
	}
	return out
}

// reach is what a connection for a host has to satisfy. A path that no route of
// the host takes falls through to the wildcard's routes and to those of any
// host, so it is what all that can be reached ask for.
func reach(hosts map[string]site, patterns ...string) config.TLS {
	var all config.TLS
	for _, pattern := range patterns {
		s := hosts[pattern]
		all.MinVersion = max(all.MinVersion, s.tls.MinVersion)
		if s.whole {
			break
		}
	}
	return all
}

func (m *Manager) newPolicy(listenerName string, d demand, c *config.Listener) *policy {
	fallback := c.DefaultCertificate
	t := &tls.Config{
		MinVersion: d.minVersion,
		NextProtos: alpn(c.Protocols),
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return m.index.Load().certificateFor(hello, fallback)
		},
	}
	m.tickets.bind(t, fmt.Sprintf("%s min=%04x", listenerName, d.minVersion))
	return &policy{demand: d, config: t}
}

// alpn are the protocol ids of protocols in the order of preference (RFC 7301).
func alpn(protocols []config.Protocol) []string {
	var out []string
	if slices.Contains(protocols, config.H2) {
		out = append(out, "h2")
	}
	if slices.Contains(protocols, config.H1) || len(out) == 0 {
		out = append(out, "http/1.1")
	}
	return out
}

// TLSConfig is the configuration of a listener's handshakes. It follows every
// later Commit, so it is asked for once. Server names that no certificate
// covers are refused with the alert unrecognized_name; so is everything on a
// listener that the configuration does not have.
func (m *Manager) TLSConfig(listenerName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"}, // what a listener may offer; the handshake's own configuration decides
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return m.configFor(listenerName, hello), nil
		},
	}
}

// configFor fixes the policy of a connection. It runs before resumption, so a
// ticket does not help into a name without a certificate.
func (m *Manager) configFor(listenerName string, hello *tls.ClientHelloInfo) *tls.Config {
	x := m.index.Load()
	l := m.state.Load().listeners[listenerName]
	if l == nil {
		return m.refuse
	}
	if hello.ServerName == "" {
		if x.byID[l.fallback] == nil {
			return m.refuse
		}
		return l.any.config
	}
	name, ok := hostname.FromHost(hello.ServerName)
	if !ok || x.find(name) == nil {
		return m.refuse
	}
	return l.policyOf(name).config
}

// newRefusal is a configuration that ends every handshake with
// unrecognized_name and resumes nothing.
func newRefusal() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return nil, nil //nolint:nilnil // crypto/tls wants exactly this to send unrecognized_name
		},
	}
}

// Same reports whether a connection made for serverName may carry requests for
// host: they are one name, or one current certificate covers both and the TLS
// policies of both are identical on every listener. serverName "" is a client
// that sent none and was given the listener's default certificate. Both may be
// as they came from the client. It is the certificate's half of the 421 rule (RFC 9110
// section 15.5.20); that both are routed is the other half.
func (m *Manager) Same(serverName, host string) bool {
	host, ok := hostname.FromHost(host)
	if !ok {
		return false
	}
	x, st := m.index.Load(), m.state.Load()
	if serverName == "" {
		return st.sameByDefault(x, host)
	}
	if serverName, ok = hostname.FromHost(serverName); !ok {
		return false
	}
	if serverName == host {
		return true
	}
	e := x.find(serverName)
	if e == nil || !e.covers(host) {
		return false
	}
	for _, l := range st.listeners {
		if l.policyOf(serverName).demand != l.policyOf(host).demand {
			return false
		}
	}
	return true
}

// sameByDefault is Same for clients without a server name. It does not know the
// listener, so every listener that serves such clients has to agree.
func (st *state) sameByDefault(x *index, host string) bool {
	served := false
	for _, l := range st.listeners {
		c := x.byID[l.fallback]
		if c == nil {
			continue
		}
		if !c.covers(host) || l.policyOf(host).demand != l.any.demand {
			return false
		}
		served = true
	}
	return served
}
