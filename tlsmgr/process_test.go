package tlsmgr

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/vault"
)

// childConfig names the configuration of a test binary that is to be a replica
// and not a test, so that tests can kill and stop replicas as the world does.
const childConfig = "EDGE_TEST_REPLICA"

// childLease names how long its leases live; "" is a second.
const childLease = "EDGE_TEST_LEASE"

// childCA names the address to dial in place of the CA's; "" is the CA's own.
const childCA = "EDGE_TEST_CA"

// childHeld makes a child that serves what is stored, and runs only once its
// standard input ends.
const childHeld = "EDGE_TEST_HELD"

// stepListening is the first line of a child: the address of its listener, once
// it serves what the storage has.
const stepListening Step = "listening"

// beReplica runs a Manager for a configuration file until it is killed, and
// writes its events to standard output, a JSON object a line.
func beReplica(path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	ttl, err := time.ParseDuration(cmp.Or(os.Getenv(childLease), "1s"))
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	events := make(chan Event, 10_000)
	m := New(Options{
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Events: func(e Event) { events <- e },
		ACMEClient: detour(os.Getenv(childCA), cfg), LeaseTTL: ttl, Interval: 200 * time.Millisecond, DNSPoll: 20 * time.Millisecond,
		Backoff: func(int) time.Duration { return 500 * time.Millisecond },
	})
	change, err := m.Prepare(context.Background(), cfg)
	if err != nil {
		return err
	}
	change.Commit()
	_ = m.Load(context.Background()) // Run tries again
	ln, err := tls.Listen("tcp", "127.0.0.1:0", m.TLSConfig("https"))
	if err != nil {
		return err
	}
	go func() { _ = shakeHands(ln) }()
	if err := out.Encode(Event{Step: stepListening, Detail: ln.Addr().String()}); err != nil {
		return err
	}
	if os.Getenv(childHeld) != "" {
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	go func() { _ = m.Run(context.Background()) }()
	for e := range events {
		if err := out.Encode(e); err != nil {
			return err // the test is over
		}
	}
	return nil
}

// detour is a client that reaches the CA at another address than its URLs say;
// nil without one.
func detour(addr string, cfg *config.Config) *http.Client {
	if addr == "" {
		return nil
	}
	roots := x509.NewCertPool()
	for _, i := range cfg.Issuers {
		if pem, err := os.ReadFile(i.CA); err == nil {
			roots.AppendCertsFromPEM(pem)
		}
	}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}}
}

// shakeHands does the handshake of each connection and ends it.
func shakeHands(ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = io.Copy(io.Discard, conn) // the client sees its end first
		}()
	}
}

// child is a replica in a process of its own.
type child struct {
	cmd    *exec.Cmd
	events chan Event
	stderr *logs
	kill   func() // and wait
	addr   string // that it listens on, once that is known
	run    func() // when it is held
}

// childFile writes a configuration for children.
func childFile(t *testing.T, l *acmelab.Lab, storage string, hosts ...string) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "ca.pem"), string(l.CA.APICertPEM))
	writeFile(t, filepath.Join(dir, "tsig"), l.DNS.Key.Secret)
	var text strings.Builder
	fmt.Fprintf(&text, `version: 1
listeners: {https: {address: "127.0.0.1:0"}}
storage: %q
providers: {dns: {rfc2136: {server: %q, key_name: %q, key: %q}}}
issuers:
  lab:
    acme: {directory: %q, email: ops@example.test, ca: %q}
    challenge: {providers: [dns], resolvers: [%q], authoritative: [%q]}
certificate_defaults: {issuers: [lab], bundle: per_name}
routes:
`, storage, l.DNS.Addr, l.DNS.Key.Name, "file:"+filepath.Join(dir, "tsig"),
		l.CA.Directory, filepath.Join(dir, "ca.pem"), l.DNS.Addr, l.DNS.Addr)
	for _, h := range hosts {
		fmt.Fprintf(&text, "  - {host: %q, endpoints: [\"http://127.0.0.1:1\"]}\n", h)
	}
	path := filepath.Join(dir, "routes.yaml")
	writeFile(t, path, text.String())
	return path
}

func spawn(t *testing.T, path string, env ...string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0]), events: make(chan Event, 10_000), stderr: &logs{}}
	c.cmd.Env = append(append(os.Environ(), childConfig+"="+path), env...)
	c.cmd.Stderr = c.stderr
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.run = func() { _ = stdin.Close() }
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.read(stdout)
	}()
	c.kill = func() {
		_ = c.cmd.Process.Kill() // also when it is stopped
		<-done
		_ = c.cmd.Wait()
	}
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			t.Logf("log of process %d:\n%s", c.cmd.Process.Pid, c.stderr)
		}
	})
	return c
}

func (c *child) read(r io.Reader) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var e Event
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			c.events <- e
		}
	}
}

// until waits for so many events of step; it returns the details.
func (c *child) until(t *testing.T, step Step, count int) []string {
	t.Helper()
	var out []string
	timeout := time.After(patience)
	for len(out) < count {
		select {
		case e := <-c.events:
			if e.Step == step {
				out = append(out, e.Certificate+": "+e.Detail)
			}
		case <-timeout:
			t.Fatalf("%d events %s, want %d", len(out), step, count)
		}
	}
	slices.Sort(out)
	return out
}

