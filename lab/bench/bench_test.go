package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"edge/lab/bench/internal/meter"
)

// names returns those of proxies or workloads, with spaces between.
func names[T any](all []T, name func(T) string) string {
	var n []string
	for _, one := range all {
		n = append(n, name(one))
	}
	return strings.Join(n, " ")
}

func nameOf(p *proxy) string { return p.name }

func TestWorkloadsAreChosenByNameAndGroup(t *testing.T) {
	for list, want := range map[string]string{
		"judged":         "idle h1-req h2-req sse-h1-1k sse-h2-1k upload download grpc ws hs-ecdsa hs-resume",
		"ws,h1-req":      "h1-req ws",
		"h1-req, hs-rsa": "h1-req hs-rsa",
		"judged,h1-rate": "idle h1-req h2-req sse-h1-1k sse-h2-1k upload download grpc ws hs-ecdsa hs-resume h1-rate",
		"all":            names(workloads, func(w workload) string { return w.name }),
	} {
		chosen, err := choose(list)
		if got := names(chosen, func(w workload) string { return w.name }); err != nil || got != want {
			t.Errorf("%q: got %s, %v, want %s", list, got, err, want)
		}
	}
	for _, list := range []string{"h1", "", "h1-req,,ws"} {
		if _, err := choose(list); err == nil {
			t.Errorf("%q is taken, want an error", list)
		}
	}
}

func TestProxiesAreNamed(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseProxies([]string{"edge", "edge", "edge", "old=edge:/tmp/old", "new=nginx:sbin/nginx", "mine=./mine -c x=y:z", "direct", "nginx'", "mine=true"})
	if err != nil {
		t.Fatal(err)
	}
	if got := names(all, nameOf); got != "edge edge' edge'' old new mine direct nginx' mine'" {
		t.Errorf("got %s", got)
	}
	for i, want := range []string{
		0: "{lab}/peers/run.sh edge", 1: "{lab}/peers/run.sh edge", 3: "{lab}/peers/run.sh edge '/tmp/old'",
		4: "{lab}/peers/run.sh nginx '" + here + "/sbin/nginx'", 5: "./mine -c x=y:z", 6: "", 7: "{lab}/peers/run.sh nginx", 8: "true",
	} {
		if want != "" && all[i].command != want || i == 6 && all[i].command != "" {
			t.Errorf("%s: command %q, want %q", all[i].name, all[i].command, want)
		}
	}
	for _, args := range [][]string{nil, {"envoy"}, {"=x"}, {"x="}} {
		if _, err := parseProxies(args); err == nil {
			t.Errorf("%q is taken, want an error", args)
		}
	}
}

func TestPairsAreControls(t *testing.T) {
	if got := pairs([]string{"nginx", "edge", "edge'", "old'"}); len(got) != 1 || got[0] != [2]string{"edge", "edge'"} {
		t.Errorf("got %v, want edge and edge'", got)
	}
}

func TestPlaceholdersAreAlsoVariables(t *testing.T) {
	at := places{listen: "127.0.0.1:81", backend: "b:1", h2c: "h:2", certs: "/c", tmp: "/t", lab: "/l", workers: 3}
	command, env, err := at.fill("{lab}/x -l {listen} -p {port} -b {backend} -g {h2c} -c {certs} -t {tmp} -w {workers} {other}")
	if want := "/l/x -l 127.0.0.1:81 -p 81 -b b:1 -g h:2 -c /c -t /t -w 3 {other}"; err != nil || command != want {
		t.Errorf("got %q, %v, want %q", command, err, want)
	}
	if got, want := strings.Join(env, " "), "LISTEN=127.0.0.1:81 PORT=81 BACKEND=b:1 H2C=h:2 CERTS=/c TMP=/t WORKERS=3 LAB=/l"; got != want {
		t.Errorf("environment %s, want %s", got, want)
	}
	if _, _, err := (places{listen: "nowhere"}).fill("x"); !errors.Is(err, errPort) {
		t.Errorf("got %v, want %v", err, errPort)
	}
}

func TestRoundsAreInterleaved(t *testing.T) {
	all := []*proxy{{name: "a"}, {name: "b"}, {name: "c"}}
	for round, want := range []string{"a b c", "c b a", "a b c"} {
		if got := names(order(all, round), nameOf); got != want {
			t.Errorf("round %d: got %s, want %s", round, got, want)
		}
	}
	if got := names(all, nameOf); got != "a b c" {
		t.Errorf("the list was changed to %s", got)
	}
}

// req is a workload of CPU time, memory one of memory.
var (
	req    = workload{name: "h1-req", unit: "us/req", title: "a request"}
	memory = workload{name: "idle", unit: "KiB/conn", title: "an idle connection"}
)

