package tlsmgr

import (
	"crypto/tls"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"edge/config"
	"edge/hostname"
)

// entryID is the certificate that serves name in x, "" when none does.
func entryID(x *index, name string) string {
	if e := x.find(name); e != nil {
		return e.best.id
	}
	return ""
}

func TestIndexPrefersValidThenPlannedThenLatest(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	cert := func(id string, left time.Duration, names ...string) *certificate {
		return ca.certificate(t, id, config.P256, now.Add(left-90*time.Hour), now.Add(left), names...)
	}
	for name, c := range map[string]struct {
		all    []candidate
		wanted []string
		ask    string
		want   string
	}{
		"the exact name before its wildcard": {
			all:    []candidate{{cert("wild", 80*time.Hour, "*.a.test"), true}, {cert("exact", time.Hour, "x.a.test"), true}},
			wanted: []string{"x.a.test", "*.a.test"}, ask: "x.a.test", want: "exact",
		},
		"an expired exact name after its wildcard": {
			all:    []candidate{{cert("wild", 80*time.Hour, "*.a.test"), true}, {cert("exact", -time.Hour, "x.a.test"), true}},
			wanted: []string{"x.a.test", "*.a.test"}, ask: "x.a.test", want: "wild",
		},
		"a leftover after the wildcard that replaced it": {
			all:    []candidate{{cert("wild", time.Hour, "*.a.test"), true}, {cert("old", 80*time.Hour, "x.a.test"), false}},
			wanted: []string{"*.a.test"}, ask: "x.a.test", want: "wild",
		},
		"a leftover while nothing else is there": {
			all:    []candidate{{cert("old", time.Hour, "x.a.test"), false}},
			wanted: []string{"*.a.test"}, ask: "x.a.test", want: "old",
		},
		"a planned one before a leftover that lives longer": {
			all:    []candidate{{cert("file", time.Hour, "x.a.test"), true}, {cert("old", 80*time.Hour, "x.a.test"), false}},
			wanted: []string{"x.a.test"}, ask: "x.a.test", want: "file",
		},
		"the one that lives longest": {
			all:    []candidate{{cert("a", time.Hour, "x.a.test"), true}, {cert("b", 2*time.Hour, "x.a.test"), true}},
			wanted: []string{"x.a.test"}, ask: "x.a.test", want: "b",
		},
		"an expired one rather than none": {
			all:    []candidate{{cert("a", -time.Hour, "x.a.test"), true}},
			wanted: []string{"x.a.test"}, ask: "x.a.test", want: "a",
		},
		"nothing that nobody wants": {
			all:    []candidate{{cert("old", time.Hour, "x.a.test", "y.a.test"), false}},
			wanted: []string{"y.a.test"}, ask: "x.a.test", want: "",
		},
		"a wildcard for one label only": {
			all:    []candidate{{cert("wild", time.Hour, "*.a.test"), true}},
			wanted: []string{"*.a.test"}, ask: "x.y.a.test", want: "",
		},
		"a wildcard never for the apex": {
			all:    []candidate{{cert("wild", time.Hour, "*.a.test"), true}},
			wanted: []string{"*.a.test", "a.test"}, ask: "a.test", want: "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := entryID(buildIndex(c.all, c.wanted, now), c.ask); got != c.want {
				t.Errorf("%s is served with %q, want %q", c.ask, got, c.want)
			}
		})
	}
}

