package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"edge/internal/edgetest"
)

// narrator tells the demo line by line, with the time since the start.
type narrator struct {
	start time.Time

	mu  sync.Mutex
	out io.Writer
}

func newNarrator(out io.Writer) *narrator { return &narrator{out: out, start: time.Now()} }

func (n *narrator) title(s string) { n.print(s + "\n" + strings.Repeat("─", len(s))) }

func (n *narrator) step(format string, args ...any) {
	n.print(fmt.Sprintf("%6.2fs  ", time.Since(n.start).Seconds()) + fmt.Sprintf(format, args...))
}

func (n *narrator) print(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintln(n.out, s)
}

// raw prints s as it is, without a line end.
func (n *narrator) raw(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, _ = io.WriteString(n.out, s) // a terminal that is gone ends the program anyway
}

// edge tells what a line of edge's log says, when it is worth telling.
func (n *narrator) edge(l edgetest.Line) {
	switch {
	case l.Message() == "certificate":
		n.step("  %-18s %s", l.Text("step"), l.Text("detail"))
	case l.Text("level") != "INFO":
		n.step("  edge: %s %s%s", l.Message(), l.Text("error"), l.Text("warning"))
	case l.Message() == "ready":
		n.step("edge is ready")
	}
}