func reports(w workload, proxy string, costs ...float64) (all []meter.Report) {
	for i, c := range costs {
		all = append(all, meter.Report{Proxy: proxy, Workload: w.name, Round: i, Units: 100, CPU: c})
	}
	return all
}

func TestMedianAndRangeOfTheRounds(t *testing.T) {
	for _, c := range []struct {
		costs             []float64
		median, low, high float64
	}{
		{[]float64{7}, 7, 7, 7},
		{[]float64{9, 5}, 7, 5, 9},
		{[]float64{30, 10, 20}, 20, 10, 30},
		{[]float64{4, 1, 3, 2}, 2.5, 1, 4},
	} {
		r := &results{all: slices.Concat(reports(req, "a", c.costs...), reports(req, "b", 1000), reports(memory, "a", 1000))}
		f := r.figure("a", req)
		if f.missing() || f.median != c.median || f.low != c.low || f.high != c.high || f.rounds != len(c.costs) {
			t.Errorf("%v: got %+v", c.costs, f)
		}
	}
}

// Law: a figure does not depend on the order of the rounds, and its median
// lies within its range.
func TestMedianDoesNotDependOnTheOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		costs := make([]float64, 1+rng.IntN(9))
		for i := range costs {
			costs[i] = 1 + rng.Float64()
		}
		r := &results{all: reports(req, "a", costs...)}
		before := r.figure("a", req)
		rng.Shuffle(len(r.all), func(i, j int) { r.all[i], r.all[j] = r.all[j], r.all[i] })
		after := r.figure("a", req)
		if after.median != before.median || after.low != before.low || after.median < after.low || after.median > after.high {
			t.Fatalf("%v: %+v, then %+v", costs, before, after)
		}
	}
}

func TestRoundsWithoutWorkDoNotCount(t *testing.T) {
	r := &results{all: append(reports(req, "a", 10, 20, 30), meter.Report{Proxy: "a", Workload: req.name, Errors: 3, Note: "refused"})}
	if f := r.figure("a", req); f.median != 20 || f.errors != 3 {
		t.Errorf("got %+v, want the median of the others, and 3 errors", f)
	}
	r.all = r.all[3:]
	if f := r.figure("a", req); !f.missing() || f.middle.Note != "refused" {
		t.Errorf("got %+v, want nothing, and why", f)
	}
	r.all = []meter.Report{{Proxy: "a", Workload: memory.name, Memory: 25.5}}
	if f := r.figure("a", memory); f.missing() || f.median != 25.5 {
		t.Errorf("idle connections do no work: got %+v, want 25.5", f)
	}
	r.all[0].Errors = 1
	if f := r.figure("a", memory); !f.missing() {
		t.Errorf("idle connections with errors: got %+v, want nothing", f)
	}
}

func TestSpreadIsTheDistanceOfTheControls(t *testing.T) {
	r := &results{names: []string{"a", "a'", "b"}, all: slices.Concat(reports(req, "a", 100), reports(req, "a'", 92), reports(req, "b", 500))}
	if got := r.spread(req); math.Abs(got-.08) > 1e-9 {
		t.Errorf("got %v, want 0.08", got)
	}
	r.names, r.all = append(r.names, "b'"), append(r.all, reports(req, "b'", 600)...)
	if got := r.spread(req); math.Abs(got-.2) > 1e-9 {
		t.Errorf("got %v, want the larger one of two, 0.2", got)
	}
	r.names = []string{"a", "b"}
	if got := r.spread(req); !math.IsNaN(got) {
		t.Errorf("without controls: got %v, want NaN", got)
	}
	if got := (&results{names: []string{"a", "a'"}}).spread(req); !math.IsNaN(got) {
		t.Errorf("without figures: got %v, want NaN", got)
	}
}

func TestTablesHaveMediansRangesRatiosAndSpread(t *testing.T) {
	r := &results{names: []string{"edge", "edge'", "nginx", "sick"}, all: slices.Concat(
		reports(req, "edge", 30, 40, 50), reports(req, "edge'", 44), reports(req, "nginx", 18, 22), reports(req, "sick"),
	)}
	r.all = append(r.all, meter.Report{Proxy: "sick", Workload: req.name, Errors: 1, Note: "reset"},
		meter.Report{Proxy: "nginx", Workload: req.name, Errors: 2, Note: "reset"})
	var out bytes.Buffer
	printHeader(&out, r.names)
	printRow(&out, req, r)
	printDetails(&out, []workload{req}, r)
	printMarkdown(&out, []workload{req}, r)
	lines := strings.Split(out.String(), "\n")
	for i, want := range map[int]string{
		0: "workload edge edge' nginx sick A/A unit",
		2: "h1-req 40.0 (1.00x) 44.0 (1.10x) 20.0! (0.50x) - 10% us/req",
		5: "h1-req edge 40.0 30.0-50.0 1.00x 0 0.00 0.00 0 0 0 0 0.0 0",
		7: "h1-req nginx 20.0 18.0-22.0 0.50x 0 0.00 0.00 0 0 0 0 0.0 2",
		8: "h1-req sick - - - 0 0.00 0.00 0 0 0 0 0.0 1 reset",
		9: "| workload | unit | edge | edge' | nginx | sick | A/A |", 10: "|---|---|---|---|---|---|---|",
		11: "| a request | us/req | 40.0 [30.0–50.0] (1.00x) | 44.0 (1.10x) | 20.0! [18.0–22.0] (0.50x) | - | 10% |",
	} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d: got  %s\nwant %s", i, got, want)
		}
	}
}

