package dns

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	"github.com/aws/aws-sdk-go-v2/service/route53/types"
	miekg "github.com/miekg/dns"
)

// startRoute53 serves a strict fake that writes into a name server for
// example.test, and makes the AWS SDK use it. The test cannot be parallel.
func startRoute53(t *testing.T, o acmelab.Route53Options) (*acmelab.Route53, *acmelab.DNS) {
	t.Helper()
	o.DNS = acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "other.test"}})
	f := acmelab.NewRoute53(t, o)
	for _, k := range []string{"AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION"} {
		t.Setenv(k, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	for _, kv := range f.Env() {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	t.Setenv("AWS_REGION", "") // Route 53 is signed for us-east-1 all the same
	return f, o.DNS
}

func route53Solver(t *testing.T, d *acmelab.DNS, c config.Route53) *Solver {
	t.Helper()
	return solver(t, d, Options{Providers: []*config.Provider{{Name: "aws", Route53: &c}}})
}

func TestRoute53TakesWholeOrderInOneChange(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	p := present(t, route53Solver(t, d, config.Route53{}),
		Record{challenge, "apex"}, Record{challenge, "wildcard"}, Record{"_acme-challenge.www.example.test", "www"})
	if got, want := d.TXT(challenge), []string{"apex", "wildcard"}; !slices.Equal(got, want) {
		t.Errorf("values: %q, want %q", got, want)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := p.CleanUp(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if names := d.TXTNames(); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
	for op, n := range f.Requests() {
		if want := map[string]int{"ListHostedZonesByName": 1, "ChangeResourceRecordSets": 2}[op]; n != want {
			t.Errorf("%s: %d requests, want %d", op, n, want)
		}
	}
}

func TestRoute53KeepsValuesOfOthers(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	s := route53Solver(t, d, config.Route53{HostedZoneID: "/hostedzone/" + f.ZoneID("example.test")})
	api := s.providers[0].backend.(*hosted).api
	theirs := recordSet{ttl: 300, values: []string{`"theirs"`, `"stale"`}}
	for _, c := range []types.Change{
		change(types.ChangeActionCreate, challenge+".", theirs.ttl, theirs.values),
		change(types.ChangeActionCreate, "_acme-challenge.b2.example.test.", 300, []string{`"next in the list"`}),
	} {
		if _, err := api.ChangeResourceRecordSets(t.Context(), &route53.ChangeResourceRecordSetsInput{
			HostedZoneId: aws.String(f.ZoneID("example.test")), ChangeBatch: &types.ChangeBatch{Changes: []types.Change{c}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	p := present(t, s, Record{challenge, "ours"}, Record{challenge, "stale"}, Record{"_acme-challenge.b.example.test", "b"})
	if got, want := d.TXT(challenge), []string{"ours", "stale", "theirs"}; !slices.Equal(got, want) {
		t.Errorf("values: %q, want %q", got, want)
	}
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	got, err := s.providers[0].backend.(*hosted).read(t.Context(), f.ZoneID("example.test"), []string{challenge + "."})
	if set := got[challenge+"."]; err != nil || set.ttl != 300 || !slices.Equal(set.values, []string{`"theirs"`}) {
		t.Errorf("after CleanUp: %+v, error %v", set, err)
	}
	if names := d.TXTNames(); len(names) != 2 {
		t.Errorf("after CleanUp: records at %q", names)
	}
	if n := f.Requests()["ListHostedZonesByName"]; n != 0 {
		t.Errorf("looked %d times for a zone whose ID is configured", n)
	}
}

func TestRoute53ReplicasDoNotLoseEachOthersValues(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	f.SetDelay(5 * time.Millisecond)
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
	if got := d.TXT(challenge); !slices.Equal(got, want) {
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
	if names := d.TXTNames(); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

func TestRoute53ZoneIsThePublicOne(t *testing.T) {
	_, d := startRoute53(t, acmelab.Route53Options{Private: []string{"example.test"}})
	present(t, route53Solver(t, d, config.Route53{}), Record{challenge, "v"})
	if got := d.TXT(challenge); len(got) != 1 { // a private zone is not seen in DNS
		t.Errorf("values: %q", got)
	}
}

func TestRoute53ZoneThatIsAbsentOrAmbiguousIsExplained(t *testing.T) {
	_, d := startRoute53(t, acmelab.Route53Options{})
	elsewhere := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.invalid"}})
	s := route53Solver(t, elsewhere, config.Route53{})
	_, err := s.Present(t.Context(), []Record{{"_acme-challenge.example.invalid", "v"}})
	wantError(t, err, "zone example.invalid", "provider aws (route53)", "NoSuchHostedZone", "hosted_zone_id")

	two := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		zone := `<HostedZone><Id>/hostedzone/Z</Id><Name>example.test.</Name><CallerReference>c</CallerReference></HostedZone>`
		fmt.Fprintf(w, `<ListHostedZonesByNameResponse xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><HostedZones>%s%s</HostedZones>`+
			`<IsTruncated>false</IsTruncated><MaxItems>10</MaxItems></ListHostedZonesByNameResponse>`, zone, zone)
	}))
	defer two.Close()
	t.Setenv("AWS_ENDPOINT_URL_ROUTE_53", two.URL)
	_, err = route53Solver(t, d, config.Route53{}).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "2 hosted zones of this name", "hosted_zone_id")
}

func TestRoute53RefusalsAreExplained(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{AccessKeyID: "AKIDLAB"})
	try := func(want ...string) {
		t.Helper()
		_, err := route53Solver(t, d, config.Route53{}).Present(t.Context(), []Record{{challenge, "v"}})
		wantError(t, err, append(want, "provider aws (route53)", "zone example.test")...)
		if err != nil && strings.Contains(err.Error(), acmelab.SecretAccessKey) {
			t.Errorf("secret in %v", err)
		}
	}
	for _, c := range []struct {
		status int
		code   string
		want   string
	}{
		{http.StatusForbidden, "AccessDenied", "route53:ChangeResourceRecordSets"},
		{http.StatusForbidden, "ExpiredToken", "renew the session credentials"},
		{http.StatusForbidden, "SignatureDoesNotMatch", "check AWS_ACCESS_KEY_ID"},
		{http.StatusNotFound, "NoSuchHostedZone", "check hosted_zone_id"},
		{http.StatusBadRequest, "InvalidInput", "told to fail"},
	} {
		f.SetFail(func(op string) (int, string) {
			if op == "ChangeResourceRecordSets" {
				return c.status, c.code
			}
			return 0, ""
		})
		try(c.code, c.want)
	}
	f.SetFail(nil)
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
	try("InvalidClientTokenId", "check AWS_ACCESS_KEY_ID")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	try("no AWS credentials", "set AWS_ACCESS_KEY_ID")
}

func TestRoute53OutOfReachIsExplained(t *testing.T) {
	t.Parallel()
	why := explainRoute53(fmt.Errorf("operation error: %w", &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}))
	if want := "Route 53 cannot be reached: connection refused"; why.reason != want || !strings.Contains(why.hint, "HTTPS") {
		t.Errorf("refusal %+v, want %q", why, want)
	}
}

func TestRoute53GivesUpOnSetThatCannotBe(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	s := route53Solver(t, d, config.Route53{})
	alias := types.Change{Action: types.ChangeActionCreate, ResourceRecordSet: &types.ResourceRecordSet{
		Name: aws.String(challenge), Type: types.RRTypeCname, TTL: aws.Int64(60),
		ResourceRecords: []types.ResourceRecord{{Value: aws.String("elsewhere.test.")}},
	}}
	if _, err := s.providers[0].backend.(*hosted).api.ChangeResourceRecordSets(t.Context(), &route53.ChangeResourceRecordSetsInput{
		HostedZoneId: aws.String(f.ZoneID("example.test")), ChangeBatch: &types.ChangeBatch{Changes: []types.Change{alias}},
	}); err != nil {
		t.Fatal(err)
	}
	d.SetFault(func(q acmelab.Query) (int, bool) { // a resolver that has not heard of the CNAME
		return miekg.RcodeNameError, q.Type == miekg.TypeCNAME
	})
	_, err := s.Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "InvalidChangeBatch", "conflicting RRSet of type CNAME")
	if n := f.Requests()["ChangeResourceRecordSets"]; n > route53Swaps+2 { // and the CNAME, and a look when it is taken back
		t.Errorf("%d changes tried", n)
	}
}

func TestRoute53ExplainsOldFormOfARefusedBatch(t *testing.T) {
	t.Parallel()
	why := explainRoute53(fmt.Errorf("operation error: %w", &types.InvalidChangeBatch{Messages: []string{"Tried to create\nsomething", "and more"}}))
	if want := "InvalidChangeBatch: Tried to create something, and more"; why.reason != want {
		t.Errorf("reason %q, want %q", why.reason, want)
	}
}

func TestBadAWSProfileIsAnErrorOfNew(t *testing.T) {
	startRoute53(t, acmelab.Route53Options{})
	t.Setenv("AWS_PROFILE", "nobody")
	_, err := New(Options{Providers: []*config.Provider{{Name: "aws", Route53: &config.Route53{}}}})
	wantError(t, err, "DNS provider aws", "AWS configuration", "nobody", "check AWS_PROFILE") // libdns/route53 ends the process here
}
