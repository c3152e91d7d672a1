package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A large file takes a moment, whatever is in it. The bound is
// loose: what is quadratic takes minutes.
func TestTimeGrowsWithTheSizeOfTheFileOnly(t *testing.T) {
	numbered := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	const head = "version: 1\nacme: {email: ops@example.com, dns: route53}\n"
	for name, file := range map[string]string{
		"hosts":        head + "routes: [{pool: a, host: [" + numbered(30_000, "k%d.a.b,") + "]}]",
		"repeats":      head + "routes: [{pool: a, host: [" + strings.Repeat("a,", 60_000) + "]}]",
		"unknown keys": head + "routes: [{pool: a, " + numbered(15_000, "k%d: ,") + "}]",
		"bindings": head + "listeners: {" + numbered(maxListeners, "k%d: {address: ':1'},") + "}\nroutes: [" +
			strings.Repeat("{pool: a},", 8_000) + "]",
		"names":    head + "certificates: {a: {names: [" + numbered(30_000, "k%d.a.b,") + "]}}\nroutes: [{pool: a}]",
		"cover":    "version: 1\ncertificates: {a: {names: [" + numbered(80, "k%d.a.b,") + "]}}\nroutes: [{pool: a, host: [" + numbered(30_000, "k%d.a.b,") + "]}]",
		"policies": head + "policies: {" + numbered(20_000, "k%d: ,") + "}\nroutes: [{pool: a, policies: [" + numbered(20_000, "z%d,") + "]}]",
		"flow":     strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000),
		"block": numbered(1, "a%d:\n") + func() string {
			var b strings.Builder
			for i := range 1_200 {
				b.WriteString(strings.Repeat(" ", i+1) + "a:\n")
			}
			return b.String()
		}(),
	} {
		if len(file) > maxFile {
			t.Errorf("%s: %d bytes are not looked at", name, len(file))
		}
		start := time.Now()
		if _, err := Parse("f", []byte(file)); err == nil {
			t.Errorf("%s: no problem found", name)
		}
		took := time.Since(start)
		t.Logf("%-12s %7d bytes %v", name, len(file), took)
		if took > 30*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}
