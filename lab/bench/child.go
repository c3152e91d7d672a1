package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"syscall"
	"time"
)

const (
	grace     = 2 * time.Second        // for a child to end by itself
	startTime = 10 * time.Second       // for a proxy to take connections
	tryEvery  = 100 * time.Millisecond // meanwhile
)

// child is a process that runs until stop, and its descendants.
type child struct {
	cmd  *exec.Cmd
	end  context.CancelFunc
	done chan struct{}
}

// spawn starts a process in a group of its own. The caller must stop it.
func spawn(complaints io.Writer, env []string, path string, args ...string) (*child, error) {
	ctx, end := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // what the command line names
	cmd.Env, cmd.Stderr, cmd.SysProcAttr = env, complaints, leash()
	cmd.WaitDelay = grace
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		end()
		return nil, err
	}
	c := &child{cmd: cmd, end: end, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended does not matter
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop ends the process and what is left of its group.
func (c *child) stop() {
	c.end()
	<-c.done
	_ = syscall.Kill(-c.pid(), syscall.SIGKILL)
}

var errEnded = errors.New("it has ended")

// ready waits until the address takes connections.
func (c *child) ready(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-c.done:
			return errEnded
		case <-ctx.Done():
			return fmt.Errorf("takes no connection: %w", err)
		case <-tick.C:
		}
	}
}

// freeAddrs returns n loopback addresses that nobody listens on now. Fixed ones
// could belong to another run, and with SO_REUSEPORT two proxies would share
// the connections without a complaint.
func freeAddrs(ctx context.Context, n int) (addrs []string, err error) {
	var held []net.Listener
	defer func() {
		for _, ln := range held {
			err = errors.Join(err, ln.Close())
		}
	}()
	for range n {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		held = append(held, ln)
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs, nil
}
