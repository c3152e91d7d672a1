package dns

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	miekg "github.com/miekg/dns"
)

// serveDNS answers on one port of 127.0.0.1, by UDP and TCP, with handler.
func serveDNS(tb testing.TB, handler miekg.HandlerFunc) string {
	tb.Helper()
	for range 20 { // another process may hold the TCP port of a free UDP port
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		ln, err := net.Listen("tcp", pc.LocalAddr().String())
		if err != nil {
			_ = pc.Close()
			continue
		}
		for _, srv := range []*miekg.Server{{PacketConn: pc}, {Listener: ln}} {
			srv.Handler = handler
			up, done := make(chan struct{}), make(chan error, 1)
			srv.NotifyStartedFunc = func() { close(up) }
			go func() { done <- srv.ActivateAndServe() }()
			<-up
			tb.Cleanup(func() {
				_ = srv.Shutdown()
				<-done
			})
		}
		return pc.LocalAddr().String()
	}
	tb.Fatal("no port free for both UDP and TCP")
	return ""
}

func reply(r *miekg.Msg, records ...string) *miekg.Msg {
	m := new(miekg.Msg).SetReply(r)
	for _, s := range records {
		rr, err := miekg.NewRR(s)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

func isUDP(w miekg.ResponseWriter) bool { return w.LocalAddr().Network() == "udp" }

func TestTruncatedAnswerIsFetchedByTCP(t *testing.T) {
	t.Parallel()
	addr := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		m := reply(r)
		if isUDP(w) {
			m.Truncated = true
		} else {
			m = reply(r, `a.test. 1 IN TXT "`+strings.Repeat("long", 60)+`"`)
		}
		_ = w.WriteMsg(m)
	})
	answer, err := newClient().queryTXT(t.Context(), addr, "a.test.", false)
	if err != nil || len(answer.Answer) != 1 {
		t.Errorf("answer %v, error %v", answer, err)
	}
}

func TestQueryGoesThroughWhereUDPIsFiltered(t *testing.T) {
	t.Parallel()
	var udp atomic.Int32
	addr := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		if isUDP(w) {
			udp.Add(1)
			return
		}
		_ = w.WriteMsg(reply(r))
	})
	c := newClient()
	c.timeout = 50 * time.Millisecond
	if _, err := c.queryTXT(t.Context(), addr, "a.test.", false); err != nil || udp.Load() != 2 {
		t.Errorf("error %v after %d queries by UDP", err, udp.Load())
	}
}

func TestOnlyResolversAreAskedToRecurse(t *testing.T) {
	t.Parallel()
	asked := make(chan bool, 2)
	addr := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		asked <- r.RecursionDesired
		_ = w.WriteMsg(reply(r))
	})
	for _, want := range []bool{true, false} {
		if _, err := newClient().queryTXT(t.Context(), addr, "a.test.", want); err != nil {
			t.Fatal(err)
		}
		if got := <-asked; got != want {
			t.Errorf("RD=%t, want %t", got, want)
		}
	}
}

func TestAnswerToAnotherQuestionIsNotBelieved(t *testing.T) {
	t.Parallel()
	addr := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		m := reply(r, `a.test. 1 IN TXT "v"`)
		m.Question[0].Name = "b.test."
		_ = w.WriteMsg(m)
	})
	_, err := newClient().queryTXT(t.Context(), addr, "a.test.", false)
	wantError(t, err, "answer to another question")
}

func TestQueryEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	addr := serveDNS(t, func(miekg.ResponseWriter, *miekg.Msg) { cancel() })
	c := newClient()
	c.timeout = time.Hour
	if _, err := c.queryTXT(ctx, addr, "a.test.", false); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	for range cap(c.slots) {
		c.slots <- struct{}{}
	}
	if _, err := c.queryTXT(ctx, addr, "a.test.", false); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v while all slots are taken, want context.Canceled", err)
	}
}

func TestResolversAreAskedInOrderUntilOneKnows(t *testing.T) {
	t.Parallel()
	lame := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		_ = w.WriteMsg(new(miekg.Msg).SetRcode(r, miekg.RcodeServerFailure))
	})
	good := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) { _ = w.WriteMsg(reply(r)) })
	s, err := New(Options{Resolvers: []string{unusedAddr(t), lame, good}, Poll: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ask(t.Context(), "a.test.", miekg.TypeA); err != nil {
		t.Error(err)
	}
	closed := unusedAddr(t)
	s.resolvers = []string{lame, closed}
	_, err = s.ask(t.Context(), "a.test.", miekg.TypeA)
	wantError(t, err, "look up a.test A", lame+": SERVFAIL", closed+": connection refused")
	if !errors.Is(err, errNoResolver) {
		t.Error("not an errNoResolver")
	}
}

func TestResolverThatFailedIsAskedAgainAfterAWhile(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var first atomic.Int64
	addr := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		m := reply(r)
		if asked.Add(1) == 1 {
			first.Store(time.Now().UnixNano())
			m.Rcode = miekg.RcodeServerFailure
		}
		_ = w.WriteMsg(m)
	})
	refuses := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		_ = w.WriteMsg(new(miekg.Msg).SetRcode(r, miekg.RcodeRefused))
	})
	s, err := New(Options{Resolvers: []string{refuses, addr}, Poll: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ask(t.Context(), "a.test.", miekg.TypeA); err != nil || asked.Load() != 2 {
		t.Errorf("error %v after %d queries, want an answer to the second", err, asked.Load())
	}
	if waited := time.Since(time.Unix(0, first.Load())); waited < s.poll {
		t.Errorf("asked again after %s, want at least %s: a resolver remembers its failure", waited, s.poll)
	}
	s.resolvers, s.poll = []string{refuses}, time.Hour // what is refused is refused
	_, err = s.ask(t.Context(), "a.test.", miekg.TypeA)
	wantError(t, err, refuses+": REFUSED")
}

func TestDeadResolverCostsOneTimeout(t *testing.T) {
	t.Parallel()
	var silent, asked atomic.Int32
	dead := serveDNS(t, func(miekg.ResponseWriter, *miekg.Msg) { silent.Add(1) })
	good := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		asked.Add(1)
		_ = w.WriteMsg(reply(r))
	})
	s, err := New(Options{Resolvers: []string{dead, good}})
	if err != nil {
		t.Fatal(err)
	}
	s.client.timeout = 50 * time.Millisecond
	if _, err := s.ask(t.Context(), "a.test.", miekg.TypeA); err != nil || silent.Load() != 1 || asked.Load() != 1 {
		t.Errorf("error %v; the dead resolver was asked %d times, the other %d", err, silent.Load(), asked.Load())
	}
}

