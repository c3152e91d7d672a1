package upstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
)

// cutTLS ends the connection below TLS, without its close_notify.
func cutTLS(t *turn) error {
	secure, ok := t.conn.(*tls.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	return fin(&turn{conn: secure.NetConn()})
}

// secured is a world of TLS, and what makes a pool trust it. Virtual time begins
// in the year 2000, so that the certificate has to be old.
func secured(t *testing.T) (func(world) world, func(*config.Pool)) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	over := func(w world) world {
		plain := w.listen
		w.scheme = "https"
		w.listen = func(ctx context.Context, network, address string) (net.Listener, error) {
			ln, err := plain(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return tls.NewListener(ln, conf), nil
		}
		return w
	}
	return over, func(c *config.Pool) { c.CA = ca }
}

func tlsLies() []lie {
	hello := reply(200, "hello").once()
	poison := h1("200 OK", "Content-Length: 6") + "poison"
	return append(h1Surplus(), []lie{
		tell("a reply in a record of its own", "9112 9.2", hello, say(sized("hello")), say(poison)),
		tell("no length, close_notify", "9112 9.8", hello, say(h1("200 OK")+"hello"), fin),
		tell("no length, FIN without close_notify", "9112 9.8", cuts("hello"), say(h1("200 OK")+"hello"), cutTLS),
		tell("no length, RST", "9112 9.8", cuts("hello"), say(h1("200 OK")+"hello"), pause(time.Millisecond), rst),
		tell("a length, FIN without close_notify", "9112 9.8", hello, say(sized("hello")), cutTLS),
		tell("a length short by one, close_notify", "9112 9.8", cuts("hell"), say(h1("200 OK", "Content-Length: 5")+"hell"), fin),
		tell("chunks without a last, close_notify", "9112 9.8", cuts("hello"), say(chunked("5\r\nhello\r\n")), fin),
		tell("no reply, close_notify", "9112 9.8", fails(lost, ""), fin).posting(),
		tell("no reply, FIN without close_notify", "9112 9.8", fails(lost, ""), cutTLS).posting(),
		tell("close_notify while idle", "9112 9.5", hello, say(sized("hello")), pause(lieSettle/2), fin),
		tell("FIN without close_notify while idle", "9112 9.5", hello, say(sized("hello")), pause(lieSettle/2), cutTLS),
		tell("a reply in two hundred records", "9112 6.3", reply(200, strings.Repeat("x", 200)),
			say(h1("200 OK", "Content-Length: 200")), drip(strings.Repeat("x", 200), time.Microsecond)),
	}...)
}

func TestLiesOfHTTP1OverTLS(t *testing.T) {
	over, trust := secured(t)
	for _, l := range tlsLies() {
		t.Run("virtual, "+l.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { check(t, over(virtual()), &l, speakH1, trust) })
		})
		t.Run("loopback, "+l.name, func(t *testing.T) {
			t.Parallel()
			check(t, over(loopback()), &l, speakH1, trust)
		})
	}
}
