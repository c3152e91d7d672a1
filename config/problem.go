package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Pos is a place in a file. Lines and columns count from 1; the zero Pos means
// the file as a whole.
type Pos struct {
	Line   int `json:"line"`
	Column int `json:"column"`
}

// Problem is one thing that is wrong with a file, or probably wrong when it is
// in Config.Warnings.
type Problem struct { //nolint:errname // a Problem is an error now and then, a line of advice always
	File    string `json:"file"`
	Pos     Pos    `json:"position"`
	Path    string `json:"path"`    // of the key: routes[3].pool; "" for the document
	Message string `json:"message"` // never contains a secret
	Hint    string `json:"hint"`    // what to do about it; may be empty
}

// Error returns file:line:col: path: message (hint).
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Pos != (Pos{}) {
		b.WriteString(":" + strconv.Itoa(p.Pos.Line) + ":" + strconv.Itoa(p.Pos.Column))
	}
	if p.Path != "" {
		b.WriteString(": " + p.Path)
	}
	b.WriteString(": " + p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems is everything that is wrong with a file, in the order of the file.
type Problems []Problem //nolint:errname // the list of them

// Error returns all problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// sort puts the problems in the order of the file.
func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Column, b.Pos.Column),
			cmp.Compare(a.Path, b.Path),
			cmp.Compare(a.Message, b.Message),
		)
	})
}
