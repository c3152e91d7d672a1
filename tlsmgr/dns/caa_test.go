package dns

import (
	"slices"
	"strings"
	"testing"

	"edge/config"
	"edge/internal/acmelab"

	miekg "github.com/miekg/dns"
)

// world is a DNS server with zones and records that is the resolver as well.
func world(tb testing.TB, zones []string, records ...string) *acmelab.DNS {
	tb.Helper()
	d := acmelab.NewDNS(tb, acmelab.DNSOptions{Zones: zones})
	if err := d.Add(records...); err != nil {
		tb.Fatal(err)
	}
	return d
}

// letsEncrypt asks for a certificate as most people do.
func letsEncrypt(name string) Issuance {
	return Issuance{Name: name, Identities: []string{"letsencrypt.org"}, AccountURI: "https://le.test/acct/1", Challenge: config.DNS01}
}

func TestCAARecordsDecideWhoMayIssue(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what    string
		records []string
		name    string
		reason  string // "" is allowed
	}{
		{"the CA is named", []string{`0 issue "letsencrypt.org"`}, "www.example.test", ""},
		{"case does not matter", []string{`0 ISSUE "LetsEncrypt.org"`}, "www.example.test", ""},
		{"one of several", []string{`0 issue "other.test"`, `0 issue "letsencrypt.org"`}, "www.example.test", ""},
		{"only another", []string{`0 issue "other.test"`}, "www.example.test", `example.test CAA 0 issue "other.test": authorises other.test and not letsencrypt.org`},
		{"nobody", []string{`0 issue ";"`}, "www.example.test", `CAA 0 issue ";": authorises nobody`},
		{"nobody, but somebody", []string{`0 issue ";"`, `0 issue "letsencrypt.org"`}, "www.example.test", ""},
		{"malformed", []string{`0 issue "%%%"`}, "www.example.test", "authorises nobody"},
		{"only a mail address", []string{`0 iodef "mailto:a@example.test"`}, "www.example.test", ""},
		{"unknown tag", []string{`0 future "x"`, `0 issue "letsencrypt.org"`}, "www.example.test", ""},
		{"unknown critical tag", []string{`128 future "x"`, `0 issue "letsencrypt.org"`}, "www.example.test", "it is critical and of an unknown kind"},
		{"critical known tag", []string{`128 issue "letsencrypt.org"`}, "www.example.test", ""},
		{"issue governs wildcards too", []string{`0 issue "other.test"`}, "*.example.test", "authorises other.test"},
		{"issuewild governs wildcards", []string{`0 issue "letsencrypt.org"`, `0 issuewild ";"`}, "*.example.test", `issuewild ";": authorises nobody`},
		{"issuewild allows wildcards", []string{`0 issue ";"`, `0 issuewild "letsencrypt.org"`}, "*.example.test", ""},
		{"issuewild does not govern hosts", []string{`0 issuewild "letsencrypt.org"`, `0 issue ";"`}, "example.test", "authorises nobody"},
		{"only issuewild, for a host", []string{`0 issuewild ";"`}, "example.test", ""},
		{"the account", []string{`0 issue "letsencrypt.org; accounturi=https://le.test/acct/1"`}, "example.test", ""},
		{"another account", []string{`0 issue "letsencrypt.org; accounturi=https://le.test/acct/2"`}, "example.test", "is limited to account https://le.test/acct/2; this one is https://le.test/acct/1"},
		{"the account twice", []string{`0 issue "letsencrypt.org; accounturi=https://le.test/acct/1; accounturi=https://le.test/acct/1"`}, "example.test", "accounturi is given twice"},
		{"the method", []string{`0 issue "letsencrypt.org; validationmethods=http-01,dns-01"`}, "example.test", ""},
		{"another method", []string{`0 issue "letsencrypt.org; validationmethods=http-01"`}, "example.test", "is limited to challenges http-01; this one is dns-01"},
		{"another account or method", []string{`0 issue "letsencrypt.org; accounturi=https://le.test/acct/2"`, `0 issue "letsencrypt.org; validationmethods=dns-01"`}, "example.test", ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			d := world(t, []string{"test", "example.test"})
			for _, r := range c.records {
				if err := d.Add("example.test. 60 IN CAA " + r); err != nil {
					t.Fatal(err)
				}
			}
			got, err := solver(t, d, Options{}).CAA(t.Context(), letsEncrypt(c.name))
			if err != nil {
				t.Fatal(err)
			}
			if got.Allowed != (c.reason == "") || got.Doubt != "" || got.At != "example.test" || len(got.Records) != len(c.records) {
				t.Errorf("%+v", got)
			}
			if all := strings.Join(got.Reasons, "\n"); !strings.Contains(all, c.reason) || got.Allowed && all != "" {
				t.Errorf("reasons %q, want %q", all, c.reason)
			}
		})
	}
}

