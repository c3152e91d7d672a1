// Package micro times the primitives under the lab's figures, and the copy loop:
//
//	go test -bench . ./lab/bench/micro
package micro

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

func BenchmarkSignP256(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("x"))
	for b.Loop() {
		ecdsa.SignASN1(rand.Reader, key, digest[:])
	}
}

func BenchmarkSignRSA2048PSS(b *testing.B) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("x"))
	for b.Loop() {
		rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], nil)
	}
}

// BenchmarkX25519 is a server's share: generate and agree.
func BenchmarkX25519(b *testing.B) {
	peer, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		key, _ := ecdh.X25519().GenerateKey(rand.Reader)
		key.ECDH(peer.PublicKey())
	}
}

func BenchmarkMLKEM768Encapsulate(b *testing.B) {
	key, err := mlkem.GenerateKey768()
	if err != nil {
		b.Fatal(err)
	}
	wire := key.EncapsulationKey().Bytes()
	for b.Loop() {
		k, _ := mlkem.NewEncapsulationKey768(wire)
		k.Encapsulate()
	}
}

func BenchmarkSealGCM(b *testing.B) {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{200, 1400, 16384} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			src, dst, nonce := make([]byte, n), make([]byte, 0, n+16), make([]byte, 12)
			b.SetBytes(int64(n))
			for b.Loop() {
				gcm.Seal(dst, nonce, src, nil)
			}
		})
	}
}

// BenchmarkTLSWrite is a tls.Conn's Write without the system call.
func BenchmarkTLSWrite(b *testing.B) {
	for _, n := range []int{200, 16384} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			server, _ := established(b)
			p := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				server.Write(p)
			}
		})
	}
}

// established returns a server's connection whose handshake is done, and what
// drops the bytes that it writes from then on.
func established(tb testing.TB) (server *tls.Conn, to *sink) {
	tb.Helper()
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS() // for its certificate
	config := &tls.Config{Certificates: certified.TLS.Certificates, DynamicRecordSizingDisabled: true}
	certified.Close()

	near, far := net.Pipe()
	to = &sink{Conn: far}
	client := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	read := make(chan error, 1)
	go func() {
		_, err := client.Read(make([]byte, 1)) // the handshake first
		read <- err
	}()
	tb.Cleanup(func() { near.Close(); <-read })
	server = tls.Server(to, config)
	if err := server.Handshake(); err != nil {
		tb.Fatal(err)
	}
	to.drop.Store(true)
	return server, to
}

// sink is a connection that can be made to drop what is written to it.
type sink struct {
	net.Conn
	drop    atomic.Bool
	dropped atomic.Int64
}

func (c *sink) Write(p []byte) (int, error) {
	if c.drop.Load() {
		c.dropped.Add(int64(len(p)))
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// A record of TLS 1.3 has a header of 5 bytes, a byte for its type and a tag of
// 16 (RFC 8446 section 5.2).
func TestAWriteIsOneRecord(t *testing.T) {
	server, to := established(t)
	if n, err := server.Write(make([]byte, 200)); n != 200 || err != nil {
		t.Fatalf("got %d, %v, want 200 bytes taken", n, err)
	}
	if got := to.dropped.Load(); got != 222 {
		t.Errorf("%d bytes were written, want 222", got)
	}
}
