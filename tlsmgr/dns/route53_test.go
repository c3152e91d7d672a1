package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	"github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/libdns/libdns"
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

// stranger is another user of the hosted zone.
type stranger struct {
	api  *route53.Client
	zone string
}

func newStranger(f *acmelab.Route53) stranger {
	return stranger{zone: f.ZoneID("example.test"), api: route53.New(route53.Options{
		Region: "us-east-1", BaseEndpoint: &f.URL, Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", ""),
	})}
}

// create makes a record set whose TTL is not ours.
func (s stranger) create(t *testing.T, name string, kind types.RRType, values ...string) {
	t.Helper()
	s.write(t, types.ChangeActionCreate, name, kind, values...)
}

func (s stranger) write(t *testing.T, action types.ChangeAction, name string, kind types.RRType, values ...string) {
	t.Helper()
	set := &types.ResourceRecordSet{Name: aws.String(name), Type: kind, TTL: aws.Int64(300)}
	for _, v := range values {
		set.ResourceRecords = append(set.ResourceRecords, types.ResourceRecord{Value: aws.String(v)})
	}
	if _, err := s.api.ChangeResourceRecordSets(t.Context(), &route53.ChangeResourceRecordSetsInput{
		HostedZoneId: aws.String(s.zone),
		ChangeBatch:  &types.ChangeBatch{Changes: []types.Change{{Action: action, ResourceRecordSet: set}}},
	}); err != nil {
		t.Fatal(err)
	}
}

// ttl is that of the TXT records at name, 0 when there are none.
func (s stranger) ttl(t *testing.T, name string) int64 {
	t.Helper()
	page, err := s.api.ListResourceRecordSets(t.Context(), &route53.ListResourceRecordSetsInput{HostedZoneId: aws.String(s.zone)})
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range page.ResourceRecordSets {
		if sameName(aws.ToString(set.Name), name) && set.Type == types.RRTypeTxt {
			return aws.ToInt64(set.TTL)
		}
	}
	return 0
}

func TestRoute53TakesOneChangeForAllValuesOfAName(t *testing.T) {
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
	want := map[string]int{"ListHostedZonesByName": 6, "ListResourceRecordSets": 8, "ChangeResourceRecordSets": 4} // read before and after
	if got := f.Requests(); !maps.Equal(got, want) {
		t.Errorf("requests: %v, want %v", got, want)
	}
}

func TestRoute53KeepsValuesOfOthers(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	s := route53Solver(t, d, config.Route53{HostedZoneID: "/hostedzone/" + f.ZoneID("example.test")})
	other := newStranger(f)
	other.create(t, challenge, types.RRTypeTxt, `"theirs"`, `"too"`)
	other.create(t, "_acme-challenge.b2.example.test.", types.RRTypeTxt, `"next in the list"`)
	p := present(t, s, Record{challenge, "ours"}, Record{"_acme-challenge.b.example.test", "b"})
	if got, want := d.TXT(challenge), []string{"ours", "theirs", "too"}; !slices.Equal(got, want) {
		t.Errorf("values: %q, want %q", got, want)
	}
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := d.TXT(challenge), []string{"theirs", "too"}; !slices.Equal(got, want) {
		t.Errorf("after CleanUp: %q, want %q", got, want)
	}
	if got := other.ttl(t, challenge); got != 300 {
		t.Errorf("after CleanUp: TTL %d, want 300", got)
	}
	if names := d.TXTNames(); len(names) != 2 {
		t.Errorf("after CleanUp: records at %q", names)
	}
	if n := f.Requests()["ListHostedZonesByName"]; n != 0 {
		t.Errorf("looked %d times for a zone whose ID is configured", n)
	}
}

