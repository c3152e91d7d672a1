package dns

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
)

// fakeRoute53 answers the three calls that edge makes, as strictly as Route 53
// does: a batch is applied as a whole or not at all, CREATE refuses a set that
// exists, DELETE one that is not exactly as told.
type fakeRoute53 struct {
	mu    sync.Mutex
	zones []string         // elements of HostedZones
	sets  map[string]r53Set // by name; TXT only
	calls map[string]int
	fail  func(call string) (status int, code string) // 0 is no failure
}

type r53Set struct {
	Name   string   `xml:"Name"`
	Type   string   `xml:"Type"`
	TTL    int64    `xml:"TTL"`
	Values []string `xml:"ResourceRecords>ResourceRecord>Value"`
}

const r53NS = `xmlns="https://route53.amazonaws.com/doc/2013-04-01/"`

// startRoute53 serves a fake that has the zone example.test as Z1 and makes the
// AWS SDK use it, with credentials that are not real. The test cannot be parallel.
func startRoute53(t *testing.T) *fakeRoute53 {
	t.Helper()
	f := &fakeRoute53{sets: map[string]r53Set{}, calls: map[string]int{}, zones: []string{r53Zone("Z1", "example.test.", false)}}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	for k, v := range map[string]string{
		"AWS_ENDPOINT_URL_ROUTE_53": srv.URL, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "aws-secret-value",
		"AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_REGION": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
		"AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(k, v)
	}
	return f
}

func r53Zone(id, name string, private bool) string {
	return fmt.Sprintf(`<HostedZone><Id>/hostedzone/%s</Id><Name>%s</Name><CallerReference>c</CallerReference><Config><PrivateZone>%t</PrivateZone></Config></HostedZone>`, id, name, private)
}

func (f *fakeRoute53) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	call := map[string]string{
		"GET /2013-04-01/hostedzonesbyname":    "ListHostedZonesByName",
		"GET /2013-04-01/hostedzone/Z1/rrset":  "ListResourceRecordSets",
		"POST /2013-04-01/hostedzone/Z1/rrset": "ChangeResourceRecordSets",
	}[r.Method+" "+r.URL.Path]
	f.calls[call]++
	w.Header().Set("Content-Type", "text/xml")
	if f.fail != nil {
		if status, code := f.fail(call); status != 0 {
			f.refuse(w, status, code, "said the fake")
			return
		}
	}
	q := r.URL.Query()
	switch call {
	case "ListHostedZonesByName":
		fmt.Fprintf(w, `<ListHostedZonesByNameResponse %s><HostedZones>%s</HostedZones><IsTruncated>false</IsTruncated><MaxItems>%s</MaxItems></ListHostedZonesByNameResponse>`, r53NS, strings.Join(f.zones, ""), q.Get("maxitems"))
	case "ListResourceRecordSets":
		f.list(w, q.Get("name"))
	case "ChangeResourceRecordSets":
		f.change(w, r)
	default:
		f.refuse(w, http.StatusNotFound, "NoSuchHostedZone", r.Method+" "+r.URL.Path)
	}
}

// list answers with the first set at or after name, as MaxItems=1 has it.
func (f *fakeRoute53) list(w http.ResponseWriter, name string) {
	fmt.Fprintf(w, `<ListResourceRecordSetsResponse %s><ResourceRecordSets>`, r53NS)
	for _, n := range sortedKeys(f.sets) {
		if s := f.sets[n]; n >= name {
			fmt.Fprintf(w, `<ResourceRecordSet><Name>%s</Name><Type>TXT</Type><TTL>%d</TTL><ResourceRecords>`, n, s.TTL)
			for _, v := range s.Values {
				fmt.Fprintf(w, "<ResourceRecord><Value>%s</Value></ResourceRecord>", strings.ReplaceAll(v, `"`, "&quot;"))
			}
			fmt.Fprint(w, `</ResourceRecords></ResourceRecordSet>`)
			break
		}
	}
	fmt.Fprint(w, `</ResourceRecordSets><IsTruncated>false</IsTruncated><MaxItems>1</MaxItems></ListResourceRecordSetsResponse>`)
}

