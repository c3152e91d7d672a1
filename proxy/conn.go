package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"edge/config"
	"edge/hostname"
	"edge/proxy/exchange"
)

// connKey finds the *connection in the context of a request.
type connKey struct{}

// connection is what the requests of one client connection share. The TLS half
// is known only after the handshake, so the first request fills it in.
type connection struct {
	conn    exchange.Conn
	client  *client // nil without TLS
	once    sync.Once
	arrived func() // called at the first request
}

// withConn returns a context for the requests of c, a connection to the listener
// name.
func withConn(ctx context.Context, c net.Conn, name string, arrived func()) context.Context {
	return context.WithValue(ctx, connKey{}, &connection{arrived: arrived, client: clientOf(c), conn: exchange.Conn{
		Peer:     addrPort(c.RemoteAddr()),
		Local:    addrPort(c.LocalAddr()),
		Listener: name,
	}})
}

// connOf returns the connection a request came on.
func connOf(r *http.Request) *exchange.Conn {
	c, ok := r.Context().Value(connKey{}).(*connection)
	if !ok { // not through one of our servers; tests of a handler alone
		c = &connection{arrived: func() {}}
	}
	c.once.Do(func() {
		c.arrived()
		c.conn.Protocol = r.Proto
		if r.TLS == nil {
			return
		}
		c.conn.TLS = true
		c.conn.TLSState = r.TLS
		c.client.greet()
		c.conn.Policy = c.client.policy()
		c.conn.ClientCertificate = exchange.VerifiedLeaf(r.TLS)
		c.conn.ServerName = r.TLS.ServerName
		if name, ok := hostname.FromHost(r.TLS.ServerName); ok {
			c.conn.ServerName = name
		}
	})
	if c.conn.Protocol != r.Proto { // HTTP/1 names its version in each request
		conn := c.conn
		conn.Protocol = r.Proto
		return &conn
	}
	return &c.conn
}

// newcomers are the connections of a front that have not brought a request yet.
type newcomers struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (n *newcomers) add(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conns == nil {
		n.conns = map[net.Conn]struct{}{}
	}
	n.conns[c] = struct{}{}
}

func (n *newcomers) remove(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

func (n *newcomers) any() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns) > 0
}

// wait returns when each has brought a request or is gone, or the time is over.
func (n *newcomers) wait(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, newcomerTime)
	defer cancel()
	tick := time.NewTicker(newcomerPoll)
	defer tick.Stop()
	for n.any() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// addrPort is the zero AddrPort for what is not TCP.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// passes is the 421 rule: whether a request for host may use the connection it
// came on. It may when the listener's TLS policy for host is the one that the
// connection was accepted under, and host is the connection's server name or
// shares a certificate with it (Options.Admits), and both are served on this
// listener. Otherwise a client could reach host without having met what host
// demands of a handshake: by coalescing on HTTP/2, by resumption, or over a
// connection that is older than the demand.
//
// A client without SNI got the default certificate; serverName is "" then, and
// Options.Admits knows what that certificate covers.
func (s *Server) passes(t *site, c *exchange.Conn, host string) bool {
	if !s.admits(c, host) {
		return false
	}
	return c.ServerName == host || c.ServerName == "" || t.routed(c.ServerName)
}

func (s *Server) admits(c *exchange.Conn, host string) bool {
	if s.options.Admits == nil {
		return c.ServerName == host
	}
	return s.options.Admits(c.Listener, c.Policy, c.ServerName, host)
}

// stale reports whether the connection is good for nothing any more: not for
// the name that it was made for, or its client's certificate has expired
// meanwhile.
func (s *Server) stale(c *exchange.Conn, now time.Time) bool {
	return expired(c, now) || c.ServerName != "" && !s.admits(c, c.ServerName)
}

func expired(c *exchange.Conn, now time.Time) bool {
	return c.ClientCertificate != nil && now.After(c.ClientCertificate.NotAfter)
}

// meets reports whether the connection has what a route demands, whatever its
// host's policy is: between the two halves of a reload, certificates and
// routes, a host may have the policy of the one and the routes of the other.
func meets(c *exchange.Conn, demand config.TLS) bool {
	if demand.ClientCA != "" && c.ClientCertificate == nil {
		return false
	}
	return c.TLSState == nil || c.TLSState.Version >= demand.MinVersion
}
