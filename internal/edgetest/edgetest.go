// Package edgetest builds the real edge binary and runs it as a child process,
// for end-to-end tests and the demo:
//
//	binary, err := edgetest.Build(ctx, dir, false)
//	p, err := edgetest.Start(edgetest.Options{Binary: binary, Config: "routes.yaml"})
//	defer p.Close()
//	err = p.WaitReady(ctx)
//	addr, err := p.Addr(ctx, "https")
//
// The configuration must log JSON, so that lines can be waited for. Listeners
// may use port 0; Addr asks the control socket where they are.
package edgetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"edge/admin"
	"edge/config"
)

const (
	maxLine   = 1 << 20
	killAfter = 20 * time.Second // from SIGTERM, when the child does not end by itself
	askAgain  = 20 * time.Millisecond
)

// Build compiles the program into dir and returns its path: static as it is
// shipped, or with the race detector. The working directory must be in the
// module.
func Build(ctx context.Context, dir string, race bool) (string, error) {
	path := dir + "/edge"
	args, cgo := []string{"build", "-o", path, "edge/cmd/edge"}, "CGO_ENABLED=0"
	if race {
		args, cgo = slices.Insert(args, 1, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // arguments of our own
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build edge: %w\n%s", err, out)
	}
	return path, nil
}

// Line is one line of edge's log.
type Line map[string]any

// Message returns the constant text of the line.
func (l Line) Message() string { return l.Text("msg") }

// Text returns a field as text, "" when it is absent.
func (l Line) Text(key string) string {
	if l[key] == nil {
		return ""
	}
	return fmt.Sprint(l[key])
}

// Options say what to run.
type Options struct {
	Binary string
	Config string
	Env    []string   // added to the environment
	Log    func(Line) // called for each line of the log, in order
}

// Process is a running edge. All methods may be called concurrently.
type Process struct {
	PID     int
	control *admin.Client
	cmd     *exec.Cmd
	done    chan struct{} // closed when the child has ended and its log is read

	mu    sync.Mutex
	lines []Line
	more  chan struct{} // closed and replaced at each line
	err   error         // of the child's end
}

// Start runs edge. The caller must Close the Process.
func Start(o Options) (*Process, error) {
	cfg, err := config.Load(o.Config)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(o.Binary, "run", "--config", o.Config) //nolint:gosec,noctx // the program under test; Close ends it
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.SysProcAttr = leash()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start edge: %w", err)
	}
	p := &Process{
		PID: cmd.Process.Pid, control: admin.NewClient(cfg.Control.Socket),
		cmd: cmd, done: make(chan struct{}), more: make(chan struct{}),
	}
	go p.follow(stderr, o.Log)
	return p, nil
}

// follow reads the log to its end and then waits for the child.
func (p *Process) follow(stderr io.Reader, log func(Line)) {
	defer close(p.done)
	sc := bufio.NewScanner(stderr)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		line := Line{}
		if json.Unmarshal(sc.Bytes(), &line) != nil {
			line = Line{"msg": sc.Text()} // a usage error or a panic
		}
		if log != nil {
			log(line)
		}
		p.mu.Lock()
		p.lines = append(p.lines, line)
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
	err := p.cmd.Wait()
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
}

// Lines returns the log so far.
func (p *Process) Lines() []Line {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Line(nil), p.lines...)
}

// WaitLine waits for a line that match accepts, among those already written
// and those to come.
func (p *Process) WaitLine(ctx context.Context, match func(Line) bool) (Line, error) {
	next := 0
	for {
		p.mu.Lock()
		lines, more := p.lines, p.more
		p.mu.Unlock()
		for ; next < len(lines); next++ {
			if match(lines[next]) {
				return lines[next], nil
			}
		}
		select {
		case <-more:
		case <-p.done:
			return nil, fmt.Errorf("edge ended: %w", errors.Join(p.Wait(), errors.New(p.tail())))
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; the log ends with:\n%s", context.Cause(ctx), p.tail())
		}
	}
}

// tail returns the last lines of the log as text.
func (p *Process) tail() string {
	lines := p.Lines()
	var text strings.Builder
	for _, l := range lines[max(0, len(lines)-8):] {
		_ = json.NewEncoder(&text).Encode(l) // it was JSON before
	}
	return text.String()
}

// WaitReady waits until edge says that it is ready.
func (p *Process) WaitReady(ctx context.Context) error {
	_, err := p.WaitLine(ctx, func(l Line) bool { return l.Message() == "ready" })
	return err
}

// Status asks the control socket, waiting for it to come up.
func (p *Process) Status(ctx context.Context) (admin.Status, error) {
	for {
		s, err := p.control.Status(ctx)
		if err == nil || !errors.Is(err, admin.ErrUnreachable) {
			return s, err
		}
		select {
		case <-time.After(askAgain):
		case <-p.done:
			return s, fmt.Errorf("edge ended: %w", errors.Join(p.Wait(), errors.New(p.tail())))
		case <-ctx.Done():
			return s, err
		}
	}
}

// Addr returns the address that the listener is bound to.
func (p *Process) Addr(ctx context.Context, listener string) (string, error) {
	s, err := p.Status(ctx)
	if err != nil {
		return "", err
	}
	for _, l := range s.Proxy.Listeners {
		if l.Name == listener {
			return l.Address, nil
		}
	}
	return "", fmt.Errorf("edge has no listener %q", listener)
}

// Reload has edge read its configuration again.
func (p *Process) Reload(ctx context.Context) (admin.Reloaded, error) { return p.control.Reload(ctx) }

// Signal sends s to the child.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Done is closed when the child has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the child; nil means exit code 0.
func (p *Process) Wait() error {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Kill ends the child at once, as a crash does.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// Close stops the child as a service manager does and returns how it ended;
// a child that does not end is killed, which is an error.
func (p *Process) Close() error {
	_ = p.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
		return p.Wait()
	case <-time.After(killAfter):
		p.Kill()
		return fmt.Errorf("edge did not end in %v after SIGTERM:\n%s", killAfter, p.tail())
	}
}
