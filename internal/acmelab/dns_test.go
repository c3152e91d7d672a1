package acmelab_test

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"

	"edge/internal/acmelab"
)

func ask(tb testing.TB, network, server, name string, qtype uint16) *dns.Msg {
	tb.Helper()
	in, _, err := (&dns.Client{Net: network}).ExchangeContext(tb.Context(), new(dns.Msg).SetQuestion(name, qtype), server)
	if err != nil {
		tb.Fatalf("%s %s %s: %v", network, name, dns.TypeToString[qtype], err)
	}
	return in
}

func add(tb testing.TB, d *acmelab.DNS, records ...string) {
	tb.Helper()
	if err := d.Add(records...); err != nil {
		tb.Fatal(err)
	}
}

func TestAnswersAreThoseOfAnAuthoritativeServer(t *testing.T) {
	t.Parallel()
	ns := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "sub.example.test.", "other.test"}})
	add(t, ns,
		"www.example.test. 60 IN A 127.0.0.9",
		"alias.example.test. 60 IN CNAME www.example.test.",
		"away.example.test. 60 IN CNAME www.other.test.",
		"abroad.example.test. 60 IN CNAME www.example.com.",
		"loop.example.test. 60 IN CNAME loop.example.test.",
		"www.other.test. 60 IN A 127.0.0.8",
		"*.apps.example.test. 60 IN CNAME www.example.test.",
		"_acme-challenge.api.apps.example.test. 60 IN TXT \"x\"",
		"given.example.test. 60 IN NS ns.given.example.test.",
		"ns.given.example.test. 60 IN A 127.0.0.7",
		"a.b.c.example.test. 60 IN A 127.0.0.6",
	)
	for _, c := range []struct {
		name   string
		qtype  uint16
		rcode  int
		n      int    // answers
		ns     string // owner of the first record of the authority section
		aa     bool
		remark string
	}{
		{"example.test.", dns.TypeSOA, 0, 1, "", true, "apex"},
		{"EXAMPLE.test.", dns.TypeNS, 0, 1, "", true, "case"},
		{"sub.example.test.", dns.TypeSOA, 0, 1, "", true, "zone below a zone"},
		{"x.sub.example.test.", dns.TypeA, dns.RcodeNameError, 0, "sub.example.test.", true, "negative in the lower zone"},
		{"www.example.test.", dns.TypeTXT, 0, 0, "example.test.", true, "no data"},
		{"none.example.test.", dns.TypeA, dns.RcodeNameError, 0, "example.test.", true, "no name"},
		{"b.c.example.test.", dns.TypeA, 0, 0, "example.test.", true, "empty non-terminal"},
		{"alias.example.test.", dns.TypeA, 0, 2, "", true, "CNAME"},
		{"alias.example.test.", dns.TypeCNAME, 0, 1, "", true, "CNAME itself"},
		{"alias.example.test.", dns.TypeTXT, 0, 1, "example.test.", true, "CNAME to no data"},
		{"away.example.test.", dns.TypeA, 0, 2, "", true, "CNAME to another zone"},
		{"away.example.test.", dns.TypeTXT, 0, 1, "other.test.", true, "SOA of the last name"},
		{"abroad.example.test.", dns.TypeA, 0, 1, "", true, "CNAME to elsewhere"},
		{"loop.example.test.", dns.TypeA, 0, 8, "example.test.", true, "loop"},
		{"new.apps.example.test.", dns.TypeA, 0, 2, "", true, "wildcard"},
		{"_acme-challenge.new.apps.example.test.", dns.TypeTXT, 0, 1, "example.test.", true, "wildcard hides a challenge"},
		{"_acme-challenge.api.apps.example.test.", dns.TypeTXT, 0, 1, "", true, "name beside a wildcard"},
		{"api.apps.example.test.", dns.TypeA, 0, 0, "example.test.", true, "an empty non-terminal stops the wildcard"},
		{"x.given.example.test.", dns.TypeA, 0, 0, "given.example.test.", false, "referral"},
		{"example.com.", dns.TypeA, dns.RcodeRefused, 0, "", false, "not ours"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			in := ask(t, network, ns.Addr, c.name, c.qtype)
			authority := ""
			if len(in.Ns) > 0 {
				authority = in.Ns[0].Header().Name
			}
			if in.Rcode != c.rcode || len(in.Answer) != c.n || authority != c.ns || in.Authoritative != c.aa {
				t.Errorf("%s over %s: got %v", c.remark, network, in)
			}
		}
	}
	if in := ask(t, "udp", ns.Addr, "given.example.test.", dns.TypeNS); len(in.Extra) != 1 {
		t.Errorf("referral without glue: %v", in)
	}
	r := &net.Resolver{PreferGo: true, Dial: (&dialer{to: ns.Addr}).dial}
	if ips, err := r.LookupHost(t.Context(), "alias.example.test"); err != nil || len(ips) != 1 {
		t.Errorf("Go's resolver got %v, %v", ips, err)
	}
}

