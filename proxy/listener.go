package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"edge/config"
)

// Bounds of a client connection. There is no limit on how long a response may
// take: tokens take minutes. What is bounded is each single wait.
const (
	// headTimeout is what a client has for its TLS handshake and, again, for
	// each HTTP/1.1 request head (slowloris).
	headTimeout = 5 * time.Second
	// idleTimeout closes connections without a request. It is longer than the
	// idle time of the load balancers that may stand in front (60 s), so that
	// they are the ones to close. It also ends an HTTP/2 connection whose first
	// header block never ends.
	idleTimeout = 90 * time.Second
	// pingAfter and pingTimeout find HTTP/2 clients that vanished without a word.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	// writeTimeout ends an HTTP/2 connection that takes no byte at all.
	writeTimeout = time.Minute

	// newcomerTime is what connections without a request have for one when their
	// front is retired: enough for those that are under way, not for those that
	// were opened to be had.
	newcomerTime = time.Second
	newcomerPoll = 10 * time.Millisecond

	maxStreams   = 250
	streamWindow = 256 << 10
	connWindow   = 1 << 20
	// minHead is the least bound of a request head that a server is built
	// with. Routes with less are bounded by limit; the server grows only when
	// a route wants more, because a new bound means new connections.
	minHead = 64 << 10

	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
)

// socket is one bound address. It outlives configurations: a reload that keeps
// the address keeps the socket, so no connection attempt is ever refused, also
// when the listener has another name or other settings. Connections go to the
// front that is current when they arrive.
type socket struct {
	address string // as configured
	ln      net.Listener
	front   atomic.Pointer[front]
	done    chan struct{} // closed when the accept loop has ended
}

// settings are what a running http.Server cannot change.
type settings struct {
	name     string
	redirect bool
	http1    bool
	http2    bool
	head     int // MaxHeaderBytes
}

// front is one http.Server, fed by a socket. When its settings change, another
// takes over and this one is retired: its running requests go on, idle
// connections are closed, HTTP/2 clients are told by GOAWAY.
type front struct {
	settings
	server *http.Server
	conns  *handoff
	served chan struct{} // closed when Serve has returned

	newcomers newcomers
}

// settingsOf returns the settings for l under cfg.
func settingsOf(l *config.Listener, cfg *config.Config) settings {
	st := settings{name: l.Name, redirect: l.Redirect, head: minHead}
	if l.Redirect {
		return st
	}
	for _, p := range l.Protocols {
		st.http1 = st.http1 || p == config.H1
		st.http2 = st.http2 || p == config.H2
	}
	for _, r := range cfg.Routes {
		for int64(st.head) < r.Limits.Headers {
			st.head *= 2
		}
	}
	return st
}

// bind opens address for the listener name. The error gives a hint.
func (s *Server) bind(ctx context.Context, name, address string) (*socket, error) {
	listen := s.options.Listen
	if listen == nil {
		listen = new(net.ListenConfig).Listen
	}
	ln, err := listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w%s", name, err, bindHint(err))
	}
	return &socket{address: address, ln: ln, done: make(chan struct{})}, nil
}

func bindHint(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return " (another process listens there; find it with: ss -ltnp)"
	case errors.Is(err, syscall.EACCES):
		return " (ports below 1024 need root or CAP_NET_BIND_SERVICE)"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return " (no interface of this machine has that address)"
	}
	return ""
}

// accept hands connections to the current front until the socket is closed. An
// error while it is open, such as running out of descriptors, is waited out:
// giving up would turn a passing shortage into an outage.
func (s *Server) accept(k *socket) {
	defer close(k.done)
	backoff := acceptBackoffMin
	for {
		c, err := k.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.LogAttrs(context.Background(), slog.LevelWarn, "accept", slog.String("address", k.address), slog.Any("error", err))
			select {
			case <-time.After(backoff):
			case <-s.stopping:
				return
			}
			backoff = min(backoff*2, acceptBackoffMax)
			continue
		}
		backoff = acceptBackoffMin
		k.deliver(c)
	}
}

// deliver hands c to the current front. A front is replaced before it is retired,
// so one that is retired and still current is the last: the socket is closed.
func (k *socket) deliver(c net.Conn) {
	f := k.front.Load()
	for !f.conns.deliver(c) {
		next := k.front.Load()
		if next == f {
			_ = c.Close()
			return
		}
		f = next
	}
}

// newFront builds the server for st and starts it. It accepts nothing by
// itself: connections come from a socket.
func (s *Server) newFront(st settings, addr net.Addr) *front {
	f := &front{settings: st, conns: newHandoff(addr), served: make(chan struct{})}
	f.server = &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    st.head,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			f.newcomers.add(c)
			return withConn(ctx, c, st.name, func() { f.newcomers.remove(c) })
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				f.newcomers.remove(c)
				s.closed(c, st.name)
			}
		},
		DisableGeneralOptionsHandler: true,
		// A non-nil map without "h2" keeps net/http's own HTTP/2 out.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	var ln net.Listener = f.conns
	if st.redirect {
		f.server.Handler = s.redirector
	} else {
		ln = newHandshakes(clients{f.conns, s.part}, s.tlsConfig(st), s.log)
	}
	if st.http2 {
		f.server.HTTP2 = &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
			WriteByteTimeout:              writeTimeout,
		}
		if err := serveHTTP2(f.server); err != nil { // it only judges cipher suites, of a server.TLSConfig that is not set
			s.log.LogAttrs(context.Background(), slog.LevelError, "no HTTP/2 on this listener", slog.String("listener", st.name), slog.Any("error", err))
		}
	}
	go func() {
		defer close(f.served)
		_ = f.server.Serve(ln) // always ErrServerClosed or the handoff's net.ErrClosed
	}()
	return f
}

// tlsConfig returns the TLS configuration of a listener. Whoever makes it may
// choose ALPN itself; else it follows the listener's protocols.
func (s *Server) tlsConfig(st settings) *tls.Config {
	cfg := new(tls.Config)
	if s.options.TLS != nil {
		cfg = s.options.TLS(st.name)
	}
	if len(cfg.NextProtos) > 0 || cfg.GetConfigForClient != nil {
		return cfg
	}
	cfg = cfg.Clone()
	if st.http2 {
		cfg.NextProtos = append(cfg.NextProtos, http2.NextProtoTLS)
	}
	if st.http1 {
		cfg.NextProtos = append(cfg.NextProtos, "http/1.1")
	}
	return cfg
}

// retire lets the requests of f end, until ctx, then cuts what is left. A server
// that shuts down drops the request that it has just read, so connections that were
// opened a moment ago are served first: their clients would not try again.
func (f *front) retire(ctx context.Context) {
	_ = f.conns.Close()
	f.newcomers.wait(ctx)
	if f.server.Shutdown(ctx) != nil {
		_ = f.server.Close()
	}
	<-f.served
}

// handoff is the net.Listener through which a socket feeds a front.
type handoff struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// deliver is false when the front takes no more connections.
func (h *handoff) deliver(c net.Conn) bool {
	select {
	case <-h.closed:
		return false
	default:
	}
	select {
	case h.conns <- c:
		return true
	case <-h.closed:
		return false
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It may be called more than once.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }
