package dns

import (
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"edge/config"
	"edge/internal/acmelab"
)

// startCloudflare serves a strict fake that writes into a name server.
func startCloudflare(t *testing.T) (*acmelab.Cloudflare, *acmelab.DNS) {
	t.Helper()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "acme.test"}})
	return acmelab.NewCloudflare(t, acmelab.CloudflareOptions{DNS: d}), d
}

func flareSolver(t *testing.T, d *acmelab.DNS, c HTTPClient, token string) *Solver {
	t.Helper()
	return solver(t, d, Options{
		HTTPClient: c,
		Providers:  []*config.Provider{{Name: "cf", Cloudflare: &config.Cloudflare{Token: secret(t, token)}}},
	})
}

func TestCloudflareAddsAndDeletesExactlyOurRecords(t *testing.T) {
	t.Parallel()
	f, d := startCloudflare(t)
	if err := d.Add("_acme-challenge.cname.example.test. 60 IN CNAME acme.test."); err != nil {
		t.Fatal(err)
	}
	s := flareSolver(t, d, f.HTTPClient(), acmelab.CloudflareToken)
	present(t, s, Record{challenge, "apex-and-more"}, Record{challenge, "wildcard"}) // by a replica that has died since
	p := present(t, s, Record{challenge, "apex"}, Record{challenge, "wildcard"},
		Record{"_acme-challenge.a.b.example.test", "deep"}, Record{"_acme-challenge.cname.example.test", "at"})
	if got, want := d.TXT(challenge), []string{"apex", "apex-and-more", "wildcard"}; !slices.Equal(got, want) {
		t.Errorf("values: %q, want %q", got, want)
	}
	if got := d.TXT("acme.test"); !slices.Equal(got, []string{"at"}) {
		t.Errorf("values at an apex: %q", got)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := p.CleanUp(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := d.TXTNames(); !slices.Equal(got, []string{challenge + "."}) || !slices.Equal(d.TXT(challenge), []string{"apex-and-more"}) {
		t.Errorf("after CleanUp: %q at %q", d.TXT(challenge), got)
	}
	want := map[string]int{"list zones": 2, "create record": 6, "list records": 4, "delete record": 4}
	for op, n := range f.Requests() {
		if n != want[op] {
			t.Errorf("%s: %d requests, want %d", op, n, want[op])
		}
	}
}

func TestCloudflareHalfWrittenOrderIsTakenBack(t *testing.T) {
	t.Parallel()
	f, d := startCloudflare(t)
	var created atomic.Int32
	f.SetFail(func(op string) (int, int, string) {
		if op == "create record" && created.Add(1) == 3 {
			return http.StatusForbidden, 10000, "Authentication error"
		}
		return 0, 0, ""
	})
	_, err := flareSolver(t, d, f.HTTPClient(), acmelab.CloudflareToken).Present(t.Context(),
		[]Record{{challenge, "a"}, {challenge, "b"}, {challenge, "c"}, {challenge, "d"}})
	wantError(t, err, "provider cf (cloudflare)", "the token is refused", "HTTP 403, 10000 Authentication error")
	if got := d.TXT(challenge); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestCloudflareRefusalsAreExplained(t *testing.T) {
	t.Parallel()
	f, d := startCloudflare(t)
	const other = "other-token-0123456789abcdefghijklmno"
	_, err := flareSolver(t, d, f.HTTPClient(), other).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "HTTP 403, 9109 Invalid access token", "Zone:Zone:Read", "Zone:DNS:Edit", "provider cf (cloudflare)", "zone example.test")
	_, err = flareSolver(t, d, f.HTTPClient(), "short").Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "6003 Invalid request headers", "Zone:DNS:Edit")
	elsewhere := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.invalid"}})
	_, err = flareSolver(t, elsewhere, f.HTTPClient(), acmelab.CloudflareToken).Present(t.Context(), []Record{{"_acme-challenge.example.invalid", "v"}})
	wantError(t, err, "the token sees no such zone", "Zone:DNS:Edit")
	f.SetFail(func(string) (int, int, string) { return http.StatusBadRequest, 1004, "DNS Validation\nError." })
	_, err = flareSolver(t, d, f.HTTPClient(), acmelab.CloudflareToken).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "HTTP 400, 1004 DNS Validation Error")
}

// canned answers every request with the same response.
func canned(status int, body io.Reader) HTTPClient {
	return doer(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {"0"}}, Body: io.NopCloser(body)}, nil
	})
}

func TestCloudflareTroubleIsExplainedWithoutTheToken(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	const token = "cf-token-0123456789"
	for name, c := range map[string]struct {
		status int
		body   string
		want   []string
	}{
		"token repeated": {403, `{"errors":[{"code":9109,"message":"Bad token ` + token + `"}]}`, []string{"9109 Bad token [redacted]"}},
		"chain":          {400, `{"errors":[{"code":6003,"message":"Invalid request headers","error_chain":[{"code":6111,"message":"Invalid format"}]}]}`, []string{"6111 Invalid format", "Zone:DNS:Edit"}},
		"two zones":      {200, `{"result":[{"id":"a"},{"id":"b"}]}`, []string{"several zones of this name"}},
		"too many":       {429, `{"errors":[{"code":971,"message":"Please wait"}]}`, []string{"too many requests: HTTP 429", "1200 in 5 minutes"}},
		"gateway page":   {502, "<html>bad gateway</html>", []string{"HTTP 502", "cloudflarestatus"}},
		"nonsense":       {200, "<html>", []string{"invalid character"}},
		"redirect":       {301, "", []string{"HTTP 301"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := flareSolver(t, d, canned(c.status, strings.NewReader(c.body)), token).Present(t.Context(), []Record{{challenge, "v"}})
			wantError(t, err, append(c.want, "provider cf (cloudflare)", "zone example.test")...)
			if err != nil && strings.Contains(err.Error(), token) {
				t.Errorf("token in %v", err)
			}
		})
	}
}

// refusing is an HTTPClient whose connections are refused.
type refusing struct{}

func (refusing) Do(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

func TestCloudflareOutOfReachIsExplained(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	_, err := flareSolver(t, d, refusing{}, "cf-token-0123456789").Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "api.cloudflare.com cannot be reached: connection refused", "HTTPS_PROXY")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error("the cause is lost")
	}
}

func TestCloudflareResponsesAreBounded(t *testing.T) {
	t.Parallel()
	endless := canned(http.StatusOK, io.MultiReader(strings.NewReader(`{"messages":["`), zeros{}))
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	_, err := flareSolver(t, d, endless, "cf-token-0123456789").Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "unexpected EOF")
}

type doer func(*http.Request) (*http.Response, error)

func (f doer) Do(r *http.Request) (*http.Response, error) { return f(r) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}
