package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"edge/config"

	"golang.org/x/time/rate"
)

// Bounds of the conversation with an API over HTTP.
const (
	apiTimeout   = 30 * time.Second // of one request
	apiTries     = 5                // of one request, while the API says that it is busy
	apiParallel  = 8                // requests for different names under way at once
	firstRest    = 500 * time.Millisecond
	longestRest  = 30 * time.Second // that is waited at once; an API that wants more is told about
	maxAPIAnswer = 1 << 20          // bytes of a response, or of a request
)

// limit is what an API is known to allow one caller: so many requests a second,
// after as many at once as burst.
type limit struct {
	perSecond float64
	burst     int
}

// limitOf is what is kept to when the provider has no rate. The limits are of an
// account, which other programs use too.
//
//   - Route 53: five requests a second for an account (Developer Guide, Quotas).
//   - Cloudflare: 1200 requests in five minutes for a user (API, Rate limits). A
//     hundred at once and 3.6 a second after it stay below that.
//   - Google Cloud DNS: a quota of requests a minute for a project, which only its
//     console shows (Cloud DNS, Quotas); five a second are 300 a minute.
//   - Azure Resource Manager: 200 writes or deletions and then ten a second, for
//     a subscription and a service principal (Request limits and throttling).
//
// A server that takes dynamic updates and a program of the operator's have none.
func limitOf(c *config.Provider) limit {
	switch {
	case c.Rate > 0:
		return limit{c.Rate, max(1, int(math.Ceil(c.Rate)))}
	case c.Route53 != nil:
		return limit{5, 5}
	case c.Cloudflare != nil:
		return limit{3.6, 100}
	case c.GoogleCloudDNS != nil:
		return limit{5, 50}
	case c.Azure != nil:
		return limit{10, 100}
	}
	return limit{float64(rate.Inf), 1}
}

// pace keeps the requests of one provider below its limit. It may be used
// concurrently.
type pace struct {
	limiter *rate.Limiter

	mu    sync.Mutex
	quiet time.Time // until then the API wants to hear nothing
}

func newPace(l limit) *pace {
	return &pace{limiter: rate.NewLimiter(rate.Limit(l.perSecond), l.burst)}
}

// wait returns when n more requests may be sent. It fails at once when that is
// later than the end of ctx.
func (p *pace) wait(ctx context.Context, n int) error {
	p.mu.Lock()
	rest := time.Until(p.quiet)
	p.mu.Unlock()
	if rest > 0 && !p.rest(ctx, rest) {
		return fmt.Errorf("%w: the API has asked for %s of silence", tooLate(ctx), rest.Round(time.Second))
	}
	for ; n > 0; n -= p.limiter.Burst() {
		if err := p.limiter.WaitN(ctx, min(n, p.limiter.Burst())); err != nil {
			return fmt.Errorf("%w: wait for the limit of %.3g requests a second (rate in the provider)", tooLate(ctx), float64(p.limiter.Limit()))
		}
	}
	return nil
}

// tooLate is why ctx has ended or, when it has not yet, that it will be too early.
func tooLate(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return context.DeadlineExceeded
}

// rest waits for d unless ctx ends before; then it does not wait at all.
func (p *pace) rest(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return false
	}
	return pause(ctx, d)
}

// hush makes all requests of the provider wait for d.
func (p *pace) hush(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until := time.Now().Add(d); until.After(p.quiet) {
		p.quiet = until
	}
}

// paced sends requests to an API at its pace, and once more those that it was
// too busy for: adding what is there and deleting what is not there succeed, so
// that nothing is lost when it did hear the first one.
type paced struct {
	next HTTPClient
	pace *pace
}

// httpClient returns hc, or a client with timeouts that follows no redirect.
func httpClient(hc HTTPClient) HTTPClient {
	if std, ok := hc.(*http.Client); hc == nil || ok && std == nil {
		return &http.Client{
			Timeout:       apiTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return hc
}

// Do sends one request. A response that says "busy" is returned as it is when
// there was no more time, or the API wants a longer rest than longestRest.
func (c paced) Do(req *http.Request) (*http.Response, error) {
	next, err := repeatable(req)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		if err := c.pace.wait(req.Context(), 1); err != nil {
			return nil, err
		}
		resp, err := c.next.Do(next())
		if err != nil || !isBusy(resp) || try == apiTries {
			return resp, err
		}
		d, asked := restFor(resp, try, time.Now())
		if asked {
			c.pace.hush(min(d, longestRest))
		}
		if d > longestRest || !c.pace.rest(req.Context(), d) {
			return resp, nil
		}
		_ = resp.Body.Close()
	}
}

// repeatable returns a function that makes the request anew for each try. The
// body is copied: an API may answer before it has read it, so that the transport
// still reads while the next try begins, and GetBody of azcore rewinds the one
// reader that all tries would share.
func repeatable(req *http.Request) (func() *http.Request, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return func() *http.Request { return req }, nil
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, maxAPIAnswer))
	_ = req.Body.Close()
	if err != nil {
		return nil, err
	}
	return func() *http.Request {
		again := req.Clone(req.Context())
		again.Body = io.NopCloser(bytes.NewReader(body))
		again.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		return again
	}, nil
}

// isBusy tells a response that asks for patience. Google says so with 403 too.
func isBusy(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	case http.StatusForbidden:
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAPIAnswer))
		_ = resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return err == nil && bytes.Contains(body, []byte(`ateLimitExceeded"`)) // rate… and userRate…
	}
	return false
}

// restFor is how long to wait after the given try: what the API asks for by
// Retry-After (RFC 9110, section 10.2.3), else twice as long each time, and up
// to as much again so that replicas do not come back together.
func restFor(resp *http.Response, try int, now time.Time) (d time.Duration, asked bool) {
	text := resp.Header.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil && n >= 0 {
		return time.Duration(min(n, 1<<20)) * time.Second, true
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now)), true
	}
	d = firstRest << (try - 1)
	return d + rand.N(d), false //nolint:gosec // G404: jitter
}

// answerOf reads a response within bounds.
func answerOf(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close() //nolint:errcheck // it was only read
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAPIAnswer+1))
	if err == nil && len(body) > maxAPIAnswer {
		err = errors.New("the answer is longer than 1 MiB")
	}
	return body, err
}
