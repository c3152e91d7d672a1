package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Whatever the bytes: no panic; a complete configuration or problems, never
// both; every problem has a place within the file; and the same again next time.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml", "testdata/target.yaml", "../routes.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			f.Fatalf("no seeds in %s (%v)", pattern, err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse("f", data)
		problems := problemsOf(t, err)
		if (cfg == nil) != (err != nil) || err != nil && len(problems) == 0 {
			t.Fatalf("got %v and %v", cfg, err)
		}
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + strings.Count(string(data), "\u2028") +
			strings.Count(string(data), "\u2029") + strings.Count(string(data), "\u0085") + 1
		for _, p := range problems {
			if p.Pos.Line < 1 || p.Pos.Column < 1 || p.Pos.Line > lines || p.File != "f" || p.Message == "" {
				t.Fatalf("problem %+v in a file of %d lines", p, lines)
			}
		}
		if cfg != nil {
			complete(t, cfg)
			problems = cfg.Warnings
		}
		again, err := Parse("f", data)
		second := problemsOf(t, err)
		if again != nil {
			second = again.Warnings
		}
		if !slices.Equal(problems, second) {
			t.Fatalf("got %v, then %v", problems, second)
		}
	})
}
