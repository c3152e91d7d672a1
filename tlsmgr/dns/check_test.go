package dns

import (
	"context"
	"flag"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"

	miekg "github.com/miekg/dns"
)

var update = flag.Bool("update", false, "write the golden files")

// step returns the step with the title.
func step(tb testing.TB, r *Report, title string) Step {
	tb.Helper()
	i := slices.IndexFunc(r.Steps, func(s Step) bool { return s.Title == title })
	if i < 0 {
		tb.Fatalf("no step %q in\n%s", title, r)
	}
	return r.Steps[i]
}

// wantStep checks the state of a step and that it says all the words.
func wantStep(tb testing.TB, r *Report, title string, state State, words ...string) {
	tb.Helper()
	s := step(tb, r, title)
	all := strings.Join(s.Detail, "\n") + "\n" + s.Hint
	if s.State != state || strings.Contains(s.Hint, "\n") {
		tb.Errorf("%s: %s, want %s\n%s", title, s.State, state, all)
	}
	for _, w := range words {
		if !strings.Contains(all, w) {
			tb.Errorf("%s lacks %q:\n%s", title, w, all)
		}
	}
	if state == StateFailed && r.OK() {
		tb.Errorf("%s failed, but the report is OK", title)
	}
}

// lookup is a DNS server for com and example.com at two addresses.
func lookup(tb testing.TB, records ...string) *acmelab.DNS {
	tb.Helper()
	d := acmelab.NewDNS(tb, acmelab.DNSOptions{Zones: []string{"com", "example.com"}, Replicas: []string{"127.0.0.2"}})
	if err := d.Add(records...); err != nil {
		tb.Fatal(err)
	}
	return d
}

func TestCheckOfAHealthyNameReadsLikeTheManual(t *testing.T) {
	t.Parallel()
	d := lookup(t, "_acme-challenge.www.example.com. 60 IN CNAME www.acme.example.com.",
		`example.com. 60 IN CAA 0 issue "letsencrypt.org; validationmethods=dns-01"`)
	s := solver(t, d, Options{Providers: []*config.Provider{updates(t, d, "company", "example.com")}})
	r := s.Check(t.Context(), "www.example.com", CheckOptions{Write: true, CAIdentities: []string{"letsencrypt.org"}})
	if !r.OK() {
		t.Errorf("not OK:\n%s", r)
	}
	if names := d.TXTNames(); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
	text := strings.NewReplacer("127.0.0.1:"+d.Port, "192.0.2.1:53", "127.0.0.2:"+d.Port, "192.0.2.2:53").Replace(r.String())
	text = regexp.MustCompile(`edge-check-[a-z2-7]{26}`).ReplaceAllString(text, "edge-check-pmxfzq4tbdsjhcgo2nlw7uy5ka")
	const golden = "testdata/check.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || text != string(want) {
		t.Errorf("(%v) got\n%s\nwant\n%s", err, text, want)
	}
	manual, err := os.ReadFile("../../docs/dns.md")
	if err != nil || !strings.Contains(string(manual), string(want)) {
		t.Errorf("docs/dns.md does not show %s (%v)", golden, err)
	}
}

func TestCheckWritesNothingUnlessAsked(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	r := solver(t, d, Options{}).Check(t.Context(), "*.example.com", CheckOptions{})
	if _, updates := d.Counts(); updates != 0 || !r.OK() {
		t.Errorf("%d updates; %s", updates, r)
	}
	wantStep(t, r, "probe record is added", StateSkipped, "--write")
	wantStep(t, r, "CNAME of the challenge name", StateOK, d.Addr+": _acme-challenge.example.com has none")
}

func TestCheckGoesOnWhenNoResolverAnswers(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	s := solver(t, d, Options{
		Resolvers: []string{"127.0.0.1:1"}, Providers: []*config.Provider{updates(t, d, "company", "example.com")},
		Authoritative: config.Authoritative{Servers: []string{d.Addr}},
	})
	r := s.Check(t.Context(), "www.example.com", CheckOptions{Write: true})
	wantStep(t, r, "resolvers answer", StateFailed, "127.0.0.1:1: SOA www.example.com: connection refused", "see resolvers in the issuer")
	wantStep(t, r, "zone", StateWarning, "the provider says example.com")
	wantStep(t, r, "provider", StateOK, "company (rfc2136) writes zone example.com")
	wantStep(t, r, "name servers", StateOK, d.Addr)
	wantStep(t, r, "probe record is seen", StateOK, d.Addr+": has it")
	wantStep(t, r, "probe record is deleted", StateOK, d.Addr+": does not have it")
	wantStep(t, r, "CAA", StateFailed, "connection refused", "cannot look up CAA")
}