func (f *fakeRoute53) change(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var batch struct {
		Changes []struct {
			Action string
			Set    r53Set `xml:"ResourceRecordSet"`
		} `xml:"ChangeBatch>Changes>Change"`
	}
	if err := xml.Unmarshal(body, &batch); err != nil || len(batch.Changes) == 0 {
		f.refuse(w, http.StatusBadRequest, "InvalidInput", fmt.Sprint(err))
		return
	}
	next := map[string]r53Set{}
	for k, v := range f.sets {
		next[k] = v
	}
	for _, c := range batch.Changes {
		have, exists := next[c.Set.Name]
		distinct := slices.Compact(slices.Sorted(slices.Values(c.Set.Values)))
		switch {
		case c.Set.Type != "TXT" || c.Set.TTL == 0 || len(distinct) != len(c.Set.Values):
			f.refuse(w, http.StatusBadRequest, "InvalidInput", "bad set "+c.Set.Name)
			return
		case c.Action == "CREATE" && exists: // the old form of this error
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `<InvalidChangeBatch %s><Messages><Message>Tried to create resource record set [name='%s', type='TXT'] but it already exists</Message></Messages></InvalidChangeBatch>`, r53NS, c.Set.Name)
			return
		case c.Action == "CREATE":
			next[c.Set.Name] = c.Set
		case c.Action == "DELETE" && (!exists || have.TTL != c.Set.TTL || !slices.Equal(have.Values, c.Set.Values)):
			f.refuse(w, http.StatusBadRequest, "InvalidChangeBatch", "[Tried to delete resource record set but it was not found or the values do not match]")
			return
		case c.Action == "DELETE":
			delete(next, c.Set.Name)
		default:
			f.refuse(w, http.StatusBadRequest, "InvalidInput", "action "+c.Action)
			return
		}
	}
	f.sets = next
	fmt.Fprintf(w, `<ChangeResourceRecordSetsResponse %s><ChangeInfo><Id>/change/C1</Id><Status>PENDING</Status><SubmittedAt>2026-01-01T00:00:00Z</SubmittedAt></ChangeInfo></ChangeResourceRecordSetsResponse>`, r53NS)
}

func (f *fakeRoute53) refuse(w http.ResponseWriter, status int, code, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `<ErrorResponse %s><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>r</RequestId></ErrorResponse>`, r53NS, code, message)
}

// values of the set at name, unquoted and sorted.
func (f *fakeRoute53) values(name string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, v := range f.sets[name].Values {
		out = append(out, strings.Trim(v, `"`))
	}
	slices.Sort(out)
	return out
}

func (f *fakeRoute53) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

// route53Solver is a Solver with Route 53 for the zones that d answers for.
func route53Solver(t *testing.T, d *acmelab.DNS, c config.Route53) *Solver {
	t.Helper()
	return solver(t, d, Options{Providers: []*config.Provider{{Name: "aws", Route53: &c}}})
}