func TestSystemResolversComeFromResolvConf(t *testing.T) {
	t.Parallel()
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	got, err := systemResolvers(write("# comment\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5\nsearch example.com\n"))
	if want := []string{"192.0.2.1:53", "[2001:db8::1]:53"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("resolvers %q, error %v, want %q", got, err, want)
	}
	got, err = systemResolvers(write(strings.Repeat("nameserver 192.0.2.1\n", 100)))
	if err != nil || len(got) != maxResolvers {
		t.Errorf("%d resolvers, error %v, want %d", len(got), err, maxResolvers)
	}
	for _, path := range []string{write("search example.com\n"), filepath.Join(t.TempDir(), "absent")} {
		_, err = systemResolvers(path)
		wantError(t, err, "no resolver answered", path, "set resolvers in the issuer")
	}
}

func TestServersWithoutPortGetOne(t *testing.T) {
	t.Parallel()
	got := withPorts([]string{"192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:5353", "ns.example.com"})
	want := []string{"192.0.2.1:53", "192.0.2.1:5353", "[2001:db8::1]:53", "[2001:db8::1]:53", "[2001:db8::1]:5353", "ns.example.com:53"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestZoneCacheForgetsAndIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newZoneCache()
		for i := range 3 * maxZones {
			c.put(strings.Repeat("a", i%63+1)+"."+strings.Repeat("b", i/63+1)+".test.", "test.")
		}
		if n := len(c.entries); n != maxZones {
			t.Errorf("%d entries, want %d", n, maxZones)
		}
		c.put("www.example.test.", "example.test.")
		if zone, ok := c.get("www.example.test."); !ok || zone != "example.test." {
			t.Errorf("zone %q, %t", zone, ok)
		}
		time.Sleep(zoneTTL + 1)
		if zone, ok := c.get("www.example.test."); ok {
			t.Errorf("zone %q after its time", zone)
		}
		c.put("www.example.test.", "example.test.")
		if n := len(c.entries); n != 1 {
			t.Errorf("%d entries after the others expired, want 1", n)
		}
	})
}

func TestZoneIsReadFromNegativeAnswers(t *testing.T) {
	t.Parallel()
	soa := func(owner string) []miekg.RR {
		rr, err := miekg.NewRR(owner + " 60 IN SOA ns. host. 1 2 3 4 5")
		if err != nil {
			t.Fatal(err)
		}
		return []miekg.RR{rr}
	}
	for _, c := range []struct {
		what string
		msg  miekg.Msg
		want string
	}{
		{"the apex", miekg.Msg{Answer: soa("Example.test.")}, "example.test."},
		{"NXDOMAIN in its zone", miekg.Msg{Ns: soa("example.test.")}, "example.test."},
		{"the zone behind a CNAME", miekg.Msg{Ns: soa("elsewhere.test.")}, ""},
		{"a zone below", miekg.Msg{Ns: soa("deep.www.example.test.")}, ""},
		{"the root", miekg.Msg{Ns: soa(".")}, ""},
		{"nothing", miekg.Msg{}, ""},
	} {
		if got := apex(&c.msg, "www.example.test."); c.what != "the apex" && got != c.want || c.what == "the apex" && apex(&c.msg, "example.test.") != c.want {
			t.Errorf("%s: zone %q, want %q", c.what, got, c.want)
		}
	}
}

func TestNameServersAreBounded(t *testing.T) {
	t.Parallel()
	addr := serveDNS(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		var rrs []string
		for i := range 40 {
			switch r.Question[0].Qtype {
			case miekg.TypeNS:
				rrs = append(rrs, "example.test. 60 IN NS n"+string(rune('a'+i%26))+string(rune('a'+i/26))+".test.")
			case miekg.TypeA:
				rrs = append(rrs, r.Question[0].Name+" 60 IN A 192.0.2."+string(rune('1'+i%9)))
			}
		}
		m := reply(r, rrs...)
		if isUDP(w) {
			m.Truncate(udpSize)
		}
		_ = w.WriteMsg(m)
	})
	s, err := New(Options{Resolvers: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	servers, err := s.nameServers(t.Context(), "example.test.")
	if err != nil || len(servers) != maxServers {
		t.Fatalf("%d servers, error %v, want %d", len(servers), err, maxServers)
	}
	n := 0
	for _, ns := range servers {
		if len(ns.addresses) == 0 {
			t.Errorf("%s has lost all its addresses", ns.name)
		}
		n += len(ns.addresses)
	}
	if n > maxAddresses {
		t.Errorf("%d addresses, want at most %d", n, maxAddresses)
	}
}
