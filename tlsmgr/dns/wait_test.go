package dns

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"

	miekg "github.com/miekg/dns"
)

const challenge = "_acme-challenge.example.test"

func TestWaitLooksAtOnce(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	p := present(t, solver(t, d, Options{Poll: time.Hour}), Record{challenge, "v"})
	if err := p.Wait(t.Context()); err != nil { // the second look would be too late
		t.Error(err)
	}
}

func TestWaitDoesNotReturnBeforeTheLastServerHasTheRecord(t *testing.T) {
	t.Parallel()
	var released atomic.Bool
	looks := make(chan struct{}, 1000) // by Wait at the server that lags
	d := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones: []string{"example.test"}, Replicas: []string{"127.0.0.2"},
		Lag: func(q acmelab.Query, _ time.Duration) bool {
			if q.Server != "127.0.0.2" || q.Type != miekg.TypeTXT {
				return true
			}
			looks <- struct{}{}
			return released.Load()
		},
	})
	p := present(t, solver(t, d, Options{}), Record{challenge, "v"})
	done := make(chan error, 1)
	go func() { done <- p.Wait(t.Context()) }()
	for range 3 { // while 127.0.0.1 has shown the record since the first look
		select {
		case <-looks:
		case err := <-done:
			t.Fatalf("Wait returned %v while a server lagged", err)
		case <-t.Context().Done():
			t.Fatal("Wait does not look")
		}
	}
	select {
	case err := <-done:
		t.Fatalf("Wait returned %v while a server lagged", err)
	default:
	}
	released.Store(true)
	if err := <-done; err != nil {
		t.Errorf("Wait: %v", err)
	}
	n := 0
	for _, q := range d.Queries() {
		if q.Server == "127.0.0.1" && q.Type == miekg.TypeTXT {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the server that had the record was asked %d times for it, want once", n)
	}
}

func TestWaitErrorNamesEachServerAndItsAnswer(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones: []string{"example.test"}, Replicas: []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"},
		NS: map[string][]string{"gone.example.test": {"127.0.0.99"}},
		Fault: func(q acmelab.Query) (int, bool) {
			switch {
			case q.Type != miekg.TypeTXT:
				return 0, false
			case q.Server == "127.0.0.2":
				return miekg.RcodeNameError, true
			case q.Server == "127.0.0.3":
				return acmelab.Silence, true
			}
			return 0, false
		},
		Lag: func(q acmelab.Query, _ time.Duration) bool { return q.Server != "127.0.0.4" || q.Type != miekg.TypeTXT },
	})
	p := present(t, solver(t, d, Options{Timeout: 2 * time.Second}), Record{challenge, "v"}, Record{challenge, "w"}, Record{"_acme-challenge.b.example.test", "v"})
	err := p.Wait(t.Context())
	wantError(t, err, "challenge records not visible after 2", "zone example.test",
		"ns2.example.test (127.0.0.2:"+d.Port+"): NXDOMAIN (not authoritative) at _acme-challenge.b.example.test and 1 more",
		"ns3.example.test (127.0.0.3:"+d.Port+"): i/o timeout",
		"ns4.example.test (127.0.0.4:"+d.Port+"): has 0 of 1 values at _acme-challenge.b.example.test and 1 more",
		"gone.example.test (127.0.0.99:"+d.Port+"): connection refused",
		"resolvers and authoritative")
	if strings.Contains(err.Error(), "ns1.") {
		t.Errorf("error names a server that has everything: %v", err)
	}
}

func TestOneOfTwoValuesIsNotEnough(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	p := present(t, solver(t, d, Options{Timeout: 200 * time.Millisecond}), Record{challenge, "v"}, Record{challenge, "w"})
	if err := d.Remove(challenge + `. 60 IN TXT "w"`); err != nil { // another replica's provider overwrote the set
		t.Fatal(err)
	}
	wantError(t, p.Wait(t.Context()), "has 1 of 2 values at "+challenge)
}

func TestNameServerIsJudgedByAddressesThatAnswer(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones: []string{"example.test"}, Replicas: []string{"127.0.0.2"},
		NS: map[string][]string{"dual.example.test": {"127.0.0.1", "127.0.0.99", "::2"}, "lame.example.test": {"127.0.0.2", "127.0.0.1"}},
		Fault: func(q acmelab.Query) (int, bool) {
			return acmelab.Silence, q.Server == "127.0.0.2" && q.Type == miekg.TypeTXT
		},
	})
	p := present(t, solver(t, d, Options{Timeout: 3 * time.Second}), Record{challenge, "v"})
	if err := d.Remove("example.test. 1 IN NS ns2.example.test."); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("every name server has an address that answers, but: %v", err)
	}
}

func TestAddressThatAnswersWithoutTheRecordHoldsItsServerBack(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones: []string{"example.test"}, Replicas: []string{"127.0.0.2"},
		NS:  map[string][]string{"dual.example.test": {"127.0.0.1", "127.0.0.2"}},
		Lag: func(q acmelab.Query, _ time.Duration) bool { return q.Server != "127.0.0.2" || q.Type != miekg.TypeTXT },
	})
	p := present(t, solver(t, d, Options{Timeout: 200 * time.Millisecond}), Record{challenge, "v"})
	if err := d.Remove("example.test. 1 IN NS ns2.example.test."); err != nil {
		t.Fatal(err)
	}
	wantError(t, p.Wait(t.Context()), "dual.example.test (127.0.0.2:"+d.Port+"): has 0 of 1 values")
}