func TestUpdatesAndTransfersNeedTheKey(t *testing.T) {
	t.Parallel()
	ns := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "sub.example.test"}})
	p := rfc2136Provider(ns)
	recs := []libdns.Record{
		libdns.TXT{Name: "x", Text: "one", TTL: time.Second},
		libdns.TXT{Name: "x", Text: "two", TTL: time.Second},
	}
	if _, err := p.AppendRecords(t.Context(), "example.test.", recs); err != nil {
		t.Fatal(err)
	}
	if got := ns.TXT("X.example.test"); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("TXT %q", got)
	}
	if all, err := p.GetRecords(t.Context(), "example.test."); err != nil || len(all) < 5 {
		t.Errorf("zone transfer: %v, %v", all, err)
	}
	if _, err := p.DeleteRecords(t.Context(), "example.test.", recs[:1]); err != nil {
		t.Fatal(err)
	}
	if got := ns.TXT("x.example.test."); !slices.Equal(got, []string{"two"}) {
		t.Errorf("TXT %q after a delete", got)
	}

	wrong := *p
	wrong.Key = "AAAA"
	if _, err := wrong.AppendRecords(t.Context(), "example.test.", recs); err == nil {
		t.Error("an update with a wrong key was accepted")
	}
	below := []libdns.Record{libdns.TXT{Name: "x.sub", Text: "one", TTL: time.Second}}
	if _, err := p.AppendRecords(t.Context(), "example.test.", below); err == nil {
		t.Error("an update of a name of the zone below was accepted")
	}
	if _, err := p.GetRecords(t.Context(), "example.com."); err == nil {
		t.Error("a zone that is not there was transferred")
	}
	unsigned := new(dns.Msg).SetUpdate("example.test.")
	unsigned.Insert([]dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: "y.example.test.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{"no"}}})
	transfer := new(dns.Msg).SetAxfr("example.test.")
	for _, m := range []*dns.Msg{unsigned, transfer} {
		if in, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), m, ns.Addr); err != nil || in.Rcode != dns.RcodeRefused {
			t.Errorf("unsigned %s: %v, %v", dns.OpcodeToString[m.Opcode], in, err)
		}
	}
	if _, updates := ns.Counts(); updates < 2 {
		t.Errorf("%d updates", updates)
	}
}

