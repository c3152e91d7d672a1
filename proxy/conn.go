package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"edge/hostname"
	"edge/proxy/exchange"
)

// connKey finds the *connection in the context of a request.
type connKey struct{}

// connection is what the requests of one client connection share. The TLS half
// is known only after the handshake, so the first request fills it in.
type connection struct {
	conn    exchange.Conn
	once    sync.Once
	arrived func() // called at the first request
}

// withConn returns a context for the requests of c, a connection to the listener
// name.
func withConn(ctx context.Context, c net.Conn, name string, arrived func()) context.Context {
	return context.WithValue(ctx, connKey{}, &connection{arrived: arrived, conn: exchange.Conn{
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

// passes is the 421 rule: whether a request for host may use a connection that
// was opened for serverName. It may when that is the same name, or when the two
// share certificate and TLS policy (Options.Same) and both are served on this
// listener. Otherwise a client could reach host without having met what host
// demands of a handshake, by coalescing on HTTP/2 or by resumption.
//
// A client without SNI got the default certificate; serverName is "" then, and
// Options.Same knows what that certificate covers.
func (s *Server) passes(t *site, serverName, host string) bool {
	if serverName == host {
		return true
	}
	if s.options.Same == nil || !s.options.Same(serverName, host) {
		return false
	}
	return serverName == "" || t.routed(serverName)
}
