package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"edge/config"

	"github.com/libdns/libdns"
)

// Bounds of a program of the operator's.
const (
	execTimeout = time.Minute     // of one call, when the provider sets none
	execGrace   = 2 * time.Second // that its children get to close what they inherited
	maxExecSays = 4 << 10         // bytes of its standard error that are looked at
)

// program is a program of the operator's that changes records:
//
//	COMMAND… add|delete ZONE NAME VALUE
//
// once for each value, one after another. ZONE and NAME are fully qualified, in
// lower case and without the final dot, of letters, digits, '.', '_' and '-' and
// never an option; VALUE is the text of a TXT record and may begin with a hyphen. There is no shell. The program ends with 0 when the record
// is there (add) or not there (delete) in the end: to add what is there and to
// delete what is not there is success, because an heir of an order does both.
// Values of others at NAME must stay.
//
// Standard input is empty and standard output is thrown away; the first line of
// standard error is shown when the program fails, so it must not be a secret.
// The environment is PATH, HOME, TMPDIR, TZ, the variables of proxies and of
// certificate authorities, and what begins with EDGE_DNS_: a token for the
// program has such a name, and it does not see the tokens and keys of edge.
//
// At the end of the timeout, or of the order, the program is killed with its
// process group. While it runs edge holds the lease of the name, so that a
// program that replaces whole record sets is safe across replicas.
type program struct {
	command []string
	timeout time.Duration
	lease   leaseFunc
	pace    *pace
}

// useExec checks the command; it does not run it.
func (p *provider) useExec(c *config.ExecDNS, lease leaseFunc, pc *pace) error {
	if len(c.Command) == 0 || !filepath.IsAbs(c.Command[0]) {
		return errors.New("exec command is no absolute path (write command: [/usr/local/bin/change-dns, ARGUMENT…])")
	}
	info, err := os.Stat(c.Command[0])
	switch {
	case err != nil:
		return fmt.Errorf("exec command: %w (check the path)", err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("exec command %s is no program (chmod +x?)", c.Command[0])
	}
	run := program{command: c.Command, timeout: c.Timeout, lease: lease, pace: pc}
	if run.timeout <= 0 {
		run.timeout = execTimeout
	}
	p.kind = "exec"
	p.backend = run
	p.explain = explainExec
	p.perRecord = run.timeout
	return nil
}

// AppendRecords has every value added.
func (p program) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.each(ctx, "add", zone, records)
}

// DeleteRecords has every value deleted, and goes on when one cannot be.
func (p program) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.each(ctx, "delete", zone, records)
}

func (p program) each(ctx context.Context, verb, zone string, records []libdns.Record) error {
	all := setsOf(zone, records)
	var errs []error
	for _, name := range sortedKeys(all) {
		err := checkArgument(name)
		if err == nil {
			err = p.name(ctx, verb, zone, name, all[name])
		}
		if err != nil && (verb == "add" || ctx.Err() != nil) {
			return err
		}
		errs = append(errs, err)
	}
	return some(errs)
}

// checkArgument refuses names that a program may take for an option, or that
// scripts get wrong: the target of a CNAME may be anything, and be chosen by
// whoever owns the zone of a host.
func checkArgument(name string) error {
	if isPlain(name) && !strings.HasPrefix(name, "-") {
		return nil
	}
	return fmt.Errorf("name %q cannot be an argument of the program (letters, digits, '.', '_' and '-', not at the start; where does the CNAME lead?)", bare(name))
}

// name changes the values of one name under its lease.
func (p program) name(ctx context.Context, verb, zone, name string, values []string) error {
	release, err := p.lease.hold(ctx, zone, []string{name})
	if err != nil {
		return err
	}
	defer release()
	for _, v := range values {
		if err := p.run(ctx, verb, bare(zone), bare(name), v); err != nil {
			return err
		}
	}
	return nil
}

// run calls the program once.
func (p program) run(ctx context.Context, words ...string) error {
	if err := p.pace.wait(ctx, 1); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	said := &head{max: maxExecSays}
	cmd := exec.CommandContext(ctx, p.command[0], slices.Concat(p.command[1:], words)...) //nolint:gosec // G204: the operator's own command, no shell
	cmd.Env = execEnvironment(os.Environ())
	cmd.Dir = "/"
	cmd.Stderr = said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = execGrace
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it has ended with 0, and left somebody behind
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("killed after %s: %w", p.timeout, err)
		}
	}
	return &execError{command: p.command[0], verb: words[0], name: words[2], said: said.line(), cause: err}
}

// execEnvironment leaves of the variables what a program needs to run.
func execEnvironment(all []string) []string {
	known := []string{
		"PATH", "HOME", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR",
		"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy",
	}
	return slices.DeleteFunc(slices.Clone(all), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return !slices.Contains(known, name) && !strings.HasPrefix(name, "EDGE_DNS_")
	})
}

// head keeps the first bytes that are written to it.
type head struct {
	max int
	buf bytes.Buffer
}

// Write implements io.Writer. It never fails, so that the program goes on.
func (h *head) Write(p []byte) (int, error) {
	h.buf.Write(p[:min(len(p), h.max-h.buf.Len())])
	return len(p), nil
}

// line is the first line that has something in it.
func (h *head) line() string {
	for line := range strings.Lines(h.buf.String()) {
		if line = oneLine(line); line != "" {
			return line
		}
	}
	return ""
}

// execError says which call failed.
type execError struct {
	command, verb, name string
	said                string // the first line of standard error
	cause               error
}

func (e *execError) Error() string {
	text := fmt.Sprintf("%s %s %s: %s", e.command, e.verb, e.name, oneLine(e.cause.Error()))
	if e.said != "" {
		text += ": " + e.said
	}
	return text
}

func (e *execError) Unwrap() error { return e.cause }

// explainExec reads what became of a call.
func explainExec(err error) refusal {
	failed, ok := errors.AsType[*execError](err)
	switch {
	case !ok:
		return refusal{reason: oneLine(err.Error())}
	case errors.Is(err, context.DeadlineExceeded):
		return refusal{failed.Error(), "raise timeout in the provider if it needs longer"}
	case errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrNotExist):
		return refusal{failed.Error(), "may the user that edge runs as execute it, and is the interpreter of its first line there?"}
	case failed.said == "":
		return refusal{failed.Error(), "it wrote nothing to its standard error, whose first line is shown here"}
	}
	return refusal{reason: failed.Error()}
}