func TestEachServerHasItsOwnLagAndFaults(t *testing.T) {
	t.Parallel()
	const slow, dead = "127.0.0.2", "127.0.0.3"
	ns := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones:    []string{"example.test"},
		Replicas: []string{slow, dead},
		NS:       map[string][]string{"ns9.example.test": {"127.0.0.9", "::1"}},
	})
	if in := ask(t, "udp", ns.Addr, "example.test.", dns.TypeNS); len(in.Answer) != 4 {
		t.Errorf("name servers %v, want 4", in.Answer)
	}
	if in := ask(t, "udp", ns.Addr, "ns2.example.test.", dns.TypeA); len(in.Answer) != 1 || in.Answer[0].(*dns.A).A.String() != slow {
		t.Errorf("address of ns2: %v, want %s", in.Answer, slow)
	}
	if in := ask(t, "udp", ns.Addr, "ns9.example.test.", dns.TypeAAAA); len(in.Answer) != 1 {
		t.Errorf("address of ns9: %v", in.Answer)
	}
	ns.SetLag(func(q acmelab.Query, _ time.Duration) bool { return q.Type != dns.TypeTXT || q.Server != slow })
	ns.SetFault(func(q acmelab.Query) (int, bool) { return acmelab.Silence, q.Server == dead })
	add(t, ns, `x.example.test. 1 IN TXT "v"`)
	if in := ask(t, "tcp", ns.Addr, "x.example.test.", dns.TypeTXT); len(in.Answer) != 1 {
		t.Errorf("first server: %v", in)
	}
	second := net.JoinHostPort(slow, ns.Port)
	if in := ask(t, "tcp", second, "x.example.test.", dns.TypeTXT); len(in.Answer) != 0 || len(in.Ns) != 1 {
		t.Errorf("slow server: %v, want no data", in)
	}
	c := &dns.Client{Timeout: 50 * time.Millisecond}
	if in, _, err := c.Exchange(new(dns.Msg).SetQuestion("example.test.", dns.TypeSOA), net.JoinHostPort(dead, ns.Port)); err == nil {
		t.Errorf("dead server answered %v", in)
	}
	ns.SetLag(nil)
	if in := ask(t, "udp", second, "x.example.test.", dns.TypeTXT); len(in.Answer) != 1 {
		t.Errorf("slow server later: %v", in)
	}
	want := acmelab.Query{Server: slow, Network: "tcp", Name: "x.example.test.", Type: dns.TypeTXT}
	if !slices.Contains(ns.Queries(), want) {
		t.Errorf("no %+v among %+v", want, ns.Queries())
	}
	if err := ns.Remove(`x.example.test. 9 IN TXT "v"`); err != nil {
		t.Fatal(err)
	}
	if got := ns.TXT("x.example.test"); len(got) != 0 {
		t.Errorf("TXT %q after Remove", got)
	}
}

func TestDNSFaultCanHitUpdatesOnly(t *testing.T) {
	t.Parallel()
	ns := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones: []string{"example.test"},
		Fault: func(q acmelab.Query) (int, bool) { return dns.RcodeServerFailure, q.Update },
	})
	recs := []libdns.Record{libdns.TXT{Name: "x", Text: "one"}}
	if _, err := rfc2136Provider(ns).AppendRecords(t.Context(), "example.test.", recs); err == nil {
		t.Error("a broken update was reported as good")
	}
	if got := ns.TXTNames(); len(got) != 0 {
		t.Errorf("a broken update added %q", got)
	}
	ask(t, "udp", ns.Addr, "example.test.", dns.TypeSOA)
}

func TestDNSRefusesWhatItCannotServe(t *testing.T) {
	t.Parallel()
	ns := acmelab.NewDNS(t, acmelab.DNSOptions{})
	for _, o := range []acmelab.DNSOptions{
		{Addr: "127.0.0.1"},
		{Addr: ns.Addr},
		{Addr: "192.0.2.1:0"},
		{Zones: []string{"a b c ("}},
		{Zones: []string{"example.test"}, NS: map[string][]string{"ns.test": {"nowhere"}}},
	} {
		if d, err := acmelab.StartDNS(o); err == nil {
			t.Errorf("%+v was accepted", o)
			_ = d.Close()
		}
	}
	for _, record := range []string{"", "; a comment", "x IN", "x.example.test. IN A example"} {
		if err := ns.Add(record); err == nil {
			t.Errorf("record %q was accepted", record)
		}
	}
}
