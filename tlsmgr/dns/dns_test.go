package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
	"edge/internal/acmelab"

	miekg "github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(acmelab.LeakedFunction))
}

// secret puts text where a provider's configuration can refer to it.
func secret(tb testing.TB, text string) config.Secret {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return config.Secret{Ref: "file:" + path}
}

// updates is a provider that writes into d.
func updates(tb testing.TB, d *acmelab.DNS, name string, zones ...string) *config.Provider {
	tb.Helper()
	return &config.Provider{Name: name, Zones: zones, RFC2136: &config.RFC2136{
		Server: d.Addr, KeyName: d.Key.Name, KeyAlgorithm: "hmac-sha256", Key: secret(tb, d.Key.Secret),
	}}
}

// solver is a Solver for which d is the resolver and the whole world.
func solver(tb testing.TB, d *acmelab.DNS, o Options) *Solver {
	tb.Helper()
	if o.Providers == nil {
		o.Providers = []*config.Provider{updates(tb, d, "lab")}
	}
	if o.Resolvers == nil {
		o.Resolvers = []string{d.Addr}
	}
	if o.Poll == 0 {
		o.Poll = 5 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	o.Port = d.Port
	o.Logger = slog.New(slog.DiscardHandler)
	s, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	s.client.timeout = 300 * time.Millisecond
	return s
}

func present(tb testing.TB, s *Solver, records ...Record) *Presented {
	tb.Helper()
	p, err := s.Present(tb.Context(), records)
	if err != nil {
		tb.Fatalf("Present: %v", err)
	}
	return p
}

// wantError checks that err is one line with all the words.
func wantError(tb testing.TB, err error, words ...string) {
	tb.Helper()
	if err == nil {
		tb.Fatalf("no error, want one with %q", words)
	}
	if strings.Contains(err.Error(), "\n") {
		tb.Errorf("error of several lines: %v", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			tb.Errorf("error %q lacks %q", err, w)
		}
	}
}

func TestOrderIsPresentedSeenAndCleanedUp(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}, Replicas: []string{"127.0.0.2"}})
	if err := d.Add(`_acme-challenge.example.test. 60 IN TXT "somebody else's"`); err != nil {
		t.Fatal(err)
	}
	p := present(t, solver(t, d, Options{}),
		Record{"_acme-challenge.example.test", "apex"},
		Record{"_ACME-challenge.Example.test.", "wildcard"},
		Record{"_acme-challenge.example.test", "apex"}, // the same once more
		Record{"_acme-challenge.a.b.example.test", "deep"})
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if got, want := d.TXT("_acme-challenge.example.test"), []string{"apex", "somebody else's", "wildcard"}; !slices.Equal(got, want) {
		t.Errorf("values at one name: %q, want %q", got, want)
	}
	if got, want := d.TXT("_acme-challenge.a.b.example.test"), []string{"deep"}; !slices.Equal(got, want) {
		t.Errorf("values at a deep name: %q, want %q", got, want)
	}
	for range 2 { // the second has nothing to do
		if err := p.CleanUp(t.Context()); err != nil {
			t.Errorf("CleanUp: %v", err)
		}
	}
	if got, want := d.TXTNames(), []string{"_acme-challenge.example.test."}; !slices.Equal(got, want) {
		t.Errorf("names with records after CleanUp: %q, want %q", got, want)
	}
	if _, n := d.Counts(); n != 2 {
		t.Errorf("%d updates, want 2: one to add and one to delete", n)
	}
}

func TestHundredNamesCostOneUpdateForEachZone(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"one.test", "two.test", "sub.two.test"}})
	var records []Record
	for i := range 100 {
		zone := []string{"one.test", "two.test", "sub.two.test"}[i%3]
		records = append(records, Record{fmt.Sprintf("_acme-challenge.n%d.%s", i, zone), "value"})
	}
	p := present(t, solver(t, d, Options{}), records...)
	if _, n := d.Counts(); n != 3 {
		t.Errorf("%d updates, want one for each of 3 zones", n)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	if names := d.TXTNames(); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

func TestPresentingTwiceIsHarmless(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	s := solver(t, d, Options{})
	r := Record{"_acme-challenge.example.test", "value"}
	present(t, s, r) // by a replica that has died since
	p := present(t, s, r)
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	if got := d.TXT(r.Name); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestRecordOfDelegatedSubzoneGoesIntoSubzone(t *testing.T) {
	t.Parallel()
	parent := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	child := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"dev.example.test"}})
	s := solver(t, child, Options{
		// Only the child is asked first: it knows nothing of the parent.
		Resolvers: []string{child.Addr, parent.Addr},
		Providers: []*config.Provider{updates(t, parent, "parent", "example.test"), updates(t, child, "child", "dev.example.test")},
	})
	present(t, s, Record{"_acme-challenge.example.test", "up"}, Record{"_acme-challenge.www.dev.example.test", "down"})
	if got := parent.TXT("_acme-challenge.example.test"); !slices.Equal(got, []string{"up"}) {
		t.Errorf("parent has %q", got)
	}
	if got := child.TXT("_acme-challenge.www.dev.example.test"); !slices.Equal(got, []string{"down"}) {
		t.Errorf("child has %q", got)
	}
}

