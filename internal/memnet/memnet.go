// Package memnet is a network in memory: listeners and connections that behave
// like TCP on loopback, with bounded buffers, half close, deadlines and reset,
// but without the kernel. Inside a testing/synctest bubble a goroutine that
// waits for it is durably blocked, so time can jump; with real sockets it
// cannot.
package memnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// backlog is the number of connections that wait for Accept.
const backlog = 128

// firstPort is the first of those given out for port 0.
const firstPort = 30000

// Network is a network of its own. Listen and Dial have the form of the
// functions of the same name of net.ListenConfig and net.Dialer. The zero value
// is ready to use; methods may be called concurrently.
type Network struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]*listener
	last      uint16 // port given out, less firstPort
	dials     int
}

// Listen binds an IP address and port. The host "" is 127.0.0.1, port 0 a free
// one. It refuses an address that is in use, with syscall.EADDRINUSE.
func (n *Network) Listen(_ context.Context, network, address string) (net.Listener, error) {
	addr, err := parse(address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr.Port() == 0 {
		addr = netip.AddrPortFrom(addr.Addr(), n.portLocked())
	}
	if n.listeners[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: net.TCPAddrFromAddrPort(addr), Err: syscall.EADDRINUSE}
	}
	if n.listeners == nil {
		n.listeners = map[netip.AddrPort]*listener{}
	}
	l := &listener{network: n, addr: addr, conns: make(chan *Conn, backlog), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// Dial connects to an address that Listen has bound. Without a listener it
// fails with syscall.ECONNREFUSED; with a full backlog it waits.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	addr, err := parse(address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	fail := func(err error) error {
		return &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(addr), Err: err}
	}
	n.mu.Lock()
	n.dials++
	l := n.listeners[addr]
	local := netip.AddrPortFrom(addr.Addr(), n.portLocked())
	n.mu.Unlock()
	if l == nil {
		return nil, fail(syscall.ECONNREFUSED)
	}
	client, server := pipe(local, addr)
	select {
	case <-l.closed:
		return nil, fail(syscall.ECONNREFUSED)
	case <-ctx.Done():
		return nil, fail(ctx.Err())
	case l.conns <- server:
	}
	select {
	case <-l.closed: // meanwhile, so that Close may have missed it
		l.drain()
	default:
	}
	return client, nil
}

// Dials is the number of calls of Dial so far.
func (n *Network) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// portLocked gives out a port that no listener has.
func (n *Network) portLocked() uint16 {
	for {
		n.last = (n.last + 1) % firstPort
		port := firstPort + n.last
		used := false
		for addr := range n.listeners {
			used = used || addr.Port() == port
		}
		if !used {
			return port
		}
	}
}

func parse(address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return addr, fmt.Errorf("memnet knows IP addresses only: %w", err)
	}
	return addr, nil
}

// listener implements net.Listener.
type listener struct {
	network *Network
	addr    netip.AddrPort
	conns   chan *Conn
	closed  chan struct{}
	once    sync.Once
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed: // rather than a connection that waits too
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	default:
	}
	select {
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	case c := <-l.conns:
		return c, nil
	}
}

// Close implements net.Listener. Connections that nobody has accepted are
// reset.
func (l *listener) Close() error {
	err := &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	first := false
	l.once.Do(func() {
		first = true
		l.network.mu.Lock()
		delete(l.network.listeners, l.addr)
		l.network.mu.Unlock()
		close(l.closed)
		l.drain()
	})
	if !first {
		return err
	}
	return nil
}

// drain resets the connections that nobody has accepted.
func (l *listener) drain() {
	for {
		select {
		case c := <-l.conns:
			c.Reset()
		default:
			return
		}
	}
}

// Addr implements net.Listener; it is a *net.TCPAddr.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
