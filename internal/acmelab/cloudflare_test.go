package acmelab_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libdns/cloudflare"
	"github.com/libdns/libdns"

	"edge/internal/acmelab"
)

func flare(tb testing.TB, o acmelab.CloudflareOptions) (*acmelab.DNS, *acmelab.Cloudflare) {
	tb.Helper()
	o.DNS = acmelab.NewDNS(tb, acmelab.DNSOptions{Zones: []string{"example.test", "other.test"}})
	return o.DNS, acmelab.NewCloudflare(tb, o)
}

func TestCloudflareServesLibdnsAndPebbleBelievesIt(t *testing.T) {
	t.Parallel()
	ns, f := flare(t, acmelab.CloudflareOptions{})
	p := &cloudflare.Provider{APIToken: acmelab.CloudflareToken, HTTPClient: f.HTTPClient()}
	ca := acmelab.NewCA(t, acmelab.CAOptions{DNS: ns.Addr})
	// The API knows zones without the final dot, and the provider sends what it is given.
	client := acmeClient(ca, bareZones{p}, "example.test.")
	obtain(t, ca, client, account(t, client), "*.example.test", "example.test", "a.example.test")
	if got := ns.TXTNames(); len(got) != 0 {
		t.Errorf("left behind %q", got)
	}
	want := map[string]int{"list zones": 1, "create record": 3, "list records": 3, "delete record": 3}
	for op, n := range want {
		if got := f.Requests()[op]; got != n {
			t.Errorf("%d requests of %q, want %d", got, op, n)
		}
	}
	if _, err := p.AppendRecords(t.Context(), "example.test", []libdns.Record{libdns.TXT{Name: "@", Text: "v", TTL: time.Minute}}); err != nil {
		t.Fatal(err)
	}
	if got := ns.TXT("example.test"); !slices.Equal(got, []string{"v"}) {
		t.Errorf("TXT of the apex %q", got)
	}
	all, err := p.GetRecords(t.Context(), "example.test")
	if err != nil || len(all) != 1 {
		t.Errorf("records %v, %v", all, err)
	}
	zones, err := p.ListZones(t.Context())
	if err != nil || len(zones) != 2 {
		t.Errorf("zones %v, %v", zones, err)
	}
}

// bareZones gives a provider its zones without the final dot.
type bareZones struct{ p provider }

func (b bareZones) AppendRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	return b.p.AppendRecords(ctx, strings.TrimSuffix(zone, "."), recs)
}

func (b bareZones) DeleteRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	return b.p.DeleteRecords(ctx, strings.TrimSuffix(zone, "."), recs)
}

func TestCloudflareRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	const zoneToken = "zone-token-0123456789abcdef"
	ns, f := flare(t, acmelab.CloudflareOptions{ZoneToken: zoneToken})
	c := f.HTTPClient()
	call := func(method, path, token, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://api.cloudflare.com/client/v4"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	_, text := call("GET", "/zones?name=example.test", zoneToken, "")
	_, id, _ := strings.Cut(text, `"id":"`)
	records := "/zones/" + id[:32] + "/dns_records"
	const good = `{"type":"TXT","name":"X","content":"\"v\"","ttl":60,"comment":"c"}`
	for _, tc := range []struct {
		name, method, path, token, body string
		status, code                    int
	}{
		{"good", "POST", records, acmelab.CloudflareToken, good, 200, 0},
		{"identical", "POST", records, acmelab.CloudflareToken, good, 400, 81058},
		{"full name", "POST", records, acmelab.CloudflareToken, `{"type":"TXT","name":"x.example.test.","content":"w"}`, 200, 0},
		{"unknown field", "POST", records, acmelab.CloudflareToken, `{"type":"TXT","name":"x","content":"y","text":"v"}`, 400, 9207},
		{"two values", "POST", records, acmelab.CloudflareToken, good + good, 400, 9207},
		{"no JSON", "POST", records, acmelab.CloudflareToken, "x", 400, 9207},
		{"no name", "POST", records, acmelab.CloudflareToken, `{"type":"TXT","content":"y"}`, 400, 9000},
		{"no content", "POST", records, acmelab.CloudflareToken, `{"type":"TXT","name":"x"}`, 400, 9009},
		{"unknown type", "POST", records, acmelab.CloudflareToken, `{"type":"TEXT","name":"x","content":"y"}`, 400, 9004},
		{"proxied text", "POST", records, acmelab.CloudflareToken, `{"type":"TXT","name":"x","content":"y","proxied":true}`, 400, 9004},
		{"short TTL", "POST", records, acmelab.CloudflareToken, `{"type":"TXT","name":"x","content":"y","ttl":5}`, 400, 9021},
		{"bad address", "POST", records, acmelab.CloudflareToken, `{"type":"A","name":"x","content":"y"}`, 400, 9005},
		{"one page", "GET", records + "?per_page=1&page=2&type=TXT&name=x.example.test", acmelab.CloudflareToken, "", 200, 0},
		{"unknown parameter", "GET", records + "?kind=TXT", acmelab.CloudflareToken, "", 400, 1004},
		{"unknown zone", "GET", "/zones/0/dns_records", acmelab.CloudflareToken, "", 404, 7003},
		{"unknown zone to write", "POST", "/zones/0/dns_records", acmelab.CloudflareToken, good, 404, 7003},
		{"unknown zone to delete", "DELETE", "/zones/0/dns_records/1", acmelab.CloudflareToken, "", 404, 7003},
		{"unknown record", "DELETE", records + "/1", acmelab.CloudflareToken, "", 404, 81044},
		{"unknown path", "GET", "/user", acmelab.CloudflareToken, "", 400, 7003},
		{"no token", "GET", records, "", "", 400, 6003},
		{"bad token", "GET", records, "no token", "", 400, 6003},
		{"another token", "GET", records, "another-token-0123456789", "", 403, 9109},
		{"zone token on records", "GET", records, zoneToken, "", 403, 10000},
		{"token on zones", "GET", "/zones", acmelab.CloudflareToken, "", 403, 10000},
	} {
		status, text := call(tc.method, tc.path, tc.token, tc.body)
		want := `"success":true`
		if tc.code != 0 {
			want = `"code":` + strconv.Itoa(tc.code)
		}
		if status != tc.status || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s, want %d %s", tc.name, status, text, tc.status, want)
		}
	}
	if got := ns.TXT("x.example.test"); !slices.Equal(got, []string{"v", "w"}) {
		t.Errorf("TXT %q", got)
	}
	if _, text := call("GET", records+"?per_page=1&page=2", acmelab.CloudflareToken, ""); !strings.Contains(text, `"total_pages":2`) || strings.Count(text, `"zone_id"`) != 1 {
		t.Errorf("second page %s", text)
	}
	for _, url := range []string{"http://api.cloudflare.com/", "https://example.com/"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := c.Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("%s was reached", url)
		}
	}
}

func TestCloudflareFailsWhenTold(t *testing.T) {
	t.Parallel()
	_, f := flare(t, acmelab.CloudflareOptions{Token: "another-token-0123456789"})
	p := &cloudflare.Provider{APIToken: "another-token-0123456789", HTTPClient: f.HTTPClient()}
	f.SetFail(func(op string) (int, int, string) {
		if op == "list zones" {
			return http.StatusTooManyRequests, 971, "Please wait and consider throttling your request speed"
		}
		return 0, 0, ""
	})
	if _, err := p.ListZones(t.Context()); err == nil || !strings.Contains(err.Error(), "971") {
		t.Errorf("told to fail: %v", err)
	}
	f.SetFail(nil)
	if _, err := p.ListZones(t.Context()); err != nil {
		t.Error(err)
	}
	f.SetDelay(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.GetRecords(ctx, "example.test"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("delayed: %v", err)
	}
}
