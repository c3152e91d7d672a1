package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"edge/lab/bench/internal/meter"
)

const (
	hang = 40 * time.Second       // that a measurement may take besides its window
	rest = 100 * time.Millisecond // between two measurements
)

// stage is the model server and the proxies, started.
type stage struct {
	settings
	proxies  []*proxy
	model    *child
	folder   string // scratch
	progress io.Writer
}

// compare measures all workloads and prints the tables.
func compare(ctx context.Context, s settings, proxies []*proxy, out, progress io.Writer) (err error) {
	root, err := filepath.Abs(s.root)
	if err != nil {
		return err
	}
	s.root = root
	st := &stage{settings: s, proxies: proxies, progress: progress}
	if st.folder, err = os.MkdirTemp("", "bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(st.folder)) }()
	defer st.stop()
	if err := st.start(ctx); err != nil {
		return err
	}
	if s.profile != "" {
		return st.profileAll(ctx, out)
	}
	r := &results{}
	for _, p := range proxies {
		r.names = append(r.names, p.name)
	}
	fmt.Fprintf(out, "%d rounds, window %v, %d workers\n", s.rounds, s.window, s.workers)
	if !s.markdown {
		printHeader(out, r.names)
	}
	for _, w := range s.chosen {
		if err := st.measureAll(ctx, w, r); err != nil {
			return err
		}
		if !s.markdown {
			printRow(out, w, r)
		}
	}
	if s.markdown {
		printMarkdown(out, s.chosen, r)
	} else {
		printDetails(out, s.chosen, r)
	}
	return nil
}

// start starts everything and waits for it. A proxy that does not come up
// stays in the tables, without figures.
func (st *stage) start(ctx context.Context) error {
	if err := os.Chmod(st.folder, 0o755); err != nil { //nolint:gosec // some proxies drop their privileges
		return err
	}
	const ofModel = 3 // h1, h1 over TLS, h2c
	addrs, err := freeAddrs(ctx, ofModel+len(st.proxies))
	if err != nil {
		return err
	}
	certs := filepath.Join(st.root, "certs")
	st.model, err = spawn(st.progress, os.Environ(), filepath.Join(st.root, "bin", "modelsim"), "-listen", addrs[0], "-tls", addrs[1], "-h2c", addrs[2],
		"-cert", filepath.Join(certs, "ec.crt"), "-key", filepath.Join(certs, "ec.key"))
	if err != nil {
		return err
	}
	for _, addr := range addrs[:ofModel] {
		if err := st.model.ready(ctx, addr); err != nil {
			return fmt.Errorf("model server: %w", err)
		}
	}
	for i, p := range st.proxies {
		if p.command == "" {
			p.addr = addrs[1]
			continue
		}
		p.addr = addrs[ofModel+i]
		tmp := filepath.Join(st.folder, strconv.Itoa(i))
		if err := os.Mkdir(tmp, 0o755); err != nil { //nolint:gosec // some proxies drop their privileges
			return err
		}
		at := places{listen: p.addr, backend: addrs[0], h2c: addrs[2], certs: certs, tmp: tmp, lab: st.root, workers: st.workers}
		command, env, err := at.fill(p.command)
		if err != nil {
			return err
		}
		env = append(append(os.Environ(), env...), "GOMAXPROCS="+strconv.Itoa(st.workers))
		if p.child, err = spawn(st.progress, env, "/bin/sh", "-c", "exec "+command); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return st.await(ctx)
}

func (st *stage) await(ctx context.Context) error {
	up := 0
	for _, p := range st.proxies {
		if p.child == nil { // direct
			up++
			continue
		}
		if err := p.child.ready(ctx, p.addr); err != nil {
			fmt.Fprintf(st.progress, "%s does not start: %v\n", p.name, err)
			p.addr = ""
			continue
		}
		up++
	}
	if up == 0 {
		return errors.New("no proxy started")
	}
	return nil
}

func (st *stage) stop() {
	for _, p := range st.proxies {
		if p.child != nil {
			p.child.stop()
		}
	}
	if st.model != nil {
		st.model.stop()
	}
}

// order is that of a round: every other one runs backwards, so that no proxy
// always comes after the same one, and a drift of the machine falls on all.
func order(proxies []*proxy, round int) []*proxy {
	o := slices.Clone(proxies)
	if round%2 == 1 {
		slices.Reverse(o)
	}
	return o
}

// measureAll runs the rounds of one workload.
func (st *stage) measureAll(ctx context.Context, w workload, r *results) error {
	rounds := st.rounds
	if w.idle() {
		rounds = 1 // a second one would meet warm heaps
	}
	for round := range rounds {
		for _, p := range order(st.proxies, round) {
			if p.addr == "" {
				continue
			}
			report := st.measure(ctx, p, w)
			if err := ctx.Err(); err != nil {
				return err
			}
			report.Proxy, report.Workload, report.Round = p.name, w.name, round
			r.all = append(r.all, report)
			if err := keep(st.raw, report); err != nil {
				return err
			}
		}
	}
	return nil
}

// measure runs the load generator once. What goes wrong is in the report.
func (st *stage) measure(ctx context.Context, p *proxy, w workload, more ...string) (r meter.Report) {
	measured := st.model
	if p.child != nil {
		measured = p.child
	}
	args := []string{"-addr", p.addr, "-pid", strconv.Itoa(measured.pid()), "-window", st.window.String(), "-warm", "300ms"}
	args = append(args, strings.Fields(w.args)...)
	within, cancel := context.WithTimeout(ctx, st.window+hang)
	defer cancel()
	cmd := exec.CommandContext(within, filepath.Join(st.root, "bin", "loadgen"), append(args, more...)...) //nolint:gosec // our own
	cmd.Env = append(os.Environ(), "GOGC=400")
	line, err := cmd.Output()
	if e := json.Unmarshal(line, &r); e != nil {
		r = meter.Report{Errors: 1, Note: fmt.Sprintf("load generator: %v", errors.Join(err, e))}
	}
	select {
	case <-time.After(rest):
	case <-ctx.Done():
	}
	return r
}

// profileAll records a profile for each proxy and workload, and says where.
func (st *stage) profileAll(ctx context.Context, out io.Writer) error {
	if err := os.MkdirAll(st.profile, 0o755); err != nil { //nolint:gosec // for everybody
		return err
	}
	for _, w := range st.chosen {
		for _, p := range st.proxies {
			if p.addr == "" {
				continue
			}
			file := filepath.Join(st.profile, p.name+"-"+w.name+".perf")
			r := st.measure(ctx, p, w, "-profile", file)
			if err := ctx.Err(); err != nil {
				return err
			}
			if r.Errors > 0 {
				return fmt.Errorf("%s, %s: %s", p.name, w.name, r.Note)
			}
			fmt.Fprintf(out, "perf report --stdio --no-children -g none -i %s\n", file)
		}
	}
	return nil
}
