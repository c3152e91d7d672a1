package hostname_test

import (
	"fmt"
	"strings"
	"testing"

	"edge/hostname"
)

func Example() {
	name, _ := hostname.Parse("*.Bücher.example.")
	fmt.Println(name)
	fmt.Println(hostname.Covers(name, "api.xn--bcher-kva.example"))
	fmt.Println(hostname.Covers(name, "xn--bcher-kva.example"))
	fmt.Println(hostname.Zone("a.b.example.co.uk"))
	// Output:
	// *.xn--bcher-kva.example
	// true
	// false
	// example.co.uk
}

func TestParseGivesTheCanonicalForm(t *testing.T) {
	for in, want := range map[string]string{
		"example.com":    "example.com",
		"EXAMPLE.com.":   "example.com",
		"*.Example.COM":  "*.example.com",
		"bücher.example": "xn--bcher-kva.example",
		"例え。テスト.example": "xn--r8jz45g.xn--zckzah.example",
		"l·l.example":    "xn--ll-0ea.example",
		"localhost":      "localhost",
	} {
		got, err := hostname.Parse(in)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestParseRefusesWhatIsNoHostName(t *testing.T) {
	for _, in := range []string{
		"", ".", "*.", "*", "a.*.b", "**.b", "f*.b", "10.0.0.1", "::1", "a:443", "https://a", "a/b", "a b", "a..b", ".a",
		strings.Repeat("a", 64) + ".com", strings.Repeat("a.", 127) + "com", "u@a",
		"_dmarc.example.com", "a_b.example", "“a.example.com”", "a.example.com’", "☃.example", "a\u00a0b", "a\u200b.example", "a,b", "a\x00", "a\xff",
		"*.10.0.0.1", "*.0.0.1", "1.2.3", "host.8", "1", "[::1]",
	} {
		if got, err := hostname.Parse(in); err == nil {
			t.Errorf("Parse(%q) = %q, want an error", in, got)
		}
	}
}

func TestParseNamesTheCharacterThatIsWrong(t *testing.T) {
	for in, want := range map[string]string{
		"a_b.example": "'_' (U+005F)",
		"“a.example”": "'“' (U+201C)",
	} {
		if _, err := hostname.Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want %s in it", in, err, want)
		}
	}
}

func TestFromHostStripsPortCaseAndFinalDot(t *testing.T) {
	for in, want := range map[string]string{
		"example.com": "example.com", "Example.COM:8443": "example.com", "example.com.": "example.com", "example.com.:443": "example.com",
		"example.com:": "example.com", "10.0.0.1:80": "10.0.0.1", "[::1]:443": "::1", "[2001:db8::1]": "2001:db8::1", "a_b.example.com": "a_b.example.com",
		"[2001:DB8:0:0::0001]:8443": "2001:db8::1", "[::ffff:10.0.0.1]": "10.0.0.1", "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got, ok := hostname.FromHost(in); !ok || got != want {
			t.Errorf("FromHost(%q) = %q, %v; want %q", in, got, ok, want)
		}
	}
	for _, in := range []string{
		"", ":443", "a:b", "a:99999999", "a b", "a/b", "a@b", "[::1", "[::1]x", "[fe80::1%eth0]", "a..b", ".a", "*.example.com", "a\x00b", "ä.example",
		strings.Repeat("a", 64), strings.Repeat("a.", 127) + "com",
	} {
		if got, ok := hostname.FromHost(in); ok {
			t.Errorf("FromHost(%q) = %q, want malformed", in, got)
		}
	}
}

func TestFromHostDoesNotAllocateOnCanonicalNames(t *testing.T) {
	for _, host := range []string{"llm.example.com:443", "10.0.0.1:443", "[2001:db8::1]:443"} {
		if n := testing.AllocsPerRun(100, func() { hostname.FromHost(host) }); n != 0 {
			t.Errorf("%s: %v allocations, want 0", host, n)
		}
	}
}

