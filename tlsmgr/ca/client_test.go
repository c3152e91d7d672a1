package ca

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tool finds a program that is not part of Go.
func tool(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err != nil && os.Getenv("EDGE_CI") == "1":
		tb.Fatalf("%s is not installed", name)
	case err != nil:
		tb.Skipf("%s is not installed", name)
	}
	return path
}

func run(tb testing.TB, path string, args ...string) (string, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err
}

// files writes the texts into files of a new directory and returns their paths.
func files(tb testing.TB, texts ...string) []string {
	tb.Helper()
	dir := tb.TempDir()
	var paths []string
	for i, text := range texts {
		path := filepath.Join(dir, string(rune('a'+i))+".pem")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestOpenSSLAcceptsTheChainStrictly(t *testing.T) {
	t.Parallel()
	openssl := tool(t, "openssl")
	now := time.Now()
	a := create(t, now)
	chain, err := a.Issue([]string{"app.internal", "*.app.internal", "10.0.0.7"}, serverKey(t), 30*day, now)
	if err != nil {
		t.Fatal(err)
	}
	_, _, intermediate, _ := a.PEM()
	p := files(t, a.Root(), intermediate, chain)
	strict := []string{"verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslserver", "-CAfile", p[0], "-untrusted", p[1]}
	for _, name := range [][]string{{"-verify_hostname", "app.internal"}, {"-verify_hostname", "www.app.internal"}, {"-verify_ip", "10.0.0.7"}} {
		if out, err := run(t, openssl, append(append(strict, name...), p[2])...); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
	if out, err := run(t, openssl, append(strict, "-verify_hostname", "other.internal", p[2])...); err == nil {
		t.Errorf("accepts a name that is not in it: %s", out)
	}
	if out, err := run(t, openssl, "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", p[0], "-untrusted", p[1], p[2]); err == nil {
		t.Errorf("accepts a server's certificate as that of a client: %s", out)
	}
	if out, err := run(t, openssl, "x509", "-noout", "-text", "-in", p[0]); err != nil || !strings.Contains(out, "CA:TRUE, pathlen:1") {
		t.Errorf("root: %v\n%s", err, out)
	}
	if out, err := run(t, openssl, "x509", "-noout", "-text", "-in", p[1]); err != nil || !strings.Contains(out, "CA:TRUE, pathlen:0") {
		t.Errorf("intermediate: %v\n%s", err, out)
	}
}

// serve runs an HTTPS server with the certificate and returns its port.
func serve(tb testing.TB, pair tls.Certificate) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}},
		ErrorLog:          log.New(io.Discard, "", 0), // clients that refuse are what some tests want
		ReadHeaderTimeout: 10 * time.Second,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.ServeTLS(ln, "", "")
	}()
	tb.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

const python = `
import socket, ssl, sys
root, host, port = sys.argv[1:]
c = ssl.create_default_context(cafile=root)
c.verify_flags |= ssl.VERIFY_X509_STRICT
with socket.create_connection(("127.0.0.1", int(port)), 10) as s:
    with c.wrap_socket(s, server_hostname=host) as t:
        t.sendall(b"GET / HTTP/1.0\r\n\r\n")
        data = b""
        while chunk := t.recv(4096):
            data += chunk
print(data.decode())
`

func TestClientsConnectWithNothingButTheRoot(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a := create(t, now)
	port := serve(t, issue(t, a, serverKey(t), 30*day, now, "app.internal", "*.app.internal", "127.0.0.1"))
	p := files(t, a.Root(), create(t, now).Root(), python)
	curl := func(root, host string) (string, error) {
		return run(t, tool(t, "curl"), "-sS", "--max-time", "10", "--noproxy", "*", "--cacert", root,
			"--resolve", host+":"+port+":127.0.0.1", "https://"+host+":"+port+"/")
	}
	py := func(root, host string) (string, error) { return run(t, tool(t, "python3"), p[2], root, host, port) }
	for name, client := range map[string]func(root, host string) (string, error){"curl": curl, "python": py} {
		t.Run(name, func(t *testing.T) {
			for _, host := range []string{"app.internal", "www.app.internal", "127.0.0.1"} {
				if out, err := client(p[0], host); err != nil || !strings.HasSuffix(strings.TrimSpace(out), "served") {
					t.Errorf("%s: %v: %s", host, err, out)
				}
			}
			if out, err := client(p[0], "other.internal"); err == nil {
				t.Errorf("connects to a name that the certificate does not have: %s", out)
			}
			if out, err := client(p[1], "app.internal"); err == nil {
				t.Errorf("connects though another root is trusted: %s", out)
			}
		})
	}
}