// The tests with processes run apart from the parallel ones, whose leases
// would suffer.

func TestSixProcessesPlaceOneOrderForEachOfTwentyBundles(t *testing.T) {
	lab := acmelab.New(t, acmelab.Options{})
	hosts := make([]string, 20)
	for n := range hosts {
		hosts[n] = fmt.Sprintf("n%d.example.test", n)
	}
	for name, storage := range map[string]string{"s3": lab.S3.StoreURL("certs", "six"), "file": "file://" + t.TempDir()} {
		t.Run(name, func(t *testing.T) { sixProcesses(t, lab, storage, hosts) })
	}
}

func sixProcesses(t *testing.T, lab *acmelab.Lab, storage string, hosts []string) {
	t.Helper()
	orders, accounts := lab.CA.Orders(), lab.CA.Requests(acmelab.PathNewAccount)
	path := childFile(t, lab, storage, hosts...)
	children := make([]*child, 6)
	for n := range children {
		children[n] = spawn(t, path, childLease+"=30s") // nobody dies here, however slow it gets
	}
	first := children[0].until(t, StepLoaded, len(hosts))
	for _, c := range children[1:] {
		if got := c.until(t, StepLoaded, len(hosts)); !slices.Equal(got, first) {
			t.Errorf("serves\n%s\nwant\n%s", got, first)
		}
	}
	orders, accounts = lab.CA.Orders()-orders, lab.CA.Requests(acmelab.PathNewAccount)-accounts
	if orders != len(hosts) || accounts != 1 {
		t.Errorf("%d orders and %d accounts, want %d and 1", orders, accounts, len(hosts))
	}
}

// Whatever the step at which the process that orders is killed, another one
// serves soon, after at most one more order.
func TestKilledProcessIsTakenOverAtEveryStep(t *testing.T) {
	for _, path := range []string{
		acmelab.PathDirectory, acmelab.PathNewAccount, acmelab.PathNewOrder, acmelab.PathAuthz,
		acmelab.PathChallenge, acmelab.PathFinalize, acmelab.PathCert,
	} {
		t.Run(strings.Trim(path, "/"), func(t *testing.T) {
			t.Parallel()
			var caught atomic.Bool
			reached, hold := make(chan struct{}), make(chan struct{})
			lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Gate: func(p string) {
				if strings.HasPrefix(p, path) && !caught.Swap(true) {
					close(reached)
					<-hold
				}
			}}})
			cfg := childFile(t, lab, lab.S3.StoreURL("certs", "t"), "a.example.test")
			first := spawn(t, cfg)
			<-reached
			second := spawn(t, cfg)
			second.until(t, StepWaiting, 1)
			first.kill()
			close(hold)
			second.until(t, StepLoaded, 1)
			if n := lab.CA.Orders(); n > 2 {
				t.Errorf("%d orders, want at most 2", n)
			}
		})
	}
}

// A process that is stopped for longer than its lease lasts, at any step,
// leaves what its heir stored.
func TestStoppedProcessDoesNotUndoItsHeirsWork(t *testing.T) {
	for _, path := range []string{acmelab.PathNewOrder, acmelab.PathFinalize, acmelab.PathCert, "PUT"} {
		t.Run(strings.Trim(path, "/"), func(t *testing.T) {
			t.Parallel()
			lab, first, release := stoppedAt(t, path)
			second := spawn(t, childFile(t, lab, lab.S3.StoreURL("certs", "t"), "a.example.test"))
			heirs := second.until(t, StepLoaded, 1)
			release()
			signal(t, first, syscall.SIGCONT)
			if got := first.until(t, StepLoaded, 1); !slices.Equal(got, heirs) {
				t.Errorf("the sleeper serves %s, its heir %s", got, heirs)
			}
			if n := lab.CA.Orders(); n > 2 {
				t.Errorf("%d orders, want at most 2", n)
			}
			third := spawn(t, childFile(t, lab, lab.S3.StoreURL("certs", "t"), "a.example.test"))
			if got := third.until(t, StepLoaded, 1); !slices.Equal(got, heirs) {
				t.Errorf("stored is %s, want the heir's %s", got, heirs)
			}
		})
	}
}

// stoppedAt is a lab with a process that was stopped while it waited for the
// answer to a request, which release gives.
func stoppedAt(t *testing.T, path string) (lab *acmelab.Lab, c *child, release func()) {
	t.Helper()
	var caught atomic.Bool
	reached, hold := make(chan struct{}), make(chan struct{})
	wait := func(hit bool) {
		if hit && !caught.Swap(true) {
			close(reached)
			<-hold
		}
	}
	lab = acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Gate: func(p string) { wait(strings.HasPrefix(p, path)) }}})
	if path == "PUT" {
		lab.S3.SetFail(func(r *http.Request) int {
			wait(r.Method == path && strings.Contains(r.URL.Path, vault.Certificates.Dir()))
			return 0
		})
	}
	c = spawn(t, childFile(t, lab, lab.S3.StoreURL("certs", "t"), "a.example.test"))
	<-reached
	signal(t, c, syscall.SIGSTOP)
	return lab, c, func() { close(hold) }
}

func signal(t *testing.T, c *child, s syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}
