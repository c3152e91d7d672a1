package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"edge/lab/bench/internal/meter"
)

// results are the reports of all rounds, and the proxies in order.
type results struct {
	names []string
	all   []meter.Report
}

// figure is what the rounds of one proxy and workload come to.
type figure struct {
	median, low, high float64
	rounds            int // that did the work
	errors            int64
	middle            meter.Report // the round with the median, or just above it
}

// has says that there are reports of a workload.
func (r *results) has(w workload) bool {
	return slices.ContainsFunc(r.all, func(m meter.Report) bool { return m.Workload == w.name })
}

// missing says that no round did the work that was asked for.
func (f figure) missing() bool { return f.rounds == 0 }

// figure returns what a proxy's rounds come to. Rounds that did no work do not
// count, but their errors do.
func (r *results) figure(name string, w workload) (f figure) {
	value := func(m meter.Report) float64 {
		if w.idle() {
			return m.Memory
		}
		return m.CPU
	}
	var done []meter.Report
	for _, m := range r.all {
		if m.Proxy != name || m.Workload != w.name {
			continue
		}
		f.errors += m.Errors
		f.middle = m // its note tells why, if none did the work
		if m.Units > 0 || w.idle() && m.Errors == 0 {
			done = append(done, m)
		}
	}
	if len(done) == 0 {
		return f
	}
	slices.SortFunc(done, func(a, b meter.Report) int { return cmp.Compare(value(a), value(b)) })
	f.rounds, f.middle = len(done), done[len(done)/2]
	f.low, f.high = value(done[0]), value(done[len(done)-1])
	f.median = value(f.middle)
	if len(done)%2 == 0 {
		f.median = (f.median + value(done[len(done)/2-1])) / 2
	}
	return f
}

// spread is the A/A control: how far apart the medians of one program under
// two names are, in parts of the first; the largest, if there are more pairs.
// It is NaN without a pair that has figures.
func (r *results) spread(w workload) float64 {
	spread := math.NaN()
	for _, pair := range pairs(r.names) {
		a, b := r.figure(pair[0], w), r.figure(pair[1], w)
		if a.missing() || b.missing() || a.median <= 0 {
			continue
		}
		if s := math.Abs(b.median/a.median - 1); !(s <= spread) { // true for NaN
			spread = s
		}
	}
	return spread
}

// keep appends a report to the file as a line of JSON; an empty name keeps nothing.
func keep(file string, m meter.Report) (err error) {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // for everybody
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return json.NewEncoder(f).Encode(m)
}

// load reads what keep has written. Proxies are in the order of their first
// reports.
func load(file string) (*results, error) {
	f, err := os.Open(file) //nolint:gosec // named by the user
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	r := &results{}
	for lines := json.NewDecoder(f); ; {
		var m meter.Report
		err := lines.Decode(&m)
		if errors.Is(err, io.EOF) {
			return r, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		r.all = append(r.all, m)
		if !slices.Contains(r.names, m.Proxy) {
			r.names = append(r.names, m.Proxy)
		}
	}
}