func TestCNAMEChainLeadsToProviderOfTargetZone(t *testing.T) {
	t.Parallel()
	site := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	acme := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"acme.invalid"}})
	if err := errors.Join(
		site.Add("_acme-challenge.example.test. 60 IN CNAME hop.example.test.", "hop.example.test. 60 IN CNAME Site.ACME.invalid."),
		site.Add("_acme-challenge.apex.example.test. 60 IN CNAME acme.invalid."),
	); err != nil {
		t.Fatal(err)
	}
	s := solver(t, acme, Options{
		Resolvers: []string{site.Addr, acme.Addr},
		Providers: []*config.Provider{updates(t, site, "site", "example.test"), updates(t, acme, "acme", "acme.invalid")},
	})
	p := present(t, s, Record{"_acme-challenge.example.test", "v"}, Record{"_acme-challenge.apex.example.test", "w"})
	if got := acme.TXT("site.acme.invalid"); !slices.Equal(got, []string{"v"}) {
		t.Errorf("target of the chain has %q", got)
	}
	if got := acme.TXT("acme.invalid"); !slices.Equal(got, []string{"w"}) {
		t.Errorf("target that is an apex has %q", got)
	}
	if _, n := site.Counts(); n != 0 {
		t.Errorf("%d updates in the zone that only has the CNAME", n)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.CleanUp(t.Context()); err != nil || len(acme.TXTNames()) != 0 {
		t.Errorf("CleanUp: %v, left behind %q", err, acme.TXTNames())
	}
}

// "*.example.com CNAME load-balancer" is how hosts behind edge are often found,
// and it covers _acme-challenge.example.com too.
func TestCNAMEOfWildcardIsNotFollowed(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "dev.example.test", "cloud.invalid"}})
	if err := d.Add(
		"*.example.test. 60 IN CNAME lb.cloud.invalid.", "lb.cloud.invalid. 60 IN A 127.0.0.9",
		"*.dev.example.test. 60 IN CNAME lb.example.test.", "lb.example.test. 60 IN A 127.0.0.9", // up, out of its zone
		"_acme-challenge.own.example.test. 60 IN CNAME own.dev.example.test.", // somebody meant this one, but not where it leads
	); err != nil {
		t.Fatal(err)
	}
	s := solver(t, d, Options{Providers: []*config.Provider{updates(t, d, "lab", "example.test")}})
	names := []string{
		"_acme-challenge.example.test", "_acme-challenge.www.example.test", "_acme-challenge.deep.www.example.test",
		"_acme-challenge.dev.example.test", "_acme-challenge.www.dev.example.test",
	}
	records := []Record{{"_acme-challenge.own.example.test", "own"}}
	for _, name := range names {
		records = append(records, Record{name, "v"})
	}
	p := present(t, s, records...)
	for _, name := range names {
		if got := d.TXT(name); !slices.Equal(got, []string{"v"}) {
			t.Errorf("%s has %q", name, got)
		}
	}
	if got := d.TXT("own.dev.example.test"); !slices.Equal(got, []string{"own"}) {
		t.Errorf("the target of the CNAME that is no wildcard's has %q", got)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.CleanUp(t.Context()); err != nil || len(d.TXTNames()) != 0 {
		t.Errorf("CleanUp: %v, left behind %q", err, d.TXTNames())
	}
}