func TestRoute53TakesWholeOrderInOneChange(t *testing.T) {
	f := startRoute53(t)
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	s := route53Solver(t, d, config.Route53{})
	p := present(t, s, Record{challenge, "apex"}, Record{challenge, "wildcard"}, Record{"_acme-challenge.www.example.test", "www"})
	if got, want := f.values(challenge+"."), []string{"apex", "wildcard"}; !slices.Equal(got, want) {
		t.Errorf("values: %q, want %q", got, want)
	}
	for range 2 {
		if err := p.CleanUp(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if len(f.sets) != 0 {
		t.Errorf("left behind: %v", f.sets)
	}
	for call, want := range map[string]int{"ListHostedZonesByName": 1, "ChangeResourceRecordSets": 2, "ListResourceRecordSets": 0} {
		if n := f.count(call); n != want {
			t.Errorf("%s: %d calls, want %d", call, n, want)
		}
	}
}

func TestRoute53KeepsValuesOfOthers(t *testing.T) {
	f := startRoute53(t)
	name := challenge + "."
	f.sets[name] = r53Set{Name: name, Type: "TXT", TTL: 300, Values: []string{`"theirs"`, `"stale"`}}
	f.sets["z.example.test."] = r53Set{Name: "z.example.test.", Type: "TXT", TTL: 300, Values: []string{`"z"`}}
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	s := route53Solver(t, d, config.Route53{HostedZoneID: "Z1"})
	p := present(t, s, Record{challenge, "ours"}, Record{challenge, "stale"}, Record{"_acme-challenge.b.example.test", "b"})
	if got, want := f.values(name), []string{"ours", "stale", "theirs"}; !slices.Equal(got, want) {
		t.Errorf("values: %q, want %q", got, want)
	}
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := f.values(name), []string{"theirs"}; !slices.Equal(got, want) || f.sets[name].TTL != 300 || len(f.sets) != 2 {
		t.Errorf("after CleanUp: %v", f.sets)
	}
	if n := f.count("ListHostedZonesByName"); n != 0 {
		t.Errorf("looked for a zone whose ID is configured: %d calls", n)
	}
}

func TestRoute53ReplicasDoNotLoseEachOthersValues(t *testing.T) {
	f := startRoute53(t)
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	var want []string
	var presented [4]*Presented
	var wg sync.WaitGroup
	for i := range presented {
		value := fmt.Sprintf("replica%d", i)
		want = append(want, value)
		s := route53Solver(t, d, config.Route53{}) // each its own, as in its own process
		wg.Go(func() {
			var err error
			if presented[i], err = s.Present(t.Context(), []Record{{challenge, value}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := f.values(challenge + "."); !slices.Equal(got, want) {
		t.Fatalf("values: %q, want %q", got, want)
	}
	for _, p := range presented {
		wg.Go(func() {
			if err := p.CleanUp(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(f.sets) != 0 {
		t.Errorf("left behind: %v", f.sets)
	}
}

func TestRoute53ZoneIsThePublicOne(t *testing.T) {
	f := startRoute53(t)
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	f.zones = []string{r53Zone("Z9", "example.test.", true), r53Zone("Z1", "example.test.", false), r53Zone("Z8", "example.test.other.", false)}
	present(t, route53Solver(t, d, config.Route53{}), Record{challenge, "v"})
	if got := f.values(challenge + "."); len(got) != 1 {
		t.Errorf("values: %q", got)
	}
	for _, c := range []struct {
		zones []string
		want  []string
	}{
		{[]string{r53Zone("Z1", "example.org.", false)}, []string{"NoSuchHostedZone", "hosted_zone_id"}},
		{[]string{r53Zone("Z1", "example.test.", false), r53Zone("Z2", "example.test.", false)}, []string{"2 hosted zones", "hosted_zone_id"}},
	} {
		f.zones = c.zones
		_, err := route53Solver(t, d, config.Route53{}).Present(t.Context(), []Record{{challenge, "v"}})
		wantError(t, err, append(c.want, "zone example.test", "provider aws (route53)")...)
	}
}

func TestRoute53RefusalsAreExplained(t *testing.T) {
	f := startRoute53(t)
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	for _, c := range []struct {
		status int
		code   string
		want   string
	}{
		{http.StatusForbidden, "AccessDenied", "route53:ChangeResourceRecordSets"},
		{http.StatusForbidden, "ExpiredToken", "renew the session credentials"},
		{http.StatusForbidden, "SignatureDoesNotMatch", "check AWS_ACCESS_KEY_ID"},
		{http.StatusNotFound, "NoSuchHostedZone", "check hosted_zone_id"},
		{http.StatusBadRequest, "InvalidInput", "said the fake"},
	} {
		f.fail = func(call string) (int, string) {
			if call == "ChangeResourceRecordSets" {
				return c.status, c.code
			}
			return 0, ""
		}
		_, err := route53Solver(t, d, config.Route53{}).Present(t.Context(), []Record{{challenge, "v"}})
		wantError(t, err, c.code, "said the fake", c.want, "provider aws (route53)", "zone example.test")
		if err != nil && strings.Contains(err.Error(), "aws-secret-value") {
			t.Errorf("secret in %v", err)
		}
	}
}

func TestRoute53GivesUpOnSetThatCannotBe(t *testing.T) {
	f := startRoute53(t)
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	f.fail = func(call string) (int, string) {
		if call == "ChangeResourceRecordSets" {
			return http.StatusBadRequest, "InvalidChangeBatch"
		}
		return 0, ""
	}
	begin := time.Now()
	_, err := route53Solver(t, d, config.Route53{}).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "InvalidChangeBatch", "said the fake")
	if n := f.count("ChangeResourceRecordSets"); n > 2*route53Swaps || time.Since(begin) > time.Minute {
		t.Errorf("%d tries in %s", n, time.Since(begin))
	}
}

func TestRoute53WithoutCredentialsOrWithBadProfile(t *testing.T) {
	startRoute53(t)
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	_, err := route53Solver(t, d, config.Route53{}).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "no AWS credentials", "set AWS_ACCESS_KEY_ID")
	t.Setenv("AWS_PROFILE", "nobody")
	_, err = New(Options{Providers: []*config.Provider{{Name: "aws", Route53: &config.Route53{}}}})
	wantError(t, err, "DNS provider aws", "AWS configuration", "nobody", "check AWS_PROFILE") // libdns/route53 ends the process here
}
