// Command bench compares TLS reverse proxies: it runs workloads against them
// side by side and prints what a unit of work cost each in CPU time, with
// ranges and with ratios to the first proxy named. README.md explains it;
// bench.sh builds what it needs and starts it:
//
//	lab/bench/bench.sh -only h1-req -rounds 3 edge edge nginx
//
// Every proxy is started on its own port and left idle while another is
// measured. Rounds are interleaved (A B C, C B A, ...) and the median counts.
// The lowest would not do: on a busy machine events queue up, and a proxy that
// finds more of them per wake-up spends less on each.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// settings is the command line.
type settings struct {
	rounds, workers int
	window          time.Duration
	root            string // folder of the lab
	raw             string // file that raw results are appended to
	profile         string // folder that profiles are written to, instead of measuring
	markdown        bool
	chosen          []workload
}

const (
	fullRounds, quickRounds = 5, 1
	fullWindow, quickWindow = 1500 * time.Millisecond, 400 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run does what the command line says. Tables go to out; complaints and
// progress to progress.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	var s settings
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(progress)
	f.Usage = func() {
		fmt.Fprintln(progress, "usage: bench [flags] NAME|NAME=KNOWN:BINARY|NAME=COMMAND ...; README.md has the names")
		f.PrintDefaults()
	}
	f.IntVar(&s.rounds, "rounds", fullRounds, "rounds per workload")
	f.DurationVar(&s.window, "window", fullWindow, "measured window")
	f.IntVar(&s.workers, "workers", 2, "workers, threads or GOMAXPROCS per proxy")
	f.StringVar(&s.root, "root", ".", "`folder` of the lab")
	f.StringVar(&s.raw, "json", "", "append raw results to `file`, a JSON object a line")
	f.StringVar(&s.profile, "profile", "", "record a CPU profile of each proxy and workload in `folder` with perf(1), and measure nothing")
	f.BoolVar(&s.markdown, "markdown", false, "print the table of the results in Markdown")
	only := f.String("only", "judged", "comma-separated workloads, or judged, or all")
	quick := f.Bool("quick", false, "one round of short windows, to see that everything works")
	list := f.Bool("list", false, "list the workloads")
	from := f.String("from", "", "print the tables of the raw results in `file`, and measure nothing")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *list {
		printWorkloads(out)
		return nil
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	s.chosen = chosen
	if *quick {
		s.rounds, s.window = quickRounds, quickWindow
	}
	if *from != "" {
		return printFrom(out, *from, s)
	}
	proxies, err := parseProxies(f.Args())
	if err != nil {
		return err
	}
	return compare(ctx, s, proxies, out, progress)
}

// printFrom prints what a run before has kept.
func printFrom(out io.Writer, file string, s settings) error {
	r, err := load(file)
	if err != nil {
		return err
	}
	measured := slices.DeleteFunc(s.chosen, func(w workload) bool { return !r.has(w) })
	if len(measured) == 0 {
		return fmt.Errorf("%s has no results of these workloads", file)
	}
	if s.markdown {
		printMarkdown(out, measured, r)
		return nil
	}
	printHeader(out, r.names)
	for _, w := range measured {
		printRow(out, w, r)
	}
	printDetails(out, measured, r)
	return nil
}