func TestParseIPGivesTheCanonicalForm(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "::1": "::1", "[::1]": "::1", "2001:DB8:0:0:0:0:0:1": "2001:db8::1", "::ffff:10.0.0.1": "10.0.0.1", "[::ffff:a00:1]": "10.0.0.1",
	} {
		got, ok := hostname.ParseIP(in)
		if !ok || got != want {
			t.Errorf("ParseIP(%q) = %q, %v; want %q", in, got, ok, want)
		}
		if !hostname.IsIP(got) {
			t.Errorf("IsIP(%q) = false", got)
		}
	}
	for _, in := range []string{
		"", "example.com", "10.0.0", "010.0.0.1", "10.0.0.1:80", "[10.0.0.1]", "[::1", "::1]", "[[::1]]", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "10.0.0.0/8", "*.10.0.0.1",
	} {
		if got, ok := hostname.ParseIP(in); ok {
			t.Errorf("ParseIP(%q) = %q, want none", in, got)
		}
	}
}

func TestAnAddressIsItsOwnZoneAndNothingElseCoversIt(t *testing.T) {
	for _, ip := range []string{"10.0.0.1", "2001:db8::1"} {
		if got := hostname.Zone(ip); got != ip {
			t.Errorf("Zone(%q) = %q", ip, got)
		}
		if p, w := hostname.Parent(ip), hostname.Wildcard(ip); p != "" || w != "" {
			t.Errorf("%q has the parent %q and the wildcard %q", ip, p, w)
		}
		if !hostname.Covers(ip, ip) || hostname.Covers("*.0.0.1", ip) {
			t.Errorf("Covers is not equality for %q", ip)
		}
	}
	for _, name := range []string{"", "example.com", "gpu1", "gpu.1", "1.2.3.4.5", "*.example.com"} {
		if hostname.IsIP(name) {
			t.Errorf("IsIP(%q) = true", name)
		}
	}
	if n := testing.AllocsPerRun(100, func() { hostname.IsIP("10.0.0.1"); hostname.Parent("gpu-7.example.com") }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestAWildcardCoversOneLabelAndNeverTheApex(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"example.com", "example.com", true},
		{"example.com", "www.example.com", false},
		{"*.example.com", "www.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", "a.b.example.com", false},
		{"*.example.com", "*.example.com", true},
		{"*.b.example.com", "*.example.com", false},
		{"*.example.com", "wwwexample.com", false},
		{"*.com", "", false},
	} {
		if got := hostname.Covers(c.pattern, c.name); got != c.want {
			t.Errorf("Covers(%q, %q) = %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
}

func TestWildcardAndParent(t *testing.T) {
	for _, c := range [][3]string{
		{"a.b.c", "b.c", "*.b.c"},
		{"*.b.c", "b.c", "*.b.c"},
		{"localhost", "", ""},
	} {
		if got := hostname.Parent(c[0]); got != c[1] {
			t.Errorf("Parent(%q) = %q, want %q", c[0], got, c[1])
		}
		if got := hostname.Wildcard(c[0]); got != c[2] {
			t.Errorf("Wildcard(%q) = %q, want %q", c[0], got, c[2])
		}
	}
}

func TestZoneIsTheRegistrableDomain(t *testing.T) {
	for in, want := range map[string]string{
		"a.b.example.com": "example.com", "*.example.com": "example.com", "example.com": "example.com",
		"x.example.co.uk": "example.co.uk", "com": "com", "localhost": "localhost", "a.example.test": "example.test",
	} {
		if got := hostname.Zone(in); got != want {
			t.Errorf("Zone(%q) = %q, want %q", in, got, want)
		}
	}
}

// A canonical name is a fixed point of both ways in, and its wildcard covers it.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"example.com", "*.Bücher.example.", "10.0.0.1", "a..b", "xn--bcher-kva.example", "*.*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := hostname.Parse(s)
		if ip, ok := hostname.ParseIP(s); ok {
			if again, ok := hostname.ParseIP(ip); !ok || again != ip || err == nil || !hostname.IsIP(ip) {
				t.Errorf("ParseIP(%q) = %q, but of that %q; as a name %q, %v", s, ip, again, name, err)
			}
		}
		if err != nil {
			return
		}
		if hostname.IsIP(name) {
			t.Errorf("Parse(%q) = %q, an IP address", s, name)
		}
		if again, err := hostname.Parse(name); err != nil || again != name {
			t.Errorf("Parse(%q) = %q, but Parse of that = %q, %v", s, name, again, err)
		}
		if w := hostname.Wildcard(name); w != "" && !hostname.Covers(w, name) {
			t.Errorf("%q does not cover %q", w, name)
		}
		if hostname.IsWildcard(name) {
			return
		}
		if host, ok := hostname.FromHost(name); !ok || host != name {
			t.Errorf("FromHost(%q) = %q, %v", name, host, ok)
		}
	})
}
