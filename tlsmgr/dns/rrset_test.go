package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"

	"github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/libdns/libdns"
)

// cloudLab is one API and its DNS.
type cloudLab struct {
	dns      *acmelab.DNS
	options  Options // Providers and HTTPClient
	requests func() map[string]int
	setDelay func(time.Duration)
	put      func(t *testing.T, name string, values ...string) // a record set of another user, with TTL 300
}

// clouds start every API. Those of Route 53 need environment variables, so that
// tests that use them are not parallel.
func clouds() map[string]func(*testing.T) cloudLab {
	return map[string]func(*testing.T) cloudLab{
		"route53": func(t *testing.T) cloudLab {
			t.Helper()
			f, d := startRoute53(t, acmelab.Route53Options{})
			return cloudLab{
				dns: d, requests: f.Requests, setDelay: f.SetDelay,
				options: Options{Providers: []*config.Provider{{Name: "cloud", Rate: 10_000, Route53: &config.Route53{}}}},
				put: func(t *testing.T, name string, values ...string) {
					t.Helper()
					var quoted []string
					for _, v := range values {
						quoted = append(quoted, `"`+v+`"`)
					}
					newStranger(f).create(t, name, types.RRTypeTxt, quoted...)
				},
			}
		},
		"cloudflare": func(t *testing.T) cloudLab {
			t.Helper()
			f, d := startCloudflare(t)
			return cloudLab{
				dns: d, requests: f.Requests, setDelay: f.SetDelay,
				options: Options{HTTPClient: f.HTTPClient(), Providers: []*config.Provider{{
					Name: "cloud", Cloudflare: &config.Cloudflare{Token: secret(t, acmelab.CloudflareToken)},
				}}},
			}
		},
		"google": func(t *testing.T) cloudLab {
			t.Helper()
			f, d := startGoogle(t, acmelab.GoogleOptions{})
			return cloudLab{
				dns: d, requests: f.Requests, setDelay: f.SetDelay, options: googleOptions(t, f),
				put: func(t *testing.T, name string, values ...string) {
					t.Helper()
					var quoted []string
					for _, v := range values {
						quoted = append(quoted, `"`+v+`"`)
					}
					if err := f.Put(name, 300, quoted...); err != nil {
						t.Fatal(err)
					}
				},
			}
		},
		"azure": func(t *testing.T) cloudLab {
			t.Helper()
			f, d := startAzure(t)
			return cloudLab{
				dns: d, requests: f.Requests, setDelay: f.SetDelay, options: azureOptions(t, f),
				put: func(t *testing.T, name string, values ...string) {
					t.Helper()
					if err := f.Put(name, 300, values...); err != nil {
						t.Fatal(err)
					}
				},
			}
		},
	}
}

