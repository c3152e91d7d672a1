package dns

import (
	"fmt"
	"strings"
	"testing"

	"edge/config"
	"edge/internal/acmelab"
)

func startAzure(t *testing.T) (*acmelab.Azure, *acmelab.DNS) {
	t.Helper()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "acme.test"}})
	return acmelab.NewAzure(t, acmelab.AzureOptions{DNS: d}), d
}

func azureOptions(t *testing.T, f *acmelab.Azure) Options {
	t.Helper()
	return Options{HTTPClient: f.HTTPClient(), Providers: []*config.Provider{{Name: "cloud", Azure: &config.AzureDNS{
		SubscriptionID: acmelab.AzureSubscription, ResourceGroup: acmelab.AzureGroup, TenantID: acmelab.AzureTenant,
		ClientID: acmelab.AzureClientID, ClientSecret: secret(t, acmelab.AzureClientSecret),
	}}}}
}

func TestAzureKeepsTTLAndMetadataOfOthers(t *testing.T) {
	t.Parallel()
	f, d := startAzure(t)
	if err := f.Put(challenge, 300, "theirs", strings.Repeat("x", 200)); err != nil {
		t.Fatal(err)
	}
	p := present(t, solver(t, d, azureOptions(t, f)), Record{challenge, "ours"})
	for _, when := range []string{"before", "after"} {
		if ttl, owner := f.Properties(challenge); ttl != 300 || owner != "somebody" {
			t.Errorf("%s CleanUp: TTL %d, owner %q", when, ttl, owner)
		}
		if err := p.CleanUp(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := d.TXT(challenge); len(got) != 2 {
		t.Errorf("values %q", got)
	}
	if got := f.Requests()["token"]; got != 1 {
		t.Errorf("%d tokens, want one for all requests", got)
	}
}

func TestAzureRefusalsAreExplainedWithoutTheSecret(t *testing.T) {
	t.Parallel()
	f, d := startAzure(t)
	try := func(o Options, want ...string) {
		t.Helper()
		_, err := solver(t, d, o).Present(t.Context(), []Record{{challenge, "v"}})
		wantError(t, err, append(want, "provider cloud (azure)", "zone example.test")...)
		if err != nil && strings.Contains(err.Error(), acmelab.AzureClientSecret) {
			t.Errorf("secret in %v", err)
		}
	}
	for _, c := range []struct {
		status     int
		code, wait string
		want       []string
	}{
		{403, "AuthorizationFailed", "", []string{"not allowed: HTTP 403 AuthorizationFailed", "Microsoft.Network/dnsZones/TXT/read, write and delete", "DNS Zone Contributor"}},
		{401, "InvalidAuthenticationToken", "", []string{"the credentials are refused"}},
		{429, "TooManyRequests", "0", []string{"too many requests: HTTP 429", "Retry-After: 0", "lower rate"}},
		{503, "ServiceUnavailable", "0", []string{"Azure is in trouble"}},
		{400, "BadRequest", "", []string{"HTTP 400 BadRequest: acmelab was told to fail"}},
	} {
		f.SetFail(refuseOp("put", &acmelab.Refusal{Status: c.status, Code: c.code, RetryAfter: c.wait}))
		try(azureOptions(t, f), c.want...)
	}
	f.SetFail(nil)
	change := func(change func(*config.AzureDNS)) Options {
		o := azureOptions(t, f)
		change(o.Providers[0].Azure)
		return o
	}
	try(change(func(c *config.AzureDNS) { c.ResourceGroup = "other" }), "HTTP 404 ResourceGroupNotFound", "public DNS zone in resource_group")
	try(change(func(c *config.AzureDNS) { c.SubscriptionID = acmelab.AzureTenant }), "HTTP 404 SubscriptionNotFound")
	try(change(func(c *config.AzureDNS) { c.ClientSecret = secret(t, "wrong") }), "no token for these credentials: AADSTS7000215: Invalid client secret provided", "expires")
	elsewhere := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.invalid"}})
	_, err := solver(t, elsewhere, azureOptions(t, f)).Present(t.Context(), []Record{{"_acme-challenge.example.invalid", "v"}})
	wantError(t, err, "HTTP 404 ParentResourceNotFound", "is the zone a public DNS zone")
}

func TestAzureRecordSetThatIsFullIsExplained(t *testing.T) {
	t.Parallel()
	f, d := startAzure(t)
	var values []string
	for i := range 20 {
		values = append(values, fmt.Sprintf("value%d", i))
	}
	if err := f.Put(challenge, 300, values...); err != nil {
		t.Fatal(err)
	}
	_, err := solver(t, d, azureOptions(t, f)).Present(t.Context(), []Record{{challenge, "one too many"[:3]}})
	wantError(t, err, "HTTP 400", "21 records")
	if got := d.TXT(challenge); len(got) != 20 {
		t.Errorf("%d values are left of 20", len(got))
	}
}

func TestAzureNamesThatWouldChangeTheURLAreRefused(t *testing.T) {
	t.Parallel()
	f, d := startAzure(t)
	if err := d.Add("_acme-challenge.example.test. 60 IN CNAME a/b.acme.test."); err != nil {
		t.Fatal(err)
	}
	_, err := solver(t, d, azureOptions(t, f)).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, `name "a/b.acme.test" cannot be a record`)
	if n := f.Requests()["put"]; n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestAzureSettingsThatAreMissingAreRefusedByNew(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]config.AzureDNS{
		"subscription_id is empty":      {ResourceGroup: "g"},
		"resource_group is empty":       {SubscriptionID: "s"},
		"needs tenant_id and client_id": {SubscriptionID: "s", ResourceGroup: "g", ClientSecret: secret(t, "x")},
		"EDGE_TEST_UNSET":               {SubscriptionID: "s", ResourceGroup: "g", ClientSecret: config.Secret{Ref: "env:EDGE_TEST_UNSET"}},
	} {
		_, err := New(Options{Providers: []*config.Provider{{Name: "az", Azure: &c}}})
		wantError(t, err, "DNS provider az: azure", want)
	}
}
