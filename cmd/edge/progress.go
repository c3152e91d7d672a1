package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"edge/tlsmgr"
)

// progress tells on standard error what takes time, one line for each event,
// when a person looks: standard error is a terminal, or --verbose is given.
// Warnings are told always. Its methods may be called concurrently.
type progress struct {
	w     io.Writer
	shown bool

	mu   *sync.Mutex
	last *time.Time // of the last count
}

func (g *globals) progress(cmd *cobra.Command) *progress {
	w := cmd.ErrOrStderr()
	return &progress{w: w, shown: g.verbose || isTerminal(w), mu: &sync.Mutex{}, last: new(time.Time)}
}

// isTerminal reports whether w is a device that a person may sit at.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// event tells a step of a certificate.
func (p *progress) event(e tlsmgr.Event) {
	if p.shown && e.Step != tlsmgr.StepPlanned && e.Step != tlsmgr.StepLoaded {
		p.say("%s: %s: %s", e.Certificate, strings.ReplaceAll(string(e.Step), "_", " "), e.Detail)
	}
}

// countOf tells how far a long operation is, once a second.
func (p *progress) countOf(what string) func(done, total int) {
	begin := time.Now()
	return func(done, total int) {
		p.mu.Lock()
		last, now := *p.last, time.Now()
		due := p.shown && now.Sub(begin) >= time.Second && now.Sub(last) >= time.Second
		if due {
			*p.last = now
		}
		p.mu.Unlock()
		if due {
			p.say("%s: %d of %d", what, done, total)
		}
	}
}

// logger shows the warnings of the packages below as lines, without the steps
// that event tells.
func (p *progress) logger() *slog.Logger { return slog.New(&warnings{p: p}) }

type warnings struct {
	p     *progress
	attrs []slog.Attr
}

func (*warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h *warnings) Handle(_ context.Context, r slog.Record) error {
	var parts []string
	isStep := false
	add := func(a slog.Attr) bool {
		isStep = isStep || a.Key == "step"
		parts = append(parts, fmt.Sprintf("%s %v", strings.ReplaceAll(a.Key, "_", " "), a.Value))
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	if !isStep {
		h.p.say("warning: %s", strings.Join(append([]string{r.Message}, parts...), ", "))
	}
	return nil
}

func (h *warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &warnings{p: h.p, attrs: append(slices.Clip(h.attrs), attrs...)}
}

func (h *warnings) WithGroup(string) slog.Handler { return h }
