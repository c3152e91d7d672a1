package acmelab_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	"github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/aws/smithy-go"
	"github.com/libdns/libdns"
	libroute53 "github.com/libdns/route53"

	"edge/internal/acmelab"
)

// r53 is a fake with a DNS server and the SDK's client of it.
func r53(tb testing.TB, o acmelab.Route53Options) (*acmelab.DNS, *acmelab.Route53, *route53.Client) {
	tb.Helper()
	o.DNS = acmelab.NewDNS(tb, acmelab.DNSOptions{Zones: []string{"example.test", "other.test"}})
	f := acmelab.NewRoute53(tb, o)
	return o.DNS, f, route53.New(route53.Options{
		Region: "us-east-1", BaseEndpoint: &f.URL, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", ""),
		HTTPClient:  &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
}

func txtSet(name string, ttl int64, values ...string) *types.ResourceRecordSet {
	set := &types.ResourceRecordSet{Name: &name, Type: types.RRTypeTxt, TTL: &ttl}
	for _, v := range values {
		set.ResourceRecords = append(set.ResourceRecords, types.ResourceRecord{Value: aws.String(v)})
	}
	return set
}

func change(ctx context.Context, c *route53.Client, zone string, changes ...types.Change) (string, error) {
	out, err := c.ChangeResourceRecordSets(ctx, &route53.ChangeResourceRecordSetsInput{
		HostedZoneId: &zone, ChangeBatch: &types.ChangeBatch{Changes: changes},
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.ChangeInfo.Id), nil
}

// code is the error code of the API, "" for no error.
func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestRoute53ServesLibdnsAndPebbleBelievesIt(t *testing.T) {
	ns, f, _ := r53(t, acmelab.Route53Options{Pending: 1})
	for _, kv := range f.Env() {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	transport := http.DefaultTransport.(*http.Transport)
	t.Cleanup(transport.CloseIdleConnections)
	p := &libroute53.Provider{Region: "us-east-1", AccessKeyId: "AKID", SecretAccessKey: "secret", WaitForRoute53Sync: false}
	ca := acmelab.NewCA(t, acmelab.CAOptions{DNS: ns.Addr})
	client := acmeClient(ca, p, "example.test.")
	obtain(t, ca, client, account(t, client), "*.example.test", "example.test")
	if got := ns.TXTNames(); len(got) != 0 {
		t.Errorf("left behind %q", got)
	}

	recs := []libdns.Record{libdns.TXT{Name: "x", Text: `a "quoted" value`, TTL: time.Minute}}
	if _, err := p.AppendRecords(t.Context(), "example.test.", recs); err != nil {
		t.Fatal(err)
	}
	if got := ns.TXT("x.example.test"); !slices.Equal(got, []string{`a \"quoted\" value`}) { // miekg/dns keeps the escapes
		t.Errorf("TXT %q", got)
	}
	if _, err := p.DeleteRecords(t.Context(), "example.test.", recs); err != nil {
		t.Fatal(err)
	}
	if got := f.Requests(); got["ChangeResourceRecordSets"] < 6 || got["ListHostedZonesByName"] == 0 {
		t.Errorf("requests %v", got)
	}
}

func TestRoute53AppliesABatchAsAWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	ns, f, c := r53(t, acmelab.Route53Options{})
	ctx, zone := t.Context(), f.ZoneID("example.test")
	create := func(set *types.ResourceRecordSet) types.Change {
		return types.Change{Action: types.ChangeActionCreate, ResourceRecordSet: set}
	}
	remove := func(set *types.ResourceRecordSet) types.Change {
		return types.Change{Action: types.ChangeActionDelete, ResourceRecordSet: set}
	}
	const name = "x.example.test."
	for i, step := range []struct {
		changes []types.Change
		code    string
		says    string
		want    []string // TXT values of name afterwards
	}{
		{[]types.Change{create(txtSet(name, 60, `"a"`))}, "", "", []string{"a"}},
		{[]types.Change{create(txtSet(name, 60, `"b"`))}, "InvalidChangeBatch", "already exists", []string{"a"}},
		{[]types.Change{remove(txtSet(name, 60, `"b"`))}, "InvalidChangeBatch", "do not match", []string{"a"}},
		{[]types.Change{remove(txtSet(name, 61, `"a"`))}, "InvalidChangeBatch", "do not match", []string{"a"}},
		{[]types.Change{remove(txtSet("y.example.test.", 60, `"a"`))}, "InvalidChangeBatch", "was not found", []string{"a"}},
		{[]types.Change{remove(txtSet(name, 60, `"a"`)), create(txtSet("y.example.com.", 60, `"a"`))}, "InvalidChangeBatch", "not permitted", []string{"a"}},
		{[]types.Change{remove(txtSet(name, 60, `"a"`)), create(txtSet(name, 60, `"a"`, `"b"`))}, "", "", []string{"a", "b"}},
		{[]types.Change{remove(txtSet(name, 60, `"b"`, `"a"`))}, "", "", nil},
		{[]types.Change{create(txtSet(name, 60, `bare`))}, "InvalidChangeBatch", "enclosed in quotation marks", nil},
		{[]types.Change{create(txtSet(name, 60, `"`+strings.Repeat("x", 256)+`"`))}, "InvalidChangeBatch", "too long", nil},
		{[]types.Change{create(txtSet(name, 60, `"a"`, `"a"`))}, "InvalidChangeBatch", "Duplicate", nil},
		{[]types.Change{{Action: types.ChangeActionUpsert, ResourceRecordSet: txtSet(name, 60, `"c" "d"`)}}, "", "", []string{"cd"}},
		{[]types.Change{{Action: types.ChangeActionUpsert, ResourceRecordSet: txtSet(name, 61, `"e"`)}}, "", "", []string{"e"}},
		{[]types.Change{{Action: "REPLACE", ResourceRecordSet: txtSet(name, 61, `"e"`)}}, "InvalidInput", "REPLACE", []string{"e"}},
	} {
		_, err := change(ctx, c, zone, step.changes...)
		if code(err) != step.code || err != nil && !strings.Contains(err.Error(), step.says) {
			t.Errorf("step %d: got %v, want %s %s", i, err, step.code, step.says)
		}
		if got := ns.TXT(name); !slices.Equal(got, step.want) {
			t.Errorf("step %d: TXT %q, want %q", i, got, step.want)
		}
	}
	alias := txtSet("alias.example.test.", 60, "www.example.test.")
	alias.Type = types.RRTypeCname
	if _, err := change(ctx, c, zone, create(alias), create(txtSet("alias.example.test.", 60, `"a"`))); code(err) != "InvalidChangeBatch" {
		t.Errorf("TXT beside CNAME: %v", err)
	}
	soa := txtSet("example.test.", 900, "ns1.example.test. hostmaster.example.test. 1 7200 900 1209600 86400")
	soa.Type = types.RRTypeSoa
	if _, err := change(ctx, c, zone, remove(soa)); code(err) != "InvalidChangeBatch" {
		t.Errorf("SOA deleted: %v", err)
	}
	if _, err := change(ctx, c, "Z0NONE", create(txtSet(name, 60, `"a"`))); code(err) != "NoSuchHostedZone" {
		t.Errorf("zone that is not there: %v", err)
	}
}

func TestRoute53ListsInItsOrderPageByPage(t *testing.T) {
	t.Parallel()
	_, f, c := r53(t, acmelab.Route53Options{Private: []string{"example.test"}})
	ctx, zone := t.Context(), f.ZoneID("example.test")
	for _, name := range []string{"b.example.test", "*.a.example.test", "a.example.test"} {
		if _, err := change(ctx, c, zone, types.Change{Action: types.ChangeActionCreate, ResourceRecordSet: txtSet(name, 60, `"v"`)}); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	in := &route53.ListResourceRecordSetsInput{HostedZoneId: &zone, MaxItems: aws.Int32(2)}
	for pages := route53.NewListResourceRecordSetsPaginator(c, in); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range page.ResourceRecordSets {
			names = append(names, *set.Name+" "+string(set.Type))
		}
	}
	want := []string{"example.test. NS", "example.test. SOA", "a.example.test. TXT", `\052.a.example.test. TXT`, "b.example.test. TXT"}
	if !slices.Equal(names, want) {
		t.Errorf("sets %q, want %q", names, want)
	}
	one, err := c.ListResourceRecordSets(ctx, &route53.ListResourceRecordSetsInput{
		HostedZoneId: &zone, StartRecordName: aws.String("*.a.example.test"), StartRecordType: types.RRTypeTxt, MaxItems: aws.Int32(1),
	})
	if err != nil || len(one.ResourceRecordSets) != 1 || *one.ResourceRecordSets[0].Name != want[3][:len(want[3])-4] || *one.ResourceRecordSets[0].TTL != 60 {
		t.Errorf("one set: %+v, %v", one, err)
	}
	for start, want := range map[string]int{"": 3, "example.test": 3, "f.test": 1, "zzz.test": 0} {
		zones, err := c.ListHostedZonesByName(ctx, &route53.ListHostedZonesByNameInput{DNSName: aws.String(start)})
		if err != nil || len(zones.HostedZones) != want {
			t.Errorf("zones from %q: %+v, %v, want %d", start, zones, err, want)
		}
	}
	first, err := c.ListHostedZonesByName(ctx, &route53.ListHostedZonesByNameInput{DNSName: aws.String("example.test"), MaxItems: aws.Int32(1)})
	if err != nil || !first.IsTruncated || !first.HostedZones[0].Config.PrivateZone || aws.ToString(first.NextHostedZoneId) != zone {
		t.Errorf("first zone: %+v, %v, want the private twin", first, err)
	}
	if _, err := c.ListResourceRecordSets(ctx, &route53.ListResourceRecordSetsInput{HostedZoneId: &zone, StartRecordType: types.RRTypeTxt}); code(err) != "InvalidInput" {
		t.Errorf("type without name: %v", err)
	}
}

func TestRoute53ChangeIsPendingAtFirst(t *testing.T) {
	t.Parallel()
	_, f, c := r53(t, acmelab.Route53Options{Pending: 1})
	id, err := change(t.Context(), c, f.ZoneID("example.test"), types.Change{Action: types.ChangeActionUpsert, ResourceRecordSet: txtSet("x.example.test", 60, `"v"`)})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []types.ChangeStatus{types.ChangeStatusPending, types.ChangeStatusInsync, types.ChangeStatusInsync} {
		out, err := c.GetChange(t.Context(), &route53.GetChangeInput{Id: &id})
		if err != nil || out.ChangeInfo.Status != want {
			t.Errorf("got %+v, %v, want %s", out, err, want)
		}
	}
	if _, err := c.GetChange(t.Context(), &route53.GetChangeInput{Id: aws.String("C0")}); code(err) != "NoSuchChange" {
		t.Errorf("change that is not there: %v", err)
	}
}

func TestRoute53FailsWhenTold(t *testing.T) {
	t.Parallel()
	_, f, c := r53(t, acmelab.Route53Options{AccessKeyID: "OTHER"})
	list := func(ctx context.Context) error {
		_, err := c.ListHostedZonesByName(ctx, &route53.ListHostedZonesByNameInput{})
		return err
	}
	if err := list(t.Context()); code(err) != "InvalidClientTokenId" {
		t.Errorf("unknown key: %v", err)
	}
	f.SetFail(func(op string) (int, string) {
		if op == "ListHostedZonesByName" {
			return http.StatusBadRequest, "Throttling"
		}
		return 0, ""
	})
	if err := list(t.Context()); code(err) != "Throttling" {
		t.Errorf("told to throttle: %v", err)
	}
	f.SetFail(nil)
	f.SetDelay(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := list(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("delayed: %v", err)
	}
}

func TestRoute53RefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	_, f, _ := r53(t, acmelab.Route53Options{})
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	path := "/2013-04-01/hostedzone/" + f.ZoneID("example.test") + "/rrset"
	const ok = "AWS4-HMAC-SHA256 Credential=AKID/20260102/us-east-1/route53/aws4_request, SignedHeaders=host;x-amz-date, Signature="
	good := ok + strings.Repeat("0", 64)
	xmlns := ` xmlns="https://route53.amazonaws.com/doc/2013-04-01/"`
	body := func(root, batch, set string) string {
		return `<ChangeResourceRecordSetsRequest` + root + `><ChangeBatch>` + batch + `<Changes><Change><Action>UPSERT</Action>` +
			`<ResourceRecordSet><Name>x.example.test</Name><Type>TXT</Type>` + set + `</ResourceRecordSet></Change></Changes></ChangeBatch></ChangeResourceRecordSetsRequest>`
	}
	const values = `<ResourceRecords><ResourceRecord><Value>"v"</Value></ResourceRecord></ResourceRecords>`
	for _, tc := range []struct {
		name, method, path, auth, body string
		status                         int
	}{
		{"good", "POST", path, good, body(xmlns, "<Comment>c</Comment>", "<TTL>1</TTL>"+values), 200},
		{"final slash", "POST", path + "/", good, body(xmlns, "", "<TTL>1</TTL>"+values), 200},
		{"no namespace", "POST", path, good, body("", "", "<TTL>1</TTL>"+values), 400},
		{"unknown element of the batch", "POST", path, good, body(xmlns, "<Hint/>", "<TTL>1</TTL>"+values), 400},
		{"unknown element of the set", "POST", path, good, body(xmlns, "", "<Ttl>1</Ttl><TTL>1</TTL>"+values), 400},
		{"no TTL", "POST", path, good, body(xmlns, "", values), 400},
		{"bad TTL", "POST", path, good, body(xmlns, "", "<TTL>-1</TTL>"+values), 400},
		{"no values", "POST", path, good, body(xmlns, "", "<TTL>1</TTL>"), 400},
		{"no changes", "POST", path, good, `<ChangeResourceRecordSetsRequest` + xmlns + `/>`, 400},
		{"no XML", "POST", path, good, "{}", 400},
		{"no signature", "GET", path, "", "", 403},
		{"another service", "GET", path, strings.Replace(good, "route53/", "s3/", 1), "", 403},
		{"another day", "GET", path, strings.Replace(good, "20260102", "20260103", 1), "", 403},
		{"host not signed", "GET", path, strings.Replace(good, "host;", "", 1), "", 403},
		{"unknown parameter", "GET", path + "?max=1", good, "", 400},
		{"parameter twice", "GET", path + "?name=a&name=b", good, "", 400},
		{"bad page", "GET", path + "?maxitems=0", good, "", 400},
		{"bad page of zones", "GET", "/2013-04-01/hostedzonesbyname?maxitems=x", good, "", 400},
		{"unknown operation", "DELETE", path, good, "", 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, f.URL+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Amz-Date", "20260102T030405Z")
		if tc.auth != "" {
			req.Header.Set("Authorization", tc.auth)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.status || tc.status != 200 && !strings.Contains(string(text), "<Code>") {
			t.Errorf("%s: %s %s, want %d", tc.name, resp.Status, text, tc.status)
		}
	}
	if got := f.Requests(); got["unknown DELETE "+path] != 1 {
		t.Errorf("requests %v", got)
	}
	if f.ZoneID("example.com") != "" {
		t.Error("a zone that is not there has an id")
	}
	if _, err := acmelab.StartRoute53(acmelab.Route53Options{DNS: acmelab.NewDNS(t, acmelab.DNSOptions{}), Addr: strings.TrimPrefix(f.URL, "http://")}); err == nil {
		t.Errorf("two servers at %s", f.URL)
	}
}
