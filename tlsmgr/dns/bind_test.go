package dns

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"edge/config"

	miekg "github.com/miekg/dns"
)

const bindKey = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

const bindZone = `$TTL 60
@ IN SOA ns1.example.test. hostmaster.example.test. 1 60 60 600 5
@ IN NS ns1
ns1 IN A 127.0.0.1
*.hosts IN CNAME elsewhere.invalid.
`

const bindConf = `
key "edge-key" { algorithm hmac-sha256; secret "SECRET"; };
key "weak-key" { algorithm hmac-sha512; secret "SECRET"; };
options {
	directory "DIR"; pid-file "DIR/named.pid"; session-keyfile "DIR/session.key"; managed-keys-directory "DIR";
	listen-on port PORT { 127.0.0.1; }; listen-on-v6 { none; };
	recursion no; dnssec-validation no; notify no; allow-transfer { none; };
};
controls { };
zone "example.test" { type primary; file "DIR/example.test.zone";
	update-policy { grant edge-key wildcard * TXT; };
};
`

// startBIND runs named for the zone example.test and returns its address.
func startBIND(tb testing.TB) string {
	tb.Helper()
	named, err := exec.LookPath("named")
	if err != nil {
		named, err = exec.LookPath("/usr/sbin/named")
	}
	switch {
	case err != nil && os.Getenv("EDGE_CI") == "1":
		tb.Fatal("named is not installed (apt-get install bind9)")
	case err != nil:
		tb.Skip("named is not installed (apt-get install bind9)")
	}
	for range 5 {
		if addr, ok := runBIND(tb, named); ok {
			return addr
		}
	}
	tb.Fatal("no port for named: each was taken before it came")
	return ""
}

// freePort finds a port of 127.0.0.1 that is free for UDP and TCP, below those
// that outgoing connections get.
func freePort(tb testing.TB) string {
	tb.Helper()
	for range 50 {
		port := strconv.Itoa(12000 + rand.IntN(18000))
		pc, err := net.ListenPacket("udp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:"+port)
		_ = pc.Close()
		if err == nil {
			_ = ln.Close()
			return port
		}
	}
	tb.Fatal("no port is free for both UDP and TCP")
	return ""
}

// runBIND runs named until the test ends. It is false when another process was
// faster at the port.
func runBIND(tb testing.TB, named string) (addr string, ok bool) {
	tb.Helper()
	port, dir := freePort(tb), tb.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	write("example.test.zone", bindZone)
	write("named.conf", strings.NewReplacer("DIR", dir, "PORT", port, "SECRET", bindKey).Replace(bindConf))
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, named, "-g", "-c", filepath.Join(dir, "named.conf"), "-n", "1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	state, log := make(chan string, 3), make(chan string, 1)
	go func() {
		var all []string
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			line := lines.Text()
			if !strings.Contains(line, ": updating zone ") { // a line for each record
				all = append(all, line)
			}
			for _, s := range []string{" running", " address in use"} {
				if strings.HasSuffix(line, s) && len(state) < 2 {
					state <- s
				}
			}
		}
		state <- " ended"
		log <- strings.Join(all, "\n")
	}()
	tb.Cleanup(func() {
		cancel()
		text := <-log
		_ = cmd.Wait() // killed
		if tb.Failed() {
			tb.Logf("named:\n%s", text)
		}
	})
	select {
	case s := <-state:
		if s == " ended" {
			tb.Fatal("named ended")
		}
		return "127.0.0.1:" + port, s == " running"
	case <-time.After(30 * time.Second):
		tb.Fatal("named is not ready after 30 s")
	}
	return "", false
}

// bindSolver is a Solver for BIND with the given key.
func bindSolver(tb testing.TB, addr, name, algorithm, key string) *Solver {
	tb.Helper()
	_, port, _ := net.SplitHostPort(addr)
	s, err := New(Options{
		Providers: []*config.Provider{{Name: "bind", RFC2136: &config.RFC2136{
			Server: addr, KeyName: name, KeyAlgorithm: algorithm, Key: secret(tb, key),
		}}},
		Resolvers: []string{addr}, Port: port, Poll: 10 * time.Millisecond, Timeout: 20 * time.Second,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// digTXT asks addr for the values at name.
func digTXT(tb testing.TB, addr, name string) []string {
	tb.Helper()
	answer, err := newClient().queryTXT(tb.Context(), addr, miekg.Fqdn(name), false)
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for _, rr := range answer.Answer {
		if t, ok := rr.(*miekg.TXT); ok {
			out = append(out, strings.Join(t.Txt, ""))
		}
	}
	slices.Sort(out)
	return out
}

func TestBINDTakesUpdatesShowsThemAndForgetsThem(t *testing.T) {
	t.Parallel()
	addr := startBIND(t)
	s := bindSolver(t, addr, "Edge-Key.", "hmac-sha256", bindKey) // BIND answers in lower case
	records := []Record{{challenge, "apex"}, {challenge, "wildcard"}}
	for i := range 98 {
		records = append(records, Record{fmt.Sprintf("_acme-challenge.n%d.example.test", i), strings.Repeat("v", 43)})
	}
	p := present(t, s, records...)
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := digTXT(t, addr, challenge), []string{"apex", "wildcard"}; !slices.Equal(got, want) {
		t.Errorf("values: %q, want %q", got, want)
	}
	again := present(t, s, records[0]) // an heir presents once more
	for range 2 {
		if err := p.CleanUp(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := again.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	for _, r := range records {
		if got := digTXT(t, addr, r.Name); len(got) != 0 {
			t.Errorf("%s: left behind %q", r.Name, got)
		}
	}
}

func TestBINDPutsARecordBesideAWildcardThatIsACNAME(t *testing.T) {
	t.Parallel()
	addr := startBIND(t)
	p := present(t, bindSolver(t, addr, "edge-key", "hmac-sha256", bindKey),
		Record{"_acme-challenge.hosts.example.test", "v"}, Record{"_acme-challenge.www.hosts.example.test", "v"})
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	answer, err := newClient().queryTXT(t.Context(), addr, "_acme-challenge.hosts.example.test.", false)
	if err != nil || alias(answer, "_acme-challenge.hosts.example.test.") != "elsewhere.invalid." {
		t.Errorf("afterwards: %v, %v; want the wildcard again", answer, err)
	}
}

func TestBINDRefusalsAreExplained(t *testing.T) {
	t.Parallel()
	addr := startBIND(t)
	wrong := "d3Jvbmcgc2VjcmV0IHdyb25nIHNlY3JldCB3cm9uZyE="
	for _, c := range []struct {
		name, key, algorithm, secret, record string
		want                                 []string
	}{
		{"unknown key", "nobody", "hmac-sha256", bindKey, challenge, []string{"TSIG key nobody", "check key_name"}},
		{"wrong secret", "edge-key", "hmac-sha256", wrong, challenge, []string{"TSIG key edge-key", "check key_name"}},
		{"wrong algorithm", "edge-key", "hmac-sha512", bindKey, challenge, []string{"TSIG key edge-key", "key_algorithm"}},
		{"key without rights", "weak-key", "hmac-sha512", bindKey, challenge, []string{"REFUSED", "TSIG key weak-key", "update-policy"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := bindSolver(t, addr, c.key, c.algorithm, c.secret).Present(t.Context(), []Record{{c.record, "v"}})
			wantError(t, err, append(c.want, addr, "provider bind (rfc2136)", "zone example.test")...)
			if err != nil && strings.Contains(err.Error(), c.secret) {
				t.Errorf("secret in %v", err)
			}
		})
	}
}
