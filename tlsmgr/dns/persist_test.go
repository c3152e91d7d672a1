package dns

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"

	miekg "github.com/miekg/dns"
)

const account = "https://le.test/acct/1"

func persist(names ...string) Persist {
	return Persist{Names: names, Issuers: []string{"letsencrypt.org", "second.test"}, AccountURI: account}
}

func TestPersistRecordsAreOnePerHost(t *testing.T) {
	t.Parallel()
	got := persist("*.example.test", "example.test", "www.example.test", "*.a.example.test").Records()
	if want := []Record{
		{"_validation-persist.a.example.test", "letsencrypt.org; accounturi=" + account + "; policy=wildcard"},
		{"_validation-persist.example.test", "letsencrypt.org; accounturi=" + account + "; policy=wildcard"},
		{"_validation-persist.www.example.test", "letsencrypt.org; accounturi=" + account},
	}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := PersistName("*.example.test."); got != "_validation-persist.example.test" {
		t.Errorf("name of a wildcard: %s", got)
	}
}

func TestOrderWaitsForItsPersistentRecord(t *testing.T) {
	t.Parallel()
	d := world(t, []string{"example.test"})
	s := solver(t, d, Options{Providers: []*config.Provider{}}) // no credentials needed
	err := s.CheckPersist(t.Context(), persist("example.test", "*.example.test"))
	wantError(t, err, "persistent record of example.test and *.example.test: ns1.example.test ("+d.Addr+"): NXDOMAIN",
		`(publish _validation-persist.example.test. TXT "letsencrypt.org; accounturi=`+account+`; policy=wildcard")`)
	if err := d.Add(`_validation-persist.example.test. 60 IN TXT "letsencrypt.org; accounturi=` + account + `; policy=wildcard"`); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckPersist(t.Context(), persist("example.test", "*.example.test")); err != nil {
		t.Errorf("with the record: %v", err)
	}
	if _, updates := d.Counts(); updates != 0 {
		t.Errorf("%d updates, want none: the record is the zone owner's", updates)
	}
}

func TestPersistentValuesAreJudgedAsACADoes(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	soon, past := strconv.FormatInt(now.Unix()+1, 10), strconv.FormatInt(now.Unix(), 10)
	for _, c := range []struct {
		value    string
		wildcard bool
		want     string // "" is accepted
	}{
		{"letsencrypt.org; accounturi=" + account, false, ""},
		{"second.test;accounturi=" + account + "; future=1", false, ""},
		{"letsencrypt.org; ACCOUNTURI=" + account + "; Policy=WildCard", true, ""},
		{"letsencrypt.org; accounturi=" + account, true, "it lacks policy=wildcard"},
		{"letsencrypt.org; accounturi=" + account + "; policy=specific", true, "it lacks policy=wildcard"},
		{"letsencrypt.org; accounturi=" + account + "; policy=other", false, ""},
		{"letsencrypt.org; accounturi=" + account + "; persistUntil=" + soon, false, ""},
		{"letsencrypt.org; accounturi=" + account + "; persistUntil=" + past, false, "it ended on 2027-01-15 (persistUntil)"},
		{"letsencrypt.org; accounturi=" + account + "; persistUntil=tomorrow", false, "persistUntil=tomorrow is no UNIX time"},
		{"letsencrypt.org; accounturi=https://le.test/acct/12", false, "it is for account https://le.test/acct/12, not " + account},
		{"letsencrypt.org", false, "accounturi is missing"},
		{"letsencrypt.org; accounturi=" + account + ";", false, "a semicolon at the end"},
		{"letsencrypt.org; accounturi=" + account + "; accounturi=" + account, false, "accounturi is given twice"},
		{"LetsEncrypt.org; accounturi=" + account, false, "no record for letsencrypt.org or second.test"},
		{"other.test; accounturi=" + account, false, "no record for letsencrypt.org"},
		{"v=spf1 -all", false, "no record for letsencrypt.org"},
	} {
		_, _, err := persist("example.test").accepts(c.value, c.wildcard, now)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q (wildcard %v): %v, want %q", c.value, c.wildcard, err, c.want)
		}
	}
}