func TestRatiosNeedABase(t *testing.T) {
	r := &results{names: []string{"sick", "edge"}, all: reports(req, "edge", 10, 20)}
	var out bytes.Buffer
	printMarkdown(&out, []workload{req}, r)
	if want := "| a request | us/req | - | 15.0 [10.0–20.0] | - |"; !strings.Contains(out.String(), want) {
		t.Errorf("got %s, want %s", out.String(), want)
	}
	if got := cell(figure{median: 123.4, rounds: 1}, figure{}); got != "123" {
		t.Errorf("got %q, want 123 alone", got)
	}
}

func TestResultsAreKeptAndPrintedAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "raw.jsonl")
	for _, m := range slices.Concat(reports(req, "z", 10), reports(req, "a", 25)) {
		if err := keep(file, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := keep("", meter.Report{}); err != nil {
		t.Error(err)
	}
	for flags, want := range map[string]string{
		"":          "h1-req 10.0 (1.00x) 25.0 (2.50x) - us/req",
		"-markdown": "| 10.0 (1.00x) | 25.0 (2.50x) | - |",
	} {
		var out bytes.Buffer
		if err := run(t.Context(), append(strings.Fields(flags), "-from", file), &out, io.Discard); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(strings.Fields(out.String()), " ")
		if !strings.Contains(got, want) || strings.Contains(got, "websocket") || strings.Contains(got, "us/msg") {
			t.Errorf("%s: got %s, want %s and no row without results", flags, got, want)
		}
	}
	if err := os.WriteFile(file, []byte("{\n{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-from", file}, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

func TestCommandLineIsChecked(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-list"}, &out, io.Discard); err != nil || !strings.Contains(out.String(), "* grpc") {
		t.Errorf("got %s, %v, want the workloads", out.String(), err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"at least one proxy": nil,
		"no workload":        {"-only", "x", "edge"},
		"no results":         {"-from", empty},
		"no such file":       {"-from", empty + "x"},
		"modelsim":           {"-root", t.TempDir(), "edge"}, // not built
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", args, err, want)
		}
	}
	if err := run(t.Context(), []string{"-h"}, io.Discard, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got %v, want %v", err, flag.ErrHelp)
	}
}

func TestFreeAddressesDiffer(t *testing.T) {
	addrs, err := freeAddrs(t.Context(), 8)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(addrs)
	if n := len(slices.Compact(addrs)); n != 8 {
		t.Errorf("got %d addresses, want 8", n)
	}
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	deaf := filepath.Join(t.TempDir(), "deaf")
	c, err := spawn(io.Discard, os.Environ(), "/bin/sh", "-c", "trap '' TERM; sleep 60 & : >"+deaf+"; wait")
	if err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { _, err := os.Stat(deaf); return err == nil })
	c.stop()
	until(t, func() bool { return errors.Is(syscall.Kill(-c.pid(), 0), syscall.ESRCH) })
}

// until waits for what comes about within a busy machine's half minute.
func until(t *testing.T, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			t.Fatal("it did not come about")
		}
		runtime.Gosched()
	}
}

func TestReadyWaitsForAListenerOrTheEnd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := spawn(io.Discard, os.Environ(), "/bin/sh", "-c", "exit 3")
	if err != nil {
		t.Fatal(err)
	}
	defer c.stop()
	if err := c.ready(t.Context(), ln.Addr().String()); err != nil {
		t.Errorf("with a listener: got %v", err)
	}
	ln.Close()
	if err := c.ready(t.Context(), ln.Addr().String()); !errors.Is(err, errEnded) {
		t.Errorf("of an ended process: got %v, want %v", err, errEnded)
	}
	running, err := spawn(io.Discard, os.Environ(), "/bin/sh", "-c", "exec sleep 60")
	if err != nil {
		t.Fatal(err)
	}
	defer running.stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := running.ready(ctx, ln.Addr().String()); err == nil || errors.Is(err, errEnded) {
		t.Errorf("after the end of the context: got %v, want that nobody listens", err)
	}
}
