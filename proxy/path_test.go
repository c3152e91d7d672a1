package proxy

import (
	"strings"
	"testing"
)

func TestLenientPathIsTheWidestReading(t *testing.T) {
	for _, c := range []struct {
		path, want string
		ok         bool
	}{
		{"/v1/models/org%2Fname", "/v1/models/org/name", true},
		{"/v1%5cchat", "/v1/chat", true},
		{`/v1\chat`, "/v1/chat", true},
		{"//v1///chat/", "/v1/chat/", true},
		{"/%76%31", "/v1", true},
		{"/a%20b", "/a b", true},
		{"/%252e%252e/x", "/%2e%2e/x", true},
		{"/.well-known/x", "/.well-known/x", true},
		{"/...", "/...", true},
		{"/a;v=1/b", "/a;v=1/b", true},
		{"/../x", "", false},
		{"/x/..", "", false},
		{"/./x", "", false},
		{"/%2e%2E/x", "", false},
		{"/x/%2e./y", "", false},
		{"/x%2f..%2fy", "", false},
		{`/x\..\y`, "", false},
		{"/..;/x", "", false},
		{"/.;a=b/x", "", false},
		{"/%00", "", false},
		{"/%0a", "", false},
		{"/%7f", "", false},
		{"/%", "", false},
		{"/%2", "", false},
		{"/%zz", "", false},
	} {
		if got, ok := lenientPath(c.path); got != c.want || ok != c.ok {
			t.Errorf("lenientPath(%q) = %q, %v, want %q, %v", c.path, got, ok, c.want, c.ok)
		}
		if plainPath(c.path) && c.want != c.path {
			t.Errorf("plainPath(%q) skips a look that it needs", c.path)
		}
	}
}

func TestPlainPathsAreReadAsTheyAre(t *testing.T) {
	for _, path := range []string{"/", "/v1/chat/completions", "/a.b/c..d", "/x/", "/a;b=c", "/ü", "*"} {
		if !plainPath(path) {
			t.Errorf("plainPath(%q) = false, want true", path)
		}
	}
}

func FuzzPlainPathHasOneReading(f *testing.F) {
	for _, seed := range []string{"/v1/chat", "/a/../b", "/%2e", "//", `/\`, "/.x", "/x/..;/y", "/a%2fb"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if !validTarget(path) {
			return
		}
		clean, ok := lenientPath(path)
		if plainPath(path) && (!ok || clean != path) {
			t.Errorf("%q is called plain, and is read as %q, %v", path, clean, ok)
		}
		if ok && (strings.Contains(clean, "//") || strings.Contains(clean+"/", "/../") || strings.Contains(clean, `\`)) {
			t.Errorf("lenientPath(%q) = %q, which has another reading", path, clean)
		}
	})
}

func TestTargetsThatEndALineAreInvalid(t *testing.T) {
	for target, want := range map[string]bool{
		"/": true, "/x?a=b;c": true, "/ü": true, "/?": true,
		"": false, "*": false, "x": false, "/a b": false, "/a\tb": false, "/a\rb": false, "/a#b": false, "/\x7f": false,
	} {
		if got := validTarget(target); got != want {
			t.Errorf("validTarget(%q) = %v, want %v", target, got, want)
		}
	}
}
