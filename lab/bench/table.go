package main

import (
	"fmt"
	"io"
	"math"
	"strings"
)

const (
	nameWidth = 12
	cellWidth = 17
)

func printHeader(out io.Writer, names []string) {
	fmt.Fprintf(out, "%-*s", nameWidth, "workload")
	for _, name := range names {
		fmt.Fprintf(out, " %*s", cellWidth, name)
	}
	fmt.Fprintf(out, "   A/A  unit\n%s\n", strings.Repeat("-", nameWidth+(cellWidth+1)*len(names)+16))
}

// printRow prints the medians of one workload, and ratios to the first proxy.
func printRow(out io.Writer, w workload, r *results) {
	fmt.Fprintf(out, "%-*s", nameWidth, w.name)
	base := r.figure(r.names[0], w)
	for _, name := range r.names {
		fmt.Fprintf(out, " %*s", cellWidth, cell(r.figure(name, w), base))
	}
	fmt.Fprintf(out, " %5s  %s\n", percent(r.spread(w)), w.unit)
}

// cell is a median and its ratio to base: "20.1 (1.02x)". An exclamation mark
// says that there were errors, a dash that there is no figure.
func cell(f, base figure) string {
	if f.missing() {
		return "-"
	}
	text := number(f.median)
	if f.errors > 0 {
		text += "!"
	}
	if base.missing() || base.median <= 0 {
		return text
	}
	return text + fmt.Sprintf(" (%.2fx)", f.median/base.median)
}

// number has a tenth below 100, and none above: more would be noise.
func number(v float64) string {
	if math.Abs(v) < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// percent is a spread for people; a dash for NaN.
func percent(part float64) string {
	if math.IsNaN(part) {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*part)
}

// printDetails prints the ranges over the rounds, and the other figures of the
// round with the median.
func printDetails(out io.Writer, chosen []workload, r *results) {
	fmt.Fprintf(out, "\n%-*s %-14s %7s %17s %7s %9s %6s %6s %9s %9s %9s %9s %9s %8s %6s  %s\n", nameWidth, "workload", "proxy", "median", "range", "ratio",
		"units/s", "cores", "csw/u", "p50 us", "p99 us", "p99.9 us", "ttft p50", "KiB/conn", "PSS MiB", "errors", "note")
	for _, w := range chosen {
		base := r.figure(r.names[0], w)
		for _, name := range r.names {
			f := r.figure(name, w)
			m := f.middle
			median, spread, ratio, memory := "-", "-", "-", ""
			if w.idle() {
				memory = number(m.Memory) // of other workloads it is what the one before left
			}
			if !f.missing() {
				median, spread = number(f.median), number(f.low)+"-"+number(f.high)
			}
			if !f.missing() && !base.missing() && base.median > 0 {
				ratio = fmt.Sprintf("%.2fx", f.median/base.median)
			}
			fmt.Fprintf(out, "%-*s %-14s %7s %17s %7s %9.0f %6.2f %6.2f %9.0f %9.0f %9.0f %9.0f %9s %8.1f %6d  %s\n", nameWidth, w.name, name, median, spread, ratio,
				m.Rate, m.Cores, m.Switch, m.P50, m.P99, m.P999, m.TTFT50, memory, m.PSS, f.errors, m.Note)
		}
	}
}

// printMarkdown prints medians, ranges, ratios and the A/A spread as a table.
func printMarkdown(out io.Writer, chosen []workload, r *results) {
	fmt.Fprintf(out, "| workload | unit |")
	for _, name := range r.names {
		fmt.Fprintf(out, " %s |", name)
	}
	fmt.Fprintf(out, " A/A |\n|---|---|%s\n", strings.Repeat("---|", len(r.names)+1))
	for _, w := range chosen {
		fmt.Fprintf(out, "| %s | %s |", w.title, w.unit)
		base := r.figure(r.names[0], w)
		for _, name := range r.names {
			f := r.figure(name, w)
			median, ratio, _ := strings.Cut(cell(f, base), " ")
			if f.rounds > 1 {
				median += fmt.Sprintf(" [%s–%s]", number(f.low), number(f.high))
			}
			fmt.Fprintf(out, " %s |", strings.TrimSpace(median+" "+ratio))
		}
		fmt.Fprintf(out, " %s |\n", percent(r.spread(w)))
	}
}
