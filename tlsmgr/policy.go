package tlsmgr

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"edge/config"
	"edge/hostname"
)

// A demand is what a TLS policy asks of a connection. Two hosts with equal
// demands may share a connection; it is comparable for that.
type demand struct {
	minVersion uint16
	clientCA   string // digest of the CAs whose client certificates are accepted; "" demands none
}

// A policy is a demand on one listener, ready for handshakes.
type policy struct {
	mark   string      // of listener and demand: what connections and tickets are told by
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

// sides are the TLS sides of all listeners of a configuration, and the client
// CAs that they were made with. They are immutable: a CA file that changes
// makes new ones.
type sides struct {
	listeners map[string]*listener
	cas       map[string]*clientCA // by path
}

// listener is the TLS side of a listener in force, nil when there is none.
func (m *Manager) listener(name string) *listener {
	s := m.state.Load().sides.Load()
	if s == nil { // before the first Commit
		return nil
	}
	return s.listeners[name]
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

// newSides builds the TLS sides of cfg's listeners. The error joins what routes
// demand that no client can satisfy.
func (m *Manager) newSides(cfg *config.Config, cas map[string]*clientCA) (*sides, error) {
	out := &sides{listeners: map[string]*listener{}, cas: cas}
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(cfg.Listeners)) {
		if c := cfg.Listeners[name]; !c.Redirect {
			l, err := m.newListener(name, c, cfg.Routes, cas)
			if err != nil {
				err = fmt.Errorf("listener %s: %w", name, err)
			}
			out.listeners[name] = l
			problems = append(problems, err)
		}
	}
	return out, errors.Join(problems...)
}

func (m *Manager) newListener(name string, c *config.Listener, routes []*config.Route, cas map[string]*clientCA) (*listener, error) {
	l := &listener{fallback: c.DefaultCertificate, exact: map[string]*policy{}, below: map[string]*policy{}}
	made := map[demand]*policy{}
	hosts, err := hostsOf(name, routes, cas)
	problems := []error{err}
	get := func(patterns ...string) *policy {
		a, err := reach(hosts, patterns...)
		problems = append(problems, err)
		d := demand{minVersion: max(a.minVersion, c.TLS.MinVersion, tls.VersionTLS12)}
		if a.ca != nil {
			d.clientCA = a.ca.digest
		}
		if made[d] == nil {
			made[d] = m.newPolicy(name, d, a.ca, c)
		}
		return made[d]
	}
	l.any = get("")
	for _, h := range slices.Sorted(maps.Keys(hosts)) {
		if hostname.IsWildcard(h) {
			l.below[hostname.Parent(h)] = get(h, "")
		} else if h != "" {
			l.exact[h] = get(h, hostname.Wildcard(h), "")
		}
	}
	return l, errors.Join(problems...)
}

// An ask is what routes demand together.
type ask struct {
	minVersion uint16
	ca         *clientCA // nil demands no certificate
}

// errTwoCAs is a demand that no connection can meet: a client shows one
// certificate, in the handshake, before there is a path.
var errTwoCAs = errors.New("client certificates of two different CAs are demanded")

// and adds b to what is demanded: the stricter wins, of two CAs neither.
func (a *ask) and(b ask) error {
	a.minVersion = max(a.minVersion, b.minVersion)
	if b.ca == nil {
		return nil
	}
	if a.ca != nil && a.ca.digest != b.ca.digest {
		return fmt.Errorf("%w, those in %s and in %s", errTwoCAs, a.ca.path, b.ca.path)
	}
	a.ca = b.ca
	return nil
}

// site is what the routes of one host pattern ask for.
type site struct {
	ask
	whole bool // one of them takes every path
}

// hostsOf collects the routes on a listener by host pattern; "" is any host.
func hostsOf(listenerName string, routes []*config.Route, cas map[string]*clientCA) (map[string]site, error) {
	out := map[string]site{}
	var problems []error
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
			if err := s.and(ask{r.TLS.MinVersion, cas[r.TLS.ClientCA]}); err != nil {
				problems = append(problems, fmt.Errorf("the routes of %s: %w (use one file with the certificates of both)", hostText(h), err))
			}
			s.whole = s.whole || r.Path == "/" && !r.Exact
			out[h] = s
		}
	}
	return out, errors.Join(problems...)
}

func hostText(pattern string) string {
	if pattern == "" {
		return "any host"
	}
	return pattern
}