// Whatever the index answers covers the name, and it answers whenever a
// planned certificate covers a wanted name.
func TestIndexLaws(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	pool := []string{"a.test", "*.a.test", "x.a.test", "y.a.test", "*.x.a.test", "z.x.a.test", "b.test"}
	var certs []*certificate
	for n := range 12 {
		names := []string{pool[n%len(pool)], pool[(n*3+1)%len(pool)]}
		left := time.Duration(n-2) * time.Hour
		certs = append(certs, ca.certificate(t, fmt.Sprint(n), config.P256, now.Add(left-50*time.Hour), now.Add(left), names...))
	}
	rapid.Check(t, func(t *rapid.T) {
		var all []candidate
		for _, c := range certs {
			if rapid.Bool().Draw(t, "there") {
				all = append(all, candidate{c, rapid.Bool().Draw(t, "planned")})
			}
		}
		wanted := rapid.SliceOfDistinct(rapid.SampledFrom(pool), rapid.ID[string]).Draw(t, "wanted")
		x := buildIndex(all, wanted, now)
		for _, name := range []string{"a.test", "x.a.test", "y.a.test", "z.x.a.test", "q.x.a.test", "b.test", "c.test"} {
			e := x.find(name)
			if e != nil && !e.covers(name) {
				t.Fatalf("%s is served with %v", name, e.best.names)
			}
			best := 0
			for _, c := range all {
				if c.covers(name) && slices.Contains(wanted, name) {
					best = max(best, c.rank(now)+1)
				}
			}
			if (e == nil) && best > 0 {
				t.Fatalf("%s is not served", name)
			}
			if e != nil && best > 2 && e.best.expired(now) {
				t.Fatalf("%s is served with an expired certificate although a valid one is there", name)
			}
		}
	})
}

func TestIndexServesTheKeyThatTheClientCanUse(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	ecdsa := ca.certificate(t, "ecdsa", config.P256, now, now.Add(2*time.Hour), "a.test")
	rsa := ca.certificate(t, "rsa", config.RSA2048, now, now.Add(time.Hour), "a.test")
	x := buildIndex([]candidate{{ecdsa, true}, {rsa, true}}, []string{"a.test"}, now)
	for want, suite := range map[*certificate]uint16{
		ecdsa: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		rsa:   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	} {
		hello := &tls.ClientHelloInfo{
			ServerName: "a.test", SupportedVersions: []uint16{tls.VersionTLS12}, CipherSuites: []uint16{suite},
			SupportedCurves: []tls.CurveID{tls.CurveP256}, SupportedPoints: []uint8{0},
			SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256},
		}
		if got, err := x.certificateFor(hello, ""); err != nil || got != want.tls {
			t.Errorf("suite %x: got %v, %v; want the %s certificate", suite, got, err, want.id)
		}
	}
}

// bigIndex serves 10 000 names and as many wildcards.
func bigIndex(tb testing.TB) *index {
	tb.Helper()
	ca, now := newTestCA(tb), time.Now()
	c := ca.certificate(tb, "a", config.P256, now, now.Add(time.Hour), "a.test")
	names := []string{}
	for n := range 10_000 {
		names = append(names, fmt.Sprintf("n%d.example.test", n), fmt.Sprintf("*.n%d.example.test", n))
	}
	big := *c
	big.names = names
	return buildIndex([]candidate{{&big, true}}, names, now)
}

func TestHandshakeLookupDoesNotAllocate(t *testing.T) {
	x := bigIndex(t)
	for _, name := range []string{"n77.example.test", "llm.n77.example.test", "unknown.test"} {
		hello := &tls.ClientHelloInfo{ServerName: name}
		n := testing.AllocsPerRun(100, func() {
			if _, err := x.certificateFor(hello, ""); err != nil {
				t.Error(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

func BenchmarkHandshakeLookup(b *testing.B) {
	x := bigIndex(b)
	hello := &tls.ClientHelloInfo{ServerName: "llm.n77.example.test"}
	b.ReportAllocs()
	for b.Loop() {
		if c, err := x.certificateFor(hello, ""); c == nil || err != nil {
			b.Fatal(c, err)
		}
	}
}

func TestNameSetTouchesBothWays(t *testing.T) {
	s := newNameSet([]string{"x.a.test", "*.b.test"})
	for name, want := range map[string]bool{
		"x.a.test": true, "y.a.test": false, "*.a.test": true, "*.b.test": true, "q.b.test": true, "b.test": false, "*.c.test": false,
	} {
		if got := s.touches(name); got != want {
			t.Errorf("touches(%q) = %v, want %v", name, got, want)
		}
		covered := hostname.Covers(name, "x.a.test") || hostname.Covers("*.b.test", name)
		if covered && !want {
			t.Errorf("%q serves a wanted name, but the table says no", name)
		}
	}
}