func TestRoute53HeirPresentsWhatIsThere(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	other := newStranger(f)
	other.create(t, challenge, types.RRTypeTxt, `"theirs"`, `"apex"`)
	other.create(t, "_acme-challenge.www.example.test", types.RRTypeTxt, `"www"`)
	s := route53Solver(t, d, config.Route53{})
	for range 2 { // at first some of it is there, then all
		p := present(t, s, Record{challenge, "apex"}, Record{challenge, "wildcard"}, Record{"_acme-challenge.www.example.test", "www"})
		if got, want := d.TXT(challenge), []string{"apex", "theirs", "wildcard"}; !slices.Equal(got, want) {
			t.Fatalf("values: %q, want %q", got, want)
		}
		t.Cleanup(func() {
			if err := p.CleanUp(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
			if got, want := d.TXT(challenge), []string{"theirs"}; !slices.Equal(got, want) {
				t.Errorf("after CleanUp: %q, want %q", got, want)
			}
		})
	}
}

func TestRoute53OrdersAtOneNameLoseNothing(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	newStranger(f).create(t, challenge, types.RRTypeTxt, `"theirs"`)
	f.SetDelay(5 * time.Millisecond)
	s := route53Solver(t, d, config.Route53{})
	var want []string
	var presented [6]*Presented
	var wg sync.WaitGroup
	for i := range presented {
		value := fmt.Sprintf("order%d", i)
		want = append(want, value)
		wg.Go(func() {
			var err error
			if presented[i], err = s.Present(t.Context(), []Record{{challenge, value}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, want := d.TXT(challenge), append(want, "theirs"); !slices.Equal(got, want) {
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
	if got, want := d.TXT(challenge), []string{"theirs"}; !slices.Equal(got, want) {
		t.Errorf("after CleanUp: %q, want %q", got, want)
	}
}

func TestRoute53CallsEndWithTheirContext(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	asked, release := make(chan struct{}, 1), make(chan struct{})
	t.Cleanup(func() { close(release) })
	f.SetFail(func(string) (int, string) {
		asked <- struct{}{}
		<-release
		return http.StatusServiceUnavailable, "ServiceUnavailable"
	})
	s := route53Solver(t, d, config.Route53{})
	p := s.providers[0]
	records := []libdns.Record{libdns.TXT{Name: "_acme-challenge", Text: "v", TTL: recordTTL}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := make(chan error, 1)
	go func() {
		_, err := p.backend.AppendRecords(ctx, "example.test.", records)
		first <- err
	}()
	<-asked
	brief, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	for name, call := range map[string]func(context.Context, string, []libdns.Record) ([]libdns.Record, error){
		"AppendRecords": p.backend.AppendRecords, "DeleteRecords": p.backend.DeleteRecords,
	} {
		_, err := call(brief, "example.test.", records)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s that waits for its turn: %v", name, err)
		}
		wantError(t, p.fail("add to", "example.test.", err), "did not finish in time: wait for changes of other orders", "CNAME")
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("AppendRecords that waits for an answer: %v", err)
	}
}

func TestRoute53HostedZoneIDChoosesThePublicZone(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{Private: []string{"example.test"}})
	present(t, route53Solver(t, d, config.Route53{HostedZoneID: f.ZoneID("example.test")}), Record{challenge, "v"})
	if got := d.TXT(challenge); len(got) != 1 { // a private zone is not seen in DNS
		t.Errorf("values: %q", got)
	}
	s := solver(t, d, Options{Providers: []*config.Provider{{Name: "aws", Route53: &config.Route53{}}}, Timeout: 50 * time.Millisecond})
	p := present(t, s, Record{"_acme-challenge.www.example.test", "v"})
	wantError(t, p.Wait(t.Context()), "not visible", "private hosted zone of the same name", "hosted_zone_id")
	if err := p.CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRoute53RegionIsConfiguredOrTheEnvironments(t *testing.T) {
	startRoute53(t, acmelab.Route53Options{})
	for _, c := range []struct{ configured, environment, want string }{
		{"", "", "us-east-1"},
		{"", "cn-north-1", "cn-north-1"},
		{"us-gov-west-1", "cn-north-1", "us-gov-west-1"},
	} {
		t.Setenv("AWS_REGION", c.environment)
		p, err := newProvider(&config.Provider{Name: "aws", Route53: &config.Route53{Region: c.configured}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.backend.(hosted).api.Region; got != c.want {
			t.Errorf("%+v: region %q", c, got)
		}
	}
}

func TestRoute53ZoneThatIsAbsentIsExplained(t *testing.T) {
	startRoute53(t, acmelab.Route53Options{})
	elsewhere := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.invalid"}})
	s := route53Solver(t, elsewhere, config.Route53{})
	_, err := s.Present(t.Context(), []Record{{"_acme-challenge.example.invalid", "v"}})
	wantError(t, err, "zone example.invalid", "provider aws (route53)", "NoSuchHostedZone", "hosted_zone_id")
}

func TestRoute53RecordThatLibdnsCannotReadIsExplained(t *testing.T) {
	f, d := startRoute53(t, acmelab.Route53Options{})
	newStranger(f).create(t, "odd.example.test", types.RRTypeSrv, "1 2 3 host.example.test.")
	_, err := route53Solver(t, d, config.Route53{}).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "provider aws (route53)", "SRV record odd", "correct that record")
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
	newStranger(f).create(t, challenge, types.RRTypeCname, "elsewhere.test.")
	d.SetFault(func(q acmelab.Query) (int, bool) { // a resolver that has not heard of the CNAME
		return miekg.RcodeNameError, q.Type == miekg.TypeCNAME
	})
	_, err := route53Solver(t, d, config.Route53{}).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "InvalidChangeBatch", "conflicting RRSet of type CNAME")
	if n := f.Requests()["ChangeResourceRecordSets"]; n != 3 { // the CNAME, and two tries
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

func TestAWSProfileThatGoesAwayLaterDoesNotEndTheProcess(t *testing.T) {
	_, d := startRoute53(t, acmelab.Route53Options{})
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("[profile edge]\nregion = us-east-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", path)
	t.Setenv("AWS_PROFILE", "edge")
	s := route53Solver(t, d, config.Route53{})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	present(t, s, Record{challenge, "v"})
	if got := d.TXT(challenge); len(got) != 1 {
		t.Errorf("values: %q", got)
	}
}
