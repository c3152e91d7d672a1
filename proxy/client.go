package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// client is a connection that is about to speak TLS, or does. It learns which
// policy it is judged by from whoever chooses the configuration of its
// handshake, where it is the Conn of the tls.ClientHelloInfo.
type client struct {
	net.Conn
	mark    atomic.Pointer[string]
	greeted atomic.Bool         // the handshake has succeeded, and a request or HTTP/2 has begun
	closing atomic.Bool         // Close was called
	part    func(f func()) bool // Server.part
}

// clients is a net.Listener of them.
type clients struct {
	net.Listener
	part func(f func()) bool
}

// Accept implements net.Listener.
func (l clients) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &client{Conn: c, part: l.part}, nil
}

// clientOf returns the client under a TLS connection, nil when there is none.
func clientOf(c net.Conn) *client {
	if t, ok := c.(*tls.Conn); ok {
		c, _ := t.NetConn().(*client)
		return c
	}
	return nil
}

// SetPolicy takes the mark of the policy (Options.Admits).
func (c *client) SetPolicy(mark string) { c.mark.Store(&mark) }

// policy is the mark, "" when there is none. c may be nil.
func (c *client) policy() string {
	if c != nil {
		if mark := c.mark.Load(); mark != nil {
			return *mark
		}
	}
	return ""
}

// greet notes that the handshake has succeeded. c may be nil.
func (c *client) greet() {
	if c != nil {
		c.greeted.Store(true)
	}
}

// How long, and how much, the rest of what a refused client sends is read.
const (
	partTime  = 500 * time.Millisecond
	partBytes = 64 << 10
)

// Close implements net.Conn. A client that is refused in the handshake is to
// read why. In TLS 1.3 it has sent its first request by then, and closing a
// socket with unread bytes resets the connection, on which many systems throw
// away what has come: so it is closed for writing, read for a moment, and
// closed then.
func (c *client) Close() error {
	if c.policy() == "" || c.greeted.Load() || !c.closing.CompareAndSwap(false, true) {
		return c.Conn.Close()
	}
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return c.Conn.Close()
	}
	if !c.part(func() {
		_ = c.SetReadDeadline(time.Now().Add(partTime))
		_, _ = io.CopyN(io.Discard, c.Conn, partBytes)
		_ = c.Conn.Close()
	}) {
		return c.Conn.Close()
	}
	return nil
}

// part runs f, the last moments of a connection, in a goroutine that Shutdown
// waits for. It is false, and f does not run, when that has begun.
func (s *Server) part(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.running.Go(f)
	return true
}

// SetLinger is that of net.TCPConn.
func (c *client) SetLinger(sec int) error {
	if l, ok := c.Conn.(interface{ SetLinger(sec int) error }); ok {
		return l.SetLinger(sec)
	}
	return errors.ErrUnsupported
}

// refusals tells of clients that were refused for their certificates: the
// operator has to learn why somebody is locked out, and a client that tries
// again and again must not fill the log.
type refusals struct {
	mu     sync.Mutex
	begun  time.Time // the window
	lines  int       // in it
	untold int       // since the last line
}

const (
	refusalWindow = time.Minute
	refusalLines  = 20 // in a window
	maxSubject    = 200
)

// tell reports whether a refusal at now is worth a line, and how many were not
// since the last one.
func (r *refusals) tell(now time.Time) (untold int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.begun) >= refusalWindow {
		r.begun, r.lines = now, 0
	}
	if r.lines >= refusalLines {
		r.untold++
		return 0, false
	}
	r.lines++
	untold, r.untold = r.untold, 0
	return untold, true
}

// closed looks at a connection to a listener that has ended: when its handshake
// failed for the client's certificate, the log says so. Other failures are
// weather, and net/http tells of them at debug level.
func (s *Server) closed(c net.Conn, listener string) {
	t, ok := c.(*tls.Conn)
	if !ok || clientOf(c).policy() == "" { // the handshake came to nothing
		return
	}
	reason, subject, err := refusal(t.HandshakeContext(context.Background())) // is over, so this is its result
	if reason == "" {
		return
	}
	untold, ok := s.refusals.tell(time.Now())
	if !ok {
		return
	}
	attrs := []slog.Attr{
		slog.String("reason", reason), slog.String("peer", c.RemoteAddr().String()), slog.String("listener", listener),
		slog.String("server_name", t.ConnectionState().ServerName), slog.Any("error", err),
	}
	if subject != "" {
		attrs = append(attrs, slog.String("certificate", subject))
	}
	if untold > 0 {
		attrs = append(attrs, slog.Int("untold", untold))
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "client refused in the handshake", attrs...)
}

// noCertificate is how crypto/tls says that none came; it has no type for it.
const noCertificate = "tls: client didn't provide a certificate"

// refusal is why a handshake failed for the client's certificate; "" when it
// did not. The subject is the client's own word.
func refusal(handshake error) (reason, subject string, err error) {
	if handshake == nil {
		return "", "", nil
	}
	if handshake.Error() == noCertificate {
		return "client_certificate_missing", "", handshake
	}
	bad, ok := errors.AsType[*tls.CertificateVerificationError](handshake)
	if !ok {
		return "", "", nil
	}
	if len(bad.UnverifiedCertificates) > 0 {
		subject = bad.UnverifiedCertificates[0].Subject.String()
		subject = subject[:min(len(subject), maxSubject)]
	}
	return "client_certificate_refused", subject, bad.Err
}
