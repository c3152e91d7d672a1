package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"

	miekg "github.com/miekg/dns"
)

func TestSweepDeletesWhatADeadOrderLeftAndNothingElse(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "acme.test"}})
	if err := d.Add("_acme-challenge.www.example.test. 60 IN CNAME www.acme.test.", challenge+`. 60 IN TXT "theirs"`); err != nil {
		t.Fatal(err)
	}
	records := []Record{{challenge, "apex"}, {challenge, "wildcard"}, {"_acme-challenge.www.example.test", "www"}}
	present(t, solver(t, d, Options{}), records...)
	heir := solver(t, d, Options{})
	for range 2 { // the second finds nothing
		if err := heir.Sweep(t.Context(), append(records, Record{"_acme-challenge.never.example.test", "v"})); err != nil {
			t.Error(err)
		}
	}
	if got := d.TXTNames(); !slices.Equal(got, []string{challenge + "."}) || !slices.Equal(d.TXT(challenge), []string{"theirs"}) {
		t.Errorf("left %q at %q", d.TXT(challenge), got)
	}
	if err := heir.Sweep(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestSweepGoesOnPastNamesWithoutAPlaceAndProvidersThatFail(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "other.test", "bad.test"}})
	records := []Record{{"_acme-challenge.other.test", "v"}, {"_acme-challenge.bad.test", "v"}}
	for i := range maxRecords + 10 { // more than a Present takes
		records = append(records, Record{fmt.Sprintf("_acme-challenge.n%d.example.test", i), "v"})
	}
	all := solver(t, d, Options{})
	present(t, all, records[:100]...)
	present(t, all, records[100:]...)
	s := solver(t, d, Options{Providers: []*config.Provider{updates(t, d, "lab", "example.test", "bad.test")}}) // other.test is nobody's now
	d.SetFault(func(q acmelab.Query) (int, bool) { return miekg.RcodeRefused, q.Update && q.Name == "bad.test." })
	err := s.Sweep(t.Context(), records)
	if err == nil || !strings.Contains(err.Error(), "no DNS provider for zone other.test") || !strings.Contains(err.Error(), "zone bad.test") {
		t.Errorf("Sweep: %v", err)
	}
	if got := d.TXTNames(); !slices.Equal(got, []string{"_acme-challenge.bad.test.", "_acme-challenge.other.test."}) {
		t.Errorf("left behind: %d names, %.200q", len(got), got)
	}
}

// The heir of an order presents the same values: what the replica that has lost
// it deletes would be missed.
func TestOrderThatWasLostToAnHeirDeletesNothing(t *testing.T) {
	t.Parallel()
	lost, stopped := errors.New("lease lost"), errors.New("edge stops")
	for cause, want := range map[error]int{lost: 1, stopped: 0} {
		d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"one.test", "two.test"}})
		ctx, cancel := context.WithCancelCause(t.Context())
		d.SetFault(func(q acmelab.Query) (int, bool) {
			if q.Update && q.Name == "two.test." {
				for begin := time.Now(); len(d.TXTNames()) == 0 && time.Since(begin) < 10*time.Second; { // one.test has its value
					time.Sleep(time.Millisecond)
				}
				cancel(cause)
				return miekg.RcodeServerFailure, true
			}
			return 0, false
		})
		s := solver(t, d, Options{Lost: func(err error) bool { return errors.Is(err, lost) }})
		if _, err := s.Present(ctx, []Record{{"_acme-challenge.one.test", "v"}, {"_acme-challenge.two.test", "v"}}); err == nil {
			t.Errorf("%v: presented", cause)
		}
		if got := d.TXTNames(); len(got) != want {
			t.Errorf("%v: records at %q, want %d", cause, got, want)
		}
	}
}

func TestCleanUpWithAnEndedContextReturnsAtOnceAndGoesOnLater(t *testing.T) {
	lab := clouds()["route53"](t)
	lab.options.Lease = func(ctx context.Context, _ string) (func(), error) { // a store that is down
		if ctx.Value(t) != nil {
			return func() {}, nil
		}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := solver(t, lab.dns, lab.options)
	p, err := s.Present(context.WithValue(ctx, t, true), []Record{{challenge, "v"}})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	wantError(t, p.CleanUp(ctx), "delete challenge records from zone example.test", "cancelled")
	if err := p.CleanUp(context.WithValue(t.Context(), t, true)); err != nil || len(lab.dns.TXTNames()) > 0 {
		t.Errorf("%v, left %q", err, lab.dns.TXTNames())
	}
}

// Two accounts at two vendors, and a chain from a zone of the one into a zone of
// the other.
func TestChainsLeadFromOneVendorToAnother(t *testing.T) {
	t.Parallel()
	g, gd := startGoogle(t, acmelab.GoogleOptions{}) // has acme.test
	site := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"site.test"}})
	if err := site.Add("_acme-challenge.site.test. 60 IN CNAME hop.site.test.", "hop.site.test. 60 IN CNAME site.acme.test."); err != nil {
		t.Fatal(err)
	}
	o := googleOptions(t, g)
	o.Providers[0].Zones = []string{"acme.test"}
	o.Providers = append(o.Providers, updates(t, site, "site", "site.test"))
	o.Resolvers = []string{site.Addr, gd.Addr}
	s := solver(t, gd, o)
	p := present(t, s, Record{"_acme-challenge.site.test", "far"}, Record{"_acme-challenge.www.site.test", "near"})
	if got := gd.TXT("site.acme.test"); !slices.Equal(got, []string{"far"}) {
		t.Errorf("the end of the chain has %q", got)
	}
	if got := site.TXT("_acme-challenge.www.site.test"); !slices.Equal(got, []string{"near"}) {
		t.Errorf("the site has %q", got)
	}
	if err := p.CleanUp(t.Context()); err != nil || len(gd.TXTNames())+len(site.TXTNames()) > 0 {
		t.Errorf("%v, left %q, %q", err, gd.TXTNames(), site.TXTNames())
	}
}