func TestEveryServerMustHaveThePersistentRecord(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}, Replicas: []string{"127.0.0.2"}})
	until := time.Now().Add(40 * 24 * time.Hour)
	if err := errors.Join(
		d.Add(`_validation-persist.www.example.test. 60 IN TXT "v=spf1 -all"`),
		d.Add(`_validation-persist.www.example.test. 60 IN TXT "other.test; accounturi=x"`),
		d.Add(`_validation-persist.www.example.test. 60 IN TXT "letsencrypt.org; " "accounturi=`+account+`; persistUntil=`+strconv.FormatInt(until.Unix(), 10)+`"`),
	); err != nil {
		t.Fatal(err)
	}
	s := solver(t, d, Options{})
	states, err := s.PersistReport(t.Context(), persist("www.example.test"))
	if err != nil || len(states) != 1 || !states[0].Present || states[0].Until.Unix() != until.Unix() || len(states[0].Answers) != 2 {
		t.Errorf("%+v, %v", states, err)
	}
	d.SetLag(func(q acmelab.Query, _ time.Duration) bool { return q.Server != "127.0.0.2" || q.Type != miekg.TypeTXT })
	wantError(t, s.CheckPersist(t.Context(), persist("www.example.test")), "ns2.example.test (127.0.0.2:"+d.Port+"): no TXT record")
	d.SetLag(nil)
	d.SetFault(func(q acmelab.Query) (int, bool) { return acmelab.Silence, q.Server == "127.0.0.2" })
	wantError(t, s.CheckPersist(t.Context(), persist("www.example.test")), "ns2.example.test (127.0.0.2:"+d.Port+"): i/o timeout")
}

func TestPersistentRecordMayStandBehindACNAME(t *testing.T) {
	t.Parallel()
	d := world(t, []string{"example.test", "acme.test"},
		"_validation-persist.example.test. 60 IN CNAME example.acme.test.",
		`example.acme.test. 60 IN TXT "letsencrypt.org; accounturi=`+account+`"`,
		"_validation-persist.loop.example.test. 60 IN CNAME _validation-persist.loop.example.test.")
	s := solver(t, d, Options{})
	states, err := s.PersistReport(t.Context(), persist("example.test"))
	if err != nil || !states[0].Present || states[0].Answers[0] != "_validation-persist.example.test CNAME example.acme.test" {
		t.Errorf("%+v, %v", states, err)
	}
	wantError(t, s.CheckPersist(t.Context(), persist("loop.example.test")), "CNAME loop at _validation-persist.loop.example.test")
}

func TestResolversVouchForPersistentRecordsWhenAuthoritativeIsOff(t *testing.T) {
	t.Parallel()
	d := world(t, []string{"example.test"}, `_validation-persist.example.test. 60 IN TXT "letsencrypt.org; accounturi=`+account+`"`)
	d.SetFault(func(q acmelab.Query) (int, bool) {
		return miekg.RcodeServerFailure, q.Type == miekg.TypeNS || q.Type == miekg.TypeSOA
	})
	s := solver(t, d, Options{Authoritative: config.Authoritative{Off: true}})
	if err := s.CheckPersist(t.Context(), persist("example.test")); err != nil {
		t.Error(err)
	}
	silent := solver(t, d, Options{Authoritative: config.Authoritative{Servers: []string{d.Addr, "127.0.0.1:1"}}})
	wantError(t, silent.CheckPersist(t.Context(), persist("example.test")), "127.0.0.1:1: connection refused")
}

func TestPersistRefusesWhatCannotBeChecked(t *testing.T) {
	t.Parallel()
	s := solver(t, world(t, []string{"example.test"}), Options{})
	for _, c := range []struct {
		p    Persist
		want string
	}{
		{Persist{Issuers: []string{"a"}, AccountURI: account}, "persistent records of 0 names"},
		{Persist{Names: []string{"example.test"}, AccountURI: account}, "the CA gives 0 issuer domain names"},
		{Persist{Names: []string{"example.test"}, Issuers: make([]string, 11), AccountURI: account}, "gives 11 issuer"},
		{Persist{Names: []string{"example.test"}, Issuers: []string{"a"}}, "no account yet"},
		{persist(strings.Repeat("a.", 120) + "test"), "no host name"},
		{persist("*."), "no host name"},
	} {
		wantError(t, s.CheckPersist(t.Context(), c.p), c.want)
	}
}
