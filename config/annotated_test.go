package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func annotated(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../routes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAnnotatedDefaultIsValid(t *testing.T) {
	cfg := load(t, filepath.Join("..", "routes.yaml"))
	complete(t, cfg)
	equal(t, "warnings", len(cfg.Warnings), 0)
}

// commentedOut is a line that would be a key or an item without its #.
var commentedOut = regexp.MustCompile(`^( *)# (( |- |# )*(?:[a-z0-9_]+:(?: .*)?|- ["{].*))$`)

// alternative is what cannot stand beside the line above it.
var alternative = regexp.MustCompile(`^(storage: file| *url: "(gs|azblob)|acme:$)`)

// Everything that the annotated file shows in comments may be written so.
func TestWhatTheAnnotatedFileShowsInCommentsIsValid(t *testing.T) {
	_, body, _ := strings.Cut(annotated(t), "\nversion: 1\n")
	text, short := "version: 1\n", false
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		for range 2 { // # key, and # # key
			if m := commentedOut.FindStringSubmatch(line); m != nil {
				line = m[1] + m[2]
			}
		}
		switch {
		case alternative.MatchString(line):
			short = line == "acme:"
			continue
		case short && (line == "" || line[0] == ' '): // the short form excludes the long one
			continue
		}
		short = false
		text += line + "\n"
	}
	cfg, err := Parse("routes.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	equal(t, "providers", len(cfg.Providers), 6)
	equal(t, "issuers", len(cfg.Issuers), 3)
	equal(t, "certificates", len(cfg.Certificates), 2)
	equal(t, "limits", cfg.Issuers["letsencrypt"].Quotas.Orders.Count, 300)
	if cfg.Storage.Snapshot == "" || cfg.Webhook.Ref == "" || cfg.Telemetry.Address == "" || len(cfg.Routes) != 2 || cfg.Routes[1].TLS.MinVersion == 0 {
		t.Errorf("not all of it was read: %+v", cfg)
	}
}

// The annotated file names every key that the source reads.
func TestTheAnnotatedFileHasEveryKey(t *testing.T) {
	text := annotated(t)
	found := 0
	for _, path := range glob(t, "*.go") {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if id, ok := lit.Type.(*ast.Ident); !ok || id.Name != "fields" {
				return true
			}
			for _, element := range lit.Elts {
				key, ok := element.(*ast.KeyValueExpr).Key.(*ast.BasicLit)
				if !ok {
					continue
				}
				name, err := strconv.Unquote(key.Value)
				if err != nil {
					t.Fatal(err)
				}
				found++
				if !regexp.MustCompile(`\b` + name + `:( |$)`).MatchString(strings.ReplaceAll(text, "\n", " ")) {
					t.Errorf("%s reads %q, and routes.yaml does not show it", path, name)
				}
			}
			return true
		})
	}
	if found < 80 {
		t.Errorf("only %d keys found; does this test still understand the source?", found)
	}
}
