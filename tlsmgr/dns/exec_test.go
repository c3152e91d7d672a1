package dns

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
)

// script writes a program and returns its path.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "change-dns")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func execSolver(t *testing.T, d *acmelab.DNS, o Options, c config.ExecDNS) *Solver {
	t.Helper()
	o.Providers = []*config.Provider{{Name: "own", Exec: &c}}
	return solver(t, d, o)
}

func TestProgramIsCalledOnceForEachValueWithoutAShell(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	log := filepath.Join(t.TempDir(), "log")
	var leases []string
	s := execSolver(t, d, Options{Lease: func(_ context.Context, name string) (func(), error) {
		leases = append(leases, name)
		return func() { leases = append(leases, "free") }, nil
	}}, config.ExecDNS{Command: []string{script(t, `echo "$1|$2|$3|$4|$5|$6" >> `+log), "a b", "$(touch x); *"}})
	p := present(t, s, Record{challenge, "-apex"}, Record{challenge, "$HOME;`id`"}, Record{"_acme-challenge.WWW.example.test.", "w"})
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, verb := range []string{"add", "delete"} {
		start := "a b|$(touch x); *|" + verb + "|example.test|_acme-challenge."
		want = append(want, start+"example.test|-apex", start+"example.test|$HOME;`id`", start+"www.example.test|w")
	}
	if got := strings.Split(strings.TrimSpace(string(text)), "\n"); !slices.Equal(got, want) {
		t.Errorf("calls\n%q, want\n%q", got, want)
	}
	one := []string{"dns/example.test/_acme-challenge.example.test", "free", "dns/example.test/_acme-challenge.www.example.test", "free"}
	if want := slices.Concat(one, one); !slices.Equal(leases, want) {
		t.Errorf("leases %q, want %q", leases, want)
	}
}

func TestProgramSeesNoSecretsOfEdge(t *testing.T) {
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	log := filepath.Join(t.TempDir(), "log")
	t.Setenv("EDGE_DNS_TOKEN", "for-the-program")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "for-edge")
	t.Setenv("EDGE_STORAGE_KEY", "for-edge")
	present(t, execSolver(t, d, Options{}, config.ExecDNS{Command: []string{script(t, "env > "+log+"; pwd >> "+log+"; cat >> "+log)}}), Record{challenge, "v"})
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"EDGE_DNS_TOKEN=for-the-program\n", "PATH=", "\n/\n"} {
		if !strings.Contains("\n"+string(text), want) {
			t.Errorf("environment lacks %q", want)
		}
	}
	if strings.Contains(string(text), "for-edge") {
		t.Errorf("secrets of edge in the environment: %s", text)
	}
}

func TestProgramThatFailsIsShownByItsFirstLine(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	for text, want := range map[string][]string{
		"echo out; echo >&2; echo 'no such zone' >&2; echo more >&2; exit 3": {"exit status 3: no such zone"},
		"exit 4":                             {"exit status 4", "wrote nothing to its standard error"},
		"kill -9 $$":                         {"signal: killed"},
		"yes | head -c 3000000 >&2; exit 5":  {"exit status 5: y"},
		"printf 'red \\033[31m' >&2; exit 6": {"exit status 6: red [31m"},
	} {
		path := script(t, text)
		_, err := execSolver(t, d, Options{}, config.ExecDNS{Command: []string{path}}).Present(t.Context(), []Record{{challenge, "v"}})
		wantError(t, err, append(want, "add challenge records to zone example.test: provider own (exec): "+path+" add _acme-challenge.example.test")...)
		if strings.Contains(err.Error(), "more") {
			t.Errorf("more than the first line in %v", err)
		}
	}
}

func TestProgramIsKilledWithItsChildren(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	pids := filepath.Join(t.TempDir(), "pids")
	path := script(t, "sleep 600 & echo $! > "+pids+"; wait")
	s := execSolver(t, d, Options{}, config.ExecDNS{Command: []string{path}, Timeout: 500 * time.Millisecond})
	begin := time.Now()
	_, err := s.Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "killed after 500ms", "raise timeout")
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil && !isZombie(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("its child %d is alive", pid)
		}
	}
}

// isZombie tells a process that has ended and that nobody has waited for.
func isZombie(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.Contains(string(stat), ") Z ")
}

func TestProgramThatLeavesAChildBehindHasDoneItsWork(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	present(t, execSolver(t, d, Options{}, config.ExecDNS{Command: []string{script(t, "sleep 5 & exit 0")}}), Record{challenge, "v"})
}

func TestProgramEndsWithItsOrder(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	ctx, cancel := context.WithCancel(t.Context())
	s := execSolver(t, d, Options{}, config.ExecDNS{Command: []string{script(t, "exec sleep 600")}})
	p := s.providers[0].backend
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := p.DeleteRecords(ctx, "example.test.", (&group{zone: "example.test.", records: []Record{{challenge + ".", "v"}}}).libdns()); !errors.Is(err, context.Canceled) {
		t.Errorf("DeleteRecords: %v, want context.Canceled", err)
	}
}

// Who owns a host's zone, who may be a customer, chooses where its CNAME leads.
func TestTargetOfACNAMEIsNoOptionOfTheProgram(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"-oProxyCommand=x.example.test.": "cannot be an argument",
		"--delete.example.test.":         "cannot be an argument",
		"a`id`.example.test.":            "cannot be an argument",
		"a-b_c.example.test.":            "",
	} {
		d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
		if err := d.Add("_acme-challenge.shop.example.test. 60 IN CNAME " + target); err != nil {
			t.Fatal(err)
		}
		log := filepath.Join(t.TempDir(), "log")
		s := execSolver(t, d, Options{}, config.ExecDNS{Command: []string{script(t, "echo $3 >> "+log)}})
		_, err := s.Present(t.Context(), []Record{{"_acme-challenge.shop.example.test", "v"}})
		if text, _ := os.ReadFile(log); want != "" && len(text) > 0 || want == "" && len(text) == 0 {
			t.Errorf("%s: called with %q: %v", target, text, err)
		}
		if want != "" {
			wantError(t, err, want)
		}
	}
}

func TestDeletingGoesOnWhenAProgramFailsOnce(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	log := filepath.Join(t.TempDir(), "log")
	s := execSolver(t, d, Options{}, config.ExecDNS{Command: []string{script(t, "echo $3 >> "+log+"; case $3 in *.a.*) echo no >&2; exit 1; esac")}})
	wantError(t, s.Sweep(t.Context(), []Record{{"_acme-challenge.a.example.test", "v"}, {"_acme-challenge.b.example.test", "v"}}), "delete challenge records", "exit status 1: no")
	if text, _ := os.ReadFile(log); !strings.Contains(string(text), "_acme-challenge.b.example.test") {
		t.Errorf("calls: %q", text)
	}
}

func TestCommandThatIsNoProgramIsRefusedByNew(t *testing.T) {
	t.Parallel()
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, command := range map[string][]string{
		"is no absolute path":                 {"change-dns"},
		"no such file":                        {"/nonexistent/change-dns"},
		"is no program (chmod +x?)":           {plain},
		"write command: [/usr/local/bin/chan": nil,
	} {
		_, err := New(Options{Providers: []*config.Provider{{Name: "own", Exec: &config.ExecDNS{Command: command}}}})
		wantError(t, err, "DNS provider own: exec command", want)
	}
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	path := script(t, "")
	s := execSolver(t, d, Options{}, config.ExecDNS{Command: []string{path}})
	if err := os.WriteFile(path, []byte("#!/nonexistent/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := s.Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "no such file", "interpreter")
}