func TestCheckOfOneDeadResolverIsAWarning(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	r := solver(t, d, Options{Resolvers: []string{"127.0.0.1:1", d.Addr}}).Check(t.Context(), "example.com", CheckOptions{})
	wantStep(t, r, "resolvers answer", StateWarning, "127.0.0.1:1: SOA example.com: connection refused", d.Addr+": SOA example.com: NOERROR")
	if !r.OK() {
		t.Errorf("a warning fails the report:\n%s", r)
	}
}

func TestCheckNamesAServerThatAnswersSERVFAIL(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	d.SetFault(func(q acmelab.Query) (int, bool) {
		return miekg.RcodeServerFailure, q.Server == "127.0.0.2"
	})
	r := solver(t, d, Options{}).Check(t.Context(), "example.com", CheckOptions{})
	wantStep(t, r, "name servers answer", StateFailed,
		"ns2.example.com (127.0.0.2:"+d.Port+"): TXT _acme-challenge.example.com: SERVFAIL", "take it out of the NS records")
	d.SetFault(func(acmelab.Query) (int, bool) { return miekg.RcodeServerFailure, true })
	r = solver(t, d, Options{Providers: []*config.Provider{updates(t, d, "company")}}).Check(t.Context(), "example.com", CheckOptions{})
	wantStep(t, r, "resolvers answer", StateFailed, d.Addr+": SOA example.com: SERVFAIL", "DNSSEC")
	wantStep(t, r, "provider", StateSkipped, "company (rfc2136) writes any zone")
	wantStep(t, r, "zone", StateFailed)
	wantStep(t, r, "name servers", StateSkipped, "the zone is not known")
}

func TestCheckNamesALameServer(t *testing.T) {
	t.Parallel()
	d := lookup(t, "example.com. 60 IN NS ns3.example.com.", "ns3.example.com. 60 IN A 127.0.0.3")
	acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"other.com"}, Addr: net.JoinHostPort("127.0.0.3", d.Port)})
	r := solver(t, d, Options{}).Check(t.Context(), "example.com", CheckOptions{})
	wantStep(t, r, "name servers answer", StateFailed, "ns3.example.com (127.0.0.3:"+d.Port+"): TXT _acme-challenge.example.com: REFUSED", "does not serve this zone")
}

// Behind a split horizon the resolvers are all there is, and none of them is
// authoritative.
func TestCheckBelievesResolversWhenAuthoritativeIsOff(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	forwarder := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		answer, err := miekg.Exchange(r, d.Addr)
		if err != nil {
			answer = new(miekg.Msg).SetRcode(r, miekg.RcodeServerFailure)
		}
		answer.Authoritative = false
		_ = w.WriteMsg(answer)
	})
	providers := []*config.Provider{updates(t, d, "company")}
	check := func(a config.Authoritative) *Report {
		s := solver(t, d, Options{Resolvers: []string{forwarder}, Providers: providers, Authoritative: a})
		return s.Check(t.Context(), "example.com", CheckOptions{Write: true})
	}
	r := check(config.Authoritative{Off: true})
	wantStep(t, r, "delegation by the parent zone", StateSkipped, "authoritative: off")
	wantStep(t, r, "name servers", StateOK, "the resolvers are asked instead: "+forwarder)
	wantStep(t, r, "name servers answer", StateOK, forwarder+": TXT _acme-challenge.example.com: NXDOMAIN")
	wantStep(t, r, "probe record is seen", StateOK, forwarder+": has it")
	r = check(config.Authoritative{Servers: []string{forwarder}})
	wantStep(t, r, "name servers", StateOK, "authoritative in the issuer names the servers: "+forwarder)
	wantStep(t, r, "name servers answer", StateFailed, forwarder+": TXT _acme-challenge.example.com: NXDOMAIN, not authoritative")
}