// leasesOf are those of a replica with its own store over a shared directory.
func leasesOf(t *testing.T, dir string) leaseFunc {
	t.Helper()
	s, err := store.Open(t.Context(), "file://"+dir, store.Options{LeaseTTL: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return func(ctx context.Context, name string) (func(), error) {
		l, err := s.Acquire(ctx, name)
		if err != nil {
			return nil, err
		}
		return func() { _ = l.Release(ctx) }, nil
	}
}

// presentTogether has four replicas present apex and wildcard, each with values
// of its own, and tells which values are missing then and which are left when
// all have cleaned up.
func presentTogether(t *testing.T, lab cloudLab, leases func() leaseFunc) (missing, left []string) {
	t.Helper()
	var solvers []*Solver
	want := []string{"theirs"}
	for range 4 {
		o := lab.options
		o.Lease = leases()
		solvers = append(solvers, solver(t, lab.dns, o))
	}
	presented := make([]*Presented, len(solvers))
	var wg sync.WaitGroup
	for i, s := range solvers {
		apex, wildcard := fmt.Sprintf("apex-%d", i), fmt.Sprintf("wildcard-%d", i)
		want = append(want, apex, wildcard)
		wg.Go(func() {
			var err error
			presented[i], err = s.Present(t.Context(), []Record{{challenge, apex}, {challenge, wildcard}, {"_acme-challenge.www.example.test", apex}})
			if err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	missing = without(want, lab.dns.TXT(challenge))
	for i, p := range presented {
		if p == nil {
			continue
		}
		wg.Go(func() {
			if err := p.CleanUp(t.Context()); err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	left = append(without(lab.dns.TXT(challenge), []string{"theirs"}), lab.dns.TXT("_acme-challenge.www.example.test")...)
	return append(missing, without([]string{"theirs"}, lab.dns.TXT(challenge))...), left
}

func TestReplicasAtOneNameLoseNothingAndLeaveNothing(t *testing.T) {
	for _, kind := range []string{"route53", "google", "azure"} {
		t.Run(kind, func(t *testing.T) {
			lab := clouds()[kind](t)
			lab.put(t, challenge+".", "theirs")
			lab.setDelay(5 * time.Millisecond)
			dir := t.TempDir()
			missing, left := presentTogether(t, lab, func() leaseFunc { return leasesOf(t, dir) })
			if len(missing)+len(left) > 0 {
				t.Errorf("missing %q, left %q", missing, left)
			}
		})
	}
}

// What the lease is for: without it record sets of Route 53 are overwritten, so
// that reading back has to repair again and again, or fails. Google and Azure
// need none.
func TestWithoutLeaseOnlyRoute53MeetsOtherReplicas(t *testing.T) {
	for _, kind := range []string{"google", "azure"} {
		t.Run(kind, func(t *testing.T) {
			lab := clouds()[kind](t)
			lab.put(t, challenge+".", "theirs")
			lab.setDelay(5 * time.Millisecond)
			if missing, left := presentTogether(t, lab, func() leaseFunc { return nil }); len(missing)+len(left) > 0 {
				t.Errorf("missing %q, left %q", missing, left)
			}
		})
	}
	t.Run("route53", func(t *testing.T) {
		lab := clouds()["route53"](t)
		lab.put(t, challenge+".", "theirs")
		changes := func(leases func() leaseFunc) int {
			before := lab.requests()["ChangeResourceRecordSets"]
			var wg sync.WaitGroup
			for i := range 4 {
				o := lab.options
				o.Lease = leases()
				s := solver(t, lab.dns, o)
				wg.Go(func() {
					if p, err := s.Present(t.Context(), []Record{{challenge, fmt.Sprintf("v%d", i)}}); err == nil {
						_ = p.CleanUp(t.Context())
					}
				})
			}
			wg.Wait()
			return lab.requests()["ChangeResourceRecordSets"] - before
		}
		lab.setDelay(20 * time.Millisecond)
		dir := t.TempDir()
		if n := changes(func() leaseFunc { return leasesOf(t, dir) }); n != 8 {
			t.Errorf("with leases 4 replicas made %d changes, want 8", n)
		}
		if n := changes(func() leaseFunc { return nil }); n <= 8 {
			t.Errorf("without leases 4 replicas made %d changes: does this test meet anybody?", n)
		}
	})
}

func TestValuesOfOthersAndTheirFormAreKept(t *testing.T) {
	for _, kind := range []string{"google", "azure"} {
		t.Run(kind, func(t *testing.T) {
			lab := clouds()[kind](t)
			lab.put(t, challenge+".", "theirs", "too")
			s := solver(t, lab.dns, lab.options)
			p := present(t, s, Record{challenge, "ours"}, Record{"_acme-challenge.b.example.test", "b"}, Record{challenge, "wildcard"})
			if got, want := lab.dns.TXT(challenge), []string{"ours", "theirs", "too", "wildcard"}; !slices.Equal(got, want) {
				t.Errorf("values: %q, want %q", got, want)
			}
			if err := p.Wait(t.Context()); err != nil {
				t.Error(err)
			}
			present(t, s, Record{challenge, "ours"}) // an heir
			for range 2 {
				if err := s.Sweep(t.Context(), []Record{{challenge, "ours"}, {challenge, "wildcard"}, {"_acme-challenge.b.example.test", "b"}}); err != nil {
					t.Error(err)
				}
			}
			if got, want := lab.dns.TXT(challenge), []string{"theirs", "too"}; !slices.Equal(got, want) {
				t.Errorf("after Sweep: %q, want %q", got, want)
			}
			if names := lab.dns.TXTNames(); len(names) != 1 {
				t.Errorf("after Sweep: records at %q", names)
			}
		})
	}
}

func TestApexOfAZoneIsARecordSetToo(t *testing.T) {
	const target = "acme.test."
	for _, kind := range []string{"google", "azure"} {
		lab := clouds()[kind](t)
		if err := lab.dns.Add("_acme-challenge.example.test. 60 IN CNAME " + target); err != nil {
			t.Fatal(err)
		}
		p := present(t, solver(t, lab.dns, lab.options), Record{challenge, "v"})
		if got := lab.dns.TXT(target); !slices.Equal(got, []string{"v"}) {
			t.Errorf("%s: values at the apex %q", kind, got)
		}
		if err := p.CleanUp(t.Context()); err != nil || len(lab.dns.TXTNames()) > 0 {
			t.Errorf("%s: %v, left %q", kind, err, lab.dns.TXTNames())
		}
	}
}

// A bundle of 25 names in one zone, at 200 ms a request. The requests to add and
// to delete are what the comments of the providers say; the times are bounds.
func TestRequestsOfABundle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	var records []Record
	for i := range 25 {
		records = append(records, Record{fmt.Sprintf("_acme-challenge.n%d.example.test", i), "v"})
	}
	total := func(m map[string]int) (n int) {
		for op, k := range m {
			if op != "token" {
				n += k
			}
		}
		return n
	}
	for _, c := range []struct {
		kind                 string
		add, remove          int
		addWithin, delWithin time.Duration
	}{
		{"route53", 67, 67, 18 * time.Second, 18 * time.Second},
		{"cloudflare", 26, 50, 3 * time.Second, 4 * time.Second},
		{"google", 2, 1, 2 * time.Second, 2 * time.Second}, // one is to find the zone
		{"azure", 25, 50, 3 * time.Second, 4 * time.Second},
	} {
		t.Run(c.kind, func(t *testing.T) {
			lab := clouds()[c.kind](t)
			lab.setDelay(200 * time.Millisecond)
			s := solver(t, lab.dns, lab.options)
			begin := time.Now()
			p := present(t, s, records...)
			added, addTime := total(lab.requests()), time.Since(begin)
			begin = time.Now()
			if err := p.CleanUp(t.Context()); err != nil {
				t.Error(err)
			}
			removed, delTime := total(lab.requests())-added, time.Since(begin)
			t.Logf("%d requests in %.1f s to add, %d in %.1f s to delete", added, addTime.Seconds(), removed, delTime.Seconds())
			if added != c.add || removed != c.remove {
				t.Errorf("%d requests to add and %d to delete, want %d and %d: %v", added, removed, c.add, c.remove, lab.requests())
			}
			if addTime > c.addWithin || delTime > c.delWithin {
				t.Errorf("%s to add and %s to delete, want %s and %s", addTime, delTime, c.addWithin, c.delWithin)
			}
			if names := lab.dns.TXTNames(); len(names) > 0 {
				t.Errorf("left behind: %q", names)
			}
		})
	}
}

func TestRoute53RepairsWhatAStrangerUndoes(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	other := newStranger(f)
	other.create(t, challenge, types.RRTypeTxt, `"theirs"`)
	s := route53Solver(t, d, config.Route53{HostedZoneID: f.ZoneID("example.test")})
	var written atomic.Bool
	var undone atomic.Int32
	f.SetFail(func(op string) (int, string) {
		switch {
		case op == "ChangeResourceRecordSets":
			written.Store(true)
		case written.CompareAndSwap(true, false) && undone.Add(1) <= 2: // before it is read back, an old state comes
			old := []string{`"late"`, `"ours"`}
			other.write(t, types.ChangeActionUpsert, challenge, types.RRTypeTxt, old[:min(2, max(1, int(-undone.Load())))]...)
			written.Store(false)
		}
		return 0, ""
	})
	p := present(t, s, Record{challenge, "ours"})
	if got, want := d.TXT(challenge), []string{"late", "ours", "theirs"}; !slices.Equal(got, want) {
		t.Errorf("values %q, want %q", got, want)
	}
	undone.Store(-100) // from now on the old state has our value
	wantError(t, p.CleanUp(t.Context()), "another writer changes these records all the time", "who else writes to this zone?")
	f.SetFail(nil)
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	if got := d.TXT(challenge); slices.Contains(got, "ours") {
		t.Errorf("after CleanUp %q", got)
	}
}

func TestLeasesAreTakenInOrderAndGivenBack(t *testing.T) {
	t.Parallel()
	var log []string
	full := errors.New("storage is down")
	var lease leaseFunc = func(_ context.Context, name string) (func(), error) {
		if strings.Contains(name, "bad") {
			return nil, full
		}
		log = append(log, "take "+name)
		return func() { log = append(log, "give "+name) }, nil
	}
	release, err := lease.hold(t.Context(), "example.test.", []string{"b.example.test.", "a.example.test."})
	if err != nil {
		t.Fatal(err)
	}
	release()
	want := []string{"take dns/example.test/a.example.test", "take dns/example.test/b.example.test", "give dns/example.test/b.example.test", "give dns/example.test/a.example.test"}
	if !slices.Equal(log, want) {
		t.Errorf("leases %q, want %q", log, want)
	}
	log = nil
	_, err = lease.hold(t.Context(), "example.test.", []string{"bad.example.test.", "a.example.test."})
	wantError(t, err, "lease of bad.example.test", "storage is down")
	if !errors.Is(err, full) || len(log) != 2 {
		t.Errorf("%v, leases %q", err, log)
	}
	release, err = leaseFunc(nil).hold(t.Context(), "z.", []string{"n."})
	if err != nil {
		t.Error(err)
	}
	release()
}

func TestCompareAndSwapGivesUpInTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		err := settle(t.Context(), func(int) error { tries++; return fmt.Errorf("%w: 412", errChanged) })
		if !errors.Is(err, errChanged) || tries != changeTries {
			t.Errorf("%v after %d tries", err, tries)
		}
		ctx, cancel := context.WithCancel(t.Context())
		err = settle(ctx, func(int) error { cancel(); return errChanged })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		refused := errors.New("refused")
		if err := settle(t.Context(), func(int) error { return refused }); !errors.Is(err, refused) {
			t.Errorf("refused: %v", err)
		}
	})
}

func TestSetsKeepOrderAndDropTwins(t *testing.T) {
	t.Parallel()
	got := setsOf("example.test.", []libdns.Record{
		libdns.TXT{Name: "A", Text: "2"}, libdns.TXT{Name: "a", Text: "1"}, libdns.TXT{Name: "a", Text: "2"}, libdns.TXT{Name: "@", Text: "apex"},
	})
	want := sets{"a.example.test.": {"2", "1"}, "example.test.": {"apex"}}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("sets %v, want %v", got, want)
	}
	if got := with([]string{"b", "a"}, []string{"a", "c"}); !slices.Equal(got, []string{"b", "a", "c"}) {
		t.Errorf("with: %q", got)
	}
	if got := without([]string{"b", "a"}, []string{"a", "c"}); !slices.Equal(got, []string{"b"}) {
		t.Errorf("without: %q", got)
	}
	for name, want := range map[string]bool{"_acme-challenge.a-b.example.test.": true, "a/b.test.": false, "a?b.test.": false, `a\032b.test.`: false, "*.test.": false} {
		if isPlain(name) != want {
			t.Errorf("isPlain(%q) = %v", name, !want)
		}
	}
}

func refuseOp(name string, refusal *acmelab.Refusal) func(string) *acmelab.Refusal {
	return func(op string) *acmelab.Refusal {
		if op == name || name == "" {
			return refusal
		}
		return nil
	}
}