func TestClosestAncestorWithCAACounts(t *testing.T) {
	t.Parallel()
	d := world(t, []string{"test", "example.test"},
		`test. 60 IN CAA 0 issue ";"`,
		`example.test. 60 IN CAA 0 issue "letsencrypt.org"`,
		`dev.example.test. 60 IN CAA 0 issue "internal.test"`,
		`_x.app.dev.example.test. 60 IN TXT "only so that app exists"`)
	s := solver(t, d, Options{})
	for name, want := range map[string]string{
		"app.dev.example.test": "dev.example.test", "*.dev.example.test": "dev.example.test",
		"www.example.test": "example.test", "a.b.c.example.test": "example.test", "other.test": "test",
	} {
		got, err := s.CAA(t.Context(), letsEncrypt(name))
		if err != nil || got.At != want || got.Allowed != (want == "example.test") {
			t.Errorf("%s: %+v, %v; want the records of %s", name, got, err, want)
		}
	}
	got, err := s.CAA(t.Context(), letsEncrypt("app.dev.example.test"))
	if want := []string{
		d.Addr + ": CAA app.dev.example.test: none",
		d.Addr + ": CAA dev.example.test: 1 record",
	}; err != nil || !slices.Equal(got.Asked, want) {
		t.Errorf("asked %q, want %q", got.Asked, want)
	}
}

// RFC 8659, section 3: a CNAME is followed at each step of the climb, but the
// climb goes on at the parent of the name, not at that of the target.
func TestCNAMEsAreFollowedButTheirParentsDoNotCount(t *testing.T) {
	t.Parallel()
	d := world(t, []string{"test", "example.test", "cdn.test"},
		"www.example.test. 60 IN CNAME edge.site.cdn.test.",
		"edge.site.cdn.test. 60 IN A 127.0.0.1",
		`site.cdn.test. 60 IN CAA 0 issue ";"`, // the parent of the target
		`example.test. 60 IN CAA 0 issue "letsencrypt.org"`,
		"app.example.test. 60 IN CNAME hop.example.test.",
		"hop.example.test. 60 IN CNAME site.cdn.test.")
	s := solver(t, d, Options{})
	got, err := s.CAA(t.Context(), letsEncrypt("www.example.test"))
	if err != nil || !got.Allowed || got.At != "example.test" {
		t.Errorf("parent of the target: %+v, %v", got, err)
	}
	got, err = s.CAA(t.Context(), letsEncrypt("app.example.test"))
	if err != nil || got.Allowed || got.At != "app.example.test" || !slices.Equal(got.Via, []string{"hop.example.test", "site.cdn.test"}) {
		t.Errorf("target: %+v, %v", got, err)
	}
	if len(got.Reasons) != 1 || !strings.HasPrefix(got.Reasons[0], "site.cdn.test CAA") {
		t.Errorf("the reason does not name the record: %q", got.Reasons)
	}
}

func TestCNAMEIntoAZoneOfAnotherServerIsFollowed(t *testing.T) {
	t.Parallel()
	cdn := world(t, []string{"cdn.test"}, `site.cdn.test. 60 IN CAA 0 issue "other.test"`, "bare.cdn.test. 60 IN A 127.0.0.1")
	d := world(t, []string{"test", "example.test"}, "cdn.test. 60 IN NS ns1.cdn.test.",
		"www.example.test. 60 IN CNAME site.cdn.test.", "app.example.test. 60 IN CNAME bare.cdn.test.")
	s := solver(t, d, Options{Resolvers: []string{cdn.Addr, d.Addr}}) // both know their part only
	got, err := s.CAA(t.Context(), letsEncrypt("www.example.test"))
	if err != nil || got.Allowed || got.At != "www.example.test" {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = s.CAA(t.Context(), letsEncrypt("app.example.test"))
	if err != nil || !got.Allowed || got.At != "" {
		t.Errorf("target without records: %+v, %v", got, err)
	}
}

func TestCAAThatCannotBeLookedUpIsAnError(t *testing.T) {
	t.Parallel()
	d := world(t, []string{"test", "example.test"}, "a.example.test. 60 IN CNAME b.example.test.", "b.example.test. 60 IN CNAME a.example.test.")
	s := solver(t, d, Options{})
	_, err := s.CAA(t.Context(), letsEncrypt("a.example.test"))
	wantError(t, err, "CAA of a.example.test: CNAME loop at a.example.test")
	d.SetFault(func(q acmelab.Query) (int, bool) {
		return miekg.RcodeServerFailure, q.Type == miekg.TypeCAA && q.Name == "example.test."
	})
	_, err = s.CAA(t.Context(), letsEncrypt("www.example.test"))
	wantError(t, err, "CAA of example.test", d.Addr+": SERVFAIL")
	for _, name := range []string{"", "*.", "a..b"} {
		if _, err := s.CAA(t.Context(), letsEncrypt(name)); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
}

func TestWhatIsNotKnownIsToldAsDoubt(t *testing.T) {
	t.Parallel()
	d := world(t, []string{"test", "example.test"}, `example.test. 60 IN CAA 0 issue "letsencrypt.org; accounturi=https://le.test/acct/1; validationmethods=dns-01"`,
		`closed.example.test. 60 IN CAA 0 issue ";"`)
	s := solver(t, d, Options{})
	for _, c := range []struct {
		in   Issuance
		want string
	}{
		{Issuance{Name: "example.test"}, "the CA does not say under which names it looks for itself; a record authorises letsencrypt.org"},
		{Issuance{Name: "example.test", Identities: []string{"letsencrypt.org"}}, "the record is limited to account https://le.test/acct/1; the record is limited to challenges dns-01"},
		{letsEncrypt("example.test"), ""},
	} {
		got, err := s.CAA(t.Context(), c.in)
		if err != nil || !got.Allowed || got.Doubt != c.want {
			t.Errorf("%+v: %+v, %v", c.in, got, err)
		}
	}
	if got, err := s.CAA(t.Context(), Issuance{Name: "closed.example.test"}); err != nil || got.Allowed {
		t.Errorf("nobody may issue, whoever asks: %+v, %v", got, err)
	}
}
