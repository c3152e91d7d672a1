package dns

import (
	"net/http"
	"strings"
	"testing"

	"edge/config"
	"edge/internal/acmelab"
)

func TestNewReportsEveryBadProviderWithAHint(t *testing.T) {
	t.Parallel()
	good := config.RFC2136{Server: "127.0.0.1:53", KeyName: "key.", KeyAlgorithm: "HMAC-SHA512", Key: secret(t, "c2VjcmV0c2VjcmV0")}
	with := func(change func(*config.RFC2136)) *config.Provider {
		c := good
		change(&c)
		return &config.Provider{Name: "lab", RFC2136: &c}
	}
	for name, c := range map[string]struct {
		provider *config.Provider
		want     []string
	}{
		"good":          {with(func(*config.RFC2136) {}), nil},
		"default":       {with(func(c *config.RFC2136) { c.KeyAlgorithm = "" }), nil},
		"no base64":     {with(func(c *config.RFC2136) { c.Key = secret(t, "top-secret!") }), []string{"key is not base64", "tsig-keygen"}},
		"no key":        {with(func(c *config.RFC2136) { c.Key = config.Secret{Ref: "env:EDGE_TEST_UNSET"} }), []string{"EDGE_TEST_UNSET", "rfc2136 key"}},
		"no key name":   {with(func(c *config.RFC2136) { c.KeyName = "" }), []string{"key_name is empty"}},
		"md5":           {with(func(c *config.RFC2136) { c.KeyAlgorithm = "hmac-md5" }), []string{`"hmac-md5" is not known`, "hmac-sha256"}},
		"no server":     {with(func(c *config.RFC2136) { c.Server = "" }), []string{"server is empty"}},
		"no kind":       {&config.Provider{Name: "lab"}, []string{"no kind"}},
		"no token":      {&config.Provider{Name: "lab", Cloudflare: &config.Cloudflare{Token: config.Secret{Ref: "env:EDGE_TEST_UNSET"}}}, []string{"cloudflare token", "EDGE_TEST_UNSET"}},
		"broken token":  {&config.Provider{Name: "lab", Cloudflare: &config.Cloudflare{Token: secret(t, "top-secret!\nX-Header: y")}}, []string{"no API token", "Zone:DNS:Edit"}},
		"token default": {&config.Provider{Name: "lab", Cloudflare: &config.Cloudflare{}}, []string{"CLOUDFLARE_API_TOKEN"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := New(Options{Providers: []*config.Provider{c.provider}})
			if c.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, append(c.want, "DNS provider lab: ")...)
			if err != nil && strings.Contains(err.Error(), "top-secret") {
				t.Errorf("secret in %v", err)
			}
		})
	}
	_, err := New(Options{Providers: []*config.Provider{{Name: "one"}, with(func(*config.RFC2136) {}), {Name: "two"}}})
	if err == nil || !strings.Contains(err.Error(), "provider one") || !strings.Contains(err.Error(), "provider two") {
		t.Errorf("two bad providers: %v", err)
	}
}

func TestNilHTTPClientMeansOneWithTimeouts(t *testing.T) {
	t.Parallel()
	var none *http.Client
	for _, hc := range []HTTPClient{nil, none} {
		p, err := newProvider(&config.Provider{Name: "cf", Cloudflare: &config.Cloudflare{Token: secret(t, "token")}}, Options{HTTPClient: hc})
		if err != nil {
			t.Fatal(err)
		}
		api, ok := p.backend.(flare).api.HTTPClient.(apiClient)
		if !ok {
			t.Fatalf("client %T", p.backend.(flare).api.HTTPClient)
		}
		if c, ok := api.next.(paced).next.(*http.Client); !ok || c == nil || c.Timeout != apiTimeout {
			t.Errorf("client %+v", api.next)
		}
	}
}

func TestWrongTSIGKeyIsExplainedWithoutTheKey(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	const wrong = "d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXk="
	c := updates(t, d, "lab")
	c.RFC2136.Key = secret(t, wrong)
	_, err := solver(t, d, Options{Providers: []*config.Provider{c}}).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "provider lab (rfc2136)", "TSIG key lab-key", d.Addr, "check key_name")
	if strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), "wrong key") {
		t.Errorf("secret in %v", err)
	}
}

func TestServerOfUpdatesThatIsDownOrNotPrimaryIsExplained(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	other := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"other.test"}})
	c := updates(t, d, "lab")
	c.RFC2136.Server = unusedAddr(t)
	_, err := solver(t, d, Options{Providers: []*config.Provider{c}}).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, c.RFC2136.Server+" cannot be reached: connection refused", "TCP")
	c.RFC2136.Server = other.Addr
	_, err = solver(t, d, Options{Providers: []*config.Provider{c}}).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, other.Addr+" answers NOTAUTH", "not a primary of the zone")
}

func TestUpdateIsSentAgainWhenNoAnswerComes(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	first := make(chan struct{}, 1)
	first <- struct{}{}
	d.SetFault(func(q acmelab.Query) (int, bool) {
		if !q.Update {
			return 0, false
		}
		select {
		case <-first:
			return acmelab.Silence, true
		default:
			return 0, false
		}
	})
	present(t, solver(t, d, Options{}), Record{challenge, "v"})
	if got := d.TXT(challenge); len(got) != 1 {
		t.Errorf("values: %q", got)
	}
}

func FuzzProviderWordsBecomeOneShortLine(f *testing.F) {
	f.Add("plain")
	f.Add("two\nlines\r\n\x1b[31mred\x00")
	f.Add(strings.Repeat("ü", maxReason))
	f.Fuzz(func(t *testing.T, text string) {
		got := oneLine(text)
		if len(got) > maxReason+len("…") || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("oneLine(%q) = %q", text, got)
		}
	})
}
