package grpclab

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

const (
	host      = "grpc.example.test"
	patience  = 20 * time.Second // bounds every wait
	reactTime = time.Second      // within which the server learns of a departure
	maxLine   = 1 << 20          // of edge's log
	maxTail   = 20               // lines of it that a failed test shows
)

// backend is the official test server, and our own service beside it, on an
// address that it keeps over restarts.
type backend struct {
	addr   string
	echo   echoServer
	server *grpc.Server
	served chan error
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{addr: "127.0.0.1:0", echo: echoServer{ended: make(chan ending, 1)}}
	b.start(t)
	t.Cleanup(func() { b.stop(t, (*grpc.Server).Stop) })
	return b
}

func (b *backend) start(t *testing.T) {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	b.addr, b.server, b.served = ln.Addr().String(), grpc.NewServer(), make(chan error, 1)
	testgrpc.RegisterTestServiceServer(b.server, interop.NewTestServer())
	b.server.RegisterService(&echoService, &b.echo)
	go func(s *grpc.Server, served chan<- error) { served <- s.Serve(ln) }(b.server, b.served)
}

// stop ends the server by one of its methods and waits for it.
func (b *backend) stop(t *testing.T, how func(*grpc.Server)) {
	t.Helper()
	how(b.server)
	if err := <-b.served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		t.Errorf("serve: %v", err)
	}
	b.served <- nil // for a second stop
}

// direct is a client without edge.
func (b *backend) direct(t *testing.T) *grpc.ClientConn {
	t.Helper()
	return dial(t, b.addr, insecure.NewCredentials())
}

// edge starts the real program in front of b and returns a client of it.
func (b *backend) edge(t *testing.T) *grpc.ClientConn {
	t.Helper()
	dir := t.TempDir()
	roots := certificate(t, dir)
	path := filepath.Join(dir, "routes.yaml")
	write(t, path, fmt.Appendf(nil, `version: 1
listeners:
  https: {address: "127.0.0.1:0", protocols: [h2]}
certificates:
  lab: {file: {certificate: cert.pem, private_key: key.pem}}
storage: "file://%s/storage"
control: {socket: %q}
observability: {log: {format: json}}
drain: {timeout: 1s}
pools:
  grpc: {endpoints: ["http://%s"], protocol: h2c}
routes:
  - {host: %s, pool: grpc}
`, dir, filepath.Join(dir, "control.sock"), b.addr, host))
	addr := launch(t, path)
	return dial(t, addr, credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12}))
}

func dial(t *testing.T, addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithAuthority(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// launch runs edge until the test ends, and returns where it listens once it
// says that it is ready.
func launch(t *testing.T, config string) string {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), edgeBinary, "run", "--config", config) // the cleanup ends it
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	addr := make(chan string, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(addr)
		sc := bufio.NewScanner(stderr)
		sc.Buffer(nil, maxLine)
		listens := ""
		for sc.Scan() {
			log.WriteString(sc.Text() + "\n")
			var line struct{ Msg, Listener, Address string }
			if json.Unmarshal(sc.Bytes(), &line) != nil {
				continue // a usage error or a panic, which the log shows
			}
			if line.Msg == "listening" && line.Listener == "https" {
				listens = line.Address
			}
			if line.Msg == "ready" {
				addr <- listens
			}
		}
	})
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		killer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		reading.Wait()
		killer.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("edge ended with %v", err)
		}
		if t.Failed() {
			lines := strings.SplitAfter(log.String(), "\n")
			t.Logf("edge said at last:\n%s", strings.Join(lines[max(0, len(lines)-maxTail):], ""))
		}
	})
	t.Cleanup(end)
	select {
	case a := <-addr:
		if a != "" {
			return a
		}
	case <-time.After(patience):
	}
	end()
	t.Fatal("edge is not ready")
	return ""
}

// certificate puts a self-signed certificate for host into dir and returns the
// pool that verifies it.
func certificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	write(t, filepath.Join(dir, "cert.pem"), text)
	write(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return roots
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