func TestCNAMEOfWildcardIsFollowedWhereOnlyItsTargetHasAProvider(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "cloud.invalid"}})
	if err := d.Add("*.example.test. 60 IN CNAME lb.cloud.invalid."); err != nil {
		t.Fatal(err)
	}
	p := present(t, solver(t, d, Options{Providers: []*config.Provider{updates(t, d, "lab", "cloud.invalid")}}), Record{challenge, "v"})
	if got := d.TXT("lb.cloud.invalid"); !slices.Equal(got, []string{"v"}) {
		t.Errorf("target has %q", got)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCNAMELoopIsRefused(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	lines := []string{"_acme-challenge.loop.example.test. 60 IN CNAME a.example.test.", "a.example.test. 60 IN CNAME _acme-challenge.loop.example.test."}
	for i := range 12 {
		lines = append(lines, fmt.Sprintf("c%d.example.test. 60 IN CNAME c%d.example.test.", i, i+1))
	}
	if err := d.Add(lines...); err != nil {
		t.Fatal(err)
	}
	s := solver(t, d, Options{})
	_, err := s.Present(t.Context(), []Record{{"_acme-challenge.loop.example.test", "v"}})
	wantError(t, err, "_acme-challenge.loop.example.test", "CNAME loop")
	_, err = s.Present(t.Context(), []Record{{"c0.example.test", "v"}})
	wantError(t, err, "CNAME chain of more than 8 links")
	if p := present(t, s, Record{"c4.example.test", "v"}); p.groups[0].records[0].Name != "c12.example.test." {
		t.Errorf("chain of 8 links ends at %s", p.groups[0].records[0].Name)
	}
}

func TestNameWithoutProviderStopsTheOrderBeforeItBegins(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "other.test"}})
	s := solver(t, d, Options{Providers: []*config.Provider{updates(t, d, "lab", "example.test")}})
	_, err := s.Present(t.Context(), []Record{{"_acme-challenge.example.test", "v"}, {"_acme-challenge.www.other.test", "v"}})
	wantError(t, err, "_acme-challenge.www.other.test", "no DNS provider for zone other.test", "lab for example.test", "add the zone")
	if e, ok := errors.AsType[*RecordsError](err); !ok || !slices.Equal(e.Names, []string{"_acme-challenge.www.other.test"}) || !e.Untouched {
		t.Errorf("error %#v blames other names", err)
	}
	if _, n := d.Counts(); n != 0 {
		t.Errorf("%d updates, want none", n)
	}
}

func TestProviderIsChosenByLongestZone(t *testing.T) {
	t.Parallel()
	anyone := &provider{name: "any"}
	short := &provider{name: "short", zones: []string{"test.", "example.test."}}
	long := &provider{name: "long", zones: []string{"dev.example.test."}}
	s := &Solver{providers: []*provider{anyone, short, long}}
	for name, want := range map[string]*provider{
		"_acme-challenge.dev.example.test.":  long,
		"_acme-challenge.xdev.example.test.": short,
		"example.test.":                      short,
		"myexample.test.":                    short, // by test.
		"example.org.":                       anyone,
	} {
		if got, _ := s.pick(name); got != want {
			t.Errorf("%s: provider %s, want %s", name, got.name, want.name)
		}
	}
	s.providers = s.providers[1:]
	if got, _ := s.pick("example.org."); got != nil {
		t.Errorf("provider %s for a zone of nobody", got.name)
	}
}

func TestFailedZoneTakesTheOthersBack(t *testing.T) {
	t.Parallel()
	good := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"good.test", "fine.test"}})
	bad := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"bad.test"}, Fault: func(q acmelab.Query) (int, bool) {
		return miekg.RcodeServerFailure, q.Update
	}})
	s := solver(t, good, Options{
		Resolvers: []string{good.Addr, bad.Addr},
		Providers: []*config.Provider{updates(t, good, "good"), updates(t, bad, "bad", "bad.test")},
	})
	_, err := s.Present(t.Context(), []Record{
		{"_acme-challenge.good.test", "v"}, {"_acme-challenge.bad.test", "v"}, {"_acme-challenge.fine.test", "v"},
	})
	wantError(t, err, "zone bad.test", "provider bad (rfc2136)", "SERVFAIL")
	if e, ok := errors.AsType[*RecordsError](err); !ok || !slices.Equal(e.Names, []string{"_acme-challenge.bad.test"}) || e.Untouched {
		t.Errorf("error %#v blames other names", err)
	}
	if names := good.TXTNames(); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
	if _, n := good.Counts(); n != 4 {
		t.Errorf("%d updates, want 2 to add and 2 to take back", n)
	}
}

