package tlsmgr

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/tlsmgr/vault"
)

// twoKeys serves a.test, and clients without a server name, with a certificate
// for each kind of key. That of RSA ends last, is the first by its id, and the
// first in the configuration's words.
func twoKeys(t *testing.T) *Manager {
	t.Helper()
	ca, now, dir := newTestCA(t), time.Now(), t.TempDir()
	m, _ := policyManager(t, func(cfg *config.Config) {
		for id, c := range map[string]struct {
			kind config.KeyType
			left time.Duration
		}{"1": {config.RSA2048, 50 * time.Hour}, "2": {config.P256, time.Hour}} {
			chain, key := ca.issue(t, c.kind, now, now.Add(c.left), "a.test")
			pem := filepath.Join(dir, id)
			writeFile(t, pem+".pem", chain)
			writeFile(t, pem+".key", key)
			cfg.Certificates[id] = &config.Certificate{Name: id, File: &config.CertificateFile{
				Certificate: pem + ".pem", PrivateKey: config.Secret{Ref: "file:" + pem + ".key"},
			}}
		}
		delete(cfg.Certificates, "file")
	})
	return m
}

// A signature with RSA costs thirty times one with ECDSA, so who understands
// both is given ECDSA, whatever lives longer and whatever the client prefers.
func TestWhoUnderstandsBothIsGivenECDSA(t *testing.T) {
	m := twoKeys(t)
	rsaSuite := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	both := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	for what, c := range map[string]struct {
		version uint16
		suites  []uint16
		want    x509.PublicKeyAlgorithm
	}{
		"TLS 1.3":                       {tls.VersionTLS13, nil, x509.ECDSA},
		"TLS 1.2":                       {tls.VersionTLS12, nil, x509.ECDSA},
		"TLS 1.2, RSA first":            {tls.VersionTLS12, both, x509.ECDSA},
		"TLS 1.2 of who knows RSA only": {tls.VersionTLS12, rsaSuite, x509.RSA},
	} {
		state, err := shake(t, m, &tls.Config{ServerName: "a.test", InsecureSkipVerify: true, MaxVersion: c.version, CipherSuites: c.suites})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := state.PeerCertificates[0].PublicKeyAlgorithm; got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

func TestOpenSSLThatUnderstandsBothIsGivenECDSA(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	switch {
	case err != nil && os.Getenv("EDGE_CI") == "1":
		t.Fatal(err)
	case err != nil:
		t.Skip("openssl is not installed")
	}
	m := twoKeys(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", m.TLSConfig("https"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go serveHandshakes(l)
	const onlyRSA = "RSA-PSS+SHA256:RSA+SHA256"
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		for sigalgs, want := range map[string]string{
			onlyRSA + ":ECDSA+SHA256": "id-ecPublicKey", "ECDSA+SHA256": "id-ecPublicKey", onlyRSA: "rsaEncryption",
		} {
			cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", l.Addr().String(), "-servername", "a.test", version, "-sigalgs", sigalgs)
			out, _ := cmd.CombinedOutput()
			certificate := exec.CommandContext(t.Context(), openssl, "x509", "-noout", "-text")
			certificate.Stdin = strings.NewReader(string(out))
			text, err := certificate.CombinedOutput()
			if err != nil || !strings.Contains(string(text), "Public Key Algorithm: "+want) {
				t.Errorf("%s -sigalgs %s: want %s, %v:\n%s\n%s", version, sigalgs, want, err, out, text)
			}
		}
	}
}

// serveHandshakes does nothing else, until l is closed.
func serveHandshakes(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.(*tls.Conn).Handshake()
		_ = c.Close()
	}
}

// In the list of a certificate's key types RSA may come first; the certificate
// for clients without a server name is then the family of that.
func TestNamelessClientIsGivenECDSAWhateverIsFirstInTheList(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	for _, order := range [][2]config.KeyType{{config.P256, config.RSA2048}, {config.RSA2048, config.P256}} {
		var all []candidate
		for n, kind := range order {
			id := "a.test"
			if n > 0 {
				id += "." + string(kind)
			}
			c := ca.certificate(t, id, kind, now, now.Add(time.Hour), "a.test")
			c.object = &vault.Certificate{ID: id, KeyType: kind}
			all = append(all, candidate{c, true})
		}
		x := buildIndex(all, []string{"a.test"}, now)
		for suite, want := range map[uint16]x509.PublicKeyAlgorithm{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: x509.ECDSA, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: x509.RSA,
		} {
			hello := &tls.ClientHelloInfo{
				SupportedVersions: []uint16{tls.VersionTLS12}, CipherSuites: []uint16{suite},
				SupportedCurves: []tls.CurveID{tls.CurveP256}, SupportedPoints: []uint8{0},
				SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256},
			}
			got, err := x.certificateFor(hello, "a.test")
			if err != nil || got.Leaf.PublicKeyAlgorithm != want {
				t.Errorf("%v, suite %x: %v, %v; want %v", order, suite, got.Leaf.PublicKeyAlgorithm, err, want)
			}
		}
		if best := x.byID["a.test"].best.leaf().PublicKeyAlgorithm; best != x509.ECDSA {
			t.Errorf("%v: the first choice is %v, want ECDSA", order, best)
		}
	}
}
