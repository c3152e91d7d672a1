package dns

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
	"edge/internal/acmelab"
)

func TestProviderKeepsToItsRate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		provider config.Provider
		requests int
		want     time.Duration // after which the last may be sent
	}{
		"route53":    {config.Provider{Route53: &config.Route53{}}, 55, 10 * time.Second},
		"cloudflare": {config.Provider{Cloudflare: &config.Cloudflare{}}, 136, 10 * time.Second},
		"google":     {config.Provider{GoogleCloudDNS: &config.GoogleCloudDNS{}}, 100, 10 * time.Second},
		"azure":      {config.Provider{Azure: &config.AzureDNS{}}, 200, 10 * time.Second},
		"rfc2136":    {config.Provider{RFC2136: &config.RFC2136{}}, 10_000, 0},
		"exec":       {config.Provider{Exec: &config.ExecDNS{}}, 10_000, 0},
		"configured": {config.Provider{Rate: 2.5, Exec: &config.ExecDNS{}}, 28, 10 * time.Second},
		"slow":       {config.Provider{Rate: 0.5, RFC2136: &config.RFC2136{}}, 6, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPace(limitOf(&c.provider))
				begin := time.Now()
				for range c.requests {
					if err := p.wait(t.Context(), 1); err != nil {
						t.Fatal(err)
					}
				}
				if got := time.Since(begin).Round(time.Millisecond); got != c.want {
					t.Errorf("%d requests after %s, want %s", c.requests, got, c.want)
				}
			})
		})
	}
}

func TestWaitForTheRateIsBoundedByTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPace(limit{1, 2})
		if err := p.wait(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		err := p.wait(ctx, 10) // more than fit
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 3*time.Second {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		wantError(t, err, "the limit of 1 requests a second", "rate in the provider")
		p.hush(time.Minute)
		wantError(t, p.wait(ctx, 1), "the API has asked for 1m0s of silence")
		ended, end := context.WithCancelCause(t.Context())
		lost := errors.New("lease lost")
		end(lost)
		if err := p.wait(ended, 1); !errors.Is(err, lost) {
			t.Errorf("order that has ended: %v", err)
		}
	})
}

// busyUntil refuses the first n requests.
func busyUntil(n int32, status int, header http.Header, sent *atomic.Int32) HTTPClient {
	return doer(func(req *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(req.Body)
		if err != nil || string(body) != "body" {
			return nil, errors.New("body " + string(body))
		}
		resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"error":{"errors":[{"reason":"rateLimitExceeded"}]}}`))}
		if sent.Add(1) <= n {
			resp.StatusCode, resp.Header = status, header
		}
		return resp, nil
	})
}

func TestBusyAPIIsAskedAgainWhenItSays(t *testing.T) {
	t.Parallel()
	inTenSeconds := func() http.Header {
		return http.Header{"Retry-After": {time.Now().Add(10 * time.Second).UTC().Format(http.TimeFormat)}}
	}
	for name, c := range map[string]struct {
		busy   int32
		status int
		header func() http.Header
		sent   int32
		after  time.Duration // at least
		before time.Duration
		result int
	}{
		"seconds":       {2, 429, func() http.Header { return http.Header{"Retry-After": {"7"}} }, 3, 14 * time.Second, 15 * time.Second, 200},
		"date":          {1, 503, inTenSeconds, 2, 9 * time.Second, 11 * time.Second, 200},
		"no word":       {3, 429, func() http.Header { return http.Header{} }, 4, 3500 * time.Millisecond, 7 * time.Second, 200},
		"nonsense":      {1, 502, func() http.Header { return http.Header{"Retry-After": {"soon"}} }, 2, 500 * time.Millisecond, time.Second, 200},
		"403 of Google": {1, 403, func() http.Header { return http.Header{"Retry-After": {"1"}} }, 2, time.Second, time.Second, 200},
		"for ever":      {99, 429, func() http.Header { return http.Header{"Retry-After": {"1"}} }, apiTries, 4 * time.Second, 4 * time.Second, 429},
		"too long":      {1, 429, func() http.Header { return http.Header{"Retry-After": {"3600"}} }, 1, 0, 0, 429},
		"no":            {1, 400, func() http.Header { return http.Header{} }, 1, 0, 0, 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var sent atomic.Int32
				client := paced{busyUntil(c.busy, c.status, c.header(), &sent), newPace(limit{1000, 1000})}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.test/", strings.NewReader("body"))
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				d := time.Since(begin)
				if resp.StatusCode != c.result || sent.Load() != c.sent || d < c.after || d > c.before {
					t.Errorf("status %d after %d requests in %s", resp.StatusCode, sent.Load(), d)
				}
			})
		})
	}
}

func TestOneRequestThatIsRefusedQuietsAllOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPace(limit{1000, 1000})
		p.hush(5 * time.Second)
		p.hush(time.Second) // does not shorten it
		begin := time.Now()
		if err := p.wait(t.Context(), 1); err != nil || time.Since(begin) != 5*time.Second {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
	})
}

func TestThrottledProvidersSucceedInTheEnd(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	fail := func(string) *acmelab.Refusal {
		if asked.Add(1)%3 == 0 {
			return &acmelab.Refusal{Status: http.StatusTooManyRequests, Code: "TooManyRequests", RetryAfter: "0"}
		}
		return nil
	}
	g, gd := startGoogle(t, acmelab.GoogleOptions{})
	a, ad := startAzure(t)
	g.SetFail(fail)
	a.SetFail(fail)
	for _, c := range []struct {
		d *acmelab.DNS
		o Options
	}{{gd, googleOptions(t, g)}, {ad, azureOptions(t, a)}} {
		p := present(t, solver(t, c.d, c.o), Record{challenge, "v"}, Record{"_acme-challenge.a.example.test", "v"}, Record{"_acme-challenge.b.example.test", "v"})
		if err := p.CleanUp(t.Context()); err != nil || len(c.d.TXTNames()) > 0 {
			t.Errorf("%v, left %q", err, c.d.TXTNames())
		}
	}
}