func TestCleanUpGoesOnWhereItFailed(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"one.test", "two.test"}})
	p := present(t, solver(t, d, Options{}), Record{"_acme-challenge.one.test", "v"}, Record{"_acme-challenge.two.test", "v"})
	d.SetFault(func(q acmelab.Query) (int, bool) { return miekg.RcodeRefused, q.Update && q.Name == "two.test." })
	wantError(t, p.CleanUp(t.Context()), "delete challenge records from zone two.test", "provider lab")
	d.SetFault(nil)
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	if _, n := d.Counts(); n != 4 || len(d.TXTNames()) != 0 {
		t.Errorf("%d updates, want 4; left behind %q", n, d.TXTNames())
	}
}

func TestConfiguredZoneIsUsedWhenResolversAreSilent(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	closed := unusedAddr(t)
	s := solver(t, d, Options{Resolvers: []string{closed}, Providers: []*config.Provider{updates(t, d, "lab", "example.test")}})
	present(t, s, Record{"_acme-challenge.www.example.test", "v"})
	if got := d.TXT("_acme-challenge.www.example.test"); !slices.Equal(got, []string{"v"}) {
		t.Errorf("zone has %q", got)
	}
	s = solver(t, d, Options{Resolvers: []string{closed}})
	_, err := s.Present(t.Context(), []Record{{"_acme-challenge.www.example.test", "v"}})
	wantError(t, err, "find the zone of _acme-challenge.www.example.test", closed+": connection refused", "resolvers")

	var many []Record
	for i := range 100 {
		many = append(many, Record{fmt.Sprintf("_acme-challenge.n%d.example.test", i), "v"})
	}
	_, err = s.Present(t.Context(), many)
	if lines := strings.Split(fmt.Sprint(err), "\n"); len(lines) != maxErrors+1 || lines[maxErrors] != "and 95 more names" {
		t.Errorf("error of %d lines: %v", len(lines), err)
	}
}

func TestCancelledOrderLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	lost := errors.New("lease lost")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"one.test", "two.test"}})
	var first sync.Once
	d.SetFault(func(q acmelab.Query) (_ int, broken bool) {
		if q.Update && q.Name == "two.test." {
			first.Do(func() {
				cancel(lost)
				broken = true
			})
		}
		return acmelab.Silence, broken
	})
	_, err := solver(t, d, Options{}).Present(ctx, []Record{{"_acme-challenge.one.test", "v"}, {"_acme-challenge.two.test", "v"}})
	if !errors.Is(err, lost) {
		t.Errorf("error %v, want the cause", err)
	}
	if names := d.TXTNames(); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
	_, updates := d.Counts()
	if _, err := solver(t, d, Options{}).Present(ctx, []Record{{"_acme-challenge.one.test", "v"}}); !errors.Is(err, lost) {
		t.Errorf("error %v, want the cause", err)
	}
	if _, now := d.Counts(); now != updates {
		t.Errorf("%d updates for an order that was cancelled before", now-updates)
	}
}

func TestWriteUnderWayOutlivesItsOrderForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		order, cancelOrder := context.WithCancel(t.Context())
		write, done := unhurried(order, providerTimeout)
		defer done()
		cancelOrder()
		time.Sleep(writeGrace - time.Nanosecond)
		if write.Err() != nil {
			t.Errorf("the write ends before its grace: %v", write.Err())
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if write.Err() == nil {
			t.Error("the write goes on after its grace")
		}
		write, done = unhurried(t.Context(), providerTimeout)
		defer done()
		time.Sleep(providerTimeout)
		synctest.Wait()
		if !errors.Is(write.Err(), context.DeadlineExceeded) {
			t.Errorf("after its time: %v", write.Err())
		}
	})
}

func TestBadRecordsAreRefused(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	s := solver(t, d, Options{})
	const name = "_acme-challenge.example.test"
	for _, r := range []Record{
		{"", "v"},
		{strings.Repeat("a.", 128), "v"},
		{name, ""},
		{name, strings.Repeat("v", 256)},
		{name, "two words"},
		{name, `quote"`},
		{name, `back\slash`},
		{name, "ü"},
	} {
		if _, err := s.Present(t.Context(), []Record{r}); err == nil {
			t.Errorf("%+v: no error", r)
		}
	}
	if _, err := s.Present(t.Context(), make([]Record, maxRecords+1)); err == nil {
		t.Error("too many records: no error")
	}
	if asked, updates := d.Counts(); asked+updates != 0 {
		t.Errorf("%d queries and %d updates for records that are refused", asked, updates)
	}
}

// unusedAddr is an address on which nobody listens.
func unusedAddr(tb testing.TB) string {
	tb.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer pc.Close()
	return pc.LocalAddr().String()
}
