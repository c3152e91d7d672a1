package dns

import (
	"fmt"
	"slices"
	"strings"
)

// State is how a step of a Report ended.
type State string

// The states. A warning is no reason for an order to fail.
const (
	StateOK      State = "ok"
	StateWarning State = "warning"
	StateFailed  State = "failed"
	StateSkipped State = "skipped"
)

// Report is what Solver.Check found, step by step.
type Report struct {
	Name  string `json:"name"`
	Steps []Step `json:"steps"`
}

// Step is one thing that has to be right.
type Step struct {
	Title  string   `json:"title"`
	State  State    `json:"state"`
	Detail []string `json:"detail,omitempty"` // one line each: the server that was asked, and what it answered
	Hint   string   `json:"hint,omitempty"`   // what to do; "" when there is nothing to do
}

// OK reports whether no step failed.
func (r *Report) OK() bool {
	return !slices.ContainsFunc(r.Steps, func(s Step) bool { return s.State == StateFailed })
}

// String is the report as text, a line for each step and each detail.
func (r *Report) String() string {
	var b strings.Builder
	b.WriteString(r.Name + "\n")
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "  %-7s  %s\n", s.State, s.Title)
		for _, line := range s.Detail {
			fmt.Fprintf(&b, "           %s\n", line)
		}
		if s.Hint != "" {
			fmt.Fprintf(&b, "           → %s\n", s.Hint)
		}
	}
	return b.String()
}

// add appends a step and returns it; the pointer is good until the next add.
func (r *Report) add(title string, state State, detail ...string) *Step {
	r.Steps = append(r.Steps, Step{Title: title, State: state, Detail: detail})
	return &r.Steps[len(r.Steps)-1]
}

// fail appends a failed step with an error as its last line.
func (r *Report) fail(title string, err error, hint string, detail ...string) {
	r.add(title, StateFailed, append(detail, flat(err))...).Hint = hint
}

// skip appends a step that was not done.
func (r *Report) skip(title, why string) { r.add(title, StateSkipped, why) }