func TestCheckNamesASilentServer(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	d.SetFault(func(q acmelab.Query) (int, bool) { return acmelab.Silence, q.Server == "127.0.0.2" })
	r := solver(t, d, Options{}).Check(t.Context(), "example.com", CheckOptions{})
	wantStep(t, r, "name servers answer", StateFailed, "ns2.example.com (127.0.0.2:"+d.Port+"): TXT _acme-challenge.example.com: i/o timeout", "port 53")
	if err := d.Add("ns2.example.com. 60 IN A 127.0.0.1"); err != nil { // it answers at this one
		t.Fatal(err)
	}
	r = solver(t, d, Options{}).Check(t.Context(), "example.com", CheckOptions{})
	wantStep(t, r, "name servers answer", StateWarning, "i/o timeout", "at one address at least")
}

func TestCheckFindsThatTheParentDoesNotDelegate(t *testing.T) {
	t.Parallel()
	var d *acmelab.DNS
	var parent *acmelab.DNS
	for try := 0; ; try++ { // one port at two addresses; another process may hold the second
		parent = acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"com"}, NS: map[string][]string{"ns1.com.": {"127.0.0.4"}}, Addr: "127.0.0.4:0"})
		var err error
		if d, err = acmelab.StartDNS(acmelab.DNSOptions{Zones: []string{"example.com"}, Addr: net.JoinHostPort("127.0.0.1", parent.Port)}); err == nil {
			break
		}
		if try == 20 {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = d.Close() })
	check := func() *Report {
		return solver(t, d, Options{Resolvers: []string{d.Addr, parent.Addr}}).Check(t.Context(), "example.com", CheckOptions{})
	}
	const title = "delegation by the parent zone"
	wantStep(t, check(), title, StateFailed, "ns1.com ("+parent.Addr+"): NS example.com: NXDOMAIN, no name servers", "nobody outside finds zone example.com")
	if err := parent.Add("example.com. 60 IN NS ns1.example.com.", "example.com. 60 IN NS gone.example.com."); err != nil {
		t.Fatal(err)
	}
	wantStep(t, check(), title, StateWarning, "NS example.com: gone.example.com ns1.example.com", d.Addr+": NS example.com: ns1.example.com", "name different servers")
	if err := parent.Remove("example.com. 60 IN NS gone.example.com."); err != nil {
		t.Fatal(err)
	}
	wantStep(t, check(), title, StateOK, "NS example.com: ns1.example.com")
	parent.SetFault(func(q acmelab.Query) (int, bool) {
		return miekg.RcodeRefused, q.Type == miekg.TypeNS && q.Name == "example.com."
	})
	wantStep(t, check(), title, StateSkipped, "REFUSED", "no server of the parent zone can be asked from here")
}

func TestCheckNamesANameServerWithoutAddress(t *testing.T) {
	t.Parallel()
	d := lookup(t, "example.com. 60 IN NS nowhere.example.com.")
	r := solver(t, d, Options{}).Check(t.Context(), "example.com", CheckOptions{})
	wantStep(t, r, "name servers", StateFailed, "name server nowhere.example.com has no address", "ns1.example.com: "+d.Addr, "give every name server an address")
	wantStep(t, r, "name servers answer", StateOK, "ns2.example.com") // those that have one
}

func TestCheckFindsACNAMELoopAndGoesOn(t *testing.T) {
	t.Parallel()
	d := lookup(t, "_acme-challenge.example.com. 60 IN CNAME a.example.com.", "a.example.com. 60 IN CNAME _acme-challenge.example.com.")
	r := solver(t, d, Options{}).Check(t.Context(), "example.com", CheckOptions{})
	wantStep(t, r, "CNAME of the challenge name", StateFailed,
		d.Addr+": _acme-challenge.example.com CNAME a.example.com", "CNAME loop at _acme-challenge.example.com")
	wantStep(t, r, "zone", StateOK)
	wantStep(t, r, "CAA", StateOK, "no records: every CA may issue")
}

