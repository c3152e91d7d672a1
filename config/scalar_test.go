package config

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDurationsReadBackAsTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := time.Duration(rapid.Int64Range(0, int64(forever)).Draw(t, "d"))
		got, r := duration(0, forever)(readable(want))
		if r != nil || got != want {
			t.Fatalf("%s: got %v, %+v, want %v", readable(want), got, r, want)
		}
	})
}

func TestSizesReadBackAsTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.Int64Range(0, 1<<32-1).Draw(t, "n") << rapid.SampledFrom([]int{0, 10, 20}).Draw(t, "unit")
		text := readableSize(want)
		got, r := size(0, 1<<62)(text)
		if n := strings.TrimRight(text, "BKMGi"); len(n) <= 9 && (r != nil || got != want) {
			t.Fatalf("%s: got %v, %+v, want %v", text, got, r, want)
		}
	})
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "1.5s": 1500 * time.Millisecond, "7d": 7 * day, "1d12h": 36 * time.Hour, "0d": 0, "1h30m": 90 * time.Minute, "365d": forever,
	} {
		if got, r := duration(0, forever)(text); r != nil || got != want {
			t.Errorf("%s: got %v, %+v, want %v", text, got, r, want)
		}
	}
	for _, text := range []string{"", "d", "5", "-1s", "1d-1h", "-1d", "1.5d", "1h1d", "366d", "365d1ns", "99999d", "1d ", "1y", "Inf", "2562047h48m"} {
		if got, r := duration(0, forever)(text); r == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
	for d, want := range map[time.Duration]string{time.Minute: "1m", time.Hour: "1h", 90 * time.Minute: "1h30m", 10 * time.Second: "10s", 48 * time.Hour: "2d"} {
		if got := readable(d); got != want {
			t.Errorf("readable(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"0B": 0, "512B": 512, "32KiB": 32 << 10, "64MiB": 64 << 20, "4GiB": 4 << 30, "1 MiB": 1 << 20} {
		if got, r := size(0, 1<<62)(text); r != nil || got != want {
			t.Errorf("%s: got %v, %+v, want %v", text, got, r, want)
		}
	}
	for _, text := range []string{"", "B", "5", "-1B", "1.5MiB", "64MB", "64mib", "4294967296GiB", "off"} {
		if got, r := size(0, 1<<62)(text); r == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
}

func TestEndpointsAreCanonical(t *testing.T) {
	for text, want := range map[string]string{
		"http://Model:8000":     "http://model:8000",
		"http://vllm_1":         "http://vllm_1:80",
		"https://10.0.0.1/":     "https://10.0.0.1:443",
		"http://[::1]:8000":     "http://[::1]:8000",
		"http://localhost:1":    "http://localhost:1",
		"HTTP://a.example.com.": "http://a.example.com.:80",
	} {
		if got, r := endpoint(text); r != nil || got != want {
			t.Errorf("%s: got %q, %+v, want %q", text, got, r, want)
		}
	}
	for _, text := range []string{
		"", "a", "http://", "http:///", "http:a", "http://a:0", "http://a:65536", "http://a:b", "http://a?", "http://a#x", "http://a/x", "http://u@a", "unix:///run/x", "http://a b", "http://é", "http://a:1:2",
	} {
		if got, r := endpoint(text); r == nil {
			t.Errorf("%q is taken as %s", text, got)
		}
	}
}

func TestWildcardStaysBelowAPublicSuffix(t *testing.T) {
	for text, refused := range map[string]bool{
		"*.com": true, "*.co.uk": true, "*.github.io": true, "*.example.com": false, "*.example.co.uk": false, "*.a.b.example.com": false,
		"*.internal": false, "*.test": false, "com": false,
	} {
		if got, r := host(text); (r != nil) != refused {
			t.Errorf("host(%q) = %q, %+v, refused should be %v", text, got, r, refused)
		}
	}
}

func TestNearestWordIsASlipAway(t *testing.T) {
	words := []string{"listeners", "issuers", "host", "on"}
	for text, want := range map[string]string{
		"lisetners": "listeners", "issuer": "issuers", "hots": "host", "Host": "host", "hosts": "host",
		"oN": "on", "storage": "", "": "", strings.Repeat("x", 1000): "",
	} {
		if got := nearest(text, words); got != want {
			t.Errorf("nearest(%.20q) = %q, want %q", text, got, want)
		}
	}
}
