package main

import (
	"fmt"
	"io"
	"strings"
)

// workload is what the load generator does, and its unit of work.
type workload struct {
	name, unit, title string
	judged            bool // in the table of docs/performance.md
	args              string
}

// workloads run in this order: memory first, on heaps that nothing has used.
var workloads = []workload{
	{"idle", "KiB/conn", "idle TLS connection, 1,000 of them", true, "-mode idle -conns 1000 -warm 1500ms"},
	{"h1-req", "us/req", "h1 request, 1 KB up, 0.5 KB down, 64 connections", true, "-mode req -proto h1 -conns 64"},
	{"h2-req", "us/req", "h2 request, 8 connections of 16 streams", true, "-mode req -proto h2 -conns 8 -streams 16"},
	{"h1-8k", "us/req", "h1 request, 8 KB up and down", false, "-mode req -proto h1 -conns 64 -body 8192 -path /v1/chat/completions?size=8192"},
	{"sse-h1-100", "us/event", "SSE event over h1, 100 streams of 50 a second", false, "-mode sse -conns 100 -gap 20ms"},
	{"sse-h1-1k", "us/event", "SSE event over h1, 1,000 streams of 10 a second", true, "-mode sse -conns 1000 -gap 100ms"},
	{"sse-h1-5k", "us/event", "SSE event over h1, 5,000 streams of 2 a second", false, "-mode sse -conns 5000 -gap 500ms"},
	{"sse-h2-1k", "us/event", "SSE event over h2, 20 connections of 50 streams", true, "-mode sse -proto h2 -conns 20 -streams 50 -gap 100ms"},
	{"sse-h2-step", "us/event", "SSE event over h2, all streams in step", false, "-mode sse -proto h2 -conns 20 -streams 50 -gap 100ms -step"},
	{"upload", "us/MiB", "upload, 10 MiB bodies", true, "-mode up -conns 4 -body 10485760"},
	{"download", "us/MiB", "download, 10 MiB bodies", true, "-mode down -conns 4 -body 10485760"},
	{"grpc", "us/msg", "gRPC message, 256 B, 64 streams", true, "-mode grpc -proto h2 -conns 4 -streams 16 -body 256"},
	{"ws", "us/msg", "websocket message, 256 B, 64 connections", true, "-mode ws -conns 64 -body 256"},
	{"hs-ecdsa", "us/conn", "handshake, ECDSA P-256, X25519", true, "-mode conn -conns 8 -expect ECDSA"},
	{"hs-resume", "us/conn", "handshake, resumed", true, "-mode conn -conns 8 -resume -expect resumed=true"},
	{"hs-rsa", "us/conn", "handshake, RSA-2048", false, "-mode conn -conns 8 -name rsa.bench.test -expect RSA"},
	{"hs-mlkem", "us/conn", "handshake, ECDSA P-256, X25519MLKEM768", false, "-mode conn -conns 8 -mlkem -expect X25519MLKEM768"},
	{"h1-static", "us/req", "h1 request that the proxy answers itself", false, "-mode req -proto h1 -conns 64 -body 64 -path /static"},
	{"h1-rate", "us/req", "h1 request, 4,000 a second", false, "-mode req -proto h1 -conns 64 -rate 4000"},
	{"h1-conns", "us/req", "h1 request, 4,000 a second over 2,000 connections", false, "-mode req -proto h1 -conns 2000 -rate 4000"},
}

// idle says that the figure is memory, not CPU time.
func (w workload) idle() bool { return w.name == "idle" }

// choose returns the workloads that a comma-separated list names.
func choose(list string) ([]workload, error) {
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		wanted[strings.TrimSpace(name)] = true
	}
	all, judged := wanted["all"], wanted["judged"]
	delete(wanted, "all")
	delete(wanted, "judged")
	var chosen []workload
	for _, w := range workloads {
		if all || judged && w.judged || wanted[w.name] {
			chosen = append(chosen, w)
		}
		delete(wanted, w.name)
	}
	for name := range wanted {
		return nil, fmt.Errorf("no workload %q: -list names them", name)
	}
	return chosen, nil
}

func printWorkloads(out io.Writer) {
	for _, w := range workloads {
		mark := " "
		if w.judged {
			mark = "*"
		}
		fmt.Fprintf(out, "%s %-12s %-9s %s\n", mark, w.name, w.unit, w.title)
	}
	fmt.Fprintln(out, "* judged: run by default")
}