func TestCheckDoesNotFollowTheCNAMEOfAWildcard(t *testing.T) {
	t.Parallel()
	d := lookup(t, "*.example.com. 60 IN CNAME lb.example.com.")
	r := solver(t, d, Options{}).Check(t.Context(), "example.com", CheckOptions{Write: true})
	wantStep(t, r, "CNAME of the challenge name", StateOK, "_acme-challenge.example.com is covered by a wildcard")
	wantStep(t, r, "probe record is added", StateOK, `TXT _acme-challenge.example.com "edge-check-`)
}

func TestCheckSaysThatNoProviderHasTheZone(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	s := solver(t, d, Options{Providers: []*config.Provider{updates(t, d, "other", "other.com")}})
	r := s.Check(t.Context(), "example.com", CheckOptions{Write: true})
	wantStep(t, r, "provider", StateFailed, "no DNS provider for zone example.com (providers: other for other.com", "delegate the name by a CNAME")
	wantStep(t, r, "probe record is added", StateSkipped, "no provider")
}

func TestCheckTellsWhyTheProbeWasRefused(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	p := updates(t, d, "company")
	p.RFC2136.KeyName = "nobody."
	r := solver(t, d, Options{Providers: []*config.Provider{p}}).Check(t.Context(), "example.com", CheckOptions{Write: true})
	wantStep(t, r, "probe record is added", StateFailed, "NOTAUTH", "TSIG key nobody", d.Addr)
	wantStep(t, r, "CAA", StateOK)
}

func TestProbeThatNobodySeesIsDeletedAllTheSame(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	d.SetLag(func(q acmelab.Query, _ time.Duration) bool { return q.Server != "127.0.0.2" || q.Type != miekg.TypeTXT })
	r := solver(t, d, Options{Timeout: 50 * time.Millisecond}).Check(t.Context(), "example.com", CheckOptions{Write: true})
	wantStep(t, r, "probe record is seen", StateFailed, "ns2.example.com (127.0.0.2:"+d.Port+")")
	wantStep(t, r, "probe record is deleted", StateOK, "does not have it")
	if names := d.TXTNames(); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

func TestProbeIsDeletedWhenTheCheckIsCancelled(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d.SetLag(func(q acmelab.Query, _ time.Duration) bool {
		if q.Type == miekg.TypeTXT {
			cancel() // while the record is waited for
		}
		return q.Type != miekg.TypeTXT
	})
	r := solver(t, d, Options{}).Check(ctx, "example.com", CheckOptions{Write: true})
	wantStep(t, r, "probe record is seen", StateFailed, "context canceled")
	if names := d.TXTNames(); len(names) != 0 {
		t.Errorf("left behind: %q\n%s", names, r)
	}
}

// A secondary that has not been told of the deletion yet is no failure.
func TestCheckToleratesASecondaryThatForgetsLate(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	var mu sync.Mutex
	var kept []string
	late := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if have := d.TXT(r.Question[0].Name); len(have) > 0 {
			kept = have
		}
		m := reply(r)
		for _, v := range kept {
			m = reply(r, r.Question[0].Name+` 60 IN TXT "`+v+`"`)
		}
		m.Authoritative = true
		_ = w.WriteMsg(m)
	})
	s := solver(t, d, Options{Authoritative: config.Authoritative{Servers: []string{d.Addr, late}}})
	r := s.Check(t.Context(), "example.com", CheckOptions{Write: true})
	wantStep(t, r, "probe record is seen", StateOK, late+": has it")
	wantStep(t, r, "probe record is deleted", StateWarning, d.Addr+": does not have it", late+": still shows it", "nothing to do")
	if !r.OK() {
		t.Errorf("not OK:\n%s", r)
	}
}

func TestCheckJudgesCAA(t *testing.T) {
	t.Parallel()
	d := lookup(t, `example.com. 60 IN CAA 0 issue "other.com"`, `doubt.example.com. 60 IN CAA 0 issue "letsencrypt.org; accounturi=x"`)
	s := solver(t, d, Options{})
	o := CheckOptions{CAIdentities: []string{"letsencrypt.org"}}
	wantStep(t, s.Check(t.Context(), "www.example.com", o), "CAA", StateFailed,
		d.Addr+": CAA www.example.com: NXDOMAIN", `example.com CAA 0 issue "other.com": authorises other.com and not letsencrypt.org`, "add a record at example.com")
	wantStep(t, s.Check(t.Context(), "doubt.example.com", o), "CAA", StateWarning, "limited to account x")
}

