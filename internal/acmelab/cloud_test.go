package acmelab_test

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"edge/internal/acmelab"
)

// request sends one request and returns status and body.
func request(t *testing.T, c *http.Client, method, address, token, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if method == http.MethodPost && strings.Contains(address, "token") {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// contextWith makes oauth2 send its requests by c.
func contextWith(t *testing.T, c *http.Client) context.Context {
	t.Helper()
	return context.WithValue(t.Context(), oauth2.HTTPClient, c)
}

func TestGoogleRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "other.test"}})
	f := acmelab.NewGoogle(t, acmelab.GoogleOptions{DNS: d, Private: []string{"other.test"}})
	account, err := google.JWTConfigFromJSON([]byte(f.Credentials), "https://www.googleapis.com/auth/ndev.clouddns.readwrite")
	if err != nil {
		t.Fatal(err)
	}
	token, err := account.TokenSource(contextWith(t, f.HTTPClient())).Token()
	if err != nil {
		t.Fatal(err)
	}
	account.Scopes = []string{"https://www.googleapis.com/auth/drive"}
	if _, err := account.TokenSource(contextWith(t, f.HTTPClient())).Token(); err == nil {
		t.Error("a token for another scope")
	}
	zones := "https://dns.googleapis.com/dns/v1/projects/" + acmelab.GoogleProject + "/managedZones"
	zone := zones + "/lab-example-test"
	set := func(name, kind, ttl, data string) string {
		return `{"name":"` + name + `","type":"` + kind + `","ttl":` + ttl + `,"rrdatas":[` + data + `]}`
	}
	add := func(sets string) string { return `{"additions":[` + sets + `]}` }
	good := set("a.example.test.", "TXT", "60", `"\"v\"","\"w\""`)
	for _, tc := range []struct {
		name, method, address, body string
		status                      int
		want                        string
	}{
		{"good", "POST", zone + "/changes", add(good), 200, `"status":"pending"`},
		{"there already", "POST", zone + "/changes", add(good), 409, "alreadyExists"},
		{"other values", "POST", zone + "/changes", `{"deletions":[` + set("a.example.test.", "TXT", "60", `"\"v\""`) + `]}`, 412, "conditionNotMet"},
		{"other TTL", "POST", zone + "/changes", `{"deletions":[` + set("a.example.test.", "TXT", "61", `"\"v\"","\"w\""`) + `]}`, 412, "conditionNotMet"},
		{"not there", "POST", zone + "/changes", `{"deletions":[` + set("b.example.test.", "TXT", "60", `"\"v\""`) + `]}`, 404, "entity.change.deletions[0]"},
		{"half of it is wrong", "POST", zone + "/changes", add(set("c.example.test.", "TXT", "60", `"\"v\""`) + "," + good), 409, "additions[1]"},
		{"unquoted", "POST", zone + "/changes", add(set("c.example.test.", "TXT", "60", `"v"`)), 400, "rrdata"},
		{"twice", "POST", zone + "/changes", add(set("c.example.test.", "TXT", "60", `"\"v\"","\"v\""`)), 400, "rrdata"},
		{"no dot", "POST", zone + "/changes", add(set("c.example.test", "TXT", "60", `"\"v\""`)), 400, "name"},
		{"another zone", "POST", zone + "/changes", add(set("c.other.test.", "TXT", "60", `"\"v\""`)), 400, "name"},
		{"nothing", "POST", zone + "/changes", `{}`, 400, "required"},
		{"unknown field", "POST", zone + "/changes", `{"additions":[{"name":"c.example.test.","text":"v"}]}`, 400, "parseError"},
		{"unknown parameter", "GET", zone + "/rrsets?kind=TXT", "", 400, "invalidParameter"},
		{"type alone", "GET", zone + "/rrsets?type=TXT", "", 400, "type is only allowed with name"},
		{"one set", "GET", zone + "/rrsets?type=TXT&name=a.example.test.", "", 200, `"rrdatas":["\"v\"","\"w\""]`},
		{"unknown zone", "GET", zones + "/none/rrsets", "", 404, "parameters.managedZone"},
		{"unknown zone to change", "POST", zones + "/none/changes", add(good), 404, "parameters.managedZone"},
		{"twin", "GET", zones + "?dnsName=other.test.", "", 200, `"visibility":"private"`},
		{"unknown path", "GET", zone + "/dnsKeys", "", 404, "unknown GET"},
		{"another project", "GET", strings.Replace(zones, acmelab.GoogleProject, "other", 1), "", 403, "forbidden"},
	} {
		if status, text := request(t, f.HTTPClient(), tc.method, tc.address, token.AccessToken, tc.body); status != tc.status || !strings.Contains(text, tc.want) {
			t.Errorf("%s: %d %s, want %d %s", tc.name, status, text, tc.status, tc.want)
		}
	}
	if status, _ := request(t, f.HTTPClient(), "GET", zones, "another", ""); status != 401 {
		t.Errorf("another token: %d", status)
	}
	if status, text := request(t, f.HTTPClient(), "POST", "https://oauth2.googleapis.com/token", "", url.Values{"grant_type": {"password"}}.Encode()); status != 400 {
		t.Errorf("another grant: %d %s", status, text)
	}
	if got := d.TXTNames(); !slices.Equal(got, []string{"a.example.test."}) {
		t.Errorf("records at %q", got)
	}
	if f.TTL("a.example.test") != 60 || f.TTL("c.example.test") != 0 {
		t.Errorf("TTLs %d, %d", f.TTL("a.example.test"), f.TTL("c.example.test"))
	}
}

func TestAzureRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	f := acmelab.NewAzure(t, acmelab.AzureOptions{DNS: d})
	login := "https://login.microsoftonline.com/" + acmelab.AzureTenant + "/oauth2/v2.0/token"
	grant := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {acmelab.AzureClientID}, "client_secret": {acmelab.AzureClientSecret},
		"scope": {"https://management.core.windows.net//.default openid"},
	}
	for field, wrong := range map[string]string{"grant_type": "password", "client_id": "x", "client_secret": "x", "scope": "openid"} {
		bad := maps.Clone(grant)
		bad.Set(field, wrong)
		if status, text := request(t, f.HTTPClient(), "POST", login, "", bad.Encode()); status != 401 || !strings.Contains(text, "AADSTS") {
			t.Errorf("wrong %s: %d %s", field, status, text)
		}
	}
	_, text := request(t, f.HTTPClient(), "POST", login, "", grant.Encode())
	var token struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(text), &token); err != nil || token.Token == "" {
		t.Fatalf("token %s, %v", text, err)
	}
	group := "https://management.azure.com/subscriptions/" + acmelab.AzureSubscription + "/resourceGroups/" + acmelab.AzureGroup
	zone := group + "/providers/Microsoft.Network/dnsZones/example.test/TXT/"
	const version = "?api-version=2018-05-01"
	good := `{"properties":{"TTL":60,"TXTRecords":[{"value":["v"]}]}}`
	for _, tc := range []struct {
		name, method, address, body string
		header                      []string
		status                      int
		want                        string
	}{
		{"not there", "GET", zone + "a" + version, "", nil, 404, `"NotFound"`},
		{"delete what is not there", "DELETE", zone + "a" + version, "", nil, 204, ""},
		{"to be replaced, not there", "PUT", zone + "a" + version, good, []string{"If-Match", "x"}, 412, "PreconditionFailed"},
		{"good", "PUT", zone + "a" + version, good, []string{"If-None-Match", "*"}, 201, `"etag":"00000000-0000-0000-0000-000000000001"`},
		{"to be made, there", "PUT", zone + "a" + version, good, []string{"If-None-Match", "*"}, 412, "PreconditionFailed"},
		{"changed", "PUT", zone + "a" + version, good, []string{"If-Match", "00000000-0000-0000-0000-000000000000"}, 412, "PreconditionFailed"},
		{"unchanged", "PUT", zone + "a" + version, good, []string{"If-Match", "00000000-0000-0000-0000-000000000001"}, 200, "000000000002"},
		{"delete what has changed", "DELETE", zone + "a" + version, "", []string{"If-Match", "00000000-0000-0000-0000-000000000001"}, 412, "PreconditionFailed"},
		{"apex", "PUT", zone + "@" + version, good, nil, 201, `"fqdn":"example.test."`},
		{"no TTL", "PUT", zone + "b" + version, `{"properties":{"TXTRecords":[{"value":["v"]}]}}`, nil, 400, "TTL"},
		{"no record", "PUT", zone + "b" + version, `{"properties":{"TTL":60}}`, nil, 400, "0 records"},
		{"too many", "PUT", zone + "b" + version, `{"properties":{"TTL":60,"TXTRecords":[` + strings.Repeat(`{"value":["v"]},`, 20) + `{"value":["w"]}]}}`, nil, 400, "21 records"},
		{"twice", "PUT", zone + "b" + version, `{"properties":{"TTL":60,"TXTRecords":[{"value":["v"]},{"value":["v"]}]}}`, nil, 400, "twice"},
		{"too long", "PUT", zone + "b" + version, `{"properties":{"TTL":60,"TXTRecords":[{"value":["` + strings.Repeat("v", 256) + `"]}]}}`, nil, 400, "too long"},
		{"unknown field", "PUT", zone + "b" + version, `{"properties":{"TTL":60,"txt":[]}}`, nil, 400, "InvalidRequestContent"},
		{"another version", "GET", zone + "a?api-version=2015-01-01", "", nil, 400, "InvalidApiVersionParameter"},
		{"unknown parameter", "GET", zone + "a" + version + "&x=1", "", nil, 400, "x=1"},
		{"another type", "GET", strings.Replace(zone, "/TXT/", "/A/", 1) + "a" + version, "", nil, 404, "InvalidResourceType"},
		{"another zone", "GET", strings.Replace(zone, "example", "other", 1) + "a" + version, "", nil, 404, "ParentResourceNotFound"},
		{"another group", "GET", strings.Replace(zone, acmelab.AzureGroup, "other", 1) + "a" + version, "", nil, 404, "ResourceGroupNotFound"},
		{"another subscription", "GET", strings.Replace(zone, acmelab.AzureSubscription, "other", 1) + "a" + version, "", nil, 404, "SubscriptionNotFound"},
	} {
		if status, text := request(t, f.HTTPClient(), tc.method, tc.address, token.Token, tc.body, tc.header...); status != tc.status || !strings.Contains(text, tc.want) {
			t.Errorf("%s: %d %s, want %d %s", tc.name, status, text, tc.status, tc.want)
		}
	}
	if status, _ := request(t, f.HTTPClient(), "GET", zone+"a"+version, "another", ""); status != 401 {
		t.Errorf("another token: %d", status)
	}
	if got := d.TXTNames(); !slices.Equal(got, []string{"a.example.test.", "example.test."}) {
		t.Errorf("records at %q", got)
	}
	f.SetFail(func(string) *acmelab.Refusal {
		return &acmelab.Refusal{Status: 429, Code: "TooManyRequests", RetryAfter: "7"}
	})
	if status, text := request(t, f.HTTPClient(), "GET", zone+"a"+version, token.Token, ""); status != 429 || !strings.Contains(text, "TooManyRequests") {
		t.Errorf("told to fail: %d %s", status, text)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://example.com/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := f.HTTPClient().Do(req); err == nil {
		resp.Body.Close()
		t.Error("example.com was reached")
	}
}
