package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"edge/hostname"
	"edge/proxy/exchange"
)

// connKey finds the *connection in the context of a request.
type connKey struct{}

// connection is what the requests of one client connection share. The TLS half
// is known only after the handshake, so the first request fills it in.
type connection struct {
	conn exchange.Conn
	once sync.Once
}

// withConn is the http.Server.ConnContext of the listener name.
func withConn(ctx context.Context, c net.Conn, name string) context.Context {
	return context.WithValue(ctx, connKey{}, &connection{conn: exchange.Conn{
		Peer:     addrPort(c.RemoteAddr()),
		Local:    addrPort(c.LocalAddr()),
		Listener: name,
	}})
}

// connOf returns the connection a request came on.
func connOf(r *http.Request) *exchange.Conn {
	c, ok := r.Context().Value(connKey{}).(*connection)
	if !ok { // not through one of our servers; tests of a handler alone
		c = new(connection)
	}
	c.once.Do(func() {
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