func TestCheckOfPersistentRecords(t *testing.T) {
	t.Parallel()
	d := lookup(t)
	s := solver(t, d, Options{Providers: []*config.Provider{}})
	o := CheckOptions{Challenge: config.DNSPersist01, CAIdentities: []string{"letsencrypt.org"}, AccountURI: account}
	const title = "persistent record"
	r := s.Check(t.Context(), "*.example.com", o)
	wantStep(t, r, title, StateFailed, "ns1.example.com ("+d.Addr+"): NXDOMAIN",
		`publish _validation-persist.example.com. TXT "letsencrypt.org; accounturi=`+account+`; policy=wildcard"`)
	if slices.ContainsFunc(r.Steps, func(s Step) bool { return s.Title == "provider" }) {
		t.Error("asks for a provider, which nobody needs")
	}
	for _, c := range []struct {
		end   string
		state State
		word  string
	}{{"", StateOK, "has it"}, {"; persistUntil=4102444800", StateOK, "has it, until 2100-01-01"}} {
		if err := d.Add(`_validation-persist.example.com. 60 IN TXT "letsencrypt.org; accounturi=` + account + `; policy=wildcard` + c.end + `"`); err != nil {
			t.Fatal(err)
		}
		wantStep(t, s.Check(t.Context(), "*.example.com", o), title, c.state, c.word)
		if err := d.Remove(`_validation-persist.example.com. 60 IN TXT "letsencrypt.org; accounturi=` + account + `; policy=wildcard` + c.end + `"`); err != nil {
			t.Fatal(err)
		}
	}
	o.AccountURI = ""
	wantStep(t, s.Check(t.Context(), "example.com", o), title, StateSkipped, "the account are not known")
}

func TestCheckOfChallengesThatConnect(t *testing.T) {
	t.Parallel()
	d := lookup(t, "www.example.com. 60 IN A 192.0.2.9", "www.example.com. 60 IN AAAA 2001:db8::9", "mail.example.com. 60 IN MX 1 mx.example.com.")
	s := solver(t, d, Options{})
	o := CheckOptions{Challenge: config.HTTP01}
	wantStep(t, s.Check(t.Context(), "www.example.com", o), "addresses", StateOK, d.Addr+": www.example.com A 192.0.2.9", "AAAA 2001:db8::9")
	wantStep(t, s.Check(t.Context(), "mail.example.com", o), "addresses", StateFailed, "neither A nor AAAA", "point it at edge")
	wantStep(t, s.Check(t.Context(), "*.example.com", o), "addresses", StateFailed, "wildcard, which http-01 cannot prove", "use dns-01")
}

func TestCheckRefusesWhatIsNoHostName(t *testing.T) {
	t.Parallel()
	s := solver(t, lookup(t), Options{})
	wantStep(t, s.Check(t.Context(), "192.0.2.1", CheckOptions{}), "name", StateFailed, "http-01 or tls-alpn-01")
	wantStep(t, s.Check(t.Context(), "a b", CheckOptions{}), "name", StateFailed, "want a name without")
}

func TestCheckAgainstBIND(t *testing.T) {
	t.Parallel()
	addr := startBIND(t)
	s := bindSolver(t, addr, "edge-key", "hmac-sha256", bindKey)
	r := s.Check(t.Context(), "www.hosts.example.test", CheckOptions{Write: true, CAIdentities: []string{"letsencrypt.org"}})
	wantStep(t, r, "zone", StateOK, "zone example.test")
	wantStep(t, r, "delegation by the parent zone", StateSkipped, "REFUSED") // it knows its own zone only
	wantStep(t, r, "probe record is seen", StateOK, "ns1.example.test ("+addr+"): has it")
	wantStep(t, r, "probe record is deleted", StateOK, "does not have it")
	if got := digTXT(t, addr, "_acme-challenge.www.hosts.example.test"); len(got) != 0 {
		t.Errorf("left behind %q", got)
	}
}
