// Command loadgen drives one workload against a TLS proxy and reports, as one
// line of JSON, what it cost: the CPU time of the process tree -pid per unit of
// work, latencies, and memory per connection.
//
// Connections are set up and warmed before the measured window opens; CPU
// time and work are both counted over exactly that window.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"edge/lab/bench/internal/meter"
)

// options is the command line.
type options struct {
	addr, name, mode, proto, path, expect, profile string

	conns, streams, pid, body, events, rate int
	warm, window, gap                       time.Duration
	step, resume, mlkem                     bool
}

func (o *options) flags(f *flag.FlagSet) {
	f.StringVar(&o.addr, "addr", "127.0.0.1:28443", "proxy `address`")
	f.StringVar(&o.name, "name", "bench.test", "server `name` for SNI and Host")
	f.StringVar(&o.mode, "mode", "req", "req, conn, sse, up, down, idle, ws, grpc")
	f.StringVar(&o.proto, "proto", "h1", "h1 or h2")
	f.StringVar(&o.path, "path", "", "request path and query (default by mode)")
	f.StringVar(&o.expect, "expect", "", "report nothing unless the report's note has this `word`: a key type, a key exchange, resumed=true")
	f.StringVar(&o.profile, "profile", "", "record the proxy's CPU profile in the window with perf(1) in `file`; the figures then include perf's part")
	f.IntVar(&o.conns, "conns", 64, "connections")
	f.IntVar(&o.streams, "streams", 1, "concurrent streams per h2 connection")
	f.IntVar(&o.pid, "pid", 0, "proxy process whose tree is measured")
	f.IntVar(&o.body, "body", 1024, "request body or message `bytes`")
	f.IntVar(&o.events, "events", 2000, "sse: events per stream")
	f.IntVar(&o.rate, "rate", 0, "req h1: requests per second in all, 0 for a closed loop")
	f.DurationVar(&o.warm, "warm", 500*time.Millisecond, "warm-up after set-up")
	f.DurationVar(&o.window, "window", 3*time.Second, "measured window")
	f.DurationVar(&o.gap, "gap", 50*time.Millisecond, "sse: time between events of a stream")
	f.BoolVar(&o.step, "step", false, "sse: all streams emit at the same instant")
	f.BoolVar(&o.resume, "resume", false, "conn: resume TLS sessions")
	f.BoolVar(&o.mlkem, "mlkem", false, "offer X25519MLKEM768 first, as browsers do; otherwise X25519 alone")
}

func main() {
	var o options
	o.flags(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	report, err := run(ctx, o)
	stop()
	if e := json.NewEncoder(os.Stdout).Encode(report); err == nil {
		err = e
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
}

// run measures one window. After an error the report tells it, and counts it.
func run(ctx context.Context, o options) (meter.Report, error) {
	l := &load{options: o, tls: clientTLS(o)}
	report, err := l.measure(ctx)
	if err != nil {
		report = meter.Report{Note: err.Error(), Errors: 1}
	}
	report.Mode = o.mode
	return report, err
}

func (l *load) measure(ctx context.Context) (r meter.Report, err error) {
	start := map[string]func(*load, context.Context) error{
		"req": (*load).startRequests, "conn": (*load).startConnections, "sse": (*load).startStreams, "up": (*load).startUploads,
		"down": (*load).startDownloads, "idle": (*load).startIdle, "ws": (*load).startWebsockets, "grpc": (*load).startGRPC,
	}[l.mode]
	if start == nil {
		return r, fmt.Errorf("unknown mode %q", l.mode)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer l.wait()
	defer cancel()
	defer l.stopping.Store(true)

	before := meter.Memory(meter.Tree(l.pid))
	if err := start(l, ctx); err != nil {
		return r, err
	}
	pause(ctx, l.warm)
	tree := meter.Tree(l.pid)
	l.open.Store(true)
	from, err := l.sample(tree)
	if err != nil {
		return r, err
	}
	if err := l.observe(ctx, tree); err != nil {
		return r, err
	}
	to, err := l.sample(tree)
	if err != nil {
		return r, err
	}
	l.open.Store(false)
	after := meter.Memory(tree)
	l.stopping.Store(true)

	l.fill(&r, from, to)
	n := l.conns
	if l.proto == "h2" {
		n *= l.streams
	}
	r.Memory = float64(after-before) / (1 << 10) / float64(n)
	r.PSS = float64(after) / (1 << 20)
	l.note(&r)
	return r, context.Cause(ctx)
}

// observe waits for the window to pass, and records a profile if asked to.
func (l *load) observe(ctx context.Context, tree []int) error {
	if l.profile == "" {
		pause(ctx, l.window)
		return nil
	}
	pids := make([]string, len(tree))
	for i, pid := range tree {
		pids[i] = strconv.Itoa(pid)
	}
	// Frame pointers suffice for Go, and cost the proxy little.
	perf := exec.CommandContext(ctx, "perf", "record", "-q", "-F", samplesASecond, "-e", "cpu-clock", "--call-graph", "fp", //nolint:gosec // the folder is the user's
		"-p", strings.Join(pids, ","), "-o", l.profile, "--", "sleep", fmt.Sprintf("%.3f", l.window.Seconds()))
	if text, err := perf.CombinedOutput(); err != nil {
		return fmt.Errorf("perf record: %w: %s", err, text)
	}
	return nil
}

// samplesASecond is odd, so as not to beat with timers.
const samplesASecond = "997"

// sample is what has been used and done at an instant.
type sample struct {
	at              time.Time
	cpu             time.Duration
	units, switches int64
}

func (l *load) sample(tree []int) (sample, error) {
	at := time.Now()
	cpu, err := meter.CPU(tree)
	return sample{at, cpu, l.units.Load(), meter.Switches(tree)}, err
}

// fill computes what the window from one sample to the other shows.
func (l *load) fill(r *meter.Report, from, to sample) {
	r.Units = to.units - from.units
	r.Seconds = to.at.Sub(from.at).Seconds()
	r.Rate = float64(r.Units) / r.Seconds
	r.Cores = (to.cpu - from.cpu).Seconds() / r.Seconds
	if r.Units > 0 {
		r.CPU = float64(to.cpu-from.cpu) / 1e3 / float64(r.Units)
		r.Switch = float64(to.switches-from.switches) / float64(r.Units)
	}
	r.P50, r.P99, r.P999 = meter.Micros(l.latency.Quantile(.5)), meter.Micros(l.latency.Quantile(.99)), meter.Micros(l.latency.Quantile(.999))
	r.TTFT50, r.TTFT99 = meter.Micros(l.ttft.Quantile(.5)), meter.Micros(l.ttft.Quantile(.99))
}
