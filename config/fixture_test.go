package config

import (
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// go test ./config -update rewrites what the fixtures expect; read the diff.
var update = flag.Bool("update", false, "rewrite the # want: lines of the fixtures")

// A fixture ends in the messages it expects, one in each line of this kind.
const wantLine = "# want: "

// fixture splits a file into what is parsed and what is expected. The expected
// lines are comments at the end, so they move nothing.
func fixture(t *testing.T, path string) (data []byte, want []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if message, ok := strings.CutPrefix(line, wantLine); ok {
			want = append(want, strings.TrimSuffix(message, "\n"))
		}
	}
	return data, want
}

func rewrite(t *testing.T, path string, data []byte, got []string) {
	t.Helper()
	var kept strings.Builder
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, wantLine) {
			kept.WriteString(line)
		}
	}
	for _, message := range got {
		kept.WriteString(wantLine + message + "\n")
	}
	if err := os.WriteFile(path, []byte(kept.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no fixtures in %s (%v)", pattern, err)
	}
	return paths
}

// messages drops the file name, which every message starts with.
func messages(t *testing.T, name string, problems []Problem) []string {
	t.Helper()
	all := make([]string, len(problems))
	for i, p := range problems {
		rest, ok := strings.CutPrefix(p.Error(), name+":")
		if !ok {
			t.Errorf("%q does not start with the name of the file", p.Error())
		}
		all[i] = rest
	}
	return all
}

func problemsOf(t *testing.T, err error) Problems {
	t.Helper()
	problems, ok := errors.AsType[Problems](err)
	if err != nil && !ok {
		t.Fatalf("the error is a %T, want Problems", err)
	}
	return problems
}

func TestBadFilesGetExactlyTheseMessages(t *testing.T) {
	for _, path := range glob(t, "testdata/bad/*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, want := fixture(t, path)
			cfg, err := Parse("f", data)
			got := messages(t, "f", problemsOf(t, err))
			if *update {
				rewrite(t, path, data, got)
				return
			}
			if cfg != nil {
				t.Error("a configuration came with the problems")
			}
			if len(want) == 0 || !slices.Equal(got, want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
			}
		})
	}
}

func TestGoodFilesGetExactlyTheseWarnings(t *testing.T) {
	for _, path := range glob(t, "testdata/good/*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, want := fixture(t, path)
			cfg, err := Parse("f", data)
			if err != nil {
				t.Fatal(err)
			}
			got := messages(t, "f", cfg.Warnings)
			if *update {
				rewrite(t, path, data, got)
				return
			}
			if !slices.Equal(got, want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
			}
			complete(t, cfg)
		})
	}
}

// TestEveryRefusalHasAFixture parses refusal.go, makes a pattern of the message
// of each constructor, and looks for it in what the fixtures expect.
func TestEveryRefusalHasAFixture(t *testing.T) {
	var shown []string
	for _, path := range slices.Concat(glob(t, "testdata/bad/*.yaml"), glob(t, "testdata/good/*.yaml")) {
		_, want := fixture(t, path)
		shown = append(shown, want...)
	}
	for _, c := range unwritable(t) {
		shown = append(shown, c.want)
	}
	count := 0
	for name, patterns := range refusals(t) {
		for _, pattern := range patterns {
			count++
			if !slices.ContainsFunc(shown, pattern.MatchString) {
				t.Errorf("%s: no fixture shows %s", name, pattern)
			}
		}
	}
	if count < 60 {
		t.Errorf("only %d messages found in refusal.go; does this test still understand it?", count)
	}
}

// refusals returns a pattern for each message that a constructor can make.
func refusals(t *testing.T) map[string][]*regexp.Regexp {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]*regexp.Regexp{}
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Type.Results == nil {
			continue
		}
		if _, pointer := fn.Type.Results.List[0].Type.(*ast.StarExpr); !pointer {
			continue
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			if lit, ok := n.(*ast.CompositeLit); ok {
				if id, ok := lit.Type.(*ast.Ident); ok && id.Name == "refusal" {
					found[fn.Name.Name] = append(found[fn.Name.Name], messagePattern(t, lit.Elts[0]))
				}
			}
			return true
		})
		if len(found[fn.Name.Name]) == 0 {
			t.Errorf("%s makes no refusal", fn.Name.Name)
		}
	}
	return found
}

var verb = regexp.MustCompile(`%[a-z]`)

// messagePattern reads the first string in the expression of a message.
func messagePattern(t *testing.T, expr ast.Expr) *regexp.Regexp {
	t.Helper()
	var pattern *regexp.Regexp
	ast.Inspect(expr, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING || pattern != nil {
			return true
		}
		text, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		if len(verb.ReplaceAllString(text, "")) < 4 {
			t.Errorf("%q says too little to be found again", text)
		}
		pattern = regexp.MustCompile(`(^ ?|: )` + verb.ReplaceAllString(regexp.QuoteMeta(text), ".+"))
		return false
	})
	return pattern
}

// broken is a file that no editor should be asked to keep.
type broken struct {
	name string
	data string
	want string
}

func unwritable(t *testing.T) []broken {
	t.Helper()
	return []broken{
		{"empty", "", `1:1: the file is empty (the smallest configuration has "version: 1", "acme:" and "routes:")`},
		{"only comments", "# nothing\n", `1:1: the file is empty (the smallest configuration has "version: 1", "acme:" and "routes:")`},
		{"null", "~\n", `1:1: the file is empty (the smallest configuration has "version: 1", "acme:" and "routes:")`},
		{"large", "version: 1\n# " + strings.Repeat("x", maxFile), ` larger than 1024 KiB (routes.yaml holds no data; keep certificates and keys in files of their own)`},
		{"latin 1", "version: 1\n# caf\xe9\n", `2:6: not UTF-8 text (save the file as UTF-8)`},
		{"utf-16", "\xff\xfev\x00e\x00r\x00", `1:1: not UTF-8 text (save the file as UTF-8)`},
		{"NUL", "version: 1\x00", `1:11: not UTF-8 text (save the file as UTF-8)`},
		{"control character", "version: 1\ncontrol: {socket: \"\x01\"}\n", `2:20: not valid YAML: control characters are not allowed (value: 1)`},
		{"deep", "version: " + strings.Repeat("[", 20_000), `1:10010: not valid YAML: while increasing flow level, exceeded max depth of 10000`},
		{"open bracket", "version: 1\nroutes:\n  - endpoints: [\"http://10.0.0.1:8000\"\n", `4:1: not valid YAML: while parsing a flow sequence, did not find expected ',' or ']' (is a bracket, a brace or a comma missing? Text with ": " in it needs quotes)`},
		{"open quote", "version: 1\nstorage: \"file:///srv/edge\n", `3:1: not valid YAML: while scanning a quoted scalar, found unexpected end of stream (a quote is not closed)`},
		{"missing", "", ` cannot read the configuration: no such file or directory (name a file with --config, or start from the annotated routes.yaml)`},
	}
}

func TestUnreadableFilesSayWhy(t *testing.T) {
	for _, c := range unwritable(t) {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "routes.yaml")
			if c.name != "missing" {
				if err := os.WriteFile(path, []byte(c.data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Load(path)
			got := fmt.Sprint(err)
			if want := path + ":" + c.want; got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestAFileThatMayNotBeReadSaysWhoMust(t *testing.T) {
	r := cannotRead(fs.ErrPermission)
	if !strings.Contains(r.hint, "user that edge runs as") {
		t.Errorf("hint %q", r.hint)
	}
}