func TestAuthoritativeServersReplaceDiscovery(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones: []string{"example.test"}, Replicas: []string{"127.0.0.2"},
		NS: map[string][]string{"unreachable.example.test": {"127.0.0.99"}},
	})
	p := present(t, solver(t, d, Options{Authoritative: config.Authoritative{Servers: []string{"127.0.0.2:" + d.Port}}}), Record{challenge, "v"})
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	for _, q := range d.Queries() {
		if q.Type == miekg.TypeTXT && q.Server != "127.0.0.2" || q.Type == miekg.TypeNS {
			t.Errorf("asked %+v", q)
		}
	}
}

func TestAuthoritativeOffAsksResolversThatAnswer(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones: []string{"example.test"}, NS: map[string][]string{"unreachable.example.test": {"127.0.0.99"}},
	})
	o := Options{Resolvers: []string{unusedAddr(t), d.Addr}, Authoritative: config.Authoritative{Off: true}, Timeout: 5 * time.Second}
	p := present(t, solver(t, d, o), Record{challenge, "v"})
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	d.SetFault(func(q acmelab.Query) (int, bool) { return miekg.RcodeServerFailure, q.Type == miekg.TypeTXT })
	p.solver.timeout = 100 * time.Millisecond
	wantError(t, p.Wait(t.Context()), d.Addr+": SERVFAIL", "remember")
}

func TestNegativeAnswerOfResolverTellsHowLongItIsRemembered(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	p := present(t, solver(t, d, Options{Authoritative: config.Authoritative{Off: true}, Timeout: 100 * time.Millisecond}), Record{challenge, "v"})
	if err := p.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantError(t, p.Wait(t.Context()), d.Addr+": NXDOMAIN (remembered for 1 s) at "+challenge)
}

func TestDiscoveryIsRepeatedWhileResolversRecover(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	p := present(t, solver(t, d, Options{}), Record{challenge, "v"})
	var asked atomic.Int32
	d.SetFault(func(q acmelab.Query) (int, bool) {
		return miekg.RcodeServerFailure, q.Type == miekg.TypeNS && asked.Add(1) < 4
	})
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	p.solver.timeout = 100 * time.Millisecond
	d.SetFault(func(q acmelab.Query) (int, bool) { return miekg.RcodeServerFailure, q.Type == miekg.TypeNS })
	wantError(t, p.Wait(t.Context()), "zone example.test: name servers", "look up example.test NS", d.Addr+": SERVFAIL", "set resolvers")
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}, Fault: func(q acmelab.Query) (int, bool) {
		if q.Type == miekg.TypeTXT {
			cancel()
		}
		return acmelab.Silence, q.Type == miekg.TypeTXT
	}})
	s := solver(t, d, Options{Timeout: time.Hour, Poll: time.Hour})
	s.client.timeout = time.Hour // only the cancellation can end the query
	p := present(t, s, Record{challenge, "v"})
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v, want context.Canceled", err)
	}
}

func TestDeadAddressCostsItsTimeoutsOnceForAllNames(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{
		Zones: []string{"example.test"}, Replicas: []string{"127.0.0.2"},
		NS: map[string][]string{"dual.example.test": {"127.0.0.1", "127.0.0.2"}},
		Fault: func(q acmelab.Query) (int, bool) {
			return acmelab.Silence, q.Server == "127.0.0.2" && q.Type == miekg.TypeTXT
		},
	})
	var records []Record
	for _, c := range "abcdefghijklmnopqrstuvwxyz" {
		records = append(records, Record{"_acme-challenge." + string(c) + ".example.test", "v"})
	}
	s := solver(t, d, Options{Poll: time.Hour})
	p := present(t, s, records...)
	if err := d.Remove("example.test. 1 IN NS ns2.example.test."); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	n := 0
	for _, q := range d.Queries() {
		if q.Server == "127.0.0.2" && q.Type == miekg.TypeTXT {
			n++
		}
	}
	if n > queryTries {
		t.Errorf("a dead address was asked %d times for 26 names, want %d", n, queryTries)
	}
}

// Nobody can ask such a server, so it must not cost the order two minutes.
func TestNameServerWithoutAddressIsLeftOutWithAWarning(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	if err := d.Add("example.test. 1 IN NS nowhere.example.test.", "example.test. 1 IN NS unknown.elsewhere.invalid."); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	s := solver(t, d, Options{Timeout: time.Minute})
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	p := present(t, s, Record{challenge, "v"})
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"level=WARN", "zone=example.test", "others=1", "name server nowhere.example.test has no address", "unknown.elsewhere.invalid"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log %q lacks %q", log.String(), want)
		}
	}
	if strings.Count(log.String(), "\n") != 1 {
		t.Errorf("log of several lines: %q", log.String())
	}
	if err := d.Remove("example.test. 1 IN NS ns1.example.test."); err != nil {
		t.Fatal(err)
	}
	s.timeout = 100 * time.Millisecond
	wantError(t, errors.Join(errors.New(strings.ReplaceAll(p.Wait(t.Context()).Error(), "\n", " "))), "zone example.test: name servers", "name server nowhere.example.test has no address")
}
