package tlsmgr_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"

	"edge/config"
	"edge/tlsmgr"
)

// A Manager that serves a certificate from files.
func Example() {
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file, roots := exampleFiles(dir)
	cfg := &config.Config{
		Listeners:    map[string]*config.Listener{"https": {Name: "https", Protocols: []config.Protocol{config.H1, config.H2}}},
		Certificates: map[string]*config.Certificate{"own": {Name: "own", File: file}},
		Routes:       []*config.Route{{Name: "llm", Hosts: []string{"example.com"}, Path: "/", Listeners: []string{"https"}}},
	}

	m := tlsmgr.New(tlsmgr.Options{})
	change, err := m.Prepare(context.Background(), cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	change.Commit()

	l, err := tls.Listen("tcp", "127.0.0.1:0", m.TLSConfig("https"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = l.Close() }()
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			_ = conn.(*tls.Conn).Handshake()
		}
	}()
	for _, name := range []string{"example.com", "example.org"} {
		_, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: name, RootCAs: roots})
		fmt.Println(name, err)
	}
	for _, c := range m.Status().Certificates {
		fmt.Println(c.ID, c.Source, c.State, c.Names)
	}
	// Output:
	// example.com <nil>
	// example.org remote error: tls: unrecognized name
	// own file valid [*.example.com 127.0.0.1 ::1 example.com]
}

// exampleFiles writes the certificate of package httptest into dir.
func exampleFiles(dir string) (*config.CertificateFile, *x509.CertPool) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	key, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	if err != nil {
		panic(err)
	}
	f := &config.CertificateFile{Certificate: filepath.Join(dir, "cert.pem"), PrivateKey: config.Secret{Ref: "file:" + filepath.Join(dir, "key.pem")}}
	for path, block := range map[string]*pem.Block{
		f.Certificate:                 {Type: "CERTIFICATE", Bytes: s.Certificate().Raw},
		filepath.Join(dir, "key.pem"): {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			panic(err)
		}
	}
	return f, roots
}
