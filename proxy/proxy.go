// Package proxy is edge's engine room: it listens, decides which route a
// request takes, passes it through the route's layers to a pool, and streams
// the reply back with a flush at every read.
//
//	s := proxy.New(proxy.Options{TLS: manager.TLSConfig, Admits: manager.Admits})
//	change, err := s.Prepare(ctx, cfg) // binds and builds; changes nothing in force
//	if err != nil {
//		return err // the last good configuration goes on
//	}
//	change.Commit() // cannot fail
//	…
//	err = s.Shutdown(ctx)
//
// # The way of a request
//
//	socket → front (TLS, net/http) → dispatch: admit, table → the route's layers → upstream.Pool
//
// A socket is a bound address and outlives configurations. A table is one
// configuration and is immutable; a request keeps the one it started with. The
// layers are listed in stack.go, with the reason for the place of each. Every error that a client sees is made by fail.
//
// # What is refused
//
// Plaintext, except to be redirected. A host that the connection is not for
// (421). CONNECT and TRACE. A request whose path means another route once it is
// decoded (400). Upgrades other than to websocket are answered as if nobody had
// asked. Ambiguous framing: what net/http can still see is 400; when it has
// removed Content-Length in favour of chunked already, an HTTP/1.1 connection
// ends with that response, because RFC 9112 section 6.1 forbids to read on.
//
// HTTP/2 header blocks that do not end are cut off by a guard, since x/net's
// server bounds only their bytes. net/http itself answers what it cannot parse
// (400) and heads above its bound (431), in plain text and without a Record.
package proxy

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"edge/proxy/exchange"
	"edge/proxy/upstream"
)

// Server serves one configuration after another. All methods may be called
// concurrently, but there is at most one Change at a time.
type Server struct {
	options    Options
	log        *slog.Logger
	registry   *upstream.Registry
	handler    http.Handler // of TLS fronts
	redirector http.Handler // of redirect fronts

	table    atomic.Pointer[table]
	active   atomic.Int64  // exchanges that have not ended
	idle     chan struct{} // told when active falls to 0 while stopping
	stopping chan struct{} // closed by Shutdown
	tunnels  tunnels
	refusals refusals
	running  sync.WaitGroup // accept loops, and fronts that are being retired

	mu       sync.Mutex
	pending  bool               // a Change is neither committed nor aborted
	stopped  bool               // Shutdown was called
	set      *upstream.Set      // in force
	sockets  map[string]*socket // by listener name, in force
	draining context.CancelFunc // cuts what retired fronts still serve; nil before the first
	drain    context.Context    //nolint:containedctx // the life of retired fronts, which no caller's context has
}

// Options connect a Server to the rest of edge. The zero value listens on real
// sockets, has no certificates and tells nobody.
type Options struct {
	Logger *slog.Logger // nil is slog.Default()

	// TLS returns the configuration of a listener. It is called when the
	// listener starts; what a handshake gets is then up to the configuration.
	// It chooses ALPN by NextProtos or GetConfigForClient; when it sets
	// neither, the listener's protocols are offered.
	TLS func(listener string) *tls.Config

	// Admits reports whether a connection to a listener may carry a request for
	// host: host falls under the TLS policy that the connection was accepted
	// under, and host is serverName or one current certificate covers both.
	// policy is what SetPolicy was told of the connection, by whoever made the
	// configuration of its handshake (tls.ClientHelloInfo.Conn has that method);
	// "" when it was not. serverName is "" for a client that sent none. It is
	// asked for each request. nil: a connection is for its server name only.
	Admits func(listener, policy, serverName, host string) bool

	// HTTP01 wraps the handler of redirect listeners. nil wraps nothing.
	HTTP01 func(next http.Handler) http.Handler

	// Observe is told at the end of each request, from the goroutine that ended
	// it: it must not block. nil observes nothing. The Record is the observer's.
	Observe func(*Record)

	// Listen binds an address. nil is net.ListenConfig.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)

	// Dial opens upstream connections. nil is net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// New returns a Server that serves nothing until a Change is committed.
func New(o Options) *Server {
	s := &Server{
		options:  o,
		log:      o.Logger,
		idle:     make(chan struct{}, 1),
		stopping: make(chan struct{}),
		sockets:  map[string]*socket{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.drain, s.draining = context.WithCancel(context.Background())
	s.registry = upstream.NewRegistry(upstream.Options{Logger: s.log, Dial: o.Dial})
	s.table.Store(&table{})
	s.handler = exchange.ToHTTP(s.entry(), connOf)
	s.redirector = exchange.ToHTTP(s.redirects(), connOf)
	if o.HTTP01 != nil {
		s.redirector = o.HTTP01(s.redirector)
	}
	return s
}

// dispatch takes a request to its route, or refuses it.
func (s *Server) dispatch(e *exchange.Exchange) {
	t := s.table.Load().sites[e.Conn.Listener]
	r, reason := s.decide(t, e)
	if reason != "" {
		fail(e, reason, nil)
		return
	}
	e.Route, e.Pool = r.config.Name, r.config.Pool
	r.handle(e)
}

// decide cleans the request and finds its route, or the reason to refuse it.
func (s *Server) decide(t *site, e *exchange.Exchange) (*route, Reason) {
	if t == nil { // the listener was renamed or removed under an old connection
		leave(e)
		return nil, Misdirected
	}
	host, reason := admit(e, t.listener)
	if reason != "" {
		return nil, reason
	}
	if !t.routed(host) {
		return nil, NoRoute
	}
	if expired(e.Conn, e.Start) || !s.passes(t, e.Conn, host) {
		if s.stale(e.Conn, e.Start) {
			leave(e) // or a client that does not open another one on a 421 gets nothing else
		}
		return nil, Misdirected
	}
	r := t.match(host, e.Path)
	if !plainPath(e.Path) {
		path, ok := lenientPath(e.Path)
		if !ok || t.match(host, path) != r {
			return nil, BadRequest
		}
	}
	switch {
	case r == nil:
		return nil, NoRoute
	case !meets(e.Conn, r.config.TLS):
		return nil, Misdirected
	}
	return r, ""
}

// Addr returns the address that a listener is bound to, or nil. It tells the
// port when the configuration says 0.
func (s *Server) Addr(listener string) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.sockets[listener]; k != nil {
		return k.ln.Addr()
	}
	return nil
}

// Status is what a Server is doing.
type Status struct {
	Listeners []ListenerStatus      `json:"listeners"` // in name order
	Pools     []upstream.PoolStatus `json:"pools"`
	Active    int64                 `json:"active"` // requests that have not ended, tunnels among them
	Stopping  bool                  `json:"stopping"`
}

// ListenerStatus is one bound listener.
type ListenerStatus struct {
	Name     string `json:"name"`
	Address  string `json:"address"` // bound, so with the real port
	Redirect bool   `json:"redirect"`
}

// Status reports what the Server is doing. It takes no lock that a request needs.
func (s *Server) Status() Status {
	st := Status{Pools: s.registry.Status(), Active: s.active.Load(), Stopping: s.isStopping()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range sortedKeys(s.sockets) {
		k := s.sockets[name]
		st.Listeners = append(st.Listeners, ListenerStatus{
			Name: name, Address: k.ln.Addr().String(), Redirect: k.front.Load().redirect,
		})
	}
	return st
}

func (s *Server) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}
