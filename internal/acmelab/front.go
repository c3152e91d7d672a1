package acmelab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"
)

// headerTimeout bounds how long a client may take over its request header.
const headerTimeout = 10 * time.Second

// front is one HTTP/1.1 server of the lab, which can be taken off the net.
// HTTP/2 is off, so that a handler can always hijack the connection to cut it.
type front struct {
	url  string
	ln   *cutListener
	srv  *http.Server
	done chan error
}

// serve runs h on addr ("" is a free port of 127.0.0.1), over TLS if cert is
// not nil.
func serve(addr string, cert *tls.Certificate, h http.Handler) (*front, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("acmelab: %w", err)
	}
	f := &front{
		url:  "http://" + ln.Addr().String(),
		ln:   &cutListener{Listener: ln, open: map[net.Conn]struct{}{}},
		done: make(chan error, 1),
		srv: &http.Server{
			Handler:           h,
			ReadHeaderTimeout: headerTimeout,
			ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
			Protocols:         new(http.Protocols),
		},
	}
	f.srv.Protocols.SetHTTP1(true)
	if cert == nil {
		go func() { f.done <- f.srv.Serve(f.ln) }()
		return f, nil
	}
	f.url = "https://" + ln.Addr().String()
	f.srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}
	go func() { f.done <- f.srv.ServeTLS(f.ln, "", "") }()
	return f, nil
}

// setDown takes the server off the net or back on it. The address stays bound,
// so that it cannot be lost to another process: connections are accepted and
// closed at once, and open ones are cut.
func (f *front) setDown(down bool) { f.ln.setDown(down) }

func (f *front) close() error {
	err := f.srv.Close()
	if served := <-f.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("acmelab: close %s: %w", f.url, err)
	}
	return nil
}

// cut ends the connection of a request without an answer.
func cut(w http.ResponseWriter) {
	if held, ok := w.(*heldAnswer); ok {
		held.cut = true // by the tap, which has the connection
		return
	}
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
}

// cutListener knows its connections and can refuse them.
type cutListener struct {
	net.Listener

	mu   sync.Mutex
	down bool
	open map[net.Conn]struct{}
}

// Accept implements net.Listener.
func (l *cutListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		down := l.down
		tracked := &cutConn{Conn: c, l: l}
		if !down {
			l.open[tracked] = struct{}{}
		}
		l.mu.Unlock()
		if !down {
			return tracked, nil
		}
		_ = c.Close()
	}
}

func (l *cutListener) setDown(down bool) {
	l.mu.Lock()
	l.down = down
	var open []net.Conn
	if down {
		for c := range l.open {
			open = append(open, c)
		}
	}
	l.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

// cutConn takes itself off the list of its listener.
type cutConn struct {
	net.Conn
	l *cutListener
}

// Close implements net.Conn.
func (c *cutConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.open, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// selfSigned makes a certificate for the loopback addresses and the host of
// addr, its own issuer, in the two forms that a server and a client need.
func selfSigned(addr string) (*tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("acmelab: key of the CA's own certificate: %w", err)
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if host, _, err := net.SplitHostPort(addr); err == nil {
		if ip := net.ParseIP(host); ip != nil {
			ips = append(ips, ip)
		}
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: "acmelab API"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:              []string{"localhost"},
		IPAddresses:           ips,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("acmelab: the CA's own certificate: %w", err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// wait waits for d and reports false if ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
