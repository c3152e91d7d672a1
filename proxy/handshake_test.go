package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"edge/internal/memnet"
)

// shaker serves over handshakes as a front does, in memory.
type shaker struct {
	*handshakes
	network memnet.Network
	addr    string

	mu     sync.Mutex
	logs   bytes.Buffer
	stacks []string      // of the handshakes, once their hellos have come
	panics bool          // the next handshake does
	ended  chan net.Conn // connections that net/http has given up
}

// Write takes the log.
func (s *shaker) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logs.Write(p)
}

// held waits until n slots are held.
func (s *shaker) held(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); len(s.slots) != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d slots are held, want %d", len(s.slots), n)
		}
	}
}

// own is how the stack of a handshake looks that has a goroutine of its own.
const own = "proxy.(*handshakes).shake"

// patience bounds waits that nothing but a fault makes long.
const patience = 20 * time.Second

func newShaker(t *testing.T, slots int) *shaker {
	t.Helper()
	s := &shaker{ended: make(chan net.Conn, 100)}
	ln, err := s.network.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	cert := selfSigned(t)
	cfg := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.panics {
			s.panics = false
			panic("on purpose")
		}
		s.stacks = append(s.stacks, string(debug.Stack()))
		return cert, nil
	}}
	inner := clients{ln, func(f func()) bool { f(); return true }}
	s.handshakes = newHandshakes(inner, cfg, slog.New(slog.NewTextHandler(s, nil)))
	s.slots = make(chan struct{}, slots)
	server := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }),
		ReadHeaderTimeout: headTimeout,
		ErrorLog:          slog.NewLogLogger(slog.NewTextHandler(s, nil), slog.LevelInfo), // tells a panic when its goroutine was first
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				s.ended <- c
			}
		},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(s.handshakes)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return s
}

func selfSigned(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// dial is a client that has said nothing yet.
func (s *shaker) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := s.network.Dial(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// get makes a request on a new connection.
func (s *shaker) get(t *testing.T) (body string, err error) {
	t.Helper()
	c := tls.Client(s.dial(t), &tls.Config{ServerName: "a.test", InsecureSkipVerify: true})
	defer func() { _ = c.Close() }()
	if err := c.HandshakeContext(t.Context()); err != nil {
		return "", err
	}
	return ask(c)
}

// ask makes a request.
func ask(c net.Conn) (body string, err error) {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// alone is how many handshakes had a goroutine of their own, and of how many.
func (s *shaker) alone() (alone, all int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, stack := range s.stacks {
		if strings.Contains(stack, own) {
			alone++
		}
	}
	return alone, len(s.stacks)
}

func TestHandshakeHasAGoroutineOfItsOwn(t *testing.T) {
	s := newShaker(t, maxHandshakes)
	for range 20 {
		if body, err := s.get(t); body != "hello" || err != nil {
			t.Fatalf("got %q, %v", body, err)
		}
	}
	if alone, all := s.alone(); all != 20 || alone < 15 { // the connection's goroutine may be first
		t.Errorf("%d of %d", alone, all)
	}
	s.held(t, 0)
}

// Clients that connect and say nothing take all slots; who comes then is served
// by the goroutine of its connection, at once.
func TestSilentClientsKeepNobodyWaiting(t *testing.T) {
	s := newShaker(t, 3)
	for range 10 {
		s.dial(t)
	}
	s.held(t, 3)
	if body, err := s.get(t); body != "hello" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
	s.held(t, 3) // so it did not wait for the others to end
	if alone, all := s.alone(); all != 1 || alone != 0 {
		t.Errorf("%d of %d handshakes had a goroutine of their own, want none of 1", alone, all)
	}
}

func TestHandshakeHasHeadTimeout(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the bound of a handshake, 5 s")
	}
	t.Parallel()
	s := newShaker(t, 1)
	begin := time.Now()
	own, late := s.dial(t), s.dial(t) // with a goroutine of its own, and without
	_, _ = late.Write([]byte{0x16, 3, 1})
	for _, c := range []net.Conn{own, late} {
		_, err := io.ReadAll(c)
		if d := time.Since(begin); d < headTimeout-time.Second || d > 3*headTimeout {
			t.Errorf("%v after %v, want the end after about %v", err, d, headTimeout)
		}
	}
	s.held(t, 0)
	for range 2 {
		<-s.ended
	}
}

// A connection outlives the deadline of its handshake.
func TestDeadlineOfTheHandshakeEndsWithIt(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the bound of a handshake, 5 s")
	}
	t.Parallel()
	s := newShaker(t, 1)
	c := tls.Client(s.dial(t), &tls.Config{ServerName: "a.test", InsecureSkipVerify: true})
	for n := range 2 {
		if n > 0 {
			time.Sleep(headTimeout + 500*time.Millisecond)
		}
		if body, err := ask(c); body != "hello" || err != nil {
			t.Errorf("request %d: %q, %v", n, body, err)
		}
	}
}

// Whoever looks at a connection that has ended learns why, as without us.
func TestFailedHandshakeIsKnownToItsConnection(t *testing.T) {
	s := newShaker(t, 1)
	c := tls.Client(s.dial(t), &tls.Config{ServerName: "a.test", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
	if err := c.HandshakeContext(t.Context()); err == nil {
		t.Fatal("TLS 1.1 is spoken")
	}
	ended := (<-s.ended).(*tls.Conn)
	if err := ended.HandshakeContext(context.Background()); err == nil || !strings.Contains(err.Error(), "unsupported versions") {
		t.Errorf("got %v, want what was wrong", err)
	}
	if clientOf(ended) == nil {
		t.Error("the client is not below its connection")
	}
}

func TestPlainRequestIsToldThatThisIsTLS(t *testing.T) {
	s := newShaker(t, 1)
	c := s.dial(t)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	reply, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, io.EOF) || !strings.Contains(string(reply), "HTTP request to an HTTPS server") {
		t.Errorf("got %q, %v", reply, err)
	}
}

func TestPanicInAHandshakeEndsItsConnectionOnly(t *testing.T) {
	s := newShaker(t, maxHandshakes)
	s.panics = true
	if _, err := s.get(t); err == nil {
		t.Error("the handshake succeeded")
	}
	if body, err := s.get(t); body != "hello" || err != nil {
		t.Errorf("the next one: %q, %v", body, err)
	}
	s.held(t, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.logs.String(); !strings.Contains(got, "on purpose") || !strings.Contains(got, "getCertificate") {
		t.Errorf("got log %q, want the panic and its stack", got)
	}
}
