// Command demo shows edge at work, with real parts and no network beyond
// loopback: an ACME CA (Pebble), an authoritative DNS server that takes signed
// updates, an S3 bucket, two model servers, and the real edge binary, which
// obtains a wildcard certificate and streams a chat through it.
//
//	go run ./lab/demo          stay up, with curl lines to paste
//	go run ./lab/demo -once    exit after the first chat
//
// This program itself only builds the two that do the work, edge and stage, and
// says how far it is: it has no dependencies, so it runs at once, where a
// first build of all of them takes a minute.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	patience = 10 * time.Minute // for a build that downloads every module
	tellAll  = 3 * time.Second
)

func main() {
	once := flag.Bool("once", false, "exit after the first chat")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *once)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, once bool) (err error) {
	dir, err := os.MkdirTemp("", "edge-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := build(ctx, dir); err != nil {
		return err
	}
	// The stage hears ^C itself, with this process, and ends its children.
	stage := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(dir, "stage"), "-dir", dir, fmt.Sprintf("-once=%v", once)) //nolint:gosec // just built
	stage.Stdout, stage.Stderr = os.Stdout, os.Stderr
	if err := stage.Start(); err != nil {
		return err
	}
	forward := context.AfterFunc(ctx, func() { _ = stage.Process.Signal(syscall.SIGTERM) }) // it may have ended
	defer forward()
	return stage.Wait()
}

// build compiles both programs into dir and says how many packages are done.
func build(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	fmt.Fprintln(os.Stdout, "building edge and the lab around it (a first build takes a minute)")
	cmd := exec.CommandContext(ctx, "go", "build", "-v", "-o", dir, "edge/cmd/edge", "edge/lab/demo/stage") //nolint:gosec // dir is ours
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")                                                         // static, as it is shipped
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the go command: %w (the demo needs Go and runs in edge's source tree)", err)
	}
	var packages atomic.Int64
	said := make(chan string, 1)
	go func() { said <- follow(stderr, &packages) }()
	tick := time.NewTicker(tellAll)
	defer tick.Stop()
	for {
		select {
		case text := <-said:
			if err := cmd.Wait(); err != nil {
				return fmt.Errorf("build: %w\n%s", err, text)
			}
			return nil
		case <-tick.C:
			fmt.Fprintf(os.Stdout, "%6.2fs  %d packages compiled\n", time.Since(start).Seconds(), packages.Load())
		}
	}
}

// follow reads what go build -v says to its end: a line for each package, which
// it counts, downloads, which it passes on, and errors, which it returns.
func follow(r io.Reader, packages *atomic.Int64) string {
	var rest strings.Builder
	for sc := bufio.NewScanner(r); sc.Scan(); {
		switch line := sc.Text(); {
		case strings.HasPrefix(line, "go: downloading"):
			fmt.Fprintln(os.Stdout, line)
		case !strings.ContainsAny(line, " :#"):
			packages.Add(1)
		default:
			fmt.Fprintln(&rest, line)
		}
	}
	return rest.String()
}