// reach is what a connection for a host has to satisfy. A path that no route of
// the host takes falls through to the wildcard's routes and to those of any
// host, so it is what all that can be reached ask for.
func reach(hosts map[string]site, patterns ...string) (ask, error) {
	var all ask
	for _, pattern := range patterns {
		s := hosts[pattern]
		if err := all.and(s.ask); err != nil {
			return all, fmt.Errorf("paths of %s fall through to %s: %w (use one file with the certificates of both, or give %s a route for every path)",
				hostText(patterns[0]), hostText(pattern), err, hostText(patterns[0]))
		}
		if s.whole {
			break
		}
	}
	return all, nil
}

// newPolicy makes the configuration of handshakes under d. With client
// certificates crypto/tls sees to what follows: no resumption without one, none
// past its end, and a chain that has to lead to ca, which ca's digest in the
// mark makes sure of for tickets, too.
func (m *Manager) newPolicy(listenerName string, d demand, ca *clientCA, c *config.Listener) *policy {
	fallback := c.DefaultCertificate
	t := &tls.Config{
		MinVersion: d.minVersion,
		NextProtos: alpn(c.Protocols),
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return m.index.Load().certificateFor(hello, fallback)
		},
	}
	mark := fmt.Sprintf("%s min=%04x", listenerName, d.minVersion)
	if ca != nil {
		t.ClientAuth, t.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool
		mark += " ca=" + ca.digest
	}
	m.tickets.bind(t, mark, ca == nil)
	return &policy{mark: mark, config: t}
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
// listener that the configuration does not have. A connection that implements
// SetPolicy(string) is told the mark of the policy that it is judged by, which
// Admits wants to know.
func (m *Manager) TLSConfig(listenerName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"}, // what a listener may offer; the handshake's own configuration decides
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if c := m.alpn(hello); c != nil {
				return c, nil
			}
			p := m.policyFor(listenerName, hello)
			if p == nil {
				return m.refuse, nil
			}
			if c, ok := hello.Conn.(interface{ SetPolicy(mark string) }); ok {
				c.SetPolicy(p.mark)
			}
			return p.config, nil
		},
	}
}

// policyFor fixes the policy of a connection, nil refuses it. It runs before
// resumption, so a ticket does not help into a name without a certificate.
func (m *Manager) policyFor(listenerName string, hello *tls.ClientHelloInfo) *policy {
	x, l := m.index.Load(), m.listener(listenerName)
	if l == nil {
		return nil
	}
	if hello.ServerName == "" {
		if ip := localName(hello); ip != "" && x.find(ip) != nil {
			return l.policyOf(ip)
		}
		if x.byID[l.fallback] == nil {
			return nil
		}
		return l.any
	}
	name, ok := hostname.FromHost(hello.ServerName)
	if !ok || x.find(name) == nil {
		return nil
	}
	return l.policyOf(name)
}

// localName is the name of a server whose client sent none, as clients do that
// connect to an IP address (RFC 6066 section 3): the address that they reached,
// "" when it is not known.
func localName(hello *tls.ClientHelloInfo) string {
	if hello.Conn == nil {
		return ""
	}
	tcp, ok := hello.Conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("").String()
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

// Admits reports whether a connection may carry a request for host. It is the
// certificate's half of the 421 rule (RFC 9110 section 15.5.20); that both
// names are routed is the other half. policy is the mark that the connection
// was told in its handshake: host has to fall under the same policy of the
// listener now, so a connection from before a change of configuration or of a
// CA file is not good any more where that made a difference. And serverName has
// to be host, or one current certificate covers both. serverName "" is a client
// that sent none. Both names may be as they came from the client.
func (m *Manager) Admits(listenerName, policy, serverName, host string) bool {
	host, ok := hostname.FromHost(host)
	if !ok {
		return false
	}
	l := m.listener(listenerName)
	if l == nil || l.policyOf(host).mark != policy {
		return false
	}
	if serverName == "" {
		return l.ownsNameless(m.index.Load(), host)
	}
	if serverName, ok = hostname.FromHost(serverName); !ok {
		return false
	}
	if serverName == host {
		return true
	}
	e := m.index.Load().find(serverName)
	return e != nil && e.covers(host)
}

// ownsNameless reports whether a client without a server name was given a
// certificate for host: the default one, or that of an address, which it had to
// reach to be given it.
func (l *listener) ownsNameless(x *index, host string) bool {
	if c := x.byID[l.fallback]; c != nil && c.covers(host) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && x.find(ip.Unmap().String()) != nil
}
